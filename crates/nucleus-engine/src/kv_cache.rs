//! Which blocks of the cache belong to which sequence.
//!
//! Pure bookkeeping, no tensors: a [`BlockPool`] hands out block ids and counts who holds them. Where a block lies in
//! memory is the model's affair.

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

/// A fixed set of blocks, each free or held by one or more holders.
///
/// A block is handed out with one reference; [`share`](Self::share) adds one, [`free`](Self::free) takes one away, and
/// with the last one the block can be handed out again. The block freed last is handed out first, while it is still
/// in the processor's caches.
#[derive(Debug, Clone)]
pub struct BlockPool {
    /// Free blocks; the next one handed out is the last.
    free: Vec<BlockId>,
    /// Holders of each block; 0 for a free one.
    references: Vec<u32>,
}

impl BlockPool {
    /// A pool of `capacity` free blocks with the ids `0..capacity`.
    ///
    /// # Panics
    /// If an id would not fit into 32 bits.
    pub fn new(capacity: usize) -> Self {
        let last = u32::try_from(capacity).expect("a pool has fewer than 2^32 blocks");
        Self {
            free: (0..last).rev().map(BlockId).collect(),
            references: vec![0; capacity],
        }
    }

    /// Blocks in the pool, free or held.
    pub fn capacity(&self) -> usize {
        self.references.len()
    }

    /// Blocks that nobody holds.
    pub fn available(&self) -> usize {
        self.free.len()
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
        let left = self.available().checked_sub(count)?;
        let blocks: Vec<BlockId> = self.free.drain(left..).rev().collect();
        for block in &blocks {
            self.references[block.index()] = 1;
        }
        Some(blocks)
    }

    /// Adds a holder to each block, so that two sequences can have the same prefix in the cache.
    ///
    /// # Panics
    /// If a block is free: its contents belong to nobody.
    pub fn share(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            let references = &mut self.references[block.index()];
            assert!(
                *references > 0,
                "block {} is shared but nobody holds it",
                block.0
            );
            *references += 1;
        }
    }

    /// Takes a holder from each block; a block without holders is free again.
    ///
    /// # Panics
    /// If a block is free already: freeing it again would hand it out twice.
    pub fn free(&mut self, blocks: &[BlockId]) {
        for &block in blocks {
            let references = &mut self.references[block.index()];
            assert!(
                *references > 0,
                "block {} is freed but nobody holds it",
                block.0
            );
            *references -= 1;
            if *references == 0 {
                self.free.push(block);
            }
        }
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
    }

    fn action() -> impl Strategy<Value = Action> {
        prop_oneof![
            (0_usize..6).prop_map(Action::Allocate),
            any::<usize>().prop_map(Action::Share),
            any::<usize>().prop_map(Action::Free),
        ]
    }

    fn apply(pool: &mut BlockPool, holdings: &mut Vec<Vec<BlockId>>, action: Action) {
        match action {
            Action::Allocate(count) => holdings.extend(pool.allocate(count)),
            Action::Share(_) | Action::Free(_) if holdings.is_empty() => {}
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
