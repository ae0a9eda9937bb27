//! Constrained decoding with the bundled model's vocabulary: every way through the masks gives a text of the format.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nucleus_engine::constraint::{
    Constraint, ConstraintError, Format, Formats, MAX_FORMAT_BYTES, Progress,
};
use nucleus_engine::gguf::ModelFile;
use nucleus_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};

use llama_cpp_files::{NOT_RUN, models};

mod llama_cpp_files;

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: OnceLock<Tokenizer> = OnceLock::new();
    TOKENIZER.get_or_init(|| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");
        let file = ModelFile::open(path).expect("the bundled model can be read");
        Tokenizer::from_gguf(file.metadata()).expect("its tokenizer is sound")
    })
}

fn compile(format: Format) -> Result<Constraint, ConstraintError> {
    static FORMATS: OnceLock<Formats> = OnceLock::new();
    let formats = FORMATS.get_or_init(|| {
        let tokenizer = tokenizer();
        Formats::new(tokenizer, tokenizer.vocab_size()).expect("the vocabulary has an end")
    });
    formats.compile(format)
}

fn compiled(format: Format) -> Constraint {
    compile(format).expect("a sound format")
}

fn allowed(constraint: &Constraint) -> Vec<u32> {
    let bits = |(index, &word): (usize, &u32)| {
        (0..32).filter_map(move |bit| (word >> bit & 1 == 1).then_some((index * 32) as u32 + bit))
    };
    constraint
        .mask()
        .iter()
        .enumerate()
        .flat_map(bits)
        .collect()
}

fn may_end(constraint: &Constraint) -> bool {
    let ends = |id: &u32| tokenizer().is_end_of_generation(*id);
    allowed(constraint).iter().any(ends)
}

/// The bytes that a sequence of random choices among what is allowed writes; nothing if it did not end within `limit` tokens.
fn walk(constraint: Constraint, seed: u64, limit: usize) -> Option<Vec<u8>> {
    walk_with(tokenizer(), constraint, seed, limit)
}

/// The same with another vocabulary than the bundled one.
fn walk_with(
    tokenizer: &Tokenizer,
    mut constraint: Constraint,
    seed: u64,
    limit: usize,
) -> Option<Vec<u8>> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut text = Vec::new();
    for _ in 0..limit {
        let allowed = allowed(&constraint);
        assert!(!allowed.is_empty(), "nothing goes on from {text:?}");
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let ends = allowed
            .iter()
            .copied()
            .find(|id| tokenizer.is_end_of_generation(*id));
        if let Some(end) = ends.filter(|_| state.is_multiple_of(3)) {
            assert!(tokenizer.is_end_of_generation(end));
            return Some(text);
        }
        let words: Vec<u32> = allowed
            .into_iter()
            .filter(|id| !tokenizer.is_end_of_generation(*id))
            .collect();
        let Some(&token) = words.get((state >> 20) as usize % words.len().max(1)) else {
            return Some(text);
        };
        assert!(!tokenizer.is_special(token), "{token}");
        text.extend_from_slice(tokenizer.token_bytes(token));
        if constraint.advance(token).expect("it is allowed") == Progress::Ended {
            return Some(text);
        }
    }
    None
}

/// What 100 walks write; most of them end.
fn texts(format: Format) -> Vec<String> {
    let constraint = compiled(format);
    let walks = (1..=100).filter_map(|seed| walk(constraint.clone(), seed, 400));
    let texts: Vec<String> = walks
        .map(|bytes| String::from_utf8(bytes).expect("whole characters"))
        .collect();
    assert!(texts.len() > 80, "{} ended", texts.len());
    texts
}

/// R5.2: whatever is drawn under the masks of a schema parses, and is as the schema says.
#[test]
fn r5_2_every_way_through_the_masks_is_json_of_the_schema() {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "a \"quote\""]}, "maxItems": 3},
            "home": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/place"}]},
        },
        "required": ["name", "age", "tags", "home"],
        "additionalProperties": false,
        "$defs": {"place": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": false}},
    });
    let mut different = std::collections::BTreeSet::new();
    for text in texts(Format::JsonSchema(schema)) {
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        let object = value.as_object().expect("an object");
        let keys: Vec<&str> = object.keys().map(String::as_str).collect();
        assert_eq!(keys, ["name", "age", "tags", "home"], "{text}");
        assert!(
            object["name"].as_str().expect("a string").chars().count() <= 8,
            "{text}"
        );
        assert!(object["age"].as_u64().expect("an integer") <= 120, "{text}");
        let tags = object["tags"].as_array().expect("an array");
        let known = |tag: &Value| {
            ["red", "green", "a \"quote\""]
                .iter()
                .any(|known| tag == known)
        };
        assert!(tags.len() <= 3 && tags.iter().all(known), "{text}");
        let home = &object["home"];
        assert!(home.is_null() || home["x"].is_boolean(), "{text}");
        different.insert(text);
    }
    assert!(different.len() > 50, "{} different texts", different.len());
}

/// R5.2: any JSON object parses, and its white space has a bound.
#[test]
fn r5_2_every_object_parses() {
    let constraint = compiled(Format::json_object());
    let texts: Vec<Vec<u8>> = (1..=60)
        .filter_map(|seed| walk(constraint.clone(), seed, 300))
        .collect();
    assert!(texts.len() > 10, "{} ended", texts.len());
    for text in texts {
        match serde_json::from_slice::<Value>(&text) {
            Ok(value) => assert!(value.is_object()),
            // JSON has no largest number.
            Err(error) => assert!(
                error.to_string().starts_with("number out of range"),
                "{error}"
            ),
        }
    }
    let mut constraint = compiled(Format::json_object());
    let mut take = |text: &[u8]| {
        let token = allowed(&constraint)
            .into_iter()
            .find(|id| tokenizer().token_bytes(*id) == text);
        token.map(|token| constraint.advance(token).expect("it is allowed"))
    };
    for (text, taken) in [
        ("{", true),
        ("\n", false),
        (" ", true),
        (" ", false),
        ("}", true),
    ] {
        assert_eq!(take(text.as_bytes()).is_some(), taken, "{text:?}");
    }
}

/// R5.2: a match of a regular expression, from beginning to end.
#[test]
fn r5_2_every_way_is_a_match() {
    for text in texts(Format::Regex(r"[a-f0-9]{4}-(yes|no)\.?".into())) {
        let (hex, word) = text.split_once('-').expect("a hyphen");
        assert!(hex.len() == 4 && hex.bytes().all(|byte| b"abcdef0123456789".contains(&byte)));
        assert!(["yes", "no", "yes.", "no."].contains(&word), "{text}");
    }
}

/// R5.2: one of several texts, whatever characters they have.
#[test]
fn r5_2_every_way_is_a_choice() {
    let choices = ["yes", "no (but)", "a|b", "é\n\\d+", "yes, of course"].map(str::to_owned);
    let texts = texts(Format::Choice(choices.to_vec()));
    for choice in &choices {
        assert!(texts.contains(choice), "{choice:?} was never chosen");
    }
    assert!(texts.iter().all(|text| choices.contains(text)), "{texts:?}");
}

/// R5.2: a sentence of a grammar: sums in parentheses.
#[test]
fn r5_2_every_way_is_a_sentence_of_the_grammar() {
    let grammar = "start: sum\nsum: term (\"+\" term)*\nterm: /[0-9]{1,3}/ | \"(\" sum \")\"\n";
    for text in texts(Format::Lark(grammar.into())) {
        let mut depth = 0_i32;
        for byte in text.bytes() {
            depth += i32::from(byte == b'(') - i32::from(byte == b')');
            assert!(
                depth >= 0 && (byte.is_ascii_digit() || b"()+".contains(&byte)),
                "{text}"
            );
        }
        assert_eq!(depth, 0, "{text}");
    }
}

/// JSON in GBNF; its white space goes by a rule that calls itself.
const JSON: &str = r#"
# JSON (RFC 8259), with one space at most
root    ::= object
value   ::= object | array | string | number | "true" | "false" | "null"
object  ::= "{" ws ( member ("," ws member)* )? "}"
member  ::= string ws ":" ws value ws
array   ::= "[" ws ( value ws ("," ws value ws)* )? "]"
string  ::= "\"" ( plain | "\\" escape ){0,8} "\""
plain   ::= [^"\\\x00-\x1F]
escape  ::= ["\\/bfnrt] | "u" [0-9a-cA-CE-Fe-f] [0-9a-fA-F]{3}
number  ::= "-"? ("0" | [1-9] [0-9]{0,9}) ("." [0-9]{1,9})? ([eE] [-+]? [0-9]{1,2})?
ws      ::= (" ")?
"#;

/// R5.2: whatever is drawn under the masks of a GBNF grammar for JSON parses.
#[test]
fn r5_2_every_way_is_json_of_a_gbnf_grammar() {
    let constraint = compiled(Format::grammar(JSON.into()));
    let walks = (1..=100).filter_map(|seed| walk(constraint.clone(), seed, 400));
    let mut different = std::collections::BTreeSet::new();
    for text in walks {
        let value: Value = serde_json::from_slice(&text)
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
        assert!(value.is_object());
        different.insert(value.to_string());
    }
    assert!(different.len() > 20, "{} different texts", different.len());
}

/// R5.2: GBNF grammars with recursion on the left and in the middle, with texts that begin others, and beyond ASCII.
#[test]
fn r5_2_every_way_is_a_sentence_of_the_gbnf_grammar() {
    let sums =
        "root ::= sum\nsum ::= sum [-+] term | term\nterm ::= [0-9]{1,3} | \"(\" sum \")\"\n";
    for text in texts(Format::Gbnf(sums.into())) {
        let depth = text.bytes().fold(0_i32, |depth, byte| {
            assert!(
                depth >= 0 && (byte.is_ascii_digit() || b"()+-".contains(&byte)),
                "{text}"
            );
            depth + i32::from(byte == b'(') - i32::from(byte == b')')
        });
        assert_eq!(depth, 0, "{text}");
    }
    // The keyword "xy" begins names, too.
    let code = r#"root ::= (let | set) (";" root)?
        let ::= "xy" ws name ws? "=" ws? value
        set ::= name "=" value
        name ::= [xyz] [xyz0-9]{0,5}
        value ::= name | [0-9]{1,9} | "[" value ("," value)* "]"
        ws ::= [ \n]"#;
    let mut beginnings = std::collections::BTreeSet::new();
    for text in texts(Format::Gbnf(code.into())) {
        for statement in text.split(';') {
            let (name, value) = statement.split_once('=').expect("an equals sign");
            let words: Vec<&str> = name.split([' ', '\n']).collect();
            assert!(words.len() == 1 || words[0] == "xy", "{text}");
            assert_eq!(
                value.matches('[').count(),
                value.matches(']').count(),
                "{text}"
            );
            beginnings.insert((words.len() > 1, name.starts_with("xy")));
        }
    }
    assert!(beginnings.len() >= 2, "{beginnings:?}");
    let mut constraint = compiled(Format::Gbnf(code.into()));
    for text in ["x", "y", "z", "=", "0"] {
        let token = tokenizer().id_of(text).expect("a token");
        assert!(allowed(&constraint).contains(&token), "{text}");
        assert_eq!(constraint.advance(token), Ok(Progress::GoesOn));
    }
    let kana = Format::Gbnf(
        "root ::= \"「\" [ぁ-ゟ]{1,4} \"」\" | \"\\u00e9\" [^\\x00-\\U0001F5FF]".into(),
    );
    for text in texts(kana) {
        let characters: Vec<char> = text.chars().collect();
        match characters[..] {
            ['「', .., '」'] => assert!((3..=6).contains(&characters.len()), "{text}"),
            ['é', other] => assert!(other >= '\u{1F600}', "{text}"),
            _ => panic!("{text}"),
        }
    }
}

/// R5.2: llama.cpp's own grammars, with a vocabulary of 128,256.
#[test]
fn r5_2_the_grammars_of_llama_cpp_are_read() {
    let Some(folder) = models() else {
        println!("{NOT_RUN}");
        return;
    };
    let file = ModelFile::open(folder.join("ggml-vocab-llama-bpe.gguf")).expect("a vocabulary");
    let tokenizer = Tokenizer::from_gguf(file.metadata()).expect("it is sound");
    let formats = Formats::new(&tokenizer, tokenizer.vocab_size()).expect("it has an end");
    let mut names = Vec::new();
    let files = folder.join("grammars").read_dir().expect("a folder");
    for path in files.map(|file| file.expect("a file").path()) {
        if path.extension().is_none_or(|kind| kind != "gbnf") {
            continue;
        }
        let name = path.file_stem().expect("a name").display().to_string();
        let grammar = std::fs::read_to_string(&path).expect("a text");
        let constraint = formats.compile(Format::grammar(grammar));
        let constraint = constraint.unwrap_or_else(|error| panic!("{name}: {error}"));
        let texts = (1..=5).filter_map(|seed| walk_with(&tokenizer, constraint.clone(), seed, 100));
        for text in texts.filter(|_| name.starts_with("json")) {
            serde_json::from_slice::<Value>(&text)
                .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&text)));
        }
        names.push(name);
    }
    assert!(names.len() >= 8, "{names:?}");
}

/// R5.2: the end of the text is allowed where the text may end, and nowhere else.
#[test]
fn r5_2_a_text_ends_where_it_may() {
    let mut constraint = compiled(Format::Regex("a+b".into()));
    let id = |text: &str| tokenizer().id_of(text).expect("a token");
    assert!(!may_end(&constraint));
    assert_eq!(constraint.advance(id("a")), Ok(Progress::GoesOn));
    assert!(!may_end(&constraint));
    // Nothing can follow: the end need not be drawn.
    assert_eq!(constraint.advance(id("b")), Ok(Progress::Ended));
    let mut constraint = compiled(Format::Regex("a+".into()));
    assert_eq!(constraint.advance(id("a")), Ok(Progress::GoesOn));
    assert!(may_end(&constraint));
}

/// R5.2: what is no format says so.
#[test]
fn r5_2_unsound_formats_are_refused() {
    let schema = Format::JsonSchema;
    for (format, says) in [
        (schema(json!({"type": "strin"})), "strin"),
        (
            schema(json!({"type": "string", "minLength": 5, "maxLength": 3})),
            "minLength",
        ),
        (
            schema(json!({"type": "array", "uniqueItems": true})),
            "uniqueItems",
        ),
        (
            schema(json!({"$ref": "https://example.com/schema"})),
            "example.com",
        ),
        (schema(json!(false)), "false"),
        (Format::Regex("(a".into()), "a"),
        (Format::Regex(r"(?=a)b".into()), "look"),
        (Format::Lark("start: missing".into()), "missing"),
        (Format::Lark("root ::= \"a\"".into()), "::="),
        (
            Format::grammar("root ::= missing".into()),
            "line 1: there is no rule \"missing\"",
        ),
        (Format::Choice(Vec::new()), "no choice"),
    ] {
        let error = compile(format.clone())
            .expect_err("it is refused")
            .to_string();
        assert!(
            error.contains(says) && !error.contains('\n'),
            "{format:?}: {error}"
        );
    }
    let bytes = MAX_FORMAT_BYTES + 1;
    let long = Format::Regex("a".repeat(bytes));
    let limit = MAX_FORMAT_BYTES;
    assert_eq!(
        compile(long).unwrap_err(),
        ConstraintError::TooLong { bytes, limit }
    );
}

/// R5.2: formats made to do harm end in an error or a constraint, soon, and never in a crash.
#[test]
fn r5_2_hostile_formats_are_survived() {
    let nested = |open: &str, close: &str, count: usize| {
        format!("{}\"a\"{}", open.repeat(count), close.repeat(count))
    };
    let most = MAX_FORMAT_BYTES / 2 - 100;
    let chain: String = (0..3000)
        .map(|index| format!("r{index}: r{}\n", index + 1))
        .collect();
    let rules = |count: usize, body: fn(usize) -> String| -> String {
        let rule = |index: usize| format!("r{index} ::= {}\n", body(index + 1));
        (0..count).map(rule).collect()
    };
    let characters: Vec<String> = ('\u{4e00}'..'\u{5d00}')
        .map(|character| format!("[{character}]+"))
        .collect();
    let definitions: serde_json::Map<String, Value> = (0..2000)
        .map(|index| {
            (
                index.to_string(),
                json!({"$ref": format!("#/$defs/{}", index + 1)}),
            )
        })
        .chain([("2000".to_owned(), json!({"type": "null"}))])
        .collect();
    let deep = (0..120).fold(
        json!({"type": "null"}),
        |inner, _| json!({"type": "array", "items": inner, "minItems": 1}),
    );
    let wide: Vec<Value> = (0..5000)
        .map(|index| json!(format!("{index:x}").repeat(8)))
        .collect();
    for format in [
        Format::Lark(format!("start: {}", nested("(", ")", most))),
        Format::Lark(format!("start: {}", nested("[", "]", most))),
        Format::Lark(format!("start: r0\n{chain}r3000: \"a\"\n")),
        Format::Lark("start: start start | \"a\"".into()),
        Format::Gbnf(format!("root ::= {}", nested("(", ")", most))),
        Format::Gbnf(format!("root ::= {}", nested("(", ")?", most / 2))),
        Format::Gbnf(format!("root ::= \"a\"{}", "*".repeat(most))),
        Format::Gbnf("root ::= root root | \"a\" | \"\"".into()),
        Format::Gbnf("root ::= ((\"a\"{1,2000}){1,2000}){1,2000}".into()),
        Format::Gbnf("root ::= (.* \"a\" .{200}) | (.* \"b\" .{200})".into()),
        Format::Gbnf(format!(
            "root ::= r0\n{}r3000 ::= \"a\"",
            rules(3000, |next| format!("r{next}"))
        )),
        Format::Gbnf(format!(
            "root ::= r0\n{}r60 ::= \"a\" | r0",
            rules(60, |next| format!("r{next} r{next}"))
        )),
        Format::Gbnf(format!(
            "root ::= r0\n{}r60 ::= \"a\"?",
            rules(60, |next| format!("r{next} r{next}"))
        )),
        Format::Gbnf(format!(
            "root ::= {}",
            "[a-z]*\"b\"|".repeat(4_000) + "x\nx ::= (root)"
        )),
        Format::Gbnf(format!(
            "root ::= {}root | \"b\"",
            "[a-z]*\"b\"?".repeat(4_000)
        )),
        Format::Gbnf(format!(
            "root ::= \"(\" root \")\" | ({})",
            characters.join("|")
        )),
        Format::Regex(nested("(", ")", most).replace('"', "")),
        Format::Regex("((a{1,1000}){1,1000}){1,1000}".into()),
        Format::Regex("(.*a.{200})|(.*b.{200})|(.*c.{200})".into()),
        Format::JsonSchema(json!({"$ref": "#/$defs/0", "$defs": definitions})),
        Format::JsonSchema(json!({"$ref": "#"})),
        Format::JsonSchema(deep),
        Format::JsonSchema(json!({"enum": wide})),
        Format::JsonSchema(json!({"type": "string", "pattern": "(.*a.{200})|(.*b.{200})"})),
        Format::JsonSchema(json!({"type": "array", "minItems": 1_000_000_000})),
        Format::JsonSchema(json!({"type": "string", "minLength": 1_000_000_000})),
    ] {
        let begun = Instant::now();
        if let Ok(mut constraint) = compile(format.clone()) {
            for step in 0..20 {
                let words = allowed(&constraint);
                let end = |id: &&u32| !tokenizer().is_end_of_generation(**id);
                let Some(&token) = words.iter().filter(end).nth(step % words.len().max(1)) else {
                    break;
                };
                if constraint.advance(token) != Ok(Progress::GoesOn) {
                    break;
                }
            }
        }
        let head: String = format!("{format:?}").chars().take(60).collect();
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "{head}: {:?}",
            begun.elapsed()
        );
    }
}
