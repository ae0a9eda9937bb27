//! Compiling CUDA kernels from a build script: nucleus-sampling's, and nucleus-engine's, which has this file by its path.
//!
//! * `NUCLEUS_NVCC`: the compiler. Otherwise `$CUDA_HOME/bin/nvcc`, `$CUDA_PATH/bin/nvcc`, then nvcc of `PATH`.
//! * `NUCLEUS_CUDA_ARCHS`: compute capabilities, such as `90` or `80,90`. Machine code is made for each, and PTX for the least and the largest, which
//!   other devices compile when they load it. Kernels that need clusters are compiled for those that have them alone; for 9.0 if none has. What runs on
//!   every device is compiled for these, too: its code for devices with clusters is another. Default: see [`ARCHS`].

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A100, RTX 30 and 40, Hopper, and the Blackwell of data centres and of consumers.
const ARCHS: &str = "80,86,89,90,100,120";
/// The oldest that any kernel runs on.
const OLDEST: u32 = 80;
const HOPPER: u32 = 90;
/// Consumer Blackwell, which has clusters, but not the shared memory.
const SMALL: std::ops::Range<u32> = 120..130;

/// A static library of kernels.
pub(crate) struct Library<'a> {
    /// Its name, without `lib` and `.a`.
    pub(crate) name: &'a str,
    /// The sources of what runs on every device, which lie in `cuda`.
    pub(crate) portable: &'a [PathBuf],
    /// The same of kernels that need clusters, the bulk copy engine and 227 KiB of shared memory.
    pub(crate) sources: &'a [PathBuf],
    /// Flags beside those that all kernels have.
    pub(crate) flags: &'a [&'a str],
}

/// Tells cargo when to run the build script again; whether the feature `cuda` is on.
pub(crate) fn is_wanted() -> bool {
    println!("cargo::rerun-if-changed=cuda");
    for variable in [
        "NUCLEUS_NVCC",
        "NUCLEUS_CUDA_ARCHS",
        "CUDA_HOME",
        "CUDA_PATH",
    ] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    env::var_os("CARGO_FEATURE_CUDA").is_some()
}

/// Compiles a library and links it. Returns the compiler.
pub(crate) fn compile(library: &Library<'_>) -> Result<PathBuf, String> {
    let nvcc = find_nvcc()?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let archs = env::var("NUCLEUS_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.to_owned());
    let numbers = numbers(&archs)?;
    if !is_linted() {
        archive(library, &numbers, &nvcc, &out)?;
    }
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    println!(
        "cargo::rustc-env=NUCLEUS_CUDA_ARCHS_BUILT={}",
        numbers.join(",")
    );
    println!("cargo::rustc-link-search=native={}", out.display());
    println!("cargo::rustc-link-lib=static={}", library.name);
    Ok(nvcc)
}

/// Whether clippy reads the crate, which links nothing: compiling kernels for it takes minutes, and cargo keeps what it builds apart from all else.
fn is_linted() -> bool {
    env::var_os("RUSTC_WORKSPACE_WRAPPER")
        .is_some_and(|wrapper| Path::new(&wrapper).file_stem() == Some(OsStr::new("clippy-driver")))
}

/// Makes the library's file in `out`.
fn archive(library: &Library<'_>, numbers: &[u32], nvcc: &Path, out: &Path) -> Result<(), String> {
    let mut objects = Vec::new();
    let with_clusters = with_clusters(numbers);
    for (sources, targets) in [
        (library.portable, everywhere(numbers, &with_clusters)),
        (
            library.sources,
            targets(&with_clusters, &ends(&with_clusters)[1..]),
        ),
    ] {
        if sources.is_empty() {
            continue;
        }
        let mut command = Command::new(nvcc);
        command
            .args(["-O3", "-std=c++20", "-c", "-Xcompiler=-fPIC"])
            .args(library.flags)
            .args(targets)
            .arg("-odir")
            .arg(out)
            .args(sources);
        run(command)?;
        objects.extend(sources.iter().filter_map(|source| object_of(source, out)));
    }
    let mut command = Command::new(nvcc);
    command
        .args(["-lib", "-o"])
        .arg(out.join(format!("lib{}.a", library.name)))
        .args(objects);
    run(command)
}

/// Where nvcc writes what it makes of a source.
fn object_of(source: &Path, out: &Path) -> Option<PathBuf> {
    let name = Path::new(source.file_name()?);
    Some(out.join(name.with_extension("o")))
}

/// Runs nvcc; its messages are the error.
fn run(mut command: Command) -> Result<(), String> {
    let nvcc = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(|error| format!("{nvcc} cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!(
        "{nvcc} failed:\\n{}",
        String::from_utf8_lossy(&output.stderr).replace('\n', "\\n")
    ))
}

fn find_nvcc() -> Result<PathBuf, String> {
    if let Some(path) = env::var_os("NUCLEUS_NVCC") {
        let path = PathBuf::from(path);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(format!(
                "NUCLEUS_NVCC is {}, which is no file",
                path.display()
            ))
        };
    }
    let homes = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(env::var_os)
        .map(|home| Path::new(&home).join("bin"));
    let paths = env::var_os("PATH").unwrap_or_default();
    homes
        .chain(env::split_paths(&paths))
        .map(|directory| directory.join("nvcc"))
        .find(|path| path.is_file())
        .ok_or_else(|| {
            "the feature `cuda` needs NVIDIA's compiler, nvcc 12.8 or newer, and none was found. Install the CUDA toolkit and set CUDA_HOME, or run \
             `just cuda-toolkit`, which fetches the compiler alone and prints what to set; or set NUCLEUS_NVCC to the compiler."
                .to_owned()
        })
}

/// The compute capabilities of a list; at least one.
fn numbers(archs: &str) -> Result<Vec<u32>, String> {
    let mut numbers = Vec::new();
    for part in archs.split([',', ';', ' ']).filter(|part| !part.is_empty()) {
        let number: u32 = part.trim_start_matches("sm_").parse().map_err(|_| {
            format!("NUCLEUS_CUDA_ARCHS: {part} is no compute capability such as 90")
        })?;
        if number < OLDEST {
            return Err(format!(
                "NUCLEUS_CUDA_ARCHS: {number} is below {OLDEST}, the oldest that is supported"
            ));
        }
        numbers.push(number);
    }
    if numbers.is_empty() {
        return Err("NUCLEUS_CUDA_ARCHS is empty".to_owned());
    }
    Ok(numbers)
}

/// Those of a list that have clusters, and the shared memory that the kernels with clusters take; 9.0 if none has.
fn with_clusters(numbers: &[u32]) -> Vec<u32> {
    let has = |number: &u32| *number >= HOPPER && !SMALL.contains(number);
    let numbers: Vec<u32> = numbers.iter().copied().filter(has).collect();
    if numbers.is_empty() {
        vec![HOPPER]
    } else {
        numbers
    }
}

/// The least and the largest.
fn ends(numbers: &[u32]) -> Vec<u32> {
    let ends = [numbers.iter().min(), numbers.iter().max()];
    ends.into_iter().flatten().copied().collect()
}

/// nvcc's flags for what runs on every device: wherever a kernel that needs clusters runs, from machine code or from PTX, the code that the device takes
/// of these is as new.
fn everywhere(numbers: &[u32], with_clusters: &[u32]) -> Vec<String> {
    let mut all = [numbers, with_clusters].concat();
    let mut of_ptx = [ends(numbers), ends(with_clusters)[1..].to_vec()].concat();
    for list in [&mut all, &mut of_ptx] {
        list.sort_unstable();
        list.dedup();
    }
    targets(&all, &of_ptx)
}

/// nvcc's flags for machine code of some compute capabilities and PTX of others. Machine code for Hopper is that of `90a`, which has Hopper's own
/// instructions.
fn targets(numbers: &[u32], of_ptx: &[u32]) -> Vec<String> {
    let machine_code = numbers.iter().map(|number| {
        let own = if *number == HOPPER { "a" } else { "" };
        format!("-gencode=arch=compute_{number}{own},code=sm_{number}{own}")
    });
    let ptx = of_ptx
        .iter()
        .map(|number| format!("-gencode=arch=compute_{number},code=compute_{number}"));
    machine_code.chain(ptx).collect()
}

/// Where `libcudart_static.a` lies: beside the compiler, in the layouts of the toolkit and of the Python wheels.
#[allow(dead_code, reason = "the runtime is linked once")]
pub(crate) fn runtime_directories(nvcc: &Path) -> Vec<PathBuf> {
    let nvcc = nvcc.canonicalize().unwrap_or_else(|_| nvcc.to_path_buf());
    let Some(home) = nvcc.parent().and_then(Path::parent) else {
        return Vec::new();
    };
    [
        "lib64",
        "lib",
        "targets/x86_64-linux/lib",
        "targets/sbsa-linux/lib",
        "lib/x64",
    ]
    .into_iter()
    .map(|part| home.join(part))
    .filter(|directory| directory.is_dir() && directory.file_name() != Some(OsStr::new("")))
    .collect()
}
