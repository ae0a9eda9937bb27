//! Messages to a prompt, by the template that comes with the model.
//!
//! Chat templates are Jinja programs, written for Hugging Face's `apply_chat_template`: blocks are trimmed, Python's string
//! methods exist, and so do `raise_exception`, `strftime_now` and a `tojson` that writes as Python does. A template is code
//! from a stranger, so it runs with limits: on its size, its steps, its depth, its output and its time, on a thread of its
//! own whose stack is larger than any depth the other limits allow.
//!
//! What the limits do not cover: a template may build strings that are larger than memory, or make a namespace a part of
//! itself and print it. Both end the process, as a model that is too large does. So templates are taken from model files
//! only, never from requests.

mod functions;

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, ErrorKind, Value, context};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::gguf::{GgufError, Metadata};
use functions::Raised;

/// The largest template, in bytes; the largest of 70 public ones has 16,738.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 16;
/// The largest sum of messages, and the largest prompt, in bytes: as much as the tokenizer takes.
pub const MAX_PROMPT_BYTES: usize = crate::tokenizer::MAX_TEXT_BYTES;
/// Most instructions of a rendering. Public templates take 20 to 160 a message.
const FUEL: u64 = 400_000;
/// Most nested calls of macros and recursive loops.
const MAX_RECURSION: usize = 200;
/// The longest rendering.
const TIME_LIMIT: Duration = Duration::from_secs(10);
/// Enough for a value or an expression that is nested `FUEL` or `MAX_TEMPLATE_BYTES` deep, at about 500 bytes a level. It is
/// reserved, not used.
const STACK_BYTES: usize = 1 << 28;

const NAME: &str = "chat_template";

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`, or what else the model knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: content.into(),
        }
    }

    fn to_value(&self) -> Value {
        Value::from_pairs([
            ("role", self.role.as_str()),
            ("content", self.content.as_str()),
        ])
    }
}

/// How a conversation is rendered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RenderOptions {
    /// End with the beginning of an answer, so that the model answers.
    pub add_generation_prompt: bool,
}

impl Default for RenderOptions {
    fn default() -> Self {
        Self {
            add_generation_prompt: true,
        }
    }
}

/// Why a template could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ChatTemplateError {
    /// A metadata key is of a wrong type.
    #[error(transparent)]
    Metadata(#[from] GgufError),
    /// A file of the directory cannot be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The template is too large.
    #[error("the chat template has {bytes} bytes; it may have {MAX_TEMPLATE_BYTES}")]
    TemplateTooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The template is not sound.
    #[error("the chat template cannot be read: {0}")]
    Syntax(minijinja::Error),
    /// The messages are too large.
    #[error("the messages have {bytes} bytes together; they may have {MAX_PROMPT_BYTES}")]
    MessagesTooLarge {
        /// Their size.
        bytes: usize,
    },
    /// The template refuses the conversation, for instance because roles do not alternate.
    #[error("the chat template refuses the conversation: {message}")]
    Refused {
        /// What the template says.
        message: String,
    },
    /// The template takes too many steps.
    #[error("the chat template takes more than {FUEL} steps for these messages")]
    TooManySteps,
    /// The template takes too long.
    #[error("the chat template takes longer than {} seconds", TIME_LIMIT.as_secs())]
    TooSlow,
    /// The prompt is too large.
    #[error("the chat template makes a prompt of more than {MAX_PROMPT_BYTES} bytes")]
    PromptTooLarge,
    /// The template fails.
    #[error("the chat template fails: {0}")]
    Render(minijinja::Error),
    /// There is no thread to run the template on, or it panicked.
    #[error("the chat template cannot be run: {0}")]
    Thread(io::Error),
}

/// A model's chat template. It can be shared between threads.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template that a model file has, with the names of its beginning- and end-of-text tokens; `None` when it has none.
    ///
    /// # Errors
    ///
    /// When the template is too large or not sound, or a key has a wrong type.
    pub fn from_gguf(metadata: &Metadata) -> Result<Option<Self>, ChatTemplateError> {
        let Some(source) = metadata.find::<&str>("tokenizer.chat_template")? else {
            return Ok(None);
        };
        let bos_token = token(metadata, "tokenizer.ggml.bos_token_id")?;
        let eos_token = token(metadata, "tokenizer.ggml.eos_token_id")?;
        let template = Self::new(source)?;
        Ok(Some(template.with_tokens(bos_token, eos_token)))
    }

    /// The template of a directory: `chat_template.jinja`, or the one in `tokenizer_config.json`; of several, the one that
    /// is called `default`.
    ///
    /// # Errors
    ///
    /// When it is too large or not sound, or a file cannot be read.
    pub fn from_checkpoint(checkpoint: &Checkpoint) -> Result<Option<Self>, ChatTemplateError> {
        let config = checkpoint
            .read_json("tokenizer_config.json")?
            .unwrap_or_default();
        let source = match checkpoint.read_text("chat_template.jinja")? {
            Some(source) => Some(source),
            None => config.get("chat_template").and_then(default_template),
        };
        let name = |key| token_name(config.get(key)).unwrap_or_default();
        let template = source.map(|source| Self::new(&source)).transpose()?;
        Ok(template.map(|template| template.with_tokens(name("bos_token"), name("eos_token"))))
    }

    /// The same template with the names of the beginning- and end-of-text tokens.
    #[must_use]
    pub fn with_tokens(self, bos: impl Into<String>, eos: impl Into<String>) -> Self {
        Self {
            bos_token: bos.into(),
            eos_token: eos.into(),
            ..self
        }
    }

    /// A template from its source, whose beginning- and end-of-text tokens have no names.
    ///
    /// # Errors
    ///
    /// When it is too large or not sound.
    pub fn new(source: &str) -> Result<Self, ChatTemplateError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatTemplateError::TemplateTooLarge {
                bytes: source.len(),
            });
        }
        let source = without_generation_tags(source).into_owned();
        let environment = apart(TIME_LIMIT, move || {
            let mut environment = environment();
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        })?
        .map_err(ChatTemplateError::Syntax)?;
        Ok(Self {
            environment: Arc::new(environment),
            bos_token: String::new(),
            eos_token: String::new(),
        })
    }

    /// The template's source, without the marks that only training looks at.
    pub fn source(&self) -> String {
        let template = self.environment.get_template(NAME);
        template.map_or_else(|_| String::new(), |template| template.source().to_owned())
    }

    /// The prompt for a conversation, ready for the model's answer. Special tokens are written out in it, so it is encoded
    /// with them parsed, and without adding a beginning-of-text token.
    ///
    /// # Errors
    ///
    /// When a limit is reached, the template refuses the messages, or it fails.
    pub fn render(&self, messages: &[Message]) -> Result<String, ChatTemplateError> {
        self.render_with(messages, RenderOptions::default())
    }

    /// The prompt for a conversation. Errors: see [`render`](Self::render).
    pub fn render_with(
        &self,
        messages: &[Message],
        options: RenderOptions,
    ) -> Result<String, ChatTemplateError> {
        let bytes = messages
            .iter()
            .map(|message| message.role.len() + message.content.len())
            .sum();
        if bytes > MAX_PROMPT_BYTES {
            return Err(ChatTemplateError::MessagesTooLarge { bytes });
        }
        // Templates ask whether tools and documents are none, as in Python, where they always are something.
        let variables = context! {
            messages => messages.iter().map(Message::to_value).collect::<Value>(),
            add_generation_prompt => options.add_generation_prompt,
            bos_token => self.bos_token.as_str(),
            eos_token => self.eos_token.as_str(),
            tools => Value::from(()),
            documents => Value::from(()),
        };
        let environment = Arc::clone(&self.environment);
        apart(TIME_LIMIT, move || {
            let mut prompt = Prompt::default();
            let template = environment
                .get_template(NAME)
                .map_err(ChatTemplateError::Render)?;
            match template.render_captured_to(variables, &mut prompt) {
                Ok(_) => prompt.into_text(),
                Err(_) if prompt.overflowed => Err(ChatTemplateError::PromptTooLarge),
                Err(error) => Err(failure(error)),
            }
        })?
    }
}

/// Jinja as chat templates expect it.
fn environment() -> Environment<'static> {
    static SYNTAX: LazyLock<SyntaxConfig> = LazyLock::new(|| {
        let syntax = SyntaxConfig::builder()
            .trim_blocks(true)
            .lstrip_blocks(true)
            .build();
        syntax.expect("the default delimiters do not clash")
    });
    let mut environment = Environment::new();
    environment.set_syntax(SYNTAX.clone());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(unknown_method_callback);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(MAX_RECURSION);
    functions::add(&mut environment);
    environment
}

/// The spelling of a token whose id a key has; empty where there is none.
fn token(metadata: &Metadata, key: &str) -> Result<String, GgufError> {
    let Some(id) = metadata.find::<u32>(key)? else {
        return Ok(String::new());
    };
    let tokens = metadata.strings("tokenizer.ggml.tokens")?;
    Ok(tokens.get(id as usize).unwrap_or_default().to_owned())
}

/// A template, or of a list of named ones the default.
fn default_template(template: &serde_json::Value) -> Option<String> {
    let named = |template: &&serde_json::Value| template["name"] == "default";
    let source = match template.as_array() {
        Some(templates) => &templates.iter().find(named)?["template"],
        None => template,
    };
    source.as_str().map(str::to_owned)
}

/// The name of a token, as a string or as an object.
fn token_name(token: Option<&serde_json::Value>) -> Option<&str> {
    let token = token?;
    token.as_str().or_else(|| token["content"].as_str())
}

fn failure(error: minijinja::Error) -> ChatTemplateError {
    match Raised::find(&error) {
        Some(raised) => ChatTemplateError::Refused {
            message: raised.message.clone(),
        },
        None if error.kind() == ErrorKind::OutOfFuel => ChatTemplateError::TooManySteps,
        None => ChatTemplateError::Render(error),
    }
}

/// Runs a template's work on a thread with a large stack, and waits for it no longer than the limit. Work that is given up
/// ends by itself when it has used its steps.
fn apart<T: Send + 'static>(
    limit: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ChatTemplateError> {
    let (sender, result) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("chat-template".into())
        .stack_size(STACK_BYTES)
        // Nobody waits for the result of work that was given up.
        .spawn(move || drop(sender.send(work())))
        .map_err(ChatTemplateError::Thread)?;
    result.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => ChatTemplateError::TooSlow,
        RecvTimeoutError::Disconnected => {
            ChatTemplateError::Thread(io::Error::other("it panicked"))
        }
    })
}

/// A prompt of bounded size.
#[derive(Default)]
struct Prompt {
    bytes: Vec<u8>,
    overflowed: bool,
}

impl Prompt {
    fn into_text(self) -> Result<String, ChatTemplateError> {
        let not_text =
            |error| ChatTemplateError::Thread(io::Error::new(io::ErrorKind::InvalidData, error));
        String::from_utf8(self.bytes).map_err(not_text)
    }
}

impl Write for Prompt {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_PROMPT_BYTES {
            self.overflowed = true;
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The template with `{% generation %}` and `{% endgeneration %}`, which mark the model's words for training, replaced by
/// tags that always hold: `{% if true %}` and `{% endif %}`.
fn without_generation_tags(source: &str) -> Cow<'_, str> {
    if !source.contains("generation") {
        return Cow::Borrowed(source);
    }
    let mut plain = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, tag)) = rest.split_once("{%") {
        plain.push_str(before);
        plain.push_str("{%");
        let end = tag.find("%}").unwrap_or(tag.len());
        let (inside, after) = tag.split_at(end);
        plain.push_str(&match inside.trim_matches(['-', '+']).trim() {
            "generation" => inside.replace("generation", "if true"),
            "endgeneration" => inside.replace("endgeneration", "endif"),
            _ => inside.to_owned(),
        });
        rest = after;
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests;
