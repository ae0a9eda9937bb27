//! Token bytes to text, one token at a time, never half a character.
//!
//! A token of a byte-level vocabulary may end inside a character. Its bytes are held back until the character is whole,
//! or until it is certain that it never will be.

/// Turns a stream of bytes into a stream of text.
///
/// For any split of any bytes into pushes, the texts of all pushes and of [`finish`](Self::finish), joined, equal
/// [`String::from_utf8_lossy`] of all the bytes: each maximal invalid part becomes one U+FFFD. At most three bytes are
/// held back, and only while they are the beginning of a character.
///
/// ```
/// use nucleus_engine::detokenizer::Detokenizer;
///
/// let mut text = Detokenizer::default();
/// assert_eq!(text.push(b"caf\xc3"), "caf");
/// assert_eq!(text.push(b"\xa9!"), "é!");
/// assert_eq!(text.finish(), "");
/// ```
#[derive(Debug, Clone, Default)]
pub struct Detokenizer {
    /// The beginning of a character: at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// Takes the bytes of a token and gives the text that became certain with them.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let (text, decoded) = decode(&self.pending);
        self.pending.drain(..decoded);
        text
    }

    /// Ends the stream: an unfinished character becomes U+FFFD. The next push begins a new stream.
    pub fn finish(&mut self) -> String {
        let tail = std::mem::take(&mut self.pending);
        String::from_utf8_lossy(&tail).into_owned()
    }
}

/// The text of `bytes`, and how many of them it stands for: all but the beginning of an unfinished character.
fn decode(bytes: &[u8]) -> (String, usize) {
    let mut text = String::with_capacity(bytes.len());
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.push_str(chunk.valid());
        if chunk.invalid().is_empty() {
            continue;
        }
        if chunks.peek().is_none() && is_unfinished(chunk.invalid()) {
            return (text, bytes.len() - chunk.invalid().len());
        }
        text.push(char::REPLACEMENT_CHARACTER);
    }
    (text, bytes.len())
}

/// Whether more bytes could make `bytes` a character.
fn is_unfinished(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes)
        .is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The texts of the pushes, and of the end.
    fn run(pushes: &[&[u8]]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut texts: Vec<String> = pushes.iter().map(|bytes| detokenizer.push(bytes)).collect();
        texts.push(detokenizer.finish());
        texts
    }

    #[test]
    fn ascii_is_never_held_back() {
        assert_eq!(run(&[b"Once", b" upon"]), ["Once", " upon", ""]);
    }

    #[test]
    fn a_character_appears_with_its_last_byte() {
        // U+1F409 is f0 9f 90 89.
        assert_eq!(
            run(&[b"a\xf0", b"\x9f", b"\x90", b"\x89b"]),
            ["a", "", "", "🐉b", ""]
        );
    }

    #[test]
    fn an_unfinished_character_becomes_one_replacement_at_the_end() {
        assert_eq!(run(&[b"\xf0\x9f\x90"]), ["", "\u{fffd}"]);
    }

    #[test]
    fn a_character_that_can_no_longer_finish_is_not_held_back() {
        assert_eq!(run(&[b"\xe2\x82", b"A"]), ["", "\u{fffd}A", ""]);
        assert_eq!(
            run(&[b"\xff", b"\xc0\x80"]),
            ["\u{fffd}", "\u{fffd}\u{fffd}", ""]
        );
    }

    #[test]
    fn a_surrogate_is_not_a_character() {
        assert_eq!(
            run(&[b"\xed\xa0", b"\x80"]),
            ["\u{fffd}\u{fffd}", "\u{fffd}", ""]
        );
    }

    #[test]
    fn an_empty_push_gives_nothing() {
        assert_eq!(run(&[b"\xc3", b"", b"\xa9"]), ["", "", "é", ""]);
    }

    #[test]
    fn after_the_end_a_new_stream_begins() {
        let mut detokenizer = Detokenizer::default();
        detokenizer.push(b"\xc3");
        assert_eq!(detokenizer.finish(), "\u{fffd}");
        assert_eq!(detokenizer.push(b"\xa9"), "\u{fffd}");
    }

    /// Bytes that are mostly parts of characters, whole and broken.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            any::<u8>().prop_map(|byte| vec![byte]),
            (any::<char>(), 1usize..4).prop_map(|(c, keep)| c
                .to_string()
                .into_bytes()
                .into_iter()
                .take(keep)
                .collect()),
        ];
        prop::collection::vec(piece, 0..20).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_lossy_text_of_the_whole(bytes in bytes(), sizes in prop::collection::vec(0usize..6, 1..40)) {
            let mut detokenizer = Detokenizer::default();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            for size in sizes {
                let (push, tail) = rest.split_at(size.min(rest.len()));
                text.push_str(&detokenizer.push(push));
                prop_assert!(detokenizer.pending.len() < 4);
                rest = tail;
            }
            text.push_str(&detokenizer.push(rest));
            text.push_str(&detokenizer.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
