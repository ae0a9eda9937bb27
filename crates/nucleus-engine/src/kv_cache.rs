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
    /// Returns what it holds, the parent of the next block. When another block holds the same, that one is found.
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
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn ids(blocks: &[BlockId]) -> Vec<u32> {
        blocks.iter().map(|block| block.0).collect()
    }

    #[test]
    fn a_new_pool_hands_out_its_blocks_in_order() {
        let mut pool = BlockPool::new(3);
        assert_eq!((pool.capacity(), pool.available(), pool.used()), (3, 3, 0));
        assert_eq!(ids(&pool.allocate(2).unwrap()), [0, 1]);
        assert_eq!((pool.available(), pool.used()), (1, 2));
        assert_eq!(ids(&pool.allocate(1).unwrap()), [2]);
    }

    #[test]
    fn allocation_is_all_or_nothing() {
        let mut pool = BlockPool::new(3);
        assert_eq!(pool.allocate(4), None);
        assert_eq!(pool.available(), 3);
        assert_eq!(pool.allocate(0), Some(vec![]));
        assert_eq!(pool.allocate(3).map(|blocks| blocks.len()), Some(3));
        assert_eq!(pool.allocate(1), None);
    }

    #[test]
    fn an_empty_pool_hands_out_nothing() {
        let mut pool = BlockPool::new(0);
        assert_eq!(pool.allocate(0), Some(vec![]));
        assert_eq!(pool.allocate(1), None);
    }

    #[test]
    fn the_block_freed_last_comes_first() {
        let mut pool = BlockPool::new(4);
        let blocks = pool.allocate(3).unwrap();
        pool.free(&[blocks[1]]);
        pool.free(&[blocks[0]]);
        assert_eq!(ids(&pool.allocate(3).unwrap()), [0, 1, 3]);
    }

    #[test]
    fn a_shared_block_is_free_after_its_last_holder() {
        let mut pool = BlockPool::new(2);
        let prefix = pool.allocate(1).unwrap();
        pool.share(&prefix);
        assert_eq!(pool.references(prefix[0]), 2);
        pool.free(&prefix);
        assert_eq!((pool.references(prefix[0]), pool.available()), (1, 1));
        pool.free(&prefix);
        assert_eq!((pool.references(prefix[0]), pool.available()), (0, 2));
    }

    #[test]
    #[should_panic(expected = "block 0 is freed but nobody holds it")]
    fn freeing_twice_is_detected() {
        let mut pool = BlockPool::new(1);
        let blocks = pool.allocate(1).unwrap();
        pool.free(&blocks);
        pool.free(&blocks);
    }

    #[test]
    #[should_panic(expected = "block 1 is freed but nobody holds it")]
    fn freeing_a_block_twice_in_one_call_is_detected() {
        let mut pool = BlockPool::new(2);
        pool.allocate(2).unwrap();
        pool.free(&[BlockId(1), BlockId(1)]);
    }

    #[test]
    #[should_panic(expected = "block 0 is shared but nobody holds it")]
    fn sharing_a_free_block_is_detected() {
        BlockPool::new(1).share(&[BlockId(0)]);
    }

    const AB: [u32; 4] = [1, 2, 3, 4];

    /// A pool in which a sequence of four tokens, two in a block, was computed and has ended.
    fn pool_with_a_prefix(capacity: usize) -> BlockPool {
        let mut pool = BlockPool::new(capacity);
        let blocks = pool.allocate(2).unwrap();
        let first = pool.record(None, &AB[..2], blocks[0]);
        pool.record(Some(first), &AB[2..], blocks[1]);
        pool.free(&blocks);
        pool
    }

    #[test]
    fn full_blocks_are_found_by_all_tokens_up_to_their_end() {
        let pool = pool_with_a_prefix(3);
        let found = |tokens: &[u32]| ids(&pool.find_prefix(tokens, 2).blocks);
        assert_eq!((pool.available(), pool.cached()), (3, 2));
        assert_eq!(found(&AB), [0, 1]);
        assert_eq!(found(&[1, 2, 3, 4, 5, 6, 7]), [0, 1]);
        assert_eq!(found(&[1, 2, 3]), [0]);
        assert_eq!(found(&[1, 2, 4, 3]), [0]);
        assert!(found(&[1]).is_empty());
        assert!(found(&AB[2..]).is_empty());
    }

    #[test]
    fn a_prefix_that_is_shared_is_not_overwritten() {
        let mut pool = pool_with_a_prefix(3);
        let prefix = pool.find_prefix(&AB, 2);
        pool.share(&prefix.blocks);
        assert_eq!((pool.available(), pool.cached(), pool.used()), (1, 0, 2));
        assert_eq!(pool.allocate(2), None);
        assert_eq!(ids(&pool.allocate(1).unwrap()), [2]);
        pool.free(&prefix.blocks);
        assert_eq!(ids(&pool.find_prefix(&AB, 2).blocks), [0, 1]);
    }

    #[test]
    fn blocks_without_contents_go_first_then_the_tail_of_what_was_freed_first() {
        let mut pool = pool_with_a_prefix(5);
        let other = pool.allocate(1).unwrap();
        pool.record(None, &[7, 8], other[0]);
        pool.free(&other);
        let taken = pool.allocate(2).unwrap();
        assert_eq!(ids(&taken), [3, 4]);
        assert_eq!(ids(&pool.allocate(1).unwrap()), [1]);
        assert_eq!(ids(&pool.find_prefix(&AB, 2).blocks), [0]);
        assert_eq!(ids(&pool.allocate(1).unwrap()), [0]);
        assert!(pool.find_prefix(&AB, 2).blocks.is_empty());
        assert_eq!(ids(&pool.find_prefix(&[7, 8], 2).blocks), [2]);
    }

    #[test]
    fn what_was_used_again_is_overwritten_last() {
        let mut pool = pool_with_a_prefix(3);
        let other = pool.allocate(1).unwrap();
        pool.record(None, &[7, 8], other[0]);
        pool.free(&other);
        let prefix = pool.find_prefix(&AB, 2);
        pool.share(&prefix.blocks);
        pool.free(&prefix.blocks);
        assert_eq!(ids(&pool.allocate(3).unwrap()), [2, 1, 0]);
    }

    #[test]
    fn what_is_forgotten_is_not_found_and_its_block_is_free_like_any_other() {
        let mut pool = pool_with_a_prefix(3);
        let prefix = pool.find_prefix(&AB, 2).blocks;
        pool.share(&prefix);
        pool.forget(&prefix[..1]);
        pool.free(&prefix);
        assert!(pool.find_prefix(&AB, 2).blocks.is_empty());
        assert_eq!((pool.available(), pool.cached()), (3, 1));
        assert_eq!(ids(&pool.allocate(3).unwrap()), [0, 2, 1]);
    }

    #[test]
    fn tokens_round_up_to_blocks() {
        assert_eq!(
            [0, 1, 16, 17].map(|tokens| blocks_for(tokens, 16)),
            [0, 1, 1, 2]
        );
    }

    /// What a sequence may do with the pool.
    #[derive(Debug, Clone)]
    enum Action {
        Allocate(usize),
        /// Of the holding at this place, modulo the number of holdings.
        Share(usize),
        Free(usize),
        /// Records the blocks of such a holding as those of a sequence of these tokens, one a block.
        Record(usize, Vec<u32>),
        /// Holds what is found of a sequence of these tokens.
        Find(Vec<u32>),
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (0_usize..6).prop_map(Action::Allocate),
            any::<usize>().prop_map(Action::Share),
            any::<usize>().prop_map(Action::Free),
            (any::<usize>(), tokens()).prop_map(|(at, tokens)| Action::Record(at, tokens)),
            tokens().prop_map(Action::Find),
        ]
    }

    fn tokens() -> impl Strategy<Value = Vec<u32>> {
        prop::collection::vec(0_u32..2, 1..5)
    }

    fn record(pool: &mut BlockPool, blocks: &[BlockId], tokens: &[u32]) {
        let mut parent = None;
        for (token, &block) in tokens.chunks(1).zip(blocks) {
            parent = Some(pool.record(parent, token, block));
        }
    }

    fn apply(pool: &mut BlockPool, holdings: &mut Vec<Vec<BlockId>>, action: Action) {
        match action {
            Action::Allocate(count) => holdings.extend(pool.allocate(count)),
            Action::Find(tokens) => {
                let prefix = pool.find_prefix(&tokens, 1);
                pool.share(&prefix.blocks);
                holdings.push(prefix.blocks);
            }
            _ if holdings.is_empty() => {}
            Action::Record(at, tokens) => {
                let at = at % holdings.len();
                record(pool, &holdings[at], &tokens);
            }
            Action::Share(at) => {
                let shared = holdings[at % holdings.len()].clone();
                pool.share(&shared);
                holdings.push(shared);
            }
            Action::Free(at) => {
                let freed = holdings.swap_remove(at % holdings.len());
                pool.free(&freed);
            }
        }
    }

    proptest! {
        #[test]
        fn no_block_is_leaked_or_handed_out_twice(
            capacity in 0_usize..24,
            actions in prop::collection::vec(action(), 0..80),
        ) {
            let mut pool = BlockPool::new(capacity);
            let mut holdings: Vec<Vec<BlockId>> = Vec::new();
            for action in actions {
                let held: HashSet<BlockId> = holdings.iter().flatten().copied().collect();
                let before = holdings.len();
                let is_new = matches!(action, Action::Allocate(_));
                apply(&mut pool, &mut holdings, action);
                for block in holdings[before.min(holdings.len())..].iter().flatten().filter(|_| is_new) {
                    prop_assert!(!held.contains(block), "{block:?} was handed out while held");
                }
                let held: HashSet<BlockId> = holdings.iter().flatten().copied().collect();
                prop_assert_eq!(pool.used(), held.len());
                prop_assert_eq!(pool.available() + pool.used(), capacity);
                for &block in &held {
                    let holders = holdings.iter().flatten().filter(|&&other| other == block).count();
                    prop_assert_eq!(pool.references(block) as usize, holders);
                }
            }
            for blocks in holdings {
                pool.free(&blocks);
            }
            prop_assert_eq!(pool.available(), capacity);
            let all: HashSet<BlockId> = pool.allocate(capacity).unwrap().into_iter().collect();
            prop_assert_eq!(all.len(), capacity);
        }
    }
}
