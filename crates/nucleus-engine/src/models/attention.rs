//! Causal attention that reads keys and values where they lie in the paged cache.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::cache::{BLOCK_SIZE, HeadBlock, LayerCache, Number};
use super::linear::prefetch;
use super::simd::{self, Kernel, Simd, add_scaled, exp, soft_cap};
use crate::kv_cache::BlockId;

/// One query row: a token at its position, in its sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// The sequence's blocks in order.
    pub(super) blocks: &'a [BlockId],
    /// The row attends to the positions `0..=position`.
    pub(super) position: usize,
}

/// How a layer attends.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Attention {
    /// What a product `q·k` is multiplied by: `1 / √head_dim` in most models.
    pub(super) scale: f32,
    /// Bound of the scores: a score `s` becomes `cap·tanh(s / cap)` (Gemma 2). `None` leaves them as they are.
    pub(super) soft_cap: Option<f32>,
    /// Positions that a row attends to, itself the last of them (sliding window); `None` for all up to its own. Never 0.
    pub(super) window: Option<usize>,
}

/// Attention of every row over its own sequence: per head, `softmax(scale·q·Kᵀ)·V`.
///
/// `queries` and `output` are `[rows, heads, head_dim]`; query head `h` reads key head `h / (heads / kv_heads)`
/// (grouped-query attention, Ainslie et al. 2023). The keys and values of the rows themselves must be in the cache.
///
/// A row's result depends on its query and on the keys and values of its positions in their order, and on nothing
/// else: not on the other rows, on where the blocks lie, or on the number of threads.
pub(super) fn attend<N: Number>(
    cache: &LayerCache<N>,
    attention: Attention,
    rows: &[Row<'_>],
    queries: &[f32],
    output: &mut [f32],
) {
    let kv_heads = cache.shape().kv_heads;
    let heads_per_task = heads_per_task(rows.len(), kv_heads);
    let tasks_per_row = kv_heads / heads_per_task;
    let width = queries.len() / rows.len() / tasks_per_row;
    let task = |(index, (queries, output)): (usize, (&[f32], &mut [f32]))| {
        let first_head = index % tasks_per_row * heads_per_task;
        let keys = Keys {
            cache,
            attention,
            row: rows[index / tasks_per_row],
            first_head,
            heads: heads_per_task,
        };
        SCORES.with_borrow_mut(|scores| {
            simd::run(AttendHeads {
                keys,
                queries,
                output,
                scores,
            });
        });
    };
    queries
        .par_chunks(width)
        .zip(output.par_chunks_mut(width))
        .with_min_len(KEYS_PER_JOB.div_ceil(keys_per_row(attention, rows) * heads_per_task))
        .enumerate()
        .for_each(task);
}

thread_local! {
    /// Scores of some heads, kept from call to call: `[heads, blocks, BLOCK_SIZE]`.
    static SCORES: RefCell<Vec<[f32; BLOCK_SIZE]>> = const { RefCell::new(Vec::new()) };
}

/// Keys that a job should read at least, so that handing it to a thread is worth it.
const KEYS_PER_JOB: usize = 256;

/// Tasks a thread should have at least, where there are as many heads, so that fast threads can take over from slow ones.
const TASKS_PER_THREAD: usize = 4;

/// Key heads of a row that one task takes: they lie side by side in a block, and are read best together.
fn heads_per_task(rows: usize, kv_heads: usize) -> usize {
    let tasks = rayon::current_num_threads() * TASKS_PER_THREAD;
    let enough =
        |&heads: &usize| kv_heads.is_multiple_of(heads) && rows * kv_heads / heads >= tasks;
    (1..=kv_heads).rev().find(enough).unwrap_or(1)
}

/// Positions that a row attends to on average, at least 1.
fn keys_per_row(attention: Attention, rows: &[Row<'_>]) -> usize {
    let positions = rows
        .iter()
        .map(|row| attention.positions(row.position).len());
    positions.sum::<usize>() / rows.len()
}

impl Attention {
    /// The positions that a row attends to.
    fn positions(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        let start = self
            .window
            .map_or(0, |window| end.saturating_sub(window.max(1)));
        start..end
    }
}

/// The cached keys and values of some heads that a row attends to.
#[derive(Clone, Copy)]
struct Keys<'a, N> {
    cache: &'a LayerCache<N>,
    attention: Attention,
    row: Row<'a>,
    first_head: usize,
    heads: usize,
}

/// What the processor reads from memory at once.
const LINE_BYTES: usize = 64;

/// Head blocks between the one that is read and the one that is asked for.
const PREFETCH_DISTANCE: usize = 2;

impl<'a, N: Number> Keys<'a, N> {
    /// Positions that the row attends to.
    fn positions(&self) -> Range<usize> {
        self.attention.positions(self.row.position)
    }

    /// Blocks that hold them, by their places in the sequence.
    fn blocks(&self) -> Range<usize> {
        let Range { start, end } = self.positions();
        start / BLOCK_SIZE..end.div_ceil(BLOCK_SIZE)
    }

    /// The positions, counted from the beginning of the first of the blocks.
    fn slots(&self) -> Range<usize> {
        let Range { start, end } = self.positions();
        let first = self.blocks().start * BLOCK_SIZE;
        start - first..end - first
    }

    /// The parts of the blocks, head by head in block by block, each with one that will be read soon: blocks lie apart, and the
    /// processor, which foresees only what follows in memory, has to be told. After the last come the first, again.
    #[inline(always)]
    fn head_blocks(self) -> impl Iterator<Item = Part<'a, N>> {
        let blocks = self.blocks();
        let count = blocks.len() * self.heads;
        let part = move |index: usize| {
            let block = self.row.blocks[blocks.start + index / self.heads];
            let head = self.first_head + index % self.heads;
            self.cache.head_block(block, head)
        };
        (0..count).map(move |index| Part {
            block: index / self.heads,
            head: index % self.heads,
            now: part(index),
            soon: part((index + PREFETCH_DISTANCE) % count),
        })
    }
}

/// One head's part of one block.
struct Part<'a, N> {
    /// The block, counted from the first that is read.
    block: usize,
    /// The head, counted from the first.
    head: usize,
    now: HeadBlock<'a, N>,
    soon: HeadBlock<'a, N>,
}

/// Some key heads of a row, and the query heads that share them; `queries` and `output` are `[heads, head_dim]`.
struct AttendHeads<'a, N> {
    keys: Keys<'a, N>,
    queries: &'a [f32],
    output: &'a mut [f32],
    scores: &'a mut Vec<[f32; BLOCK_SIZE]>,
}

impl<N: Number> Kernel for AttendHeads<'_, N> {
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Self {
            keys,
            queries,
            output,
            scores,
        } = self;
        let head_dim = keys.cache.shape().head_dim;
        let group = queries.len() / head_dim / keys.heads;
        let (blocks, slots) = (keys.blocks().len(), keys.slots());
        scores.clear();
        scores.resize(keys.heads * group * blocks, [0.0; BLOCK_SIZE]);
        for part in keys.head_blocks() {
            let score = Score {
                scale: keys.attention.scale,
                queries: &queries[part.head * group * head_dim..][..group * head_dim],
                scores: &mut scores[part.head * group * blocks..][..group * blocks],
                blocks,
                part,
            };
            by_fours(simd, group, score);
        }
        for scores in scores.chunks_exact_mut(blocks) {
            let scores = &mut scores.as_flattened_mut()[slots.clone()];
            if let Some(cap) = keys.attention.soft_cap {
                soft_cap(simd, scores, cap);
            }
            softmax(simd, scores);
        }
        output.fill(0.0);
        for part in keys.head_blocks() {
            let first = part.block * BLOCK_SIZE;
            let gather = Gather {
                slots: slots.start.saturating_sub(first)..(slots.end - first).min(BLOCK_SIZE),
                weights: &scores[part.head * group * blocks..][..group * blocks],
                output: &mut output[part.head * group * head_dim..][..group * head_dim],
                blocks,
                head_dim,
                part,
            };
            by_fours(simd, group, gather);
        }
    }
}

/// Work on one head's part of a block for the query heads that share it.
trait ForHeads {
    /// Does it for `HEADS` heads from `first` on.
    fn run<S: Simd, const HEADS: usize>(&mut self, simd: S, first: usize);
}

/// Takes the heads by fours, as many as fit into the vector registers, and what is left by two and one.
#[inline(always)]
fn by_fours<S: Simd>(simd: S, heads: usize, mut work: impl ForHeads) {
    let mut head = 0;
    while head + 4 <= heads {
        work.run::<S, 4>(simd, head);
        head += 4;
    }
    if head + 2 <= heads {
        work.run::<S, 2>(simd, head);
        head += 2;
    }
    if head < heads {
        work.run::<S, 1>(simd, head);
    }
}

/// `scores[head][slot] = scale·q·k`; before the first position and beyond the last, of whatever the cache holds.
struct Score<'a, N> {
    part: Part<'a, N>,
    scale: f32,
    /// `[heads, head_dim]`
    queries: &'a [f32],
    /// `[heads, blocks]`
    scores: &'a mut [[f32; BLOCK_SIZE]],
    blocks: usize,
}

impl<N: Number> ForHeads for Score<'_, N> {
    #[inline(always)]
    fn run<S: Simd, const HEADS: usize>(&mut self, simd: S, first: usize) {
        let keys = self.part.now.keys;
        let queries: [&[f32]; HEADS] =
            std::array::from_fn(|head| &self.queries[(first + head) * keys.len()..][..keys.len()]);
        let mut sums = [[0.0; BLOCK_SIZE]; HEADS];
        for (i, (keys, soon)) in keys.iter().zip(self.part.soon.keys).enumerate() {
            if i.is_multiple_of(LINE_BYTES / size_of_val(soon)) {
                prefetch(soon);
            }
            let keys = N::values(simd, keys);
            for head in 0..HEADS {
                add_scaled(simd, &mut sums[head], queries[head][i], &keys);
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            let at = (first + head) * self.blocks + self.part.block;
            self.scores[at] = sums.map(|sum| sum * self.scale);
        }
    }
}

/// Values that are gathered side by side: a vector register.
const COLUMNS: usize = 16;

/// `output[head] += Σ weights[head][slot]·v`, in the order of the positions.
struct Gather<'a, N> {
    part: Part<'a, N>,
    /// The block's positions that are attended to.
    slots: Range<usize>,
    /// `[heads, blocks]`
    weights: &'a [[f32; BLOCK_SIZE]],
    blocks: usize,
    /// `[heads, head_dim]`
    output: &'a mut [f32],
    head_dim: usize,
}

impl<N: Number> ForHeads for Gather<'_, N> {
    #[inline(always)]
    fn run<S: Simd, const HEADS: usize>(&mut self, simd: S, first: usize) {
        let head_dim = self.head_dim;
        let slots = self.slots.start * head_dim..self.slots.end * head_dim;
        let values = self.part.now.values[slots].chunks_exact(head_dim);
        let weights: [&[f32]; HEADS] = std::array::from_fn(|head| {
            let weights = &self.weights[(first + head) * self.blocks + self.part.block];
            &weights[self.slots.clone()]
        });
        let output = &mut self.output[first * head_dim..(first + HEADS) * head_dim];
        let whole = head_dim - head_dim % COLUMNS;
        for column in (0..whole).step_by(COLUMNS) {
            if column.is_multiple_of(LINE_BYTES / size_of::<N>()) {
                let soon = self.part.soon.values[column..].iter().step_by(head_dim);
                soon.for_each(prefetch);
            }
            let mut sums = [[0.0; COLUMNS]; HEADS];
            for (head, sums) in sums.iter_mut().enumerate() {
                sums.copy_from_slice(&output[head * head_dim + column..][..COLUMNS]);
            }
            for (slot, values) in values.clone().enumerate() {
                let Some(values) = values[column..].first_chunk() else {
                    continue;
                };
                let values = N::values(simd, values);
                for head in 0..HEADS {
                    add_scaled(simd, &mut sums[head], weights[head][slot], &values);
                }
            }
            for (head, sums) in sums.iter().enumerate() {
                output[head * head_dim + column..][..COLUMNS].copy_from_slice(sums);
            }
        }
        for column in whole..head_dim {
            for (slot, values) in values.clone().enumerate() {
                let value = values[column].value();
                for head in 0..HEADS {
                    let sum = &mut output[head * head_dim + column];
                    *sum = simd.multiply_add(weights[head][slot], value, *sum);
                }
            }
        }
    }
}

/// Turns scores into weights that sum to 1, in place: `e^(s - max) / Σ e^(s - max)`.
#[inline(always)]
fn softmax<S: Simd>(simd: S, scores: &mut [f32]) {
    let max = scores.iter().fold(
        f32::NEG_INFINITY,
        |max, &score| if score > max { score } else { max },
    );
    for score in scores.iter_mut() {
        *score = exp(simd, *score - max);
    }
    let scale = 1.0 / simd::sum(scores);
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::{CacheShape, Entry};
    use super::super::simd::{half, to_half};
    use super::*;
    use crate::model::KvType;
    use half::f16;
    use proptest::prelude::*;

    fn cache(kv_heads: usize, head_dim: usize, blocks: usize) -> LayerCache<f32> {
        LayerCache::new(CacheShape {
            blocks,
            kv_heads,
            head_dim,
            kv_type: KvType::F32,
        })
    }

    /// As most models attend.
    fn plain(cache: &LayerCache<f32>) -> Attention {
        Attention {
            scale: 1.0 / (cache.shape().head_dim as f32).sqrt(),
            soft_cap: None,
            window: None,
        }
    }

    fn attention(cache: &LayerCache<f32>, row: Row<'_>, queries: &[f32]) -> Vec<f32> {
        attention_by(plain(cache), cache, row, queries)
    }

    fn attention_by(
        attention: Attention,
        cache: &LayerCache<f32>,
        row: Row<'_>,
        queries: &[f32],
    ) -> Vec<f32> {
        let mut output = vec![7.0; queries.len()];
        attend(cache, attention, &[row], queries, &mut output);
        output
    }

    fn assert_close(actual: &[f32], expected: &[f32], bound: f32) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= bound, "{actual:?} is not {expected:?}");
        }
    }

    const FIRST: &[BlockId] = &[BlockId(0)];

    #[test]
    fn the_first_position_sees_only_itself() {
        let mut cache = cache(1, 4, 1);
        cache.write(
            FIRST,
            0,
            Entry {
                keys: &[1.0; 4],
                values: &[1.0, 2.0, 3.0, 4.0],
            },
        );
        cache.write(
            FIRST,
            1,
            Entry {
                keys: &[f32::NAN; 4],
                values: &[f32::NAN; 4],
            },
        );
        let output = attention(
            &cache,
            Row {
                blocks: FIRST,
                position: 0,
            },
            &[1.0; 4],
        );
        assert_close(&output, &[1.0, 2.0, 3.0, 4.0], 1e-6);
    }

    #[test]
    fn weights_are_the_softmax_of_scaled_scores() {
        // q·k is 0 and 2·ln 3, √4 = 2: weights 1/4 and 3/4
        let mut cache = cache(1, 4, 1);
        cache.write(
            FIRST,
            0,
            Entry {
                keys: &[0.0; 4],
                values: &[4.0, 0.0, 0.0, -4.0],
            },
        );
        cache.write(
            FIRST,
            1,
            Entry {
                keys: &[0.0, 2.0, 0.0, 0.0],
                values: &[8.0, 0.0, 0.0, -8.0],
            },
        );
        let output = attention(
            &cache,
            Row {
                blocks: FIRST,
                position: 1,
            },
            &[5.0, 3.0_f32.ln(), 5.0, 5.0],
        );
        assert_close(&output, &[7.0, 0.0, 0.0, -7.0], 1e-5);
    }

    #[test]
    fn equal_keys_average_the_values_of_all_blocks() {
        let mut cache = cache(1, 1, 3);
        let blocks = [BlockId(2), BlockId(0)];
        for position in 0..20 {
            cache.write(
                &blocks,
                position,
                Entry {
                    keys: &[1.0],
                    values: &[position as f32],
                },
            );
        }
        let output = attention(
            &cache,
            Row {
                blocks: &blocks,
                position: 19,
            },
            &[1.0],
        );
        assert_close(&output, &[9.5], 1e-5);
    }

    /// Equal keys, and values that count the positions; what a window leaves out is no number.
    fn counting(positions: usize, window: usize) -> (LayerCache<f32>, Vec<BlockId>) {
        let blocks: Vec<BlockId> = (0..positions.div_ceil(BLOCK_SIZE) as u32)
            .map(BlockId)
            .collect();
        let mut cache = cache(1, 1, blocks.len());
        for position in 0..positions {
            let value = if position + window < positions {
                f32::NAN
            } else {
                position as f32
            };
            cache.write(
                &blocks,
                position,
                Entry {
                    keys: &[1.0],
                    values: &[value],
                },
            );
        }
        (cache, blocks)
    }

    #[test]
    fn a_window_ends_with_the_row_itself() {
        for (positions, window) in [
            (1, 1),
            (5, 3),
            (5, 9),
            (17, 1),
            (33, 16),
            (40, 17),
            (48, 31),
            (64, 16),
        ] {
            let (cache, blocks) = counting(positions, window);
            let attention = Attention {
                window: Some(window),
                ..plain(&cache)
            };
            let row = Row {
                blocks: &blocks,
                position: positions - 1,
            };
            let attended = window.min(positions);
            let mean = positions as f32 - (attended as f32 + 1.0) / 2.0;
            let output = attention_by(attention, &cache, row, &[1.0]);
            assert_close(&output, &[mean], 1e-5);
        }
    }

    #[test]
    fn a_soft_cap_bounds_the_scores() {
        // Scores 0 and 1000 under a cap of ln 3: weights 1/4 and 3/4.
        let mut cache = cache(1, 1, 1);
        for (position, key) in [0.0, 1000.0].into_iter().enumerate() {
            let values = &[8.0 * position as f32];
            cache.write(
                FIRST,
                position,
                Entry {
                    keys: &[key],
                    values,
                },
            );
        }
        let attention = Attention {
            scale: 1.0,
            soft_cap: Some(3.0_f32.ln()),
            window: None,
        };
        let row = Row {
            blocks: FIRST,
            position: 1,
        };
        assert_close(&attention_by(attention, &cache, row, &[1.0]), &[6.0], 1e-5);
    }

    #[test]
    fn query_heads_share_their_groups_key_head() {
        let mut cache = cache(2, 1, 1);
        cache.write(
            FIRST,
            0,
            Entry {
                keys: &[0.0; 2],
                values: &[1.0, 2.0],
            },
        );
        for group in 1..=9 {
            let output = attention(
                &cache,
                Row {
                    blocks: FIRST,
                    position: 0,
                },
                &vec![0.0; 2 * group],
            );
            let expected = [vec![1.0; group], vec![2.0; group]].concat();
            assert_close(&output, &expected, 0.0);
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let mut cache = cache(1, 4, 1);
        cache.write(
            FIRST,
            0,
            Entry {
                keys: &[1e18; 4],
                values: &[1.0; 4],
            },
        );
        cache.write(
            FIRST,
            1,
            Entry {
                keys: &[-1e18; 4],
                values: &[2.0; 4],
            },
        );
        let output = attention(
            &cache,
            Row {
                blocks: FIRST,
                position: 1,
            },
            &[1e18; 4],
        );
        assert_close(&output, &[1.0; 4], 0.0);
    }

    #[test]
    fn a_value_that_is_not_a_number_stays_visible() {
        let mut cache = cache(1, 4, 1);
        cache.write(
            FIRST,
            0,
            Entry {
                keys: &[1.0; 4],
                values: &[1.0; 4],
            },
        );
        cache.write(
            FIRST,
            1,
            Entry {
                keys: &[f32::NAN; 4],
                values: &[1.0; 4],
            },
        );
        let output = attention(
            &cache,
            Row {
                blocks: FIRST,
                position: 1,
            },
            &[1.0; 4],
        );
        assert!(output.iter().all(|value| value.is_nan()));
    }

    /// The attention of a row in f64, one query head at a time, from keys and values `[position][kv_head][head_dim]`.
    struct Reference<'a> {
        keys: &'a [Vec<f32>],
        values: &'a [Vec<f32>],
        head_dim: usize,
        attention: Attention,
    }

    impl Reference<'_> {
        /// `queries` is `[heads, head_dim]`.
        fn row(&self, position: usize, queries: &[f32]) -> Vec<f64> {
            let heads = queries.len() / self.head_dim;
            let group = heads / (self.keys[0].len() / self.head_dim);
            let head = |(head, query)| self.head(position, query, head / group);
            queries
                .chunks_exact(self.head_dim)
                .enumerate()
                .flat_map(head)
                .collect()
        }

        fn head(&self, position: usize, query: &[f32], kv_head: usize) -> Vec<f64> {
            let part = kv_head * self.head_dim..(kv_head + 1) * self.head_dim;
            let Attention {
                scale,
                soft_cap,
                window,
            } = self.attention;
            let seen = position + 1 - window.unwrap_or(usize::MAX).min(position + 1)..=position;
            let score = |key: &Vec<f32>| {
                let products = key[part.clone()].iter().zip(query);
                let dot: f64 = products.map(|(&k, &q)| f64::from(k) * f64::from(q)).sum();
                let score = dot * f64::from(scale);
                soft_cap.map_or(score, |cap| {
                    f64::from(cap) * (score / f64::from(cap)).tanh()
                })
            };
            let scores: Vec<f64> = self.keys[seen.clone()].iter().map(score).collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            let values = &self.values[seen];
            let mean = |i: usize| {
                let weighted = values
                    .iter()
                    .zip(&weights)
                    .map(|(v, w)| f64::from(v[i]) * w);
                weighted.sum::<f64>() / total
            };
            part.map(mean).collect()
        }
    }

    /// Heads, and a sequence's queries, keys and values, a position a row.
    #[derive(Debug)]
    struct Case {
        kv_heads: usize,
        head_dim: usize,
        queries: Vec<Vec<f32>>,
        keys: Vec<Vec<f32>>,
        values: Vec<Vec<f32>>,
    }

    fn case() -> impl Strategy<Value = Case> {
        let shape = (1_usize..4, 1_usize..8, 1_usize..36, 1_usize..60);
        shape.prop_flat_map(|(kv_heads, group, head_dim, positions)| {
            let rows = move |width: usize| {
                prop::collection::vec(prop::collection::vec(-2.0_f32..2.0, width), positions)
            };
            let kv_width = kv_heads * head_dim;
            let halves = || {
                rows(kv_width).prop_map(|mut rows| {
                    let values = rows.iter_mut().flatten();
                    values.for_each(|value| *value = half(to_half(*value)));
                    rows
                })
            };
            (rows(kv_width * group), halves(), halves()).prop_map(move |(queries, keys, values)| {
                Case {
                    kv_heads,
                    head_dim,
                    queries,
                    keys,
                    values,
                }
            })
        })
    }

    fn any_attention() -> impl Strategy<Value = Attention> {
        let window = prop::option::of(1_usize..50);
        let soft_cap = prop::option::of(1.0_f32..60.0);
        (0.05_f32..0.5, soft_cap, window).prop_map(|(scale, soft_cap, window)| Attention {
            scale,
            soft_cap,
            window,
        })
    }

    proptest! {
        #[test]
        fn every_row_equals_the_reference_and_itself_alone(case in case(), attention in any_attention(), reverse in any::<bool>()) {
            let Case { kv_heads, head_dim, queries, keys, values } = &case;
            let mut blocks: Vec<BlockId> = (0..keys.len().div_ceil(BLOCK_SIZE) as u32).map(BlockId).collect();
            if reverse {
                blocks.reverse();
            }
            let mut cache = cache(*kv_heads, *head_dim, blocks.len());
            let shape = CacheShape { kv_type: KvType::F16, ..cache.shape() };
            let mut halves = LayerCache::<f16>::new(shape);
            for position in 0..keys.len() {
                let entry = Entry { keys: &keys[position], values: &values[position] };
                cache.write(&blocks, position, entry);
                halves.write(&blocks, position, entry);
            }
            let rows: Vec<Row<'_>> = (0..keys.len()).map(|position| Row { blocks: &blocks, position }).collect();
            let width = queries[0].len();
            let mut together = vec![0.0; keys.len() * width];
            attend(&cache, attention, &rows, &queries.concat(), &mut together);
            // All keys and values are halves.
            let mut of_halves = vec![0.0; keys.len() * width];
            attend(&halves, attention, &rows, &queries.concat(), &mut of_halves);
            prop_assert_eq!(&of_halves, &together);
            let reference = Reference { keys, values, head_dim: *head_dim, attention };
            for (position, together) in together.chunks_exact(width).enumerate() {
                let alone = attention_by(attention, &cache, rows[position], &queries[position]);
                prop_assert_eq!(&alone, together);
                let expected = reference.row(position, &queries[position]);
                for (&a, e) in alone.iter().zip(&expected) {
                    prop_assert!((f64::from(a) - e).abs() < 2e-5, "{:?} is not {:?}", alone, expected);
                }
            }
        }
    }
}
