//! `nucleus chat`: a conversation in the terminal, or through a pipe.

mod conversation;
mod interrupt;

use std::io::{self, BufRead, IsTerminal, Write};

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use nucleus_engine::generate::Request;
use nucleus_engine::sequence::FinishReason;
use nucleus_sampling::SamplingParams;

use crate::cli::{args, sampling};
use crate::model::{self, Loaded};
use crate::stream;
use crate::terminal::{Notes, Style};
use conversation::{Conversation, TooLong};
use interrupt::Interrupts;

const ABOUT: &str = "Hold a conversation in the terminal";

const DETAILS: &str = "\
Each line is a message; the answer streams back. The conversation is kept as far as the model's context reaches: when it is full, \
the oldest turns are dropped, with a note. Sampling begins with what the model's makers recommend; flags override it. With --seed S, the \
first answer uses the seed S, the second S + 1, and so on.

/reset forgets the conversation, /exit or ctrl-d leaves, ctrl-c stops an answer. Messages can also come from a pipe.";

const EXAMPLES: &str = "\
Examples:
  nucleus chat
  nucleus chat --model model.gguf --system \"Answer in one sentence.\"
  echo \"Tell me a story about a fox.\" | nucleus chat --seed 7";

const HELP: &str =
    "/reset forgets the conversation, /exit or ctrl-d leaves, ctrl-c stops an answer";

/// The command's flags.
pub(crate) fn command() -> Command {
    let system = Arg::new("system")
        .long("system")
        .value_name("TEXT")
        .allow_hyphen_values(true)
        .help("A message to the model that precedes the conversation and is never dropped");
    Command::new("chat")
        .about(ABOUT)
        .long_about(format!("{ABOUT}.\n\n{DETAILS}"))
        .after_help(EXAMPLES)
        .arg(system)
        .args(args::model_flags())
        .args([
            args::max_tokens_flag("512"),
            args::stop_flag(),
            args::quiet_flag(),
        ])
        .args(sampling::flags())
}

/// Talks until the input ends.
pub(crate) fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let notes = args::notes(matches);
    let flags = sampling::from_matches(matches)?;
    model::check_ranges(&flags)?;
    let loaded = model::load(&args::model_options(matches)?, notes)?;
    loaded.chat_template()?;
    let session = Session {
        params: loaded.sampling(&flags, notes)?,
        max_tokens: args::max_tokens(matches),
        stop: args::stop(matches),
        interrupts: Interrupts::listen(notes)?,
        loaded,
        notes,
    };
    let conversation = Conversation::new(matches.get_one::<String>("system").cloned());
    session.talk(conversation, &mut io::stdin().lock())
}

/// What stays the same from answer to answer.
struct Session {
    loaded: Loaded,
    params: SamplingParams,
    max_tokens: usize,
    stop: Vec<String>,
    interrupts: Interrupts,
    notes: Notes,
}

/// What a line of input asks for.
#[derive(Debug, PartialEq, Eq)]
enum Line<'a> {
    Nothing,
    Exit,
    Reset,
    Help,
    Unknown(&'a str),
    Message(&'a str),
}

impl<'a> Line<'a> {
    fn parse(line: &'a str) -> Self {
        match line.trim() {
            "" => Self::Nothing,
            "/exit" | "/quit" | "/bye" => Self::Exit,
            "/reset" => Self::Reset,
            "/help" | "/?" => Self::Help,
            text if text.starts_with('/') => Self::Unknown(text),
            text => Self::Message(text),
        }
    }
}

impl Session {
    fn talk(&self, mut conversation: Conversation, input: &mut impl BufRead) -> anyhow::Result<()> {
        let mut turn = 0;
        while let Some(line) = self.read_line(input)? {
            match Line::parse(&line) {
                Line::Nothing => {}
                Line::Exit => break,
                Line::Reset => {
                    conversation.reset();
                    self.notes.say("the conversation is forgotten");
                }
                Line::Help => self.notes.say(HELP),
                Line::Unknown(command) => self.notes.say(&format!("no command {command}; {HELP}")),
                Line::Message(text) => {
                    conversation.ask(text);
                    self.answer(&mut conversation, turn)?;
                    turn += 1;
                }
            }
        }
        Ok(())
    }

    /// The next line; `None` at the end of the input. The prompt is shown to a person only.
    fn read_line(&self, input: &mut impl BufRead) -> anyhow::Result<Option<String>> {
        let person = io::stdin().is_terminal() && io::stdout().is_terminal();
        if person {
            write!(io::stdout(), "{}", Style::stdout().bold("> "))?;
            io::stdout().flush()?;
        }
        let mut line = String::new();
        let bytes = input
            .read_line(&mut line)
            .context("cannot read the next message from standard input")?;
        if bytes == 0 && person {
            writeln!(io::stdout())?;
        }
        Ok((bytes > 0).then_some(line))
    }

    /// Answers the last message, or says why it cannot and forgets the message.
    fn answer(&self, conversation: &mut Conversation, turn: u64) -> anyhow::Result<()> {
        let tokens = match self.fit(conversation)? {
            Ok(tokens) => tokens,
            Err(too_long) => {
                conversation.take_back();
                self.notes.say(&too_long.to_string());
                return Ok(());
            }
        };
        let params = SamplingParams {
            seed: self.params.seed.map(|seed| seed.wrapping_add(turn)),
            ..self.params.clone()
        };
        let request = Request {
            prompt: tokens,
            params,
            max_tokens: Some(self.max_tokens),
            stop: self.stop.clone(),
            ..Request::default()
        };
        let generation = self.loaded.submit(request)?;
        let seed = generation.seed();
        let completion = {
            let _answering = self.interrupts.cancel(generation.cancel_handle());
            stream::follow(generation, |text| {
                let mut out = io::stdout();
                out.write_all(Style::stdout().printable(text).as_bytes())?;
                out.flush()
            })
        };
        writeln!(io::stdout())?;
        let completion = completion?;
        if completion.finish_reason == FinishReason::Cancelled {
            self.notes.say("stopped");
        }
        self.notes.say(&stream::statistics(&completion, seed));
        conversation.answered(&completion.text);
        Ok(())
    }

    /// The conversation as tokens, with room for an answer; old turns go where it is too long.
    fn fit(&self, conversation: &mut Conversation) -> anyhow::Result<Result<Vec<u32>, TooLong>> {
        let context = self.loaded.context_length();
        let room = context - self.max_tokens.min(context / 4).max(1);
        let fitted = conversation.fit(room, |messages| self.loaded.encode_chat(messages))?;
        Ok(fitted.map(|fitted| {
            if fitted.dropped > 0 {
                let turns = if fitted.dropped == 1 {
                    "turn".to_owned()
                } else {
                    format!("{} turns", fitted.dropped)
                };
                self.notes.say(&format!(
                    "the oldest {turns} no longer fit into the context of {context} tokens"
                ));
            }
            fitted.tokens
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_messages_or_commands() {
        assert_eq!(Line::parse(" hello /exit\n"), Line::Message("hello /exit"));
        assert_eq!(Line::parse("/exit\r\n"), Line::Exit);
        assert_eq!(Line::parse("/reset"), Line::Reset);
        assert_eq!(Line::parse("/help"), Line::Help);
        assert_eq!(Line::parse("/save x"), Line::Unknown("/save x"));
        assert_eq!(Line::parse("  \n"), Line::Nothing);
    }
}
