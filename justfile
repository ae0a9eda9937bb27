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

# Everything that must pass before a change lands.
ci:
    .ci/run
