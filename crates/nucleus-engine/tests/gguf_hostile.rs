//! The GGUF reader on sound files, on files that are not sound, and on things that are no files.
//!
//! Checked with every file: nothing panics, and nothing is allocated for bytes that are not there.

use std::io::Write;

use candle_core::Device;
use nucleus_engine::gguf::{GgufError, ModelFile, Problem, TensorType, Value};
use proptest::prelude::*;

const BUNDLED: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

// A writer that can write what no sound writer would.

const U8: u32 = 0;
const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const U64: u32 = 10;

const TENSOR_F32: u32 = 0;
const TENSOR_Q8_0: u32 = 8;

fn string(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn start(version: u32, tensors: u64, keys: u64) -> Vec<u8> {
    [
        b"GGUF",
        &version.to_le_bytes()[..],
        &tensors.to_le_bytes(),
        &keys.to_le_bytes(),
    ]
    .concat()
}

fn key(name: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&string(name), &kind.to_le_bytes()[..], value].concat()
}

fn array(element: u32, count: u64, elements: &[u8]) -> Vec<u8> {
    [&element.to_le_bytes()[..], &count.to_le_bytes(), elements].concat()
}

/// Dimensions innermost first, offset from the beginning of the data section.
fn tensor(name: &str, dims: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let dims_bytes: Vec<u8> = dims.iter().flat_map(|dim| dim.to_le_bytes()).collect();
    let count = (dims.len() as u32).to_le_bytes();
    [
        &string(name),
        &count[..],
        &dims_bytes,
        &kind.to_le_bytes(),
        &offset.to_le_bytes(),
    ]
    .concat()
}

/// A header and data, with the padding between.
fn file(header: Vec<u8>, alignment: usize, data: &[u8]) -> Vec<u8> {
    let mut bytes = header;
    bytes.resize(bytes.len().next_multiple_of(alignment), 0);
    bytes.extend_from_slice(data);
    bytes
}

fn one_key(kind: u32, value: &[u8]) -> Vec<u8> {
    [start(3, 0, 1), key("k", kind, value)].concat()
}

fn one_tensor(dims: &[u64], kind: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    file(
        [start(3, 1, 0), tensor("t", dims, kind, offset)].concat(),
        32,
        data,
    )
}

fn floats(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

/// Every kind of metadata, a matrix of floats and a row of one Q8_0 block.
fn sample() -> Vec<u8> {
    let header = [
        start(3, 2, 8),
        key("general.alignment", U32, &64u32.to_le_bytes()),
        key("general.architecture", STRING, &string("llama")),
        key("bool", BOOL, &[1]),
        key("float", F32, &0.5f32.to_le_bytes()),
        key("long", U64, &(1u64 << 40).to_le_bytes()),
        key(
            "strings",
            ARRAY,
            &array(STRING, 3, &[string("a"), string(""), string("ü")].concat()),
        ),
        key("bytes", ARRAY, &array(U8, 3, &[1, 2, 3])),
        key("bools", ARRAY, &array(BOOL, 2, &[0, 1])),
        tensor("matrix", &[3, 2], TENSOR_F32, 0),
        tensor("row", &[32], TENSOR_Q8_0, 64),
    ]
    .concat();
    let mut data = floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    data.resize(64, 0);
    data.extend([0x00, 0x3c]); // 1.0 in half precision
    data.extend((0..32).map(|weight| weight as u8));
    file(header, 64, &data)
}

fn open(bytes: Vec<u8>) -> Result<ModelFile, GgufError> {
    ModelFile::from_static(bytes.leak(), "test.gguf")
}

/// The problem of a file that must be refused, and where it is.
fn problem(bytes: Vec<u8>) -> (u64, Problem) {
    match open(bytes) {
        Err(GgufError::Malformed {
            offset, problem, ..
        }) => (offset, problem),
        other => panic!("not refused as malformed: {other:?}"),
    }
}

macro_rules! assert_problem {
    ($bytes:expr, $offset:expr, $pattern:pat $(if $guard:expr)?) => {{
        let (offset, problem) = problem($bytes);
        assert!(matches!(&problem, $pattern $(if $guard)?), "{problem:?}");
        assert_eq!(offset, $offset, "{problem}");
    }};
}

// Sound files.

#[test]
fn metadata_is_read_with_its_types() {
    let file = open(sample()).unwrap();
    let metadata = file.metadata();
    assert_eq!(file.version(), 3);
    assert_eq!(metadata.len(), 8);
    assert_eq!(metadata.str("general.architecture").unwrap(), "llama");
    assert!(metadata.bool("bool").unwrap());
    assert_eq!(metadata.f32("float").unwrap(), 0.5);
    assert_eq!(metadata.u64("long").unwrap(), 1 << 40);
    assert_eq!(
        metadata
            .strings("strings")
            .unwrap()
            .iter()
            .collect::<Vec<_>>(),
        ["a", "", "ü"]
    );
    assert_eq!(metadata.require::<Vec<i32>>("bytes").unwrap(), [1, 2, 3]);
    let keys: Vec<&str> = metadata.iter().map(|(key, _)| key).collect();
    assert_eq!(
        keys[..3],
        ["general.alignment", "general.architecture", "bool"]
    );
}

#[test]
fn integers_of_any_width_are_read_where_they_fit() {
    let file = open(sample()).unwrap();
    assert_eq!(file.metadata().u64("general.alignment").unwrap(), 64);
    let error = file.metadata().u32("long").unwrap_err().to_string();
    assert_eq!(
        error,
        "metadata key \"long\" is 1099511627776, which is out of range; it must be of type uint32"
    );
}

#[test]
fn a_getter_names_the_key_and_both_types() {
    let file = open(sample()).unwrap();
    let metadata = file.metadata();
    assert_eq!(
        metadata.u32("nothing").unwrap_err().to_string(),
        "the model file has no metadata key \"nothing\""
    );
    assert_eq!(
        metadata.u32("bool").unwrap_err().to_string(),
        "metadata key \"bool\" is bool, not uint32"
    );
    assert_eq!(
        metadata.str("bytes").unwrap_err().to_string(),
        "metadata key \"bytes\" is array of uint8, not string"
    );
    assert!(metadata.find::<u32>("nothing").unwrap().is_none());
    assert!(metadata.find::<u32>("float").is_err());
}

#[test]
fn a_size_is_checked_against_its_range() {
    let file = open(one_key(U32, &0u32.to_le_bytes())).unwrap();
    assert_eq!(file.metadata().size_in("k", 0..=4).unwrap(), 0);
    let error = file.metadata().size_in("k", 1..=4).unwrap_err().to_string();
    assert_eq!(
        error,
        "metadata key \"k\" is 0, which is out of range; it must be from 1 to 4"
    );
}

#[test]
fn values_are_shown_escaped_and_shortened() {
    let file = open(sample()).unwrap();
    let shown = |key| file.metadata().get(key).unwrap().to_string();
    assert_eq!(shown("general.architecture"), "\"llama\"");
    assert_eq!(shown("strings"), "[\"a\", \"\", \"ü\"]");
    let long = open(one_key(ARRAY, &array(U8, 9, &[7; 9]))).unwrap();
    assert_eq!(
        long.metadata().get("k").unwrap().to_string(),
        "[7, 7, 7, 7, 7, 7, … 9 in all]"
    );
    assert_eq!(
        Value::String("\u{1b}[2J".into()).to_string(),
        "\"\\u{1b}[2J\""
    );
}

#[test]
fn tensors_have_their_shape_outermost_first() {
    let file = open(sample()).unwrap();
    let matrix = file.tensor("matrix").unwrap();
    assert_eq!(
        (matrix.shape.as_slice(), matrix.bytes, matrix.elements()),
        ([2, 3].as_slice(), Some(24), 6)
    );
    assert_eq!(matrix.offset % 64, 0);
    assert_eq!(file.tensor("row").unwrap().offset, matrix.offset + 64);
    assert!(matches!(file.tensor("x"), Err(GgufError::MissingTensor { tensor }) if tensor == "x"));
}

#[test]
fn tensors_are_read_as_bytes_and_as_quantised_tensors() {
    let file = open(sample()).unwrap();
    assert_eq!(
        file.read_tensor_bytes("matrix").unwrap(),
        floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    );
    let matrix = file
        .read_qtensor("matrix", &Device::Cpu)
        .unwrap()
        .dequantize(&Device::Cpu)
        .unwrap();
    assert_eq!(
        matrix.to_vec2::<f32>().unwrap(),
        [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    );
    let row = file
        .read_qtensor("row", &Device::Cpu)
        .unwrap()
        .dequantize(&Device::Cpu)
        .unwrap();
    assert_eq!(
        row.to_vec1::<f32>().unwrap(),
        (0..32).map(|weight| weight as f32).collect::<Vec<_>>()
    );
}

#[test]
fn a_file_on_disk_and_an_embedded_one_read_alike() {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&sample()).unwrap();
    let (disk, embedded) = (
        ModelFile::open(on_disk.path()).unwrap(),
        open(sample()).unwrap(),
    );
    assert_eq!(disk.tensors(), embedded.tensors());
    assert_eq!(
        disk.read_tensor_bytes("row").unwrap(),
        embedded.read_tensor_bytes("row").unwrap()
    );
    assert_eq!(disk.size(), embedded.size());
    let bytes = sample();
    let size = bytes.len() as u64;
    let fill = move |offset: u64, to: &mut [u8]| {
        to.copy_from_slice(&bytes[offset as usize..offset as usize + to.len()]);
    };
    let computed = ModelFile::computed(size, fill, "computed").unwrap();
    assert_eq!(computed.tensors(), embedded.tensors());
    let mut part = [0; 5];
    computed.read_tensor_at("row", 3, &mut part).unwrap();
    assert_eq!(part, embedded.read_tensor_bytes("row").unwrap()[3..8]);
    assert!(computed.read_at(size - 2, &mut part).is_err());
}

#[test]
fn the_bundled_model_is_read() {
    let file = ModelFile::open(BUNDLED).unwrap();
    assert_eq!(file.metadata().u32("llama.block_count").unwrap(), 5);
    assert_eq!(file.tensors().len(), 47);
    let embeddings = file.tensor("token_embd.weight").unwrap();
    assert_eq!(
        (embeddings.shape.as_slice(), embeddings.kind.to_string()),
        ([8192, 512].as_slice(), "Q8_0".to_owned())
    );
    let loaded = file
        .read_qtensor("token_embd.weight", &Device::Cpu)
        .unwrap();
    assert_eq!(loaded.shape().dims(), [8192, 512]);
}

#[test]
fn version_2_and_files_without_tensors_are_read() {
    assert_eq!(open(start(2, 0, 0)).unwrap().version(), 2);
}

#[test]
fn unsorted_tensors_and_gaps_are_allowed() {
    let header = [
        start(3, 2, 0),
        tensor("b", &[1], TENSOR_F32, 96),
        tensor("a", &[1], TENSOR_F32, 0),
    ]
    .concat();
    let file = open(file(header, 32, &[0; 100])).unwrap();
    assert_eq!(
        file.tensors()
            .iter()
            .map(|tensor| tensor.name.as_str())
            .collect::<Vec<_>>(),
        ["b", "a"]
    );
}

#[test]
fn a_tensor_of_an_unknown_type_is_listed_but_not_read() {
    let file = open(one_tensor(&[5], 4711, 0, &[0; 4])).unwrap();
    assert_eq!(file.tensors()[0].bytes, None);
    for error in [
        file.read_tensor_bytes("t").unwrap_err(),
        file.read_qtensor("t", &Device::Cpu)
            .map(|_| ())
            .unwrap_err(),
    ] {
        assert_eq!(
            error.to_string(),
            "tensor \"t\" has type unknown-4711, which is not supported; F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K are: quantise the model anew"
        );
    }
}

#[test]
fn a_type_that_cannot_be_computed_with_is_named() {
    let file = open(one_tensor(&[32], 39, 0, &[0; 17])).unwrap();
    assert_eq!(file.tensors()[0].kind, TensorType::new(39));
    assert_eq!(file.read_tensor_bytes("t").unwrap().len(), 17);
    let error = file
        .read_qtensor("t", &Device::Cpu)
        .map(|_| ())
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "tensor \"t\" has type MXFP4, which is not supported; F32, F16, BF16, Q4_0 to Q8_0 and Q2_K to Q6_K are: quantise the model anew"
    );
}

// Things that are no model files.

#[test]
fn a_missing_file_is_said_to_be_missing() {
    let error = ModelFile::open("/no/such/model.gguf")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "cannot open /no/such/model.gguf: No such file or directory (os error 2)"
    );
}

#[test]
fn a_directory_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    assert!(matches!(
        ModelFile::open(folder.path()),
        Err(GgufError::Directory { .. })
    ));
}

#[test]
#[cfg(unix)]
fn a_device_is_not_opened() {
    assert!(matches!(
        ModelFile::open("/dev/zero"),
        Err(GgufError::NotAFile { .. })
    ));
}

#[test]
fn an_empty_file_is_said_to_be_empty() {
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(
        ModelFile::open(empty.path()),
        Err(GgufError::Empty { .. })
    ));
    assert!(matches!(open(Vec::new()), Err(GgufError::Empty { .. })));
}

#[test]
fn a_text_file_is_said_to_be_no_gguf() {
    let mut text = tempfile::NamedTempFile::new().unwrap();
    text.write_all(b"version https://git-lfs\n").unwrap();
    let error = ModelFile::open(text.path()).unwrap_err().to_string();
    let expected = "this is not a GGUF file: it begins with \"vers\", not \"GGUF\"";
    assert!(error.ends_with(expected), "{error}");
    assert_problem!(b"x\n".to_vec(), 0, Problem::NotGguf { found } if found == b"x\n");
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_gives_an_error() {
    let mut on_disk = tempfile::NamedTempFile::new().unwrap();
    on_disk.write_all(&sample()).unwrap();
    let file = ModelFile::open(on_disk.path()).unwrap();
    on_disk.as_file().set_len(file.size() - 1).unwrap();
    assert!(
        matches!(file.read_tensor_bytes("row"), Err(GgufError::Read { tensor, .. }) if tensor == "row")
    );
    assert!(file.read_tensor_bytes("matrix").is_ok());
}

// Headers that are not sound.

#[test]
fn other_versions_are_named() {
    assert_problem!(
        start(1, 0, 0),
        4,
        Problem::UnsupportedVersion { version: 1 }
    );
    assert_problem!(
        start(0, 0, 0),
        4,
        Problem::UnsupportedVersion { version: 0 }
    );
    assert_problem!(
        start(4, 0, 0),
        4,
        Problem::UnsupportedVersion { version: 4 }
    );
    assert_problem!(start(3u32.swap_bytes(), 0, 0), 4, Problem::BigEndian);
}

#[test]
fn counts_are_checked_against_the_bytes_left() {
    for count in [1, 1 << 32, u64::MAX] {
        assert_problem!(start(3, count, 0), 24, Problem::Truncated { left: 0, .. });
        assert_problem!(start(3, 0, count), 24, Problem::Truncated { left: 0, .. });
    }
    let error = open(start(3, u64::MAX, 0)).unwrap_err().to_string();
    let expected = "test.gguf: at byte 24, header: the list of tensors needs 608742554432415203295 bytes, but 0 are left; \
                    the file is truncated or not sound";
    assert_eq!(error, expected);
}

#[test]
fn lengths_of_strings_are_checked_against_the_bytes_left() {
    for len in [2, 1 << 32, 1 << 63, u64::MAX] {
        let claim = len.to_le_bytes();
        assert_problem!(
            one_key(STRING, &[&claim[..], b"x"].concat()),
            45,
            Problem::Truncated { left: 1, .. }
        );
    }
    let huge_key = [start(3, 0, 1), u64::MAX.to_le_bytes().to_vec(), vec![0; 20]].concat();
    assert_problem!(huge_key, 32, Problem::Truncated { left: 20, .. });
}

#[test]
fn lengths_of_arrays_are_checked_against_the_bytes_left() {
    for element in (0..=12).filter(|&element| element != ARRAY) {
        for count in [3, 1 << 32, 1 << 61, u64::MAX] {
            assert_problem!(
                one_key(ARRAY, &array(element, count, &[0, 0])),
                49,
                Problem::Truncated { left: 2, .. }
            );
        }
    }
}

#[test]
fn arrays_of_arrays_are_refused() {
    let nested = array(ARRAY, 1, &array(U8, 1, &[0]));
    assert_problem!(one_key(ARRAY, &nested), 37, Problem::NestedArray);
}

#[test]
fn unknown_metadata_types_are_refused() {
    assert_problem!(
        one_key(13, &[0; 8]),
        33,
        Problem::UnknownValueType { number: 13 }
    );
    assert_problem!(
        one_key(u32::MAX, &[0; 8]),
        33,
        Problem::UnknownValueType { number: u32::MAX }
    );
    assert_problem!(
        one_key(ARRAY, &array(13, 1, &[0; 8])),
        37,
        Problem::UnknownValueType { number: 13 }
    );
}

#[test]
fn bools_are_0_or_1() {
    assert_problem!(one_key(BOOL, &[2]), 37, Problem::InvalidBool { value: 2 });
    assert_problem!(
        one_key(ARRAY, &array(BOOL, 3, &[0, 1, 9])),
        51,
        Problem::InvalidBool { value: 9 }
    );
}

#[test]
fn strings_are_utf8() {
    let value = [&3u64.to_le_bytes()[..], b"a\xff\xfe"].concat();
    assert_problem!(one_key(STRING, &value), 46, Problem::NotUtf8 { .. });
}

#[test]
fn names_are_neither_empty_nor_endless() {
    assert_problem!(
        [start(3, 0, 1), key("", U8, &[0; 8])].concat(),
        24,
        Problem::NameLength { len: 0, .. }
    );
    let long = [start(3, 0, 1), key(&"k".repeat(70_000), U8, &[0])].concat();
    assert_problem!(
        long,
        24,
        Problem::NameLength {
            len: 70_000,
            limit: 65_535
        }
    );
}

#[test]
fn a_key_that_appears_twice_is_refused() {
    let twice = [
        start(3, 0, 3),
        key("a", U8, &[0]),
        key("b", U8, &[0]),
        key("a", U8, &[0]),
    ]
    .concat();
    assert_problem!(twice, 52, Problem::Duplicate);
}

#[test]
fn a_tensor_that_appears_twice_is_refused() {
    let header = [
        start(3, 2, 0),
        tensor("t", &[1], TENSOR_F32, 0),
        tensor("t", &[1], TENSOR_F32, 32),
    ]
    .concat();
    assert_problem!(file(header, 32, &[0; 64]), 57, Problem::Duplicate);
}

#[test]
fn the_alignment_is_a_power_of_two_within_bounds() {
    for value in [0u32, 1, 4, 24, 33, 1 << 17, 1 << 30, u32::MAX] {
        let header = [
            start(3, 0, 1),
            key("general.alignment", U32, &value.to_le_bytes()),
        ]
        .concat();
        assert_problem!(header, 24, Problem::Alignment { value: shown } if *shown == value.to_string());
    }
    let text = [
        start(3, 0, 1),
        key("general.alignment", STRING, &string("32")),
    ]
    .concat();
    assert_problem!(text, 24, Problem::Alignment { .. });
}

#[test]
fn tensors_have_one_to_four_dimensions_none_of_them_zero() {
    assert_problem!(
        one_tensor(&[], TENSOR_F32, 0, &[0; 64]),
        33,
        Problem::DimensionCount { count: 0 }
    );
    assert_problem!(
        one_tensor(&[1; 5], TENSOR_F32, 0, &[0; 64]),
        33,
        Problem::DimensionCount { count: 5 }
    );
    assert_problem!(
        one_tensor(&[1, 0], TENSOR_F32, 0, &[0; 64]),
        45,
        Problem::ZeroDimension { index: 1 }
    );
}

#[test]
fn sizes_that_overflow_are_refused() {
    for dims in [
        &[1 << 40, 1 << 40][..],
        &[u64::MAX],
        &[1 << 62],
        &[u64::MAX; 4],
        &[1 << 32, 1 << 32, 1, 1],
    ] {
        assert_problem!(
            one_tensor(dims, TENSOR_F32, 0, &[0; 64]),
            24,
            Problem::TooLarge { .. }
        );
    }
}

#[test]
fn rows_are_whole_blocks() {
    assert_problem!(
        one_tensor(&[33], TENSOR_Q8_0, 0, &[0; 64]),
        24,
        Problem::PartialBlock {
            row: 33,
            block: 32,
            ..
        }
    );
    // 16 rows of 2 are 32 elements, but no row is a block.
    assert_problem!(
        one_tensor(&[2, 16], TENSOR_Q8_0, 0, &[0; 64]),
        24,
        Problem::PartialBlock { row: 2, .. }
    );
}

#[test]
fn tensors_begin_at_the_alignment_and_end_in_the_file() {
    assert_problem!(
        one_tensor(&[1], TENSOR_F32, 4, &[0; 64]),
        24,
        Problem::Misaligned {
            offset: 4,
            alignment: 32
        }
    );
    assert_problem!(
        one_tensor(&[17], TENSOR_F32, 0, &[0; 64]),
        24,
        Problem::PastEnd {
            end: 132,
            size: 128
        }
    );
    assert_problem!(
        one_tensor(&[1], TENSOR_F32, 64, &[0; 64]),
        24,
        Problem::PastEnd { .. }
    );
    assert_problem!(
        one_tensor(&[1], TENSOR_F32, u64::MAX - 31, &[0; 64]),
        24,
        Problem::PastEnd { .. }
    );
    assert_problem!(
        one_tensor(&[1], 4711, 64, &[0; 64]),
        24,
        Problem::PastEnd { .. }
    );
    assert!(open(one_tensor(&[16], TENSOR_F32, 0, &[0; 64])).is_ok());
}

#[test]
fn tensors_do_not_share_bytes() {
    let two = |first: Vec<u8>, second: Vec<u8>| {
        file([start(3, 2, 0), first, second].concat(), 32, &[0; 128])
    };
    let overlapping = two(
        tensor("a", &[9], TENSOR_F32, 0),
        tensor("b", &[1], TENSOR_F32, 32),
    );
    assert_problem!(overlapping, 57, Problem::Overlap { other } if other == "a");
    let unsorted = two(
        tensor("b", &[1], TENSOR_F32, 32),
        tensor("a", &[9], TENSOR_F32, 0),
    );
    assert_problem!(unsorted, 24, Problem::Overlap { other } if other == "a");
    let unknown = two(tensor("a", &[9], TENSOR_F32, 0), tensor("b", &[1], 4711, 0));
    assert_problem!(unknown, 57, Problem::Overlap { .. });
    assert!(
        open(two(
            tensor("a", &[8], TENSOR_F32, 0),
            tensor("b", &[1], TENSOR_F32, 32)
        ))
        .is_ok()
    );
}

#[test]
fn a_header_without_end_is_not_read_to_the_end() {
    // A sparse file: one string that claims all of it.
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let size = 1u64 << 33;
    let claim = size - 45;
    file.write_all(&one_key(STRING, &claim.to_le_bytes()))
        .unwrap();
    file.as_file().set_len(size).unwrap();
    let error = ModelFile::open(file.path()).unwrap_err();
    assert!(
        matches!(
            error,
            GgufError::Malformed {
                problem: Problem::HeaderTooLong { .. },
                ..
            }
        ),
        "{error}"
    );
}

// Every damage to a sound file.

/// Uses all of a file that was accepted.
fn use_all(file: &ModelFile) {
    for (_, value) in file.metadata().iter() {
        assert!(!value.to_string().is_empty());
    }
    for tensor in file.tensors() {
        let bytes = file.read_tensor_bytes(&tensor.name);
        assert_eq!(bytes.is_ok(), tensor.bytes.is_some());
        let loaded = file.read_qtensor(&tensor.name, &Device::Cpu);
        assert_eq!(loaded.is_ok(), tensor.kind.is_supported());
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = sample();
    use_all(&open(whole.clone()).unwrap());
    for len in 1..whole.len() {
        let (offset, problem) = problem(whole[..len].to_vec());
        assert!(offset <= len as u64, "{problem} at {offset} of {len}");
        assert!(
            matches!(problem, Problem::Truncated { .. } | Problem::PastEnd { .. }),
            "{len}: {problem}"
        );
    }
}

#[test]
fn extreme_numbers_anywhere_do_no_harm() {
    let whole = sample();
    let extremes = [
        0,
        1,
        0x7f,
        0xff,
        0xffff_ffff,
        1 << 32,
        1 << 40,
        i64::MAX as u64,
        1 << 63,
        u64::MAX - 31,
        u64::MAX,
    ];
    let mut accepted = 0;
    for at in 0..whole.len() - 8 {
        for extreme in extremes {
            for width in [1, 4, 8] {
                let mut bytes = whole.clone();
                bytes[at..at + width].copy_from_slice(&extreme.to_le_bytes()[..width]);
                if let Ok(file) = open(bytes) {
                    use_all(&file);
                    accepted += 1;
                }
            }
        }
    }
    // Damage to values and weights is not damage to the header, so both branches were taken.
    assert!(accepted > 1000, "{accepted}");
}

proptest! {
    #[test]
    fn random_bytes_anywhere_do_no_harm(damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..10)) {
        let mut bytes = sample();
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Ok(file) = open(bytes) {
            use_all(&file);
        }
    }

    #[test]
    fn random_headers_do_no_harm(counts in (0u64..4, 0u64..4), rest in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(file) = open([start(3, counts.0, counts.1), rest].concat()) {
            use_all(&file);
        }
    }
}

/// Claims of 4 GiB and more in files of some hundred bytes: the address space of this process must not have grown by that.
#[test]
#[cfg(target_os = "linux")]
fn claims_are_not_allocated() {
    let before = peak_address_space();
    let claim = 1u64 << 32;
    let refused = [
        start(3, claim, 0),
        start(3, 0, claim),
        one_key(STRING, &claim.to_le_bytes()),
        one_key(ARRAY, &array(U8, claim, &[0; 8])),
        one_key(ARRAY, &array(U64, claim, &[0; 8])),
        one_key(ARRAY, &array(STRING, claim, &[0; 8])),
        [start(3, 0, 1), claim.to_le_bytes().to_vec(), vec![0; 16]].concat(),
        one_tensor(&[claim], TENSOR_F32, 0, &[0; 64]),
        one_tensor(&[claim, 8], TENSOR_Q8_0, 0, &[0; 64]),
    ];
    for bytes in refused {
        assert!(open(bytes).is_err());
    }
    let grown = peak_address_space() - before;
    assert!(grown < claim / 4, "{grown} bytes");
}

/// `VmPeak` of proc(5), in bytes: it counts what is reserved, touched or not.
#[cfg(target_os = "linux")]
fn peak_address_space() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmPeak:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
