//! Once a sampler has seen rows of a size, it allocates nothing more, whatever it does with them.
#![allow(unsafe_code)] // A global allocator is an unsafe trait.

#[path = "parity/mod.rs"]
#[allow(dead_code)]
mod parity;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use nucleus_sampling::{
    CompiledParams, CpuSampler, LogitsRow, Row, Sampler, SamplerState, SamplingParams,
};
use parity::{Request, RowSpec, Shape, WAYS};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

fn allocations() -> usize {
    ALLOCATIONS.with(Cell::get)
}

// SAFETY: every call goes to the system's allocator unchanged. Counting allocates nothing: the counter is a constant of the thread.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller keeps the contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the memory came from `alloc` with this layout, thus from the system's allocator.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const VOCAB: usize = 20_000;

/// Requests that take every path: lists, cuts, searches, dense copies, edits, masks.
fn requests() -> Vec<Request> {
    macro_rules! only {
        ($($name:ident: $value:expr),*) => { SamplingParams { $($name: Some($value),)* seed: Some(1), ..Default::default() } };
    }
    let chains = [
        only!(temperature: 0.0),
        only!(temperature: 0.8),
        only!(temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05),
        only!(top_p: 0.9),
        only!(top_p: 0.999, temperature: 2.0),
        only!(top_k: 9000, top_p: 0.99),
        only!(typical_p: 0.9),
        only!(eta_cutoff: 0.0002, dynatemp_range: 0.5),
        only!(top_n_sigma: 2.0, xtc_probability: 1.0, xtc_threshold: 0.001),
        only!(smoothing_factor: 0.3, top_a: 0.1),
        only!(adaptive_target: 0.3),
        only!(mirostat: 1),
        only!(mirostat: 2),
        only!(repetition_penalty: 1.2, frequency_penalty: 0.1, dry_multiplier: 0.8, no_repeat_ngram_size: 3, top_k: 50),
        only!(allowed_token_ids: (0..9000).collect(), top_p: 0.9),
        only!(bad_words: vec![vec![3], vec![1, 2]], logit_bias: [(7, 3.0), (9, -2.0)].into()),
    ];
    let history = |step: u32| (0..300).map(|i| i * step % 97).collect();
    chains
        .into_iter()
        .map(|params| Request {
            prompt: history(31),
            output: history(17),
            ..Request::of(params)
        })
        .collect()
}

fn rows<'a>(
    requests: &'a [Request],
    compiled: &'a [(CompiledParams, SamplerState)],
    logits: &'a [f32],
) -> Vec<Row<'a>> {
    let pairs = requests.iter().zip(compiled);
    pairs
        .map(|(request, (params, state))| request.row(LogitsRow::F32(logits), params, state))
        .collect()
}

fn compile(requests: &[Request]) -> Vec<(CompiledParams, SamplerState)> {
    let vocab = VOCAB as u32;
    requests
        .iter()
        .map(|request| request.compile(vocab).expect("valid parameters"))
        .collect()
}

#[test]
fn a_row_allocates_nothing_once_the_sampler_knows_its_size() {
    let (requests, logits) = (requests(), RowSpec::plain(Shape::Peaked, 3).make(VOCAB));
    let compiled = compile(&requests);
    for way in WAYS {
        for row in rows(&requests, &compiled, &logits) {
            let mut sampler = CpuSampler::with_options(way);
            for _ in 0..3 {
                sampler.sample(&row);
            }
            let before = allocations();
            for draw in 0..8u64 {
                let uniform = Some(draw << 61);
                sampler.sample(&Row { uniform, ..row });
            }
            let config = row.params.config();
            assert_eq!(allocations() - before, 0, "{way:?} {config:?}");
        }
    }
}

#[test]
fn a_batch_allocates_nothing_once_the_sampler_knows_its_size() {
    let (requests, logits) = (requests(), RowSpec::plain(Shape::Bell(2.0), 4).make(VOCAB));
    let compiled = compile(&requests);
    let rows = rows(&requests, &compiled, &logits);
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
    let allocated = pool.expect("a thread starts").install(|| {
        let (mut sampler, mut out) = (CpuSampler::new(), Vec::new());
        (0..3).for_each(|_| sampler.sample_batch(&rows, &mut out));
        let before = allocations();
        sampler.sample_batch(&rows, &mut out);
        allocations() - before
    });
    assert_eq!(allocated, 0);
}
