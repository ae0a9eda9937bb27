//! `nucleus generate`: continues a text.

use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Arg, ArgGroup, ArgMatches, Command, value_parser};
use nucleus_engine::constraint::Format;
use nucleus_engine::generate::{Generation, Request};
use nucleus_engine::sequence::Completion;
use nucleus_sampling::SamplingParams;
use serde_json::{Value, json};

use crate::cli::{args, sampling};
use crate::failure::usage;
use crate::model;
use crate::stream;
use crate::terminal::Style;

const ABOUT: &str = "Continue a text";

const DETAILS: &str = "\
Prints the prompt and, as it comes, the text that continues it. Sampling begins with what the model's makers recommend, printed \
on standard error; flags override it. The same seed gives the same text.

With --json nothing is printed but one object at the end: {\"text\" (the continuation alone), \"token_ids\", \"finish_reason\", \
\"seed\", \"params\", \"timings\"}.";

const EXAMPLES: &str = "\
Examples:
  nucleus generate \"Once upon a time\"
  nucleus generate \"Once upon a time\" --seed 7 --temperature 0.9 --min-p 0.05 --max-tokens 100
  nucleus generate --prompt-file story.txt --stop \"The end\"
  nucleus generate \"Is a fox an animal? \" --regex \"(yes|no)\"
  echo \"Once upon a time\" | nucleus generate - --json | jq -r .text";

/// The command's flags.
pub(crate) fn command() -> Command {
    let prompt = Arg::new("prompt")
        .value_name("PROMPT")
        .help("The text to continue; \"-\" reads it from standard input");
    let prompt_file = Arg::new("prompt_file")
        .long("prompt-file")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Read the prompt from a file; one line feed at its end does not count");
    Command::new("generate")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args([prompt, prompt_file])
        .group(
            ArgGroup::new("prompt_source")
                .args(["prompt", "prompt_file"])
                .required(true),
        )
        .args(args::model_flags())
        .args([args::max_tokens_flag("256"), args::stop_flag()])
        .args(format_flags())
        .args([
            args::json_flag("Print one JSON object at the end instead of the text"),
            args::quiet_flag(),
        ])
        .args(sampling::flags())
}

/// What the text must be.
fn format_flags() -> [Arg; 3] {
    let json_schema = Arg::new("json_schema")
        .long("json-schema")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .conflicts_with_all(["regex", "grammar"])
        .help("Generate JSON of the JSON Schema in this file, and nothing else");
    let regex = Arg::new("regex")
        .long("regex")
        .value_name("EXPRESSION")
        .allow_hyphen_values(true)
        .conflicts_with("grammar")
        .help("Generate a match of this regular expression, and nothing else");
    let grammar = Arg::new("grammar")
        .long("grammar")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Generate a sentence of the grammar in this file, in GBNF or Lark's language, and nothing else");
    [json_schema, regex, grammar]
}

/// What [`format_flags`] said, and which of them.
fn format(matches: &ArgMatches) -> anyhow::Result<Option<(&'static str, Format)>> {
    if let Some(regex) = matches.get_one::<String>("regex") {
        return Ok(Some(("--regex", Format::Regex(regex.clone()))));
    }
    if let Some(path) = matches.get_one::<PathBuf>("grammar") {
        let text = fs::read_to_string(path)
            .with_context(|| format!("cannot read the grammar from {}", path.display()))?;
        return Ok(Some(("--grammar", Format::grammar(text))));
    }
    let Some(path) = matches.get_one::<PathBuf>("json_schema") else {
        return Ok(None);
    };
    let place = || format!("cannot read the schema from {}", path.display());
    let text = fs::read_to_string(path).with_context(place)?;
    let schema = serde_json::from_str(&text).with_context(place)?;
    Ok(Some(("--json-schema", Format::JsonSchema(schema))))
}

/// Generates and prints.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let notes = args::notes(matches);
    let prompt = prompt(matches)?;
    let flags = sampling::from_matches(matches)?;
    model::check_ranges(&flags)?;
    let format = format(matches)?;
    let loaded = model::load(&args::model_options(matches)?, notes)?;
    let params = loaded.sampling(&flags, notes)?;

    let generation = loaded.submit(Request {
        prompt: loaded.encode_prompt(&prompt)?,
        params,
        max_tokens: Some(args::max_tokens(matches)),
        stop: args::stop(matches),
        constraint: format
            .map(|(flag, format)| loaded.constraint(flag, format))
            .transpose()?,
        ..Request::default()
    })?;
    let seed = generation.seed();
    let completion = if matches.get_flag("json") {
        to_json(generation, loaded.load_time)?
    } else {
        to_text(generation, &prompt)?
    };
    notes.say(&stream::statistics(&completion, seed));
    Ok(())
}

/// Streams the text behind the prompt.
fn to_text(generation: Generation, prompt: &str) -> anyhow::Result<Completion> {
    let style = Style::stdout();
    let mut out = io::stdout();
    write!(out, "{}", style.dim(&style.printable(prompt)))?;
    out.flush()?;
    let completion = stream::follow(generation, |text| {
        out.write_all(style.printable(text).as_bytes())?;
        out.flush()
    });
    // Also before an error, which should not continue the line.
    writeln!(out)?;
    completion
}

/// Prints the one object that `--json` asks for.
fn to_json(generation: Generation, load: Duration) -> anyhow::Result<Completion> {
    let (seed, params) = (generation.seed(), generation.params().effective().clone());
    let completion = stream::follow(generation, |_| Ok(()))?;
    writeln!(
        io::stdout(),
        "{}",
        object(&completion, seed, &params, load)?
    )?;
    Ok(completion)
}

fn object(
    completion: &Completion,
    seed: u64,
    params: &SamplingParams,
    load: Duration,
) -> anyhow::Result<Value> {
    Ok(json!({
        "text": completion.text,
        "token_ids": completion.token_ids,
        "finish_reason": completion.finish_reason.as_str(),
        "seed": seed,
        "params": serde_json::to_value(params)?,
        "timings": stream::timings(completion, load),
    }))
}

/// The prompt from wherever the command line says it is.
fn prompt(matches: &ArgMatches) -> anyhow::Result<String> {
    let file = matches.get_one::<PathBuf>("prompt_file");
    let argument = matches.get_one::<String>("prompt");
    let prompt = match (file, argument.map(String::as_str)) {
        (Some(path), _) => without_last_line_feed(read_file(path)?),
        (None, Some("-")) => without_last_line_feed(read_stdin()?),
        (None, Some(text)) => text.to_owned(),
        (None, None) => unreachable!("one of the two is required"),
    };
    if prompt.is_empty() {
        Err(usage(
            "the prompt is empty; it must have at least one character",
        ))
    } else {
        Ok(prompt)
    }
}

fn read_file(path: &Path) -> anyhow::Result<String> {
    fs::read_to_string(path)
        .with_context(|| format!("cannot read the prompt from {}", path.display()))
}

fn read_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    io::stdin()
        .read_to_string(&mut text)
        .context("cannot read the prompt from standard input")?;
    Ok(text)
}

/// Editors and `echo` end a text with a line feed that nobody means.
fn without_last_line_feed(mut text: String) -> String {
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_feed_is_left_out() {
        assert_eq!(without_last_line_feed("a\n".into()), "a");
        assert_eq!(without_last_line_feed("a\r\n".into()), "a");
        assert_eq!(without_last_line_feed("a\n\n".into()), "a\n");
        assert_eq!(without_last_line_feed("a\r".into()), "a\r");
    }
}
