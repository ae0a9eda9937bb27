//! Server-sent events as a client reads them.

use serde_json::Value;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SseEvent {
    pub(crate) name: String,
    pub(crate) data: Value,
}

/// Turns bytes into events; comments are counted.
#[derive(Default)]
pub(crate) struct SseParser {
    pending: Vec<u8>,
    pub(crate) comments: usize,
}

impl SseParser {
    /// Takes bytes, gives the events that they complete.
    ///
    /// # Panics
    /// If an event is anything but a name and one line of JSON.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Vec<SseEvent> {
        self.pending.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
            let block: Vec<u8> = self.pending.drain(..end + 2).collect();
            let block = String::from_utf8(block).expect("a stream is UTF-8");
            events.extend(self.block(block.trim_end_matches('\n')));
        }
        events
    }

    fn block(&mut self, block: &str) -> Option<SseEvent> {
        let lines: Vec<&str> = block.split('\n').collect();
        match lines[..] {
            [comment] if comment.starts_with(':') => {
                self.comments += 1;
                None
            }
            [event, data] => Some(SseEvent {
                name: event.strip_prefix("event: ").expect("a name").to_owned(),
                data: serde_json::from_str(data.strip_prefix("data: ").expect("data"))
                    .expect("data is JSON"),
            }),
            _ => panic!("not an event: {block:?}"),
        }
    }

    /// Whether nothing is left of a half event.
    pub(crate) fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }
}

/// A whole stream, checked: `started`, tokens in order, one ending, nothing after it; its texts joined are the end's text.
#[derive(Debug, Clone)]
pub(crate) struct Transcript {
    pub(crate) started: Value,
    pub(crate) tokens: Vec<Value>,
    /// `end` or `error`, and its data.
    pub(crate) ending: SseEvent,
}

impl Transcript {
    /// # Panics
    /// If the events are not a whole stream.
    pub(crate) fn of(events: Vec<SseEvent>) -> Self {
        let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
        let endings = names
            .iter()
            .filter(|name| ["end", "error"].contains(name))
            .count();
        assert_eq!(endings, 1, "a stream ends once: {names:?}");
        let mut events = events.into_iter();
        let started = events.next().expect("a stream has a beginning");
        assert_eq!(started.name, "started");
        let ending = events.next_back().expect("a stream has an end");
        assert!(
            ["end", "error"].contains(&ending.name.as_str()),
            "{ending:?}"
        );
        let tokens: Vec<Value> = events
            .map(|event| {
                assert_eq!(event.name, "token");
                event.data
            })
            .collect();
        for (index, token) in tokens.iter().enumerate() {
            assert_eq!(token["index"], index, "{token}");
        }
        let transcript = Self {
            started: started.data,
            tokens,
            ending,
        };
        if transcript.ending.name == "end" {
            assert_eq!(
                transcript.end()["text"],
                transcript.joined(),
                "texts joined are the text"
            );
            let completion_tokens = &transcript.end()["usage"]["completion_tokens"];
            assert_eq!(
                *completion_tokens,
                transcript.tokens.len(),
                "every token has its event"
            );
        }
        transcript
    }

    /// The end's data.
    pub(crate) fn end(&self) -> &Value {
        assert_eq!(self.ending.name, "end", "{:?}", self.ending);
        &self.ending.data
    }

    /// The end's text.
    pub(crate) fn text(&self) -> &str {
        self.end()["text"].as_str().expect("text is a string")
    }

    /// The end's reason.
    pub(crate) fn stop_reason(&self) -> &str {
        self.end()["stop_reason"]
            .as_str()
            .expect("stop_reason is a string")
    }

    /// The tokens' ids.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens
            .iter()
            .map(|token| token["id"].as_u64().expect("an id") as u32)
            .collect()
    }

    fn joined(&self) -> String {
        self.tokens
            .iter()
            .map(|token| token["text"].as_str().expect("text is a string"))
            .collect()
    }
}
