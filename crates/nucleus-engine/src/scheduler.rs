//! Which sequences run in a step, and with how many tokens. Pure: ids, tokens and cache blocks, no tensors.
//!
//! First come, first served. Every running sequence whose prompt is in the cache decodes one token in every step; what is
//! left of the step's token budget goes to prompts, in order of arrival. A sequence is admitted when the cache has room for
//! the tokens that it has, and takes a block at a time as it grows. When none is free, the one that came last is evicted: its
//! blocks are freed, and it waits in front of all that never ran, to be computed again from what is left of it in the cache.
//! So whoever came first goes on in every step, and then the next.
//!
//! Blocks are shared in two ways. The full blocks of a prompt's beginning are found by their tokens, whoever computed them
//! ([`BlockPool::find_prefix`]). A sequence whose tokens are exactly those of one that is being computed *follows* it:
//! it waits until they are in the cache, is sampled from the same logits, and shares all blocks, the last one, which is not
//! full, among them. Whoever writes into a shared block first copies it.
//!
//! What was found may be of no use, without anybody having looked at a row that follows from it: who goes wrong by it is computed again, by itself
//! ([`Scheduler::recompute`]).
//!
//! A step may be scheduled before it is known what the one before has drawn: a sequence's newest token is [`PENDING`] then, until
//! [`Scheduler::grown`] says which it is.

use std::collections::VecDeque;

use crate::kv_cache::{self, BlockId, BlockPool, ContentId, Prefix};
use crate::model::PENDING;

/// One request's sequence, unique for the life of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub u64);

/// Bounds of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SchedulerLimits {
    /// Most sequences that run at once.
    pub running: usize,
    /// Most sequences that wait for a place among them.
    pub waiting: usize,
    /// Most tokens in a step. Decode tokens always run; prompts share what they leave.
    pub step_tokens: usize,
    /// Whether a sequence reuses what others have left in the cache.
    pub prefix_reuse: bool,
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

/// A sequence to be queued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrival {
    /// Its name, new to the scheduler.
    pub id: SequenceId,
    /// Its tokens; at least one.
    pub prompt: Vec<u32>,
    /// Most tokens that it may grow to.
    pub capacity: usize,
    /// Whether all its tokens are computed for itself: nothing that others have computed is used in their place.
    pub alone: bool,
}

/// What the coming step does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// Sequences that ran and do so no more, because their blocks were needed; the last to come is the first.
    pub evicted: Vec<SequenceId>,
    /// Blocks to be copied before anything is computed, `(from, to)`, in this order.
    pub copies: Vec<(BlockId, BlockId)>,
    /// The runs of tokens to be computed, in order of their sequences' arrival.
    pub runs: Vec<Scheduled>,
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
    /// Sequences of the same tokens whose next token comes from the same logits.
    pub followers: Vec<SequenceId>,
    /// The sequence's cache blocks, covering every position up to `start + len`.
    pub blocks: Vec<BlockId>,
}

impl Scheduled {
    /// Everyone whose next token comes from the run's logits; nobody if it does not sample.
    pub fn sampled(&self) -> impl Iterator<Item = SequenceId> {
        let own = self.samples.then_some(self.id);
        own.into_iter().chain(self.followers.iter().copied())
    }
}

/// What has happened since the scheduler was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SchedulerCounters {
    /// Tokens of the sequences that were admitted, each time that they were.
    pub admitted_tokens: u64,
    /// Those of them that were in the cache already, or were computed for another sequence.
    pub reused_tokens: u64,
    /// Times that a sequence was evicted.
    pub evictions: u64,
    /// Shared blocks that were copied because one of their holders was to write.
    pub copies: u64,
}

#[derive(Debug)]
struct Waiting {
    id: SequenceId,
    tokens: Vec<u32>,
    capacity: usize,
    alone: bool,
    found: bool,
}

#[derive(Debug)]
struct Running {
    id: SequenceId,
    /// Tokens known so far: prompt and output.
    tokens: Vec<u32>,
    /// Most tokens that there will be.
    capacity: usize,
    alone: bool,
    /// Whether some of them were computed for others, and no row that follows from them has been looked at.
    found: bool,
    /// Tokens whose keys and values are in the cache.
    computed: usize,
    /// Those of them that can be trusted: a row that is NaN, of which the scheduler hears later, leaves NaN in the cache.
    sound: usize,
    /// Blocks for all tokens, but for the newest one if it begins another block; none while the sequence follows.
    blocks: Vec<BlockId>,
    /// Full blocks that can be found by their tokens, and what the last of them holds.
    recorded: usize,
    content: Option<ContentId>,
    /// The sequence of the same tokens that computes them for this one too.
    follows: Option<SequenceId>,
}

/// Sequences waiting and running, and the blocks they hold.
///
/// Both lists are in order of arrival, and whoever runs came before whoever waits.
#[derive(Debug)]
pub struct Scheduler {
    limits: SchedulerLimits,
    block_size: usize,
    pool: BlockPool,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    counters: SchedulerCounters,
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
            counters: SchedulerCounters::default(),
        }
    }

    /// Queues sequences that arrive together: all of them, or none.
    pub fn enqueue(&mut self, arrivals: Vec<Arrival>) -> Result<(), AdmissionError> {
        for arrival in &arrivals {
            let needed = kv_cache::blocks_for(arrival.capacity, self.block_size);
            if needed > self.pool.capacity() {
                return Err(AdmissionError::TooLong {
                    tokens: arrival.capacity,
                    needed,
                    available: self.pool.capacity(),
                });
            }
        }
        let places = self.limits.running - self.running.len();
        if self.waiting.len() + arrivals.len() > self.limits.waiting + places {
            return Err(AdmissionError::QueueFull {
                waiting: self.waiting.len(),
                limit: self.limits.waiting,
            });
        }
        let waiting = arrivals.into_iter().map(|arrival| Waiting {
            id: arrival.id,
            tokens: arrival.prompt,
            capacity: arrival.capacity,
            alone: arrival.alone,
            found: false,
        });
        self.waiting.extend(waiting);
        Ok(())
    }

    /// Makes room for those that run, admits whom there is room for beside them, then says what runs in the coming step.
    /// Nothing runs only when nobody runs or waits, or when tokens are pending.
    pub fn schedule(&mut self) -> Step {
        let mut step = Step::default();
        if self.make_room(&mut step) {
            self.admit();
        }
        step.runs = self.runs();
        step
    }

    /// Records that a scheduled run is in the cache, for its sequence and for those that follow it. If its logits are looked at, others find it
    /// there no sooner than they were: when there is a token ([`Scheduler::grown`]), or the sequence has run again.
    pub fn computed(&mut self, run: &Scheduled) {
        let Some(at) = self.position(run.id) else {
            return;
        };
        let running = &mut self.running[at];
        running.computed = run.start + run.len;
        let is_looked_at = run.samples || running.alone;
        running.sound = run.start + if is_looked_at { 0 } else { run.len };
        self.record_full_blocks(at);
        for &follower in &run.followers {
            if let Some(follower) = self.position(follower) {
                self.share_blocks(at, follower);
            }
        }
    }

    /// Records that a sequence has one more token, or which one the pending token is. [`PENDING`] is one that is not known yet; it must
    /// be before the sequence has run again and the next token is recorded.
    pub fn grown(&mut self, id: SequenceId, token: u32) {
        let at = self.position(id);
        let (tokens, found) = match at {
            Some(at) => {
                let running = &mut self.running[at];
                (&mut running.tokens, &mut running.found)
            }
            // It was evicted while its token was pending.
            None => match self.waiting.iter_mut().find(|waiting| waiting.id == id) {
                Some(waiting) => (&mut waiting.tokens, &mut waiting.found),
                None => return,
            },
        };
        *found &= token == PENDING;
        match tokens.last_mut() {
            Some(last) if *last == PENDING => *last = token,
            _ => tokens.push(token),
        }
        if let Some(at) = at.filter(|_| token != PENDING) {
            self.running[at].sound = self.running[at].computed;
            self.record_full_blocks(at);
        }
    }

    /// Forgets a sequence, waiting or running, and frees its blocks. Returns whether it was known.
    pub fn remove(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.position(id) {
            let running = self.running.remove(at);
            self.hand_over(running);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.id != id);
        self.waiting.len() != before
    }

    /// [`remove`](Self::remove) for a sequence that went wrong: what it left in the cache is not used again.
    pub fn discard(&mut self, id: SequenceId) -> bool {
        if let Some(at) = self.position(id) {
            let running = &mut self.running[at];
            // Whoever follows it goes on from there.
            running.found = true;
            self.pool.forget(&running.blocks);
        }
        self.remove(id)
    }

    /// Takes a sequence that went wrong back to its tokens, if what it found in the cache may be the cause: it is computed again, by itself, and what
    /// it had is not used again. A token of it that is pending will not come. Tells who does not run any more, because the blocks were needed; `None`
    /// if it found nothing, or a row that followed from it was right.
    pub fn recompute(&mut self, id: SequenceId) -> Option<Vec<SequenceId>> {
        let Some(at) = self.position(id) else {
            let is_it = |waiting: &&mut Waiting| waiting.id == id && waiting.found;
            let waiting = self.waiting.iter_mut().find(is_it)?;
            (waiting.found, waiting.alone) = (false, true);
            waiting.tokens.pop_if(|last| *last == PENDING);
            return Some(Vec::new());
        };
        let running = &mut self.running[at];
        if !running.found {
            return None;
        }
        (running.found, running.alone) = (false, true);
        running.tokens.pop_if(|last| *last == PENDING);
        (running.computed, running.sound) = (0, 0);
        (running.recorded, running.content) = (0, None);
        let needed = kv_cache::blocks_for(running.tokens.len(), self.block_size);
        let blocks = std::mem::take(&mut running.blocks);
        self.pool.forget(&blocks);
        self.pool.free(&blocks);
        let mut evicted = Vec::new();
        while at < self.running.len() {
            if let Some(blocks) = self.pool.allocate(needed) {
                self.running[at].blocks = blocks;
                break;
            }
            evicted.extend(self.evict_last());
        }
        Some(evicted)
    }

    /// Sequences that run.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Sequences that wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The blocks, and who holds how many.
    pub fn pool(&self) -> &BlockPool {
        &self.pool
    }

    /// What has happened so far.
    pub fn counters(&self) -> SchedulerCounters {
        self.counters
    }

    fn position(&self, id: SequenceId) -> Option<usize> {
        self.running.iter().position(|running| running.id == id)
    }

    /// Sees to it that every running sequence can write its next token, in order of arrival. False if one had to be evicted
    /// or has to sit the step out.
    fn make_room(&mut self, step: &mut Step) -> bool {
        let mut room = true;
        let mut at = 0;
        while at < self.running.len() {
            if self.running[at].goes_on() {
                room &= self.make_room_for(at, step);
            }
            at += 1;
        }
        room && step.evicted.is_empty()
    }

    /// Gives a sequence the block that its next token needs: one more, or its own copy of a shared one. Evicts later ones for
    /// that if need be; false when there are none.
    fn make_room_for(&mut self, at: usize, step: &mut Step) -> bool {
        let index = self.running[at].computed / self.block_size;
        while !self.can_write(at) {
            let Some(block) = self.pool.allocate(1).map(|blocks| blocks[0]) else {
                if at + 1 == self.running.len() {
                    return false;
                }
                step.evicted.extend(self.evict_last());
                continue;
            };
            let blocks = &mut self.running[at].blocks;
            match blocks.get(index).copied() {
                None => blocks.push(block),
                Some(shared) => {
                    blocks[index] = block;
                    self.pool.free(&[shared]);
                    step.copies.push((shared, block));
                    self.counters.copies += 1;
                }
            }
        }
        true
    }

    /// Whether the block of a sequence's next token is there and its own.
    fn can_write(&self, at: usize) -> bool {
        let running = &self.running[at];
        let block = running.blocks.get(running.computed / self.block_size);
        block.is_some_and(|&block| self.pool.references(block) == 1)
    }

    fn evict_last(&mut self) -> Option<SequenceId> {
        let evicted = self.running.pop()?;
        self.pool.free(&evicted.blocks);
        self.counters.evictions += 1;
        self.waiting.push_front(Waiting {
            id: evicted.id,
            tokens: evicted.tokens,
            capacity: evicted.capacity,
            alone: evicted.alone,
            found: evicted.found,
        });
        Some(evicted.id)
    }

    fn admit(&mut self) {
        while self.running.len() < self.limits.running {
            // Whose token is pending can run when it has come.
            let is_known = |next: &mut Waiting| next.tokens.last() != Some(&PENDING);
            let Some(next) = self.waiting.pop_front_if(is_known) else {
                return;
            };
            match self.place(next) {
                Ok(running) => self.running.push(running),
                Err(next) => {
                    self.waiting.push_front(next);
                    return;
                }
            }
        }
    }

    /// Blocks for all tokens of a sequence, or another to follow; the sequence itself when there is no room.
    fn place(&mut self, next: Waiting) -> Result<Running, Waiting> {
        let Waiting {
            id,
            tokens,
            capacity,
            alone,
            found,
        } = next;
        let same = |running: &&Running| running.follows.is_none() && running.tokens == tokens;
        let leader = self.running.iter().find(same).filter(|_| !alone);
        let leader = leader.map(|leader| leader.id);
        let prefix = match leader {
            None if !alone => self.find_prefix(&tokens),
            _ => Prefix::default(),
        };
        let hits = prefix.blocks.len();
        let blocks = match leader {
            None => self.take_blocks(&prefix, tokens.len()),
            Some(_) => Some(Vec::new()),
        };
        let Some(blocks) = blocks else {
            return Err(Waiting {
                id,
                tokens,
                capacity,
                alone,
                found,
            });
        };
        self.counters.admitted_tokens += tokens.len() as u64;
        self.counters.reused_tokens += (hits * self.block_size) as u64;
        Ok(Running {
            id,
            tokens,
            capacity,
            alone,
            found: hits > 0,
            computed: hits * self.block_size,
            sound: hits * self.block_size,
            blocks,
            recorded: hits,
            content: prefix.content,
            follows: leader,
        })
    }

    /// What the cache holds of a sequence. The newest token is always computed: its logits are wanted.
    fn find_prefix(&self, tokens: &[u32]) -> Prefix {
        if self.limits.prefix_reuse {
            let before = &tokens[..tokens.len() - 1];
            self.pool.find_prefix(before, self.block_size)
        } else {
            Prefix::default()
        }
    }

    /// The prefix's blocks, and new ones for the rest of the tokens. Each that runs already is left one to grow.
    fn take_blocks(&mut self, prefix: &Prefix, tokens: usize) -> Option<Vec<BlockId>> {
        let is_free = |&&block: &&BlockId| self.pool.references(block) == 0;
        let revived = prefix.blocks.iter().filter(is_free).count();
        let missing = kv_cache::blocks_for(tokens, self.block_size) - prefix.blocks.len();
        if revived + missing + self.running.len() > self.pool.available() {
            return None;
        }
        self.pool.share(&prefix.blocks);
        let rest = self.pool.allocate(missing).expect("enough are free");
        Some([prefix.blocks.as_slice(), &rest].concat())
    }

    fn runs(&self) -> Vec<Scheduled> {
        let ready = |at: &usize| self.running[*at].goes_on() && self.can_write(*at);
        let ready: Vec<usize> = (0..self.running.len()).filter(ready).collect();
        let is_decoding = |at: &&usize| self.running[**at].is_decoding();
        let decoding = ready.iter().filter(is_decoding).count();
        let mut budget = self.limits.step_tokens.saturating_sub(decoding);
        let mut runs = Vec::with_capacity(ready.len());
        for at in ready {
            let running = &self.running[at];
            let missing = running.missing();
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
            let samples = len == missing;
            runs.push(Scheduled {
                id: running.id,
                start: running.computed,
                len,
                samples,
                followers: if samples {
                    self.followers(running.id)
                } else {
                    Vec::new()
                },
                blocks: running.blocks.clone(),
            });
        }
        runs
    }

    fn followers(&self, id: SequenceId) -> Vec<SequenceId> {
        let follows = |running: &&Running| running.follows == Some(id);
        let followers = self.running.iter().filter(follows);
        followers.map(|follower| follower.id).collect()
    }

    fn record_full_blocks(&mut self, at: usize) {
        let Running {
            tokens,
            sound,
            blocks,
            recorded,
            content,
            ..
        } = &mut self.running[at];
        if !self.limits.prefix_reuse {
            return;
        }
        let full = tokens[..*sound].chunks_exact(self.block_size);
        for (tokens, &block) in full.zip(blocks.iter()).skip(*recorded) {
            *content = Some(self.pool.record(*content, tokens, block));
            *recorded += 1;
        }
    }

    /// Lets a sequence go on from what another has computed.
    fn share_blocks(&mut self, leader: usize, follower: usize) {
        let leader = &self.running[leader];
        let (computed, sound) = (leader.computed, leader.sound);
        let (recorded, content) = (leader.recorded, leader.content);
        let found = leader.found;
        let blocks = leader.blocks.clone();
        self.pool.share(&blocks);
        self.counters.reused_tokens += computed as u64;
        let follower = &mut self.running[follower];
        follower.blocks = blocks;
        follower.computed = computed;
        follower.sound = sound;
        follower.found = found;
        follower.recorded = recorded;
        follower.content = content;
        follower.follows = None;
    }

    /// Frees the blocks of a sequence that has gone; or, if others follow it, leaves them and its work, as far as it can be trusted, to the first
    /// of these.
    fn hand_over(&mut self, gone: Running) {
        let follows = |running: &&mut Running| running.follows == Some(gone.id);
        let mut followers = self.running.iter_mut().filter(follows);
        let Some(heir) = followers.next() else {
            drop(followers);
            return self.pool.free(&gone.blocks);
        };
        for follower in followers {
            follower.follows = Some(heir.id);
        }
        heir.follows = None;
        heir.blocks = gone.blocks;
        heir.computed = gone.sound;
        heir.sound = gone.sound;
        heir.found = gone.found;
        heir.recorded = gone.recorded;
        heir.content = gone.content;
    }
}

#[cfg(test)]
impl Scheduler {
    pub(crate) fn is_running(&self, id: SequenceId) -> bool {
        self.position(id).is_some()
    }

    /// Who came first, how many of its tokens are in the cache, and whether it is computed by itself.
    pub(crate) fn oldest(&self) -> Option<(SequenceId, usize, bool)> {
        let running = self.running.first();
        let running = running.map(|first| (first.id, first.computed, first.alone));
        let waiting = self.waiting.front();
        running.or_else(|| waiting.map(|first| (first.id, 0, first.alone)))
    }

    /// Checks what must hold between two steps, for sequences whose ids are in order of arrival.
    pub(crate) fn assert_consistent(&self) {
        let waiting = self.waiting.iter().map(|waiting| waiting.id);
        let order: Vec<SequenceId> = self.running.iter().map(|r| r.id).chain(waiting).collect();
        assert!(order.is_sorted(), "out of order of arrival: {order:?}");
        let mut holders = vec![0; self.pool.capacity()];
        for running in &self.running {
            let blocks = running.blocks.iter();
            blocks.for_each(|block| holders[block.index()] += 1);
            self.assert_sound(running);
        }
        for (block, &holders) in holders.iter().enumerate() {
            let references = self.pool.references(BlockId(block as u32));
            assert_eq!(references, holders, "holders of block {block}");
        }
        self.pool.assert_consistent();
    }

    fn assert_sound(&self, running: &Running) {
        let covered = running.blocks.len() * self.block_size;
        assert!(running.computed < running.tokens.len(), "{running:?}");
        assert!(running.recorded * self.block_size <= running.sound);
        assert!(running.sound <= running.computed);
        let full = running.computed / self.block_size;
        for &block in running.blocks.iter().skip(full) {
            let found = self.pool.can_be_found(block);
            assert!(!found, "{block:?} is yet to be written: {running:?}");
        }
        let Some(leader) = running.follows else {
            assert!(running.computed <= covered, "{running:?}");
            return;
        };
        let leader = &self.running[self.position(leader).expect("who is followed runs")];
        assert!(running.blocks.is_empty() && leader.follows.is_none());
        assert!(leader.id < running.id && leader.tokens == running.tokens);
    }
}

impl Running {
    /// Whether there is anything to compute for it: not if another's tokens are its own, nor if the token that is pending is its last.
    fn goes_on(&self) -> bool {
        let is_last_pending = self.tokens.len() >= self.capacity && self.is_pending();
        self.follows.is_none() && !is_last_pending
    }

    fn is_pending(&self) -> bool {
        self.tokens.last() == Some(&PENDING)
    }

    /// Tokens that are not in the cache; at least one between two steps.
    fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }

    fn is_decoding(&self) -> bool {
        self.computed > 0 && self.missing() == 1
    }
}

#[cfg(test)]
mod tests;
