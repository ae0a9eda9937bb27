//! Causal attention that reads keys and values where they lie in the paged cache.

use std::cell::RefCell;

use rayon::prelude::*;

use super::cache::LayerCache;
use super::simd::{self, Kernel, add_scaled, dot, exp};
use crate::kv_cache::BlockId;

/// One query row: a token at its position, in its sequence.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    /// The sequence's blocks in order.
    pub(super) blocks: &'a [BlockId],
    /// The row attends to the positions `0..=position`.
    pub(super) position: usize,
}

/// Attention of every row over its own sequence: per head, `softmax(q·Kᵀ / √head_dim)·V`.
///
/// `queries` and `output` are `[rows, heads, head_dim]`; query head `h` reads key head `h / (heads / kv_heads)`
/// (grouped-query attention, Ainslie et al. 2023). The keys and values of the rows themselves must be in the cache.
///
/// A row's result depends on its query and on the keys and values of its positions in their order, and on nothing
/// else: not on the other rows, on where the blocks lie, or on the number of threads.
pub(super) fn attend(cache: &LayerCache, rows: &[Row<'_>], queries: &[f32], output: &mut [f32]) {
    let kv_heads = cache.shape().kv_heads;
    let group_len = queries.len() / rows.len() / kv_heads;
    let task = |(item, (queries, output)): (usize, (&[f32], &mut [f32]))| {
        let group = Group {
            cache,
            row: rows[item / kv_heads],
            kv_head: item % kv_heads,
            queries,
            output,
        };
        SCORES.with_borrow_mut(|scores| simd::run(AttendGroup { group, scores }));
    };
    queries
        .par_chunks(group_len)
        .zip(output.par_chunks_mut(group_len))
        .with_min_len(tasks_per_job(rows))
        .enumerate()
        .for_each(task);
}

thread_local! {
    /// Scores of a group, kept from call to call: `[query heads of the group, positions]`.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Keys that a job should read at least, so that handing it to a thread is worth it.
const KEYS_PER_JOB: usize = 256;

/// Groups that one job takes.
fn tasks_per_job(rows: &[Row<'_>]) -> usize {
    let keys: usize = rows.iter().map(|row| row.position + 1).sum();
    (KEYS_PER_JOB * rows.len()).div_ceil(keys)
}

/// The query heads of a row that share a key head.
struct Group<'a> {
    cache: &'a LayerCache,
    row: Row<'a>,
    kv_head: usize,
    /// `[heads of the group, head_dim]`
    queries: &'a [f32],
    /// `[heads of the group, head_dim]`
    output: &'a mut [f32],
}

struct AttendGroup<'a> {
    group: Group<'a>,
    scores: &'a mut Vec<f32>,
}

impl Kernel for AttendGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn run<const FMA: bool>(self) {
        let Group {
            cache,
            row,
            kv_head,
            queries,
            output,
        } = self.group;
        let head_dim = cache.shape().head_dim;
        let length = row.position + 1;
        self.scores.clear();
        self.scores.resize(queries.len() / head_dim * length, 0.0);
        let blocks = Blocks {
            cache,
            row,
            kv_head,
        };
        blocks.score::<FMA>(queries, self.scores);
        for scores in self.scores.chunks_exact_mut(length) {
            softmax::<FMA>(scores);
        }
        output.fill(0.0);
        blocks.gather::<FMA>(self.scores, output);
    }
}

/// The cached keys and values of one head of one sequence, up to a row's position.
struct Blocks<'a> {
    cache: &'a LayerCache,
    row: Row<'a>,
    kv_head: usize,
}

impl<'a> Blocks<'a> {
    /// The parts of the cache in order, each with the positions it holds.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (std::ops::Range<usize>, super::cache::HeadBlock<'a>)> {
        let (cache, kv_head, length) = (self.cache, self.kv_head, self.row.position + 1);
        let block_size = cache.shape().layout.block_size;
        let blocks = &self.row.blocks[..length.div_ceil(block_size)];
        blocks.iter().enumerate().map(move |(index, &block)| {
            let start = index * block_size;
            (
                start..length.min(start + block_size),
                cache.head_block(block, kv_head),
            )
        })
    }

    /// `scores[head][position] = q·k / √head_dim`.
    #[inline(always)]
    fn score<const FMA: bool>(&self, queries: &[f32], scores: &mut [f32]) {
        let head_dim = self.cache.shape().head_dim;
        let length = self.row.position + 1;
        let scale = 1.0 / (head_dim as f32).sqrt();
        for (positions, block) in self.iter() {
            for (position, key) in positions.zip(block.keys.chunks_exact(head_dim)) {
                for (head, query) in queries.chunks_exact(head_dim).enumerate() {
                    scores[head * length + position] = dot::<FMA>(query, key) * scale;
                }
            }
        }
    }

    /// `output[head] += Σ weight[head][position]·v`, in the order of the positions.
    #[inline(always)]
    fn gather<const FMA: bool>(&self, weights: &[f32], output: &mut [f32]) {
        let head_dim = self.cache.shape().head_dim;
        let length = self.row.position + 1;
        for (positions, block) in self.iter() {
            for (output, weights) in output
                .chunks_exact_mut(head_dim)
                .zip(weights.chunks_exact(length))
            {
                for (&weight, value) in weights[positions.clone()]
                    .iter()
                    .zip(block.values.chunks_exact(head_dim))
                {
                    add_scaled::<FMA>(output, weight, value);
                }
            }
        }
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
    use crate::model::KvLayout;
    use proptest::prelude::*;

    const HEAD_DIM: usize = 4;

    fn cache(kv_heads: usize, block_size: usize, blocks: usize) -> LayerCache {
        LayerCache::new(CacheShape {
            layout: KvLayout { block_size, blocks },
            kv_heads,
            head_dim: HEAD_DIM,
        })
    }

    fn assert_close(actual: &[f32], expected: &[f32], bound: f32) {
        assert_eq!(actual.len(), expected.len());
        for (a, e) in actual.iter().zip(expected) {
            assert!((a - e).abs() <= bound, "{actual:?} is not {expected:?}");
        }
    }

    #[test]
    fn the_first_position_sees_only_itself() {
        let mut cache = cache(1, 2, 1);
        cache.write(
            &[BlockId(0)],
            0,
            Entry {
                keys: &[1.0; 4],
                values: &[1.0, 2.0, 3.0, 4.0],
            },
        );
        cache.write(
            &[BlockId(0)],
            1,
            Entry {
                keys: &[9.0; 4],
                values: &[9.0; 4],
            },
        );
        let mut output = [7.0; 4];
        attend(
            &cache,
            &[Row {
                blocks: &[BlockId(0)],
                position: 0,
            }],
            &[1.0; 4],
            &mut output,
        );
        assert_close(&output, &[1.0, 2.0, 3.0, 4.0], 1e-6);
    }

    #[test]
    fn weights_are_the_softmax_of_scaled_scores() {
        // q·k is 0 and 2·ln 3, √4 = 2: weights 1/4 and 3/4, in two blocks that lie the other way round
        let mut cache = cache(1, 1, 2);
        let blocks = [BlockId(1), BlockId(0)];
        let value = |x: f32| [x, 0.0, 0.0, -x];
        cache.write(
            &blocks,
            0,
            Entry {
                keys: &[0.0; 4],
                values: &value(4.0),
            },
        );
        cache.write(
            &blocks,
            1,
            Entry {
                keys: &[0.0, 2.0 * 3.0_f32.ln(), 0.0, 0.0],
                values: &value(8.0),
            },
        );
        let mut output = [0.0; 4];
        attend(
            &cache,
            &[Row {
                blocks: &blocks,
                position: 1,
            }],
            &[5.0, 1.0, 5.0, 5.0],
            &mut output,
        );
        assert_close(&output, &value(7.0), 1e-5);
    }

    #[test]
    fn query_heads_share_their_groups_key_head() {
        let mut cache = cache(2, 1, 1);
        let values = [1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0];
        cache.write(
            &[BlockId(0)],
            0,
            Entry {
                keys: &[0.0; 8],
                values: &values,
            },
        );
        let mut output = [0.0; 16];
        attend(
            &cache,
            &[Row {
                blocks: &[BlockId(0)],
                position: 0,
            }],
            &[0.0; 16],
            &mut output,
        );
        let expected: Vec<f32> = [1.0, 1.0, 2.0, 2.0]
            .iter()
            .flat_map(|&v| [v; HEAD_DIM])
            .collect();
        assert_close(&output, &expected, 0.0);
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let mut cache = cache(1, 2, 1);
        cache.write(
            &[BlockId(0)],
            0,
            Entry {
                keys: &[1e18; 4],
                values: &[1.0; 4],
            },
        );
        cache.write(
            &[BlockId(0)],
            1,
            Entry {
                keys: &[-1e18; 4],
                values: &[2.0; 4],
            },
        );
        let mut output = [0.0; 4];
        attend(
            &cache,
            &[Row {
                blocks: &[BlockId(0)],
                position: 1,
            }],
            &[1e18; 4],
            &mut output,
        );
        assert_close(&output, &[1.0; 4], 0.0);
    }

    #[test]
    fn a_value_that_is_not_a_number_stays_visible() {
        let mut cache = cache(1, 2, 1);
        cache.write(
            &[BlockId(0)],
            0,
            Entry {
                keys: &[1.0; 4],
                values: &[1.0; 4],
            },
        );
        cache.write(
            &[BlockId(0)],
            1,
            Entry {
                keys: &[f32::NAN; 4],
                values: &[1.0; 4],
            },
        );
        let mut output = [0.0; 4];
        attend(
            &cache,
            &[Row {
                blocks: &[BlockId(0)],
                position: 1,
            }],
            &[1.0; 4],
            &mut output,
        );
        assert!(output.iter().all(|value| value.is_nan()));
    }

    /// Softmax attention of one head in f64, with no blocks.
    fn reference(query: &[f32], keys: &[Vec<f32>], values: &[Vec<f32>]) -> Vec<f32> {
        let scores: Vec<f64> = keys
            .iter()
            .map(|key| {
                key.iter()
                    .zip(query)
                    .map(|(&k, &q)| f64::from(k) * f64::from(q))
                    .sum::<f64>()
                    / 2.0
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
        let total: f64 = weights.iter().sum();
        (0..HEAD_DIM)
            .map(|i| {
                values
                    .iter()
                    .zip(&weights)
                    .map(|(v, w)| f64::from(v[i]) * w)
                    .sum::<f64>()
                    / total
            })
            .map(|value| value as f32)
            .collect()
    }

    proptest! {
        #[test]
        fn every_row_equals_the_reference_and_itself_alone(
            entries in prop::collection::vec(prop::collection::vec(-2.0_f32..2.0, 3 * HEAD_DIM), 1..40),
            block_size in 1_usize..9,
            reverse in any::<bool>(),
        ) {
            let block_count = entries.len().div_ceil(block_size);
            let mut blocks: Vec<BlockId> = (0..block_count as u32).map(BlockId).collect();
            if reverse {
                blocks.reverse();
            }
            let part = |from: usize| -> Vec<Vec<f32>> {
                entries.iter().map(|entry| entry[from * HEAD_DIM..(from + 1) * HEAD_DIM].to_vec()).collect()
            };
            let (queries, keys, values) = (part(0), part(1), part(2));
            let mut cache = cache(1, block_size, block_count);
            for position in 0..entries.len() {
                cache.write(&blocks, position, Entry { keys: &keys[position], values: &values[position] });
            }
            let rows: Vec<Row<'_>> = (0..entries.len()).map(|position| Row { blocks: &blocks, position }).collect();
            let mut together = vec![0.0; entries.len() * HEAD_DIM];
            attend(&cache, &rows, &queries.concat(), &mut together);
            for (position, together) in together.chunks_exact(HEAD_DIM).enumerate() {
                let mut alone = vec![0.0; HEAD_DIM];
                attend(&cache, &rows[position..=position], &queries[position], &mut alone);
                prop_assert_eq!(&alone, together, "the result depends on the other rows");
                let expected = reference(&queries[position], &keys[..=position], &values[..=position]);
                for (a, e) in alone.iter().zip(&expected) {
                    prop_assert!((a - e).abs() < 1e-5, "{:?} is not {:?}", alone, expected);
                }
            }
        }
    }
}
