//! `nucleus models inspect`: what a model's files hold, and the memory that it will need.

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Command, value_parser};
use nucleus_engine::gguf::Value;
use nucleus_engine::model_source::ModelSource;
use nucleus_engine::models::{self, Memory};
use serde_json::{Map, Value as Json, json};

use crate::cli::args;
use crate::model::json_value;
use crate::table::{Align, Table};
use crate::terminal::{Style, without_controls};

/// Longest array that JSON carries whole.
const WHOLE: usize = 16;

const ABOUT: &str = "Show a model's metadata, tensors and the memory it will need";

const DETAILS: &str = "\
Reads the header of a GGUF file, or config.json and the headers of a directory's safetensors files, and checks them; the \
tensors' values are not read, and models that cannot run are shown too.

With --json: {\"file\", \"format\": \"gguf\" or \"safetensors\", \"bytes\", \"gguf_version\", \"supported\", \"metadata\": {key: value}, \
\"tensors\": [{\"name\", \"type\", \"shape\", \"bytes\"}], \"memory\": {\"weights_bytes\", \"kv_cache_bytes\", \"context_length\"}}. \
\"metadata\" is config.json for a directory, and \"gguf_version\" is null. Arrays of more than 16 elements are {\"type\", \
\"length\", \"first\"}; \"memory\" is null, and \"reason\" says why, for a model that cannot run.";

const EXAMPLES: &str = "\
Examples:
  nucleus models inspect model.gguf
  nucleus models inspect Qwen3-0.6B
  nucleus models inspect model.gguf --json | jq .memory";

/// The command's flags.
pub(crate) fn command() -> Command {
    let file = Arg::new("file")
        .value_name("PATH")
        .value_parser(value_parser!(PathBuf))
        .required(true)
        .help("A GGUF file, or a directory of safetensors files");
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
    let source = ModelSource::open(path)?;
    let contents = Contents::new(&source);
    let mut out = BufWriter::new(io::stdout().lock());
    if matches.get_flag("json") {
        writeln!(out, "{}", contents.to_json())?;
    } else {
        write!(out, "{}", contents.to_text(Style::stdout()))?;
    }
    Ok(out.flush()?)
}

/// What the files of a model hold, whatever their format.
struct Contents {
    name: String,
    bytes: u64,
    format: &'static str,
    gguf_version: Option<u32>,
    metadata: Vec<Entry>,
    tensors: Vec<TensorRow>,
    /// Or why it cannot run.
    memory: Result<Memory, String>,
}

/// A key with its value.
struct Entry {
    key: String,
    kind: String,
    /// The value in one line.
    text: String,
    value: Json,
}

struct TensorRow {
    name: String,
    kind: String,
    shape: Vec<usize>,
    /// `None` for types of unknown layout.
    bytes: Option<u64>,
}

impl Contents {
    fn new(source: &ModelSource) -> Self {
        let (format, gguf_version, metadata, tensors) = match source {
            ModelSource::Gguf(file) => {
                let metadata = file.metadata().iter().map(|(key, value)| Entry {
                    key: key.to_owned(),
                    kind: value.type_name(),
                    text: value.to_string(),
                    value: summary(value),
                });
                let tensors = file.tensors().iter().map(|tensor| TensorRow {
                    name: tensor.name.clone(),
                    kind: tensor.kind.to_string(),
                    shape: tensor.shape.clone(),
                    bytes: tensor.bytes,
                });
                (
                    "gguf",
                    Some(file.version()),
                    metadata.collect(),
                    tensors.collect(),
                )
            }
            ModelSource::Safetensors(checkpoint) => {
                let metadata = checkpoint.config().iter().map(|(key, value)| Entry {
                    key: key.clone(),
                    kind: json_type(value).to_owned(),
                    text: value.to_string(),
                    value: json_summary(value),
                });
                let tensors = checkpoint.tensors().iter().map(|tensor| TensorRow {
                    name: tensor.name.clone(),
                    kind: tensor.kind.clone(),
                    shape: tensor.shape.clone(),
                    bytes: Some(tensor.bytes),
                });
                ("safetensors", None, metadata.collect(), tensors.collect())
            }
        };
        Self {
            name: source.name(),
            bytes: source.size(),
            format,
            gguf_version,
            metadata,
            tensors,
            memory: models::memory(source.weights()).map_err(|error| error.to_string()),
        }
    }

    fn to_json(&self) -> Json {
        let metadata: Map<String, Json> = (self.metadata.iter())
            .map(|entry| (entry.key.clone(), entry.value.clone()))
            .collect();
        let mut object = json!({
            "file": self.name,
            "format": self.format,
            "bytes": self.bytes,
            "gguf_version": self.gguf_version,
            "supported": self.memory.is_ok(),
            "metadata": metadata,
            "tensors": self.tensors.iter().map(TensorRow::to_json).collect::<Vec<_>>(),
            "memory": null,
        });
        match &self.memory {
            Ok(memory) => object["memory"] = memory_json(memory),
            Err(reason) => object["reason"] = reason.as_str().into(),
        }
        object
    }

    fn to_text(&self, style: Style) -> String {
        let format = match self.gguf_version {
            Some(version) => format!("GGUF version {version}"),
            None => "safetensors".to_owned(),
        };
        let parts = [
            format!("{}\n{format}, {}\n", self.name, megabytes(self.bytes)),
            format!("\n{}\n{}", style.bold("Metadata"), self.metadata_table()),
            format!("\n{}\n{}", style.bold("Tensors"), self.tensor_table()),
            format!("\n{}\n{}", style.bold("Memory"), memory_text(&self.memory)),
        ];
        // What the file says must not steer the terminal; the styles above are ours.
        parts.concat()
    }

    fn metadata_table(&self) -> String {
        let mut table = Table::new([
            ("key", Align::Left),
            ("type", Align::Left),
            ("value", Align::Left),
        ]);
        for entry in &self.metadata {
            table.push([
                without_controls(&entry.key).into_owned(),
                entry.kind.clone(),
                shortened(&entry.text),
            ]);
        }
        table.render(2)
    }

    fn tensor_table(&self) -> String {
        let mut table = Table::new([
            ("name", Align::Left),
            ("type", Align::Left),
            ("shape", Align::Left),
            ("bytes", Align::Right),
        ]);
        for tensor in &self.tensors {
            table.push([
                without_controls(&tensor.name).into_owned(),
                tensor.kind.clone(),
                format!("{:?}", tensor.shape),
                tensor
                    .bytes
                    .map_or_else(|| "unknown".to_owned(), |bytes| bytes.to_string()),
            ]);
        }
        table.render(2)
    }
}

impl TensorRow {
    fn to_json(&self) -> Json {
        json!({
            "name": self.name,
            "type": self.kind,
            "shape": self.shape,
            "bytes": self.bytes,
        })
    }
}

/// What JSON calls the type of a value.
fn json_type(value: &Json) -> &'static str {
    match value {
        Json::Null => "null",
        Json::Bool(_) => "bool",
        Json::Number(_) => "number",
        Json::String(_) => "string",
        Json::Array(_) => "array",
        Json::Object(_) => "object",
    }
}

/// A value; a long array as its type, length and beginning.
fn json_summary(value: &Json) -> Json {
    match value {
        Json::Array(list) if list.len() > WHOLE => {
            json!({ "type": "array", "length": list.len(), "first": &list[..WHOLE] })
        }
        value => value.clone(),
    }
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

/// One line of at most this many characters.
fn shortened(text: &str) -> String {
    const WIDTH: usize = 100;
    match text.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
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
        Err(reason) => format!("  this model cannot run: {}\n", without_controls(reason)),
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}
