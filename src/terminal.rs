//! What a person sees: styles, notes on stderr, and text that cannot steer the terminal.

use std::borrow::Cow;
use std::env;
use std::io::{self, IsTerminal, Write};

/// Whether a stream shows styles, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    terminal: bool,
    colour: bool,
}

impl Style {
    /// The style of standard output.
    pub(crate) fn stdout() -> Self {
        Self::of(io::stdout().is_terminal())
    }

    /// The style of standard error.
    pub(crate) fn stderr() -> Self {
        Self::of(io::stderr().is_terminal())
    }

    /// Colour needs a terminal that knows escape codes and a user who did not refuse them (<https://no-color.org>).
    fn of(terminal: bool) -> Self {
        let refused = env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|value| value == "dumb");
        Self {
            terminal,
            colour: terminal && !refused && !dumb,
        }
    }

    /// Whether the stream shows colours.
    pub(crate) fn is_coloured(self) -> bool {
        self.colour
    }

    /// Whether the stream is a terminal.
    pub(crate) fn is_terminal(self) -> bool {
        self.terminal
    }

    /// Text that steps back behind the rest.
    pub(crate) fn dim(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Text that stands out.
    pub(crate) fn bold(self, text: &str) -> String {
        self.paint("1", text)
    }

    /// The word `error` at the beginning of a message.
    pub(crate) fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    fn paint(self, code: &str, text: &str) -> String {
        if self.colour {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    /// Generated text as this stream may show it: a terminal gets no control characters, everything else the exact text.
    pub(crate) fn printable<'a>(self, text: &'a str) -> Cow<'a, str> {
        if self.terminal {
            without_controls(text)
        } else {
            text.into()
        }
    }
}

/// Every control character but line feed and tab becomes U+FFFD: what a model or a file says must not move the cursor,
/// set the window's title or worse.
pub(crate) fn without_controls(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && !matches!(c, '\n' | '\t');
    if text.contains(steers) {
        text.replace(steers, "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// Notes for the person at the keyboard, on standard error; `--quiet` silences them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Notes {
    quiet: bool,
}

impl Notes {
    pub(crate) fn new(quiet: bool) -> Self {
        Self { quiet }
    }

    /// Whether a progress bar may be drawn.
    pub(crate) fn may_animate(self) -> bool {
        !self.quiet && Style::stderr().is_terminal()
    }

    /// Writes one line. A standard error that cannot be written to is no reason to stop.
    pub(crate) fn say(self, line: &str) {
        if !self.quiet {
            let _ = writeln!(io::stderr(), "{}", Style::stderr().dim(line));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style {
        terminal: false,
        colour: false,
    };
    const COLOUR: Style = Style {
        terminal: true,
        colour: true,
    };
    const NO_COLOUR: Style = Style {
        terminal: true,
        colour: false,
    };

    #[test]
    fn styles_need_colour() {
        assert_eq!(COLOUR.dim("x"), "\x1b[2mx\x1b[0m");
        assert_eq!(NO_COLOUR.dim("x"), "x");
        assert_eq!(PLAIN.bold("x"), "x");
    }

    #[test]
    fn a_terminal_gets_no_escape_codes_from_a_model() {
        let text = "a\x1b]0;title\x07b\r\n\tc";
        assert_eq!(
            NO_COLOUR.printable(text),
            "a\u{fffd}]0;title\u{fffd}b\u{fffd}\n\tc"
        );
        assert_eq!(PLAIN.printable(text), text);
    }
}
