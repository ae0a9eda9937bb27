//! Runs the real binary and makes the files that it reads.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The binary under test, deaf to the terminal settings of whoever runs the tests.
pub(crate) fn nucleus(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nucleus"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("NO_COLOR")
        .env_remove("RUST_LOG");
    command
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    fn new(output: Output) -> Self {
        Self {
            code: output.status.code().expect("the program ends by itself"),
            stdout: String::from_utf8(output.stdout).expect("output is UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("messages are UTF-8"),
        }
    }

    /// Standard output as one JSON value.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.code, 0, "{}", self.stderr);
        serde_json::from_str(&self.stdout).expect("one JSON value on standard output")
    }

    /// Fails unless the run ended with this code and one line `error: …` that contains all the words.
    pub(crate) fn refused(&self, code: i32, words: &[&str]) {
        assert_eq!(self.code, code, "{}", self.stderr);
        assert_eq!(self.stdout, "", "nothing goes to standard output");
        let line = self.stderr.lines().find(|line| line.starts_with("error: "));
        let line = line.unwrap_or_else(|| panic!("no error line in {:?}", self.stderr));
        for word in words {
            assert!(line.contains(word), "{word:?} is not in {line:?}");
        }
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
    }
}

/// Runs to the end.
pub(crate) fn run(arguments: &[&str]) -> Run {
    Run::new(nucleus(arguments).output().expect("the binary runs"))
}

/// Runs to the end with text on standard input.
pub(crate) fn run_with_input(arguments: &[&str], input: &str) -> Run {
    let mut command = nucleus(arguments);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    // A program that refuses its arguments may end before it reads; what it says is for the test to judge.
    let _ = child
        .stdin
        .take()
        .expect("piped")
        .write_all(input.as_bytes());
    Run::new(child.wait_with_output().expect("the program ends"))
}

/// A folder of files that goes with the test.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary folder"))
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file; returns its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, content).expect("the temporary folder is writable");
        path.to_str().expect("a temporary path is UTF-8").to_owned()
    }
}

/// A `.npy` file of float32 as numpy writes it; `shape` as in Python, such as `(2, 4)`.
pub(crate) fn npy_f32(shape: &str, values: &[f32]) -> Vec<u8> {
    npy(
        "<f4",
        shape,
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect(),
    )
}

/// A `.npy` file of float16, its elements as bits.
pub(crate) fn npy_f16(shape: &str, bits: &[u16]) -> Vec<u8> {
    npy(
        "<f2",
        shape,
        bits.iter().flat_map(|value| value.to_le_bytes()).collect(),
    )
}

fn npy(descr: &str, shape: &str, elements: Vec<u8>) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    // numpy pads the header so that the elements begin at a multiple of 64.
    let header = format!("{header:<117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(
        u16::try_from(header.len())
            .expect("a short header")
            .to_le_bytes(),
    );
    bytes.extend(header.as_bytes());
    bytes.extend(elements);
    bytes
}

/// What the tests of `generate` continue.
pub(crate) const PROMPT: &str = "Once upon a time";

/// The bundled model's file, for tests that damage it.
pub(crate) const BUNDLED: &[u8] =
    include_bytes!("../../models/little-storyteller/little-storyteller-15m-Q8_0.gguf");

/// `nucleus generate` of a few tokens.
pub(crate) fn generate(flags: &[&str]) -> Run {
    run(&[&["generate", PROMPT, "--max-tokens", "12"], flags].concat())
}

/// The object that `generate --json` prints.
pub(crate) fn generate_json(flags: &[&str]) -> Value {
    generate(&[&["--json"], flags].concat()).json()
}

/// A GGUF file of version 3 with one string key and no tensors.
pub(crate) fn gguf_of_architecture(name: &str) -> Vec<u8> {
    const STRING: u32 = 8;
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes());
    bytes.extend(1_u64.to_le_bytes());
    for (index, text) in ["general.architecture", name].into_iter().enumerate() {
        if index == 1 {
            bytes.extend(STRING.to_le_bytes());
        }
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    bytes
}
