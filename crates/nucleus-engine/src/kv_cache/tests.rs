use super::*;
use proptest::prelude::*;
use std::collections::{HashMap, HashSet};

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

/// A second content behind the first would outlive the block's next holder: `share` then revives a block without contents.
#[test]
fn a_block_recorded_again_is_found_by_its_last_content_alone() {
    let mut pool = BlockPool::new(2);
    let block = pool.allocate(1).unwrap();
    pool.record(None, &[0], block[0]);
    pool.record(None, &[1], block[0]);
    pool.free(&block);
    assert!(pool.find_prefix(&[0], 1).blocks.is_empty());
    assert_eq!(pool.find_prefix(&[1], 1).blocks, block);
    let taken = pool.allocate(2).unwrap();
    assert_eq!(ids(&taken), [1, 0]);
    pool.free(&taken);
    for token in [0, 1] {
        let found = pool.find_prefix(&[token], 1).blocks;
        pool.share(&found);
        assert!(found.is_empty());
    }
    pool.assert_consistent();
}

#[test]
fn a_block_recorded_again_as_what_another_holds_is_not_found() {
    let mut pool = BlockPool::new(2);
    let blocks = pool.allocate(2).unwrap();
    pool.record(None, &[0], blocks[0]);
    let known = pool.record(None, &[1], blocks[1]);
    assert_eq!(pool.record(None, &[1], blocks[0]), known);
    assert!(pool.find_prefix(&[0], 1).blocks.is_empty());
    assert_eq!(pool.find_prefix(&[1], 1).blocks, blocks[1..]);
    pool.free(&blocks);
    assert_eq!((pool.available(), pool.cached()), (2, 1));
}

#[test]
fn a_block_recorded_again_as_the_same_is_found_as_before() {
    let mut pool = pool_with_a_prefix(2);
    let prefix = pool.find_prefix(&AB, 2);
    pool.share(&prefix.blocks);
    let first = pool.record(None, &AB[..2], prefix.blocks[0]);
    let last = pool.record(Some(first), &AB[2..], prefix.blocks[1]);
    assert_eq!(prefix.content, Some(last));
    assert_eq!(pool.find_prefix(&AB, 2), prefix);
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
    /// Forgets what the blocks of such a holding hold.
    Forget(usize),
    /// Holds what is found of a sequence of these tokens.
    Find(Vec<u32>),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        (0_usize..6).prop_map(Action::Allocate),
        any::<usize>().prop_map(Action::Share),
        any::<usize>().prop_map(Action::Free),
        (any::<usize>(), tokens()).prop_map(|(at, tokens)| Action::Record(at, tokens)),
        any::<usize>().prop_map(Action::Forget),
        tokens().prop_map(Action::Find),
    ]
}

const MOST_TOKENS: usize = 4;

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0_u32..2, 1..=MOST_TOKENS)
}

/// A pool, and what must be true of it.
struct Checked {
    pool: BlockPool,
    holdings: Vec<Vec<BlockId>>,
    /// All tokens up to the end of each block, as it was recorded last since it was handed out.
    contents: HashMap<BlockId, Vec<u32>>,
}

impl Checked {
    fn new(capacity: usize) -> Self {
        Self {
            pool: BlockPool::new(capacity),
            holdings: Vec::new(),
            contents: HashMap::new(),
        }
    }

    fn held(&self) -> HashSet<BlockId> {
        self.holdings.iter().flatten().copied().collect()
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Allocate(count) => self.allocate(count),
            Action::Find(tokens) => {
                let prefix = self.pool.find_prefix(&tokens, 1);
                self.pool.share(&prefix.blocks);
                self.holdings.push(prefix.blocks);
            }
            _ if self.holdings.is_empty() => {}
            Action::Record(at, tokens) => self.record(at % self.holdings.len(), &tokens),
            Action::Share(at) => {
                let shared = self.holdings[at % self.holdings.len()].clone();
                self.pool.share(&shared);
                self.holdings.push(shared);
            }
            Action::Free(at) => {
                let freed = self.holdings.swap_remove(at % self.holdings.len());
                self.pool.free(&freed);
            }
            Action::Forget(at) => {
                let forgotten = &self.holdings[at % self.holdings.len()];
                self.pool.forget(forgotten);
                forgotten.iter().for_each(|block| {
                    self.contents.remove(block);
                });
            }
        }
    }

    fn allocate(&mut self, count: usize) {
        let held = self.held();
        let Some(blocks) = self.pool.allocate(count) else {
            return assert!(count > self.pool.capacity() - held.len());
        };
        for block in &blocks {
            assert!(!held.contains(block), "{block:?} was handed out while held");
            self.contents.remove(block);
        }
        self.holdings.push(blocks);
    }

    fn record(&mut self, at: usize, tokens: &[u32]) {
        let mut parent = None;
        for (index, &block) in self.holdings[at].iter().enumerate().take(tokens.len()) {
            parent = Some(self.pool.record(parent, &tokens[index..=index], block));
            self.contents.insert(block, tokens[..=index].to_vec());
        }
    }

    fn check(&self) {
        let held = self.held();
        assert_eq!(self.pool.used(), held.len());
        assert_eq!(
            self.pool.available() + self.pool.used(),
            self.pool.capacity()
        );
        for &block in &held {
            let holders = self.holdings.iter().flatten();
            let holders = holders.filter(|&&other| other == block).count();
            assert_eq!(self.pool.references(block) as usize, holders);
        }
        self.pool.assert_consistent();
        self.check_hits();
    }

    /// Every sequence that could be recorded is found in blocks that hold it, or not at all.
    fn check_hits(&self) {
        for bits in 0..1_u32 << MOST_TOKENS {
            let tokens: Vec<u32> = (0..MOST_TOKENS).map(|bit| bits >> bit & 1).collect();
            let found = self.pool.find_prefix(&tokens, 1).blocks;
            for (index, block) in found.iter().enumerate() {
                let contents = self.contents.get(block).map(Vec::as_slice);
                assert_eq!(contents, Some(&tokens[..=index]), "{block:?}");
            }
        }
    }
}

proptest! {
    #[test]
    fn no_block_is_leaked_or_handed_out_twice_or_found_by_what_it_does_not_hold(
        capacity in 0_usize..24,
        actions in prop::collection::vec(action(), 0..80),
    ) {
        let mut checked = Checked::new(capacity);
        for action in actions {
            checked.apply(action);
            checked.check();
        }
        let Checked { mut pool, holdings, .. } = checked;
        for blocks in holdings {
            pool.free(&blocks);
        }
        prop_assert_eq!(pool.available(), capacity);
        let all: HashSet<BlockId> = pool.allocate(capacity).unwrap().into_iter().collect();
        prop_assert_eq!(all.len(), capacity);
        pool.assert_consistent();
    }
}
