//! The generation loop on the bundled model: sampling, stops, lengths, cancelling, shutting down, many at once.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nucleus_engine::constraint::Format;
use nucleus_engine::generate::{
    Engine, EngineOptions, EngineThread, Event, Generation, GenerationError, Request, SubmitError,
    TimeLimits,
};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::models::{self, LoadOptions};
use nucleus_engine::scheduler::AdmissionError;
use nucleus_engine::sequence::{Completion, FinishReason, PromptToken, TokenEvent};
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::{LogprobsMode, SamplingParams};
use serde_json::json;

const PROMPT: &str = "Once upon a time";

fn engine_with(options: EngineOptions, kv_tokens: usize) -> (Engine, EngineThread) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");
    let file = ModelFile::open(path).unwrap();
    let options_of_load = LoadOptions {
        kv_tokens: NonZeroUsize::new(kv_tokens),
        ..LoadOptions::default()
    };
    let model = models::load(&file, options_of_load).unwrap();
    let tokenizer = Tokenizer::from_gguf(file.metadata()).unwrap();
    Engine::start(model, Arc::new(tokenizer), options).unwrap()
}

fn engine() -> Engine {
    engine_with(EngineOptions::default(), 8192).0
}

fn request(engine: &Engine, prompt: &str, max_tokens: usize) -> Request {
    let options = EncodeOptions {
        parse_special: true,
        ..EncodeOptions::default()
    };
    Request {
        prompt: engine.tokenizer().encode(prompt, options).unwrap(),
        max_tokens: Some(max_tokens),
        ..Request::default()
    }
}

fn seeded(engine: &Engine, prompt: &str, max_tokens: usize, seed: u64) -> Request {
    Request {
        params: SamplingParams {
            seed: Some(seed),
            temperature: Some(0.9),
            ..SamplingParams::default()
        },
        ..request(engine, prompt, max_tokens)
    }
}

fn greedy(engine: &Engine, prompt: &str, max_tokens: usize) -> Request {
    Request {
        params: SamplingParams {
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        ..request(engine, prompt, max_tokens)
    }
}

fn finish(mut generation: Generation) -> (Vec<TokenEvent>, Completion) {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().unwrap() {
            Event::Prompt(_) => {}
            Event::Token(token) => tokens.push(token),
            Event::End(completion) => {
                assert!(generation.blocking_next().is_none());
                return (tokens, completion);
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}

fn complete(engine: &Engine, request: Request) -> Completion {
    finish(engine.submit(request).unwrap()).1
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn r0_1_tokens_come_one_by_one_and_add_up_to_the_completion() {
    let engine = engine();
    let (tokens, completion) = finish(engine.submit(seeded(&engine, PROMPT, 24, 1)).unwrap());
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(ids, completion.token_ids);
    assert_eq!(text, completion.text);
    assert_eq!(completion.finish_reason, FinishReason::Length);
    assert_eq!((completion.prompt_tokens, tokens.len()), (4, 24));
    assert!(tokens.iter().enumerate().all(|(i, token)| token.index == i));
    assert!(tokens.iter().all(|token| token.logprob <= 0.0));
    assert_eq!(completion.text, engine.tokenizer().decode(&ids, true));
}

#[test]
fn r0_2_the_same_seed_gives_the_same_tokens_and_another_does_not() {
    let engine = engine();
    let first = complete(&engine, seeded(&engine, PROMPT, 32, 5));
    assert_eq!(
        complete(&engine, seeded(&engine, PROMPT, 32, 5)).token_ids,
        first.token_ids
    );
    assert_ne!(
        complete(&engine, seeded(&engine, PROMPT, 32, 6)).token_ids,
        first.token_ids
    );
}

#[test]
fn r0_2_temperature_0_does_not_depend_on_the_seed() {
    let engine = engine();
    let first = complete(&engine, greedy(&engine, PROMPT, 24));
    for seed in [1, u64::MAX] {
        let mut request = greedy(&engine, PROMPT, 24);
        request.params.seed = Some(seed);
        assert_eq!(complete(&engine, request).token_ids, first.token_ids);
    }
}

#[test]
fn a_seed_is_drawn_and_said_when_the_request_has_none() {
    let engine = engine();
    let generation = engine.submit(request(&engine, PROMPT, 16)).unwrap();
    let seed = generation.seed();
    let drawn = finish(generation).1;
    let mut replay = request(&engine, PROMPT, 16);
    replay.params.seed = Some(seed);
    assert_eq!(complete(&engine, replay).token_ids, drawn.token_ids);
}

#[test]
fn a_sequence_does_not_notice_the_others() {
    let engine = engine();
    let prompts = [
        PROMPT,
        "The king",
        "In a dark wood there lived an old woman",
        "\"Come here,\"",
    ];
    let requests = || (0..16).map(|i| seeded(&engine, prompts[i % 4], 12 + i, i as u64));
    let alone: Vec<_> = requests()
        .map(|request| complete(&engine, request).token_ids)
        .collect();
    let together: Vec<_> = requests()
        .map(|request| engine.submit(request).unwrap())
        .collect();
    let together: Vec<_> = together
        .into_iter()
        .map(|g| finish(g).1.token_ids)
        .collect();
    assert_eq!(together, alone);
}

#[test]
fn a_prompt_in_pieces_gives_the_tokens_of_the_prompt_at_once() {
    let prompt = "There was once a miller who had three sons, a mill, an ass and a cat. ".repeat(6);
    let whole = engine();
    let options = EngineOptions {
        max_running: 4,
        step_tokens: 7,
        ..EngineOptions::default()
    };
    let pieces = engine_with(options, 1024).0;
    assert_eq!(
        complete(&pieces, seeded(&pieces, &prompt, 16, 3)).token_ids,
        complete(&whole, seeded(&whole, &prompt, 16, 3)).token_ids
    );
}

#[test]
fn r1_4_a_stop_string_across_token_borders_ends_the_text_before_it() {
    let engine = engine();
    let whole = complete(&engine, greedy(&engine, PROMPT, 40));
    // From the middle of one word to the middle of the next: no token is as long.
    let words: Vec<usize> = whole.text.match_indices(' ').map(|(at, _)| at).collect();
    let at = words[10];
    let stop = whole.text[at - 2..at + 3].to_owned();
    let first = whole.text.find(&stop).unwrap();

    let mut request = greedy(&engine, PROMPT, 40);
    request.stop = vec!["never to be seen".into(), stop.clone()];
    let (tokens, stopped) = finish(engine.submit(request).unwrap());
    assert_eq!(stopped.text, whole.text[..first]);
    assert_eq!(stopped.finish_reason, FinishReason::StopSequence(stop));
    assert!(stopped.token_ids.len() < whole.token_ids.len());
    let streamed: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(streamed, stopped.text);
}

#[test]
fn r1_4_text_held_back_for_a_stop_string_comes_out_at_the_end() {
    let engine = engine();
    let whole = complete(&engine, greedy(&engine, PROMPT, 12));
    let mut request = greedy(&engine, PROMPT, 12);
    request.stop = vec![format!("{}#", whole.text)];
    let (tokens, held) = finish(engine.submit(request).unwrap());
    assert_eq!(held.text, whole.text);
    assert!(tokens[..11].iter().all(|token| token.text.is_empty()));
    assert_eq!(tokens[11].text, whole.text);
}

#[test]
fn r1_3_the_repetition_penalty_acts_in_the_loop() {
    let engine = engine();
    let repeats = |ids: &[u32]| {
        let unique: std::collections::HashSet<_> = ids.iter().collect();
        ids.len() - unique.len()
    };
    let plain = complete(&engine, greedy(&engine, PROMPT, 64));
    let mut request = greedy(&engine, PROMPT, 64);
    request.params.repetition_penalty = Some(1.8);
    let penalised = complete(&engine, request);
    assert!(repeats(&penalised.token_ids) < repeats(&plain.token_ids) / 2);
}

#[test]
fn the_end_of_a_turn_ends_the_text_unless_it_is_ignored() {
    let engine = engine();
    let prompt = "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let ended = complete(&engine, greedy(&engine, prompt, 400));
    assert_eq!(ended.finish_reason, FinishReason::EndOfText);
    let (&last, before) = ended.token_ids.split_last().unwrap();
    assert!(engine.tokenizer().is_end_of_generation(last));
    assert!(
        !before
            .iter()
            .any(|&id| engine.tokenizer().is_end_of_generation(id))
    );

    let mut request = greedy(&engine, prompt, before.len() + 10);
    request.params.ignore_eos = Some(true);
    let ignored = complete(&engine, request);
    assert_eq!(ignored.finish_reason, FinishReason::Length);
    assert_eq!(ignored.token_ids[..before.len()], *before);
}

#[test]
fn the_context_ends_the_text() {
    let engine = engine();
    let prompt = vec![451; 1020];
    let request = Request {
        prompt,
        params: SamplingParams {
            ignore_eos: Some(true),
            ..SamplingParams::default()
        },
        ..Request::default()
    };
    let completion = complete(&engine, request);
    assert_eq!(completion.token_ids.len(), 4);
    assert_eq!(completion.finish_reason, FinishReason::Length);
}

#[test]
fn what_cannot_run_is_refused_with_its_reason() {
    let engine = engine();
    let refused = |request: Request| engine.submit(request).err().unwrap();
    assert_eq!(refused(Request::default()), SubmitError::EmptyPrompt);
    assert_eq!(
        refused(Request {
            prompt: vec![1; 1024],
            ..Request::default()
        }),
        SubmitError::PromptTooLong {
            tokens: 1024,
            context_length: 1024
        }
    );
    assert_eq!(
        refused(Request {
            prompt: vec![8192],
            ..Request::default()
        }),
        SubmitError::UnknownToken {
            id: 8192,
            vocab_size: 8192
        }
    );
    let mut high = request(&engine, PROMPT, 4);
    high.params.top_p = Some(1.5);
    assert_eq!(refused(high).to_string(), "top_p: 1.5 is outside [0, 1]");
    let mut empty_stop = request(&engine, PROMPT, 4);
    empty_stop.stop = vec![String::new()];
    assert!(matches!(refused(empty_stop), SubmitError::Stop(_)));
}

#[test]
fn the_cache_and_the_queue_are_bounded() {
    let options = EngineOptions {
        max_running: 1,
        max_waiting: 1,
        step_tokens: 64,
        prefix_reuse: true,
    };
    let (engine, _thread) = engine_with(options, 128);
    let too_long = engine.submit(request(&engine, PROMPT, 500)).err().unwrap();
    assert!(matches!(
        too_long,
        SubmitError::Admission(AdmissionError::TooLong { tokens: 504, .. })
    ));

    let running = engine.submit(seeded(&engine, PROMPT, 100, 1)).unwrap();
    wait_until("the first runs", || engine.load().running == 1);
    let waiting = engine.submit(seeded(&engine, PROMPT, 10, 2)).unwrap();
    let refused = engine.submit(seeded(&engine, PROMPT, 10, 3)).err().unwrap();
    assert_eq!(
        refused.to_string(),
        "1 requests are waiting already; the limit is 1"
    );
    drop(running);
    assert_eq!(finish(waiting).1.token_ids.len(), 10);
}

#[test]
fn cancelling_ends_a_sequence_with_what_it_has_and_frees_its_blocks() {
    let engine = engine();
    let mut generation = engine.submit(seeded(&engine, PROMPT, 1000, 1)).unwrap();
    let Some(Event::Token(first)) = generation.blocking_next() else {
        panic!("a token comes first")
    };
    let handle = generation.cancel_handle();
    handle.cancel();
    handle.cancel();
    let (mut tokens, completion) = finish(generation);
    tokens.insert(0, first);
    assert_eq!(completion.finish_reason, FinishReason::Cancelled);
    assert_eq!(completion.token_ids.len(), tokens.len());
    assert_eq!((engine.load().running, engine.load().used_blocks), (0, 0));
    handle.cancel();
    assert_eq!(
        complete(&engine, seeded(&engine, PROMPT, 4, 1))
            .token_ids
            .len(),
        4
    );
}

#[test]
fn going_away_cancels() {
    let engine = engine();
    drop(engine.submit(seeded(&engine, PROMPT, 1000, 1)).unwrap());
    wait_until("the slot is free", || engine.load().used_blocks == 0);
}

/// Four sequences of up to 104 tokens in a cache for 160, beside each other; then prompts that are in the cache already.
#[test]
fn evicted_and_reused_sequences_give_the_tokens_of_the_run_alone() {
    let (small, _thread) = engine_with(EngineOptions::default(), 160);
    let options = EngineOptions {
        prefix_reuse: false,
        ..EngineOptions::default()
    };
    let (alone, _other) = engine_with(options, 1024);
    // The sampler's state must survive, too: mirostat's runs on, and penalties look back.
    let request = |engine: &Engine, seed| {
        let mut request = seeded(engine, PROMPT, 100, seed);
        request.params.mirostat = Some(2);
        request.params.repetition_penalty = Some(1.2);
        request.params.ignore_eos = Some(true);
        request
    };
    let expected: Vec<_> = (0..4)
        .map(|seed| complete(&alone, request(&alone, seed)).token_ids)
        .collect();
    for _ in 0..2 {
        let together: Vec<_> = (0..4)
            .map(|seed| small.submit(request(&small, seed)).unwrap())
            .collect();
        for (generation, expected) in together.into_iter().zip(&expected) {
            assert_eq!(finish(generation).1.token_ids, *expected);
        }
    }
    assert!(small.counters().evictions > 0, "{:?}", small.counters());
    assert!(small.counters().reused_tokens > 0);
    assert_eq!(alone.counters().reused_tokens, 0);
}

#[test]
fn requests_submitted_together_share_their_prompt_and_are_accepted_or_refused_together() {
    let options = EngineOptions {
        max_running: 8,
        max_waiting: 0,
        ..EngineOptions::default()
    };
    let (engine, _thread) = engine_with(options, 4096);
    let prompt = "There was once a miller who had three sons, a mill, an ass and a cat. ".repeat(4);
    let choices = |count| -> Vec<Request> {
        (0..count)
            .map(|seed| seeded(&engine, &prompt, 12, seed))
            .collect()
    };
    assert!(matches!(
        engine.submit_together(choices(9)),
        Err(SubmitError::Admission(AdmissionError::QueueFull { .. }))
    ));
    let together = engine.submit_together(choices(4)).unwrap();
    let together: Vec<_> = together
        .into_iter()
        .map(|generation| finish(generation).1.token_ids)
        .collect();
    let tokens = choices(1)[0].prompt.len() as u64;
    let counters = engine.counters();
    assert_eq!(counters.admitted_tokens, 4 * tokens);
    assert_eq!((counters.reused_tokens, counters.copies), (3 * tokens, 3));
    let alone: Vec<_> = choices(4)
        .into_iter()
        .map(|request| complete(&engine, request).token_ids)
        .collect();
    assert_eq!(together, alone);
}

#[test]
fn shutting_down_lets_requests_finish_and_refuses_new_ones() {
    let (engine, thread) = engine_with(EngineOptions::default(), 2048);
    let generation = engine.submit(seeded(&engine, PROMPT, 40, 1)).unwrap();
    engine.shutdown(false);
    let refused = engine.submit(seeded(&engine, PROMPT, 4, 1)).err().unwrap();
    assert_eq!(refused, SubmitError::ShuttingDown);
    assert_eq!(finish(generation).1.token_ids.len(), 40);
    assert!(thread.join());
}

#[test]
fn shutting_down_at_once_ends_every_request() {
    let (engine, thread) = engine_with(EngineOptions::default(), 4096);
    let generations: Vec<_> = (0..3)
        .map(|seed| engine.submit(seeded(&engine, PROMPT, 1000, seed)).unwrap())
        .collect();
    engine.shutdown(true);
    for generation in generations {
        assert_eq!(finish(generation).1.finish_reason, FinishReason::Aborted);
    }
    assert!(thread.join());
}

#[test]
fn the_thread_ends_with_the_last_handle() {
    let (engine, thread) = engine_with(EngineOptions::default(), 1024);
    complete(&engine, seeded(&engine, PROMPT, 2, 1));
    drop(engine);
    assert!(thread.join());
}

/// A stop token ends the text and is no part of it, unless that is asked for.
#[test]
fn a_stop_token_ends_the_text() {
    let engine = engine();
    let whole = complete(&engine, greedy(&engine, PROMPT, 12));
    let (at, stop) = (5, whole.token_ids[5]);
    assert!(!whole.token_ids[..at].contains(&stop));
    let text = |tokens: usize| engine.tokenizer().decode(&whole.token_ids[..tokens], true);
    for (include_stop, expected) in [(false, text(at)), (true, text(at + 1))] {
        let stopped = complete(
            &engine,
            Request {
                stop_token_ids: vec![stop],
                include_stop,
                ..greedy(&engine, PROMPT, 12)
            },
        );
        assert_eq!(stopped.finish_reason, FinishReason::StopToken(stop));
        assert_eq!(stopped.token_ids, whole.token_ids[..=at]);
        assert_eq!(stopped.text, expected);
    }
}

/// The likeliest tokens come in order, the chosen one is the first of them here, and asking changes nothing about the choice.
#[test]
fn the_likeliest_tokens_are_reported() {
    let engine = engine();
    let plain = complete(&engine, greedy(&engine, PROMPT, 8));
    let asked = Request {
        top_logprobs: 3,
        ..greedy(&engine, PROMPT, 8)
    };
    let (tokens, completion) = finish(engine.submit(asked).unwrap());
    assert_eq!(completion.token_ids, plain.token_ids);
    for token in tokens {
        let top = token.top_logprobs;
        assert_eq!(top.len(), 3);
        assert!(top.is_sorted_by(|a, b| a.logprob >= b.logprob));
        assert_eq!((top[0].token_id, top[0].logprob), (token.id, token.logprob));
    }
}

/// The prompt's tokens of a request that wants them, and how it went on.
fn scored(engine: &Engine, request: Request) -> (Vec<PromptToken>, Completion) {
    let mut generation = engine.submit(request).unwrap();
    let Some(Event::Prompt(prompt)) = generation.blocking_next() else {
        panic!("the prompt comes first");
    };
    (prompt, finish(generation).1)
}

/// Scoring a prompt gives each token the log-probability that it has as the next token of what is before it, to the bit, and
/// changes nothing about the output: over the border of a step's rows, too.
#[test]
fn a_prompt_is_scored_as_if_it_were_generated() {
    let engine = engine();
    let story = complete(&engine, seeded(&engine, PROMPT, 96, 3));
    let prompt: Vec<u32> = [&request(&engine, PROMPT, 0).prompt[..], &story.token_ids].concat();
    let asked = Request {
        prompt: prompt.clone(),
        prompt_logprobs: true,
        top_logprobs: 2,
        ..greedy(&engine, PROMPT, 4)
    };
    let plain = Request {
        prompt_logprobs: false,
        ..asked.clone()
    };
    let (tokens, completion) = scored(&engine, asked);
    assert_eq!(
        completion.token_ids,
        complete(&engine, plain).token_ids,
        "the output is the same"
    );
    let ids: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    assert_eq!(ids, prompt);
    assert_eq!((tokens[0].logprob, tokens[0].top_logprobs.len()), (None, 0));
    for at in [1, 2, 63, 64, 65, prompt.len() - 1] {
        // Only this token may be drawn, so it is: raw log-probabilities do not notice.
        let next = Request {
            prompt: prompt[..at].to_vec(),
            params: SamplingParams {
                allowed_token_ids: Some(vec![prompt[at]]),
                ..SamplingParams::default()
            },
            max_tokens: Some(1),
            top_logprobs: 2,
            ..Request::default()
        };
        let (drawn, _) = finish(engine.submit(next).unwrap());
        assert_eq!(tokens[at].logprob, Some(drawn[0].logprob), "{at}");
        assert_eq!(tokens[at].top_logprobs, drawn[0].top_logprobs, "{at}");
    }
}

/// With `max_tokens` 0 the prompt is computed, and can be scored, and nothing is drawn.
#[test]
fn a_prompt_can_be_computed_without_output() {
    let engine = engine();
    let (tokens, completion) = scored(
        &engine,
        Request {
            prompt_logprobs: true,
            ..request(&engine, PROMPT, 0)
        },
    );
    assert_eq!(tokens.len(), 4);
    assert_eq!(
        (completion.token_ids.len(), completion.text.as_str()),
        (0, "")
    );
    assert_eq!(completion.finish_reason, FinishReason::Length);
    assert_eq!(completion.sampling.mean_logprob(), None);
    wait_until("all blocks are free", || engine.load().used_blocks == 0);
}

/// The first token's logits come with it when they are wanted, and no other's.
#[test]
fn the_first_logits_are_told() {
    let engine = engine();
    let asked = Request {
        first_logits: true,
        ..greedy(&engine, PROMPT, 3)
    };
    let (tokens, _) = finish(engine.submit(asked).unwrap());
    let logits = tokens[0].logits.as_ref().unwrap();
    assert_eq!(logits.len(), engine.spec().vocab_size);
    let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    assert_eq!(best, Some(tokens[0].id as usize));
    assert!(tokens[1..].iter().all(|token| token.logits.is_none()));
}

/// A request ends with the token that is drawn when its time is over, and without one if it has none by then.
#[test]
fn time_is_limited() {
    let engine = engine();
    let endless = |time_limits| Request {
        params: SamplingParams {
            ignore_eos: Some(true),
            temperature: Some(0.0),
            ..SamplingParams::default()
        },
        time_limits,
        ..request(&engine, PROMPT, 1000)
    };
    let total = |total| TimeLimits {
        total: Some(total),
        ..TimeLimits::default()
    };
    let none = complete(&engine, endless(total(Duration::ZERO)));
    assert_eq!(none.finish_reason, FinishReason::TimeLimit);
    assert_eq!(none.token_ids.len(), 0);

    let begun = Instant::now();
    let (tokens, some) = finish(
        engine
            .submit(endless(total(Duration::from_millis(200))))
            .unwrap(),
    );
    assert_eq!(some.finish_reason, FinishReason::TimeLimit);
    assert!(begun.elapsed() >= Duration::from_millis(200));
    assert!((1..1000).contains(&tokens.len()), "{}", tokens.len());
    let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(text, some.text);
    wait_until("all blocks are free", || engine.load().used_blocks == 0);
}

/// The time after a newline ends a text at the first newline once it is over, never before.
#[test]
fn a_line_is_finished_before_its_time_is_over() {
    let engine = engine();
    let newline = engine.tokenizer().encode("\n", EncodeOptions::default());
    let (newline, word) = (newline.unwrap()[0], 451);
    let alternating = |allowed: Vec<u32>| Request {
        params: SamplingParams {
            allowed_token_ids: Some(allowed),
            ..SamplingParams::default()
        },
        time_limits: TimeLimits {
            after_newline: Some(Duration::ZERO),
            ..TimeLimits::default()
        },
        ..request(&engine, PROMPT, 12)
    };
    let line = complete(&engine, alternating(vec![newline]));
    assert_eq!(line.finish_reason, FinishReason::TimeLimit);
    assert_eq!(line.token_ids, [newline]);
    let endless = complete(&engine, alternating(vec![word]));
    assert_eq!(endless.finish_reason, FinishReason::Length);
    assert_eq!(endless.token_ids.len(), 12);
}

/// The completion says how many tokens could have been drawn, and how likely those were that were.
#[test]
fn a_completion_says_what_could_have_been_drawn() {
    let engine = engine();
    let sampled = |top_k, mode| {
        let mut request = seeded(&engine, PROMPT, 8, 5);
        request.params.top_k = Some(top_k);
        request.logprobs_mode = mode;
        finish(engine.submit(request).unwrap())
    };
    let (tokens, completion) = sampled(3, LogprobsMode::Raw);
    let stats = completion.sampling;
    assert_eq!((stats.tokens, stats.min_kept, stats.max_kept), (8, 3, 3));
    assert_eq!(stats.mean_kept(), Some(3.0));
    let sum: f64 = tokens.iter().map(|token| f64::from(token.logprob)).sum();
    assert_eq!(stats.mean_logprob(), Some(sum / 8.0));
    // What is drawn with certainty has probability 1 in the distribution that it is drawn from.
    let (tokens, completion) = sampled(1, LogprobsMode::Processed);
    assert!(tokens.iter().all(|token| token.logprob == 0.0));
    assert_eq!(completion.sampling.mean_logprob(), Some(0.0));
}

/// R5.2: a sequence that is held to a format writes it, seeded and in a batch; the others beside it write what they write alone.
#[test]
fn r5_2_a_constraint_holds_its_own_sequence_alone() {
    let engine = engine();
    let schema = json!({
        "type": "object",
        "properties": {"animal": {"enum": ["fox", "bear"]}, "legs": {"type": "integer", "minimum": 0, "maximum": 8}},
        "required": ["animal", "legs"],
        "additionalProperties": false,
    });
    let constraint = engine.constraint(Format::JsonSchema(schema)).unwrap();
    let constrained = |seed| Request {
        constraint: Some(constraint.clone()),
        ..seeded(&engine, PROMPT, 60, seed)
    };
    let alone: Vec<String> = (0..4)
        .map(|seed| {
            finish(engine.submit(seeded(&engine, PROMPT, 12, seed)).unwrap())
                .1
                .text
        })
        .collect();
    let mut requests: Vec<Request> = (0..4)
        .map(|seed| seeded(&engine, PROMPT, 12, seed))
        .collect();
    requests.extend((0..4).map(constrained));
    let generations = engine.submit_together(requests).unwrap();
    let completions: Vec<Completion> = generations.into_iter().map(|g| finish(g).1).collect();
    for (completion, alone) in completions.iter().zip(&alone) {
        assert_eq!(completion.text, *alone);
    }
    for (seed, completion) in (0..4).zip(&completions[4..]) {
        assert_eq!(completion.finish_reason, FinishReason::EndOfText);
        let value: serde_json::Value = serde_json::from_str(&completion.text).unwrap();
        assert!(
            ["fox", "bear"]
                .iter()
                .any(|animal| value["animal"] == *animal)
        );
        assert!(value["legs"].as_u64().unwrap() <= 8);
        let again = finish(engine.submit(constrained(seed)).unwrap()).1;
        assert_eq!(again.token_ids, completion.token_ids);
    }
}

/// R5.2: lengths and stop strings end a constrained text as they end others; what the request bans may leave nothing to draw.
#[test]
fn r5_2_a_constraint_and_other_ends() {
    let engine = engine();
    let format = |regex: &str| Some(engine.constraint(Format::Regex(regex.into())).unwrap());
    let of = |request| finish(engine.submit(request).unwrap()).1;
    let cut = of(Request {
        constraint: format("a{50}"),
        ..greedy(&engine, PROMPT, 2)
    });
    assert_eq!(cut.finish_reason, FinishReason::Length);
    assert!(!cut.text.is_empty() && cut.text.bytes().all(|byte| byte == b'a'));
    let stopped = of(Request {
        constraint: format("yes or no"),
        stop: vec![" or".into()],
        ..greedy(&engine, PROMPT, 20)
    });
    assert_eq!(stopped.text, "yes");
    assert_eq!(
        stopped.finish_reason,
        FinishReason::StopSequence(" or".into())
    );
    // The whole is there when nothing can follow, and needs no token more.
    let whole = of(Request {
        constraint: format("(yes|no)"),
        ..greedy(&engine, PROMPT, 20)
    });
    assert!(["yes", "no"].contains(&whole.text.as_str()));
    assert_eq!(whole.finish_reason, FinishReason::EndOfText);
    let story = engine.tokenizer().id_of("z").unwrap();
    let mut nothing = engine
        .submit(Request {
            constraint: format("yes"),
            params: SamplingParams {
                allowed_token_ids: Some(vec![story]),
                ..SamplingParams::default()
            },
            ..request(&engine, PROMPT, 4)
        })
        .unwrap();
    let failed = matches!(
        nothing.blocking_next(),
        Some(Event::Failed(GenerationError::Row { position: 0, .. }))
    );
    assert!(failed, "nothing can be drawn");
}
