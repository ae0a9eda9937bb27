//! Engine-independent cases: `testdata/sampling/*.toml` holds small rows with what any sampler must make of them.
//! `testdata/sampling/README.md` describes the format.

use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use nucleus_sampling::{
    CompiledParams, LogitsRow, Logprobs, LogprobsMode, Row, SampledToken, Sampler, SamplerState,
    SamplingParams, Status, Trace, VocabInfo,
};
use serde::Deserialize;

/// Largest difference of a probability or a log-probability from the expected one.
const TOLERANCE: f64 = 2e-6;

/// One `[[case]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Case {
    pub(crate) name: String,
    logits: Vec<f64>,
    #[serde(default)]
    dtype: Dtype,
    vocab: Option<u32>,
    #[serde(default)]
    eos: Vec<u32>,
    #[serde(default)]
    prompt: Vec<u32>,
    #[serde(default)]
    output: Vec<u32>,
    /// Chosen tokens with their feedback in Q16.16, committed after `output`.
    #[serde(default)]
    chosen: Vec<(u32, i32)>,
    #[serde(default)]
    choice: u32,
    position: Option<u32>,
    /// Forced tokens that are committed and taken back: the attempt.
    #[serde(default)]
    rewinds: u32,
    mask: Option<Vec<u32>>,
    uniform: Option<Uniform>,
    #[serde(default)]
    params: SamplingParams,
    #[serde(default)]
    logprobs: LogprobsSpec,
    expect: Expect,
}

#[derive(Clone, Copy, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
enum Dtype {
    #[default]
    F32,
    F16,
    Bf16,
}

/// A 64-bit number as a fraction of 2^64 or in hexadecimal.
#[derive(Deserialize)]
#[serde(untagged)]
enum Uniform {
    Fraction(f64),
    Hex(String),
}

impl Uniform {
    fn bits(&self) -> u64 {
        match self {
            Self::Fraction(fraction) => (fraction * 2f64.powi(64)) as u64,
            Self::Hex(text) => u64::from_str_radix(text.trim_start_matches("0x"), 16)
                .expect("a hexadecimal number"),
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct LogprobsSpec {
    top: u32,
    processed: bool,
}

/// What must come out; whatever is absent is not compared.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct Expect {
    token: Option<u32>,
    status: Option<String>,
    /// Ids in order of logit descending, id ascending.
    kept: Option<Vec<u32>>,
    kept_count: Option<u32>,
    /// Probabilities of `kept`.
    probs: Option<Vec<f64>>,
    logprob: Option<f64>,
    top_logprobs: Option<Vec<(u32, f64)>>,
    feedback: Option<i32>,
    /// Names of the stages that ran, without `bias` and the choice.
    stages: Option<Vec<String>>,
    /// Parameters of the warnings, in order.
    warnings: Option<Vec<String>>,
    /// The parameter that is refused, and a part of the message.
    refused: Option<(String, String)>,
}

/// A row's logits in the case's type.
enum Logits {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

impl Logits {
    fn new(case: &Case) -> Self {
        let values = case.logits.iter();
        match case.dtype {
            Dtype::F32 => Self::F32(values.map(|x| *x as f32).collect()),
            Dtype::F16 => Self::F16(values.map(|x| f16::from_f64(*x)).collect()),
            Dtype::Bf16 => Self::Bf16(values.map(|x| bf16::from_f64(*x)).collect()),
        }
    }

    fn row(&self) -> LogitsRow<'_> {
        match self {
            Self::F32(row) => LogitsRow::F32(row),
            Self::F16(row) => LogitsRow::F16(row),
            Self::Bf16(row) => LogitsRow::Bf16(row),
        }
    }
}

impl Case {
    /// Runs the case on a sampler.
    ///
    /// # Errors
    /// What differs, in words.
    pub(crate) fn run(&self, sampler: &mut dyn Sampler) -> Result<(), String> {
        let size = self.vocab.unwrap_or(self.logits.len() as u32);
        let vocab = VocabInfo::new(size).with_eos(&self.eos);
        let mut params = self.params.clone();
        params.seed.get_or_insert(0);
        match (params.validate(&vocab), &self.expect.refused) {
            (Ok(compiled), None) => self.compare(sampler, &compiled),
            (Err(error), Some((param, message))) => {
                same("refused parameter", error.param(), param.as_str())?;
                let text = error.to_string();
                text.contains(message)
                    .then_some(())
                    .ok_or(format!("{message:?} not in {text:?}"))
            }
            (Ok(_), Some((param, _))) => Err(format!("{param} is not refused")),
            (Err(error), None) => Err(format!("refused: {error}")),
        }
    }

    fn state(&self, params: &CompiledParams) -> SamplerState {
        let mut state = SamplerState::new(params, &self.prompt);
        self.output.iter().for_each(|id| state.commit_forced(*id));
        for &(token_id, feedback) in &self.chosen {
            let chosen = SampledToken {
                feedback,
                token_id,
                status: Status::Ok,
                logprob: 0.0,
                kept_count: 1,
            };
            state.commit(&chosen);
        }
        for _ in 0..self.rewinds {
            state.commit_forced(0);
            state.rewind(1);
        }
        let state = state.fork(self.choice);
        self.position
            .map_or(state.clone(), |position| state.at_position(position))
    }

    fn compare(&self, sampler: &mut dyn Sampler, params: &CompiledParams) -> Result<(), String> {
        let (logits, state) = (Logits::new(self), self.state(params));
        let mut row = Row::new(logits.row(), params, &state);
        row.mask = self.mask.as_deref();
        row.uniform = self.uniform.as_ref().map(Uniform::bits);
        let mode = if self.logprobs.processed {
            LogprobsMode::Processed
        } else {
            LogprobsMode::Raw
        };
        row.logprobs = Logprobs {
            top: self.logprobs.top,
            mode,
        };
        let sampled = sampler.sample(&row);
        let trace = sampler.trace(&row);
        if !same_token(&trace.sampled, &sampled) {
            return Err(format!("traced {:?}, sampled {sampled:?}", trace.sampled));
        }
        self.check_token(&sampled)?;
        self.check_distribution(&trace)?;
        let warnings: Vec<_> = params
            .warnings()
            .iter()
            .map(|w| w.param.to_owned())
            .collect();
        wanted("warnings", &warnings, self.expect.warnings.as_ref())?;
        let top: Vec<_> = sampler
            .top_logprobs(&row, &sampled)
            .iter()
            .map(|entry| (entry.token_id, f64::from(entry.logprob)))
            .collect();
        self.expect
            .top_logprobs
            .as_ref()
            .map_or(Ok(()), |expected| close_pairs(&top, expected))
    }

    fn check_token(&self, sampled: &SampledToken) -> Result<(), String> {
        let expect = &self.expect;
        let status = format!("{:?}", sampled.status).to_lowercase();
        wanted(
            "status",
            &status,
            Some(expect.status.as_ref().unwrap_or(&"ok".to_owned())),
        )?;
        if sampled.status != Status::Ok {
            same("token of a failed row", sampled.token_id, u32::MAX)?;
        }
        wanted("token", &sampled.token_id, expect.token.as_ref())?;
        let count = expect
            .kept
            .as_ref()
            .map(|kept| kept.len() as u32)
            .or(expect.kept_count);
        wanted("kept_count", &sampled.kept_count, count.as_ref())?;
        wanted("feedback", &sampled.feedback, expect.feedback.as_ref())?;
        expect.logprob.map_or(Ok(()), |logprob| {
            close("logprob", f64::from(sampled.logprob), logprob)
        })
    }

    fn check_distribution(&self, trace: &Trace) -> Result<(), String> {
        let kept: Vec<u32> = trace.distribution.iter().map(|(id, _)| *id).collect();
        wanted("kept", &kept, self.expect.kept.as_ref())?;
        if let Some(probs) = &self.expect.probs {
            let expected: Vec<_> = kept.iter().copied().zip(probs.iter().copied()).collect();
            same("number of probabilities", probs.len(), kept.len())?;
            close_pairs(&trace.distribution, &expected)?;
        }
        let stages: Vec<String> = trace
            .stages
            .iter()
            .map(|stage| stage.name.to_owned())
            .collect();
        let inner = stages
            .get(1..stages.len().saturating_sub(1))
            .unwrap_or_default()
            .to_vec();
        wanted("stages", &inner, self.expect.stages.as_ref())
    }
}

/// Equality that lets NaN equal NaN.
fn same_token(a: &SampledToken, b: &SampledToken) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, got: T, expected: T) -> Result<(), String> {
    wanted(what, &got, Some(&expected))
}

fn wanted<T: PartialEq + std::fmt::Debug>(
    what: &str,
    got: &T,
    expected: Option<&T>,
) -> Result<(), String> {
    match expected {
        Some(expected) if got != expected => Err(format!("{what}: {got:?}, expected {expected:?}")),
        _ => Ok(()),
    }
}

fn close(what: &str, got: f64, expected: f64) -> Result<(), String> {
    let equal = got == expected || (got - expected).abs() <= TOLERANCE;
    equal
        .then_some(())
        .ok_or(format!("{what}: {got}, expected {expected}"))
}

fn close_pairs(got: &[(u32, f64)], expected: &[(u32, f64)]) -> Result<(), String> {
    same("number of entries", got.len(), expected.len())?;
    got.iter().zip(expected).try_for_each(|(got, expected)| {
        same("token", got.0, expected.0)?;
        close(&format!("token {}", got.0), got.1, expected.1)
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    case: Vec<Case>,
}

/// Every case with the file that holds it.
pub(crate) fn cases() -> Vec<(PathBuf, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/sampling");
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    paths.sort();
    paths
        .into_iter()
        .flat_map(|path| {
            read(&path)
                .into_iter()
                .map(move |case| (path.clone(), case))
        })
        .collect()
}

fn read(path: &Path) -> Vec<Case> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file: File = toml::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.case
}

/// Runs every case on a sampler and panics with all that differ.
pub(crate) fn check(sampler: &mut dyn Sampler) {
    let cases = cases();
    let failures: Vec<String> = cases
        .iter()
        .filter_map(|(path, case)| {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            let problem = case.run(sampler).err()?;
            Some(format!("{file}: {}: {problem}", case.name))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}
