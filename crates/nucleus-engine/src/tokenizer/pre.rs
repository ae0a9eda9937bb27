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

const fn whole_words(patterns: &'static [&'static str]) -> Rules {
    Rules {
        ignore_merges: true,
        ..plain(patterns)
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
const UP_TO_THREE_DIGITS: &str = r"\p{N}{1,3}";
const LINE_END: &str = r"[\r\n]";
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
/// Han from U+4E00 to U+9FA5, scripts from U+0800 to U+4E00, Hangul.
const EAST_ASIAN: &str = r"[\x{4e00}-\x{9fa5}\x{800}-\x{4e00}\x{ac00}-\x{d7ff}]+";
/// Letters with upper and lower case, as of DeepSeek's first models, with a space before.
const DEEPSEEK_CASED: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{b5}\x{c0}-\x{d6}\x{d8}-\x{f6}\x{f8}-\x{1ba}\x{1bc}-\x{1bf}\x{1c4}-\x{293}\x{295}-\x{2af}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37b}-\x{37d}\x{37f}\x{386}\x{388}-\x{38a}\x{38c}\x{38e}-\x{3a1}",
    r"\x{3a3}-\x{3f5}\x{3f7}-\x{481}\x{48a}-\x{52f}\x{531}-\x{556}\x{10a0}-\x{10c5}\x{13a0}-\x{13f5}",
    r"\x{13f8}-\x{13fd}\x{1c90}-\x{1cba}\x{1cbd}-\x{1cbf}\x{1d00}-\x{1d2b}\x{1d6b}-\x{1d77}",
    r"\x{1d79}-\x{1d9a}\x{1e00}-\x{1f15}\x{1f18}-\x{1f1d}\x{1f20}-\x{1f45}\x{1f48}-\x{1f4d}",
    r"\x{1f50}-\x{1f57}\x{1f59}\x{1f5b}\x{1f5d}\x{1f5f}-\x{1f7d}\x{1f80}-\x{1fb4}\x{1fb6}-\x{1fbc}\x{1fbe}",
    r"\x{1fc2}-\x{1fc4}\x{1fc6}-\x{1fcc}\x{1fd0}-\x{1fd3}\x{1fd6}-\x{1fdb}\x{1fe0}-\x{1fec}",
    r"\x{1ff2}-\x{1ff4}\x{1ff6}-\x{1ffc}\x{2102}\x{2107}\x{210a}-\x{2113}\x{2115}\x{2119}-\x{211d}\x{2124}",
    r"\x{2126}\x{2128}\x{212a}-\x{212d}\x{212f}-\x{2134}\x{2139}\x{213c}-\x{213f}\x{2145}-\x{2149}\x{214e}",
    r"\x{2183}\x{2184}\x{2c00}-\x{2c7b}\x{2c7e}-\x{2ce4}\x{2ceb}-\x{2cee}\x{2cf2}\x{2cf3}\x{a640}-\x{a66d}",
    r"\x{a680}-\x{a69b}\x{a722}-\x{a76f}\x{a771}-\x{a787}\x{a78b}-\x{a78e}\x{ab70}-\x{abbf}",
    r"\x{fb00}-\x{fb06}\x{fb13}-\x{fb17}\x{ff21}-\x{ff3a}\x{ff41}-\x{ff5a}\x{10400}-\x{1044f}",
    r"\x{104b0}-\x{104d3}\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}",
    r"\x{1e900}-\x{1e943}",
    "]+"
);
/// Punctuation of ASCII, of full width and of Chinese, with a space before.
const DEEPSEEK_PUNCTUATION: &str = concat!(
    r"\s?[!-/:-~\x{ff01}-\x{ff0f}\x{ff1a}-\x{ff5e}\x{2018}-\x{201f}",
    r"\x{3000}-\x{3002}]+"
);
const FALCON_PUNCTUATION: &str = r"[\p{P}\$\+<=>\^~\|`]+";
const THREE_DIGITS: &str = r"[0-9][0-9][0-9]";
/// Words without the punctuation that Bloom knows.
const BLOOM: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";
const SEED_CODER: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}|",
    r" ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
);
const BAILING: &str = concat!(
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
);
const MINICPM5: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+|",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

const TABLE: &[(&[&str], Rules)] = &[
    (
        &[
            "gpt-2",
            "phi-2",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
            "exaone4",
            "gigachat",
            "a.x-4.0",
            "mellum",
        ],
        plain(&[GPT2]),
    ),
    (
        &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        whole_words_with_bos(&[LLAMA3]),
    ),
    (&["dbrx", "smaug-bpe", "chatglm-bpe"], plain(&[LLAMA3])),
    (&["glm4", "glm5"], whole_words(&[LLAMA3])),
    (
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "f2llmv2",
            "kormo",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        plain(&[QWEN2]),
    ),
    (&["qwen35"], plain(&[QWEN35])),
    (&["tekken"], whole_words_with_bos(&[TEKKEN])),
    (
        &["gpt-4o", "llama4", "kanana2", "minimax-m2", "talkie"],
        plain(&[GPT4O]),
    ),
    (
        &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        plain(&[DIGITS_ONE_BY_ONE, GPT2]),
    ),
    (
        &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        plain(&[UP_TO_THREE_DIGITS, CHINESE_AND_JAPANESE, DEEPSEEK_V3]),
    ),
    (
        &["deepseek-llm"],
        plain(&[
            LINE_END,
            DEEPSEEK_CASED,
            DEEPSEEK_PUNCTUATION,
            r"\s+$",
            EAST_ASIAN,
            r"\p{N}+",
        ]),
    ),
    (
        &["deepseek-coder"],
        plain(&[
            LINE_END,
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            EAST_ASIAN,
            DIGITS_ONE_BY_ONE,
        ]),
    ),
    (
        &["falcon"],
        plain(&[FALCON_PUNCTUATION, GPT2, THREE_DIGITS]),
    ),
    (&["bloom", "poro-chat", "gpt3-finnish"], plain(&[BLOOM])),
    (&["viking"], plain(&[BLOOM, DIGITS_ONE_BY_ONE])),
    (
        &["bailingmoe", "bailingmoe2", "llada-moe"],
        plain(&[BAILING]),
    ),
    (&["seed-coder"], plain(&[SEED_CODER])),
    (&["minicpm5"], whole_words(&[UP_TO_THREE_DIGITS, MINICPM5])),
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

pub(super) fn check_white_space(text: &str) -> Result<(), TokenizerError> {
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
