//! Which blocks of the cache belong to which sequence, and what the blocks hold that none belongs to.
//!
//! Pure bookkeeping, no tensors: a [`BlockPool`] hands out block ids, counts who holds them, and finds full blocks by their
//! tokens. Where a block lies in memory is the model's affair.

mod contents;

use std::collections::BTreeMap;

pub use self::contents::ContentId;

use self::contents::Contents;

/// A block of the KV cache: `block_size` consecutive positions of one sequence, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

impl BlockId {
    /// The block's place in the pool.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Blocks that hold `tokens` positions.
///
/// # Panics
/// If `block_size` is zero.
pub fn blocks_for(tokens: usize, block_size: usize) -> usize {
    tokens.div_ceil(block_size)
}

/// Full blocks that hold the beginning of a sequence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Prefix {
    /// The blocks in order.
    pub blocks: Vec<BlockId>,
    /// What they hold together; `None` when there are none.
    pub content: Option<ContentId>,
}

/// A fixed set of blocks, each free or held by one or more holders.
///
/// A block is handed out with one reference; [`share`](Self::share) adds one, [`free`](Self::free) takes one away, and
/// with the last one the block can be handed out again. The block freed last is handed out first, while it is still
/// in the processor's caches; but blocks whose contents were [recorded](Self::record) are kept as they are as long as others
/// are free, and then overwritten from the one on that was freed first.
#[derive(Debug, Clone)]
pub struct BlockPool {
    /// Holders of each block; 0 for a free one.
    references: Vec<u32>,
    /// Free blocks without contents; the next one handed out is the last.
    empty: Vec<BlockId>,
    /// Free blocks with contents, by the time at which they were freed.
    cached: BTreeMap<u64, BlockId>,
    /// When each of them was freed; without meaning for other blocks.
    freed_at: Vec<u64>,
    clock: u64,
    contents: Contents,
}

impl BlockPool {
    /// A pool of `capacity` free blocks with the ids `0..capacity`.
    ///
    /// # Panics
    /// If an id would not fit into 32 bits.
    pub fn new(capacity: usize) -> Self {
        let last = u32::try_from(capacity).expect("a pool has fewer than 2^32 blocks");
        Self {
            references: vec![0; capacity],
            empty: (0..last).rev().map(BlockId).collect(),
            cached: BTreeMap::new(),
            freed_at: vec![0; capacity],
            clock: 0,
            contents: Contents::default(),
        }
    }

    /// Blocks in the pool, free or held.
    pub fn capacity(&self) -> usize {
        self.references.len()
    }

    /// Blocks that nobody holds.
    pub fn available(&self) -> usize {
        self.empty.len() + self.cached.len()
    }

    /// Blocks that nobody holds and that a [prefix](Self::find_prefix) may still be found in.
    pub fn cached(&self) -> usize {
        self.cached.len()
    }

    /// Blocks that somebody holds.
    pub fn used(&self) -> usize {
        self.capacity() - self.available()
    }

    /// Holders of a block; 0 when it is free.
    ///
    /// # Panics
    /// If the block is not of this pool.
    pub fn references(&self, block: BlockId) -> u32 {
        self.references[block.index()]
    }

    /// Takes `count` free blocks, each with one reference; `None`, and no change, when fewer are free.
    pub fn allocate(&mut self, count: usize) -> Option<Vec<BlockId>> {
        if count > self.available() {
            return None;
        }
        let left = self.empty.len().saturating_sub(count);
        let mut blocks: Vec<BlockId> = self.empty.drain(left..).rev().collect();
        while blocks.len() < count {
            let (_, oldest) = self.cached.pop_first().expect("enough are free");
            self.contents.forget(oldest);
            blocks.push(oldest);
        }
        for block in &blocks {
            self.references[block.index()] = 1;
        }
        Some(blocks)
    }

    /// Adds a holder to each block, so that two sequences can have the same prefix in the cache.
    ///
    /// # Panics
    /// If a block is free and has no recorded contents: what is in it belongs to nobody.
    pub fn share(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            if self.references(block) == 0 {
                let cached = self.cached.remove(&self.freed_at[block.index()]);
                assert_eq!(
                    cached,
                    Some(block),
                    "block {} is shared but nobody holds it",
                    block.0
                );
            }
            self.references[block.index()] += 1;
        }
    }

    /// Takes a holder from each block; a block without holders is free again. Of these blocks, the last is overwritten first:
    /// without the others it could not be found.
    ///
    /// # Panics
    /// If a block is free already: freeing it again would hand it out twice.
    pub fn free(&mut self, blocks: &[BlockId]) {
        for &block in blocks.iter().rev() {
            let references = &mut self.references[block.index()];
            assert!(
                *references > 0,
                "block {} is freed but nobody holds it",
                block.0
            );
            *references -= 1;
            if *references == 0 {
                self.put_back(block);
            }
        }
    }

    fn put_back(&mut self, block: BlockId) {
        if self.contents.has(block) {
            self.freed_at[block.index()] = self.clock;
            self.cached.insert(self.clock, block);
            self.clock += 1;
        } else {
            self.empty.push(block);
        }
    }

    /// Notes that a held block is full, and holds the keys and values of `tokens` behind `parent`.
    ///
    /// Returns what it holds, the parent of the next block. When another block holds the same, that one is found. What the block
    /// was recorded with before is forgotten.
    ///
    /// # Panics
    /// If the block is free.
    pub fn record(
        &mut self,
        parent: Option<ContentId>,
        tokens: &[u32],
        block: BlockId,
    ) -> ContentId {
        assert!(
            self.references(block) > 0,
            "block {} is recorded but nobody holds it",
            block.0
        );
        self.contents.record(parent, tokens, block)
    }

    /// Forgets what held blocks hold, because it cannot be trusted.
    ///
    /// # Panics
    /// If a block is free.
    pub fn forget(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            assert!(
                self.references(block) > 0,
                "block {} is forgotten but nobody holds it",
                block.0
            );
            self.contents.forget(block);
        }
    }

    /// The longest beginning of `tokens` that whole blocks hold, `block_size` tokens each. Nobody holds them for that:
    /// [`share`](Self::share) them before anything else is allocated.
    ///
    /// # Panics
    /// If `block_size` is zero.
    pub fn find_prefix(&self, tokens: &[u32], block_size: usize) -> Prefix {
        let mut prefix = Prefix::default();
        for tokens in tokens.chunks_exact(block_size) {
            let Some((content, block)) = self.contents.find(prefix.content, tokens) else {
                break;
            };
            prefix.content = Some(content);
            prefix.blocks.push(block);
        }
        prefix
    }
}

#[cfg(test)]
impl BlockPool {
    /// Whether the block can be found by what it holds.
    pub(crate) fn can_be_found(&self, block: BlockId) -> bool {
        self.contents.has(block)
    }

    /// Checks that every block is held, free without contents or free with them, and that contents and blocks agree.
    pub(crate) fn assert_consistent(&self) {
        self.contents.assert_consistent();
        let held = self.references.iter().map(|&holders| holders.min(1));
        let mut places: Vec<u32> = held.collect();
        for &block in &self.empty {
            assert!(!self.contents.has(block), "{block:?} has contents");
            places[block.index()] += 1;
        }
        for (&freed_at, &block) in &self.cached {
            assert!(self.contents.has(block), "{block:?} has no contents");
            assert_eq!(self.freed_at[block.index()], freed_at, "{block:?}");
            places[block.index()] += 1;
        }
        let once = places.iter().all(|&places| places == 1);
        assert!(once, "a block is lost, or held and free: {places:?}");
    }
}

#[cfg(test)]
mod tests;
