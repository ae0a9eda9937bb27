//! From a request to plain data: ranges, ids, order, operations, class, warnings.

use std::collections::BTreeSet;

use crate::config::{
    Bias, CompiledParams, Flags, MAX_VOCAB, Program, SamplingConfig, SamplingTables, UNLIMITED,
    VocabInfo, Warning,
};
use crate::error::ParamError;
use crate::params::{Literal, PARAMS, ParamSpec, Policy, SamplingParams};
use crate::pipeline::{Preset, Stage};
use crate::plan;
use crate::random::random_seed;
use crate::value::{ParamKind, ParamValue};

/// Temperatures between 0 and this act as this.
const MIN_TEMPERATURE: f32 = 0.01;

/// The most sequences a list may hold, and the most ids a sequence may hold.
const MAX_SEQUENCES: usize = 1 << 16;
const MAX_SEQUENCE_LEN: usize = 1 << 10;

/// Checks and compiles a request.
pub(crate) fn compile(
    params: &SamplingParams,
    vocab: &VocabInfo,
) -> Result<CompiledParams, ParamError> {
    if !(1..=MAX_VOCAB).contains(&vocab.size) {
        return Err(ParamError::VocabSize {
            size: vocab.size,
            max: MAX_VOCAB,
        });
    }
    params.check_policy(Policy::Library, vocab)?;
    let preset = params
        .preset
        .as_deref()
        .map_or(Ok(Preset::Default), Preset::from_name)?;
    let mut warnings = Vec::new();
    let config = config(params, preset, vocab, &mut warnings);
    let mut order = order(params, preset)?;
    check_combinations(&config, &order)?;
    let bare = plan::is_bare(preset, &config);
    if bare && !order.contains(&Stage::Temperature) {
        order.push(Stage::Temperature);
    }
    let ops = plan::Planner {
        params,
        config: &config,
        preset,
        order: &order,
        bare,
    }
    .plan(&mut warnings);
    let class = plan::class(&ops, &config);
    let mut tables = tables(params, vocab)?;
    tables.program = Program::new(&ops);
    if preset == Preset::Hf {
        allow_end_of_text(&mut tables, &mut warnings);
    }
    let effective = effective(params, &config);
    Ok(CompiledParams {
        config,
        tables,
        class,
        warnings,
        effective,
    })
}

/// The present value, or the neutral one.
fn number(value: Option<f64>, neutral: f32) -> f32 {
    value.map_or(neutral, |value| value as f32)
}

/// A count that fits 32 bits (the range check has seen to it).
fn count(value: Option<u64>, neutral: u32) -> u32 {
    value.map_or(neutral, |value| u32::try_from(value).unwrap_or(u32::MAX))
}

/// A window: absent or -1 is everything.
fn window(value: Option<i64>) -> u32 {
    u32::try_from(value.unwrap_or(-1)).unwrap_or(UNLIMITED)
}

/// k, where -1 and k >= the size of the vocabulary are off.
fn top_k(value: Option<i64>, vocab_size: u32) -> u32 {
    match u32::try_from(value.unwrap_or(0)) {
        Ok(k) if k < vocab_size => k,
        _ => 0,
    }
}

fn temperature(value: Option<f64>, warnings: &mut Vec<Warning>) -> f32 {
    match value {
        Some(value) if value > 0.0 && value < f64::from(MIN_TEMPERATURE) => {
            warnings.push(Warning {
                param: "temperature",
                message: format!("{value} acts as {MIN_TEMPERATURE}"),
            });
            MIN_TEMPERATURE
        }
        other => number(other, 1.0),
    }
}

fn config(
    params: &SamplingParams,
    preset: Preset,
    vocab: &VocabInfo,
    warnings: &mut Vec<Warning>,
) -> SamplingConfig {
    let ignore_eos = if params.ignore_eos == Some(true) {
        Flags::IGNORE_EOS
    } else {
        0
    };
    SamplingConfig {
        seed: params.seed.unwrap_or_else(random_seed),
        temperature: temperature(params.temperature, warnings),
        dynatemp_range: number(params.dynatemp_range, 0.0),
        dynatemp_exponent: number(params.dynatemp_exponent, 1.0),
        smoothing_factor: number(params.smoothing_factor, 0.0),
        smoothing_curve: number(params.smoothing_curve, 1.0),
        top_p: number(params.top_p, 1.0),
        min_p: number(params.min_p, 0.0),
        typical_p: number(params.typical_p, 1.0),
        top_n_sigma: number(params.top_n_sigma, 0.0),
        epsilon_cutoff: number(params.epsilon_cutoff, 0.0),
        eta_cutoff: number(params.eta_cutoff, 0.0),
        top_a: number(params.top_a, 0.0),
        tfs_z: number(params.tfs_z, 1.0),
        xtc_probability: number(params.xtc_probability, 0.0),
        xtc_threshold: number(params.xtc_threshold, 0.1),
        // A value that rounds to 0 would divide by 0.
        repetition_penalty: number(params.repetition_penalty, 1.0).max(f32::MIN_POSITIVE),
        frequency_penalty: number(params.frequency_penalty, 0.0),
        presence_penalty: number(params.presence_penalty, 0.0),
        dry_multiplier: number(params.dry_multiplier, 0.0),
        dry_base: number(params.dry_base, 1.75),
        mirostat_tau: number(params.mirostat_tau, 5.0),
        mirostat_eta: number(params.mirostat_eta, 0.1),
        adaptive_target: number(params.adaptive_target, -1.0),
        adaptive_decay: number(params.adaptive_decay, 0.9),
        top_k: top_k(params.top_k, vocab.size),
        min_keep: count(params.min_keep, 0),
        repeat_last_n: window(params.repeat_last_n),
        dry_allowed_length: count(params.dry_allowed_length, 2),
        dry_penalty_last_n: window(params.dry_penalty_last_n),
        no_repeat_ngram_size: count(params.no_repeat_ngram_size, 0),
        min_tokens: count(params.min_tokens, 0),
        mirostat: count(params.mirostat, 0),
        vocab_size: vocab.size,
        flags: preset.flags() | ignore_eos,
    }
}

fn order(params: &SamplingParams, preset: Preset) -> Result<Vec<Stage>, ParamError> {
    let Some(names) = &params.samplers else {
        return Ok(preset.order().to_vec());
    };
    let mut order = Vec::with_capacity(names.len());
    for name in names {
        let stage = Stage::from_name(name).ok_or_else(|| ParamError::NotAChoice {
            param: "samplers",
            value: name.clone(),
            choices: Stage::ORDERED.map(Stage::name).join(", "),
        })?;
        if order.contains(&stage) {
            return Err(ParamError::Repeated {
                param: "samplers",
                value: name.clone(),
            });
        }
        order.push(stage);
    }
    Ok(order)
}

fn check_combinations(config: &SamplingConfig, order: &[Stage]) -> Result<(), ParamError> {
    if config.mirostat > 0 && config.adaptive_target >= 0.0 {
        return Err(ParamError::Needs {
            param: "adaptive_target",
            value: config.adaptive_target.to_string(),
            requirement: "mirostat to be 0, since both choose the token",
        });
    }
    let place = |stage| order.iter().position(|other| *other == stage);
    let bounded = (1..=plan::BOUNDED).contains(&u64::from(config.top_k));
    match (place(Stage::Tfs), place(Stage::TopK)) {
        (Some(tfs), k) if config.tfs_z < 1.0 && !(bounded && k.is_some_and(|k| k < tfs)) => {
            Err(ParamError::Needs {
                param: "tfs_z",
                value: config.tfs_z.to_string(),
                requirement: "top_k from 1 to 4096 before it, since it sorts what it receives",
            })
        }
        _ => Ok(()),
    }
}

fn tables(params: &SamplingParams, vocab: &VocabInfo) -> Result<SamplingTables, ParamError> {
    let ids = Ids {
        vocab_size: vocab.size,
    };
    let bias = params.logit_bias.iter().flatten();
    let bias = bias.map(|(id, value)| {
        let token_id = ids.check("logit_bias", *id)?;
        Ok(Bias {
            token_id,
            value: *value as f32,
        })
    });
    Ok(SamplingTables {
        bias: bias.collect::<Result<_, _>>()?,
        allowed: ids.set("allowed_token_ids", params.allowed_token_ids.as_deref())?,
        bad_words: ids.sequences("bad_words", params.bad_words.as_deref())?,
        breakers: ids.sequences(
            "dry_sequence_breakers",
            params.dry_sequence_breakers.as_deref(),
        )?,
        eos: ids
            .set(
                "eos",
                Some(&vocab.eos)
                    .filter(|eos| !eos.is_empty())
                    .map(Vec::as_slice),
            )?
            .unwrap_or_default(),
        program: Program::new(&[]),
    })
}

/// transformers never bans an id that ends a text (generation/logits_process.py, `NoBadWordsLogitsProcessor`).
fn allow_end_of_text(tables: &mut SamplingTables, warnings: &mut Vec<Warning>) {
    let SamplingTables { bad_words, eos, .. } = tables;
    bad_words.retain(|word| {
        let ends = matches!(word[..], [id] if eos.binary_search(&id).is_ok());
        if ends {
            warnings.push(Warning {
                param: "bad_words",
                message: format!(
                    "{word:?} does not act, since preset hf never bans the end of the text"
                ),
            });
        }
        !ends
    });
}

/// Checks lists of token ids against the vocabulary.
struct Ids {
    vocab_size: u32,
}

impl Ids {
    fn check(&self, param: &'static str, id: u32) -> Result<u32, ParamError> {
        let vocab_size = self.vocab_size;
        if id < vocab_size {
            Ok(id)
        } else {
            Err(ParamError::UnknownToken {
                param,
                id,
                vocab_size,
            })
        }
    }

    /// Ascending, without repetition.
    fn set(
        &self,
        param: &'static str,
        ids: Option<&[u32]>,
    ) -> Result<Option<Vec<u32>>, ParamError> {
        let Some(ids) = ids else { return Ok(None) };
        check_length(param, ids.len(), MAX_VOCAB as usize)?;
        let set = ids
            .iter()
            .map(|id| self.check(param, *id))
            .collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Some(set.into_iter().collect()))
    }

    fn sequences(
        &self,
        param: &'static str,
        sequences: Option<&[Vec<u32>]>,
    ) -> Result<Vec<Vec<u32>>, ParamError> {
        let sequences = sequences.unwrap_or_default();
        if sequences.len() > MAX_SEQUENCES {
            check_length(param, sequences.len(), MAX_SEQUENCES)?;
        }
        for sequence in sequences {
            check_length(param, sequence.len(), MAX_SEQUENCE_LEN)?;
            sequence
                .iter()
                .try_for_each(|id| self.check(param, *id).map(drop))?;
        }
        Ok(sequences.to_vec())
    }
}

fn check_length(param: &'static str, length: usize, max: usize) -> Result<(), ParamError> {
    if (1..=max).contains(&length) {
        return Ok(());
    }
    Err(ParamError::Length {
        param,
        length,
        range: format!("[1, {max}]"),
    })
}

/// The request with every absent scalar at its neutral value and every changed value as it acts.
fn effective(params: &SamplingParams, config: &SamplingConfig) -> SamplingParams {
    let mut effective = params.clone().with_defaults(Policy::Library);
    effective.seed = Some(config.seed);
    effective.top_k = Some(i64::from(config.top_k));
    if config.temperature == MIN_TEMPERATURE {
        effective.temperature = Some(0.01);
    }
    effective
}

impl SamplingParams {
    /// The parameters with every absent one that has a default value on that endpoint filled in.
    #[must_use]
    pub fn with_defaults(mut self, policy: Policy) -> Self {
        for spec in PARAMS {
            if let (Ok(None), Some(value)) = (self.get(spec.name), spec.default_value(policy)) {
                // The table's own literals have the field's type: a test sets every one of them.
                let _ = self.set(spec.name, value);
            }
        }
        self
    }
}

impl ParamSpec {
    /// The value that a policy gives to an absent parameter, ready to be set; `None` if it stays absent.
    pub fn default_value(&self, policy: Policy) -> Option<ParamValue> {
        Some(match (self.default(policy), self.kind) {
            (Literal::Absent, _) => return None,
            (Literal::Float(value), _) => ParamValue::Float(value),
            (Literal::Int(value), ParamKind::Uint) => ParamValue::Uint(value.unsigned_abs()),
            (Literal::Int(value), _) => ParamValue::Int(value),
            (Literal::Bool(value), _) => ParamValue::Bool(value),
            (Literal::Text(value), _) => ParamValue::Text(value.to_owned()),
        })
    }
}
