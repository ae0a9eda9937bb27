//! With the feature `cuda`, compiles the kernels of `cuda/kernels` with nvcc and links them with the CUDA runtime, both statically: the binary starts on a
//! machine without a driver. Without the feature, nothing is compiled. What can be set: see `build/nvcc.rs`.

#[path = "build/nvcc.rs"]
mod nvcc;

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=build");
    if nvcc::is_wanted()
        && let Err(error) = build()
    {
        println!("cargo::error={error}");
    }
}

fn build() -> Result<(), String> {
    let source = |unit: &str| PathBuf::from(format!("cuda/kernels/{unit}.cu"));
    let portable = ["portable", "top", "config_fields", "device"].map(source);
    let units = [
        "sampling",
        "relay",
        "spread",
        "whole",
        "draw",
        "few",
        "cuts",
        "sums",
        "top_processed",
    ]
    .map(source);
    let compiler = nvcc::compile(&nvcc::Library {
        name: "nucleus_sampling_kernels",
        portable: &portable,
        sources: &units,
        // Half the machine's threads of compilation would not be used by one translation unit.
        flags: &["--fmad=false", "-split-compile=0"],
    })?;
    for directory in nvcc::runtime_directories(&compiler) {
        println!("cargo::rustc-link-search=native={}", directory.display());
    }
    println!("cargo::rustc-link-lib=static=cudart_static");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        // The runtime finds the driver with dlopen; nvcc's registration code is C++.
        for library in ["dl", "rt", "pthread", "stdc++"] {
            println!("cargo::rustc-link-lib=dylib={library}");
        }
    }
    Ok(())
}
