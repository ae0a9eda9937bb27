//! The worker whose GPU is lost while it streams, for real: a library that is loaded into the process launches a kernel that traps. Needs a GPU
//! and nvcc (`NUCLEUS_NVCC`, or on the path); `just test-gpu` runs it.
#![cfg(all(unix, feature = "cuda"))]

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

mod worker;

const MODEL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
);

/// The library that breaks a context.
fn trap(directory: &Path) -> PathBuf {
    let nvcc = std::env::var_os("NUCLEUS_NVCC").unwrap_or_else(|| "nvcc".into());
    let library = directory.join("libtrap.so");
    let status = Command::new(nvcc)
        .args(["-arch=native", "-shared", "-Xcompiler", "-fPIC", "-o"])
        .arg(&library)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/device_lost/trap.cu"
        ))
        .status();
    assert!(status.expect("nvcc runs").success());
    library
}

/// Ended where the test did not go well.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every stream is told why, `GET /health` answers 503, and the program ends with exit code 1 and one line that says what happened.
#[test]
#[ignore = "needs a GPU"]
fn a_lost_gpu_ends_the_worker() {
    let directory = tempfile::tempdir().expect("a temporary folder");
    let broken = directory.path().join("broken");
    let started = Command::new(env!("CARGO_BIN_EXE_nucleus"))
        .args([
            "serve", "--port", "0", "--device", "cuda:0", "--model", MODEL,
        ])
        .env_remove("NUCLEUS_API_KEY")
        .env("LD_PRELOAD", trap(directory.path()))
        .env("NUCLEUS_TEST_TRAP", &broken)
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut program = Ended(started.expect("the binary runs"));
    let mut lines = BufReader::new(program.0.stderr.take().expect("piped")).lines();
    let address = worker::address(&mut lines);
    let said = std::thread::spawn(move || lines.map_while(Result::ok).collect::<Vec<_>>());

    let endless = r#"{"prompt": "Once upon a time", "ignore_eos": true}"#;
    let mut streams: Vec<_> = (0..6)
        .map(|_| worker::send(&address, "POST /execute", endless))
        .collect();
    let mut line = String::new();
    while line != "event: token\n" {
        line.clear();
        let bytes = streams[0].read_line(&mut line).expect("the stream goes on");
        assert_ne!(bytes, 0, "no token came");
    }
    std::fs::write(&broken, "").expect("the temporary folder is writable");
    // Whoever came early enough may have had all its tokens.
    let mut told = 0;
    for stream in &mut streams {
        let mut rest = String::new();
        stream.read_to_string(&mut rest).expect("the stream ends");
        let is_told = rest.contains("event: error") && rest.contains("\"device_lost\"");
        assert!(is_told || rest.contains("event: end"), "{rest}");
        told += usize::from(is_told);
    }
    assert!(told > 0, "every stream had ended before the GPU was lost");
    let mut health = String::new();
    worker::send(&address, "GET /health", "")
        .read_to_string(&mut health)
        .expect("an answer");
    assert!(health.starts_with("HTTP/1.1 503"), "{health}");
    assert!(health.contains("the device is lost"), "{health}");

    let begun = Instant::now();
    let status = program.0.wait().expect("the worker ends");
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(begun.elapsed() < Duration::from_secs(30));
    let said = said.join().expect("the reader ends");
    let error = said.iter().find(|line| line.contains("error: "));
    assert!(
        error.is_some_and(|line| line.contains("the device is lost")),
        "{said:?}"
    );
    println!(
        "{told} of 6 streams were told; {}",
        error.map_or("", String::as_str)
    );
}
