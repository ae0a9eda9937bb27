use std::path::PathBuf;

use serde_json::json;
use tempfile::TempDir;

use super::*;

/// A safetensors file of that header and so many bytes of data.
fn file(header: &Value, data_bytes: usize) -> Vec<u8> {
    let header = header.to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data_bytes).map(|index| index as u8));
    bytes
}

fn tensor(shape: &[usize], offsets: [usize; 2]) -> Value {
    json!({"dtype": "BF16", "shape": shape, "data_offsets": offsets})
}

/// A directory of those files.
fn directory(files: &[(&str, Vec<u8>)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, content) in files {
        fs::write(directory.path().join(name), content).unwrap();
    }
    directory
}

/// A directory with an empty configuration and that file of weights.
fn with_weights(weights: Vec<u8>) -> TempDir {
    directory(&[(CONFIG, b"{}".to_vec()), (WEIGHTS, weights)])
}

fn error(directory: &TempDir) -> String {
    Checkpoint::open(directory.path()).unwrap_err().to_string()
}

#[test]
fn tensors_are_read_from_where_they_lie() {
    let header = json!({
        "__metadata__": {"format": "pt"},
        "b": tensor(&[2], [6, 10]),
        "a": tensor(&[1, 3], [0, 6]),
    });
    let directory = with_weights(file(&header, 10));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let names: Vec<&str> = checkpoint
        .tensors()
        .iter()
        .map(|tensor| tensor.name.as_str())
        .collect();
    assert_eq!(names, ["a", "b"]);
    let a = checkpoint.find_tensor("a").unwrap();
    assert_eq!(
        (&a.shape[..], a.kind.as_str(), a.bytes),
        (&[1, 3][..], "BF16", 6)
    );
    assert_eq!(a.dtype, Some(GgmlDType::BF16));
    assert_eq!(checkpoint.read_tensor_bytes("b").unwrap(), [6, 7, 8, 9]);
    let missing = checkpoint.read_tensor_bytes("c").unwrap_err().to_string();
    assert_eq!(missing, "the model has no tensor \"c\"");
    assert_eq!(checkpoint.file_count(), 1);
    assert_eq!(checkpoint.name(), directory.path().display().to_string());
}

#[test]
fn types_that_cannot_be_computed_with_are_listed() {
    let header = json!({"a": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}});
    let directory = with_weights(file(&header, 4));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    let tensor = &checkpoint.tensors()[0];
    assert_eq!((tensor.kind.as_str(), tensor.dtype), ("F8_E4M3", None));
}

#[test]
fn unsound_headers_are_refused() {
    let a = |shape: &[usize], offsets| json!({"a": tensor(shape, offsets)});
    let mut longer = file(&a(&[1], [0, 2]), 2);
    longer[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    let overlap = json!({"a": tensor(&[2], [0, 4]), "b": tensor(&[2], [2, 6])});
    for (weights, message) in [
        (Vec::new(), "it cannot be read"),
        (vec![0; 7], "it cannot be read"),
        (longer, "the header has 18446744073709551615 bytes"),
        (
            [&8_u64.to_le_bytes()[..], b"no json!"].concat(),
            "the header is not sound",
        ),
        (file(&a(&[2], [0, 2]), 2), "the header is not sound"),
        (file(&a(&[1], [2, 4]), 4), "the header is not sound"),
        (
            file(&a(&[usize::MAX, 2], [0, 4]), 4),
            "the header is not sound",
        ),
        (file(&overlap, 6), "the header is not sound"),
        (
            file(&a(&[1], [0, 2]), 1),
            "the tensors have 2 bytes, but after the header there are 1",
        ),
        (
            file(&a(&[1], [0, 2]), 3),
            "the tensors have 2 bytes, but after the header there are 3",
        ),
    ] {
        let error = error(&with_weights(weights));
        assert!(error.contains(message), "{error} is not about {message:?}");
        assert!(error.contains(WEIGHTS), "{error}");
    }
}

#[test]
fn every_truncation_is_refused() {
    let whole = file(&json!({"a": tensor(&[4], [0, 8])}), 8);
    for length in 0..whole.len() {
        error(&with_weights(whole[..length].to_vec()));
    }
    assert!(Checkpoint::open(with_weights(whole).path()).is_ok());
}

#[test]
fn a_file_that_is_cut_after_it_was_opened_is_an_error() {
    let directory = with_weights(file(&json!({"a": tensor(&[4], [0, 8])}), 8));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    fs::write(directory.path().join(WEIGHTS), "short").unwrap();
    let error = checkpoint.read_tensor_bytes("a").unwrap_err().to_string();
    assert!(
        error.starts_with("cannot read ") && error.contains(WEIGHTS),
        "{error}"
    );
}

#[test]
fn what_a_directory_lacks_is_named() {
    assert!(
        error(&directory(&[]))
            .contains("neither model.safetensors nor model.safetensors.index.json")
    );
    let weights = || (WEIGHTS, file(&json!({}), 0));
    assert!(error(&directory(&[weights()])).contains("config.json"));
    let no_json = directory(&[weights(), (CONFIG, b"[]".to_vec())]);
    assert!(error(&no_json).contains("config.json is not a JSON object"));
    let absent = Checkpoint::open(PathBuf::from("/no/such/directory")).unwrap_err();
    assert!(absent.to_string().contains("/no/such/directory"));
}

/// A directory of two files and that list of them.
fn listed(map: &Value) -> TempDir {
    directory(&[
        (CONFIG, b"{}".to_vec()),
        (INDEX, json!({"weight_map": map}).to_string().into_bytes()),
        (
            "1.safetensors",
            file(&json!({"a": tensor(&[1], [0, 2])}), 2),
        ),
        (
            "2.safetensors",
            file(&json!({"b": tensor(&[1], [0, 2])}), 2),
        ),
        (
            "3.safetensors",
            file(&json!({"a": tensor(&[1], [0, 2])}), 2),
        ),
    ])
}

#[test]
fn several_files_are_one_model() {
    let directory = listed(&json!({"a": "1.safetensors", "b": "2.safetensors"}));
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(
        (checkpoint.file_count(), checkpoint.tensors().len()),
        (2, 2)
    );
    assert_eq!(checkpoint.read_tensor_bytes("b").unwrap(), [0, 1]);
}

#[test]
fn unsound_lists_of_files_are_refused() {
    for (map, message) in [
        (json!([]), "no object \"weight_map\""),
        (json!({"a": 1}), "1 is not the name of a file beside it"),
        (
            json!({"a": "../1.safetensors"}),
            "is not the name of a file beside it",
        ),
        (
            json!({"a": "/etc/passwd"}),
            "is not the name of a file beside it",
        ),
        (json!({"a": ".."}), "is not the name of a file beside it"),
        (json!({"a": ""}), "is not the name of a file beside it"),
        (json!({"a": "4.safetensors"}), "4.safetensors"),
        (
            json!({"c": "1.safetensors"}),
            "none of the files has the tensor \"c\"",
        ),
        (
            json!({"a": "1.safetensors", "x": "3.safetensors"}),
            "another file has the tensor \"a\" too",
        ),
    ] {
        let error = error(&listed(&map));
        assert!(error.contains(message), "{error} is not about {message:?}");
    }
}
