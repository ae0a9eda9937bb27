use super::*;

const BLOCK_SIZE: usize = 4;

fn scheduler(running: usize, step_tokens: usize, blocks: usize) -> Scheduler {
    with_limits(
        SchedulerLimits {
            running,
            waiting: 8,
            step_tokens,
            prefix_reuse: true,
        },
        blocks,
    )
}

fn with_limits(limits: SchedulerLimits, blocks: usize) -> Scheduler {
    Scheduler::new(limits, BLOCK_SIZE, BlockPool::new(blocks))
}

/// A sequence whose tokens no other one has.
fn arrival(id: u64, prompt: usize, capacity: usize) -> Arrival {
    let first = 1000 * id as u32;
    of_tokens(id, (first..first + prompt as u32).collect(), capacity)
}

fn of_tokens(id: u64, prompt: Vec<u32>, capacity: usize) -> Arrival {
    Arrival {
        id: SequenceId(id),
        prompt,
        capacity,
        alone: false,
    }
}

fn enqueue(scheduler: &mut Scheduler, id: u64, prompt: usize, capacity: usize) {
    scheduler
        .enqueue(vec![arrival(id, prompt, capacity)])
        .unwrap();
}

/// Runs a step as a model would: everything scheduled is computed, whoever samples grows by a token of its own.
fn execute(scheduler: &mut Scheduler) -> Step {
    let step = scheduler.schedule();
    step.runs.iter().for_each(|run| scheduler.computed(run));
    for id in step.runs.iter().flat_map(Scheduled::sampled) {
        scheduler.grown(id, 1000 * id.0 as u32 + 999);
    }
    step
}

/// [`execute`], as sequence, start, length and whether it samples.
fn run(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize, bool)> {
    execute(scheduler)
        .runs
        .iter()
        .map(|run| (run.id.0, run.start, run.len, run.samples))
        .collect()
}

#[test]
fn a_prompt_is_run_whole_then_decoded_token_by_token() {
    let mut scheduler = scheduler(4, 16, 4);
    enqueue(&mut scheduler, 7, 5, 8);
    assert_eq!(run(&mut scheduler), [(7, 0, 5, true)]);
    assert_eq!(run(&mut scheduler), [(7, 5, 1, true)]);
    assert_eq!(run(&mut scheduler), [(7, 6, 1, true)]);
}

#[test]
fn a_long_prompt_is_cut_into_budgets_and_samples_only_at_its_end() {
    let mut scheduler = scheduler(4, 4, 4);
    enqueue(&mut scheduler, 0, 10, 12);
    assert_eq!(run(&mut scheduler), [(0, 0, 4, false)]);
    assert_eq!(run(&mut scheduler), [(0, 4, 4, false)]);
    assert_eq!(run(&mut scheduler), [(0, 8, 2, true)]);
}

#[test]
fn decoding_goes_on_while_a_prompt_arrives() {
    let mut scheduler = scheduler(4, 4, 8);
    enqueue(&mut scheduler, 0, 2, 8);
    run(&mut scheduler);
    enqueue(&mut scheduler, 1, 7, 8);
    assert_eq!(run(&mut scheduler), [(0, 2, 1, true), (1, 0, 3, false)]);
    assert_eq!(run(&mut scheduler), [(0, 3, 1, true), (1, 3, 3, false)]);
    assert_eq!(run(&mut scheduler), [(0, 4, 1, true), (1, 6, 1, true)]);
}

/// In units of tokens that are computed: what a stream waits for its next token, from wherever in a step the prompt arrives.
#[test]
fn a_prompt_of_4000_tokens_delays_running_streams_by_at_most_two_budgets() {
    const BUDGET: usize = 512;
    const STREAMS: u64 = 8;
    let mut scheduler = scheduler(64, BUDGET, 4096);
    for id in 0..STREAMS {
        enqueue(&mut scheduler, id, 20, 200);
    }
    run(&mut scheduler);
    run(&mut scheduler);
    enqueue(&mut scheduler, 99, 4000, 4100);
    let mut steps = 0;
    loop {
        let step = run(&mut scheduler);
        steps += 1;
        let streams = step.iter().filter(|run| run.0 < STREAMS && run.3).count();
        assert_eq!(streams as u64, STREAMS);
        // The step in which the prompt arrives has begun; its tokens and those of the next step come before the stream's.
        let tokens: usize = step.iter().map(|run| run.2).sum();
        assert!(2 * tokens <= 2 * BUDGET, "{tokens} tokens in a step");
        if step.iter().any(|run| run.0 == 99 && run.3) {
            break;
        }
    }
    assert_eq!(steps, 4000_usize.div_ceil(BUDGET - STREAMS as usize));
}

#[test]
fn a_prompt_of_one_token_counts_as_a_prompt() {
    let mut scheduler = scheduler(4, 4, 8);
    enqueue(&mut scheduler, 0, 1, 4);
    assert_eq!(run(&mut scheduler), [(0, 0, 1, true)]);
    assert_eq!(run(&mut scheduler), [(0, 1, 1, true)]);
}

#[test]
fn prompts_share_a_budget_in_order_of_arrival() {
    let mut scheduler = scheduler(4, 8, 8);
    enqueue(&mut scheduler, 0, 6, 8);
    enqueue(&mut scheduler, 1, 6, 8);
    assert_eq!(run(&mut scheduler), [(0, 0, 6, true), (1, 0, 2, false)]);
}

#[test]
fn a_sequence_takes_blocks_as_it_grows_and_not_before() {
    let mut scheduler = scheduler(4, 16, 8);
    enqueue(&mut scheduler, 0, 4, 32);
    let used: Vec<usize> = (0..6)
        .map(|_| {
            run(&mut scheduler);
            scheduler.pool().used()
        })
        .collect();
    assert_eq!(used, [1, 2, 2, 2, 2, 3]);
}

#[test]
fn a_sequence_waits_until_its_blocks_are_free_and_nothing_overtakes_it() {
    let mut scheduler = scheduler(4, 16, 4);
    enqueue(&mut scheduler, 0, 4, 8);
    enqueue(&mut scheduler, 1, 12, 12);
    enqueue(&mut scheduler, 2, 1, 4);
    assert_eq!(run(&mut scheduler), [(0, 0, 4, true)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 2));
    assert!(scheduler.remove(SequenceId(0)));
    assert_eq!(run(&mut scheduler), [(1, 0, 12, true)]);
    assert!(scheduler.remove(SequenceId(1)));
    assert_eq!(run(&mut scheduler), [(2, 0, 1, true)]);
}

#[test]
fn at_most_so_many_run() {
    let mut scheduler = scheduler(1, 16, 8);
    enqueue(&mut scheduler, 0, 1, 4);
    enqueue(&mut scheduler, 1, 1, 4);
    assert_eq!(run(&mut scheduler), [(0, 0, 1, true)]);
    assert_eq!(scheduler.waiting(), 1);
}

#[test]
fn the_queue_is_bounded_and_places_that_are_free_do_not_count() {
    let mut scheduler = scheduler(1, 16, 8);
    for id in 0..9 {
        enqueue(&mut scheduler, id, 1, 4);
    }
    let full = AdmissionError::QueueFull {
        waiting: 9,
        limit: 8,
    };
    assert_eq!(scheduler.enqueue(vec![arrival(9, 1, 4)]), Err(full));
    run(&mut scheduler);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 8));
    assert!(scheduler.enqueue(vec![arrival(9, 1, 4)]).is_err());
    scheduler.remove(SequenceId(3));
    enqueue(&mut scheduler, 9, 1, 4);
}

#[test]
fn sequences_that_arrive_together_are_all_queued_or_none_is() {
    let mut scheduler = scheduler(1, 16, 4);
    let many = (0..10).map(|id| arrival(id, 1, 4)).collect();
    assert!(scheduler.enqueue(many).is_err());
    let one_too_long = vec![arrival(0, 1, 4), arrival(1, 1, 17)];
    assert!(scheduler.enqueue(one_too_long).is_err());
    assert_eq!(scheduler.waiting(), 0);
    assert!(scheduler.schedule().runs.is_empty());
}

#[test]
fn what_the_cache_could_never_hold_is_refused_at_once() {
    let mut scheduler = scheduler(4, 16, 2);
    let error = AdmissionError::TooLong {
        tokens: 9,
        needed: 3,
        available: 2,
    };
    assert_eq!(scheduler.enqueue(vec![arrival(0, 4, 9)]), Err(error));
    enqueue(&mut scheduler, 0, 4, 8);
}

#[test]
fn removing_frees_the_blocks_and_forgets_the_waiting() {
    let mut scheduler = scheduler(1, 16, 4);
    enqueue(&mut scheduler, 0, 4, 16);
    enqueue(&mut scheduler, 1, 4, 16);
    run(&mut scheduler);
    assert_eq!(scheduler.pool().used(), 1);
    assert!(scheduler.remove(SequenceId(1)));
    assert!(scheduler.remove(SequenceId(0)));
    assert!(!scheduler.remove(SequenceId(0)));
    assert_eq!((scheduler.pool().used(), scheduler.waiting()), (0, 0));
    assert!(scheduler.schedule().runs.is_empty());
}

#[test]
fn a_prompt_moves_on_however_many_decode() {
    let mut scheduler = scheduler(3, 3, 8);
    for id in 0..2 {
        enqueue(&mut scheduler, id, 1, 4);
    }
    run(&mut scheduler);
    enqueue(&mut scheduler, 2, 2, 4);
    assert_eq!(run(&mut scheduler)[2..], [(2, 0, 1, false)]);
    assert_eq!(run(&mut scheduler)[2..], [(2, 1, 1, true)]);
}

#[test]
#[should_panic(expected = "step_tokens")]
fn a_budget_that_decoding_could_eat_up_is_refused() {
    scheduler(4, 3, 8);
}

#[test]
fn who_came_last_is_evicted_and_comes_back_before_all_that_wait() {
    let mut scheduler = scheduler(4, 16, 4);
    enqueue(&mut scheduler, 0, 4, 12);
    enqueue(&mut scheduler, 1, 4, 12);
    for _ in 0..5 {
        assert_eq!(run(&mut scheduler).len(), 2);
    }
    enqueue(&mut scheduler, 2, 1, 4);
    // Each holds two full blocks, and the first needs one more.
    assert_eq!(run(&mut scheduler), [(0, 8, 1, true)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 2));
    assert_eq!(scheduler.counters().evictions, 1);
    // There is a free block, but who was evicted needs three, and comes first.
    assert_eq!(run(&mut scheduler), [(0, 9, 1, true)]);
    scheduler.remove(SequenceId(0));
    // Of its nine tokens, the first block was not overwritten.
    assert_eq!(run(&mut scheduler), [(1, 4, 5, true)]);
    assert_eq!(run(&mut scheduler), [(1, 9, 1, true)]);
}

#[test]
fn who_came_last_sits_a_step_out_rather_than_lose_its_blocks() {
    let mut scheduler = scheduler(4, 16, 4);
    enqueue(&mut scheduler, 0, 8, 12);
    enqueue(&mut scheduler, 1, 3, 12);
    assert_eq!(run(&mut scheduler), [(0, 0, 8, true), (1, 0, 3, true)]);
    assert_eq!(run(&mut scheduler), [(0, 8, 1, true), (1, 3, 1, true)]);
    for position in 9..12 {
        assert_eq!(run(&mut scheduler), [(0, position, 1, true)]);
    }
    scheduler.remove(SequenceId(0));
    assert_eq!(run(&mut scheduler), [(1, 4, 1, true)]);
    assert_eq!(scheduler.counters().evictions, 0);
}

#[test]
fn a_prompt_begins_behind_the_full_blocks_that_are_in_the_cache() {
    let mut scheduler = scheduler(4, 16, 8);
    scheduler
        .enqueue(vec![of_tokens(0, (0..10).collect(), 12)])
        .unwrap();
    run(&mut scheduler);
    // While the first one runs, and when it has gone.
    for id in 1..3 {
        let tokens = [0, 1, 2, 3, 4, 5, 6, 7, 70, 71].to_vec();
        scheduler.enqueue(vec![of_tokens(id, tokens, 12)]).unwrap();
        assert!(run(&mut scheduler).contains(&(id, 8, 2, true)));
        scheduler.remove(SequenceId(0));
        scheduler.remove(SequenceId(id));
    }
    let counters = scheduler.counters();
    assert_eq!((counters.admitted_tokens, counters.reused_tokens), (30, 16));
    assert_eq!(scheduler.pool().used(), 0);
}

#[test]
fn the_newest_token_is_computed_even_if_its_block_is_in_the_cache() {
    let mut scheduler = scheduler(4, 16, 8);
    for id in 0..2 {
        let tokens = (0..8).collect();
        scheduler.enqueue(vec![of_tokens(id, tokens, 9)]).unwrap();
        let start = 4 * id as usize;
        assert_eq!(run(&mut scheduler), [(id, start, 8 - start, true)]);
        scheduler.remove(SequenceId(id));
    }
}

#[test]
fn the_output_of_one_is_a_prefix_of_the_next() {
    let mut scheduler = scheduler(4, 16, 8);
    enqueue(&mut scheduler, 0, 6, 12);
    for _ in 0..4 {
        run(&mut scheduler);
    }
    scheduler.remove(SequenceId(0));
    let next = vec![0, 1, 2, 3, 4, 5, 999, 999, 999, 7];
    scheduler.enqueue(vec![of_tokens(1, next, 12)]).unwrap();
    assert_eq!(run(&mut scheduler), [(1, 8, 2, true)]);
}

#[test]
fn nothing_is_reused_when_that_is_switched_off() {
    let limits = SchedulerLimits {
        running: 4,
        waiting: 8,
        step_tokens: 16,
        prefix_reuse: false,
    };
    let mut scheduler = with_limits(limits, 8);
    for id in 0..2 {
        let tokens = (0..10).collect();
        scheduler.enqueue(vec![of_tokens(id, tokens, 12)]).unwrap();
        assert_eq!(run(&mut scheduler), [(id, 0, 10, true)]);
        scheduler.remove(SequenceId(id));
    }
    assert_eq!(scheduler.pool().cached(), 0);
}

#[test]
fn what_went_wrong_is_not_reused() {
    let mut scheduler = scheduler(4, 16, 8);
    for id in 0..2 {
        let tokens = (0..10).collect();
        scheduler.enqueue(vec![of_tokens(id, tokens, 12)]).unwrap();
        assert_eq!(run(&mut scheduler), [(id, 0, 10, true)]);
        scheduler.discard(SequenceId(id));
    }
    assert_eq!((scheduler.pool().used(), scheduler.pool().cached()), (0, 0));
}

/// A prompt whose beginning is computed, and others that find it there and end otherwise; each runs its last two tokens in the step that is told.
fn found_while_computed(others: u64, blocks: usize) -> (Scheduler, Step) {
    let mut scheduler = scheduler(4, 16, blocks);
    let ending = |id: u64| (0..16).chain([100 * id as u32, 7]).collect();
    scheduler
        .enqueue(vec![of_tokens(0, ending(9), 20)])
        .unwrap();
    assert_eq!(run(&mut scheduler), [(0, 0, 16, false)]);
    let arrivals = (1..=others).map(|id| of_tokens(id, ending(id), 20));
    scheduler.enqueue(arrivals.collect()).unwrap();
    let step = scheduler.schedule();
    let starts: Vec<_> = step.runs.iter().map(|run| (run.start, run.len)).collect();
    assert_eq!(starts, vec![(16, 2); 1 + others as usize]);
    step.runs.iter().for_each(|run| scheduler.computed(run));
    (scheduler, step)
}

#[test]
fn who_goes_wrong_after_what_it_found_is_computed_again_by_itself() {
    let (mut scheduler, _) = found_while_computed(2, 16);
    assert_eq!(scheduler.recompute(SequenceId(0)), None);
    scheduler.discard(SequenceId(0));
    scheduler.grown(SequenceId(1), PENDING);
    assert_eq!(scheduler.recompute(SequenceId(1)), Some(Vec::new()));
    assert_eq!(scheduler.recompute(SequenceId(1)), None);
    // A row was right: what it found was, too.
    scheduler.grown(SequenceId(2), 5);
    assert_eq!(scheduler.recompute(SequenceId(2)), None);
    assert_eq!(run(&mut scheduler), [(1, 0, 15, false), (2, 18, 1, true)]);
    assert_eq!(run(&mut scheduler), [(1, 15, 3, true), (2, 19, 1, true)]);
}

#[test]
fn who_is_computed_again_takes_the_blocks_of_who_came_last() {
    let (mut scheduler, _) = found_while_computed(2, 9);
    scheduler.discard(SequenceId(0));
    let last = SequenceId(2);
    scheduler.grown(last, PENDING);
    assert_eq!(scheduler.recompute(SequenceId(1)), Some(vec![last]));
    scheduler.assert_consistent();
    // Its own row is of no use either, and was drawn from when it was evicted.
    assert_eq!(scheduler.recompute(last), Some(Vec::new()));
    assert_eq!(scheduler.recompute(last), None);
    assert_eq!(run(&mut scheduler), [(1, 0, 16, false)]);
    assert_eq!(run(&mut scheduler), [(1, 16, 2, true)]);
}

/// The token that is pending when a sequence is evicted is waited for before it runs again.
#[test]
fn who_waits_for_its_token_is_not_admitted() {
    let (mut scheduler, _) = found_while_computed(2, 9);
    scheduler.discard(SequenceId(0));
    let last = SequenceId(2);
    assert_eq!(scheduler.recompute(SequenceId(1)), Some(vec![last]));
    scheduler.grown(last, PENDING);
    assert_eq!(run(&mut scheduler), [(1, 0, 16, false)]);
    assert_eq!((scheduler.running(), scheduler.waiting()), (1, 1));
    scheduler.grown(last, 5);
    scheduler.remove(SequenceId(1));
    assert_eq!(run(&mut scheduler), [(2, 0, 16, false)]);
}

/// Three of the same prompt, of one full block and half of another.
fn three_of_a_kind(step_tokens: usize, blocks: usize) -> Scheduler {
    let mut scheduler = scheduler(4, step_tokens, blocks);
    let arrivals = (0..3).map(|id| of_tokens(id, (0..6).collect(), 12));
    scheduler.enqueue(arrivals.collect()).unwrap();
    scheduler
}

#[test]
fn choices_of_a_prompt_share_its_blocks_until_they_write() {
    let mut scheduler = three_of_a_kind(16, 8);
    let first = execute(&mut scheduler);
    assert_eq!(first.runs.len(), 1);
    assert_eq!(first.runs[0].followers, [SequenceId(1), SequenceId(2)]);
    assert_eq!((scheduler.running(), scheduler.pool().used()), (3, 2));
    let prompt = first.runs[0].blocks.clone();
    assert_eq!(scheduler.pool().references(prompt[1]), 3);

    // Two copy the half block; then the last one has it alone.
    let second = execute(&mut scheduler);
    let blocks: Vec<_> = second.runs.iter().map(|run| run.blocks.clone()).collect();
    assert_eq!(second.runs.len(), 3);
    assert_eq!(
        second.copies,
        [(prompt[1], blocks[0][1]), (prompt[1], blocks[1][1])]
    );
    assert_eq!(blocks[2], prompt);
    assert_eq!(scheduler.pool().used(), 4);
    assert_eq!(scheduler.counters().reused_tokens, 12);
    for id in 0..3 {
        scheduler.remove(SequenceId(id));
    }
    assert_eq!(scheduler.pool().used(), 0);
}

#[test]
fn a_prompt_that_runs_already_is_followed() {
    let mut scheduler = scheduler(4, 4, 8);
    enqueue(&mut scheduler, 0, 6, 12);
    assert_eq!(run(&mut scheduler), [(0, 0, 4, false)]);
    let same = (0..6).collect();
    scheduler.enqueue(vec![of_tokens(1, same, 12)]).unwrap();
    let step = execute(&mut scheduler);
    assert_eq!((step.runs.len(), step.runs[0].start), (1, 4));
    assert_eq!(step.runs[0].followers, [SequenceId(1)]);
    assert_eq!(run(&mut scheduler).len(), 2);
}

#[test]
fn a_follower_takes_over_when_the_first_one_goes() {
    let mut scheduler = three_of_a_kind(4, 8);
    assert_eq!(run(&mut scheduler), [(0, 0, 4, false)]);
    scheduler.remove(SequenceId(0));
    let step = execute(&mut scheduler);
    assert_eq!((step.runs[0].id, step.runs[0].start), (SequenceId(1), 4));
    assert_eq!(step.runs[0].followers, [SequenceId(2)]);
    scheduler.remove(SequenceId(1));
    assert_eq!(run(&mut scheduler), [(2, 6, 1, true)]);
    scheduler.remove(SequenceId(2));
    assert_eq!(scheduler.pool().used(), 0);
}

#[test]
fn followers_that_find_no_block_to_copy_into_are_evicted() {
    // Room for the prompt and one more block.
    let mut scheduler = three_of_a_kind(16, 3);
    assert_eq!(execute(&mut scheduler).runs.len(), 1);
    // The first copies; the second would need a block, too, and the third goes.
    let second = execute(&mut scheduler);
    assert_eq!(second.copies.len(), 1);
    assert_eq!(
        second.runs.iter().map(|run| run.id.0).collect::<Vec<_>>(),
        [0, 1]
    );
    assert_eq!((scheduler.running(), scheduler.waiting()), (2, 1));
}

/// A sequence that is to be computed alone neither follows one of the same tokens nor finds them in the cache, not even once
/// it has been evicted.
#[test]
fn a_sequence_may_be_computed_alone() {
    let mut scheduler = with_limits(
        SchedulerLimits {
            running: 4,
            waiting: 4,
            step_tokens: 64,
            prefix_reuse: true,
        },
        16,
    );
    let tokens: Vec<u32> = (0..9).collect();
    let alone = |id| Arrival {
        alone: true,
        ..of_tokens(id, tokens.clone(), 12)
    };
    scheduler
        .enqueue(vec![of_tokens(1, tokens.clone(), 12), alone(2)])
        .unwrap();
    let step = scheduler.schedule();
    let runs: Vec<_> = step
        .runs
        .iter()
        .map(|run| (run.id.0, run.start, run.len))
        .collect();
    assert_eq!(runs, [(1, 0, 9), (2, 0, 9)]);
    assert!(step.runs.iter().all(|run| run.followers.is_empty()));
    step.runs.iter().for_each(|run| scheduler.computed(run));
    scheduler.remove(SequenceId(1));
    scheduler
        .enqueue(vec![alone(3), of_tokens(4, tokens.clone(), 12)])
        .unwrap();
    scheduler.grown(SequenceId(2), 9);
    let starts: Vec<_> = scheduler
        .schedule()
        .runs
        .iter()
        .map(|run| (run.id.0, run.start))
        .collect();
    assert_eq!(starts, [(2, 9), (3, 0)], "4 follows 3, which found nothing");
}

/// [`execute`] before it is known what is drawn: whoever samples grows by a pending token.
fn execute_ahead(scheduler: &mut Scheduler) -> Step {
    let step = scheduler.schedule();
    step.runs.iter().for_each(|run| scheduler.computed(run));
    for id in step.runs.iter().flat_map(Scheduled::sampled) {
        scheduler.grown(id, PENDING);
    }
    step
}

#[test]
fn a_step_is_scheduled_behind_a_pending_token() {
    let mut scheduler = scheduler(4, 16, 4);
    enqueue(&mut scheduler, 7, 3, 8);
    execute_ahead(&mut scheduler);
    // The token is at position 3 whatever it is.
    let step = scheduler.schedule();
    assert_eq!((step.runs[0].start, step.runs[0].len), (3, 1));
    scheduler.grown(SequenceId(7), 55);
    scheduler.computed(&step.runs[0]);
    scheduler.grown(SequenceId(7), PENDING);
    scheduler.grown(SequenceId(7), 56);
    scheduler.remove(SequenceId(7));
    // The block that the token filled is found by it.
    let again = of_tokens(8, vec![7000, 7001, 7002, 55, 56], 8);
    scheduler.enqueue(vec![again]).unwrap();
    assert_eq!(run(&mut scheduler), [(8, 4, 1, true)]);
}

/// The row may turn out to be NaN, and its keys and values with it.
#[test]
fn what_a_token_is_drawn_from_is_found_when_there_is_a_token() {
    for (is_known, start) in [(false, 0), (true, 8)] {
        let mut scheduler = scheduler(4, 16, 8);
        let prompt: Vec<u32> = (0..9).collect();
        let longer = [&prompt[..], &[77]].concat();
        let first = of_tokens(1, prompt, 12);
        scheduler.enqueue(vec![first]).unwrap();
        execute_ahead(&mut scheduler);
        if is_known {
            scheduler.grown(SequenceId(1), 55);
        }
        scheduler.enqueue(vec![of_tokens(2, longer, 12)]).unwrap();
        let runs = scheduler.schedule().runs;
        let second = runs.iter().find(|run| run.id == SequenceId(2)).unwrap();
        assert_eq!(second.start, start);
    }
}

#[test]
fn who_waited_for_a_prompt_that_failed_goes_on_from_what_was_looked_at() {
    let mut scheduler = scheduler(4, 4, 8);
    let tokens: Vec<u32> = (0..9).collect();
    let scored = Arrival {
        alone: true,
        ..of_tokens(1, tokens.clone(), 12)
    };
    scheduler
        .enqueue(vec![scored, of_tokens(2, tokens, 12)])
        .unwrap();
    assert_eq!(run(&mut scheduler), [(1, 0, 4, false)]);
    assert_eq!(run(&mut scheduler), [(1, 4, 4, false)]);
    // A score of the second run is NaN.
    scheduler.discard(SequenceId(1));
    assert_eq!(run(&mut scheduler), [(2, 4, 4, false)]);
    scheduler.assert_consistent();
}

#[test]
fn nothing_runs_behind_the_last_token() {
    let mut scheduler = scheduler(4, 16, 2);
    enqueue(&mut scheduler, 1, 3, 5);
    execute_ahead(&mut scheduler);
    scheduler.grown(SequenceId(1), 55);
    execute_ahead(&mut scheduler);
    assert_eq!(execute_ahead(&mut scheduler), Step::default());
    // The prompt that is all there is runs all the same: its token is known.
    scheduler.remove(SequenceId(1));
    enqueue(&mut scheduler, 2, 3, 3);
    assert_eq!(run(&mut scheduler), [(2, 0, 3, true)]);
}

#[test]
fn the_evicted_are_named_and_learn_their_pending_token() {
    let mut scheduler = scheduler(4, 16, 3);
    enqueue(&mut scheduler, 1, 4, 12);
    enqueue(&mut scheduler, 2, 3, 8);
    execute_ahead(&mut scheduler);
    for id in [1, 2] {
        scheduler.grown(SequenceId(id), 50 + id as u32);
    }
    // The first takes the third block; the next one that it needs is the second's.
    for _ in 0..3 {
        execute_ahead(&mut scheduler);
        scheduler.grown(SequenceId(1), 60);
        scheduler.grown(SequenceId(2), 61);
    }
    let step = execute_ahead(&mut scheduler);
    assert_eq!(step.evicted, []);
    let step = scheduler.schedule();
    assert_eq!(step.evicted, [SequenceId(2)]);
    scheduler.grown(SequenceId(2), 77);
    scheduler.remove(SequenceId(1));
    let step = scheduler.schedule();
    let resumed = &step.runs[0];
    assert_eq!(
        (resumed.id, resumed.start + resumed.len),
        (SequenceId(2), 8)
    );
}
