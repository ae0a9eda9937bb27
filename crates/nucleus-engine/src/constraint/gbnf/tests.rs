use std::collections::HashMap;

use proptest::prelude::*;

use super::grammar::{Grammar, Node};
use super::*;
use crate::constraint::ConstraintError;
use crate::constraint::{Constraint, Format, Formats, Progress};
use crate::gguf::{Metadata, Value};
use crate::tokenizer::Tokenizer;

/// A vocabulary of `[END]`, `a`, `b` and `ab`.
const WORDS: [&str; 5] = ["[UNK]", "[END]", "a", "b", "ab"];
const END: u32 = 1;

fn formats() -> Formats {
    let strings = Value::Strings(WORDS.iter().collect());
    let keys = [
        ("tokenizer.ggml.model", Value::String("bert".into())),
        ("tokenizer.ggml.tokens", strings),
        (
            "tokenizer.ggml.token_type",
            Value::Numbers(vec![3, 3, 1, 1, 1].into()),
        ),
    ];
    let keys: HashMap<String, Value> = keys.map(|(key, value)| (key.to_owned(), value)).into();
    let tokenizer = Tokenizer::from_gguf(&Metadata::new(keys)).expect("a vocabulary");
    Formats::new(&tokenizer.with_end_of_generation(&[END]), WORDS.len()).expect("it has an end")
}

fn lark(text: &str) -> String {
    to_lark(text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// The lexemes of a grammar, without their names.
fn lexemes(text: &str) -> Vec<String> {
    let lark = lark(text);
    let lines = lark.lines().filter_map(|line| line.strip_prefix('T'));
    let lexemes = lines.filter_map(|line| line.split_once(": "));
    lexemes.map(|(_, regex)| regex.to_owned()).collect()
}

#[test]
fn the_language_of_a_grammar_is_known_by_its_rules() {
    for text in [
        "root ::= \"a\"",
        "# x\n\n  my-rule_2::= x",
        "start: x\nx ::= y",
    ] {
        assert!(is_gbnf(text), "{text}");
    }
    for text in [
        "start: \"::=\"",
        "",
        "::= x",
        "start: /a/\n# x ::= y",
        "x y ::= z",
    ] {
        assert!(!is_gbnf(text), "{text}");
    }
}

#[test]
fn what_has_no_recursion_is_one_lexeme() {
    assert_eq!(
        lark("root ::= \"a\" | [0-9]+"),
        "start: r0\nr0: T0\nT0: /(?:a|(?:[0-9])+)/\n"
    );
    assert_eq!(
        lark("root ::= x \"-\" x{2,3} # twice\nx ::= [^a-c\\]\\-\\x41]? | .\n"),
        concat!(
            "start: r0\nr0: T0\nT0: /(?:(?:[\\x{0}-\\x{2c}\\x{2e}-\\x{40}B-\\x{5c}\\x{5e}-\\x{60}d-\\x{10ffff}])?|[\\x{0}-\\x{10ffff}])\\x{2d}",
            "(?:(?:(?:[\\x{0}-\\x{2c}\\x{2e}-\\x{40}B-\\x{5c}\\x{5e}-\\x{60}d-\\x{10ffff}])?|[\\x{0}-\\x{10ffff}])){2,3}/\n"
        )
    );
}

#[test]
fn a_rule_that_calls_itself_at_its_end_is_a_repetition() {
    assert_eq!(
        lexemes("root ::= \"x\" ws\nws ::= ([ \\t] ws)?"),
        ["/x(?:(?:[\\x{9}-\\x{9}\\x{20}-\\x{20}]))*(?:)/"]
    );
    assert_eq!(
        lexemes("root ::= \"a\" root | \"b\" root | \"c\""),
        ["/(?:(?:a|b))*(?:c)/"]
    );
}

#[test]
fn what_may_be_empty_is_a_lexeme_that_may_be_left_out() {
    let lark =
        lark("root ::= \"<\" root ws root \">\" | \"x\"\nws ::= | \" \" | \"\\n\" [ \\t]{0,20}");
    assert!(lark.contains("r0: ((T0 r0 T1? r0 T2) | T3)\n"), "{lark}");
    let space = "T1: /(?:\\x{20}|\\x{a}(?:[\\x{9}-\\x{9}\\x{20}-\\x{20}]){0,20})/\n";
    assert!(lark.contains(space), "{lark}");
}

/// A text that the longest lexeme would miss: "ab" is a whole lexeme, and the beginning of "abc".
#[test]
fn lexemes_that_would_hide_others_are_cut_up() {
    let brackets = "root ::= \"(\" root \")\" | x \"b\" | y\nx ::= \"a\" | \"ab\"\ny ::= \"q\"";
    // `x "b"` is "ab" or "abb", of which the lexer takes the longer; both are followed by ")".
    assert!(lexemes(brackets).contains(&"/(?:a|ab)b/".to_owned()));
    let conflict = "root ::= \"a\" root? \"b\" | \"ab\" root \"c\" | \"a\"";
    let lexemes = lexemes(conflict);
    assert!(!lexemes.contains(&"/ab/".to_owned()), "{lexemes:?}");
    assert!(
        lexemes.iter().all(|lexeme| lexeme.len() == 3),
        "{lexemes:?}"
    );
}

/// Which texts a grammar has, found by trying all ways through its rules.
struct Chart<'a> {
    grammar: &'a Grammar,
    text: &'a [char],
    /// For each node and beginning, the ends as bits.
    ends: Vec<Vec<u64>>,
}

impl Chart<'_> {
    fn accepts(grammar: &Grammar, text: &str) -> bool {
        let text: Vec<char> = text.chars().collect();
        let mut chart = Chart {
            grammar,
            text: &text,
            ends: vec![vec![0; text.len() + 1]; grammar.nodes.len()],
        };
        loop {
            let before = chart.ends.clone();
            for node in 0..grammar.nodes.len() {
                for begin in 0..=text.len() {
                    chart.ends[node][begin] |= chart.ends_of(node, begin);
                }
            }
            if chart.ends == before {
                let root = grammar.rules[grammar.root].body;
                return chart.ends[root][0] >> text.len() & 1 == 1;
            }
        }
    }

    /// Where the node may end that begins at one of these places.
    fn behind(&self, node: usize, begins: u64) -> u64 {
        let begins = (0..=self.text.len()).filter(|begin| begins >> begin & 1 == 1);
        begins.fold(0, |ends, begin| ends | self.ends[node][begin])
    }

    fn ends_of(&self, node: usize, begin: usize) -> u64 {
        match &self.grammar.nodes[node] {
            Node::Class(class) => {
                let inside = |character: &&char| {
                    let ranges = class.ranges().iter();
                    ranges
                        .clone()
                        .any(|(first, last)| (first..=last).contains(character))
                };
                self.text
                    .get(begin)
                    .filter(inside)
                    .map_or(0, |_| 1 << (begin + 1))
            }
            Node::Sequence(nodes) => nodes
                .iter()
                .fold(1 << begin, |ends, &node| self.behind(node, ends)),
            Node::Choice(nodes) => nodes
                .iter()
                .fold(0, |ends, &node| ends | self.ends[node][begin]),
            Node::Repeat { node, min, max } => {
                let mut ends = 1_u64 << begin;
                for _ in 0..*min {
                    ends = self.behind(*node, ends);
                }
                for _ in *min..max.unwrap_or(min + 8) {
                    ends |= self.behind(*node, ends);
                }
                ends
            }
            Node::Rule(rule) => self.ends[self.grammar.rules[*rule].body][begin],
        }
    }
}

/// A grammar of three rules over `a` and `b`.
fn random_grammar(seed: u64) -> String {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 20) % below
    };
    fn part(next: &mut impl FnMut(u64) -> u64, depth: u64) -> String {
        let item = match next(if depth > 2 { 7 } else { 11 }) {
            0 => "\"a\"".into(),
            1 => "\"b\"".into(),
            2 => "\"ab\"".into(),
            3 => "[ab]".into(),
            4 => "root".into(),
            5 => "x".into(),
            6 => "y".into(),
            _ => {
                let parts: Vec<String> = (0..=next(2)).map(|_| part(next, depth + 1)).collect();
                format!("({})", parts.join(if next(2) == 0 { " | " } else { " " }))
            }
        };
        let repeated = ["", "", "", "", "?", "*", "+", "{2}", "{1,3}"];
        format!("{item}{}", repeated[next(9) as usize])
    }
    let rule = |name: &str| {
        let mut alternatives = Vec::new();
        for _ in 0..=next(3) {
            let parts: Vec<String> = (0..next(4)).map(|_| part(&mut next, 0)).collect();
            alternatives.push(if parts.is_empty() {
                "\"\"".into()
            } else {
                parts.join(" ")
            });
        }
        format!("{name} ::= {}\n", alternatives.join(" | "))
    };
    ["root", "x", "y"].map(rule).concat()
}

fn allows(constraint: &Constraint, token: u32) -> bool {
    constraint.mask()[0] >> token & 1 == 1
}

/// Whether the masks let this text be written one character at a time, and then end.
fn admits(constraint: &Constraint, text: &str) -> bool {
    let mut constraint = constraint.clone();
    let mut ended = false;
    for character in text.chars() {
        let token = if character == 'a' { 2 } else { 3 };
        if ended || !allows(&constraint, token) {
            return false;
        }
        ended = constraint.advance(token) == Ok(Progress::Ended);
    }
    ended || allows(&constraint, END)
}

/// R5.2: the masks of a grammar admit its texts and no others, whatever its rules are.
#[test]
fn r5_2_the_masks_admit_what_the_grammar_does() {
    let formats = formats();
    let mut texts = vec![String::new()];
    for length in 0..5 {
        let longest: Vec<String> = texts
            .iter()
            .filter(|text| text.len() == length)
            .cloned()
            .collect();
        texts.extend(
            longest
                .iter()
                .flat_map(|text| ["a", "b"].map(|next| format!("{text}{next}"))),
        );
    }
    let mut compiled = 0;
    let mut admitted = 0;
    for seed in 1..=250 {
        let text = random_grammar(seed);
        let grammar = parse::parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let accepted: Vec<bool> = texts
            .iter()
            .map(|text| Chart::accepts(&grammar, text))
            .collect();
        let constraint = match formats.compile(Format::Gbnf(text.clone())) {
            Ok(constraint) => constraint,
            Err(ConstraintError::Gbnf(GbnfError::Endless { .. })) => continue,
            // A grammar of the empty text alone.
            Err(error) => {
                assert!(!accepted[1..].contains(&true), "{error}\n{text}");
                continue;
            }
        };
        compiled += 1;
        for (word, accepted) in texts.iter().zip(accepted) {
            let lark = || to_lark(&text).unwrap();
            assert_eq!(
                admits(&constraint, word),
                accepted,
                "{word:?}\n{text}{}",
                lark()
            );
            admitted += usize::from(accepted);
        }
        let mut behind = constraint.clone();
        let goes_on =
            allows(&behind, 2) && behind.advance(2) == Ok(Progress::GoesOn) && allows(&behind, 3);
        assert_eq!(allows(&constraint, 4), goes_on, "ab\n{text}");
    }
    assert!(compiled > 100 && admitted > 1_000, "{compiled} {admitted}");
}

/// R5.2: what is not GBNF is refused with its line.
#[test]
fn r5_2_an_unsound_grammar_says_where() {
    for (text, says) in [
        (
            "root ::= (\"a\"",
            "line 1: the end of the grammar where the next part of a group or \")\" should be",
        ),
        (
            "root ::= \"a\"\n\nx = \"b\"",
            "line 3: '=' where \"::=\" should be",
        ),
        (
            "root ::= \"a",
            "line 1: the end of the grammar where the rest of a text in \"…\" should be",
        ),
        (
            "root ::= [a",
            "line 1: the end of the grammar where the rest of a class in […] should be",
        ),
        (
            "root ::= \"a\" )",
            "line 1: ')' where the next part of a rule or the end of the line should be",
        ),
        (
            "root ::= * \"a\"",
            "line 1: '*' where the next part of a rule or the end of the line should be",
        ),
        (
            "root ::= \"\\q\"",
            "line 1: \\q is no character; escapes are",
        ),
        (
            "root ::= \"\\ud800\"",
            "line 1: \\ud800 is no character; escapes are",
        ),
        (
            "root ::= [\\x4]",
            "line 1: \\x4 is no character; escapes are",
        ),
        ("root ::= []", "line 1: the class [] has no character"),
        (
            "root ::= [^\\x00-\\U0010ffff]",
            "line 1: the class [^\\x00-\\U0010ffff] has no character",
        ),
        (
            "root ::= [b-a]",
            "line 1: the class [b-a] has a range that ends before it begins",
        ),
        (
            "root ::= \"a\"{3,2}",
            "line 1: {3,2} is not {m}, {m,} or {m,n} with m <= n in [0, 2000]",
        ),
        ("root ::= \"a\"{2001}", "line 1: {2001} is not"),
        ("root ::= \"a\"{,2}", "line 1: {,2} is not"),
        (
            "root ::= <think>",
            "line 1: tokens such as <[7]> and <name> cannot be part",
        ),
        (
            "root ::= \"a\"\nroot ::= \"b\"",
            "line 2: the rule \"root\" is defined a second time",
        ),
        (
            "root ::= \"a\"\nx ::=\n  nothing",
            "line 3: there is no rule \"nothing\"",
        ),
        (
            "start ::= \"a\"",
            "there is no rule \"root\", which says what the whole text must be",
        ),
        (
            "root ::= \"a\" | x\nx ::= \"b\" x",
            "no text ends the rule \"x\": each of its alternatives needs the rule itself again",
        ),
    ] {
        let error = to_lark(text).expect_err(text).to_string();
        assert!(error.starts_with(says), "{error}\n{says}");
    }
}

#[test]
fn space_may_be_where_the_language_has_it() {
    let spread = "# a\r\nroot ::=\n  \"a\" | # b\n  (\n \"b\" # c\n  \"c\" ) {1, 2} \r\n\n x::=[d]";
    assert_eq!(lexemes(spread), ["/(?:a|(?:bc){1,2})/"]);
}

proptest! {
    /// Whatever is written, it is read or refused.
    #[test]
    fn any_text_is_a_grammar_or_an_error(
        begin in prop_oneof![Just("root ::= "), Just("root ::= x\nx ::= "), Just("")],
        text in r#"([a-cx"()|*+?. ]|[\[\]^\\{},0-9:=#<!é\n-]|\\\\[nxuU][0-9a-f]{2}|root|::=){0,40}"#,
    ) {
        let text = format!("{begin}{text}");
        if let Ok(lark) = to_lark(&text) {
            prop_assert!(lark.starts_with("start: r"), "{lark}");
        }
    }
}
