//! Cutting text into pieces before it is merged: the regular expressions of each vocabulary.
//!
//! The expressions are those of the models' own `tokenizer.json` files; the names are those that llama.cpp's converter
//! writes into `tokenizer.ggml.pre`.

use tokenizers::utils::SysRegex;

use super::error::TokenizerError;

/// How the vocabularies of one name cut text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Applied in turn: each cuts the pieces of the one before into its matches and what is between them.
    patterns: &'static [&'static str],
    /// A piece that is a token is that token, whatever the merges say.
    pub(super) ignore_merges: bool,
    /// Whether texts begin with the beginning-of-text token, where the file does not say.
    pub(super) add_bos: bool,
}

const fn plain(patterns: &'static [&'static str]) -> Rules {
    Rules {
        patterns,
        ignore_merges: false,
        add_bos: false,
    }
}

const fn whole_words_with_bos(patterns: &'static [&'static str]) -> Rules {
    Rules {
        patterns,
        ignore_merges: true,
        add_bos: true,
    }
}

const DIGITS_ONE_BY_ONE: &str = r"\p{N}";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}|",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|",
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|",
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const DEEPSEEK_V3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"##,
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);
/// Han from U+4E00 to U+9FA5, Hiragana, Katakana.
const CHINESE_AND_JAPANESE: &str = r"[\x{4e00}-\x{9fa5}\x{3040}-\x{309f}\x{30a0}-\x{30ff}]+";

const TABLE: &[(&[&str], Rules)] = &[
    (&["gpt-2", "phi-2", "mpt", "olmo"], plain(&[GPT2])),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "pixtral",
            "lfm2",
        ],
        whole_words_with_bos(&[LLAMA3]),
    ),
    (
        &["dbrx", "smaug-bpe", "chatglm-bpe", "glm4"],
        plain(&[LLAMA3]),
    ),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "megrez",
            "stablelm2",
            "hunyuan",
        ],
        plain(&[QWEN2]),
    ),
    (&["qwen35"], plain(&[QWEN35])),
    (&["tekken"], whole_words_with_bos(&[TEKKEN])),
    (&["gpt-4o", "llama4"], plain(&[GPT4O])),
    (
        &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
        ],
        plain(&[DIGITS_ONE_BY_ONE, GPT2]),
    ),
    (
        &["deepseek-v3", "hunyuan-dense"],
        plain(&[r"\p{N}{1,3}", CHINESE_AND_JAPANESE, DEEPSEEK_V3]),
    ),
];

/// The rules of that name.
pub(super) fn rules(name: Option<&str>) -> Result<Rules, TokenizerError> {
    let name = name.ok_or(TokenizerError::MissingPre)?;
    let found = TABLE.iter().find(|(names, _)| names.contains(&name));
    found.map(|&(_, rules)| rules).ok_or_else(|| {
        let known: Vec<&str> = TABLE
            .iter()
            .flat_map(|(names, _)| names.iter().copied())
            .collect();
        TokenizerError::UnsupportedPre {
            name: name.to_owned(),
            known: known.join(", "),
        }
    })
}

/// The longest run of white space, in characters, that is cut. The expressions look ahead in white space, which takes one
/// step of backtracking a character, and the engine gives up, in silence, after a million.
pub(super) const MAX_WHITE_SPACE_RUN: usize = 1 << 18;

/// Cuts text into pieces.
#[derive(Debug)]
pub(super) struct PreTokenizer(Vec<SysRegex>);

impl PreTokenizer {
    pub(super) fn new(rules: Rules) -> Result<Self, TokenizerError> {
        let compile = |pattern: &&str| SysRegex::new(pattern).map_err(TokenizerError::Library);
        rules
            .patterns
            .iter()
            .map(compile)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// The pieces of a text; joined, they are the text.
    pub(super) fn split<'t>(&self, text: &'t str) -> Result<Vec<&'t str>, TokenizerError> {
        check_white_space(text)?;
        let cut = |parts: Vec<&'t str>, pattern| {
            parts
                .into_iter()
                .flat_map(|part| cut(pattern, part))
                .collect()
        };
        Ok(self.0.iter().fold(vec![text], cut))
    }
}

/// The matches in a text, and what is before, between and after them.
fn cut<'t>(pattern: &SysRegex, text: &'t str) -> Vec<&'t str> {
    let mut parts = Vec::new();
    let mut done = 0;
    for (start, end) in pattern.find_iter(text) {
        parts.extend([&text[done..start], &text[start..end]]);
        done = end;
    }
    parts.push(&text[done..]);
    parts.retain(|part| !part.is_empty());
    parts
}

fn check_white_space(text: &str) -> Result<(), TokenizerError> {
    let mut run = 0;
    for (at, character) in text.char_indices() {
        run = if character.is_whitespace() {
            run + 1
        } else {
            0
        };
        if run > MAX_WHITE_SPACE_RUN {
            return Err(TokenizerError::WhiteSpace {
                at,
                limit: MAX_WHITE_SPACE_RUN,
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        PreTokenizer::new(rules(Some(name)).unwrap())
            .unwrap()
            .split(text)
            .unwrap()
    }

    #[test]
    fn gpt_2_keeps_a_space_with_the_word_that_follows() {
        assert_eq!(
            split("gpt-2", "It's  12.5 km"),
            ["It", "'s", " ", " 12", ".", "5", " km"]
        );
        assert_eq!(split("gpt-2", "a \n\n b "), ["a", " \n\n", " b", " "]);
    }

    #[test]
    fn llama_3_takes_three_digits_and_line_ends_together() {
        assert_eq!(
            split("llama-bpe", "12345 IT'S\n\n\nx"),
            ["123", "45", " IT", "'S", "\n\n\n", "x"]
        );
    }

    #[test]
    fn qwen_2_takes_digits_one_by_one() {
        assert_eq!(split("qwen2", "a123"), ["a", "1", "2", "3"]);
    }

    #[test]
    fn combining_marks_stay_with_their_letters_in_qwen_35() {
        assert_eq!(split("qwen35", "e\u{301}a"), ["e\u{301}a"]);
        assert_eq!(split("qwen2", "e\u{301}a"), ["e", "\u{301}a"]);
    }

    #[test]
    fn patterns_are_applied_in_turn() {
        assert_eq!(split("starcoder", "ab12 c"), ["ab", "1", "2", " c"]);
        assert_eq!(
            split("deepseek-v3", "x=日本1234"),
            ["x", "=", "日本", "123", "4"]
        );
    }

    #[test]
    fn capital_letters_begin_a_piece_in_gpt_4o() {
        assert_eq!(
            split("gpt-4o", "HTMLParser don't"),
            ["HTMLParser", " don't"]
        );
        assert_eq!(split("gpt-4o", "camelCase"), ["camel", "Case"]);
    }

    #[test]
    fn every_known_name_compiles_and_loses_nothing() {
        let text = "Ünïcödé 12.345\r\n\t '日本語' don't\u{a0}\u{3000}🐉\u{0}\u{301} x  \n";
        for (names, _) in TABLE {
            for name in *names {
                assert_eq!(split(name, text).concat(), text, "{name}");
                assert!(split(name, "").is_empty(), "{name}");
            }
        }
    }

    #[test]
    fn an_unknown_name_is_refused_by_name() {
        let error = rules(Some("gpt-5")).unwrap_err().to_string();
        assert!(
            error.starts_with("pre-tokenizer \"gpt-5\" (tokenizer.ggml.pre) is not supported"),
            "{error}"
        );
        assert!(matches!(rules(None), Err(TokenizerError::MissingPre)));
    }

    /// Runs that take other engines quadratic time, or more stack than there is.
    #[test]
    fn long_runs_are_split() {
        for name in ["gpt-2", "llama-bpe", "gpt-4o", "deepseek-v3"] {
            for unit in ["a", "1", "'", "aA", "é", "\u{301}", " \n", "us", "\0"] {
                let text = unit.repeat(131_072) + "x";
                assert_eq!(
                    split(name, &text).concat().len(),
                    text.len(),
                    "{name} {unit:?}"
                );
            }
        }
    }

    #[test]
    fn the_longest_run_of_white_space_is_split_and_a_longer_one_is_refused() {
        let text = " ".repeat(MAX_WHITE_SPACE_RUN) + "x";
        for name in ["gpt-2", "llama-bpe", "gpt-4o", "deepseek-v3"] {
            assert_eq!(
                split(name, &text),
                [&text[1..MAX_WHITE_SPACE_RUN], " x"],
                "{name}"
            );
        }
        let longer = "\n".repeat(MAX_WHITE_SPACE_RUN + 1);
        let error = PreTokenizer::new(rules(Some("gpt-2")).unwrap())
            .unwrap()
            .split(&longer)
            .unwrap_err();
        assert!(
            matches!(
                error,
                TokenizerError::WhiteSpace {
                    at: MAX_WHITE_SPACE_RUN,
                    ..
                }
            ),
            "{error}"
        );
    }
}
