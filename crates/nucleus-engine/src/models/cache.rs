//! The tensors of the paged KV cache.

use crate::kv_cache::BlockId;
use crate::model::KvLayout;

/// Positions in a block: two vector registers of keys.
pub const BLOCK_SIZE: usize = 16;

/// Shape of the cache of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CacheShape {
    /// Blocks in the pool.
    pub(super) blocks: usize,
    /// Key and value heads.
    pub(super) kv_heads: usize,
    /// Width of a head.
    pub(super) head_dim: usize,
}

impl CacheShape {
    /// The layout as the scheduler needs it.
    pub(super) fn layout(&self) -> KvLayout {
        KvLayout {
            block_size: BLOCK_SIZE,
            blocks: self.blocks,
            value_bytes: size_of::<f32>(),
        }
    }

    /// Bytes of the cache of `layers` layers; `None` if they do not fit into 64 bits.
    pub(super) fn bytes(&self, layers: usize) -> Option<u64> {
        [
            self.blocks,
            BLOCK_SIZE,
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

/// Keys and values of one layer.
///
/// Keys are `[blocks, kv_heads, head_dim, BLOCK_SIZE]`: attention multiplies one number of a query with all keys of a
/// block at once. Values are `[blocks, kv_heads, BLOCK_SIZE, head_dim]`.
#[derive(Debug)]
pub(super) struct LayerCache {
    shape: CacheShape,
    keys: Vec<[f32; BLOCK_SIZE]>,
    values: Vec<f32>,
}

/// One head's part of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadBlock<'a> {
    /// The keys, `[head_dim, BLOCK_SIZE]`.
    pub(super) keys: &'a [[f32; BLOCK_SIZE]],
    /// The values, `[BLOCK_SIZE, head_dim]`.
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
        let rows = shape.blocks * shape.kv_heads * shape.head_dim;
        Self {
            shape,
            keys: vec![[0.0; BLOCK_SIZE]; rows],
            values: vec![0.0; rows * BLOCK_SIZE],
        }
    }

    /// The cache's shape.
    pub(super) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Writes the keys and values of a position into the block that holds it.
    pub(super) fn write(&mut self, blocks: &[BlockId], position: usize, entry: Entry<'_>) {
        let CacheShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let (block, slot) = (blocks[position / BLOCK_SIZE].index(), position % BLOCK_SIZE);
        let keys = self.keys[block * kv_heads * head_dim..].iter_mut();
        for (column, &key) in keys.zip(entry.keys) {
            column[slot] = key;
        }
        for (head, values) in entry.values.chunks_exact(head_dim).enumerate() {
            let at = ((block * kv_heads + head) * BLOCK_SIZE + slot) * head_dim;
            self.values[at..at + head_dim].copy_from_slice(values);
        }
    }

    /// Copies all of a block into another.
    pub(super) fn copy_block(&mut self, from: BlockId, to: BlockId) {
        let rows = self.shape.kv_heads * self.shape.head_dim;
        let (from, to) = (from.index() * rows, to.index() * rows);
        self.keys.copy_within(from..from + rows, to);
        let values = from * BLOCK_SIZE..(from + rows) * BLOCK_SIZE;
        self.values.copy_within(values, to * BLOCK_SIZE);
    }

    /// One head's part of a block.
    #[inline(always)]
    pub(super) fn head_block(&self, block: BlockId, head: usize) -> HeadBlock<'_> {
        let CacheShape {
            kv_heads, head_dim, ..
        } = self.shape;
        let start = (block.index() * kv_heads + head) * head_dim;
        let rows = start..start + head_dim;
        HeadBlock {
            keys: &self.keys[rows.clone()],
            values: &self.values[rows.start * BLOCK_SIZE..rows.end * BLOCK_SIZE],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> CacheShape {
        CacheShape {
            blocks: 3,
            kv_heads: 2,
            head_dim: 2,
        }
    }

    #[test]
    fn a_position_lands_in_its_block_slot_and_head() {
        let mut cache = LayerCache::new(shape());
        let blocks = [BlockId(2), BlockId(0)];
        cache.write(
            &blocks,
            3,
            Entry {
                keys: &[1.0, 2.0, 3.0, 4.0],
                values: &[5.0, 6.0, 7.0, 8.0],
            },
        );
        cache.write(
            &blocks,
            16,
            Entry {
                keys: &[-1.0; 4],
                values: &[-2.0; 4],
            },
        );
        let head = cache.head_block(BlockId(2), 1);
        assert_eq!([head.keys[0][3], head.keys[1][3]], [3.0, 4.0]);
        assert_eq!(head.values[6..8], [7.0, 8.0]);
        assert_eq!(
            head.keys
                .as_flattened()
                .iter()
                .filter(|&&key| key != 0.0)
                .count(),
            2
        );
        let head = cache.head_block(BlockId(0), 0);
        assert_eq!(
            (head.keys[1][0], &head.values[..3]),
            (-1.0, &[-2.0, -2.0, 0.0][..])
        );
        assert!(
            cache
                .head_block(BlockId(1), 0)
                .values
                .iter()
                .all(|&value| value == 0.0)
        );
    }

    #[test]
    fn a_copied_block_has_the_keys_and_values_of_the_other_and_no_more() {
        let mut cache = LayerCache::new(shape());
        for (block, base) in [(0, 0.0), (1, 100.0), (2, 200.0)] {
            for slot in 0..BLOCK_SIZE {
                let keys: [f32; 4] = std::array::from_fn(|i| base + (4 * slot + i) as f32);
                let values = keys.map(|key| -key);
                let entry = Entry {
                    keys: &keys,
                    values: &values,
                };
                cache.write(&[BlockId(block)], slot, entry);
            }
        }
        let before = cache.keys.clone();
        cache.copy_block(BlockId(0), BlockId(2));
        for head in 0..2 {
            let (copy, original) = (
                cache.head_block(BlockId(2), head),
                cache.head_block(BlockId(0), head),
            );
            assert_eq!(copy.keys, original.keys);
            assert_eq!(copy.values, original.values);
            assert_eq!(copy.values[0], -((2 * head) as f32));
        }
        assert_eq!(cache.keys[..8], before[..8]);
    }

    #[test]
    fn bytes_count_keys_and_values_of_every_layer() {
        // 3 blocks of 16 positions, 2 heads of 2 values, keys and values, 4 bytes each, and 5 layers
        assert_eq!(shape().bytes(5), Some(3 * 16 * 2 * 2 * 2 * 4 * 5));
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
