//! With the feature `cuda`, compiles the kernels of `cuda/kernels` with nvcc into a static library. nucleus-sampling, whose feature `cuda` is on too
//! then, links the CUDA runtime. Without the feature, nothing is compiled. What can be set: see `nvcc.rs`.

#[path = "../nucleus-sampling/build/nvcc.rs"]
mod nvcc;

use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=../nucleus-sampling/build");
    if nvcc::is_wanted()
        && let Err(error) = build()
    {
        println!("cargo::error={error}");
    }
}

fn build() -> Result<(), String> {
    let sources = kernels().map_err(|error| format!("cuda/kernels cannot be read: {error}"))?;
    nvcc::compile(&nvcc::Library {
        name: "nucleus_engine_kernels",
        portable: &[],
        sources: &sources,
        flags: &["--threads=0", "-Icuda/include"],
    })?;
    Ok(())
}

/// The sources, in an order that does not change.
fn kernels() -> std::io::Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in std::fs::read_dir("cuda/kernels")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}
