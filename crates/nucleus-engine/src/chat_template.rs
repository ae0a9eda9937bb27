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
        Self::new(source).map(|template| {
            Some(Self {
                bos_token,
                eos_token,
                ..template
            })
        })
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
mod tests {
    use super::*;

    fn render(source: &str, messages: &[(&str, &str)]) -> Result<String, ChatTemplateError> {
        let messages: Vec<Message> = messages
            .iter()
            .map(|&(role, content)| Message::new(role, content))
            .collect();
        ChatTemplate::new(source)?.render(&messages)
    }

    fn text(source: &str) -> String {
        render(source, &[("user", "Hi"), ("assistant", "Hello")]).unwrap()
    }

    #[test]
    fn messages_are_rendered_in_order() {
        assert_eq!(
            text("{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}"),
            "<user>Hi<assistant>Hello"
        );
    }

    #[test]
    fn the_generation_prompt_is_added_unless_it_is_not_wanted() {
        let template = ChatTemplate::new("{% if add_generation_prompt %}go{% endif %}").unwrap();
        assert_eq!(template.render(&[]).unwrap(), "go");
        assert_eq!(
            template
                .render_with(
                    &[],
                    RenderOptions {
                        add_generation_prompt: false
                    }
                )
                .unwrap(),
            ""
        );
    }

    #[test]
    fn blocks_are_trimmed() {
        assert_eq!(
            text("{% if true %}\n  {% if true %}\na\n  {% endif %}\n{% endif %}\nb"),
            "a\nb"
        );
    }

    #[test]
    fn python_methods_and_loop_controls_exist() {
        assert_eq!(text("{{ ' a,b '.strip().split(',')[1].upper() }}"), "B");
        assert_eq!(
            text(
                "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}{{ m.get('role') }}{% endfor %}"
            ),
            "user"
        );
        assert_eq!(
            text(
                "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
            ),
            "2"
        );
    }

    #[test]
    fn tools_and_documents_are_none() {
        assert_eq!(
            text(
                "{{ tools is none }} {{ documents is none }} {{ tools is iterable }} {{ nothing is defined }}"
            ),
            "True True False False"
        );
    }

    #[test]
    fn nothing_is_escaped() {
        assert_eq!(
            render("{{ messages[0].content }}", &[("user", "<b> & \"'")]).unwrap(),
            "<b> & \"'"
        );
    }

    #[test]
    fn generation_tags_mark_nothing() {
        assert_eq!(
            text("a {%- generation %} b {%- endgeneration -%} c"),
            "a bc"
        );
        assert_eq!(
            text("{% if add_generation_prompt %}x{% endif %}{{ 'generation' }}"),
            "xgeneration"
        );
    }

    #[test]
    fn a_refusal_is_the_templates_word() {
        let error = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the chat template refuses the conversation: roles must alternate"
        );
        let inside = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
        assert!(
            matches!(render(inside, &[]), Err(ChatTemplateError::Refused { message }) if message == "no")
        );
    }

    #[test]
    fn an_unsound_template_is_refused_when_it_is_loaded() {
        for source in [
            "{% if %}",
            "{{",
            "{% for x in y %}",
            "{% nonsense %}",
            "{{ 'a }}",
            "{% generation %}",
        ] {
            assert!(
                matches!(ChatTemplate::new(source), Err(ChatTemplateError::Syntax(_))),
                "{source:?}"
            );
        }
    }

    #[test]
    fn a_failure_says_where() {
        let error = render("\n\n{{ messages.nothing.more }}", &[])
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the chat template fails: undefined value (in chat_template:3)"
        );
    }

    #[test]
    fn other_templates_are_out_of_reach() {
        for source in [
            "{% include '/etc/passwd' %}",
            "{% extends 'x' %}",
            "{% import 'x' as y %}",
        ] {
            assert!(
                matches!(render(source, &[]), Err(ChatTemplateError::Render(_))),
                "{source:?}"
            );
        }
    }

    // Hostile templates.

    #[test]
    fn a_template_of_many_steps_ends() {
        let nested =
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
        assert!(matches!(
            render(nested, &[]),
            Err(ChatTemplateError::TooManySteps)
        ));
        assert!(matches!(
            render("{{ range(10**9) }}", &[]),
            Err(ChatTemplateError::Render(_))
        ));
    }

    #[test]
    fn a_recursion_without_end_ends() {
        for source in [
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
            "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
            "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
            "{% include 'chat_template' %}",
        ] {
            assert!(
                matches!(render(source, &[]), Err(ChatTemplateError::Render(_))),
                "{source:?}"
            );
        }
    }

    /// Blocks and brackets are refused by the library; chains of operators it takes, and recurses over them.
    #[test]
    fn deep_nesting_is_refused_or_rendered() {
        for source in [
            "{% if 1 %}".repeat(2000) + &"{% endif %}".repeat(2000),
            format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000)),
            format!("{{{{ {}1{} }}}}", "[".repeat(20_000), "]".repeat(20_000)),
        ] {
            assert!(matches!(
                render(&source, &[]),
                Err(ChatTemplateError::Syntax(_))
            ));
        }
        for source in [
            format!("{{{{ {}1 }}}}", "-".repeat(65_000)),
            format!("{{{{ {}1 }}}}", "not ".repeat(16_000)),
            format!("{{{{ {}1 }}}}", "1+".repeat(32_000)),
            format!("{{{{ {}1 }}}}", "1~".repeat(32_000)),
            format!("{{{{ {}1 }}}}", "1**".repeat(21_000)),
            format!("{{{{ 1{} }}}}", "|e".repeat(32_000)),
            format!("{{{{ a{} }}}}", ".b".repeat(32_000)),
            format!("{{{{ a{} }}}}", "()".repeat(32_000)),
            format!("{{{{ {}1 }}}}", "1 if 1 else ".repeat(5_400)),
            format!("{{% if 0 %}}{}{{% endif %}}", "{%elif 0%}".repeat(6_500)),
        ] {
            // What it renders to is of no interest, that it does is.
            assert!(matches!(
                render(&source, &[]),
                Ok(_) | Err(ChatTemplateError::Render(_))
            ));
        }
    }

    /// The steps bound the depth of values, here about 300,000 lists or 110,000 maps, and the stack holds the deepest.
    #[test]
    fn deep_values_are_no_deeper_than_the_stack() {
        for (open, close, rounds) in [("[", "]", 7500), ("{'a': ", "}", 2800)] {
            let deeper = open.repeat(40) + "ns.x" + &close.repeat(40);
            let grow = format!(
                "{{% for i in range({rounds}) %}}{{% set ns.x = {deeper} %}}{{% endfor %}}"
            );
            for use_it in [
                "{{ ns.x }}",
                "{{ ns.x|tojson }}",
                "{{ ns.x|string|length }}",
            ] {
                let source = format!("{{% set ns = namespace(x=1) %}}{grow}{use_it}");
                assert!(render(&source, &[]).is_ok(), "{open} {use_it}");
            }
        }
    }

    #[test]
    fn work_that_takes_too_long_is_given_up() {
        let error = apart(Duration::from_millis(10), || {
            std::thread::sleep(Duration::from_secs(2));
        })
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "the chat template takes longer than 10 seconds"
        );
    }

    #[test]
    fn a_prompt_that_is_too_large_is_refused() {
        let source = "{% set s = 'x' * 10000000 %}{% for i in range(10) %}{{ s }}{% endfor %}";
        assert!(matches!(
            render(source, &[]),
            Err(ChatTemplateError::PromptTooLarge)
        ));
    }

    #[test]
    fn a_template_that_is_too_large_is_refused() {
        let error = ChatTemplate::new(&" ".repeat(MAX_TEMPLATE_BYTES + 1))
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "the chat template has 65537 bytes; it may have 65536"
        );
    }

    #[test]
    fn messages_that_are_too_large_are_refused() {
        let huge = "x".repeat(MAX_PROMPT_BYTES + 1);
        assert!(matches!(
            render("", &[("user", &huge)]),
            Err(ChatTemplateError::MessagesTooLarge { .. })
        ));
    }

    #[test]
    fn long_conversations_are_rendered() {
        let messages = vec![("user", "Hi"); 5_000];
        let source = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}{% endfor %}";
        assert_eq!(
            render(source, &messages).unwrap().len(),
            5_000 * "<|im_start|>user\nHi<|im_end|>".len()
        );
    }

    #[test]
    fn a_panic_is_an_error() {
        let error = apart(TIME_LIMIT, || -> () { panic!("on purpose") }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the chat template cannot be run: it panicked"
        );
    }

    // Whole templates.

    #[test]
    fn the_bundled_models_template() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
        );
        let file = crate::gguf::ModelFile::open(path).unwrap();
        let template = ChatTemplate::from_gguf(file.metadata()).unwrap().unwrap();
        let prompt = template
            .render(&[
                Message::new("user", "Tell me a story."),
                Message::new("assistant", "Once."),
            ])
            .unwrap();
        let expected = "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\nOnce.<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(prompt, expected);
    }

    #[test]
    fn the_names_of_special_tokens_are_known() {
        let metadata = |template: &str, bos| {
            let tokens = ["<s>", "</s>"].into_iter().collect();
            Metadata::new([
                (
                    "tokenizer.chat_template".to_owned(),
                    crate::gguf::Value::String(template.to_owned()),
                ),
                (
                    "tokenizer.ggml.tokens".to_owned(),
                    crate::gguf::Value::Strings(tokens),
                ),
                (
                    "tokenizer.ggml.bos_token_id".to_owned(),
                    crate::gguf::Value::U32(bos),
                ),
                (
                    "tokenizer.ggml.eos_token_id".to_owned(),
                    crate::gguf::Value::U32(1),
                ),
            ])
        };
        let render = |bos| {
            let metadata = metadata("[{{ bos_token }}{{ eos_token }}]", bos);
            ChatTemplate::from_gguf(&metadata)
                .unwrap()
                .unwrap()
                .render(&[])
                .unwrap()
        };
        assert_eq!(render(0), "[<s></s>]");
        assert_eq!(render(7), "[</s>]");
    }

    #[test]
    fn a_file_without_a_template_has_none() {
        assert!(
            ChatTemplate::from_gguf(&Metadata::default())
                .unwrap()
                .is_none()
        );
    }
}
