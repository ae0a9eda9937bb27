//! The decoder against transformers on the same weights (`peers/make_fixtures.py`), and against itself: a sequence's
//! logits have the same bits alone, in any batch, however its prompt is cut, and wherever its blocks lie.

use std::num::NonZeroUsize;

use nucleus_engine::error::EngineError;
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::kv_cache::{BlockId, BlockPool, blocks_for};
use nucleus_engine::model::{Chunk, Logits, Model, Tail};
use nucleus_engine::models::{self, LoadOptions};
use proptest::prelude::*;
use serde::Deserialize;

const TESTDATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata");
const BUNDLED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

/// How far a logit may be from those of transformers; the fixtures' logits have a standard deviation of 1 to 2.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    /// From logits computed with the inputs of quantised matrices rounded to 8 bits, as candle rounds them. What is left
    /// is the rounding of f32 sums, and that it may tip an input to the next 8-bit step.
    rounded: f32,
    /// From logits computed in f32 throughout.
    plain: f32,
}

/// No input is rounded.
const FLOAT: Bounds = Bounds {
    rounded: 5e-5,
    plain: 5e-5,
};
/// Inputs are rounded to 16 bits.
const Q8_0: Bounds = Bounds {
    rounded: 1e-3,
    plain: 1e-3,
};
/// Inputs are rounded to 8 bits.
const CANDLE: Bounds = Bounds {
    rounded: 2e-3,
    plain: 0.3,
};

const FIXTURES: [(&str, Bounds); 10] = [
    ("tiny-f32", FLOAT),
    ("tiny-f32-gqa", FLOAT),
    ("tiny-f32-bias", FLOAT),
    ("tiny-f16", FLOAT),
    ("tiny-bf16", FLOAT),
    ("tiny-q8_0", Q8_0),
    ("tiny-q4_0", CANDLE),
    ("tiny-q4_k", CANDLE),
    ("tiny-q6_k", CANDLE),
    ("tiny-mixed", CANDLE),
];

#[derive(Deserialize)]
struct Expected {
    sequences: Vec<ExpectedSequence>,
}

#[derive(Deserialize)]
struct ExpectedSequence {
    tokens: Vec<u32>,
    rows: Vec<ExpectedRow>,
}

#[derive(Deserialize)]
struct ExpectedRow {
    position: usize,
    /// Tokens whose logits follow; every token when there are none.
    #[serde(default)]
    ids: Vec<usize>,
    logits: Vec<f32>,
    rounded_logits: Vec<f32>,
}

impl ExpectedRow {
    /// The largest distances of a logit from its expected values.
    fn distances(&self, logits: &[f32]) -> Bounds {
        let actual: Vec<f32> = match self.ids.as_slice() {
            [] => logits.to_vec(),
            ids => ids.iter().map(|&id| logits[id]).collect(),
        };
        Bounds {
            rounded: distance(&actual, &self.rounded_logits),
            plain: distance(&actual, &self.logits),
        }
    }
}

/// The largest distance of two values; NaN if there is a NaN.
fn distance(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    actual
        .iter()
        .zip(expected)
        .map(|(a, e)| (a - e).abs())
        .fold(0.0, larger)
}

fn larger(a: f32, b: f32) -> f32 {
    if b <= a { a } else { b }
}

impl Bounds {
    fn contain(&self, distances: Self) -> bool {
        distances.rounded <= self.rounded && distances.plain <= self.plain
    }
}

fn expected(name: &str) -> Vec<ExpectedSequence> {
    let text = std::fs::read_to_string(format!("{TESTDATA}/{name}.json")).unwrap();
    serde_json::from_str::<Expected>(&text).unwrap().sequences
}

fn load(path: &str, kv_tokens: usize) -> Box<dyn Model> {
    let options = LoadOptions {
        kv_tokens: NonZeroUsize::new(kv_tokens),
        threads: NonZeroUsize::new(2),
        ..LoadOptions::default()
    };
    models::load(&ModelFile::open(path).unwrap(), options).unwrap()
}

fn load_fixture(name: &str) -> Box<dyn Model> {
    load(&format!("{TESTDATA}/{name}.gguf"), 256)
}

/// A sequence that runs piece by piece, and keeps the logits after each piece.
struct Running<'a> {
    tokens: &'a [u32],
    /// Lengths of the pieces still to run.
    pieces: Vec<usize>,
    blocks: Vec<BlockId>,
    done: usize,
    /// Position and logits of each piece's last token.
    rows: Vec<(usize, Vec<f32>)>,
}

impl<'a> Running<'a> {
    fn new(tokens: &'a [u32], pieces: &[usize], blocks: Vec<BlockId>) -> Self {
        assert_eq!(pieces.iter().sum::<usize>(), tokens.len());
        Self {
            tokens,
            pieces: pieces.iter().copied().rev().collect(),
            blocks,
            done: 0,
            rows: Vec::new(),
        }
    }

    /// The next piece; none when the sequence has ended or sits this step out.
    fn chunk(&self) -> Option<Chunk<'_>> {
        let len = *self.pieces.last().filter(|&&len| len > 0)?;
        Some(Chunk {
            tokens: &self.tokens[self.done..self.done + len],
            position: self.done,
            blocks: &self.blocks,
            wants_logits: true,
        })
    }

    /// Takes the logits of the next piece, if it has any.
    fn advance(&mut self, rows: &mut impl Iterator<Item = Vec<f32>>) {
        if let Some(len @ 1..) = self.pieces.pop() {
            self.done += len;
            self.rows.push((self.done - 1, rows.next().unwrap()));
        }
    }
}

/// The rows of logits that a step hands over.
#[derive(Default)]
struct Rows(Vec<Vec<f32>>);

impl Tail for Rows {
    fn record(&mut self, Logits::Host { data, vocab }: Logits<'_>) -> Result<(), EngineError> {
        self.0.extend(data.chunks_exact(vocab).map(<[f32]>::to_vec));
        Ok(())
    }
}

fn forward(model: &mut dyn Model, chunks: &[Chunk<'_>]) -> Vec<Vec<f32>> {
    let mut rows = Rows::default();
    model.forward(chunks, &mut rows).unwrap();
    rows.0
}

/// Runs the sequences together, a piece of each in every step.
fn run(model: &mut dyn Model, sequences: &mut [Running<'_>]) {
    while sequences.iter().any(|sequence| !sequence.pieces.is_empty()) {
        let chunks: Vec<Chunk<'_>> = sequences.iter().filter_map(Running::chunk).collect();
        let mut rows = forward(model, &chunks).into_iter();
        sequences
            .iter_mut()
            .for_each(|sequence| sequence.advance(&mut rows));
        assert_eq!(rows.next(), None);
    }
}

/// Blocks for a number of tokens.
fn allocate(model: &dyn Model, pool: &mut BlockPool, tokens: usize) -> Vec<BlockId> {
    pool.allocate(blocks_for(tokens, model.kv_layout().block_size))
        .unwrap()
}

/// A sequence run alone from the first block on, cut so that it ends a piece at each of the positions.
fn alone(model: &mut dyn Model, tokens: &[u32], ends: &[usize]) -> Vec<(usize, Vec<f32>)> {
    let mut pool = BlockPool::new(model.kv_layout().blocks);
    let blocks = allocate(model, &mut pool, tokens.len());
    let starts = std::iter::once(0).chain(ends.iter().map(|end| end + 1));
    let pieces: Vec<usize> = ends
        .iter()
        .zip(starts)
        .map(|(end, start)| end + 1 - start)
        .collect();
    let mut running = [Running::new(
        &tokens[..pieces.iter().sum()],
        &pieces,
        blocks,
    )];
    run(model, &mut running);
    let [running] = running;
    running.rows
}

fn bits(row: &[f32]) -> Vec<u32> {
    row.iter().map(|logit| logit.to_bits()).collect()
}

/// Largest distances of the model's logits from the expected ones, each sequence alone.
fn distances(model: &mut dyn Model, sequences: &[ExpectedSequence]) -> Bounds {
    let mut largest = Bounds {
        rounded: 0.0,
        plain: 0.0,
    };
    for sequence in sequences {
        let ends: Vec<usize> = sequence.rows.iter().map(|row| row.position).collect();
        for (expected, (position, logits)) in
            sequence
                .rows
                .iter()
                .zip(alone(model, &sequence.tokens, &ends))
        {
            assert_eq!(expected.position, position);
            let Bounds { rounded, plain } = expected.distances(&logits);
            largest = Bounds {
                rounded: larger(largest.rounded, rounded),
                plain: larger(largest.plain, plain),
            };
        }
    }
    largest
}

#[test]
fn logits_agree_with_transformers() {
    let mut failures = Vec::new();
    for (name, bounds) in FIXTURES {
        let distances = distances(&mut *load_fixture(name), &expected(name));
        println!("{name}: {distances:?}");
        if !bounds.contain(distances) {
            failures.push(name);
        }
    }
    assert!(
        failures.is_empty(),
        "too far from transformers: {failures:?}"
    );
}

#[test]
fn the_bundled_models_logits_agree_with_transformers() {
    let distances = distances(&mut *load(BUNDLED, 64), &expected("little-storyteller"));
    println!("{distances:?}");
    assert!(Q8_0.contain(distances));
}

#[test]
fn the_most_likely_token_is_that_of_transformers() {
    let mut model = load(BUNDLED, 64);
    for sequence in expected("little-storyteller") {
        let ends: Vec<usize> = sequence.rows.iter().map(|row| row.position).collect();
        for (expected, (_, logits)) in
            sequence
                .rows
                .iter()
                .zip(alone(&mut *model, &sequence.tokens, &ends))
        {
            let best = (0..logits.len())
                .max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
                .unwrap();
            let lead = expected.logits[0] - expected.logits[1];
            assert!(
                best == expected.ids[0] || lead < 2.0 * Q8_0.plain,
                "{best} is not {}",
                expected.ids[0]
            );
        }
    }
}

/// Cuts of a prompt of 37 tokens.
const CUTS: [&[usize]; 6] = [
    &[37],
    &[36, 1],
    &[1, 36],
    &[16, 16, 5],
    &[15, 2, 20],
    &[5, 6, 7, 8, 9, 2],
];

#[test]
fn a_prompt_has_the_same_bits_however_it_is_cut() {
    for (name, _) in FIXTURES {
        let mut model = load_fixture(name);
        let tokens = &expected(name)[2].tokens;
        let ends: Vec<usize> = (0..tokens.len()).collect();
        let reference = alone(&mut *model, tokens, &ends);
        for cut in CUTS {
            let mut pool = BlockPool::new(model.kv_layout().blocks);
            let blocks = allocate(&*model, &mut pool, tokens.len());
            let mut running = [Running::new(tokens, cut, blocks)];
            run(&mut *model, &mut running);
            for (position, row) in &running[0].rows {
                assert_eq!(
                    bits(row),
                    bits(&reference[*position].1),
                    "{name} cut as {cut:?} at {position}"
                );
            }
        }
    }
}

#[test]
fn a_sequence_has_the_same_bits_in_a_ragged_batch_of_scattered_blocks() {
    for (name, _) in FIXTURES {
        let mut model = load_fixture(name);
        let sequences = expected(name);
        let mut pool = BlockPool::new(model.kv_layout().blocks);
        // Every second block is taken, and what is left is handed out last to first.
        let taken = pool.allocate(pool.capacity()).unwrap();
        pool.free(&taken.into_iter().step_by(2).collect::<Vec<_>>());
        let cuts: [&[usize]; 3] = [&[1], &[3, 1, 1, 4], &[20, 1, 1, 15]];
        let mut batch: Vec<Running<'_>> = Vec::new();
        for (sequence, cut) in sequences.iter().zip(cuts) {
            let blocks = allocate(&*model, &mut pool, sequence.tokens.len());
            batch.push(Running::new(&sequence.tokens, cut, blocks));
        }
        run(&mut *model, &mut batch);
        for (running, sequence) in batch.iter().zip(&sequences) {
            let ends: Vec<usize> = (0..sequence.tokens.len()).collect();
            let reference = alone(&mut *model, &sequence.tokens, &ends);
            for (position, row) in &running.rows {
                assert_eq!(
                    bits(row),
                    bits(&reference[*position].1),
                    "{name} at {position}"
                );
            }
        }
    }
}

#[test]
fn a_decode_row_has_the_same_bits_in_a_batch_of_33() {
    for (name, _) in FIXTURES {
        let mut model = load_fixture(name);
        let tokens = &expected(name)[1].tokens;
        let (prompt, last) = tokens.split_at(tokens.len() - 1);
        let reference = alone(&mut *model, tokens, &[prompt.len() - 1, prompt.len()]);
        let mut pool = BlockPool::new(model.kv_layout().blocks);
        let blocks = allocate(&*model, &mut pool, tokens.len());
        let mut prefill = [Running::new(prompt, &[prompt.len()], blocks.clone())];
        run(&mut *model, &mut prefill);
        // The others are one-token sequences that share a block they overwrite: their logits do not matter.
        let other = pool.allocate(1).unwrap();
        let mut chunks: Vec<Chunk<'_>> = (0..32)
            .map(|_| Chunk {
                tokens: &[7],
                position: 0,
                blocks: &other,
                wants_logits: false,
            })
            .collect();
        chunks.insert(
            17,
            Chunk {
                tokens: last,
                position: prompt.len(),
                blocks: &blocks,
                wants_logits: true,
            },
        );
        let rows = forward(&mut *model, &chunks);
        assert_eq!(rows.len(), 1);
        assert_eq!(bits(&rows[0]), bits(&reference[1].1), "{name}");
    }
}

#[test]
fn the_bundled_model_has_the_same_bits_in_a_batch() {
    let mut model = load(BUNDLED, 256);
    let sequences = expected("little-storyteller");
    let mut pool = BlockPool::new(model.kv_layout().blocks);
    let mut batch: Vec<Running<'_>> = Vec::new();
    for sequence in &sequences {
        let first = sequence.tokens.len() / 2;
        let pieces: Vec<usize> = std::iter::once(first)
            .chain(vec![1; sequence.tokens.len() - first])
            .collect();
        let blocks = allocate(&*model, &mut pool, sequence.tokens.len());
        batch.push(Running::new(&sequence.tokens, &pieces, blocks));
    }
    run(&mut *model, &mut batch);
    for (running, sequence) in batch.iter().zip(&sequences) {
        let last = sequence.tokens.len() - 1;
        let (_, row) = running.rows.last().unwrap();
        assert_eq!(
            bits(row),
            bits(&alone(&mut *model, &sequence.tokens, &[last])[0].1)
        );
    }
}

#[test]
fn a_shared_prefix_is_read_from_its_blocks() {
    let mut model = load_fixture("tiny-q8_0");
    let tokens = &expected("tiny-q8_0")[2].tokens;
    let reference = alone(&mut *model, tokens, &[36]);
    let mut pool = BlockPool::new(model.kv_layout().blocks);
    let prefix = allocate(&*model, &mut pool, 32);
    run(
        &mut *model,
        &mut [Running::new(&tokens[..32], &[32], prefix.clone())],
    );
    pool.share(&prefix);
    let blocks = [prefix, allocate(&*model, &mut pool, 5)].concat();
    let chunk = Chunk {
        tokens: &tokens[32..],
        position: 32,
        blocks: &blocks,
        wants_logits: true,
    };
    assert_eq!(
        bits(&forward(&mut *model, &[chunk])[0]),
        bits(&reference[0].1)
    );
}

#[test]
fn no_logits_are_computed_when_none_are_wanted() {
    let mut model = load_fixture("tiny-q8_0");
    let chunk = Chunk {
        tokens: &[1, 2, 3],
        position: 0,
        blocks: &[BlockId(0)],
        wants_logits: false,
    };
    assert!(forward(&mut *model, &[chunk]).is_empty());
    assert!(forward(&mut *model, &[]).is_empty());
}

/// Cuts a sequence of `len` tokens into pieces; a piece of 0 is a step that the sequence sits out.
fn schedule(len: usize) -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..=len, 0..=len).prop_map(move |mut pieces| {
        let mut left = len;
        for piece in &mut pieces {
            *piece = left.min(*piece);
            left -= *piece;
        }
        pieces.push(left);
        pieces
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_schedule_gives_the_same_bits(
        name in prop::sample::select(FIXTURES.map(|(name, _)| name).to_vec()),
        schedules in (schedule(1), schedule(9), schedule(37)),
    ) {
        let mut model = load_fixture(name);
        let sequences = expected(name);
        let mut pool = BlockPool::new(model.kv_layout().blocks);
        let mut batch: Vec<Running<'_>> = Vec::new();
        for (sequence, pieces) in sequences.iter().zip([schedules.0, schedules.1, schedules.2]) {
            let blocks = allocate(&*model, &mut pool, sequence.tokens.len());
            batch.push(Running::new(&sequence.tokens, &pieces, blocks));
        }
        run(&mut *model, &mut batch);
        for (running, sequence) in batch.iter().zip(&sequences) {
            let reference = alone(&mut *model, &sequence.tokens, &(0..sequence.tokens.len()).collect::<Vec<_>>());
            prop_assert_eq!(running.done, sequence.tokens.len());
            for (position, row) in &running.rows {
                prop_assert_eq!(bits(row), bits(&reference[*position].1), "{} at {}", name, position);
            }
        }
    }
}
