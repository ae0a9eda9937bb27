//! llama.cpp's vocabularies, test vectors, chat templates and grammars, fetched once into the target directory (that needs Python's pip and a
//! network). Where they cannot be had, the tests that need them say that they did not run, or fail if `NUCLEUS_LLAMA_CPP_VECTORS` is
//! `required`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What is said where they cannot be fetched.
pub(crate) const NOT_RUN: &str = "not run: llama.cpp's vocabularies cannot be fetched";

/// The folder of the vocabularies, with the grammars in one of it; `None` where they cannot be fetched.
pub(crate) fn models() -> Option<&'static Path> {
    static MODELS: OnceLock<Option<PathBuf>> = OnceLock::new();
    let fetch = || {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("llama.cpp-models");
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/llama_cpp_files/fetch.sh"
        );
        let status = Command::new(script).arg(&folder).status();
        let fetched = status.is_ok_and(|status| status.success());
        let required =
            std::env::var_os("NUCLEUS_LLAMA_CPP_VECTORS").is_some_and(|value| value == "required");
        assert!(
            fetched || !required,
            "llama.cpp's vocabularies are required and cannot be fetched"
        );
        if !fetched {
            return None;
        }
        Some(folder)
    };
    MODELS.get_or_init(fetch).as_deref()
}
