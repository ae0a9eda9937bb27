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
