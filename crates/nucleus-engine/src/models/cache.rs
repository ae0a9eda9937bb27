//! The tensors of the paged KV cache.

use bytemuck::Pod;
use half::f16;

use super::pages::Pages;
use super::simd::{self, Kernel, Simd};
use crate::kv_cache::BlockId;
use crate::model::{KvLayout, KvType};

/// Positions in a block: a vector register of keys.
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
    /// What keys and values are held in.
    pub(super) kv_type: KvType,
}

impl CacheShape {
    /// The layout as the scheduler needs it.
    pub(super) fn layout(&self) -> KvLayout {
        KvLayout {
            block_size: BLOCK_SIZE,
            blocks: self.blocks,
            value_bytes: self.kv_type.bytes(),
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
            self.kv_type.bytes(),
        ]
        .into_iter()
        .try_fold(1_u64, |product, factor| product.checked_mul(factor as u64))
    }
}

/// A number of the cache.
pub(super) trait Number: Pod + Send + Sync {
    /// What the number is worth.
    fn value(self) -> f32;

    /// The number for a value.
    fn of(value: f32) -> Self;

    /// [`value`](Self::value), of several at once.
    fn values<S: Simd>(simd: S, numbers: &[Self; 16]) -> [f32; 16];

    /// [`of`](Self::of), for several at once.
    fn of_values<S: Simd>(simd: S, values: &[f32; 16]) -> [Self; 16];
}

impl Number for f16 {
    #[inline(always)]
    fn value(self) -> f32 {
        simd::half(self.to_bits())
    }

    #[inline(always)]
    fn of(value: f32) -> Self {
        Self::from_bits(simd::to_half(value))
    }

    #[inline(always)]
    fn values<S: Simd>(simd: S, numbers: &[Self; 16]) -> [f32; 16] {
        simd.halves(&numbers.map(Self::to_bits))
    }

    #[inline(always)]
    fn of_values<S: Simd>(simd: S, values: &[f32; 16]) -> [Self; 16] {
        simd.to_halves(values).map(Self::from_bits)
    }
}

impl Number for f32 {
    #[inline(always)]
    fn value(self) -> f32 {
        self
    }

    #[inline(always)]
    fn of(value: f32) -> Self {
        value
    }

    #[inline(always)]
    fn values<S: Simd>(_: S, numbers: &[Self; 16]) -> [f32; 16] {
        *numbers
    }

    #[inline(always)]
    fn of_values<S: Simd>(_: S, values: &[f32; 16]) -> [Self; 16] {
        *values
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(super) enum AnyLayerCache {
    F16(LayerCache<f16>),
    F32(LayerCache<f32>),
}

impl AnyLayerCache {
    /// An empty cache.
    pub(super) fn new(shape: CacheShape) -> Self {
        match shape.kv_type {
            KvType::F16 => Self::F16(LayerCache::new(shape)),
            KvType::F32 => Self::F32(LayerCache::new(shape)),
        }
    }

    /// [`LayerCache::write`].
    pub(super) fn write(&mut self, blocks: &[BlockId], position: usize, entry: Entry<'_>) {
        match self {
            Self::F16(cache) => cache.write(blocks, position, entry),
            Self::F32(cache) => cache.write(blocks, position, entry),
        }
    }

    /// [`LayerCache::copy_block`].
    pub(super) fn copy_block(&mut self, from: BlockId, to: BlockId) {
        match self {
            Self::F16(cache) => cache.copy_block(from, to),
            Self::F32(cache) => cache.copy_block(from, to),
        }
    }
}

/// Keys and values of one layer as numbers of one type.
///
/// Keys are `[blocks, kv_heads, head_dim, BLOCK_SIZE]`: attention multiplies one number of a query with all keys of a
/// block at once. Values are `[blocks, kv_heads, BLOCK_SIZE, head_dim]`.
#[derive(Debug)]
pub(super) struct LayerCache<N> {
    shape: CacheShape,
    keys: Pages<[N; BLOCK_SIZE]>,
    values: Pages<N>,
    /// A position's keys or values.
    numbers: Vec<N>,
}

/// One head's part of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct HeadBlock<'a, N> {
    /// The keys, `[head_dim, BLOCK_SIZE]`.
    pub(super) keys: &'a [[N; BLOCK_SIZE]],
    /// The values, `[BLOCK_SIZE, head_dim]`.
    pub(super) values: &'a [N],
}

/// The key and value of every head at one position, `[kv_heads, head_dim]` each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'a> {
    /// The keys.
    pub(super) keys: &'a [f32],
    /// The values.
    pub(super) values: &'a [f32],
}

impl<N: Number> LayerCache<N> {
    /// An empty cache.
    pub(super) fn new(shape: CacheShape) -> Self {
        let rows = shape.blocks * shape.kv_heads * shape.head_dim;
        Self {
            shape,
            keys: Pages::zeroed(rows),
            values: Pages::zeroed(rows * BLOCK_SIZE),
            numbers: vec![N::zeroed(); shape.kv_heads * shape.head_dim],
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
        let numbers = &mut self.numbers;
        convert(entry.keys, numbers);
        let keys = self.keys[block * kv_heads * head_dim..].iter_mut();
        for (column, &key) in keys.zip(&*numbers) {
            column[slot] = key;
        }
        convert(entry.values, numbers);
        for (head, values) in numbers.chunks_exact(head_dim).enumerate() {
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
    pub(super) fn head_block(&self, block: BlockId, head: usize) -> HeadBlock<'_, N> {
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

/// Makes numbers of values.
fn convert<N: Number>(values: &[f32], numbers: &mut [N]) {
    simd::run(Convert { values, numbers });
}

struct Convert<'a, N> {
    values: &'a [f32],
    numbers: &'a mut [N],
}

impl<N: Number> Kernel for Convert<'_, N> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (values, last_values) = self.values.as_chunks();
        let (numbers, last_numbers) = self.numbers.as_chunks_mut();
        for (values, numbers) in values.iter().zip(numbers) {
            *numbers = N::of_values(simd, values);
        }
        for (&value, number) in last_values.iter().zip(last_numbers) {
            *number = N::of(value);
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
            kv_type: KvType::F16,
        }
    }

    #[test]
    fn a_position_lands_in_its_block_slot_and_head() {
        let mut cache = LayerCache::<f32>::new(shape());
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
        let keys = head.keys.as_flattened().iter();
        assert_eq!(keys.filter(|&&key| key != 0.0).count(), 2);
        let head = cache.head_block(BlockId(0), 0);
        assert_eq!(head.keys[1][0], -1.0);
        assert_eq!(head.values[..3], [-2.0, -2.0, 0.0]);
        let untouched = cache.head_block(BlockId(1), 0).values;
        assert!(untouched.iter().all(|&value| value == 0.0));
    }

    #[test]
    fn keys_and_values_are_rounded_to_halves() {
        let mut cache = LayerCache::<f16>::new(CacheShape {
            head_dim: 19,
            kv_heads: 1,
            ..shape()
        });
        let keys: [f32; 19] = std::array::from_fn(|i| 2048.0 + i as f32);
        let values = keys.map(|key| -100.0 * key);
        let entry = Entry {
            keys: &keys,
            values: &values,
        };
        cache.write(&[BlockId(1)], 0, entry);
        let head = cache.head_block(BlockId(1), 0);
        // From 2,048 on, every second whole number is a half; the values are beyond the largest.
        let expected = [2048.0, 2048.0, 2050.0, 2052.0];
        assert_eq!([0, 1, 2, 3].map(|i| head.keys[i][0].to_f32()), expected);
        assert_eq!([17, 18].map(|i| head.keys[i][0].to_f32()), [2064.0, 2066.0]);
        assert_eq!([0, 18].map(|i| head.values[i].to_f32()), [-65_504.0; 2]);
    }

    #[test]
    fn a_copied_block_has_the_keys_and_values_of_the_other_and_no_more() {
        let mut cache = LayerCache::<f32>::new(shape());
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
        let before = cache.keys.to_vec();
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
        // 3 blocks of 16 positions, 2 heads of 2 values, keys and values, 2 bytes each, and 5 layers
        assert_eq!(shape().bytes(5), Some(3 * 16 * 2 * 2 * 2 * 2 * 5));
        let kv_type = KvType::F32;
        let wide = CacheShape { kv_type, ..shape() };
        assert_eq!(wide.bytes(5), Some(2 * 3 * 16 * 2 * 2 * 2 * 2 * 5));
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
