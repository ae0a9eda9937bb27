//! One step of many sequences at once, each with its own parameters and its own type of logits.
//!
//! `cargo run -p nucleus-sampling --example batch`
#![allow(clippy::print_stdout)]

use half::bf16;
use nucleus_sampling::{
    CpuSampler, LogitsRow, ParamError, Row, Sampler, SamplerState, SamplingParams, VocabInfo,
};

const VOCAB: usize = 151_936;

fn logits(sequence: usize) -> Vec<f32> {
    let height = |id: usize| ((id * 7919 + sequence * 104_729) % 10_007) as f32;
    (0..VOCAB).map(|id| height(id) / 500.0).collect()
}

fn main() -> Result<(), ParamError> {
    let vocab = VocabInfo::new(VOCAB as u32);
    let greedy = SamplingParams {
        temperature: Some(0.0),
        ..Default::default()
    };
    let nucleus = SamplingParams {
        top_p: Some(0.9),
        seed: Some(7),
        ..Default::default()
    };
    let narrow = SamplingParams {
        top_k: Some(5),
        seed: Some(8),
        ..Default::default()
    };
    let requests = [
        greedy.validate(&vocab)?,
        nucleus.validate(&vocab)?,
        narrow.validate(&vocab)?,
    ];

    let mut states = requests
        .each_ref()
        .map(|params| SamplerState::new(params, &[]));
    let wide = [logits(0), logits(1)];
    let short: Vec<bf16> = logits(2).into_iter().map(bf16::from_f32).collect();
    let rows = [
        Row::new(LogitsRow::F32(&wide[0]), &requests[0], &states[0]),
        Row::new(LogitsRow::F32(&wide[1]), &requests[1], &states[1]),
        Row::new(LogitsRow::Bf16(&short), &requests[2], &states[2]),
    ];

    // Rows share rayon's threads. No row's result depends on its neighbours or on the number of threads.
    let (mut sampler, mut sampled) = (CpuSampler::new(), Vec::new());
    sampler.sample_batch(&rows, &mut sampled);
    for (state, token) in states.iter_mut().zip(&sampled) {
        state.commit(token);
        println!(
            "{:?}: token {}, one of {}",
            token.status, token.token_id, token.kept_count
        );
    }
    Ok(())
}
