//! Which sequences run in a step, and with how many tokens. Pure: ids, counts and cache blocks, no tensors.
//!
//! First come, first served. A sequence is admitted when the cache can hold all it may ever need (prompt and output),
//! so that nothing admitted has to be put aside later. Every running sequence whose prompt is in the cache decodes one
//! token in every step; what is left of the step's token budget goes to prompts, in order of arrival.

use std::collections::VecDeque;

use crate::kv_cache::{self, BlockId, BlockPool};

/// One request's sequence, unique for the life of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Bounds of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most sequences that run at once.
    pub running: usize,
    /// Most sequences that wait to be admitted.
    pub waiting: usize,
    /// Most tokens in a step. Decode tokens always run; prompts share what they leave.
    pub step_tokens: usize,
}

/// Why a sequence cannot be queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdmissionError {
    /// The queue is full.
    #[error("{waiting} requests are waiting already; the limit is {limit}")]
    QueueFull {
        /// Requests in the queue.
        waiting: usize,
        /// The queue's bound.
        limit: usize,
    },
    /// The cache could not hold the sequence even if it were alone.
    #[error(
        "{tokens} tokens of prompt and output need {needed} cache blocks; the cache has {available}"
    )]
    TooLong {
        /// Prompt tokens plus most output tokens.
        tokens: usize,
        /// Blocks for that many tokens.
        needed: usize,
        /// Blocks in the pool.
        available: usize,
    },
}

/// A run of a sequence's tokens in the coming step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scheduled {
    /// Whose tokens.
    pub id: SequenceId,
    /// Position of the first token of the run.
    pub start: usize,
    /// Number of tokens.
    pub len: usize,
    /// Whether the run ends with the sequence's newest token, so that its logits give the next one.
    pub samples: bool,
    /// The sequence's cache blocks, covering every position up to `start + len`.
    pub blocks: Vec<BlockId>,
}

#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    prompt: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    /// Tokens known so far: prompt and output.
    tokens: usize,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    blocks: Vec<BlockId>,
}

/// Sequences waiting and running, and the blocks they hold.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    block_size: usize,
    pool: BlockPool,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
}

impl Scheduler {
    /// A scheduler over an empty pool.
    ///
    /// # Panics
    /// If a limit or the block size is zero, or if `running` sequences could use up `step_tokens` by decoding alone, so
    /// that prompts would starve.
    pub fn new(limits: SchedulerLimits, block_size: usize, pool: BlockPool) -> Self {
        assert!(limits.running > 0, "running must be positive");
        assert!(
            limits.step_tokens >= limits.running,
            "step_tokens must be at least running"
        );
        assert!(block_size > 0, "block_size must be positive");
        Self {
            limits,
            block_size,
            pool,
            waiting: VecDeque::new(),
            running: Vec::new(),
        }
    }

    /// Queues a sequence of `prompt` tokens that may grow to `capacity` tokens.
    pub fn enqueue(
        &mut self,
        id: SequenceId,
        prompt: usize,
        capacity: usize,
    ) -> Result<(), AdmissionError> {
        let needed = self.blocks_for(capacity);
        if needed > self.pool.capacity() {
            return Err(AdmissionError::TooLong {
                tokens: capacity,
                needed,
                available: self.pool.capacity(),
            });
        }
        if self.waiting.len() >= self.limits.waiting {
            return Err(AdmissionError::QueueFull {
                waiting: self.waiting.len(),
                limit: self.limits.waiting,
            });
        }
        self.waiting.push_back(Waiting {
            id,
            prompt,
            capacity,
        });
        Ok(())
    }

    /// Admits what fits, then says what runs in the coming step. Empty when there is nothing to do.
    pub fn schedule(&mut self) -> Vec<Scheduled> {
        self.admit();
        let decoding = self.running.iter().filter(|r| r.is_decoding()).count();
        let mut budget = self.limits.step_tokens.saturating_sub(decoding);
        let mut step = Vec::with_capacity(self.running.len());
        for running in &self.running {
            let missing = running.tokens - running.computed;
            let len = if running.is_decoding() {
                1
            } else {
                missing.min(budget)
            };
            if len == 0 {
                continue;
            }
            if !running.is_decoding() {
                budget -= len;
            }
            step.push(Scheduled {
                id: running.id,
                start: running.computed,
                len,
                samples: len == missing,
                blocks: running.blocks.clone(),
            });
        }
        step
    }

    /// Records that a scheduled run is in the cache.
    pub fn computed(&mut self, run: &Scheduled) {
        if let Some(running) = self.running.iter_mut().find(|r| r.id == run.id) {
            running.computed = run.start + run.len;
        }
    }

    /// Records that a sequence has one more token.
    pub fn grown(&mut self, id: SequenceId) {
        if let Some(running) = self.running.iter_mut().find(|r| r.id == id) {
            running.tokens += 1;
        }
    }

    /// Forgets a sequence, waiting or running, and frees its blocks. Returns whether it was known.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.running.iter().position(|r| r.id == id) {
            let running = self.running.remove(at);
            self.pool.free(&running.blocks);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|w| w.id != id);
        self.waiting.len() != before
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks that no sequence holds.
    pub fn free_blocks(&self) -> usize {
        self.pool.available()
    }

    fn admit(&mut self) {
        while self.running.len() < self.limits.running {
            let Some(next) = self.waiting.front() else {
                return;
            };
            let Some(blocks) = self.pool.allocate(self.blocks_for(next.capacity)) else {
                return;
            };
            let (id, tokens) = (next.id, next.prompt);
            self.waiting.pop_front();
            self.running.push(Running {
                id,
                tokens,
                computed: 0,
                blocks,
            });
        }
    }

    fn blocks_for(&self, tokens: usize) -> usize {
        kv_cache::blocks_for(tokens, self.block_size)
    }
}

impl Running {
    fn is_decoding(&self) -> bool {
        self.computed > 0 && self.tokens - self.computed == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK_SIZE: usize = 4;

    fn scheduler(running: usize, step_tokens: usize, blocks: usize) -> Scheduler {
        let limits = SchedulerLimits {
            running,
            waiting: 8,
            step_tokens,
        };
        Scheduler::new(limits, BLOCK_SIZE, BlockPool::new(blocks))
    }

    /// Runs a planned step as a model would: everything scheduled is computed, sequences that sample grow by one.
    fn run(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize, bool)> {
        let step = scheduler.schedule();
        for run in &step {
            scheduler.computed(run);
            if run.samples {
                scheduler.grown(run.id);
            }
        }
        step.iter()
            .map(|run| (run.id.0, run.start, run.len, run.samples))
            .collect()
    }

    #[test]
    fn a_prompt_is_run_whole_then_decoded_token_by_token() {
        let mut scheduler = scheduler(4, 16, 4);
        scheduler.enqueue(SequenceId(7), 5, 8).unwrap();
        assert_eq!(run(&mut scheduler), [(7, 0, 5, true)]);
        assert_eq!(run(&mut scheduler), [(7, 5, 1, true)]);
        assert_eq!(run(&mut scheduler), [(7, 6, 1, true)]);
    }

    #[test]
    fn a_long_prompt_is_cut_into_budgets_and_samples_only_at_its_end() {
        let mut scheduler = scheduler(4, 4, 4);
        scheduler.enqueue(SequenceId(0), 10, 12).unwrap();
        assert_eq!(run(&mut scheduler), [(0, 0, 4, false)]);
        assert_eq!(run(&mut scheduler), [(0, 4, 4, false)]);
        assert_eq!(run(&mut scheduler), [(0, 8, 2, true)]);
    }

    #[test]
    fn decoding_goes_on_while_a_prompt_arrives() {
        let mut scheduler = scheduler(4, 4, 8);
        scheduler.enqueue(SequenceId(0), 2, 8).unwrap();
        run(&mut scheduler);
        scheduler.enqueue(SequenceId(1), 7, 8).unwrap();
        assert_eq!(run(&mut scheduler), [(0, 2, 1, true), (1, 0, 3, false)]);
        assert_eq!(run(&mut scheduler), [(0, 3, 1, true), (1, 3, 3, false)]);
        assert_eq!(run(&mut scheduler), [(0, 4, 1, true), (1, 6, 1, true)]);
    }

    #[test]
    fn a_prompt_of_one_token_counts_as_a_prompt() {
        let mut scheduler = scheduler(4, 4, 8);
        scheduler.enqueue(SequenceId(0), 1, 4).unwrap();
        assert_eq!(run(&mut scheduler), [(0, 0, 1, true)]);
        assert_eq!(run(&mut scheduler), [(0, 1, 1, true)]);
    }

    #[test]
    fn prompts_share_a_budget_in_order_of_arrival() {
        let mut scheduler = scheduler(4, 8, 8);
        scheduler.enqueue(SequenceId(0), 6, 8).unwrap();
        scheduler.enqueue(SequenceId(1), 6, 8).unwrap();
        assert_eq!(run(&mut scheduler), [(0, 0, 6, true), (1, 0, 2, false)]);
    }

    #[test]
    fn a_sequence_waits_until_its_blocks_are_free_and_nothing_overtakes_it() {
        let mut scheduler = scheduler(4, 16, 3);
        scheduler.enqueue(SequenceId(0), 4, 8).unwrap();
        scheduler.enqueue(SequenceId(1), 4, 8).unwrap();
        scheduler.enqueue(SequenceId(2), 2, 4).unwrap();
        assert_eq!(run(&mut scheduler), [(0, 0, 4, true)]);
        assert_eq!((scheduler.running(), scheduler.waiting()), (1, 2));
        assert!(scheduler.remove(SequenceId(0)));
        assert_eq!(run(&mut scheduler), [(1, 0, 4, true), (2, 0, 2, true)]);
        assert_eq!(scheduler.free_blocks(), 0);
    }

    #[test]
    fn at_most_so_many_run() {
        let mut scheduler = scheduler(1, 16, 8);
        scheduler.enqueue(SequenceId(0), 1, 4).unwrap();
        scheduler.enqueue(SequenceId(1), 1, 4).unwrap();
        assert_eq!(run(&mut scheduler), [(0, 0, 1, true)]);
        assert_eq!(scheduler.waiting(), 1);
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut scheduler = scheduler(1, 16, 8);
        for id in 0..8 {
            scheduler.enqueue(SequenceId(id), 1, 4).unwrap();
        }
        let full = AdmissionError::QueueFull {
            waiting: 8,
            limit: 8,
        };
        assert_eq!(scheduler.enqueue(SequenceId(8), 1, 4), Err(full));
    }

    #[test]
    fn what_the_cache_could_never_hold_is_refused_at_once() {
        let mut scheduler = scheduler(4, 16, 2);
        let error = AdmissionError::TooLong {
            tokens: 9,
            needed: 3,
            available: 2,
        };
        assert_eq!(scheduler.enqueue(SequenceId(0), 4, 9), Err(error));
        assert_eq!(scheduler.enqueue(SequenceId(0), 4, 8), Ok(()));
    }

    #[test]
    fn removing_frees_the_blocks_and_forgets_the_waiting() {
        let mut scheduler = scheduler(1, 16, 4);
        scheduler.enqueue(SequenceId(0), 4, 16).unwrap();
        scheduler.enqueue(SequenceId(1), 4, 16).unwrap();
        run(&mut scheduler);
        assert_eq!(scheduler.free_blocks(), 0);
        assert!(scheduler.remove(SequenceId(1)));
        assert!(scheduler.remove(SequenceId(0)));
        assert!(!scheduler.remove(SequenceId(0)));
        assert_eq!((scheduler.free_blocks(), scheduler.waiting()), (4, 0));
        assert!(scheduler.schedule().is_empty());
    }

    #[test]
    fn a_prompt_moves_on_however_many_decode() {
        let mut scheduler = scheduler(3, 3, 8);
        for id in 0..2 {
            scheduler.enqueue(SequenceId(id), 1, 4).unwrap();
        }
        run(&mut scheduler);
        scheduler.enqueue(SequenceId(2), 2, 4).unwrap();
        assert_eq!(run(&mut scheduler)[2..], [(2, 0, 1, false)]);
        assert_eq!(run(&mut scheduler)[2..], [(2, 1, 1, true)]);
    }

    #[test]
    #[should_panic(expected = "step_tokens")]
    fn a_budget_that_decoding_could_eat_up_is_refused() {
        scheduler(4, 3, 8);
    }
}
