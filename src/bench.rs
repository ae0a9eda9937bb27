//! `nucleus bench`: how fast this machine decodes and samples.

use std::hint::black_box;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use clap::{Arg, ArgMatches, Command, value_parser};
use nucleus_engine::generate::{EngineOptions, Generation, Request};
use nucleus_engine::models::{BLOCK_SIZE, Device};
use nucleus_engine::sequence::Completion;
#[cfg(feature = "cuda")]
use nucleus_sampling::cuda::{CudaOptions, CudaSampler, PlacedRow, SlotEnd, SlotRow};
use nucleus_sampling::{
    Counter, LogitsRow, MAX_VOCAB, Purpose, Row, Sampler, SamplerState, SamplingParams, VocabInfo,
    uniform,
};
use serde_json::{Value, json};

use crate::cli::args;
use crate::model::{self, Loaded, ModelOptions};
use crate::rows;
use crate::stream;
use crate::table::{Align, Table};

/// Tokens of the prompts.
const PROMPT_TOKENS: usize = 128;
/// A measurement takes this long, and at least so many draws.
const SAMPLING_TIME: Duration = Duration::from_millis(300);
const MIN_DRAWS: usize = 5;
/// Tokens that penalties look at.
const HISTORY_TOKENS: u32 = 1_000;

const ABOUT: &str = "Measure decoding and sampling on this machine";

const DETAILS: &str = "\
Decoding: tokens per second of all sequences together, each with a prompt of 128 tokens; prefill is the speed at which the first of \
them read its prompt. Sampling: the median time of one draw from a row of random logits, on one thread; with a GPU, also of one launch there, from queueing it to having its tokens, \
for 1 and for 64 rows.";

const EXAMPLES: &str = "\
Examples:
  nucleus bench
  nucleus bench --model model.gguf --threads 8 --sequences 1,32 --json";

/// The command's flags.
pub(crate) fn command() -> Command {
    let tokens = Arg::new("tokens")
        .long("tokens")
        .value_name("N")
        .value_parser(value_parser!(u32).range(2..=100_000))
        .default_value("64")
        .help("Tokens that each sequence decodes");
    let numbers = |name: &'static str, value: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name(value)
            .value_delimiter(',')
    };
    let sequences = numbers("sequences", "N,N...")
        .value_parser(value_parser!(u32).range(1..=1024))
        .default_value("1,4,16")
        .help("Numbers of sequences that decode at once");
    // The widths of the bundled model's vocabulary, of Llama 2's and of Qwen2.5's.
    let vocab = numbers("vocab", "SIZE,SIZE...")
        .value_parser(value_parser!(u32).range(1..=i64::from(MAX_VOCAB)))
        .default_value("8192,32000,151936")
        .help("Widths of the rows that are sampled from");
    Command::new("bench")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args(args::model_flags())
        .args([sequences, tokens, vocab])
        .args([args::json_flag("Print one JSON object"), args::quiet_flag()])
}

/// Measures and prints.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let tokens = *matches
        .get_one::<u32>("tokens")
        .expect("the flag has a default") as usize;
    let sequences: Vec<usize> = list(matches, "sequences")
        .map(|count| count as usize)
        .collect();
    let most = sequences
        .iter()
        .copied()
        .max()
        .expect("a list has a number");
    let loaded = model::load(&options(matches, most, tokens)?, args::notes(matches))?;
    let decoding: Vec<Decoding> = sequences
        .into_iter()
        .map(|sequences| decode(&loaded, sequences, tokens))
        .collect::<anyhow::Result<_>>()?;
    let device = loaded.engine.device();
    let mut sampling = Vec::new();
    for vocab_size in list(matches, "vocab") {
        sampling.extend(sample(vocab_size));
        sampling.extend(sample_on(device, vocab_size)?);
    }
    let report = Report {
        model: loaded.engine.spec().name.clone(),
        device,
        device_name: loaded.engine.device_name().map(str::to_owned),
        decoding,
        sampling,
    };
    let text = if matches.get_flag("json") {
        format!("{}\n", report.to_json())
    } else {
        report.to_text()
    };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn list(matches: &ArgMatches, name: &str) -> impl Iterator<Item = u32> {
    matches.get_many::<u32>(name).into_iter().flatten().copied()
}

/// An engine in which so many sequences run at once.
fn options(matches: &ArgMatches, sequences: usize, tokens: usize) -> anyhow::Result<ModelOptions> {
    let each = (PROMPT_TOKENS + tokens).next_multiple_of(BLOCK_SIZE);
    Ok(ModelOptions {
        kv_tokens: NonZeroUsize::new(sequences * each),
        engine: EngineOptions {
            max_running: sequences,
            max_waiting: sequences,
            step_tokens: EngineOptions::default().step_tokens.max(sequences),
            // Prompts come again with another number of sequences, and are to be computed again.
            prefix_reuse: false,
        },
        ..args::model_options(matches)?
    })
}

/// Speed with a number of sequences.
struct Decoding {
    sequences: usize,
    prefill: f64,
    decode: f64,
}

fn decode(loaded: &Loaded, sequences: usize, tokens: usize) -> anyhow::Result<Decoding> {
    let vocab_size = loaded.engine.spec().vocab_size as u64;
    let request = |seed| Request {
        // Any tokens do; each sequence has its own, so that nothing can be shared.
        prompt: (0..PROMPT_TOKENS as u32)
            .map(|i| (random(seed, i) % vocab_size) as u32)
            .collect(),
        params: SamplingParams {
            seed: Some(seed),
            ignore_eos: Some(true),
            ..SamplingParams::default()
        },
        max_tokens: Some(tokens),
        ..Request::default()
    };
    let running: Vec<Generation> = (0..sequences as u64)
        .map(|seed| loaded.submit(request(seed)))
        .collect::<anyhow::Result<_>>()?;
    let completions: Vec<Completion> = running
        .into_iter()
        .map(|one| stream::follow(one, |_| Ok(())))
        .collect::<anyhow::Result<_>>()?;
    let first = &completions[0];
    let slowest = completions
        .iter()
        .map(|one| one.timings.decode)
        .max()
        .unwrap_or_default();
    let after_first: usize = completions.iter().map(|one| one.token_ids.len() - 1).sum();
    Ok(Decoding {
        sequences,
        prefill: first.prompt_tokens as f64 / first.timings.prefill.as_secs_f64(),
        decode: after_first as f64 / slowest.as_secs_f64(),
    })
}

/// Time of a draw, or of a launch that draws for several rows.
struct Sampling {
    device: Device,
    rows: usize,
    vocab_size: u32,
    parameters: &'static str,
    median: Duration,
}

/// What is drawn with, and what it is called.
fn parameter_sets() -> [(&'static str, SamplingParams); 4] {
    let usual = SamplingParams {
        temperature: Some(0.8),
        top_k: Some(40),
        top_p: Some(0.95),
        min_p: Some(0.05),
        ..SamplingParams::default()
    };
    let penalties = SamplingParams {
        repetition_penalty: Some(1.1),
        frequency_penalty: Some(0.2),
        presence_penalty: Some(0.2),
        dry_multiplier: Some(0.8),
        ..usual.clone()
    };
    [
        (
            "temperature 0",
            SamplingParams {
                temperature: Some(0.0),
                ..SamplingParams::default()
            },
        ),
        (
            "top_p 0.9",
            SamplingParams {
                top_p: Some(0.9),
                ..SamplingParams::default()
            },
        ),
        ("temperature, top_k 40, top_p, min_p", usual),
        ("the same, penalties and DRY over 1,000 tokens", penalties),
    ]
}

fn sample(vocab_size: u32) -> Vec<Sampling> {
    let logits: Vec<f32> = (0..vocab_size).map(logit).collect();
    let history = history(vocab_size);
    let mut sampler = rows::sampler();
    parameter_sets()
        .into_iter()
        .map(|(parameters, params)| {
            let params = params
                .validate(&VocabInfo::new(vocab_size))
                .expect("the sets above are within range");
            let state = SamplerState::new(&params, &history);
            let row = Row::new(LogitsRow::F32(&logits), &params, &state);
            Sampling {
                device: Device::Cpu,
                rows: 1,
                vocab_size,
                parameters,
                median: median_time(|| {
                    black_box(sampler.sample(&row));
                }),
            }
        })
        .collect()
}

/// Rows of the launches that are timed.
#[cfg(feature = "cuda")]
const LAUNCHES: [usize; 2] = [1, 64];

/// The same on a GPU, where logits and histories lie there.
#[cfg(feature = "cuda")]
fn sample_on(device: Device, vocab_size: u32) -> anyhow::Result<Vec<Sampling>> {
    let Device::Cuda(number) = device else {
        return Ok(Vec::new());
    };
    let most = LAUNCHES[LAUNCHES.len() - 1];
    let logits: Vec<Vec<f32>> = (0..most as u32)
        .map(|row| {
            (0..vocab_size)
                .map(|id| logit(id.rotate_left(7) ^ row))
                .collect()
        })
        .collect();
    let logits: Vec<LogitsRow<'_>> = logits.iter().map(|row| LogitsRow::F32(row)).collect();
    let mut sampler = CudaSampler::new(CudaOptions {
        device: number,
        ..CudaOptions::default()
    })?;
    let lying = sampler.place_rows(&logits)?.expect("there are rows");
    sampler.reserve_slots(most as u32, HISTORY_TOKENS + 1)?;
    let mut tokens = Vec::new();
    let mut measured = Vec::new();
    for (parameters, params) in parameter_sets() {
        let params = params
            .validate(&VocabInfo::new(vocab_size))
            .expect("the sets above are within range");
        let state = SamplerState::new(&params, &history(vocab_size));
        let mut rows = Vec::with_capacity(most);
        for slot in 0..most as u32 {
            sampler.restore_slot(slot, &state, SlotEnd::default())?;
            let row = SlotRow {
                commit: false,
                ..SlotRow::new(slot, &params)
            };
            rows.push(PlacedRow {
                logits_row: slot,
                row,
            });
        }
        for count in LAUNCHES {
            let mut result = Ok(());
            let median = median_time(|| {
                let drawn = sampler
                    .queue_slots(&lying, &rows[..count])
                    .and_then(|()| sampler.collect(&mut tokens));
                result = result.clone().and(drawn);
            });
            result?;
            measured.push(Sampling {
                device,
                rows: count,
                vocab_size,
                parameters,
                median,
            });
        }
    }
    Ok(measured)
}

/// This build samples on no GPU.
#[cfg(not(feature = "cuda"))]
fn sample_on(_: Device, _: u32) -> anyhow::Result<Vec<Sampling>> {
    Ok(Vec::new())
}

/// What the penalties look at.
fn history(vocab_size: u32) -> Vec<u32> {
    (0..HISTORY_TOKENS)
        .map(|i| (random(1, i) % u64::from(vocab_size)) as u32)
        .collect()
}

/// Half of the runs are at least this fast.
fn median_time(mut run: impl FnMut()) -> Duration {
    let begin = Instant::now();
    let mut times = Vec::new();
    while times.len() < MIN_DRAWS || begin.elapsed() < SAMPLING_TIME {
        let start = Instant::now();
        run();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    times[times.len() / 2]
}

/// A random logit: a sum of four uniform numbers is nearly normal; its standard deviation is 3.
fn logit(id: u32) -> f32 {
    let words = random(0, id).to_le_bytes();
    let sum: f32 = words
        .chunks_exact(2)
        .map(|word| f32::from(u16::from_le_bytes([word[0], word[1]])) / 65_536.0)
        .sum();
    // The sum has mean 2 and variance 4/12.
    (sum - 2.0) * 3.0 * 3.0_f32.sqrt()
}

fn random(seed: u64, position: u32) -> u64 {
    uniform(
        seed,
        Counter {
            position,
            purpose: Purpose::Draw,
            choice: 0,
            attempt: 0,
        },
    )
}

/// Everything that was measured.
struct Report {
    model: String,
    device: Device,
    device_name: Option<String>,
    decoding: Vec<Decoding>,
    sampling: Vec<Sampling>,
}

impl Report {
    fn to_json(&self) -> Value {
        let decoding = self.decoding.iter().map(|row| {
            json!({
                "sequences": row.sequences,
                "prefill_tokens_per_second": row.prefill,
                "decode_tokens_per_second": row.decode,
            })
        });
        let sampling = self.sampling.iter().map(|row| {
            json!({
                "device": row.device.to_string(),
                "rows": row.rows,
                "vocab_size": row.vocab_size,
                "parameters": row.parameters,
                "median_us": row.median.as_secs_f64() * 1e6,
            })
        });
        json!({
            "model": self.model,
            "device": self.device.to_string(),
            "device_name": self.device_name,
            "cores": cores(),
            "decoding": decoding.collect::<Value>(),
            "sampling": sampling.collect::<Value>(),
        })
    }

    /// What decoded.
    fn place(&self) -> String {
        match &self.device_name {
            Some(name) => format!("{} ({name})", self.device),
            None => format!("{} cores", cores()),
        }
    }

    fn to_text(&self) -> String {
        let mut decoding = Table::new([
            ("sequences", Align::Right),
            ("prefill tokens/s", Align::Right),
            ("decode tokens/s", Align::Right),
        ]);
        for row in &self.decoding {
            decoding.push([
                row.sequences.to_string(),
                format!("{:.1}", row.prefill),
                format!("{:.1}", row.decode),
            ]);
        }
        let mut sampling = Table::new([
            ("device", Align::Left),
            ("rows", Align::Right),
            ("vocabulary", Align::Right),
            ("parameters", Align::Left),
            ("µs", Align::Right),
        ]);
        for row in &self.sampling {
            let microseconds = format!("{:.1}", row.median.as_secs_f64() * 1e6);
            sampling.push([
                row.device.to_string(),
                row.rows.to_string(),
                row.vocab_size.to_string(),
                row.parameters.to_owned(),
                microseconds,
            ]);
        }
        format!(
            "decoding, {}, {}\n{}\nsampling, one draw or one launch\n{}",
            self.model,
            self.place(),
            decoding.render(2),
            sampling.render(2)
        )
    }
}

fn cores() -> usize {
    available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_logits_are_spread_as_said() {
        let logits: Vec<f32> = (0..10_000).map(logit).collect();
        let mean = logits.iter().sum::<f32>() / logits.len() as f32;
        let variance = logits.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / logits.len() as f32;
        assert!(
            mean.abs() < 0.2 && (variance.sqrt() - 3.0).abs() < 0.1,
            "{mean} {variance}"
        );
    }

    #[test]
    fn the_median_is_taken_over_enough_runs() {
        let mut runs = 0;
        let median = median_time(|| runs += 1);
        assert!(runs >= MIN_DRAWS && median < SAMPLING_TIME);
    }
}
