//! The operations of a request: which stages run, in which order, with which compiled arguments, and what does not act.

use crate::config::{Class, Flags, Op, OpCode, SamplingConfig, Warning};
use crate::fixed;
use crate::params::{PARAMS, ParamSpec, Policy, SamplingParams};
use crate::pipeline::{Preset, Stage};

/// Sets up to this size are kept as lists.
pub(crate) const BOUNDED: u64 = 4096;

/// Why a stage does not run at temperature 0.
const GREEDY: &str = "does not act, since temperature 0 takes the likeliest token";

/// The parameters that share the window `repeat_last_n`.
const PENALTIES: [&str; 3] = [
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
];

/// The parameters that only shape DRY.
const DRY_DETAILS: [&str; 3] = ["dry_base", "dry_allowed_length", "dry_sequence_breakers"];

/// Turns the order into operations, leaving out every stage that changes nothing.
pub(crate) struct Planner<'a> {
    pub(crate) params: &'a SamplingParams,
    pub(crate) config: &'a SamplingConfig,
    pub(crate) preset: Preset,
    pub(crate) order: &'a [Stage],
    /// See [`is_bare`].
    pub(crate) bare: bool,
}

/// Whether the chain is the temperature and the choice alone: llama.cpp's with mirostat (common/sampling.cpp).
pub(crate) fn is_bare(preset: Preset, config: &SamplingConfig) -> bool {
    preset == Preset::LlamaCpp && config.mirostat > 0
}

impl Planner<'_> {
    pub(crate) fn plan(&self, warnings: &mut Vec<Warning>) -> Vec<Op> {
        self.warn_of_idle(warnings);
        let greedy = self.is_greedy();
        for stage in Stage::ORDERED {
            if !self.order.contains(&stage) {
                self.warn(
                    warnings,
                    stage,
                    "does not act, since its stage is not among samplers",
                );
            }
        }
        let mut ops = Vec::new();
        let mut after_temperature = false;
        for stage in self.order {
            after_temperature |= *stage == Stage::Temperature;
            let Some(op) = self.op(*stage) else { continue };
            match self.inert(*stage, greedy, after_temperature) {
                Some(reason) => self.warn(warnings, *stage, reason),
                None if op.code == OpCode::Temperature && greedy => {}
                None => ops.push(op),
            }
        }
        ops.push(self.choice(greedy, warnings));
        ops
    }

    /// Whether the likeliest token is taken.
    fn is_greedy(&self) -> bool {
        let cold = self.config.temperature == 0.0 && self.order.contains(&Stage::Temperature);
        cold && !self.dynamic()
    }

    /// Whether the temperature is dynamic. At 0 it is in llama.cpp's chain alone: between 0 and the range (llama_sampler_temp_ext_apply).
    fn dynamic(&self) -> bool {
        let moves = self.config.temperature > 0.0 || self.preset == Preset::LlamaCpp;
        self.config.dynatemp_range > 0.0 && moves && !self.bare
    }

    /// Warns of parameters that only act together with another one that is off.
    fn warn_of_idle(&self, warnings: &mut Vec<Warning>) {
        let c = self.config;
        let no_window = c.repeat_last_n == 0;
        let no_dry = c.dry_multiplier == 0.0;
        let ranged = c.dynatemp_range > 0.0;
        let idle: [(&[&str], bool, &str); 11] = [
            (
                &["dynatemp_range"],
                ranged && !self.dynamic() && !self.bare,
                "temperature is 0",
            ),
            (
                &["dynatemp_range", "dynatemp_exponent"],
                ranged && self.bare,
                "llama.cpp's mirostat has a fixed temperature",
            ),
            (&["dynatemp_exponent"], !ranged, "dynatemp_range is 0"),
            (
                &["smoothing_curve"],
                c.smoothing_factor == 0.0,
                "smoothing_factor is 0",
            ),
            (
                &["xtc_threshold"],
                c.xtc_probability == 0.0,
                "xtc_probability is 0",
            ),
            (
                &["xtc_probability"],
                c.xtc_threshold > 0.5,
                "xtc_threshold is above 0.5",
            ),
            (&PENALTIES, no_window, "repeat_last_n is 0"),
            (
                &["dry_multiplier"],
                c.dry_penalty_last_n == 0,
                "dry_penalty_last_n is 0",
            ),
            (&DRY_DETAILS, no_dry, "dry_multiplier is 0"),
            (
                &["mirostat_tau", "mirostat_eta"],
                c.mirostat == 0,
                "mirostat is 0",
            ),
            (
                &["adaptive_decay"],
                c.adaptive_target < 0.0,
                "adaptive_target is below 0",
            ),
        ];
        for (params, is_idle, reason) in idle {
            let asked = |spec: &&ParamSpec| params.contains(&spec.name) && self.asks(spec);
            for spec in PARAMS.iter().filter(|_| is_idle).filter(asked) {
                let message = format!("does not act, since {reason}");
                warnings.push(Warning {
                    param: spec.name,
                    message,
                });
            }
        }
    }

    /// Why a stage of the order does not run.
    fn inert(&self, stage: Stage, greedy: bool, after_temperature: bool) -> Option<&'static str> {
        if stage == Stage::Temperature {
            return None;
        }
        if self.bare {
            return Some("does not act, since llama.cpp's mirostat replaces the chain");
        }
        // llama.cpp's temperature 0 keeps the best of what the chain before it left (llama_sampler_temp_impl).
        let runs = match self.preset {
            Preset::LlamaCpp => !after_temperature,
            _ => matches!(stage, Stage::Dry | Stage::NoRepeatNgram | Stage::Penalties),
        };
        (greedy && !runs).then_some(GREEDY)
    }

    /// Warns of every parameter of the stage that asks for something.
    fn warn(&self, warnings: &mut Vec<Warning>, stage: Stage, message: &str) {
        let asked = PARAMS
            .iter()
            .filter(|spec| spec.stage == stage && self.asks(spec));
        warnings.extend(asked.map(|spec| Warning {
            param: spec.name,
            message: message.to_owned(),
        }));
    }

    /// Whether the request gives the parameter a value that is not neutral.
    fn asks(&self, spec: &ParamSpec) -> bool {
        match self.params.get(spec.name) {
            Ok(Some(value)) => spec.default_value(Policy::Library) != Some(value),
            _ => false,
        }
    }

    /// The last operation.
    fn choice(&self, greedy: bool, warnings: &mut Vec<Warning>) -> Op {
        let config = self.config;
        let code = match config.mirostat {
            1 => OpCode::Mirostat1,
            2 => OpCode::Mirostat2,
            _ if config.adaptive_target >= 0.0 => OpCode::AdaptiveP,
            _ => OpCode::Draw,
        };
        if !greedy {
            return Op::new(code);
        }
        let silenced = match code {
            OpCode::Mirostat1 | OpCode::Mirostat2 => Some("mirostat"),
            OpCode::AdaptiveP => Some("adaptive_target"),
            _ => None,
        };
        if let Some(param) = silenced {
            warnings.push(Warning {
                param,
                message: GREEDY.to_owned(),
            });
        }
        Op::new(OpCode::Argmax)
    }

    /// The operation of a stage; `None` if its parameters are neutral.
    fn op(&self, stage: Stage) -> Option<Op> {
        let c = self.config;
        let on = |on: bool, op: Op| on.then_some(op);
        let probability = |code, p: f32| Op {
            threshold: fixed::threshold_q32(p),
            ..Op::new(code)
        };
        match stage {
            Stage::Dry => on(
                c.dry_multiplier > 0.0 && c.dry_penalty_last_n > 0,
                Op::new(OpCode::Dry),
            ),
            Stage::NoRepeatNgram => on(c.no_repeat_ngram_size > 0, Op::new(OpCode::NoRepeatNgram)),
            Stage::Penalties => on(penalises(c), Op::new(OpCode::Penalties)),
            Stage::Temperature => self.temperature(),
            Stage::Smoothing => on(c.smoothing_factor > 0.0, Op::new(OpCode::Smoothing)),
            Stage::TopNSigma => on(c.top_n_sigma > 0.0, self.top_n_sigma()),
            Stage::TopK => on(c.top_k > 0, self.top_k()),
            Stage::TypicalP => on(
                c.typical_p < 1.0,
                probability(OpCode::TypicalP, c.typical_p),
            ),
            Stage::TopP => on(c.top_p < 1.0, probability(OpCode::TopP, c.top_p)),
            Stage::MinP => (c.min_p > 0.0).then(|| Op {
                arg: fixed::ln(c.min_p),
                ..Op::new(OpCode::MinP)
            }),
            Stage::Epsilon => on(
                c.epsilon_cutoff > 0.0,
                probability(OpCode::Epsilon, c.epsilon_cutoff),
            ),
            Stage::Eta => on(c.eta_cutoff > 0.0, probability(OpCode::Eta, c.eta_cutoff)),
            Stage::TopA => on(c.top_a > 0.0, probability(OpCode::TopA, c.top_a)),
            Stage::Tfs => on(c.tfs_z < 1.0, probability(OpCode::Tfs, c.tfs_z)),
            Stage::Xtc => on(
                c.xtc_probability > 0.0 && c.xtc_threshold <= 0.5,
                probability(OpCode::Xtc, c.xtc_threshold),
            ),
            Stage::Bias | Stage::Draw | Stage::Pipeline => None,
        }
    }

    fn temperature(&self) -> Option<Op> {
        let c = self.config;
        if self.dynamic() {
            return Some(Op::new(OpCode::DynamicTemperature));
        }
        (c.temperature != 1.0).then_some(Op {
            arg: c.temperature,
            ..Op::new(OpCode::Temperature)
        })
    }

    /// llama.cpp's top-k and top-n-sigma know no min_keep (src/llama-sampler.cpp).
    fn min_keep(&self, stage_has_it: bool) -> u64 {
        let honoured = stage_has_it || self.preset != Preset::LlamaCpp;
        if honoured {
            u64::from(self.config.min_keep.max(1))
        } else {
            1
        }
    }

    fn top_n_sigma(&self) -> Op {
        Op {
            code: OpCode::TopNSigma,
            arg: self.config.top_n_sigma,
            threshold: self.min_keep(false),
        }
    }

    fn top_k(&self) -> Op {
        let k = u64::from(self.config.top_k).max(self.min_keep(false));
        Op {
            threshold: k,
            ..Op::new(OpCode::TopK)
        }
    }
}

/// Whether any of the three penalties changes anything.
fn penalises(c: &SamplingConfig) -> bool {
    let neutral =
        c.repetition_penalty == 1.0 && c.frequency_penalty == 0.0 && c.presence_penalty == 0.0;
    c.repeat_last_n > 0 && !neutral
}

/// What the operations cost on a row that is read once (see [`Class`]).
pub(crate) fn class(ops: &[Op], config: &SamplingConfig) -> Class {
    let mut class = Class::A;
    let (mut bounded, mut truncated, mut weighed) = (false, false, false);
    for op in ops {
        let cost = match op.code {
            _ if bounded => Class::A,
            OpCode::Dry | OpCode::NoRepeatNgram | OpCode::Penalties | OpCode::AdaptiveP
                if truncated =>
            {
                Class::C
            }
            OpCode::AdaptiveP => Class::C,
            OpCode::Smoothing if truncated => Class::C,
            OpCode::Smoothing
            | OpCode::DynamicTemperature
            | OpCode::Eta
            | OpCode::TypicalP
            | OpCode::Mirostat1
            | OpCode::Mirostat2 => Class::B,
            OpCode::Temperature if weighed => Class::B,
            _ => Class::A,
        };
        class = class.max(cost);
        truncated |= op.code.truncates();
        weighed |= op.code.weighs();
        bounded |= op.code == OpCode::TopK
            && op.threshold <= BOUNDED
            && config.flags & Flags::KEEP_TIES == 0;
    }
    class
}
