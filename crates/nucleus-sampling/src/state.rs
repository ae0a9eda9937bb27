//! What a sequence remembers between tokens.

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::{CompiledParams, OpCode};
use crate::fixed::{self, ONE_Q16};
use crate::row::{SampledToken, Status};

/// How often each token occurs.
pub(crate) type Counts = HashMap<u32, u32>;

/// History and running values of one sequence.
///
/// It outlives eviction (it can be cloned and kept) and does not depend on where the sequence runs. Committing each token again with its
/// [`feedback`](SampledToken::feedback) to a [new](Self::new) state of the same parameters, seed and prompt gives an equal one, unless it was rewound.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerState {
    tokens: Vec<u32>,
    prompt_len: usize,
    prompt_counts: Arc<Counts>,
    output_counts: Counts,
    choice: u32,
    attempt: u32,
    /// Added to the number of generated tokens to give the position.
    ahead: u32,
    learner: Learner,
    /// What the learner was told at each output token; empty without a learner.
    lessons: Vec<Option<i32>>,
}

impl SamplerState {
    /// The state before the first token.
    pub fn new(params: &CompiledParams, prompt: &[u32]) -> Self {
        let mut prompt_counts = Counts::new();
        for id in prompt {
            *prompt_counts.entry(*id).or_insert(0) += 1;
        }
        Self {
            tokens: prompt.to_vec(),
            prompt_len: prompt.len(),
            prompt_counts: Arc::new(prompt_counts),
            output_counts: Counts::new(),
            choice: 0,
            attempt: 0,
            ahead: 0,
            learner: Learner::new(params),
            lessons: Vec::new(),
        }
    }

    /// Takes the token a sampler chose; a row without a token changes nothing.
    pub fn commit(&mut self, sampled: &SampledToken) {
        if sampled.status == Status::Ok {
            self.push(sampled.token_id, Some(sampled.feedback));
        }
    }

    /// Takes a token that no sampler chose (from a template, a grammar, a replayed history): mirostat and adaptive-p learn nothing from it.
    pub fn commit_forced(&mut self, token_id: u32) {
        self.push(token_id, None);
    }

    fn push(&mut self, token_id: u32, lesson: Option<i32>) {
        self.tokens.push(token_id);
        *self.output_counts.entry(token_id).or_insert(0) += 1;
        if self.learner.learns() {
            self.lessons.push(lesson);
            self.learner.learn(lesson);
        }
    }

    /// Takes back the last `n` generated tokens (at most all of them).
    ///
    /// If any was taken back, the attempt is raised, so that the tokens from here on are drawn with fresh random numbers: the old ones would
    /// lead to the same token, or, where that is banned now, be biased.
    pub fn rewind(&mut self, n: usize) {
        let n = n.min(self.output().len());
        if n == 0 {
            return;
        }
        let kept = self.tokens.len() - n;
        for id in self.tokens.split_off(kept) {
            self.forget(id);
        }
        self.attempt = self.attempt.wrapping_add(1);
        self.lessons.truncate(kept - self.prompt_len);
        self.learner.restart();
        self.lessons
            .iter()
            .for_each(|lesson| self.learner.learn(*lesson));
    }

    fn forget(&mut self, id: u32) {
        if let Some(count) = self.output_counts.get_mut(&id) {
            *count -= 1;
            if *count == 0 {
                self.output_counts.remove(&id);
            }
        }
    }

    /// The same state as another completion of the same prompt, with its own random numbers. Choice 0 is what a single completion is.
    #[must_use]
    pub fn fork(&self, choice: u32) -> Self {
        Self {
            choice,
            ..self.clone()
        }
    }

    /// The same state with the next token drawn as the one at `position`: the history stays, the random numbers are another
    /// position's. For many independent draws from one row.
    #[must_use]
    pub fn at_position(&self, position: u32) -> Self {
        Self {
            ahead: position.wrapping_sub(self.output().len() as u32),
            ..self.clone()
        }
    }

    /// The prompt.
    pub fn prompt(&self) -> &[u32] {
        &self.tokens[..self.prompt_len]
    }

    /// The generated tokens.
    pub fn output(&self) -> &[u32] {
        &self.tokens[self.prompt_len..]
    }

    /// Prompt and generated tokens.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// How often each token occurs in the prompt.
    pub fn prompt_counts(&self) -> &HashMap<u32, u32> {
        &self.prompt_counts
    }

    /// How often each token has been generated.
    pub fn output_counts(&self) -> &HashMap<u32, u32> {
        &self.output_counts
    }

    /// 0-based index of the token to be drawn.
    pub fn position(&self) -> u32 {
        (self.output().len() as u32).wrapping_add(self.ahead)
    }

    /// Which of a prompt's completions this is.
    pub fn choice(&self) -> u32 {
        self.choice
    }

    /// How many times generation has been rewound.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// Mirostat's largest surprise mu in bits, in Q16.16; 0 without mirostat.
    pub fn mirostat_mu(&self) -> i32 {
        match self.learner {
            Learner::Mirostat { mu, .. } => mu,
            _ => 0,
        }
    }

    /// The probability that adaptive-p aims at for the next token, in Q16.16; 0 without adaptive-p.
    pub fn adaptive_target(&self) -> i32 {
        match self.learner {
            Learner::Adaptive {
                target,
                sum,
                weight,
                ..
            } => adapted_target(target, sum, weight),
            _ => 0,
        }
    }

    /// What a device has to know besides the tokens to go on from here.
    #[cfg(feature = "cuda")]
    pub(crate) fn running(&self) -> Running {
        let (mirostat_mu, adaptive_sum, adaptive_weight) = match self.learner {
            Learner::None => (0, 0, 0),
            Learner::Mirostat { mu, .. } => (mu, 0, 0),
            Learner::Adaptive { sum, weight, .. } => (0, sum, weight),
        };
        Running {
            ahead: self.ahead,
            mirostat_mu,
            adaptive_sum,
            adaptive_weight,
        }
    }
}

/// The running values of a state, as plain numbers.
#[cfg(feature = "cuda")]
pub(crate) struct Running {
    /// Added to the number of generated tokens to give the position.
    pub(crate) ahead: u32,
    /// Q16.16; 0 without mirostat.
    pub(crate) mirostat_mu: i32,
    /// Q16.16; 0 without adaptive-p.
    pub(crate) adaptive_sum: i64,
    /// Q16.16; 0 without adaptive-p.
    pub(crate) adaptive_weight: i64,
}

/// mu never leaves [-2^14, 2^14] bits.
const MU_LIMIT: i64 = 1 << 30;

/// A running value that follows the tokens chosen. All numbers are Q16.16.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Learner {
    None,
    /// mu starts at 2 tau; mu <- mu - eta (surprise - tau).
    Mirostat {
        tau: i64,
        eta: i64,
        mu: i32,
    },
    /// Exponentially weighted sum of the chosen tokens' probabilities, and of 1.
    Adaptive {
        target: i64,
        decay: i64,
        sum: i64,
        weight: i64,
    },
}

impl Learner {
    fn new(params: &CompiledParams) -> Self {
        let config = params.config();
        let mut learner = match params.tables().program.ops().last().map(|op| op.code) {
            Some(OpCode::Mirostat1 | OpCode::Mirostat2) => Self::Mirostat {
                tau: fixed::q16(config.mirostat_tau),
                eta: fixed::q16(config.mirostat_eta),
                mu: 0,
            },
            Some(OpCode::AdaptiveP) => Self::Adaptive {
                target: fixed::q16(config.adaptive_target),
                decay: fixed::q16(config.adaptive_decay),
                sum: 0,
                weight: 0,
            },
            _ => Self::None,
        };
        learner.restart();
        learner
    }

    fn learns(&self) -> bool {
        *self != Self::None
    }

    fn restart(&mut self) {
        match self {
            Self::None => {}
            Self::Mirostat { tau, mu, .. } => *mu = (2 * *tau) as i32,
            // The sums that an endless past of tokens exactly on target would have left (llama.cpp, llama_sampler_init_adaptive_p).
            Self::Adaptive {
                target,
                decay,
                sum,
                weight,
            } => {
                *sum = (*target << 16) / (ONE_Q16 - *decay);
                *weight = (ONE_Q16 << 16) / (ONE_Q16 - *decay);
            }
        }
    }

    fn learn(&mut self, lesson: Option<i32>) {
        let Some(value) = lesson.map(i64::from) else {
            return;
        };
        match self {
            Self::None => {}
            Self::Mirostat { tau, eta, mu } => {
                let step = times(*eta, value - *tau);
                *mu = (i64::from(*mu) - step).clamp(-MU_LIMIT, MU_LIMIT) as i32;
            }
            Self::Adaptive {
                decay, sum, weight, ..
            } => {
                *sum = value + times(*decay, *sum);
                *weight = ONE_Q16 + times(*decay, *weight);
            }
        }
    }
}

/// Product of two Q16 numbers, rounded to nearest.
fn times(a: i64, b: i64) -> i64 {
    (a * b + (1 << 15)) >> 16
}

/// 2 target - average, within [0, 1].
fn adapted_target(target: i64, sum: i64, weight: i64) -> i32 {
    let average = (sum << 16) / weight.max(1);
    (2 * target - average).clamp(0, ONE_Q16) as i32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::VocabInfo;
    use crate::params::SamplingParams;

    fn state(params: SamplingParams) -> SamplerState {
        let compiled = params
            .validate(&VocabInfo::new(10))
            .expect("valid parameters");
        SamplerState::new(&compiled, &[1, 2, 1])
    }

    fn chosen(token_id: u32, feedback: i32) -> SampledToken {
        SampledToken {
            token_id,
            logprob: 0.0,
            kept_count: 1,
            status: Status::Ok,
            feedback,
        }
    }

    #[test]
    fn history_counts_prompt_and_output_apart() {
        let mut state = state(SamplingParams::default());
        state.commit(&chosen(2, 0));
        state.commit_forced(2);
        assert_eq!(state.tokens(), [1, 2, 1, 2, 2]);
        assert_eq!(
            (state.prompt_counts()[&1], state.prompt_counts()[&2]),
            (2, 1)
        );
        assert_eq!(state.output_counts(), &Counts::from([(2, 2)]));
        assert_eq!(state.position(), 2);
    }

    #[test]
    fn a_row_without_a_token_changes_nothing() {
        let mut state = state(SamplingParams::default());
        let before = state.clone();
        state.commit(&SampledToken::failed(Status::Nan));
        assert_eq!(state, before);
    }

    #[test]
    fn rewind_restores_everything_but_the_attempt() {
        let params = SamplingParams {
            mirostat: Some(2),
            ..Default::default()
        };
        let mut state = state(params);
        state.commit(&chosen(3, 1 << 16));
        let before = state.clone();
        state.commit(&chosen(4, 9 << 16));
        state.commit_forced(5);
        state.rewind(2);
        assert_eq!(state.attempt(), 1);
        assert_eq!(
            SamplerState {
                attempt: 0,
                ..state
            },
            before
        );
    }

    #[test]
    fn rewind_stops_at_the_prompt_and_does_nothing_for_nothing() {
        let mut state = state(SamplingParams::default());
        state.rewind(3);
        assert_eq!((state.attempt(), state.tokens()), (0, [1, 2, 1].as_slice()));
        state.commit_forced(7);
        state.rewind(99);
        assert_eq!((state.attempt(), state.output()), (1, [].as_slice()));
    }

    #[test]
    fn mirostat_moves_mu_by_eta_times_the_error() {
        let params = SamplingParams {
            mirostat: Some(1),
            mirostat_tau: Some(3.0),
            mirostat_eta: Some(0.5),
            ..Default::default()
        };
        let mut state = state(params);
        assert_eq!(state.mirostat_mu(), 6 << 16);
        state.commit(&chosen(0, 5 << 16));
        assert_eq!(state.mirostat_mu(), 5 << 16, "6 - 0.5 * (5 - 3)");
        state.commit_forced(0);
        assert_eq!(
            state.mirostat_mu(),
            5 << 16,
            "a forced token teaches nothing"
        );
    }

    #[test]
    fn adaptive_target_leans_against_the_average() {
        let params = SamplingParams {
            adaptive_target: Some(0.5),
            adaptive_decay: Some(0.5),
            ..Default::default()
        };
        let mut state = state(params);
        assert_eq!(state.adaptive_target(), 1 << 15, "on target at the start");
        state.commit(&chosen(0, 1 << 16));
        // sum = 1 + 0.5 * 1 = 1.5, weight = 1 + 0.5 * 2 = 2, average 0.75, target 2 * 0.5 - 0.75.
        assert_eq!(state.adaptive_target(), 1 << 14);
    }

    #[test]
    fn another_position_keeps_the_history() {
        let mut state = state(SamplingParams::default());
        state.commit_forced(7);
        let mut moved = state.at_position(40);
        assert_eq!((moved.position(), moved.tokens()), (40, state.tokens()));
        moved.commit_forced(8);
        assert_eq!(moved.position(), 41);
        assert_eq!(state.at_position(0).position(), 0);
        assert_eq!(state.at_position(1), state);
    }

    #[test]
    fn a_fork_differs_in_its_choice_alone() {
        let state = state(SamplingParams::default());
        let fork = state.fork(3);
        assert_eq!(fork.choice(), 3);
        assert_eq!(SamplerState { choice: 0, ..fork }, state);
    }
}
