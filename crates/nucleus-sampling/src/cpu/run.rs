//! A row's program, operation by operation, on whichever form of the set is smaller.

use super::edits::divide;
use super::formulas::{Curve, MIN_TEMPERATURE, eta_threshold, power_q32, top_a_threshold};
use super::history::{Changes, History};
use super::kernels::{BLOCK, Scale};
use super::list::List;
use super::listed::Typical;
use super::masks::{Masks, Scope};
use super::table::IdTable;
use super::view::Cut;
use super::wide::{Floor, Form, Mass, Wide, scale_of};
use crate::config::{Flags, Op, OpCode, SamplingConfig};
use crate::fixed::{self, Spread, Surprise};
use crate::random::{Counter, Purpose, uniform};
use crate::row::{Row, Status};

/// Rows up to this length are listed at once where a truncation needs an order.
const SHORT: usize = 2 * BLOCK;

/// One row on its way through its program.
pub(super) struct Run<'a> {
    pub(super) row: &'a Row<'a>,
    pub(super) wide: Wide<'a>,
    pub(super) list: &'a mut List,
    pub(super) history: &'a mut History,
    pub(super) forbidden: &'a mut IdTable,
    /// Whether the set is `list`; else it is `wide`.
    pub(super) listed: bool,
    /// The temperature in force.
    pub(super) temperature: f32,
}

impl<'a> Run<'a> {
    fn config(&self) -> &'a SamplingConfig {
        self.row.params.config()
    }

    /// Masks and bias, which begin the set.
    ///
    /// # Errors
    /// [`Status::Nan`] if an allowed logit is a NaN, else [`Status::Overflow`] if one is +inf.
    pub(super) fn begin(&mut self) -> Result<(), Status> {
        let masks = Masks::new(self.row, self.wide.row_len(), self.forbidden);
        let bias = &self.row.params.tables().bias;
        match masks.scope() {
            Scope::MostOfRow => self.wide.bias(&masks, bias),
            Scope::PartOfRow => self.wide.mask(&masks, bias),
            Scope::Few => {
                self.listed = true;
                let keys = self.list.refill();
                keys.clear();
                self.wide.pick(&masks, bias, keys)
            }
        }
    }

    /// One operation before the choice.
    pub(super) fn apply(&mut self, op: Op) -> Result<(), Status> {
        match op.code {
            OpCode::Dry | OpCode::NoRepeatNgram | OpCode::Penalties => self.edit(op.code),
            OpCode::Temperature => {
                self.temperature = op.arg;
                Ok(())
            }
            OpCode::DynamicTemperature if !self.is_empty() => {
                self.temperature = self.dynamic_temperature()?;
                Ok(())
            }
            OpCode::Smoothing => self.smooth(),
            code if code.truncates() && !self.is_empty() => self.truncate(op),
            _ => Ok(()),
        }
    }

    /// Whether nothing is left.
    pub(super) fn is_empty(&mut self) -> bool {
        self.max().is_none()
    }

    /// The largest logit.
    pub(super) fn max(&mut self) -> Option<f32> {
        if self.listed {
            return self.list.max();
        }
        self.wide.settle();
        self.wide.max()
    }

    /// Number of candidates.
    pub(super) fn count(&mut self) -> usize {
        if self.listed {
            self.list.len()
        } else {
            self.wide.count()
        }
    }

    /// The weights at the temperature in force.
    pub(super) fn weigh(&mut self) -> Result<Mass, Status> {
        if self.listed {
            self.list.weigh(self.temperature)
        } else {
            self.wide.weigh(self.temperature)
        }
    }

    /// What weights are measured by at the temperature in force.
    pub(super) fn scale(&mut self) -> Result<Scale, Status> {
        scale_of(self.max(), self.temperature)
    }

    fn surprise(&mut self) -> Result<(Mass, Surprise), Status> {
        if !self.listed {
            return self.wide.surprise(self.temperature);
        }
        let mass = self.list.weigh(self.temperature)?;
        Ok((mass, self.list.surprise(mass.scale)))
    }

    fn edit(&mut self, code: OpCode) -> Result<(), Status> {
        let temperature = std::mem::replace(&mut self.temperature, 1.0);
        let changes: Changes<'_> = match code {
            OpCode::Dry => self.history.dry(self.row),
            OpCode::NoRepeatNgram => self.history.repeated_ngrams(self.row),
            _ => self.history.penalties(self.row),
        };
        if self.listed {
            self.list.edit(changes, temperature)
        } else {
            self.wide.edit(changes, temperature)
        }
    }

    /// T = low + (high - low) (H / log2 n)^exponent with low = max(0, T0 - range), high = T0 + range. One candidate leaves T0. The result is at least 0.01.
    fn dynamic_temperature(&mut self) -> Result<f32, Status> {
        let config = self.config();
        let (_, surprise) = self.surprise()?;
        let count = self.count() as u64;
        if count < 2 {
            return Ok(config.temperature.max(MIN_TEMPERATURE));
        }
        let low = fixed::q16((config.temperature - config.dynatemp_range).max(0.0));
        let high = fixed::q16(config.temperature + config.dynatemp_range);
        let power = power_q32(
            surprise.entropy_q16(),
            fixed::log2_q16(count),
            config.dynatemp_exponent,
        );
        let rise = (u128::from((high - low) as u64) * u128::from(power) + (1 << 31)) >> 32;
        Ok(fixed::from_q16(low + rise as i64).max(MIN_TEMPERATURE))
    }

    /// x' = h - (k d^2 + c d^3) with d = h - x, k = f (3 - curve) / 2, c = f (curve - 1) / 2, on the scaled logits.
    fn smooth(&mut self) -> Result<(), Status> {
        let config = self.config();
        let temperature = std::mem::replace(&mut self.temperature, 1.0);
        let Some(max) = self.max() else { return Ok(()) };
        let best = max / temperature + 0.0;
        if best == f32::INFINITY {
            return Err(Status::Overflow);
        }
        let curve = Curve {
            // Where the division leaves nothing finite, all stay at -inf.
            best: best.max(f32::MIN),
            quadratic: config.smoothing_factor * ((3.0 - config.smoothing_curve) / 2.0),
            cubic: config.smoothing_factor * ((config.smoothing_curve - 1.0) / 2.0),
        };
        if self.listed {
            return self
                .list
                .replace(|key| curve.at(key.logit() / temperature + 0.0));
        }
        self.wide.replace(|from, to| {
            divide(from, temperature, to);
            to.iter_mut().for_each(|logit| *logit = curve.at(*logit));
        })
    }

    // Truncations.

    fn truncate(&mut self, op: Op) -> Result<(), Status> {
        if self.wide.shortcuts && self.wide.row_len() <= SHORT {
            self.make_listed();
        }
        let config = self.config();
        let min_keep = u64::from(config.min_keep.max(1));
        let ties = config.flags & Flags::KEEP_TIES != 0;
        let floor = Floor { min_keep, ties };
        match op.code {
            OpCode::TopNSigma => {
                let sigma = fixed::from_q16(self.spread().deviation_q16());
                let threshold = self.max().unwrap_or(0.0) - op.arg * sigma;
                self.cut_at(threshold, op.threshold);
            }
            OpCode::MinP => {
                let threshold = self.temperature.mul_add(op.arg, self.max().unwrap_or(0.0));
                self.cut_at(threshold, min_keep);
            }
            OpCode::TopK => self.first(op.threshold, ties),
            OpCode::TopP => self.top_p(op.threshold, min_keep)?,
            OpCode::TypicalP => {
                let strict = config.flags & Flags::TYPICAL_STRICT != 0;
                self.typical(Typical {
                    threshold: op.threshold,
                    min_keep,
                    strict,
                    ties,
                })?;
            }
            OpCode::Epsilon => {
                let mass = self.weigh()?;
                self.at_probability(mass, op.threshold, floor);
            }
            OpCode::Eta => {
                let (mass, surprise) = self.surprise()?;
                self.at_probability(mass, eta_threshold(op.threshold, surprise), floor);
            }
            OpCode::TopA => {
                let mass = self.weigh()?;
                let threshold = top_a_threshold(op.threshold, self.max().unwrap_or(0.0), mass);
                self.at_probability(mass, threshold, Floor::of(min_keep));
            }
            OpCode::Tfs => self.tail_free(op.threshold, min_keep)?,
            OpCode::Xtc if self.excludes_top_choices() => {
                self.exclude_top(op.threshold, min_keep)?;
            }
            OpCode::Xtc => return self.scale().map(drop),
            _ => {}
        }
        Ok(())
    }

    fn spread(&self) -> Spread {
        if self.listed {
            self.list.spread()
        } else {
            self.wide.spread()
        }
    }

    /// Takes over what a truncation made of the wide set.
    fn become_listed(&mut self, form: Form) {
        self.listed = form == Form::Listed;
    }

    fn cut_at(&mut self, threshold: f32, min_keep: u64) {
        if self.listed {
            return self.list.keep(self.list.cut_at(threshold, min_keep));
        }
        self.keep_at_least(Cut::at(threshold), Floor::of(min_keep));
    }

    /// Keeps what a cut leaves of the wide set, but at least as many as the floor says.
    pub(super) fn keep_at_least(&mut self, cut: Cut, floor: Floor) {
        let form = self.wide.keep_at_least(cut, floor, self.list.refill());
        self.become_listed(form);
    }

    /// Keeps the first `k`; with `ties` all that equal the last of them too.
    pub(super) fn first(&mut self, k: u64, ties: bool) {
        if self.listed {
            return self.list.keep(self.list.first(k, ties));
        }
        let form = self.wide.keep_first(k, ties, self.list.refill());
        self.become_listed(form);
    }

    fn top_p(&mut self, threshold: u64, min_keep: u64) -> Result<(), Status> {
        if self.listed {
            let mass = self.weigh()?;
            self.list.keep(self.list.holding(mass, threshold, min_keep));
            return Ok(());
        }
        let form =
            self.wide
                .keep_mass(threshold, self.temperature, min_keep, self.list.refill())?;
        self.become_listed(form);
        Ok(())
    }

    fn at_probability(&mut self, mass: Mass, threshold: u64, floor: Floor) {
        if self.listed {
            return self
                .list
                .keep(self.list.at_probability(mass, threshold, floor));
        }
        let cut = self.wide.probable(mass, threshold, self.list.refill());
        self.keep_at_least(cut, floor);
    }

    /// Lists the set, however large.
    pub(super) fn make_listed(&mut self) {
        if !self.listed {
            self.wide.list(self.list.refill());
            self.listed = true;
        }
    }

    fn tail_free(&mut self, z: u64, min_keep: u64) -> Result<(), Status> {
        self.make_listed();
        self.weigh()?;
        self.list.keep(self.list.tail_free(z, min_keep));
        Ok(())
    }

    fn typical(&mut self, rule: Typical) -> Result<(), Status> {
        let (mass, surprise) = self.surprise()?;
        let mean = surprise.mean_q16();
        if !self.listed {
            self.listed = true;
            // A run that takes in the best token is a beginning, on a peaked row a short one.
            let few = self.wide.list_head(self.list.refill());
            if few && self.keep_typical(mass, mean, rule, false)? {
                return Ok(());
            }
            let few = self
                .wide
                .list_mass_above(mass, rule.threshold, self.list.refill());
            if few && self.keep_typical(mass, mean, rule, false)? {
                return Ok(());
            }
            self.wide.list(self.list.refill());
        }
        self.keep_typical(mass, mean, rule, true).map(drop)
    }

    /// Keeps the typical run of the list; whether it is known to be that of the whole set.
    fn keep_typical(
        &mut self,
        mass: Mass,
        mean: i64,
        rule: Typical,
        complete: bool,
    ) -> Result<bool, Status> {
        self.list.weigh(self.temperature)?;
        self.list.take_logarithms(mass.scale);
        let run = self.list.typical(mass, mean, rule, complete);
        let known = run.is_some();
        self.list.keep(run.unwrap_or(0..self.list.len()));
        Ok(known)
    }

    fn exclude_top(&mut self, threshold: u64, min_keep: u64) -> Result<(), Status> {
        let mass = self.weigh()?;
        if self.listed {
            self.list
                .keep(self.list.without_top(mass, threshold, min_keep));
            return Ok(());
        }
        let keys = self.list.refill();
        let cut = self.wide.probable(mass, threshold, keys);
        self.wide.list_above(cut, keys);
        let count = self.wide.count();
        let (_, others) = keys.split_last().unzip();
        let excluded = others.unwrap_or_default();
        if !excluded.is_empty() && (count - excluded.len()) as u64 >= min_keep {
            self.wide.remove(excluded);
        }
        Ok(())
    }

    /// XTC's own coin: the high half of its uniform number is below the chance.
    fn excludes_top_choices(&self) -> bool {
        let chance = fixed::chance_q32(self.config().xtc_probability);
        self.random(Purpose::Xtc) >> 32 < chance
    }

    /// The row's random number for a purpose.
    pub(super) fn random(&self, purpose: Purpose) -> u64 {
        let state = self.row.state;
        let counter = Counter {
            position: state.position(),
            purpose,
            choice: state.choice(),
            attempt: state.attempt(),
        };
        uniform(self.config().seed, counter)
    }
}
