//! The choice that ends a program.

use super::formulas::{self, MIROSTAT_TOKENS};
use super::kernels::BLOCK;
use super::key::Key;
use super::run::Run;
use super::wide::{Floor, Form, Mass};
use crate::config::{Op, OpCode};
use crate::cpu::cdf;
use crate::fixed::{self, Surprise};
use crate::random::Purpose;
use crate::row::Status;

/// A token and what it was chosen from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chosen {
    pub(super) id: u32,
    /// How many tokens could have been drawn.
    pub(super) count: usize,
    pub(super) feedback: i32,
    /// Its weight and Z.
    pub(super) weight: u64,
    pub(super) total: u64,
}

/// A token drawn by its weight.
#[derive(Clone, Copy, Debug)]
struct Drawn {
    id: u32,
    logit: f32,
    weight: u64,
}

impl Run<'_> {
    /// The choice among what is left, which becomes what could have been drawn.
    ///
    /// # Errors
    /// [`Status::Empty`] if nothing is left; [`Status::Overflow`] if weights are out of range.
    pub(super) fn choose(&mut self, op: Op) -> Result<Chosen, Status> {
        if self.is_empty() {
            return Err(Status::Empty);
        }
        let mu = self.row.state.mirostat_mu();
        match op.code {
            OpCode::Argmax => self.argmax(),
            OpCode::Mirostat1 => {
                self.mirostat_1(mu)?;
                self.draw_and_learn()
            }
            OpCode::Mirostat2 => {
                self.mirostat_2(mu)?;
                self.draw_and_learn()
            }
            OpCode::AdaptiveP => self.adapt(),
            _ => self.draw().map(|(drawn, mass)| self.chosen(drawn, mass, 0)),
        }
    }

    fn chosen(&mut self, drawn: Drawn, mass: Mass, feedback: i32) -> Chosen {
        let count = self.count();
        Chosen {
            id: drawn.id,
            count,
            feedback,
            weight: drawn.weight,
            total: mass.total,
        }
    }

    /// The best token alone.
    fn argmax(&mut self) -> Result<Chosen, Status> {
        self.first(1, false);
        let best = self.list.keys().first().ok_or(Status::Empty)?;
        let one = 1 << fixed::WEIGHT_BITS;
        Ok(Chosen {
            id: best.id(),
            count: 1,
            feedback: 0,
            weight: one,
            total: one,
        })
    }

    /// Draws by weight: the smallest id whose inclusive sum of weights, by ascending id, exceeds floor(U Z / 2^64).
    fn draw(&mut self) -> Result<(Drawn, Mass), Status> {
        let mass = self.weigh()?;
        let uniform = self
            .row
            .uniform
            .unwrap_or_else(|| self.random(Purpose::Draw));
        let target = fixed::mulhi64(uniform, mass.total);
        let drawn = if self.listed {
            self.draw_listed(target)
        } else {
            self.draw_wide(mass, target)
        };
        drawn.map(|drawn| (drawn, mass)).ok_or(Status::Empty)
    }

    fn draw_listed(&mut self, target: u64) -> Option<Drawn> {
        let weights = self.list.weights();
        let keys = self.list.keys();
        let order = &mut self.wide.buffers().codes;
        order.clear();
        order.extend(0..keys.len() as u32);
        order.sort_unstable_by_key(|place| keys[*place as usize].id());
        let place = cdf::linear(order.iter().map(|place| weights[*place as usize]), target)?;
        let place = order[place] as usize;
        Some(Drawn {
            id: keys[place].id(),
            logit: keys[place].logit(),
            weight: weights[place],
        })
    }

    fn draw_wide(&mut self, mass: Mass, target: u64) -> Option<Drawn> {
        let (block, before) = cdf::block(self.wide.sums(), target)?;
        let (mut buffer, mut weights) = ([0.0; BLOCK], [0; BLOCK]);
        let logits = self.wide.view().block(block, &mut buffer);
        self.wide.simd.weigh_each(logits, mass.scale, &mut weights);
        let place = cdf::linear(weights.iter().copied(), target - before)?;
        Some(Drawn {
            id: (block * BLOCK + place) as u32,
            logit: logits[place],
            weight: weights[place],
        })
    }

    /// Draws; mirostat learns the surprise in bits.
    fn draw_and_learn(&mut self) -> Result<Chosen, Status> {
        let (drawn, mass) = self.draw()?;
        let y = mass.scale.log2_q16(drawn.logit);
        let surprise = (offset_q16(mass) - y).clamp(0, i64::from(i32::MAX));
        Ok(self.chosen(drawn, mass, surprise as i32))
    }

    /// Mirostat 1 (Basu et al., 2021, algorithm 1): the first k, with k from an estimate of Zipf's exponent.
    fn mirostat_1(&mut self, mu: i32) -> Result<(), Status> {
        let scale = self.scale()?;
        let keys = self.best(MIROSTAT_TOKENS as u64);
        let logits = keys.iter().take(MIROSTAT_TOKENS).map(|key| key.logit());
        let mut best = [0; MIROSTAT_TOKENS];
        let mut count = 0;
        for logit in logits.take_while(|logit| scale.weight(*logit) > 0) {
            best[count] = scale.log2_q16(logit);
            count += 1;
        }
        if let Some(exponent) = formulas::zipf_exponent_q16(&best[..count]) {
            let vocab_size = self.row.params.config().vocab_size;
            self.first(
                formulas::mirostat_k(exponent, i64::from(mu), vocab_size).max(1),
                false,
            );
        }
        Ok(())
    }

    /// The best candidates, at least `count` where there are as many, without leaving the others.
    fn best(&mut self, count: u64) -> &[Key] {
        if !self.listed {
            let cut = self.wide.cut();
            let form = self.wide.keep_first(count, false, self.list.refill());
            // A cut through many equals is not listed where it is found.
            if form == Form::Wide {
                self.wide.list(self.list.refill());
            }
            self.wide.restore(cut);
        }
        self.list.keys()
    }

    /// Mirostat 2 (Basu et al., 2021): the tokens whose surprise is at most mu bits, at least one.
    fn mirostat_2(&mut self, mu: i32) -> Result<(), Status> {
        let mass = self.weigh()?;
        let least = offset_q16(mass) - i64::from(mu);
        if self.listed {
            self.list.take_logarithms(mass.scale);
            let cut = self
                .list
                .leading(|place| self.list.logarithms()[place] >= least);
            self.list.keep(0..cut.max(1));
            return Ok(());
        }
        let keys = self.list.refill();
        let cut = self.wide.unsurprising(mass, least, keys);
        self.keep_at_least(cut, Floor::of(1));
        Ok(())
    }

    /// adaptive-p: draws where every logit says how near a token's probability is to the target; learns the probability.
    fn adapt(&mut self) -> Result<Chosen, Status> {
        let before = self.weigh()?;
        let target = fixed::from_q16(i64::from(self.row.state.adaptive_target()));
        let adapted =
            |weight| formulas::adapted(formulas::probability_q32(weight, before.total), target);
        self.temperature = 1.0;
        if self.listed {
            let spare = &mut self.wide.buffers().spare;
            spare.clear();
            spare.extend_from_slice(self.list.keys());
            self.list
                .replace(|key| adapted(before.scale.weight(key.logit())))?;
        } else {
            let simd = self.wide.simd;
            self.wide.replace(|from, to| {
                let mut weights = [0; BLOCK];
                simd.weigh_each(from, before.scale, &mut weights);
                for ((from, to), weight) in from.iter().zip(to).zip(weights) {
                    *to = if *from > f32::NEG_INFINITY {
                        adapted(weight) + 0.0
                    } else {
                        *from
                    };
                }
            })?;
        }
        let (drawn, mass) = self.draw()?;
        let earlier = if self.listed {
            let mut keys = self.wide.buffers().spare.iter();
            keys.find(|key| key.id() == drawn.id)
                .map_or(f32::NEG_INFINITY, |key| key.logit())
        } else {
            self.wide.replaced(drawn.id)
        };
        let weight = u128::from(before.scale.weight(earlier)) << 16;
        let probability = (weight / u128::from(before.total.max(1))) as i32;
        Ok(self.chosen(drawn, mass, probability))
    }
}

/// -log2 of the probability of a token with y = 0, in Q16.
fn offset_q16(mass: Mass) -> i64 {
    Surprise {
        total: mass.total,
        moment: 0,
    }
    .offset_q16()
}
