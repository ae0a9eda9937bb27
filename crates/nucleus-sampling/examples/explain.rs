//! What each stage of a request did to a row.
//!
//! `cargo run -p nucleus-sampling --example explain`
#![allow(clippy::print_stdout)]

use nucleus_sampling::{
    CpuSampler, LogitsRow, ParamError, Row, Sampler, SamplerState, SamplingParams, VocabInfo,
};

fn main() -> Result<(), ParamError> {
    let logits: Vec<f32> = (0..1000).map(|id| 10.0 - (id as f32).sqrt()).collect();
    let request = SamplingParams {
        temperature: Some(0.7),
        top_k: Some(50),
        top_p: Some(0.9),
        min_p: Some(0.05),
        frequency_penalty: Some(0.5),
        seed: Some(1),
        ..Default::default()
    };
    let params = request.validate(&VocabInfo::new(1000))?;
    let mut state = SamplerState::new(&params, &[]);
    [0, 1, 0].into_iter().for_each(|id| state.commit_forced(id));

    let trace = CpuSampler::new().trace(&Row::new(LogitsRow::F32(&logits), &params, &state));
    println!(
        "{:<12} {:>5} {:>8} {:>8}",
        "stage", "kept", "mass", "entropy"
    );
    for stage in &trace.stages {
        println!(
            "{:<12} {:>5} {:>8.4} {:>8.4}",
            stage.name, stage.kept, stage.mass, stage.entropy
        );
    }
    for (id, p) in trace.distribution.iter().take(5) {
        println!("token {id}: {p:.4}");
    }
    println!("chosen: {}", trace.sampled.token_id);
    Ok(())
}
