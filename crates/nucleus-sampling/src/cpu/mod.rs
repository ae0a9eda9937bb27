//! The sampler for the host: a few streaming passes over the row, every sum exact, every cut proven.
//!
//! A row is read once for the maxima of its blocks. Most stages then need only the blocks that can hold what they look for: a top-k looks
//! where the k-th largest maximum is reached, a threshold where a maximum reaches it. What they keep is listed, and the rest of the program
//! runs on the list. A stage that needs the mass of the whole row sums its weights in a second pass; only a set too large to be listed
//! stays spread over the row, as a cut through the order of its tokens. All sums are of integers, so neither the order of summation nor
//! the machine's instructions can be seen in a result, which equals the [`ReferenceSampler`](crate::ReferenceSampler)'s bit for bit.

mod band;
mod cdf;
mod choose;
mod classes;
mod edits;
mod estimate;
mod flaws;
mod formulas;
mod history;
mod kernels;
mod key;
mod list;
mod listed;
mod logprob;
mod masks;
mod overlay;
mod prefix;
mod run;
mod search;
mod select;
mod simd;
mod table;
mod trace;
mod view;
mod wide;

use std::sync::{Mutex, PoisonError};

use rayon::iter::{IndexedParallelIterator, IntoParallelRefIterator, ParallelIterator};

use crate::config::{Op, OpCode};
use crate::row::{LogitsRow, Row, SampledToken, Status, TokenLogprob};
use crate::sampler::{Sampler, Trace};
pub use cdf::Cdf;
use choose::Chosen;
use history::History;
use list::List;
use run::Run;
use simd::Simd;
use table::IdTable;
use wide::{Buffers, Wide};

/// How a [`CpuSampler`] works. Nothing of it changes a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Use the machine's vector instructions; else the compiler's baseline for the target.
    pub simd: bool,
    /// Look for cuts where they probably are, and search only where that fails; else always search.
    pub shortcuts: bool,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            simd: true,
            shortcuts: true,
        }
    }
}

/// The fast sampler for the host.
///
/// It keeps working memory (about 20 bytes per token of the vocabulary at most) and allocates nothing more once it has seen a few rows of
/// that size. The rows of a batch are shared out among rayon's threads.
#[derive(Debug)]
pub struct CpuSampler {
    options: CpuOptions,
    idle: Mutex<Vec<Workspace>>,
}

impl Default for CpuSampler {
    fn default() -> Self {
        Self::new()
    }
}

/// Memory for one row at a time.
#[derive(Debug)]
struct Workspace {
    buffers: Buffers,
    list: List,
    history: History,
    forbidden: IdTable,
}

impl CpuSampler {
    /// The vector instructions that it works with on this processor, unless it is told not to.
    pub fn vector_instructions() -> &'static str {
        Simd::best().name()
    }

    /// The sampler for this machine.
    pub fn new() -> Self {
        Self::with_options(CpuOptions::default())
    }

    /// A sampler that works in a certain way.
    pub fn with_options(options: CpuOptions) -> Self {
        Self {
            options,
            idle: Mutex::new(Vec::new()),
        }
    }

    /// Does one row's work with memory that no other row uses meanwhile.
    fn with_run<R>(&self, row: &Row<'_>, work: impl FnOnce(&mut Run<'_>) -> R) -> R {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let simd = if self.options.simd {
            Simd::best()
        } else {
            Simd::PORTABLE
        };
        let mut workspace = idle().pop().unwrap_or_else(|| Workspace::new(simd));
        let result = work(&mut workspace.run(row, simd, self.options.shortcuts));
        idle().push(workspace);
        result
    }

    fn sample_one(&self, row: &Row<'_>) -> SampledToken {
        self.with_run(row, |run| match run.finish() {
            Ok(chosen) => run.sampled(chosen),
            Err(status) => SampledToken::failed(status),
        })
    }
}

impl Workspace {
    fn new(simd: Simd) -> Self {
        Self {
            buffers: Buffers::default(),
            list: List::new(simd),
            history: History::default(),
            forbidden: IdTable::default(),
        }
    }

    fn run<'a>(&'a mut self, row: &'a Row<'a>, simd: Simd, shortcuts: bool) -> Run<'a> {
        let limit = row.params.config().vocab_size as usize;
        Run {
            row,
            wide: Wide::new(
                simd,
                shortcuts,
                prefix(row.logits, limit),
                &mut self.buffers,
            ),
            list: &mut self.list,
            history: &mut self.history,
            forbidden: &mut self.forbidden,
            listed: false,
            temperature: 1.0,
        }
    }
}

/// The first `limit` logits.
fn prefix(logits: LogitsRow<'_>, limit: usize) -> LogitsRow<'_> {
    let limit = limit.min(logits.len());
    match logits {
        LogitsRow::F32(row) => LogitsRow::F32(&row[..limit]),
        LogitsRow::F16(row) => LogitsRow::F16(&row[..limit]),
        LogitsRow::Bf16(row) => LogitsRow::Bf16(&row[..limit]),
    }
}

impl<'a> Run<'a> {
    /// The operation that chooses, and those before it.
    fn program(&self) -> (Op, &'a [Op]) {
        match self.row.params.tables().program.ops().split_last() {
            Some((last, others)) => (*last, others),
            None => (Op::new(OpCode::Draw), &[]),
        }
    }

    /// Runs the program.
    fn finish(&mut self) -> Result<Chosen, Status> {
        self.begin()?;
        let (choice, ops) = self.program();
        ops.iter().try_for_each(|op| self.apply(*op))?;
        self.choose(choice)
    }

    fn sampled(&mut self, chosen: Chosen) -> SampledToken {
        SampledToken {
            token_id: chosen.id,
            logprob: self.logprob(chosen),
            kept_count: chosen.count as u32,
            status: Status::Ok,
            feedback: chosen.feedback,
        }
    }

    fn top_logprobs(&mut self, sampled: &SampledToken) -> Vec<TokenLogprob> {
        let count = self.row.logprobs.top as usize;
        let also = (sampled.status == Status::Ok).then_some(sampled.token_id);
        if !self.wants_processed() {
            return self.raw_top(count, also);
        }
        match self.finish() {
            Ok(chosen) => self.processed_top(chosen, count, also),
            Err(_) => also
                .map(|token_id| TokenLogprob {
                    token_id,
                    logprob: f32::NAN,
                })
                .into_iter()
                .collect(),
        }
    }
}

impl Sampler for CpuSampler {
    fn sample(&mut self, row: &Row<'_>) -> SampledToken {
        self.sample_one(row)
    }

    fn sample_batch(&mut self, rows: &[Row<'_>], out: &mut Vec<SampledToken>) {
        if let [row] = rows {
            // Handing the work to another thread and waiting for it would cost as much as the work.
            out.clear();
            return out.push(self.sample_one(row));
        }
        rows.par_iter()
            .with_max_len(1)
            .map(|row| self.sample_one(row))
            .collect_into_vec(out);
    }

    fn top_logprobs(&mut self, row: &Row<'_>, sampled: &SampledToken) -> Vec<TokenLogprob> {
        self.with_run(row, |run| run.top_logprobs(sampled))
    }

    fn trace(&mut self, row: &Row<'_>) -> Trace {
        self.with_run(row, |run| run.trace())
    }
}
