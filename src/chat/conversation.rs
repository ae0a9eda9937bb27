//! A conversation that is kept within a number of tokens.

use nucleus_engine::chat_template::Message;

/// Messages so far: an optional system message, then user and assistant in turns.
#[derive(Debug, Clone)]
pub(crate) struct Conversation {
    system: Option<Message>,
    turns: Vec<Message>,
}

/// A conversation that fits.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fitted {
    /// Its tokens.
    pub(crate) tokens: Vec<u32>,
    /// Questions, with their answers, that had to go.
    pub(crate) dropped: usize,
}

/// The last message does not fit, even alone.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message is too long: {tokens} tokens, and there is room for {room}")]
pub(crate) struct TooLong {
    tokens: usize,
    room: usize,
}

impl Conversation {
    /// A conversation in which nothing was said yet.
    pub(crate) fn new(system: Option<String>) -> Self {
        Self {
            system: system.map(|text| Message::new("system", text)),
            turns: Vec::new(),
        }
    }

    /// Forgets everything but the system message.
    pub(crate) fn reset(&mut self) {
        self.turns.clear();
    }

    /// Adds a message of the user.
    pub(crate) fn ask(&mut self, text: &str) {
        self.turns.push(Message::new("user", text));
    }

    /// Adds the model's answer.
    pub(crate) fn answered(&mut self, text: &str) {
        self.turns.push(Message::new("assistant", text));
    }

    /// Removes the last message.
    pub(crate) fn take_back(&mut self) {
        self.turns.pop();
    }

    /// Encodes the conversation; drops the oldest question with its answer as long as the tokens are more than `room`.
    pub(crate) fn fit<E>(
        &mut self,
        room: usize,
        encode: impl Fn(&[Message]) -> Result<Vec<u32>, E>,
    ) -> Result<Result<Fitted, TooLong>, E> {
        let mut dropped = 0;
        loop {
            let tokens = encode(&self.messages())?;
            if tokens.len() <= room {
                return Ok(Ok(Fitted { tokens, dropped }));
            }
            if self.turns.len() < 3 {
                return Ok(Err(TooLong {
                    tokens: tokens.len(),
                    room,
                }));
            }
            self.turns.drain(..2);
            dropped += 1;
        }
    }

    fn messages(&self) -> Vec<Message> {
        self.system.iter().chain(&self.turns).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// As many tokens as the messages have bytes.
    fn encode(messages: &[Message]) -> Result<Vec<u32>, Infallible> {
        Ok(messages
            .iter()
            .flat_map(|message| message.content.bytes().map(u32::from))
            .collect())
    }

    fn conversation() -> Conversation {
        let mut conversation = Conversation::new(Some("S".into()));
        conversation.ask("aaaa");
        conversation.answered("bbbb");
        conversation.ask("cc");
        conversation.answered("dd");
        conversation.ask("e");
        conversation
    }

    fn fit(conversation: &mut Conversation, room: usize) -> Result<(String, usize), TooLong> {
        let Ok(fitted) = conversation.fit(room, encode);
        fitted.map(|fitted| {
            let text = fitted
                .tokens
                .iter()
                .map(|&token| char::from_u32(token).unwrap())
                .collect();
            (text, fitted.dropped)
        })
    }

    #[test]
    fn nothing_is_dropped_that_fits() {
        assert_eq!(
            fit(&mut conversation(), 14),
            Ok(("Saaaabbbbccdde".into(), 0))
        );
    }

    #[test]
    fn the_oldest_turns_go_first_and_the_system_message_stays() {
        assert_eq!(fit(&mut conversation(), 13), Ok(("Sccdde".into(), 1)));
        assert_eq!(fit(&mut conversation(), 5), Ok(("Se".into(), 2)));
    }

    #[test]
    fn a_last_message_that_cannot_fit_is_said_and_taken_back() {
        let mut conversation = conversation();
        assert_eq!(
            fit(&mut conversation, 1),
            Err(TooLong { tokens: 2, room: 1 })
        );
        conversation.take_back();
        assert_eq!(fit(&mut conversation, 1), Ok(("S".into(), 0)));
    }

    #[test]
    fn a_reset_keeps_the_system_message() {
        let mut conversation = conversation();
        conversation.reset();
        conversation.ask("f");
        assert_eq!(fit(&mut conversation, 9), Ok(("Sf".into(), 0)));
    }
}
