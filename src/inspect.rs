//! `nucleus models inspect`: what a model file holds, and the memory that it will need.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use nucleus_engine::gguf::{ModelFile, TensorInfo, Value};
use nucleus_engine::models::{self, Memory};
use serde_json::{Map, Value as Json, json};

use crate::cli::args;
use crate::model::json_value;
use crate::table::{Align, Table};
use crate::terminal::{Style, without_controls};

/// Longest array that JSON carries whole.
const WHOLE: usize = 16;

const ABOUT: &str = "Show a model file's metadata, tensors and the memory it will need";

const DETAILS: &str = "\
Reads the header of a GGUF file and checks it; the tensors' values are not read, and files of architectures that cannot run \
are shown too.

With --json: {\"file\", \"bytes\", \"gguf_version\", \"supported\", \"metadata\": {key: value}, \"tensors\": [{\"name\", \"type\", \"shape\", \
\"bytes\"}], \"memory\": {\"weights_bytes\", \"kv_cache_bytes\", \"context_length\"}}. Arrays of more than 16 elements are \
{\"type\", \"length\", \"first\"}; \"memory\" is null, and \"reason\" says why, for a file that cannot run.";

const EXAMPLES: &str = "\
Examples:
  nucleus models inspect model.gguf
  nucleus models inspect model.gguf --json | jq .memory";

/// The command's flags.
pub(crate) fn command() -> Command {
    let file = Arg::new("file")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .required(true)
        .help("A GGUF file");
    let inspect = Command::new("inspect")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .args([file, args::json_flag("Print one JSON object")]);
    Command::new("models")
        .about("Look at model files")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(inspect)
}

/// Prints what the file holds.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let (_, matches) = matches.subcommand().expect("a subcommand is required");
    let path = matches
        .get_one::<PathBuf>("file")
        .expect("the argument is required");
    let file = ModelFile::open(path)?;
    let memory = models::memory(&file).map_err(|error| error.to_string());
    let mut out = BufWriter::new(io::stdout().lock());
    if matches.get_flag("json") {
        writeln!(out, "{}", to_json(&file, &memory))?;
    } else {
        write!(out, "{}", to_text(&file, &memory, Style::stdout()))?;
    }
    Ok(out.flush()?)
}

fn to_json(file: &ModelFile, memory: &Result<Memory, String>) -> Json {
    let metadata: Map<String, Json> = file
        .metadata()
        .iter()
        .map(|(key, value)| (key.to_owned(), summary(value)))
        .collect();
    let mut object = json!({
        "file": file.name(),
        "bytes": file.size(),
        "gguf_version": file.version(),
        "supported": memory.is_ok(),
        "metadata": metadata,
        "tensors": file.tensors().iter().map(tensor_json).collect::<Vec<_>>(),
        "memory": null,
    });
    match memory {
        Ok(memory) => object["memory"] = memory_json(memory),
        Err(reason) => object["reason"] = reason.as_str().into(),
    }
    object
}

fn tensor_json(tensor: &TensorInfo) -> Json {
    json!({
        "name": tensor.name,
        "type": tensor.kind.to_string(),
        "shape": tensor.shape,
        "bytes": tensor.bytes,
    })
}

fn memory_json(memory: &Memory) -> Json {
    json!({
        "weights_bytes": memory.weights_bytes,
        "kv_cache_bytes": memory.kv_cache_bytes,
        "context_length": memory.context_length,
    })
}

/// A value as JSON; a long array as its type, length and beginning.
fn summary(value: &Value) -> Json {
    let (length, first): (usize, Vec<Json>) = match value {
        Value::Strings(list) => (
            list.len(),
            list.iter().take(WHOLE).map(Json::from).collect(),
        ),
        Value::Numbers(list) => (
            list.len(),
            list.iter()
                .take(WHOLE)
                .map(|number| json_value(&number))
                .collect(),
        ),
        scalar => return json_value(scalar),
    };
    if length <= WHOLE {
        return first.into();
    }
    json!({ "type": value.type_name(), "length": length, "first": first })
}

fn to_text(file: &ModelFile, memory: &Result<Memory, String>, style: Style) -> String {
    let parts = [
        format!(
            "{}\nGGUF version {}, {}\n",
            file.name(),
            file.version(),
            megabytes(file.size())
        ),
        format!("\n{}\n{}", style.bold("Metadata"), metadata_table(file)),
        format!("\n{}\n{}", style.bold("Tensors"), tensor_table(file)),
        format!("\n{}\n{}", style.bold("Memory"), memory_text(memory)),
    ];
    // What the file says must not steer the terminal; the styles above are ours.
    parts.concat()
}

fn metadata_table(file: &ModelFile) -> String {
    let mut table = Table::new([
        ("key", Align::Left),
        ("type", Align::Left),
        ("value", Align::Left),
    ]);
    for (key, value) in file.metadata().iter() {
        table.push([
            without_controls(key).into_owned(),
            value.type_name(),
            shortened(&value.to_string()),
        ]);
    }
    table.render(2)
}

/// One line of at most this many characters.
fn shortened(text: &str) -> String {
    const WIDTH: usize = 100;
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn tensor_table(file: &ModelFile) -> String {
    let mut table = Table::new([
        ("name", Align::Left),
        ("type", Align::Left),
        ("shape", Align::Left),
        ("bytes", Align::Right),
    ]);
    for tensor in file.tensors() {
        table.push([
            without_controls(&tensor.name).into_owned(),
            tensor.kind.to_string(),
            format!("{:?}", tensor.shape),
            tensor
                .bytes
                .map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string()),
        ]);
    }
    table.render(2)
}

fn memory_text(memory: &Result<Memory, String>) -> String {
    match memory {
        Ok(memory) => {
            let mut table = Table::new([("part", Align::Left), ("size", Align::Right)]);
            table.push(["weights".to_owned(), megabytes(memory.weights_bytes)]);
            let context = format!(
                "KV cache of one context of {} tokens",
                memory.context_length
            );
            table.push([context, megabytes(memory.kv_cache_bytes)]);
            table.push([
                "together".to_owned(),
                megabytes(memory.weights_bytes.saturating_add(memory.kv_cache_bytes)),
            ]);
            table.render(2)
        }
        Err(reason) => format!("  this file cannot run: {}\n", without_controls(reason)),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
