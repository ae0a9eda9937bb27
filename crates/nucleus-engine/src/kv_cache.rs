//! Which blocks of the cache belong to which sequence.

/// A block of the KV cache: `block_size` consecutive positions of one sequence, in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);
