//! The definition: slow, obvious, exact.

mod candidates;
mod draw;
mod logprobs;
mod masks;
mod penalties;
mod temperature;
mod truncation;

use std::ops::Range;

use crate::config::{Flags, Op, OpCode};
use crate::fixed;
use crate::random::{Counter, Purpose, uniform};
use crate::row::{Row, SampledToken, Status, TokenLogprob};
use crate::sampler::{Sampler, StageTrace, Trace};
use candidates::{Candidates, Weights};
use logprobs::Distribution;
use truncation::{Floor, Typical};

/// The sampler that defines the meaning of every parameter: integers, full sorts, one function per stage.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReferenceSampler;

impl ReferenceSampler {
    /// The sampler; it has no state.
    pub const fn new() -> Self {
        Self
    }
}

impl Sampler for ReferenceSampler {
    fn sample(&mut self, row: &Row<'_>) -> SampledToken {
        match Run::new(row).choose(&mut Vec::new()) {
            Ok(chosen) => chosen.token(row),
            Err(status) => SampledToken::failed(status),
        }
    }

    fn top_logprobs(&mut self, row: &Row<'_>, sampled: &SampledToken) -> Vec<TokenLogprob> {
        let distribution = if logprobs::wants_processed(row) {
            match Run::new(row).choose(&mut Vec::new()) {
                Ok(chosen) => chosen.distribution(),
                Err(_) => Distribution::None,
            }
        } else {
            Distribution::raw(row)
        };
        let mut top = distribution.top(row.logprobs.top as usize);
        let listed = top.iter().any(|entry| entry.token_id == sampled.token_id);
        if sampled.status == Status::Ok && !listed {
            let token_id = sampled.token_id;
            top.push(TokenLogprob {
                token_id,
                logprob: distribution.of(token_id),
            });
        }
        top
    }

    fn trace(&mut self, row: &Row<'_>) -> Trace {
        let mut stages = Vec::new();
        match Run::traced(row).choose(&mut stages) {
            Ok(chosen) => Trace {
                stages,
                distribution: chosen.probabilities(),
                sampled: chosen.token(row),
            },
            Err(status) => Trace {
                stages,
                distribution: Vec::new(),
                sampled: SampledToken::failed(status),
            },
        }
    }
}

/// A choice and what it was made from.
struct Chosen {
    candidates: Candidates,
    weights: Weights,
    /// Place of the choice among the candidates.
    index: usize,
    feedback: i32,
}

impl Chosen {
    fn token(&self, row: &Row<'_>) -> SampledToken {
        let token_id = self.candidates.as_slice()[self.index].id;
        let distribution = if logprobs::wants_processed(row) {
            self.distribution()
        } else {
            Distribution::raw(row)
        };
        SampledToken {
            token_id,
            logprob: distribution.of(token_id),
            kept_count: self.candidates.len() as u32,
            status: Status::Ok,
            feedback: self.feedback,
        }
    }

    fn distribution(&self) -> Distribution {
        Distribution::Processed {
            candidates: self.candidates.clone(),
            weights: self.weights.clone(),
            total: self.weights.total(),
        }
    }

    fn probabilities(&self) -> Vec<(u32, f64)> {
        let total = self.weights.total() as f64;
        let tokens = self.candidates.as_slice().iter().zip(&self.weights.q);
        tokens
            .map(|(token, q)| (token.id, *q as f64 / total))
            .collect()
    }
}

/// One pass of a row through its program.
struct Run<'a> {
    row: &'a Row<'a>,
    traced: bool,
}

impl<'a> Run<'a> {
    fn new(row: &'a Row<'a>) -> Self {
        Self { row, traced: false }
    }

    fn traced(row: &'a Row<'a>) -> Self {
        Self { row, traced: true }
    }

    /// Masks, then every operation; tells `stages` what each did if the run is traced.
    fn choose(&self, stages: &mut Vec<StageTrace>) -> Result<Chosen, Status> {
        let mut candidates = masks::candidates(self.row)?;
        if self.traced {
            let all = masks::tokens(self.row).filter(|token| token.logit.is_finite());
            stages.push(describe("bias", &Candidates::new(all)?, &candidates));
        }
        let (choice, stage_ops) = self.program();
        for op in stage_ops {
            let before = self.traced.then(|| candidates.clone());
            self.apply(*op, &mut candidates)?;
            if let Some(before) = before {
                stages.push(describe(op.code.name(), &before, &candidates));
            }
        }
        if candidates.len() == 0 {
            return Err(Status::Empty);
        }
        let before = self.traced.then(|| candidates.clone());
        let chosen = self.finish(choice, candidates)?;
        if let Some(before) = before {
            stages.push(describe(choice.code.name(), &before, &chosen.candidates));
        }
        Ok(chosen)
    }

    /// The operation that chooses, and those before it.
    fn program(&self) -> (Op, &'a [Op]) {
        let ops = self.row.params.tables().program.ops();
        ops.split_last()
            .map_or((Op::new(OpCode::Draw), &[]), |(last, others)| {
                (*last, others)
            })
    }

    /// One operation before the choice.
    fn apply(&self, op: Op, candidates: &mut Candidates) -> Result<(), Status> {
        let config = self.row.params.config();
        match op.code {
            OpCode::Dry => self.dry(candidates),
            OpCode::NoRepeatNgram => self.no_repeat_ngram(candidates),
            OpCode::Penalties => {
                let seen = penalties::Seen::of(self.row);
                candidates.edit(|token| seen.penalise(token, config))
            }
            OpCode::Temperature => {
                candidates.temperature = op.arg;
                Ok(())
            }
            OpCode::DynamicTemperature if candidates.len() > 0 => {
                candidates.temperature = temperature::dynamic(&candidates.weights()?, config);
                Ok(())
            }
            OpCode::Smoothing => temperature::smooth(candidates, config),
            _ if op.code.truncates() && candidates.len() > 0 => {
                let run = self.truncate(op, candidates)?;
                candidates.keep(run);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn dry(&self, candidates: &mut Candidates) -> Result<(), Status> {
        let penalties = penalties::dry(self.row);
        candidates.edit(|token| {
            penalties
                .get(&token.id)
                .map_or(token.logit, |penalty| token.logit - penalty)
        })
    }

    fn no_repeat_ngram(&self, candidates: &mut Candidates) -> Result<(), Status> {
        let size = self.row.params.config().no_repeat_ngram_size;
        let banned = penalties::repeated_ngrams(self.row.state.tokens(), size);
        candidates.edit(|token| {
            if banned.contains(&token.id) {
                f32::NEG_INFINITY
            } else {
                token.logit
            }
        })
    }

    /// The run that a truncation keeps of at least one candidate.
    fn truncate(&self, op: Op, candidates: &Candidates) -> Result<Range<usize>, Status> {
        let config = self.row.params.config();
        let min_keep = config.min_keep.max(1) as usize;
        let ties = config.flags & Flags::KEEP_TIES != 0;
        let weights = if op.code.weighs() {
            candidates.weights()?
        } else {
            Weights::none()
        };
        let floor = Floor { min_keep, ties };
        let at_probability =
            |probability, floor| truncation::epsilon(candidates, &weights, probability, floor);
        Ok(match op.code {
            OpCode::TopNSigma => truncation::top_n_sigma(candidates, op.arg, op.threshold as usize),
            OpCode::TopK => truncation::top_k(candidates, op.threshold, ties),
            OpCode::TypicalP => {
                let strict = config.flags & Flags::TYPICAL_STRICT != 0;
                let rule = Typical {
                    mass: op.threshold,
                    min_keep,
                    strict,
                    ties,
                };
                truncation::typical(candidates, &weights, rule)
            }
            OpCode::TopP => truncation::top_p(candidates, &weights, op.threshold, min_keep),
            OpCode::MinP => truncation::min_p(candidates, op.arg, min_keep),
            OpCode::Epsilon => at_probability(op.threshold, floor),
            OpCode::Eta => at_probability(
                truncation::eta_threshold(op.threshold, weights.surprise()),
                floor,
            ),
            OpCode::TopA => at_probability(
                truncation::top_a_threshold(op.threshold, &weights),
                Floor {
                    ties: false,
                    ..floor
                },
            ),
            OpCode::Tfs => truncation::tail_free(candidates, &weights, op.threshold, min_keep),
            OpCode::Xtc if self.excludes_top_choices() => {
                truncation::exclude_top_choices(candidates, &weights, op.threshold, min_keep)
            }
            _ => 0..candidates.len(),
        })
    }

    /// XTC's own coin: the high half of its uniform number is below the chance.
    fn excludes_top_choices(&self) -> bool {
        let chance = fixed::chance_q32(self.row.params.config().xtc_probability);
        self.random(Purpose::Xtc) >> 32 < chance
    }

    /// The row's random number for a purpose.
    fn random(&self, purpose: Purpose) -> u64 {
        let state = self.row.state;
        let counter = Counter {
            position: state.position(),
            purpose,
            choice: state.choice(),
            attempt: state.attempt(),
        };
        uniform(self.row.params.config().seed, counter)
    }

    /// The choice among at least one candidate.
    fn finish(&self, choice: Op, mut candidates: Candidates) -> Result<Chosen, Status> {
        let state = self.row.state;
        if choice.code == OpCode::Argmax {
            candidates.keep(0..1);
            return Ok(Chosen {
                candidates,
                weights: Weights::one(),
                index: 0,
                feedback: 0,
            });
        }
        let before = candidates.weights()?;
        match choice.code {
            OpCode::Mirostat1 => candidates.keep(draw::mirostat_1(
                &before,
                state.mirostat_mu(),
                self.row.params.config().vocab_size,
            )),
            OpCode::Mirostat2 => candidates.keep(draw::mirostat_2(&before, state.mirostat_mu())),
            _ => {}
        }
        let unadapted = candidates.clone();
        if choice.code == OpCode::AdaptiveP {
            draw::adapt(&mut candidates, &before, state.adaptive_target())?;
        }
        let weights = candidates.weights()?;
        let u = self
            .row
            .uniform
            .unwrap_or_else(|| self.random(Purpose::Draw));
        let index = draw::draw(&candidates, &weights, u).ok_or(Status::Empty)?;
        let id = candidates.as_slice()[index].id;
        let feedback = match choice.code {
            OpCode::Mirostat1 | OpCode::Mirostat2 => draw::surprise_q16(&weights, index),
            OpCode::AdaptiveP => {
                let place = unadapted.as_slice().iter().position(|token| token.id == id);
                place.map_or(0, |place| draw::probability_q16(&before, place))
            }
            _ => 0,
        };
        Ok(Chosen {
            candidates,
            weights,
            index,
            feedback,
        })
    }
}

/// What a stage did, from what it received and what it left.
fn describe(name: &'static str, before: &Candidates, after: &Candidates) -> StageTrace {
    let left: Vec<u32> = {
        let mut ids: Vec<u32> = after.as_slice().iter().map(|token| token.id).collect();
        ids.sort_unstable();
        ids
    };
    let is_left = |id: u32| left.binary_search(&id).is_ok();
    let removed = before.as_slice().iter().find(|token| !is_left(token.id));
    StageTrace {
        name,
        kept: after.len(),
        removed: before.len().saturating_sub(after.len()),
        first_removed: removed.map(|token| token.id),
        mass: before.weights().map_or(f64::NAN, |weights| {
            let tokens = before.as_slice().iter().zip(&weights.q);
            let kept: u64 = tokens
                .filter(|(token, _)| is_left(token.id))
                .map(|(_, q)| q)
                .sum();
            kept as f64 / weights.total() as f64
        }),
        entropy: after
            .weights()
            .map_or(f64::NAN, |weights| weights.entropy()),
        max_logit: after.max().unwrap_or(f32::NEG_INFINITY),
        temperature: after.temperature,
    }
}

#[cfg(test)]
mod tests;
