//! Agreement with the peers' own code: what transformers' logits processors, llama.cpp's sampler chain and vLLM's PyTorch ops kept of rows
//! that both sides generate (`testdata/peers`, made by the scripts in `peers/sampling`), against the preset of that name.
//!
//! Kept sets must be equal and probabilities within 1e-5. A row in the band (the peer's own kept set changes when its thresholds move by as
//! much as its f32 sums can err) only has to keep a number of tokens between the peer's; such rows are counted, and must be few.

#[path = "peers/rows.rs"]
mod rows;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use nucleus_sampling::{
    CompiledParams, CpuOptions, CpuSampler, LogitsRow, ReferenceSampler, Row, Sampler,
    SamplerState, SamplingParams, VocabInfo,
};
use serde::Deserialize;

/// Largest difference in the probability of a token.
const TOLERANCE: f64 = 1e-5;

/// The same where it follows from a statistic of the row (dynamic temperature, adaptive-p), which is an f32 sum there and in Q16.16 here.
const STATISTIC_TOLERANCE: f64 = 5e-5;

/// Rows of a fixture that may lie in the band, and rows that may keep other tied tokens, as shares.
const BAND_SHARE: f64 = 0.01;
const TIED_SHARE: f64 = 0.05;

#[derive(Deserialize)]
struct Header {
    peer: String,
    version: String,
    rows: usize,
}

#[derive(Clone, Deserialize)]
struct LogitsSpec {
    shape: String,
    seed: u64,
    vocab: usize,
}

#[derive(Clone, Deserialize, Default)]
struct HistorySpec {
    seed: u64,
    prompt: usize,
    output: usize,
    alphabet: Vec<u32>,
}

/// A set of ids: listed if small, hashed if not.
#[derive(Clone, Deserialize, Debug)]
#[serde(untagged)]
enum IdSet {
    Listed(Vec<u32>),
    Hashed { count: usize, fnv1a: String },
}

impl IdSet {
    fn is(&self, ids: &[u32]) -> bool {
        match self {
            Self::Listed(listed) => listed == ids,
            Self::Hashed { count, fnv1a } => {
                *count == ids.len() && *fnv1a == format!("{:016x}", rows::fnv1a(ids))
            }
        }
    }
}

/// A row: the case, and what the peer did with it.
#[derive(Clone, Deserialize)]
struct Case {
    n: usize,
    logits: LogitsSpec,
    #[serde(default)]
    history: HistorySpec,
    #[serde(default)]
    eos: Vec<u32>,
    /// Tokens that the peer chose from the same row before.
    #[serde(default)]
    draws: Vec<u32>,
    params: SamplingParams,
    kept: usize,
    /// The kept set is compared down to this many nats below the best token.
    floor: f64,
    ids: IdSet,
    /// The tokens that a rule about ties may exchange for each other, and the kept set without them.
    tied: Option<IdSet>,
    untied: Option<IdSet>,
    top: Vec<(u32, f64)>,
    band: Option<(usize, usize)>,
    /// A rule of the peer that Nucleus does not follow and that the row meets; `peers/sampling/README.md` lists them.
    cause: Option<String>,
}

/// How a row compares with the peer's.
#[derive(Debug, PartialEq)]
enum Verdict {
    Equal,
    InBand,
    OtherTie,
    /// By the rule of this name.
    Listed(String),
    Differs(String),
}

impl Verdict {
    fn difference(&self) -> Option<&str> {
        match self {
            Self::Differs(detail) => Some(detail),
            _ => None,
        }
    }
}

impl Case {
    fn compile(&self) -> CompiledParams {
        let vocab = VocabInfo::new(self.logits.vocab as u32).with_eos(&self.eos);
        let params = SamplingParams {
            seed: Some(1),
            ..self.params.clone()
        };
        params
            .validate(&vocab)
            .unwrap_or_else(|error| panic!("row {}: {error}", self.n))
    }

    /// The state after the case's history and draws.
    fn state(
        &self,
        params: &CompiledParams,
        logits: &[f32],
        sampler: &mut dyn Sampler,
    ) -> Result<SamplerState, Verdict> {
        let HistorySpec {
            seed,
            prompt,
            output,
            ref alphabet,
        } = self.history;
        let text = rows::history(seed, alphabet, prompt + output);
        let mut state = SamplerState::new(params, &text[..prompt]);
        text[prompt..]
            .iter()
            .for_each(|&id| state.commit_forced(id));
        for &drawn in &self.draws {
            let mut row = Row::new(LogitsRow::F32(logits), params, &state);
            row.uniform = Some(uniform_of(&sampler.trace(&row).distribution, drawn));
            let sampled = sampler.sample(&row);
            if sampled.token_id != drawn {
                return Err(Verdict::Differs(format!(
                    "row {}: {drawn} cannot be drawn here",
                    self.n
                )));
            }
            state.commit(&sampled);
        }
        Ok(state)
    }

    fn compare(&self, sampler: &mut dyn Sampler) -> Verdict {
        let LogitsSpec {
            ref shape,
            seed,
            vocab,
        } = self.logits;
        let logits = rows::logits(shape, seed, vocab);
        let params = self.compile();
        let state = match self.state(&params, &logits, sampler) {
            Ok(state) => state,
            Err(verdict) => return verdict,
        };
        let trace = sampler.trace(&Row::new(LogitsRow::F32(&logits), &params, &state));
        self.judge(&trace.distribution)
    }

    fn judge(&self, distribution: &[(u32, f64)]) -> Verdict {
        let best = distribution
            .iter()
            .map(|&(_, prob)| prob)
            .fold(0.0, f64::max);
        let mut kept: Vec<(u32, f64)> = distribution.to_vec();
        kept.retain(|&(_, prob)| prob >= best * (-self.floor).exp());
        kept.sort_by_key(|&(id, _)| id);
        let ids: Vec<u32> = kept.iter().map(|&(id, _)| id).collect();
        if let Some((low, high)) = self.band {
            let inside = (low..=high).contains(&ids.len());
            return if inside {
                Verdict::InBand
            } else {
                self.differs(&kept)
            };
        }
        let close = self.apart(&kept) <= self.tolerance();
        if close && self.ids.is(&ids) {
            Verdict::Equal
        } else if close && self.only_ties_differ(&ids) {
            Verdict::OtherTie
        } else if let Some(cause) = self.cause.clone() {
            Verdict::Listed(cause)
        } else {
            self.differs(&kept)
        }
    }

    fn tolerance(&self) -> f64 {
        let params = &self.params;
        let dynamic = params.dynatemp_range.is_some_and(|range| range > 0.0);
        let adaptive = params.adaptive_target.is_some_and(|target| target >= 0.0);
        if dynamic || adaptive {
            STATISTIC_TOLERANCE
        } else {
            TOLERANCE
        }
    }

    /// The largest difference to the peer's probabilities, among tokens that both kept.
    fn apart(&self, kept: &[(u32, f64)]) -> f64 {
        let mine = |id| {
            kept.binary_search_by_key(&id, |&(id, _)| id)
                .ok()
                .map(|at| kept[at].1)
        };
        self.top
            .iter()
            .filter_map(|&(id, prob)| Some((mine(id)? - prob).abs()))
            .fold(0.0, f64::max)
    }

    /// Whether as many tokens are kept, and the same ones but for those that are tied at a cut.
    fn only_ties_differ(&self, ids: &[u32]) -> bool {
        let (Some(tied), Some(untied)) = (&self.tied, &self.untied) else {
            return false;
        };
        ids.len() == self.kept
            && match tied {
                IdSet::Listed(tied) => {
                    let rest: Vec<u32> = ids
                        .iter()
                        .copied()
                        .filter(|id| !tied.contains(id))
                        .collect();
                    untied.is(&rest)
                }
                IdSet::Hashed { .. } => true,
            }
    }

    fn differs(&self, kept: &[(u32, f64)]) -> Verdict {
        let mine: BTreeSet<u32> = kept.iter().map(|&(id, _)| id).collect();
        let detail = match &self.ids {
            IdSet::Listed(theirs) => {
                let theirs: BTreeSet<u32> = theirs.iter().copied().collect();
                let only_mine: Vec<_> = mine.difference(&theirs).take(8).collect();
                let only_theirs: Vec<_> = theirs.difference(&mine).take(8).collect();
                format!("only here {only_mine:?}, only there {only_theirs:?}")
            }
            IdSet::Hashed { count, .. } => format!("{count} there"),
        };
        let apart = self.apart(kept);
        let params = serde_json::to_string(&self.params).expect("parameters are JSON");
        Verdict::Differs(format!(
            "row {} ({} {}): {} kept, {detail}; probabilities {apart:.1e} apart; band {:?} {params}",
            self.n,
            self.logits.shape,
            self.logits.vocab,
            kept.len(),
            self.band,
        ))
    }
}

/// A uniform number that draws `token`: the middle of its interval, in ascending id order.
fn uniform_of(distribution: &[(u32, f64)], token: u32) -> u64 {
    let mut by_id = distribution.to_vec();
    by_id.sort_by_key(|&(id, _)| id);
    let below: f64 = by_id
        .iter()
        .take_while(|&&(id, _)| id < token)
        .map(|&(_, prob)| prob)
        .sum();
    let own: f64 = by_id
        .iter()
        .filter(|&&(id, _)| id == token)
        .map(|&(_, prob)| prob)
        .sum();
    ((below + own / 2.0) * 2f64.powi(64)) as u64
}

/// Combinations of parameters that a fixture holds at least, not counting how else its rows differ.
const COMBINATIONS: usize = 200;

/// The vocabularies that take milliseconds a row, however they are sampled and traced, and those that do not.
const SMALL: RangeInclusive<usize> = 0..=4000;
const LARGE: RangeInclusive<usize> = 4001..=usize::MAX;

/// A file of the repository.
fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The header and the rows of a fixture.
fn fixture(name: &str) -> (Header, Vec<Case>) {
    let text = read(&format!("testdata/peers/{name}"));
    let mut lines = text.lines();
    let header: Header = serde_json::from_str(lines.next().expect("a header")).expect("a header");
    let cases: Vec<Case> = lines
        .map(|line| serde_json::from_str(line).expect("a row"))
        .collect();
    assert_eq!(cases.len(), header.rows);
    check_causes(&cases);
    let found = combinations(&cases);
    assert!(
        found >= COMBINATIONS,
        "{name}: {found} combinations of parameters, fewer than {COMBINATIONS}"
    );
    (header, cases)
}

/// Every rule by which a row may differ is explained beside the scripts.
fn check_causes(cases: &[Case]) {
    let readme = read("peers/sampling/README.md");
    for cause in cases.iter().filter_map(|case| case.cause.as_deref()) {
        assert!(
            readme.contains(&format!("`{cause}`")),
            "{cause} is not explained"
        );
    }
}

/// How many requests of the rows differ in more than their seed.
fn combinations(cases: &[Case]) -> usize {
    let text = |case: &Case| {
        let params = SamplingParams {
            seed: None,
            ..case.params.clone()
        };
        serde_json::to_string(&params).expect("parameters are JSON")
    };
    cases.iter().map(text).collect::<BTreeSet<_>>().len()
}

/// A sampler that is held against the peers, and the vocabularies on which it is.
type Held = (&'static str, Box<dyn Sampler>, RangeInclusive<usize>);

/// The fast sampler, as it works by default.
fn fast() -> Held {
    ("cpu", Box::new(CpuSampler::new()), 0..=usize::MAX)
}

/// The reference, and the other ways of the fast sampler.
fn others(sizes: RangeInclusive<usize>) -> Vec<Held> {
    let way = |simd, shortcuts| CpuSampler::with_options(CpuOptions { simd, shortcuts });
    vec![
        ("cpu, searching", Box::new(way(true, false)), sizes.clone()),
        ("cpu, portable", Box::new(way(false, true)), sizes.clone()),
        ("reference", Box::new(ReferenceSampler::new()), sizes),
    ]
}

/// What every test run holds against a fixture.
fn held() -> Vec<Held> {
    std::iter::once(fast()).chain(others(SMALL)).collect()
}

fn check(name: &str, samplers: Vec<Held>) {
    let (header, cases) = fixture(name);
    for (implementation, mut sampler, sizes) in samplers {
        let verdicts: Vec<Verdict> = cases
            .iter()
            .filter(|case| sizes.contains(&case.logits.vocab))
            .map(|case| case.compare(&mut *sampler))
            .collect();
        summarise(implementation, &header, combinations(&cases), &verdicts);
        let differences: Vec<&str> = verdicts.iter().filter_map(Verdict::difference).collect();
        let (different, list) = (differences.len(), differences.join("\n"));
        assert!(
            differences.is_empty(),
            "{implementation}: {different} rows differ:\n{list}"
        );
        let most = |share: f64| (share * header.rows as f64) as usize;
        assert!(
            count(&verdicts, &Verdict::InBand) <= most(BAND_SHARE),
            "{implementation}: too many rows are in the band"
        );
        assert!(
            count(&verdicts, &Verdict::OtherTie) <= most(TIED_SHARE),
            "{implementation}: too many rows keep other tied tokens"
        );
    }
}

fn count(verdicts: &[Verdict], wanted: &Verdict) -> usize {
    verdicts.iter().filter(|&verdict| verdict == wanted).count()
}

/// How many rows differ by each of the rules that are listed.
fn listed(verdicts: &[Verdict]) -> BTreeMap<&str, usize> {
    let mut causes = BTreeMap::new();
    for verdict in verdicts {
        if let Verdict::Listed(cause) = verdict {
            *causes.entry(cause.as_str()).or_default() += 1;
        }
    }
    causes
}

#[allow(
    clippy::print_stdout,
    reason = "the counts are part of what the test shows"
)]
fn summarise(implementation: &str, header: &Header, combinations: usize, verdicts: &[Verdict]) {
    let Header { peer, version, .. } = header;
    println!(
        "{peer} {version}, {combinations} combinations, {implementation}: {} rows, {} equal, {} left out in the band, {} with other tied tokens, as listed {:?}",
        verdicts.len(),
        count(verdicts, &Verdict::Equal),
        count(verdicts, &Verdict::InBand),
        count(verdicts, &Verdict::OtherTie),
        listed(verdicts),
    );
}

#[test]
fn transformers() {
    check("transformers.jsonl", held());
}

#[test]
fn llama_cpp() {
    check("llama_cpp.jsonl", held());
}

#[test]
fn vllm() {
    check("vllm.jsonl", held());
}

#[test]
#[ignore = "a minute"]
fn every_way_on_the_rows_of_full_size() {
    for name in ["transformers.jsonl", "llama_cpp.jsonl", "vllm.jsonl"] {
        check(name, others(LARGE));
    }
}

/// A row is judged by its kept set, its probabilities and its listed causes: each can fail.
#[test]
fn a_row_that_differs_is_told() {
    let (_, cases) = fixture("llama_cpp.jsonl");
    let case = |wanted: fn(&Case) -> bool| cases.iter().find(|case| wanted(case)).expect("a row");
    let plain = case(|case| {
        case.band.is_none() && case.cause.is_none() && case.tied.is_none() && case.kept > 2
    });
    let logits = rows::logits(&plain.logits.shape, plain.logits.seed, plain.logits.vocab);
    let params = plain.compile();
    let mut sampler = ReferenceSampler::new();
    let Ok(state) = plain.state(&params, &logits, &mut sampler) else {
        panic!("the history can be replayed");
    };
    let row = Row::new(LogitsRow::F32(&logits), &params, &state);
    let kept = sampler.trace(&row).distribution;
    assert_eq!(plain.judge(&kept), Verdict::Equal);

    let one_less = &kept[..kept.len() - 1];
    assert!(plain.judge(one_less).difference().is_some());
    let mut moved = kept.clone();
    moved[0].1 -= 2e-5;
    assert!(plain.judge(&moved).difference().is_some());
    let banded = Case {
        band: Some((kept.len() + 1, kept.len() + 2)),
        ..case(|case| case.band.is_some()).clone()
    };
    assert!(banded.judge(&kept).difference().is_some());
}
