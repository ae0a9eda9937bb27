//! Faults: what a wrong sampler makes of a row. A [`Mutant`] is the reference with one fault; nothing of the crate knows of them.

use std::borrow::Cow;

use half::f16;
use nucleus_sampling::{
    CompiledParams, Counter, LogitsRow, Preset, Purpose, ReferenceSampler, Row, SampledToken,
    Sampler, SamplerState, SamplingParams, Stage, TokenLogprob, Trace, VocabInfo, uniform,
};

/// A row, taken apart, so that a fault can change it before the reference sees it.
pub(crate) struct Parts<'a> {
    row: &'a Row<'a>,
    /// The row's place in the batch.
    place: u32,
    request: SamplingParams,
    vocab: VocabInfo,
    state: SamplerState,
    logits: Vec<f32>,
    mask: Option<Vec<u32>>,
    uniform: Option<u64>,
}

/// Changes a row as a wrong sampler would have misunderstood it.
pub(crate) type Fault = fn(&mut Parts<'_>);

/// The reference with a fault.
pub(crate) struct Mutant(pub(crate) Fault);

impl<'a> Parts<'a> {
    fn of(row: &'a Row<'a>, place: u32) -> Self {
        let config = row.params.config();
        Self {
            row,
            place,
            request: row.params.effective().clone(),
            vocab: VocabInfo::new(config.vocab_size).with_eos(&row.params.tables().eos),
            state: row.state.clone(),
            logits: row.logits.to_f32(row.logits.len()),
            mask: row.mask.map(<[u32]>::to_vec),
            uniform: row.uniform,
        }
    }

    /// The request as changed, or as it was if the change is refused.
    fn compile(&self) -> Cow<'a, CompiledParams> {
        let old = self.row.params;
        let same = self.request == *old.effective() && self.vocab.size == old.config().vocab_size;
        let changed = (!same).then(|| self.request.validate(&self.vocab).ok());
        changed.flatten().map_or(Cow::Borrowed(old), Cow::Owned)
    }

    fn with<R>(&self, params: &CompiledParams, work: impl FnOnce(&Row<'_>) -> R) -> R {
        work(&Row {
            logits: LogitsRow::F32(&self.logits),
            params,
            state: &self.state,
            mask: self.mask.as_deref(),
            uniform: self.uniform,
            logprobs: self.row.logprobs,
        })
    }

    /// The tokens with their probabilities that reach a stage, in order; empty if the stage does not run.
    fn reaching(&self, stage: Stage) -> Vec<(u32, f64)> {
        let ops = self.row.params.tables().program.ops();
        if !ops.iter().any(|op| op.code.name() == stage.name()) {
            return Vec::new();
        }
        let preset = Preset::from_name(self.request.preset.as_deref().unwrap_or("default"));
        let order = || {
            preset
                .unwrap_or_default()
                .order()
                .map(|s| s.name().to_owned())
        };
        let order = self
            .request
            .samplers
            .clone()
            .unwrap_or_else(|| order().to_vec());
        let before = order
            .into_iter()
            .take_while(|name| Stage::from_name(name) != Some(stage));
        let request = SamplingParams {
            samplers: Some(before.collect()),
            mirostat: None,
            adaptive_target: None,
            ..self.request.clone()
        };
        request.validate(&self.vocab).map_or_else(
            |_| Vec::new(),
            |params| {
                self.with(&params, |row| {
                    ReferenceSampler::new().trace(row).distribution
                })
            },
        )
    }

    /// A state with another history, in which no sampler has learnt anything.
    fn replay(&mut self, prompt: &[u32], output: &[u32], attempts: u32) {
        let mut state = SamplerState::new(self.row.params, prompt);
        output.iter().for_each(|id| state.commit_forced(*id));
        for _ in 0..attempts {
            state.commit_forced(0);
            state.rewind(1);
        }
        let old = self.row.state;
        self.state = state.fork(old.choice()).at_position(old.position());
    }

    /// The uniform number of the row for a purpose.
    fn random(&self, purpose: Purpose) -> u64 {
        let counter = Counter {
            position: self.state.position(),
            purpose,
            choice: self.state.choice(),
            attempt: self.state.attempt(),
        };
        uniform(self.row.params.config().seed, counter)
    }

    fn change_uniform(&mut self, change: impl FnOnce(u64) -> u64) {
        let uniform = self.uniform.unwrap_or_else(|| self.random(Purpose::Draw));
        self.uniform = Some(change(uniform));
    }
}

impl Mutant {
    fn run<R>(&self, row: &Row<'_>, place: u32, work: impl FnOnce(&Row<'_>) -> R) -> R {
        let mut parts = Parts::of(row, place);
        (self.0)(&mut parts);
        parts.with(&parts.compile(), work)
    }
}

impl Sampler for Mutant {
    fn sample(&mut self, row: &Row<'_>) -> SampledToken {
        self.run(row, 0, |row| ReferenceSampler::new().sample(row))
    }

    fn sample_batch(&mut self, rows: &[Row<'_>], out: &mut Vec<SampledToken>) {
        out.clear();
        out.extend(
            (0..).zip(rows).map(|(place, row)| {
                self.run(row, place, |row| ReferenceSampler::new().sample(row))
            }),
        );
    }

    fn top_logprobs(&mut self, row: &Row<'_>, sampled: &SampledToken) -> Vec<TokenLogprob> {
        self.run(row, 0, |row| {
            ReferenceSampler::new().top_logprobs(row, sampled)
        })
    }

    fn trace(&mut self, row: &Row<'_>) -> Trace {
        self.run(row, 0, |row| ReferenceSampler::new().trace(row))
    }
}

/// No fault, to show that it is the faults that are noticed.
pub(crate) fn none(_: &mut Parts<'_>) {}

// Randomness.

pub(crate) fn place_enters_the_counter(parts: &mut Parts<'_>) {
    parts.state = parts.state.fork(parts.state.choice() ^ parts.place);
}

pub(crate) fn choice_does_not_enter_the_counter(parts: &mut Parts<'_>) {
    parts.state = parts.state.fork(0);
}

pub(crate) fn attempt_does_not_enter_the_counter(parts: &mut Parts<'_>) {
    if parts.state.attempt() > 0 {
        let (prompt, output) = (parts.row.state.prompt(), parts.row.state.output());
        parts.replay(prompt, output, 0);
    }
}

pub(crate) fn positions_start_at_one(parts: &mut Parts<'_>) {
    parts.state = parts
        .state
        .at_position(parts.state.position().wrapping_add(1));
}

pub(crate) fn draws_use_the_number_of_another_purpose(parts: &mut Parts<'_>) {
    parts.uniform = parts.uniform.or(Some(parts.random(Purpose::Xtc)));
}

pub(crate) fn halves_of_the_uniform_are_swapped(parts: &mut Parts<'_>) {
    parts.change_uniform(|uniform| uniform.rotate_left(32));
}

pub(crate) fn uniforms_have_8_bits(parts: &mut Parts<'_>) {
    parts.change_uniform(|uniform| uniform >> 56 << 56);
}

pub(crate) fn uniforms_have_24_bits(parts: &mut Parts<'_>) {
    parts.change_uniform(|uniform| uniform >> 40 << 40);
}

pub(crate) fn seeds_have_32_bits(parts: &mut Parts<'_>) {
    parts.request.seed = parts.request.seed.map(|seed| seed & 0xFFFF_FFFF);
}

pub(crate) fn the_xtc_coin_always_falls_on_yes(parts: &mut Parts<'_>) {
    let chance = parts.request.xtc_probability.filter(|chance| *chance > 0.0);
    parts.request.xtc_probability = chance.map(|_| 1.0);
}

/// The inverse CDF over the tokens in order of probability.
pub(crate) fn draw_goes_by_rank(parts: &mut Parts<'_>) {
    let params = parts.compile();
    let by_rank = parts.with(&params, |row| {
        ReferenceSampler::new().trace(row).distribution
    });
    let Some((last, _)) = by_rank.last().copied() else {
        return;
    };
    let uniform = parts.uniform.unwrap_or_else(|| parts.random(Purpose::Draw));
    let mut target = uniform as f64 / 2f64.powi(64);
    let drawn = by_rank.iter().find(|(_, prob)| {
        target -= prob;
        target < 0.0
    });
    let id = drawn.map_or(last, |(id, _)| *id);
    let below = by_rank.iter().filter(|(other, _)| *other < id);
    let own = by_rank.iter().find(|(other, _)| *other == id);
    let start: f64 = below.map(|(_, prob)| prob).sum();
    let middle = start + own.map_or(0.0, |(_, prob)| prob / 2.0);
    parts.uniform = Some((middle * 2f64.powi(64)) as u64);
}

// Temperature and weights.

pub(crate) fn temperature_is_a_little_high(parts: &mut Parts<'_>) {
    let temperature = parts.request.temperature.unwrap_or(1.0) * 1.05;
    parts.request.temperature = Some(temperature.min(1000.0));
}

pub(crate) fn temperature_is_hardly_high(parts: &mut Parts<'_>) {
    parts.request.temperature = parts.request.temperature.map(|t| (t * 1.002).min(1000.0));
}

/// The next f32, so that s is the one before, or the same.
pub(crate) fn scale_is_one_ulp_off(parts: &mut Parts<'_>) {
    let temperature = parts.request.temperature.unwrap_or(1.0) as f32;
    if temperature > 0.0 {
        parts.request.temperature = Some(f64::from(temperature.next_up().min(1000.0)));
    }
}

pub(crate) fn logits_have_half_precision(parts: &mut Parts<'_>) {
    let round = |logit: &mut f32| *logit = f16::from_f32(*logit).to_f32();
    parts.logits.iter_mut().for_each(round);
}

/// A greedy sampler that looks for the last of the largest logits.
pub(crate) fn greedy_takes_the_last_of_equals(parts: &mut Parts<'_>) {
    if parts.request.temperature == Some(0.0) {
        ties_go_to_the_higher_id(parts);
    }
}

/// A comparison that does not know NaN passes it over.
pub(crate) fn nan_is_passed_over(parts: &mut Parts<'_>) {
    let pass = |logit: &mut f32| {
        *logit = if logit.is_nan() {
            f32::NEG_INFINITY
        } else {
            *logit
        }
    };
    parts.logits.iter_mut().for_each(pass);
}

pub(crate) fn infinity_is_the_largest_number(parts: &mut Parts<'_>) {
    let clamp = |logit: &mut f32| *logit = logit.min(f32::MAX);
    parts.logits.iter_mut().for_each(clamp);
}

// Truncations.

/// Raises each of some equal logits by one unit in the last place above the one before.
pub(crate) fn ties_go_to_the_higher_id(parts: &mut Parts<'_>) {
    let original = parts.logits.clone();
    for (id, logit) in parts.logits.iter_mut().enumerate() {
        let before = original[..id]
            .iter()
            .filter(|other| *other == logit)
            .count();
        *logit = (0..before).fold(*logit, |logit, _| logit.next_up());
    }
}

/// The last of several equal logits is lost.
pub(crate) fn a_tie_is_dropped(parts: &mut Parts<'_>) {
    let original = parts.logits.clone();
    for id in 1..original.len() {
        if original[..id].contains(&original[id]) && !original[id + 1..].contains(&original[id]) {
            parts.logits[id] = f32::NEG_INFINITY;
        }
    }
}

pub(crate) fn top_k_keeps_one_less(parts: &mut Parts<'_>) {
    let less = |k: i64| if k > 1 { k - 1 } else { k };
    parts.request.top_k = parts.request.top_k.map(less);
}

/// The threshold is that of temperature 1.
pub(crate) fn min_p_forgets_the_temperature(parts: &mut Parts<'_>) {
    let temperature = parts.request.temperature.unwrap_or(1.0);
    if temperature > 0.0 {
        let power = |p: f64| p.powf(1.0 / temperature);
        parts.request.min_p = parts.request.min_p.map(power);
    }
}

pub(crate) fn only_the_top_80_percent_can_be_drawn(parts: &mut Parts<'_>) {
    parts.request.top_p = Some(parts.request.top_p.unwrap_or(1.0).min(0.8));
}

pub(crate) fn top_k_keeps_one_more(parts: &mut Parts<'_>) {
    parts.request.top_k = parts.request.top_k.map(|k| if k > 0 { k + 1 } else { k });
}

/// Keeps what is above the k-th logit, and the k-th only where nothing equals it.
pub(crate) fn top_k_drops_ties(parts: &mut Parts<'_>) {
    let reaching = parts.reaching(Stage::TopK);
    let k = parts.request.top_k.unwrap_or(0) as usize;
    let (Some(last), Some(next)) = (reaching.get(k.wrapping_sub(1)), reaching.get(k)) else {
        return;
    };
    let above = reaching
        .iter()
        .take_while(|(_, prob)| *prob > last.1)
        .count();
    if last.1 == next.1 && above > 0 {
        parts.request.top_k = Some(above as i64);
    }
}

pub(crate) fn min_p_drops_what_equals_the_threshold(parts: &mut Parts<'_>) {
    let above = |p: f64| f64::from((p as f32).next_up().min(1.0));
    let min_p = parts.request.min_p.filter(|p| *p > 0.0).map(above);
    parts.request.min_p = min_p.or(parts.request.min_p);
}

pub(crate) fn top_p_drops_the_token_that_crosses(parts: &mut Parts<'_>) {
    let (mut mass, p) = (0.0, parts.request.top_p.unwrap_or(1.0));
    let mut before = 0.0;
    for (_, prob) in parts.reaching(Stage::TopP) {
        (before, mass) = (mass, mass + prob);
        if mass >= p {
            break;
        }
    }
    if before > 0.0 {
        parts.request.top_p = Some(before * (1.0 - 1e-6));
    }
}

pub(crate) fn top_p_has_no_slack(parts: &mut Parts<'_>) {
    let above = |p: f64| f64::from((p as f32).next_up());
    let top_p = parts.request.top_p.filter(|p| *p < 1.0).map(above);
    parts.request.top_p = top_p.or(parts.request.top_p);
}

/// Measures the mass against the whole of what top_k received.
pub(crate) fn top_p_after_top_k_is_not_renormalised(parts: &mut Parts<'_>) {
    let k = parts.request.top_k.unwrap_or(0) as usize;
    let kept: f64 = parts
        .reaching(Stage::TopK)
        .iter()
        .take(k)
        .map(|(_, prob)| prob)
        .sum();
    if kept > 0.0 {
        parts.request.top_p = parts.request.top_p.map(|p| (p / kept).min(1.0));
    }
}

pub(crate) fn min_keep_is_ignored(parts: &mut Parts<'_>) {
    parts.request.min_keep = None;
}

// Penalties and masks.

pub(crate) fn repetition_looks_at_the_output_alone(parts: &mut Parts<'_>) {
    let (output, attempt) = (parts.row.state.output(), parts.row.state.attempt());
    parts.replay(&[], output, attempt);
}

pub(crate) fn frequency_counts_the_prompt(parts: &mut Parts<'_>) {
    let (tokens, attempt) = (parts.row.state.tokens(), parts.row.state.attempt());
    parts.replay(&[], tokens, attempt);
}

/// Of the tokens seen, only those with positive logits are penalised as they should be.
pub(crate) fn repetition_divides_negative_logits_too(parts: &mut Parts<'_>) {
    let penalty = parts.request.repetition_penalty.unwrap_or(1.0) as f32;
    for id in parts.row.state.tokens() {
        if let Some(logit) = parts.logits.get_mut(*id as usize).filter(|x| **x < 0.0) {
            // Once for every token of the history, however often it is there.
            let original = match parts.row.logits {
                LogitsRow::F32(row) => row[*id as usize],
                _ => *logit,
            };
            *logit = original / penalty / penalty;
        }
    }
}

pub(crate) fn a_window_is_one_token_short(parts: &mut Parts<'_>) {
    let shorter = |window: i64| if window > 0 { window - 1 } else { window };
    parts.request.repeat_last_n = parts.request.repeat_last_n.map(shorter);
}

pub(crate) fn dry_allows_one_more(parts: &mut Parts<'_>) {
    let allowed = parts.request.dry_allowed_length.unwrap_or(2);
    parts.request.dry_allowed_length = Some(allowed + 1);
}

pub(crate) fn the_end_is_banned_one_token_too_long(parts: &mut Parts<'_>) {
    let more = |tokens: u64| if tokens > 0 { tokens + 1 } else { tokens };
    parts.request.min_tokens = parts.request.min_tokens.map(more);
}

pub(crate) fn presence_counts_occurrences(parts: &mut Parts<'_>) {
    let presence = parts.request.presence_penalty.take().unwrap_or(0.0);
    let frequency = parts.request.frequency_penalty.unwrap_or(0.0) + presence;
    parts.request.frequency_penalty = Some(frequency.clamp(-100.0, 100.0));
}

pub(crate) fn missing_words_of_a_mask_allow(parts: &mut Parts<'_>) {
    let words = parts.logits.len().div_ceil(32);
    if let Some(mask) = parts.mask.as_mut().filter(|mask| mask.len() < words) {
        mask.resize(words, u32::MAX);
    }
}

pub(crate) fn ids_beyond_the_vocabulary_are_drawn(parts: &mut Parts<'_>) {
    let size = parts.logits.len().max(parts.vocab.size as usize);
    parts.vocab.size = size as u32;
}
