//! One flag for every sampling parameter, made from the table of parameters.

use clap::builder::{StringValueParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgMatches};
use nucleus_sampling::{Literal, PARAMS, ParamKind, ParamSpec, ParamValue, SamplingParams};

const HEADING: &str = "Sampling";

/// The flags, in the table's order.
pub(crate) fn flags() -> impl Iterator<Item = Arg> {
    PARAMS.iter().map(flag)
}

/// The parameters for which a flag was given, not yet checked against their ranges.
pub(crate) fn from_matches(matches: &ArgMatches) -> anyhow::Result<SamplingParams> {
    let mut params = SamplingParams::default();
    for spec in PARAMS {
        if let Some(value) = matches.get_one::<ParamValue>(spec.name) {
            params.set(spec.name, value.clone())?;
        }
    }
    Ok(params)
}

/// A parameter's name as a flag: `top_k` is `--top-k`.
fn flag_name(spec: &ParamSpec) -> String {
    spec.name.replace('_', "-")
}

fn flag(spec: &'static ParamSpec) -> Arg {
    let arg = Arg::new(spec.name)
        .long(flag_name(spec))
        .help(help(spec))
        .help_heading(HEADING)
        .allow_negative_numbers(true)
        .value_name(value_name(spec.kind))
        .value_parser(value_parser(spec.kind));
    match spec.kind {
        // `--ignore-eos` alone switches it on.
        ParamKind::Bool => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg,
    }
}

fn value_parser(kind: ParamKind) -> ValueParser {
    let parse = move |text: String| {
        kind.parse(&text)
            .ok_or_else(|| format!("expected {}", kind.name()))
    };
    ValueParser::new(StringValueParser::new().try_map(parse))
}

fn value_name(kind: ParamKind) -> &'static str {
    match kind {
        ParamKind::Float => "NUMBER",
        ParamKind::Int | ParamKind::Uint => "INTEGER",
        ParamKind::Bool => "true|false",
        ParamKind::Text => "NAME",
        ParamKind::TextList => "NAME,NAME...",
        ParamKind::Ids => "ID,ID...",
        ParamKind::Sequences => "ID,ID;ID...",
        ParamKind::Bias => "ID:NUMBER,...",
    }
}

/// The table's line, then range and default: `Keeps the … [0, 1], default 1`.
fn help(spec: &ParamSpec) -> String {
    let range = spec.domain.map(|domain| domain.to_string());
    let default = default_text(spec.neutral).map(|value| format!("default {value}"));
    let facts: Vec<String> = range.into_iter().chain(default).collect();
    if facts.is_empty() {
        spec.help.to_owned()
    } else {
        format!("{} {}", spec.help, facts.join(", "))
    }
}

fn default_text(literal: Literal) -> Option<String> {
    match literal {
        Literal::Absent => None,
        Literal::Float(value) => Some(value.to_string()),
        Literal::Int(value) => Some(value.to_string()),
        Literal::Bool(value) => Some(value.to_string()),
        Literal::Text(value) => Some(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::*;

    fn parse(words: &[&str]) -> Result<SamplingParams, String> {
        let command = Command::new("test").no_binary_name(true).args(flags());
        let matches = command
            .try_get_matches_from(words)
            .map_err(|error| error.to_string())?;
        from_matches(&matches).map_err(|error| error.to_string())
    }

    #[test]
    fn every_parameter_has_a_flag() {
        for spec in PARAMS {
            let text = match spec.kind {
                ParamKind::Float | ParamKind::Int | ParamKind::Uint => "1",
                ParamKind::Bool => "true",
                ParamKind::Text | ParamKind::TextList => "top_k",
                ParamKind::Ids | ParamKind::Sequences => "1,2",
                ParamKind::Bias => "1:2",
            };
            let params = parse(&[&format!("--{}={text}", flag_name(spec))]).unwrap();
            assert_eq!(
                params.get(spec.name),
                Ok(spec.kind.parse(text)),
                "{}",
                spec.name
            );
        }
    }

    #[test]
    fn flags_of_every_shape() {
        let params = parse(&[
            "--frequency-penalty",
            "-0.5",
            "--top-k",
            "-1",
            "--ignore-eos",
        ])
        .unwrap();
        assert_eq!(
            (params.frequency_penalty, params.top_k, params.ignore_eos),
            (Some(-0.5), Some(-1), Some(true))
        );
        let params = parse(&["--logit-bias", "15:-2.5,20:1", "--bad-words", "1,2;7"]).unwrap();
        assert_eq!(params.logit_bias, Some([(15, -2.5), (20, 1.0)].into()));
        assert_eq!(params.bad_words, Some(vec![vec![1, 2], vec![7]]));
        assert_eq!(parse(&[]), Ok(SamplingParams::default()));
    }

    #[test]
    fn a_value_of_another_type_names_the_flag() {
        let message = parse(&["--top-k", "many"]).unwrap_err();
        assert!(
            message.contains("'many'")
                && message.contains("--top-k")
                && message.contains("integer"),
            "{message}"
        );
    }

    #[test]
    fn help_states_range_and_default() {
        let help_of = |name| help(ParamSpec::find(name).unwrap());
        assert!(
            help_of("top_p").ends_with("[0, 1], default 1"),
            "{}",
            help_of("top_p")
        );
        assert!(help_of("repetition_penalty").ends_with("(0, 100], default 1"));
        assert!(help_of("allowed_token_ids").ends_with('.'));
    }
}
