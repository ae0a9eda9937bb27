//! What full blocks hold, so that a prompt that begins like an earlier one finds its keys and values again.
//!
//! A block's keys and values depend on all tokens up to its end. A content is therefore known by the content before it and
//! its own tokens: a chain, each link hashed with its parent. Equal hashes are compared token by token, and a content's
//! number is never given again, so a hit is exact.

use std::collections::HashMap;
use std::sync::Arc;

use super::BlockId;

/// What a full block holds: all tokens from the beginning of a sequence to the block's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentId(u64);

/// A link of the chain.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Content {
    /// What came before; `None` at the beginning of a sequence.
    parent: Option<ContentId>,
    tokens: Box<[u32]>,
}

/// Contents that can be found, and the block that holds each.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    blocks: HashMap<Arc<Content>, (ContentId, BlockId)>,
    /// The content of each block that can be found.
    of_block: HashMap<BlockId, Arc<Content>>,
    next: u64,
}

impl Contents {
    /// The block that holds these tokens behind `parent`.
    pub(super) fn find(
        &self,
        parent: Option<ContentId>,
        tokens: &[u32],
    ) -> Option<(ContentId, BlockId)> {
        let content = Content {
            parent,
            tokens: tokens.into(),
        };
        self.blocks.get(&content).copied()
    }

    /// Notes that a block holds these tokens behind `parent`, and nothing that it held before. If another one holds them already,
    /// that one goes on being found.
    pub(super) fn record(
        &mut self,
        parent: Option<ContentId>,
        tokens: &[u32],
        block: BlockId,
    ) -> ContentId {
        let known = self.find(parent, tokens);
        if known.is_none_or(|(_, holder)| holder != block) {
            self.forget(block);
        }
        if let Some((id, _)) = known {
            return id;
        }
        let id = ContentId(self.next);
        self.next += 1;
        let content = Arc::new(Content {
            parent,
            tokens: tokens.into(),
        });
        self.of_block.insert(block, Arc::clone(&content));
        self.blocks.insert(content, (id, block));
        id
    }

    /// Whether the block's content can be found.
    pub(super) fn has(&self, block: BlockId) -> bool {
        self.of_block.contains_key(&block)
    }

    /// Forgets what a block holds. What came behind it cannot be found any more either.
    pub(super) fn forget(&mut self, block: BlockId) {
        if let Some(content) = self.of_block.remove(&block) {
            self.blocks.remove(&content);
        }
    }
}

#[cfg(test)]
impl Contents {
    /// Checks that each content that can be found is the one of its block, and the other way round.
    pub(super) fn assert_consistent(&self) {
        assert_eq!(self.blocks.len(), self.of_block.len());
        for (content, (_, block)) in &self.blocks {
            let of_block = self.of_block.get(block);
            let same = of_block.is_some_and(|of_block| Arc::ptr_eq(of_block, content));
            assert!(
                same,
                "{block:?} is found by {content:?}, it holds {of_block:?}"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_tokens_behind_another_parent_are_another_content() {
        let mut contents = Contents::default();
        let first = contents.record(None, &[1, 2], BlockId(0));
        let second = contents.record(Some(first), &[1, 2], BlockId(1));
        assert_ne!(first, second);
        assert_eq!(contents.find(None, &[1, 2]), Some((first, BlockId(0))));
        assert_eq!(
            contents.find(Some(first), &[1, 2]),
            Some((second, BlockId(1)))
        );
        assert_eq!(contents.find(Some(second), &[1, 2]), None);
        assert_eq!(contents.find(None, &[2, 1]), None);
    }

    #[test]
    fn of_two_blocks_with_the_same_content_the_first_is_found() {
        let mut contents = Contents::default();
        let first = contents.record(None, &[1], BlockId(4));
        assert_eq!(contents.record(None, &[1], BlockId(5)), first);
        assert_eq!(contents.find(None, &[1]), Some((first, BlockId(4))));
        assert!(contents.has(BlockId(4)) && !contents.has(BlockId(5)));
    }

    #[test]
    fn a_forgotten_content_has_a_new_number_when_it_comes_again() {
        let mut contents = Contents::default();
        let first = contents.record(None, &[1], BlockId(0));
        let second = contents.record(Some(first), &[2], BlockId(1));
        contents.forget(BlockId(0));
        assert_eq!(contents.find(None, &[1]), None);
        let again = contents.record(None, &[1], BlockId(2));
        assert_ne!(again, first);
        assert_eq!(contents.find(Some(again), &[2]), None);
        assert_eq!(contents.find(Some(first), &[2]), Some((second, BlockId(1))));
    }
}
