//! Vocabularies of `tokenizer.json`, through the library that defines the format.

use std::collections::HashMap;

use serde_json::{Map, Value};
use tokenizers::Tokenizer as Library;

use super::character_map::CharacterMap;
use super::error::TokenizerError;
use super::pre::check_white_space;
use super::spelling::{CONTINUATION, Spelling, parse_byte};
use super::vocabulary::{Ids, TokenKind, Vocabulary};
use crate::checkpoint::Checkpoint;

/// The library's tokenizer, twice: it looks for control tokens in all texts, or in none.
#[derive(Debug)]
pub(super) struct JsonTokenizer {
    with_special: Library,
    without_special: Library,
}

/// What a directory says about its vocabulary.
pub(super) struct Described {
    pub(super) tokenizer: JsonTokenizer,
    pub(super) vocabulary: Vocabulary,
    pub(super) add_bos: bool,
    pub(super) add_eos: bool,
    pub(super) text_end: Option<u32>,
    pub(super) adds_space_prefix: bool,
}

impl JsonTokenizer {
    /// Appends the tokens of a text.
    pub(super) fn encode(
        &self,
        text: &str,
        parse_special: bool,
        ids: &mut Vec<u32>,
    ) -> Result<(), TokenizerError> {
        check_white_space(text)?;
        let library = match parse_special {
            true => &self.with_special,
            false => &self.without_special,
        };
        let encoding = library
            .encode_fast(text, false)
            .map_err(TokenizerError::Library)?;
        ids.extend_from_slice(encoding.get_ids());
        Ok(())
    }

    /// The token of that spelling.
    pub(super) fn id_of(&self, spelling: &str) -> Option<u32> {
        self.with_special.token_to_id(spelling)
    }
}

/// Reads `tokenizer.json` with what `tokenizer_config.json` and `config.json` add to it.
pub(super) fn read(checkpoint: &Checkpoint) -> Result<Described, TokenizerError> {
    const FILE: &str = "tokenizer.json";
    let text = checkpoint.read_text(FILE)?.ok_or(TokenizerError::NoJson)?;
    let malformed = |problem: String| TokenizerError::Json { problem };
    let json: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| malformed(error.to_string()))?;
    if let Some(normalizer) = json.get("normalizer") {
        check_character_maps(normalizer)?;
    }
    let mut library: Library = text
        .parse()
        .map_err(|error: tokenizers::Error| malformed(error.to_string()))?;
    // What the file was last used with must not cut texts short.
    library.with_padding(None);
    library
        .with_truncation(None)
        .map_err(TokenizerError::Library)?;
    let (spelling, adds_space_prefix) = spelling(json.get("decoder"))?;
    let config = checkpoint
        .read_json("tokenizer_config.json")?
        .unwrap_or_default();
    let template = Template::of(&library);
    let bos = named(&library, config.get("bos_token"));
    let ids = Ids {
        bos: bos.or(template.first),
        eos: named(&library, config.get("eos_token")),
        ends: ends(checkpoint.config().get("eos_token_id")),
    };
    let text_end = template.last.or(ids.eos);
    let wanted = |key| config.get(key).and_then(Value::as_bool);
    let add_bos = wanted("add_bos_token").unwrap_or(template.first.is_some()) && ids.bos.is_some();
    let add_eos = wanted("add_eos_token").unwrap_or(template.last.is_some()) && text_end.is_some();
    let vocabulary = vocabulary(&library, spelling, ids, checkpoint)?;
    let mut without_special = library.clone();
    without_special.set_encode_special_tokens(true);
    Ok(Described {
        tokenizer: JsonTokenizer {
            with_special: library,
            without_special,
        },
        vocabulary,
        add_bos,
        add_eos,
        text_end,
        adds_space_prefix,
    })
}

/// Refuses compiled normalisations, of a normalizer or of those that it is made of, that are damaged: the library would end with a panic, while it reads them or
/// later, while it encodes.
fn check_character_maps(normalizer: &Value) -> Result<(), TokenizerError> {
    if let Some(map) = normalizer.get("precompiled_charsmap") {
        let malformed = |problem: String| TokenizerError::Json {
            problem: format!("its \"precompiled_charsmap\": {problem}"),
        };
        let text = map
            .as_str()
            .ok_or_else(|| malformed("it is no string".to_owned()))?;
        let bytes = base64::decode(text).map_err(|error| malformed(error.to_string()))?;
        CharacterMap::new(&bytes)
            .and_then(|map| map.check_lookups())
            .map_err(|problem| malformed(problem.to_string()))?;
    }
    let parts = normalizer.get("normalizers").and_then(Value::as_array);
    parts
        .into_iter()
        .flatten()
        .try_for_each(check_character_maps)
}

/// The token whose name a configuration gives, as a string or as an object.
fn named(library: &Library, token: Option<&Value>) -> Option<u32> {
    let token = token?;
    let name = token.as_str().or_else(|| token.get("content")?.as_str())?;
    library.token_to_id(name)
}

/// What the file's own template (its post-processor) puts around every text.
#[derive(Debug, Default)]
struct Template {
    first: Option<u32>,
    last: Option<u32>,
}

impl Template {
    fn of(library: &Library) -> Self {
        // Any text that has a token.
        let Ok(encoding) = library.encode_fast("a", true) else {
            return Self::default();
        };
        let added = encoding
            .get_ids()
            .iter()
            .zip(encoding.get_special_tokens_mask());
        let added: Vec<(u32, bool)> = added.map(|(&id, &mask)| (id, mask == 1)).collect();
        let at = |end: Option<&(u32, bool)>| end.filter(|(_, added)| *added).map(|&(id, _)| id);
        Self {
            first: at(added.first()),
            last: at(added.last()).filter(|_| added.len() > 1),
        }
    }
}

/// A token's id, or a list of them.
fn ends(ids: Option<&Value>) -> Vec<u32> {
    let id = |value: &Value| u32::try_from(value.as_u64()?).ok();
    match ids {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(single) => id(single).into_iter().collect(),
        None => Vec::new(),
    }
}

fn vocabulary(
    library: &Library,
    spelling: Spelling,
    ids: Ids,
    checkpoint: &Checkpoint,
) -> Result<Vocabulary, TokenizerError> {
    let by_text: HashMap<String, u32> = library.get_vocab(true);
    let count = by_text.values().max().map_or(0, |&last| last as usize + 1);
    // Every id below the last one may be without a token, but not most of them.
    const MAX_SPARSENESS: usize = 16;
    if count > by_text.len().saturating_mul(MAX_SPARSENESS) {
        let problem = format!("its {} tokens have ids up to {}", by_text.len(), count - 1);
        return Err(TokenizerError::Json { problem });
    }
    let config = checkpoint.config();
    let size = match config.get("text_config") {
        Some(text) => text.get("vocab_size"),
        None => config.get("vocab_size"),
    };
    let size = size.and_then(Value::as_u64);
    if let Some(size) = size.filter(|&size| size < count as u64) {
        return Err(TokenizerError::ModelSize {
            key: "vocab_size".to_owned(),
            size: size as u32,
            tokens: count,
        });
    }
    let mut texts = vec![String::new(); count];
    let mut kinds = vec![TokenKind::Unused; count];
    for (text, id) in by_text {
        let is_byte = spelling == Spelling::SentencePiece && parse_byte(&text).is_some();
        kinds[id as usize] = match is_byte {
            true => TokenKind::Byte,
            false => TokenKind::Normal,
        };
        texts[id as usize] = text;
    }
    for (&id, token) in &library.get_added_tokens_decoder() {
        kinds[id as usize] = match token.special {
            true => TokenKind::Control,
            false => TokenKind::UserDefined,
        };
    }
    Vocabulary::new(texts.iter().collect(), kinds, spelling, ids)
}

/// How tokens are spelled, and whether the first loses a space, by the file's decoder: an object, or a sequence of them.
fn spelling(decoder: Option<&Value>) -> Result<(Spelling, bool), TokenizerError> {
    let steps: Vec<&Value> = match decoder.and_then(|decoder| decoder.get("decoders")) {
        Some(Value::Array(steps)) => steps.iter().collect(),
        _ => decoder
            .into_iter()
            .filter(|decoder| !decoder.is_null())
            .collect(),
    };
    let kind = |step: &Value| {
        step.get("type")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let has = |name: &str| steps.iter().any(|step| kind(step) == name);
    let is_space = |step: &Value| {
        kind(step) == "Replace"
            && step.pointer("/pattern/String").and_then(Value::as_str) == Some("▁")
    };
    if has("ByteLevel") {
        return Ok((Spelling::ByteLevel, false));
    }
    if let Some(metaspace) = steps.iter().find(|step| kind(step) == "Metaspace") {
        let is_never = metaspace.get("prepend_scheme").and_then(Value::as_str) == Some("never");
        return Ok((Spelling::SentencePiece, !is_never));
    }
    if let Some(wordpiece) = steps.iter().find(|step| kind(step) == "WordPiece")
        && wordpiece.get("prefix").and_then(Value::as_str) == Some(CONTINUATION)
    {
        let cleanup = wordpiece.get("cleanup").and_then(Value::as_bool) == Some(true);
        return Ok((Spelling::Continuations { cleanup }, true));
    }
    if steps.iter().any(|step| is_space(step)) {
        return Ok((Spelling::SentencePiece, has("Strip")));
    }
    let kinds: Vec<String> = steps.iter().map(|step| kind(step)).collect();
    let found = match kinds.as_slice() {
        [] => "none".to_owned(),
        kinds => kinds.join(", "),
    };
    Err(TokenizerError::Decoder { found })
}
