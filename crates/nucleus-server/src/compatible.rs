//! What the endpoints that speak another server's language have in common: further names of parameters, the forms in which
//! their values may come, and the fields that vLLM and llama.cpp have beside OpenAI's.

use std::time::Duration;

use nucleus_engine::breakers::MAX_BREAKER_BYTES;
use nucleus_engine::generate::TimeLimits;
use nucleus_engine::tokenizer::{EncodeOptions, Tokenizer};
use nucleus_sampling::{LogprobsMode, Policy};
use serde_json::{Value, json};

use crate::app::AppState;
use crate::config::Limits;
use crate::error::ApiError;
use crate::fields::Fields;
use crate::json::{quote, show};
use crate::openapi::{Bounds, Object, either, flag, integer, list, text, token_ids};
use crate::output_format;
use crate::request::{LogprobsWanted, Settings};

/// Names that other servers use for a sampling parameter: theirs, ours.
pub(crate) const ALIASES: &[(&str, &str)] = &[
    ("repeat_penalty", "repetition_penalty"),
    ("typ_p", "typical_p"),
];

/// llama.cpp's letters for stages (`common/sampling.cpp`, `common_sampler_type_to_chr`). adaptive-p is no stage here: it chooses, last of all.
const LETTERS: &[(char, &str)] = &[
    ('e', "penalties"),
    ('d', "dry"),
    ('s', "top_n_sigma"),
    ('k', "top_k"),
    ('y', "typical_p"),
    ('p', "top_p"),
    ('m', "min_p"),
    ('x', "xtc"),
    ('t', "temperature"),
    ('a', ADAPTIVE_P),
];

const ADAPTIVE_P: &str = "adaptive_p";

/// Most sequence breakers that may be given as text. Each is looked for in every token of the vocabulary.
const MAX_BREAKERS: usize = 64;

/// The longest time that a request may limit itself to, in milliseconds.
const MAX_TIME_MS: u64 = u32::MAX as u64;

/// What an endpoint has already read of a request.
pub(crate) struct Asked {
    pub(crate) policy: Policy,
    pub(crate) max_tokens: Option<usize>,
    pub(crate) logprobs: Option<LogprobsWanted>,
}

/// Gives parameters their own names, and values their own form.
pub(crate) fn normalise(fields: &mut Fields, state: &AppState) -> Result<(), ApiError> {
    for (alias, name) in ALIASES {
        fields.rename(alias, name)?;
    }
    seed(fields)?;
    samplers(fields)?;
    bad_words(fields, state.engine.tokenizer(), &state.config.limits)
}

/// How to continue, out of fields that have been [normalised](normalise).
pub(crate) fn settings(
    fields: &mut Fields,
    state: &AppState,
    asked: Asked,
) -> Result<Settings, ApiError> {
    let limits = &state.config.limits;
    Ok(Settings {
        max_tokens: asked.max_tokens,
        logprobs: asked.logprobs,
        stop: fields.stops(limits.compatible_stops, limits.stop_bytes)?,
        stop_token_ids: fields.ids("stop_token_ids")?,
        include_stop: fields
            .boolean("include_stop_str_in_output")?
            .unwrap_or(false),
        time_limits: TimeLimits {
            total: total_time(fields)?,
            after_newline: time_after_newline(fields)?,
        },
        output_format: output_format::read_with_others(fields)?,
        dry_breakers: breakers(fields)?,
        params: fields.sampling_params(asked.policy, state.engine.vocab())?,
    })
}

/// The fields that [`normalise`] and [`settings`] read.
pub(crate) fn fields(object: Object, policy: Policy, bounds: &Bounds<'_>) -> Object {
    let limits = bounds.limits;
    let stop = || text(1, limits.stop_bytes);
    let words = list(text(1, limits.stop_bytes), 0, limits.bad_words);
    let sequences = list(token_ids(1, bounds), 0, usize::MAX);
    let object = object
        .field(
            "stop",
            either([stop(), list(stop(), 0, limits.compatible_stops)]),
            "Strings that end the text.",
        )
        .field(
            "stop_token_ids",
            token_ids(0, bounds),
            "Tokens that end the text.",
        )
        .field(
            "include_stop_str_in_output",
            flag(false),
            "Whether what ended the text is part of it.",
        )
        .field(
            "seed",
            json!({"type": "integer", "minimum": i64::MIN, "maximum": u64::MAX}),
            "Same seed, same tokens. -1 is a random one; choice `i` of a prompt uses `seed + i`.",
        )
        .field(
            "repeat_penalty",
            json!({"type": "number", "exclusiveMinimum": 0, "maximum": 100}),
            "The same as `repetition_penalty`.",
        )
        .field(
            "typ_p",
            json!({"type": "number", "minimum": 0, "maximum": 1}),
            "The same as `typical_p`.",
        )
        .field(
            "samplers",
            either([
                list(json!({"type": "string"}), 0, usize::MAX),
                json!({"type": "string"}),
            ]),
            "The stages to run, in order: names, or llama.cpp's letters in a string, such as `edskypmxt`.",
        )
        .field(
            "bad_words",
            either([words, sequences]),
            "Words, or sequences of token ids, that may not appear.",
        )
        .field(
            "t_max_predict_ms",
            integer(-1, i64::MAX as u64),
            "Milliseconds from the first token on, after which the text ends once it has a newline; 0 and -1 are off.",
        );
    let object = output_format::with_other_formats(with_time(object));
    with_breakers(object, bounds).sampling(policy, bounds)
}

/// How [`total_time`] is described.
pub(crate) fn with_time(object: Object) -> Object {
    object.field(
        "max_time_ms",
        integer(1, MAX_TIME_MS),
        "Milliseconds after which the text ends, waiting and the prompt included.",
    )
}

/// How [`breakers`] are described.
pub(crate) fn with_breakers(object: Object, bounds: &Bounds<'_>) -> Object {
    let texts = list(text(1, MAX_BREAKER_BYTES), 0, MAX_BREAKERS);
    let sequences = list(token_ids(1, bounds), 0, usize::MAX);
    object.field(
        "dry_sequence_breakers",
        either([texts, sequences]),
        "Texts, or sequences of token ids, that a repeated passage may not cross.",
    )
}

/// `max_time_ms`: from the request's arrival to its end.
pub(crate) fn total_time(fields: &mut Fields) -> Result<Option<Duration>, ApiError> {
    let limit = fields.integer("max_time_ms", 1..=MAX_TIME_MS)?;
    Ok(limit.map(Duration::from_millis))
}

/// `t_max_predict_ms`, as llama.cpp has it: from the first token on, and only once there is a newline.
fn time_after_newline(fields: &mut Fields) -> Result<Option<Duration>, ApiError> {
    const NAME: &str = "t_max_predict_ms";
    let Some(value) = fields.value("t_max_predict_ms") else {
        return Ok(None);
    };
    match value.as_i64().filter(|limit| *limit >= -1) {
        Some(limit) => Ok(u64::try_from(limit)
            .ok()
            .filter(|limit| *limit > 0)
            .map(Duration::from_millis)),
        None => {
            let expected = format!("an integer in [-1, {}]", i64::MAX);
            Err(ApiError::field(NAME, show(&value), &expected))
        }
    }
}

/// `logprobs_mode`: of which distribution log-probabilities are told.
pub(crate) fn logprobs_mode(fields: &mut Fields) -> Result<LogprobsMode, ApiError> {
    match fields.string("logprobs_mode")?.as_deref() {
        None | Some("raw") => Ok(LogprobsMode::Raw),
        Some("processed") => Ok(LogprobsMode::Processed),
        Some(other) => Err(ApiError::field(
            "logprobs_mode",
            quote(other),
            "\"raw\" or \"processed\"",
        )),
    }
}

/// How [`logprobs_mode`] is described.
pub(crate) fn with_logprobs_mode(object: Object) -> Object {
    object.field(
        "logprobs_mode",
        json!({"type": "string", "enum": ["raw", "processed"], "default": "raw"}),
        "Whether log-probabilities are of the model's own distribution, or of the one that the token was drawn from.",
    )
}

/// A negative seed is one of 64 bits too, as OpenAI has it; but -1 is a random one, as vLLM and llama.cpp have it.
fn seed(fields: &mut Fields) -> Result<(), ApiError> {
    let Some(value) = fields.value("seed") else {
        return Ok(());
    };
    let seed = match (value.as_i64(), value.as_u64()) {
        (Some(-1), _) => return Ok(()),
        (Some(signed), _) => signed.cast_unsigned(),
        (None, Some(seed)) => seed,
        (None, None) => {
            let expected = "an integer in [-2^63, 2^64-1]";
            return Err(ApiError::field("seed", show(&value), expected));
        }
    };
    fields.put("seed", seed.into());
    Ok(())
}

/// A string of `samplers` is llama.cpp's letters. adaptive-p is on by its target, and always last: its place says nothing.
fn samplers(fields: &mut Fields) -> Result<(), ApiError> {
    let names = match fields.value("samplers") {
        None => return Ok(()),
        Some(Value::String(letters)) => names_of(&letters)?,
        Some(Value::Array(mut names)) => {
            names.retain(|name| !matches!(name.as_str(), Some(ADAPTIVE_P | "adaptive-p")));
            names.into()
        }
        Some(other) => other,
    };
    fields.put("samplers", names);
    Ok(())
}

fn names_of(letters: &str) -> Result<Value, ApiError> {
    let name = |letter| LETTERS.iter().find(|(known, _)| *known == letter);
    let names: Option<Vec<&str>> = letters
        .chars()
        .map(|letter| name(letter).map(|(_, name)| *name))
        .collect();
    let Some(mut names) = names else {
        let known: String = LETTERS.iter().map(|(letter, _)| *letter).collect();
        let expected = format!("an array of names, or a string of the letters {known}");
        return Err(ApiError::field("samplers", quote(letters), &expected));
    };
    names.retain(|name| *name != ADAPTIVE_P);
    Ok(json!(names))
}

/// Sequence breakers that are given as text; those that are token ids stay where they are.
pub(crate) fn breakers(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    const NAME: &str = "dry_sequence_breakers";
    let Some(value) = fields.value("dry_sequence_breakers") else {
        return Ok(Vec::new());
    };
    let Some(texts) = texts(&value) else {
        fields.put(NAME, value);
        return Ok(Vec::new());
    };
    if texts.len() > MAX_BREAKERS {
        let expected = format!("at most {MAX_BREAKERS} texts");
        return Err(ApiError::field(NAME, show(&value), &expected));
    }
    let unusable = |text: &&str| !(1..=MAX_BREAKER_BYTES).contains(&text.len());
    match texts.iter().position(unusable) {
        None => Ok(texts.into_iter().map(str::to_owned).collect()),
        Some(index) => {
            let expected = format!("a text of 1 to {MAX_BREAKER_BYTES} bytes");
            let at = format!("{NAME}[{index}]");
            Err(ApiError::field(at, quote(texts[index]), &expected))
        }
    }
}

/// The items of an array of strings that is not empty.
fn texts(value: &Value) -> Option<Vec<&str>> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    items.iter().map(Value::as_str).collect()
}

/// Words that are given as text, as vLLM takes them, become token ids: as they begin a line, and as they follow a space.
fn bad_words(fields: &mut Fields, tokenizer: &Tokenizer, limits: &Limits) -> Result<(), ApiError> {
    let Some(value) = fields.value("bad_words") else {
        return Ok(());
    };
    let Some(words) = texts(&value) else {
        fields.put("bad_words", value);
        return Ok(());
    };
    if words.len() > limits.bad_words {
        let expected = format!("at most {} words", limits.bad_words);
        return Err(ApiError::field("bad_words", show(&value), &expected));
    }
    let mut sequences = Vec::new();
    for (index, word) in words.into_iter().enumerate() {
        let at = format!("bad_words[{index}]");
        for sequence in spellings(&at, word, tokenizer, limits)? {
            if !sequences.contains(&sequence) {
                sequences.push(sequence);
            }
        }
    }
    fields.put("bad_words", json!(sequences));
    Ok(())
}

fn spellings(
    at: &str,
    word: &str,
    tokenizer: &Tokenizer,
    limits: &Limits,
) -> Result<[Vec<u32>; 2], ApiError> {
    let bare = word.trim_start_matches(' ');
    if !(1..=limits.stop_bytes).contains(&bare.len()) {
        let expected = format!("a word of 1 to {} bytes", limits.stop_bytes);
        return Err(ApiError::field(at, quote(word), &expected));
    }
    let encode = |text: &str| {
        let tokens = tokenizer.encode(text, EncodeOptions::default());
        tokens.map_err(|error| ApiError::field(at, quote(word), &format!("text: {error}")))
    };
    Ok([encode(bare)?, encode(&format!(" {bare}"))?])
}

#[cfg(test)]
mod tests {
    use nucleus_sampling::Stage;

    use super::*;

    #[test]
    fn letters_are_stages() {
        let mut given = Fields::of(json!({"samplers": "kpmta"}));
        samplers(&mut given).unwrap();
        let expected = json!(["top_k", "top_p", "min_p", "temperature"]);
        assert_eq!(given.value("samplers"), Some(expected));
        let mut given = Fields::of(json!({"samplers": ["top-k", "adaptive_p"]}));
        samplers(&mut given).unwrap();
        assert_eq!(given.value("samplers"), Some(json!(["top-k"])));
        let error = samplers(&mut Fields::of(json!({"samplers": "kq"}))).unwrap_err();
        assert_eq!(
            error.to_string(),
            "samplers: \"kq\" is not an array of names, or a string of the letters edskypmxta"
        );
        for (letter, name) in LETTERS.iter().filter(|(letter, _)| *letter != 'a') {
            assert!(Stage::from_name(name).is_some(), "{letter}");
        }
    }

    #[test]
    fn a_seed_is_any_integer_of_64_bits() {
        let seed_of = |value: Value| {
            let mut fields = Fields::of(json!({"seed": value}));
            seed(&mut fields).map(|()| fields.value("seed"))
        };
        assert_eq!(seed_of(json!(7)), Ok(Some(json!(7))));
        assert_eq!(seed_of(json!(u64::MAX)), Ok(Some(json!(u64::MAX))));
        assert_eq!(seed_of(json!(i64::MIN)), Ok(Some(json!(1_u64 << 63))));
        assert_eq!(seed_of(json!(-1)), Ok(None));
        for (wrong, shown) in [
            (json!("x"), "\"x\""),
            (json!(1.5), "1.5"),
            (json!(true), "true"),
        ] {
            let error = seed_of(wrong).unwrap_err().to_string();
            let expected = format!("seed: {shown} is not an integer in [-2^63, 2^64-1]");
            assert_eq!(error, expected);
        }
    }

    #[test]
    fn a_time_may_be_off() {
        let time =
            |value: Value| time_after_newline(&mut Fields::of(json!({"t_max_predict_ms": value})));
        assert_eq!(time(json!(250)), Ok(Some(Duration::from_millis(250))));
        for off in [json!(0), json!(-1), Value::Null] {
            assert_eq!(time(off), Ok(None));
        }
        for wrong in [json!(-2), json!(1.5), json!("5"), json!(1_u64 << 63)] {
            assert!(time(wrong).is_err());
        }
    }

    #[test]
    fn breakers_are_texts_or_token_ids() {
        let mut given = Fields::of(json!({"dry_sequence_breakers": ["\n", ":"]}));
        assert_eq!(breakers(&mut given), Ok(vec!["\n".into(), ":".into()]));
        let mut given = Fields::of(json!({"dry_sequence_breakers": [[5], [7, 8]]}));
        assert_eq!(breakers(&mut given), Ok(vec![]));
        assert_eq!(
            given.value("dry_sequence_breakers"),
            Some(json!([[5], [7, 8]]))
        );
        for wrong in [json!([""]), json!(["x".repeat(41)]), json!(vec!["x"; 65])] {
            let error = breakers(&mut Fields::of(json!({"dry_sequence_breakers": wrong})));
            assert_eq!(
                error.unwrap_err().body().error.param.as_deref(),
                Some("dry_sequence_breakers")
            );
        }
    }
}
