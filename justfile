# The commands of this repository; `just` lists them. Checks are the steps of `.ci/run`, so that both run the same.

_default:
    @just --list

# Format, lints, documentation, dependencies: everything but the tests.
check:
    .ci/run fmt no-c lint doc deny

# All tests of the workspace.
test:
    .ci/run tests

# The API documentation, with warnings as errors.
doc:
    .ci/run doc

# The worker on http://127.0.0.1:8080; flags are passed on.
serve *flags:
    cargo run --release -- serve {{ flags }}

# llama.cpp on the bundled model: the tokens that tests compare with, and its decoding speed (peers/README.md).
peers python="python3":
    {{ python }} peers/llama_cpp_tokens.py
    {{ python }} peers/llama_cpp_greedy.py
    {{ python }} peers/llama_cpp_speed.py

# Times of the sampler on one core, of batches on all, and of llama.cpp's chains on the same rows (peers/sampling/README.md).
bench python="python3":
    taskset -c 0 cargo bench -p nucleus-sampling --bench sampling
    cargo bench -p nucleus-sampling --bench sampling -- "batch of"
    cargo bench -p nucleus-sampling --bench sampling -- R3.1
    cd peers/sampling && {{ python }} llama_cpp_speed.py

# The sampler's fixtures, made anew by its peers' own code; `wheel` is an unpacked wheel of vLLM (peers/sampling/README.md).
peers-sampling wheel python="python3":
    cd peers/sampling && {{ python }} transformers_processors.py
    cd peers/sampling && {{ python }} vllm_ops.py {{ absolute_path(wheel) }}
    cd peers/sampling && {{ python }} llama_cpp_chain.py
    cargo test -p nucleus-sampling --test peers -- --include-ignored --nocapture

# The sampler's long runs: 10^8 draws, rows of full size, tens of thousands of requests; then broken sources, then fuzzing (docs/testing.md).
nightly: && mutants fuzz
    cargo test -p nucleus-sampling -- --ignored --nocapture --skip write_the_corpus

# Breaks the sampler's sources line by line: each change must make a test fail. The working tree must be clean.
mutants python="python3":
    {{ python }} crates/nucleus-sampling/tests/mutants/break_source.py

# Any request on any row, and any text as a request, for so many seconds each. Needs `cargo install cargo-fuzz`.
fuzz seconds="600":
    cargo fuzz run --sanitizer none sample -- -max_total_time={{ seconds }} -max_len=1024 -len_control=0
    cargo fuzz run --sanitizer none params_json -- -max_total_time={{ seconds }} -max_len=600 -dict=fuzz/params_json.dict

# The lines of the sampler that its quick tests reach, at least 95 % of them. Needs `cargo install cargo-tarpaulin`.
coverage:
    cargo tarpaulin -p nucleus-sampling --engine llvm --timeout 1800 --include-files 'crates/nucleus-sampling/src/*' --fail-under 95 --out Html --output-dir target/coverage

# NVIDIA's compiler from PyPI, for the feature `cuda`; prints what to set. No GPU, driver or root needed.
cuda-toolkit:
    @crates/nucleus-sampling/cuda/toolkit.sh target/cuda-toolkit

# On this machine's GPU: the sampler against the host's, bit for bit, and the decoder against the CPU's, transformers' and itself.
test-gpu:
    cargo test -p nucleus-sampling --features cuda --test cuda -- --include-ignored
    cargo test -p nucleus-engine --features cuda --test fixtures --test invariance --test device -- --ignored --nocapture
    cargo test -p nucleus-engine --features cuda --test device_memory -- --ignored --nocapture
    cargo test --features cuda --test device_lost -- --ignored --nocapture

# On this machine's GPU, with compute-sanitizer of the CUDA toolkit: the kernels under memcheck, initcheck, synccheck and racecheck (docs/testing.md).
sanitize-gpu:
    NUCLEUS_CUDA_CORPUS={{ justfile_directory() }}/target/cuda-corpus.bin cargo test -p nucleus-sampling --test cuda_corpus -- --ignored
    crates/nucleus-sampling/cuda/tests/sanitize.sh target/cuda-corpus.bin target/sanitize/sampling
    crates/nucleus-engine/cuda/tests/sanitize.sh target/sanitize/engine

# On this machine's GPU: the sampler's kernels with warps that wait at random (docs/kernel.md).
delays-gpu:
    NUCLEUS_CUDA_CORPUS={{ justfile_directory() }}/target/cuda-corpus.bin cargo test -p nucleus-sampling --test cuda_corpus -- --ignored
    crates/nucleus-sampling/cuda/tests/delays.sh target/cuda-corpus.bin target/delays/sampling

# The sampler's tests on aarch64 with NEON, emulated. Needs `rustup target add aarch64-unknown-linux-musl` and qemu-aarch64.
test-aarch64 *args:
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER="$(rustc --print sysroot)/lib/rustlib/$(rustc --print host-tuple)/bin/rust-lld" \
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_RUNNER=qemu-aarch64 \
    cargo test -p nucleus-sampling --target aarch64-unknown-linux-musl {{ args }}

# Everything that must pass before a change lands.
ci:
    .ci/run
