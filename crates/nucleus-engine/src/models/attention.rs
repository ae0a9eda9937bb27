//! Causal attention that reads keys and values where they lie in the paged cache.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::cache::{BLOCK_SIZE, HeadBlock, LayerCache};
use super::linear::prefetch;
use super::simd::{self, Kernel, add_scaled, exp, soft_cap};
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
pub(super) fn attend(
    cache: &LayerCache,
    attention: Attention,
    rows: &[Row<'_>],
    queries: &[f32],
    output: &mut [f32],
) {
    let kv_heads = cache.shape().kv_heads;
    let group_len = queries.len() / rows.len() / kv_heads;
    let task = |(item, (queries, output)): (usize, (&[f32], &mut [f32]))| {
        let keys = Keys {
            cache,
            attention,
            row: rows[item / kv_heads],
            kv_head: item % kv_heads,
        };
        SCORES.with_borrow_mut(|scores| {
            simd::run(AttendGroup {
                keys,
                queries,
                output,
                scores,
            });
        });
    };
    queries
        .par_chunks(group_len)
        .zip(output.par_chunks_mut(group_len))
        .with_min_len(groups_per_job(attention, rows))
        .enumerate()
        .for_each(task);
}

thread_local! {
    /// Scores of some heads, kept from call to call: `[heads, blocks, BLOCK_SIZE]`.
    static SCORES: RefCell<Vec<[f32; BLOCK_SIZE]>> = const { RefCell::new(Vec::new()) };
}

/// Keys that a job should read at least, so that handing it to a thread is worth it.
const KEYS_PER_JOB: usize = 256;

/// Groups of query heads that one job takes.
fn groups_per_job(attention: Attention, rows: &[Row<'_>]) -> usize {
    let keys: usize = rows
        .iter()
        .map(|row| attention.positions(row.position).len())
        .sum();
    (KEYS_PER_JOB * rows.len()).div_ceil(keys)
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

/// The cached keys and values of one head that a row attends to.
#[derive(Clone, Copy)]
struct Keys<'a> {
    cache: &'a LayerCache,
    attention: Attention,
    row: Row<'a>,
    kv_head: usize,
}

impl<'a> Keys<'a> {
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

    /// The block after one, or, after the last, the first: what will be read next. Blocks lie apart, and the processor, which
    /// foresees only what follows in memory, has to be told.
    #[inline(always)]
    fn block_after(&self, index: usize) -> HeadBlock<'a> {
        let blocks = self.blocks();
        let next = index + 1;
        self.block(if next < blocks.end {
            next
        } else {
            blocks.start
        })
    }

    /// A block by its place in the sequence.
    #[inline(always)]
    fn block(&self, index: usize) -> HeadBlock<'a> {
        self.cache.head_block(self.row.blocks[index], self.kv_head)
    }
}

/// The query heads of a row that share a key head; `queries` and `output` are `[heads, head_dim]`.
struct AttendGroup<'a> {
    keys: Keys<'a>,
    queries: &'a [f32],
    output: &'a mut [f32],
    scores: &'a mut Vec<[f32; BLOCK_SIZE]>,
}

impl Kernel for AttendGroup<'_> {
    type Output = ();

    /// Takes the heads by fours, as many as fit into the vector registers, and what is left by two and one.
    #[inline(always)]
    fn run<const FMA: bool>(mut self) {
        let head_dim = self.keys.cache.shape().head_dim;
        let heads = self.queries.len() / head_dim;
        let mut head = 0;
        while head + 4 <= heads {
            self.attend::<FMA, 4>(head);
            head += 4;
        }
        if head + 2 <= heads {
            self.attend::<FMA, 2>(head);
            head += 2;
        }
        if head < heads {
            self.attend::<FMA, 1>(head);
        }
    }
}

impl AttendGroup<'_> {
    #[inline(always)]
    fn attend<const FMA: bool, const HEADS: usize>(&mut self, first_head: usize) {
        let head_dim = self.keys.cache.shape().head_dim;
        let heads = first_head * head_dim..(first_head + HEADS) * head_dim;
        let (queries, output) = (&self.queries[heads.clone()], &mut self.output[heads]);
        let (blocks, slots) = (self.keys.blocks().len(), self.keys.slots());
        self.scores.clear();
        self.scores.resize(HEADS * blocks, [0.0; BLOCK_SIZE]);
        score::<FMA, HEADS>(self.keys, queries, self.scores);
        for scores in self.scores.chunks_exact_mut(blocks) {
            let scores = &mut scores.as_flattened_mut()[slots.clone()];
            if let Some(cap) = self.keys.attention.soft_cap {
                soft_cap::<FMA>(scores, cap);
            }
            softmax::<FMA>(scores);
        }
        gather::<FMA, HEADS>(self.keys, self.scores, output);
    }
}

/// `scores[head][slot] = scale·q·k`; before the first position and beyond the last, of whatever the cache holds.
#[inline(always)]
fn score<const FMA: bool, const HEADS: usize>(
    keys: Keys<'_>,
    queries: &[f32],
    scores: &mut [[f32; BLOCK_SIZE]],
) {
    let head_dim = keys.cache.shape().head_dim;
    let scale = keys.attention.scale;
    let queries: [&[f32]; HEADS] =
        std::array::from_fn(|head| &queries[head * head_dim..(head + 1) * head_dim]);
    let blocks = keys.blocks();
    for (index, block) in blocks.clone().enumerate() {
        let mut sums = [[0.0; BLOCK_SIZE]; HEADS];
        let next = keys.block_after(block).keys;
        for (i, keys) in keys.block(block).keys.iter().enumerate() {
            prefetch(&next[i]);
            for head in 0..HEADS {
                add_scaled::<FMA, BLOCK_SIZE>(&mut sums[head], queries[head][i], keys);
            }
        }
        for (head, sums) in sums.iter().enumerate() {
            scores[head * blocks.len() + index] = sums.map(|sum| sum * scale);
        }
    }
}

/// Values that are gathered side by side: two vector registers.
const COLUMNS: usize = 16;

/// `output[head] = Σ weights[head][slot]·v`, in the order of the positions.
#[inline(always)]
fn gather<const FMA: bool, const HEADS: usize>(
    keys: Keys<'_>,
    weights: &[[f32; BLOCK_SIZE]],
    output: &mut [f32],
) {
    let head_dim = keys.cache.shape().head_dim;
    let (blocks, slots) = (keys.blocks(), keys.slots());
    output.fill(0.0);
    for (index, block) in blocks.clone().enumerate() {
        let first = slots.start.saturating_sub(index * BLOCK_SIZE);
        let end = (slots.end - index * BLOCK_SIZE).min(BLOCK_SIZE);
        let values = &keys.block(block).values[first * head_dim..end * head_dim];
        let weights: [&[f32]; HEADS] =
            std::array::from_fn(|head| &weights[head * blocks.len() + index][first..end]);
        let whole = head_dim - head_dim % COLUMNS;
        let next = keys.block_after(block).values;
        for column in (0..whole).step_by(COLUMNS) {
            next[column..]
                .iter()
                .step_by(head_dim)
                .for_each(prefetch::<f32>);
            add_columns::<FMA, HEADS, COLUMNS>(
                weights,
                Columns {
                    values,
                    head_dim,
                    column,
                },
                output,
            );
        }
        for column in whole..head_dim {
            add_columns::<FMA, HEADS, 1>(
                weights,
                Columns {
                    values,
                    head_dim,
                    column,
                },
                output,
            );
        }
    }
}

/// Some columns of a block's values.
struct Columns<'a> {
    /// `[positions, head_dim]`
    values: &'a [f32],
    head_dim: usize,
    column: usize,
}

/// Adds the weighted values of some columns of a block to those columns of the output.
#[inline(always)]
fn add_columns<const FMA: bool, const HEADS: usize, const WIDTH: usize>(
    weights: [&[f32]; HEADS],
    columns: Columns<'_>,
    output: &mut [f32],
) {
    let Columns {
        values,
        head_dim,
        column,
    } = columns;
    let mut sums = [[0.0; WIDTH]; HEADS];
    for (head, sums) in sums.iter_mut().enumerate() {
        sums.copy_from_slice(&output[head * head_dim + column..][..WIDTH]);
    }
    for (slot, values) in values.chunks_exact(head_dim).enumerate() {
        let Some(values) = values[column..].first_chunk::<WIDTH>() else {
            continue;
        };
        for head in 0..HEADS {
            add_scaled::<FMA, WIDTH>(&mut sums[head], weights[head][slot], values);
        }
    }
    for (head, sums) in sums.iter().enumerate() {
        output[head * head_dim + column..][..WIDTH].copy_from_slice(sums);
    }
}

/// Turns scores into weights that sum to 1, in place: `e^(s - max) / Σ e^(s - max)`.
#[inline(always)]
fn softmax<const FMA: bool>(scores: &mut [f32]) {
    let max = scores.iter().fold(
        f32::NEG_INFINITY,
        |max, &score| if score > max { score } else { max },
    );
    for score in scores.iter_mut() {
        *score = exp::<FMA>(*score - max);
    }
    let scale = 1.0 / simd::sum(scores);
    for score in scores.iter_mut() {
        *score *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::super::cache::{CacheShape, Entry};
    use super::*;
    use proptest::prelude::*;

    fn cache(kv_heads: usize, head_dim: usize, blocks: usize) -> LayerCache {
        LayerCache::new(CacheShape {
            blocks,
            kv_heads,
            head_dim,
        })
    }

    /// As most models attend.
    fn plain(cache: &LayerCache) -> Attention {
        Attention {
            scale: 1.0 / (cache.shape().head_dim as f32).sqrt(),
            soft_cap: None,
            window: None,
        }
    }

    fn attention(cache: &LayerCache, row: Row<'_>, queries: &[f32]) -> Vec<f32> {
        attention_by(plain(cache), cache, row, queries)
    }

    fn attention_by(
        attention: Attention,
        cache: &LayerCache,
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
        let keys = [0.0, 2.0 * 3.0_f32.ln(), 0.0, 0.0];
        cache.write(
            FIRST,
            1,
            Entry {
                keys: &keys,
                values: &[8.0, 0.0, 0.0, -8.0],
            },
        );
        let output = attention(
            &cache,
            Row {
                blocks: FIRST,
                position: 1,
            },
            &[5.0, 1.0, 5.0, 5.0],
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
    fn counting(positions: usize, window: usize) -> (LayerCache, Vec<BlockId>) {
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
            (rows(kv_width * group), rows(kv_width), rows(kv_width)).prop_map(
                move |(queries, keys, values)| Case {
                    kv_heads,
                    head_dim,
                    queries,
                    keys,
                    values,
                },
            )
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
            for position in 0..keys.len() {
                cache.write(&blocks, position, Entry { keys: &keys[position], values: &values[position] });
            }
            let rows: Vec<Row<'_>> = (0..keys.len()).map(|position| Row { blocks: &blocks, position }).collect();
            let width = queries[0].len();
            let mut together = vec![0.0; keys.len() * width];
            attend(&cache, attention, &rows, &queries.concat(), &mut together);
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
