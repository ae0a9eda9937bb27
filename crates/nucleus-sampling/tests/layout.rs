//! The plain data of `cuda/include/sampling_config.h` against the crate's: the same fields of the same types at the same offsets, the same
//! numbers (R1.8). The header is read as text, so no C compiler is needed; a C compiler checks the header's own assertions.

use std::mem::{align_of, offset_of, size_of};

use nucleus_sampling::{
    Bias, CONTRACT_VERSION, Flags, MAX_OPS, MAX_VOCAB, NO_TOKEN, Op, OpCode, Program, SampledToken,
    SamplingConfig, Status, UNLIMITED,
};

const HEADER: &str = include_str!("../cuda/include/sampling_config.h");

/// A member of a C struct.
#[derive(Debug, PartialEq)]
struct Member {
    name: String,
    /// A scalar of C, or another struct.
    type_name: String,
    offset: usize,
}

/// The header without comments.
fn code() -> String {
    let mut code = String::new();
    for (index, part) in HEADER.split("/*").enumerate() {
        let after = part.split_once("*/").map_or(part, |(_, after)| after);
        code.push_str(if index == 0 { part } else { after });
    }
    code
}

/// Bytes of a scalar, which is also its alignment.
fn bytes(type_name: &str) -> usize {
    match type_name {
        "uint32_t" | "int32_t" | "float" => 4,
        "uint64_t" | "int64_t" => 8,
        other => panic!("{other} is no scalar of the header"),
    }
}

/// The members of a struct of scalars, placed as C places them, and its size.
fn c_struct(name: &str) -> (Vec<Member>, usize) {
    let code = code();
    let (before, _) = code
        .split_once(&format!("}} {name};"))
        .unwrap_or_else(|| panic!("the header does not declare {name}"));
    let (_, body) = before.rsplit_once('{').expect("a body");
    let (mut members, mut end, mut largest) = (Vec::new(), 0usize, 1);
    for declaration in body
        .split(';')
        .map(str::trim)
        .filter(|text| !text.is_empty())
    {
        let (type_name, names) = declaration.split_once(' ').expect("a type and names");
        for name in names.split(',') {
            let size = bytes(type_name);
            let offset = end.next_multiple_of(size);
            members.push(Member {
                name: name.trim().to_owned(),
                type_name: type_name.to_owned(),
                offset,
            });
            (end, largest) = (offset + size, largest.max(size));
        }
    }
    (members, end.next_multiple_of(largest))
}

/// The C type of a field of Rust.
trait Scalar {
    const C: &'static str;
}

impl Scalar for u32 {
    const C: &'static str = "uint32_t";
}
impl Scalar for i32 {
    const C: &'static str = "int32_t";
}
impl Scalar for u64 {
    const C: &'static str = "uint64_t";
}
impl Scalar for f32 {
    const C: &'static str = "float";
}
impl Scalar for Status {
    const C: &'static str = "uint32_t";
}
impl Scalar for OpCode {
    const C: &'static str = "uint32_t";
}

fn c_type<S, F: Scalar>(_: fn(&S) -> &F) -> &'static str {
    F::C
}

/// Compares a struct with the header's; to forget a field is an error of the compiler.
macro_rules! same_layout {
    ($name:ident as $c_name:literal { $($field:ident),+ $(,)? }) => {{
        let _ = |$name { $($field: _),+ }: $name| {};
        let members = vec![$(Member {
            name: stringify!($field).to_owned(),
            type_name: c_type(|whole: &$name| &whole.$field).to_owned(),
            offset: offset_of!($name, $field),
        }),+];
        assert_eq!(c_struct($c_name), (members, size_of::<$name>()));
    }};
}

#[test]
fn r1_8_the_configuration_has_one_layout() {
    same_layout!(SamplingConfig as "SamplingConfig" {
        seed,
        temperature, dynatemp_range, dynatemp_exponent, smoothing_factor, smoothing_curve,
        top_p, min_p, typical_p, top_n_sigma, epsilon_cutoff, eta_cutoff, top_a, tfs_z,
        xtc_probability, xtc_threshold,
        repetition_penalty, frequency_penalty, presence_penalty,
        dry_multiplier, dry_base,
        mirostat_tau, mirostat_eta, adaptive_target, adaptive_decay,
        top_k, min_keep, repeat_last_n, dry_allowed_length, dry_penalty_last_n,
        no_repeat_ngram_size, min_tokens, mirostat, vocab_size, flags,
    });
    assert_eq!(align_of::<SamplingConfig>(), 8);
}

#[test]
fn r1_8_results_biases_and_operations_have_one_layout() {
    same_layout!(SampledToken as "SampledToken" { token_id, logprob, kept_count, status, feedback });
    same_layout!(Bias as "SamplingBias" { token_id, value });
    same_layout!(Op as "SamplingOp" { code, arg, threshold });
}

/// A program is its operations, the number of them, and padding to 8 bytes.
#[test]
fn r1_8_a_program_has_one_layout() {
    let declared = "typedef struct { SamplingOp ops[NUCLEUS_MAX_OPS]; uint32_t len, reserved; } SamplingProgram;";
    assert!(
        code().contains(declared),
        "the program is declared otherwise"
    );
    assert_eq!(size_of::<Program>(), MAX_OPS * size_of::<Op>() + 8);
}

/// The value of a `#define`.
fn defined(name: &str) -> u64 {
    let lines: Vec<String> = code().lines().map(str::to_owned).collect();
    let value = lines
        .iter()
        .filter_map(|line| line.strip_prefix("#define ")?.split_once(' '))
        .find(|(defined, _)| *defined == name)
        .unwrap_or_else(|| panic!("{name} is not defined"))
        .1
        .trim();
    let number = |text: &str| {
        let digits = text.trim_end_matches('u');
        digits.strip_prefix("0x").map_or_else(
            || digits.parse().expect(name),
            |hex| u64::from_str_radix(hex, 16).expect(name),
        )
    };
    let shift = value.trim_matches(['(', ')']).split_once(" << ");
    shift.map_or_else(|| number(value), |(base, by)| number(base) << number(by))
}

#[test]
fn r1_8_numbers_are_the_same_on_both_sides() {
    let numbers = [
        ("NUCLEUS_CONTRACT_VERSION", u64::from(CONTRACT_VERSION)),
        ("NUCLEUS_MAX_OPS", MAX_OPS as u64),
        ("NUCLEUS_MAX_VOCAB", u64::from(MAX_VOCAB)),
        ("NUCLEUS_UNLIMITED", u64::from(UNLIMITED)),
        ("NUCLEUS_NO_TOKEN", u64::from(NO_TOKEN)),
        ("NUCLEUS_IGNORE_EOS", u64::from(Flags::IGNORE_EOS)),
        ("NUCLEUS_KEEP_TIES", u64::from(Flags::KEEP_TIES)),
        ("NUCLEUS_COUNT_PROMPT", u64::from(Flags::COUNT_PROMPT)),
        ("NUCLEUS_TYPICAL_STRICT", u64::from(Flags::TYPICAL_STRICT)),
        (
            "NUCLEUS_BAD_WORDS_OUTPUT_ONLY",
            u64::from(Flags::BAD_WORDS_OUTPUT_ONLY),
        ),
        ("NUCLEUS_OK", Status::Ok as u64),
        ("NUCLEUS_NAN", Status::Nan as u64),
        ("NUCLEUS_OVERFLOW", Status::Overflow as u64),
        ("NUCLEUS_EMPTY", Status::Empty as u64),
        ("NUCLEUS_ENDED", Status::Ended as u64),
    ];
    for (name, value) in numbers {
        assert_eq!(defined(name), value, "{name}");
    }
}

/// The header lists the operations in the order of their codes, under the names that traces show (which call argmax greedy).
#[test]
fn r1_8_operations_have_the_same_codes() {
    let code = code();
    let (before, _) = code.split_once("} SamplingOpCode;").expect("the codes");
    let (_, body) = before.rsplit_once('{').expect("a body");
    let names: Vec<String> = body
        .split(',')
        .map(|name| name.trim().trim_end_matches(" = 0").to_lowercase())
        .map(|name| name.trim_start_matches("nucleus_op_").to_owned())
        .collect();
    let codes = [
        OpCode::None,
        OpCode::Dry,
        OpCode::NoRepeatNgram,
        OpCode::Penalties,
        OpCode::Temperature,
        OpCode::DynamicTemperature,
        OpCode::Smoothing,
        OpCode::TopNSigma,
        OpCode::TopK,
        OpCode::TypicalP,
        OpCode::TopP,
        OpCode::MinP,
        OpCode::Epsilon,
        OpCode::Eta,
        OpCode::TopA,
        OpCode::Tfs,
        OpCode::Xtc,
        OpCode::Argmax,
        OpCode::Draw,
        OpCode::Mirostat1,
        OpCode::Mirostat2,
        OpCode::AdaptiveP,
    ];
    assert_eq!(
        codes.map(|code| code as usize).to_vec(),
        (0..codes.len()).collect::<Vec<_>>()
    );
    let name = |code: OpCode| match code {
        OpCode::Argmax => "argmax",
        code => code.name(),
    };
    assert_eq!(names, codes.map(name));
}

/// One entry point, in the order of the request: logits, vocabulary, configuration with its history, random value, stream.
#[test]
fn r1_8_the_entry_point_is_declared() {
    let code = code().split_whitespace().collect::<Vec<_>>().join(" ");
    let declared = "int launch_advanced_sample(const void *logits, uint32_t vocab_size, const SingleSample *sample, \
                    uint64_t random_value, void *workspace, size_t workspace_bytes, void *stream);";
    assert!(code.contains(declared));
    for member in [
        "const SamplingConfig *config;",
        "const uint32_t *history;",
        "uint32_t history_length,",
    ] {
        assert!(code.contains(member), "{member}");
    }
}
