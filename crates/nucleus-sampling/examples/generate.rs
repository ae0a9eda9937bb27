//! The decoding loop of an engine, with a stand-in for its model.
//!
//! `cargo run -p nucleus-sampling --example generate`
#![allow(clippy::print_stdout)]

use nucleus_sampling::{
    CpuSampler, LogitsRow, Row, Sampler, SamplerState, SamplingParams, Status, VocabInfo,
};

const VOCAB: u32 = 32_000;
const EOS: u32 = 2;

/// What the engine's forward pass would give: logits that depend on the tokens so far.
fn forward(tokens: &[u32]) -> Vec<f32> {
    let last = tokens.last().copied().unwrap_or(0);
    let distance = |id: u32| (id ^ (last.wrapping_mul(40_503) % VOCAB)).count_ones();
    (0..VOCAB)
        .map(|id| 12.0 - 2.0 * distance(id) as f32)
        .collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let request = SamplingParams {
        temperature: Some(0.8),
        top_k: Some(40),
        top_p: Some(0.95),
        repetition_penalty: Some(1.1),
        seed: Some(42),
        ..Default::default()
    };
    // Once for each request: what cannot be honoured is an error that names the field, the value and the range.
    let params = request.validate(&VocabInfo::new(VOCAB).with_eos(&[EOS]))?;
    params
        .warnings()
        .iter()
        .for_each(|warning| println!("{warning}"));

    let mut sampler = CpuSampler::new(); // Once for the engine.
    let mut state = SamplerState::new(&params, &[1, 306, 4658]); // Once for each sequence; holds the prompt.
    for _ in 0..16 {
        let logits = forward(state.tokens());
        let sampled = sampler.sample(&Row::new(LogitsRow::F32(&logits), &params, &state));
        if sampled.status != Status::Ok {
            return Err(sampled.status.to_string().into());
        }
        state.commit(&sampled);
        println!(
            "token {:>5}  ln p {:>7.3}",
            sampled.token_id, sampled.logprob
        );
        if sampled.token_id == EOS {
            break;
        }
    }
    Ok(())
}
