//! Stop strings, matched on text across token borders.
//!
//! The strings become one Aho-Corasick automaton (Aho and Corasick, "Efficient string matching", CACM 18(6), 1975).
//! After each byte its state is the longest suffix of the text that begins some stop string. That suffix is all that is
//! held back, so text is never delayed longer than a match could still begin in it, and the work per byte of text does
//! not depend on how many strings there are or how much is held.

use std::collections::HashMap;

/// Why stop strings were refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StopError {
    /// An empty string would match everywhere.
    #[error("stop[{index}] is empty; a stop string must have at least one character")]
    Empty {
        /// Its index in the list.
        index: usize,
    },
    /// The automaton numbers its states in 32 bits.
    #[error("the stop strings have {bytes} bytes together; at most {limit} can be matched")]
    TooLong {
        /// Bytes of all strings.
        bytes: usize,
        /// Most that can be.
        limit: usize,
    },
}

/// What one push added.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is now certain to be output; may be empty.
    pub text: String,
    /// The stop string that ended the text, if one did.
    pub matched: Option<String>,
}

/// Finds the first stop string in text that arrives in pieces.
///
/// The first stop string to be complete ends the text: the one whose last character comes first. Of several that end at
/// the same character the longest wins, so that no part of a stop string is output. This is what a check after every
/// character would find, and it does not depend on how the text is cut into pushes. The text before the match is output,
/// the stop string itself is not (unless [`including_stop`](Self::including_stop) is set), and what follows it is dropped.
///
/// How many strings there may be, and how long they may be, is the caller's rule.
///
/// ```
/// use nucleus_engine::stop::StopMatcher;
///
/// let mut stop = StopMatcher::new(&["\nUser:"])?;
/// assert_eq!(stop.push("Hello.\nUs").text, "Hello.");
/// let end = stop.push("er: and more");
/// assert_eq!((end.text.as_str(), end.matched.as_deref()), ("", Some("\nUser:")));
/// # Ok::<(), nucleus_engine::stop::StopError>(())
/// ```
#[derive(Debug, Clone)]
pub struct StopMatcher {
    automaton: Automaton,
    state: usize,
    /// The text that ends at `state`: the longest suffix of all text that begins a stop string.
    held: String,
    include_stop: bool,
    ended: bool,
}

impl StopMatcher {
    /// A matcher for `stops`; an empty list never matches. The same string twice is allowed.
    ///
    /// # Errors
    ///
    /// [`StopError::Empty`] for an empty string, [`StopError::TooLong`] for 2^32 bytes or more.
    pub fn new<S: AsRef<str>>(stops: &[S]) -> Result<Self, StopError> {
        if let Some(index) = stops.iter().position(|stop| stop.as_ref().is_empty()) {
            return Err(StopError::Empty { index });
        }
        let bytes = stops.iter().map(|stop| stop.as_ref().len()).sum();
        let limit = u32::MAX as usize - 1;
        if bytes > limit {
            return Err(StopError::TooLong { bytes, limit });
        }
        let automaton = Automaton::new(stops);
        Ok(Self {
            automaton,
            state: ROOT,
            held: String::new(),
            include_stop: false,
            ended: false,
        })
    }

    /// Whether the matched stop string is part of the output; by default it is not.
    pub fn including_stop(mut self, include: bool) -> Self {
        self.include_stop = include;
        self
    }

    /// Takes more text; gives what is certain to be output, and the stop string that ends the text, if one does.
    ///
    /// After a match nothing more is output.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.ended {
            return StopOutput::default();
        }
        self.held.push_str(text);
        let arrived = self.held.len() - text.len();
        for (index, byte) in text.bytes().enumerate() {
            self.state = self.automaton.next(self.state, byte);
            if let Some(len) = self.automaton.match_len(self.state) {
                return self.end(arrived + index + 1, len);
            }
        }
        let certain = self.held.len() - self.automaton.depth(self.state);
        let tail = self.held.split_off(certain);
        StopOutput {
            text: std::mem::replace(&mut self.held, tail),
            matched: None,
        }
    }

    /// Ends the text: what is still held back can no longer become a stop string.
    pub fn finish(&mut self) -> String {
        self.ended = true;
        std::mem::take(&mut self.held)
    }

    /// Ends the text with the stop string of `len` bytes that ends at byte `end` of the held text.
    fn end(&mut self, end: usize, len: usize) -> StopOutput {
        let mut text = self.finish();
        text.truncate(end);
        let stop = text.split_off(end - len);
        if self.include_stop {
            text.push_str(&stop);
        }
        StopOutput {
            text,
            matched: Some(stop),
        }
    }
}

/// The state of no text: no stop string has begun.
const ROOT: usize = 0;

/// States are prefixes of stop strings, in a trie; a state's number is the order in which it was added.
#[derive(Debug, Clone)]
struct Automaton {
    /// From a state and a byte to the state that is one byte longer.
    edges: HashMap<(usize, u8), usize>,
    states: Vec<State>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    /// Bytes of the prefix.
    depth: u32,
    /// The longest proper suffix of the prefix that is a state too.
    fallback: u32,
    /// Bytes of the longest stop string that ends here; 0 is none.
    match_len: u32,
}

impl Automaton {
    fn new<S: AsRef<str>>(stops: &[S]) -> Self {
        let mut automaton = Self {
            edges: HashMap::new(),
            states: vec![State::default()],
        };
        let mut parents = vec![(ROOT, 0)];
        for stop in stops {
            automaton.insert(stop.as_ref().as_bytes(), &mut parents);
        }
        automaton.link(&parents);
        automaton
    }

    /// Adds a string; `parents[state]` is the state before it and the byte between.
    fn insert(&mut self, stop: &[u8], parents: &mut Vec<(usize, u8)>) {
        let mut state = ROOT;
        for (depth, &byte) in (1..).zip(stop) {
            let fresh = self.states.len();
            let next = *self.edges.entry((state, byte)).or_insert(fresh);
            if next == fresh {
                self.states.push(State {
                    depth,
                    ..State::default()
                });
                parents.push((state, byte));
            }
            state = next;
        }
        self.states[state].match_len = self.states[state].depth;
    }

    /// Sets fallbacks, and matches inherited from them, shorter states first.
    fn link(&mut self, parents: &[(usize, u8)]) {
        let mut order: Vec<usize> = (1..self.states.len()).collect();
        order.sort_by_key(|&state| self.states[state].depth);
        for state in order {
            let (parent, byte) = parents[state];
            let fallback = if parent == ROOT {
                ROOT
            } else {
                self.next(self.fallback(parent), byte)
            };
            let inherited = self.states[fallback].match_len;
            let state = &mut self.states[state];
            state.fallback = fallback as u32;
            state.match_len = state.match_len.max(inherited);
        }
    }

    /// The longest suffix of the text of `state` and `byte` that is a state.
    fn next(&self, mut state: usize, byte: u8) -> usize {
        loop {
            if let Some(&next) = self.edges.get(&(state, byte)) {
                return next;
            }
            if state == ROOT {
                return ROOT;
            }
            state = self.fallback(state);
        }
    }

    fn fallback(&self, state: usize) -> usize {
        self.states[state].fallback as usize
    }

    fn depth(&self, state: usize) -> usize {
        self.states[state].depth as usize
    }

    fn match_len(&self, state: usize) -> Option<usize> {
        let len = self.states[state].match_len as usize;
        (len > 0).then_some(len)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matcher(stops: &[&str]) -> StopMatcher {
        StopMatcher::new(stops).unwrap()
    }

    /// The joined output of the pushes (and of the end, if none matched), and the match.
    fn run(mut stop: StopMatcher, pushes: &[&str]) -> (String, Option<String>) {
        let mut text = String::new();
        for push in pushes {
            let output = stop.push(push);
            text.push_str(&output.text);
            if output.matched.is_some() {
                return (text, output.matched);
            }
        }
        text.push_str(&stop.finish());
        (text, None)
    }

    fn ended(text: &str, stop: &str) -> (String, Option<String>) {
        (text.to_owned(), Some(stop.to_owned()))
    }

    fn whole(text: &str) -> (String, Option<String>) {
        (text.to_owned(), None)
    }

    /// R1.4: one stop string ends the text before it.
    #[test]
    fn r1_4_single() {
        assert_eq!(
            run(matcher(&["END"]), &["the END of"]),
            ended("the ", "END")
        );
    }

    /// R1.4: of several stop strings the first to be complete wins, wherever it is in the list.
    #[test]
    fn r1_4_several() {
        assert_eq!(
            run(matcher(&["fox", "dog"]), &["the dog and the fox"]),
            ended("the ", "dog")
        );
        assert_eq!(
            run(matcher(&["dog", "fox"]), &["the dog and the fox"]),
            ended("the ", "dog")
        );
    }

    /// R1.4: a beginning of a stop string is held back, and released once it cannot match any more.
    #[test]
    fn r1_4_partial_is_released() {
        let mut stop = matcher(&["STOP"]);
        assert_eq!(stop.push("go ST").text, "go ");
        assert_eq!(stop.push("A").text, "STA");
        assert_eq!(stop.push("STO").text, "");
        assert_eq!(stop.finish(), "STO");
    }

    /// R1.4: without a match, all text is output.
    #[test]
    fn r1_4_none() {
        assert_eq!(
            run(matcher(&["xyz"]), &["once ", "upon"]),
            whole("once upon")
        );
        let mut stop = matcher(&[]);
        assert_eq!(stop.push("once").text, "once");
        assert_eq!(stop.finish(), "");
    }

    /// R1.4: a stop string may begin in one token and end in a later one.
    #[test]
    fn r1_4_across_token_borders() {
        assert_eq!(
            run(
                matcher(&["\n\nUser:"]),
                &["Hi.\n", "\n", "Us", "er", ":", " x"]
            ),
            ended("Hi.", "\n\nUser:")
        );
    }

    /// R1.4: after a false start the match may begin inside what was held back.
    #[test]
    fn r1_4_overlap() {
        assert_eq!(
            run(matcher(&["aab"]), &["a", "a", "a", "b"]),
            ended("a", "aab")
        );
        assert_eq!(
            run(matcher(&["abab", "babb"]), &["ababb"]),
            ended("", "abab")
        );
        assert_eq!(
            run(matcher(&["abac", "babb"]), &["ababb"]),
            ended("a", "babb")
        );
    }

    /// R1.4: characters of several bytes are matched and held back whole.
    #[test]
    fn r1_4_multi_byte_characters() {
        // é is c3 a9, è is c3 a8: they share their first byte.
        let mut stop = matcher(&["é!"]);
        assert_eq!(stop.push("caè").text, "caè");
        assert_eq!(stop.push("é").text, "");
        assert_eq!(stop.push("?").text, "é?");
        assert_eq!(
            run(matcher(&["。"]), &["終わり", "。次"]),
            ended("終わり", "。")
        );
    }

    /// R1.4: a match ends generation with the character that completes it; what follows is dropped.
    #[test]
    fn r1_4_after_a_match_nothing_is_output() {
        let mut stop = matcher(&["b"]);
        assert_eq!(
            stop.push("abc"),
            StopOutput {
                text: "a".into(),
                matched: Some("b".into())
            }
        );
        assert_eq!(stop.push("more"), StopOutput::default());
        assert_eq!(stop.finish(), "");
    }

    /// R1.4: the first to be complete wins over one that began earlier.
    #[test]
    fn r1_4_the_first_to_be_complete_wins() {
        assert_eq!(run(matcher(&["abcd", "bc"]), &["xabcd"]), ended("xa", "bc"));
        assert_eq!(run(matcher(&["ab", "abc"]), &["abc"]), ended("", "ab"));
    }

    /// R1.4: of those complete at the same character the longest wins.
    #[test]
    fn r1_4_the_longest_of_a_tie_wins() {
        assert_eq!(
            run(matcher(&["b", "aab", "ab"]), &["xaab"]),
            ended("x", "aab")
        );
    }

    #[test]
    fn the_stop_string_can_be_included() {
        let stop = matcher(&[".", "!"]).including_stop(true);
        assert_eq!(run(stop, &["Done", ". More"]), ended("Done.", "."));
    }

    #[test]
    fn an_empty_stop_is_refused() {
        assert_eq!(
            StopMatcher::new(&["a", ""]).unwrap_err(),
            StopError::Empty { index: 1 }
        );
    }

    #[test]
    fn the_same_stop_twice_is_one() {
        assert_eq!(run(matcher(&["ab", "ab"]), &["xab"]), ended("x", "ab"));
    }

    /// A run that keeps falling back through the whole held text: linear, or this test takes hours.
    #[test]
    fn long_stops_cost_no_more_per_character() {
        let stop = "a".repeat(100_000) + "b";
        let text = "a".repeat(99_999) + "c";
        let mut stop = matcher(&[&stop]);
        let output: usize = (0..20).map(|_| stop.push(&text).text.len()).sum();
        assert_eq!(output, 20 * text.len());
    }

    #[test]
    fn many_stops_cost_no_more_per_character() {
        let stops: Vec<String> = (0..20_000).map(|i| format!("stop {i:05}!")).collect();
        let mut stop = StopMatcher::new(&stops).unwrap();
        let text = "stop 1234? ".repeat(20_000);
        assert_eq!(
            stop.push(&text).text.len() + stop.finish().len(),
            text.len()
        );
    }

    /// The match of the rule by trying every end and every string.
    fn naive(text: &str, stops: &[String]) -> (String, Option<String>) {
        let ends = text.char_indices().map(|(start, c)| start + c.len_utf8());
        for end in ends {
            let complete = stops
                .iter()
                .filter(|stop| text[..end].ends_with(stop.as_str()));
            if let Some(stop) = complete.max_by_key(|stop| stop.len()) {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    /// Few letters, so that stop strings overlap and nearly match; é and è share a byte.
    fn word(len: std::ops::Range<usize>) -> impl Strategy<Value = String> {
        prop::collection::vec(prop::sample::select(vec!['a', 'b', 'é', 'è']), len)
            .prop_map(String::from_iter)
    }

    proptest! {
        /// R1.4: for any text, stop strings and chunking, the output is the text before the first match.
        #[test]
        fn r1_4_any_chunking_gives_the_naive_match(
            pushes in prop::collection::vec(word(0..4), 0..20),
            stops in prop::collection::vec(word(1..5), 0..5),
        ) {
            let pushes: Vec<&str> = pushes.iter().map(String::as_str).collect();
            let stop = StopMatcher::new(&stops).unwrap();
            prop_assert_eq!(run(stop, &pushes), naive(&pushes.concat(), &stops));
        }

        /// Held back is only what begins a stop string.
        #[test]
        fn only_a_beginning_of_a_stop_is_held_back(text in word(0..30), stops in prop::collection::vec(word(1..5), 0..5)) {
            let mut stop = StopMatcher::new(&stops).unwrap();
            if stop.push(&text).matched.is_none() {
                let held = stop.finish();
                prop_assert!(held.is_empty() || stops.iter().any(|stop| stop.starts_with(&held)));
            }
        }
    }
}
