//! The tensors of the paged KV cache.

use crate::kv_cache::BlockId;
use crate::model::KvLayout;

/// Shape of the cache of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheShape {
    /// Blocks and positions in a block.
    pub(super) layout: KvLayout,
    /// Key and value heads.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
}

impl CacheShape {
    /// Values of the keys (or of the values) of one block.
    fn block_len(&self) -> usize {
        self.kv_heads * self.head_len()
    }

    /// Values of one head in one block.
    fn head_len(&self) -> usize {
        self.layout.block_size * self.head_dim
    }

    /// Bytes of the cache of `layers` layers; `None` if they do not fit into 64 bits.
    pub(super) fn bytes(&self, layers: usize) -> Option<u64> {
        [
            self.layout.blocks,
            self.layout.block_size,
            self.kv_heads,
            self.head_dim,
            layers,
            2,
            size_of::<f32>(),
        ]
        .into_iter()
        .try_fold(1_u64, |product, factor| product.checked_mul(factor as u64))
    }
}

/// Keys and values of one layer, `[blocks, kv_heads, block_size, head_dim]` each.
///
/// Within a block a head's positions lie side by side, since attention reads the cache head by head.
#[derive(Debug)]
pub(super) struct LayerCache {
    shape: CacheShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// One head's part of a block: `[block_size, head_dim]` keys and values.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadBlock<'a> {
    /// The keys.
    pub(super) keys: &'a [f32],
    /// The values.
    pub(super) values: &'a [f32],
}

/// The key and value of every head at one position, `[kv_heads, head_dim]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The keys.
    pub(super) keys: &'a [f32],
    /// The values.
    pub(super) values: &'a [f32],
}

impl LayerCache {
    /// An empty cache.
    pub(super) fn new(shape: CacheShape) -> Self {
        let len = shape.layout.blocks * shape.block_len();
        Self {
            shape,
            keys: vec![0.0; len],
            values: vec![0.0; len],
        }
    }

    /// The cache's shape.
    pub(super) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Writes the keys and values of a position: slot `position % block_size` of the block that holds it.
    pub(super) fn write(&mut self, blocks: &[BlockId], position: usize, entry: Entry<'_>) {
        let CacheShape {
            layout: KvLayout { block_size, .. },
            head_dim,
            ..
        } = self.shape;
        let block = blocks[position / block_size].index() * self.shape.block_len();
        let slot = position % block_size * head_dim;
        for (head, (key, value)) in entry
            .keys
            .chunks_exact(head_dim)
            .zip(entry.values.chunks_exact(head_dim))
            .enumerate()
        {
            let at = block + head * self.shape.head_len() + slot;
            self.keys[at..at + head_dim].copy_from_slice(key);
            self.values[at..at + head_dim].copy_from_slice(value);
        }
    }

    /// One head's part of a block.
    #[inline(always)]
    pub(super) fn head_block(&self, block: BlockId, head: usize) -> HeadBlock<'_> {
        let len = self.shape.head_len();
        let at = block.index() * self.shape.block_len() + head * len;
        HeadBlock {
            keys: &self.keys[at..at + len],
            values: &self.values[at..at + len],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> CacheShape {
        CacheShape {
            layout: KvLayout {
                block_size: 2,
                blocks: 3,
            },
            kv_heads: 2,
            head_dim: 1,
        }
    }

    #[test]
    fn a_position_lands_in_its_block_slot_and_head() {
        let mut cache = LayerCache::new(shape());
        let blocks = [BlockId(2), BlockId(0)];
        cache.write(
            &blocks,
            1,
            Entry {
                keys: &[1.0, 2.0],
                values: &[3.0, 4.0],
            },
        );
        cache.write(
            &blocks,
            2,
            Entry {
                keys: &[5.0, 6.0],
                values: &[7.0, 8.0],
            },
        );
        assert_eq!(cache.head_block(BlockId(2), 0).keys, [0.0, 1.0]);
        assert_eq!(cache.head_block(BlockId(2), 1).keys, [0.0, 2.0]);
        assert_eq!(cache.head_block(BlockId(2), 1).values, [0.0, 4.0]);
        assert_eq!(cache.head_block(BlockId(0), 0).values, [7.0, 0.0]);
        assert_eq!(cache.head_block(BlockId(1), 0).keys, [0.0, 0.0]);
    }

    #[test]
    fn bytes_count_keys_and_values_of_every_layer() {
        // 3 blocks · 2 positions · 2 heads · 1 value · 2 tensors · 4 bytes, and two layers
        assert_eq!(shape().bytes(2), Some(192));
        assert_eq!(
            CacheShape {
                kv_heads: usize::MAX,
                ..shape()
            }
            .bytes(2),
            None
        );
    }
}
