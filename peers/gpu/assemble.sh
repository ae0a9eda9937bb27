#!/usr/bin/env bash
# Collects the peers' GPU samplers from PyPI into one folder (about 15 MB) that a machine with an NVIDIA GPU, PyTorch and Triton needs to run
# bench.py, without a network:   assemble.sh DIR
# FlashInfer's CUDA modules are compiled here, by FlashInfer's own builder, for sm_90a (10 minutes on 2 cores).
# NUCLEUS_NVCC: the compiler; without it the CUDA 13.0 compiler is fetched too. PEERS_PYTHON: a Python that has torch; without it a virtual
# environment is made. PEERS_WHEELS: a folder with wheels that need not be fetched again.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
work=${PEERS_BUILD_DIR:-$dir.build}
mkdir -p "$work/wheels" "$dir/so" "$dir/vllm"
cd "$work"

if [[ -n "${PEERS_WHEELS:-}" ]]; then ln -sf "$PEERS_WHEELS"/*.whl wheels/; fi
target=(--only-binary=:all: --python-version 3.12 --implementation cp
  --platform manylinux_2_31_x86_64 --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64
  --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64)
python3 -m pip download -q --no-deps "${target[@]}" -d wheels flashinfer-python==0.7.2.post1 'apache-tvm-ffi>=0.1.11,<0.2' nvidia-ml-py typing-extensions
python3 -m pip download -q --no-deps -d wheels nvidia-curand
ls wheels/vllm-*.whl >/dev/null 2>&1 ||
  python3 -m pip download -q --no-deps "${target[@]}" --abi cp38 --abi abi3 -d wheels vllm==0.33.0

nvcc=${NUCLEUS_NVCC:-}
if [[ -z "$nvcc" ]]; then
  "$here/../../crates/nucleus-sampling/cuda/toolkit.sh" "$work/toolkit"
  nvcc=$work/toolkit/bin/nvcc
fi
# FlashInfer links against the driver and the shared runtime, which the wheels name otherwise or do not hold.
cuda=$work/cuda
rm -rf "$cuda" && mkdir -p "$cuda/lib64"
home=$(cd "$(dirname "$nvcc")/.." && pwd)
ln -s "$home/bin" "$home/nvvm" "$cuda/"
rm -rf curand && python3 -m zipfile -e wheels/nvidia_curand-*.whl curand
mkdir "$cuda/include"
ln -s "$home"/include/* "$work"/curand/nvidia/*/include/* "$cuda/include/"
ln -s "$home"/lib/* "$cuda/lib64/"
ln -sfn lib64 "$cuda/lib"
ln -sf libcudart.so.13 "$cuda/lib64/libcudart.so"
echo 'void stub(void) {}' | gcc -x c -shared -fPIC - -o "$cuda/lib64/libcuda.so" -Wl,-soname,libcuda.so.1

python=${PEERS_PYTHON:-}
if [[ -z "$python" ]]; then
  python3 -m venv venv
  python=$work/venv/bin/python
  "$python" -m pip install -q torch numpy
fi
"$python" -m pip install -q 'apache-tvm-ffi>=0.1.11,<0.2' ninja filelock nvidia-ml-py einops tabulate requests tqdm packaging

# FlashInfer: the sampling modules alone.
rm -rf full && python3 -m zipfile -e wheels/flashinfer_python-*.whl full
: > full/flashinfer/__init__.py
echo 'from . import env as env
from .core import JitSpec, gen_jit_spec, sm90a_nvcc_flags' > full/flashinfer/jit/__init__.py
CUDA_HOME=$cuda PATH=$cuda/bin:$(dirname "$python"):$PATH PYTHONPATH=$work/full FLASHINFER_CUDA_ARCH_LIST=9.0a \
  FLASHINFER_WORKSPACE_BASE=$work MAX_JOBS=${MAX_JOBS:-2} "$python" - "$dir/so" <<'P'
import shutil, sys
from flashinfer.jit.cake_sampling import gen_cake_sampling_module
from flashinfer.jit.sampling import gen_sampling_module
for name, spec in (("sampling", gen_sampling_module()), ("cake", gen_cake_sampling_module())):
    spec.build(verbose=False)
    shutil.copy(spec.build_dir / f"{spec.name}.so", f"{sys.argv[1]}/{name}.so")
P
rm -rf "$dir/site" && mkdir -p "$dir/site/flashinfer/data/csrc/cake_sampling/generated" "$dir/site/flashinfer/data/include"
cp full/flashinfer/*.py "$dir/site/flashinfer/"
cp -r full/flashinfer/{jit,trace} "$dir/site/flashinfer/"
cp full/flashinfer/data/csrc/cake_sampling/generated/manifest.json "$dir/site/flashinfer/data/csrc/cake_sampling/generated/"

# vLLM: the sampling kernels (Triton) alone.
rm -rf vllm_full && python3 -m zipfile -e wheels/vllm-*.whl vllm_full
for part in v1/sample v1/worker/gpu/sample model_executor/warmup; do
  mkdir -p "$dir/vllm/$part" && cp -r "vllm_full/vllm/$part/." "$dir/vllm/$part/"
done
cp wheels/apache_tvm_ffi-*.whl wheels/nvidia_ml_py-*.whl wheels/typing_extensions-*.whl "$dir/"
du -sh "$dir"
