#!/usr/bin/env bash
# Fetches NVIDIA's compiler (CUDA 13.0) from PyPI into a folder, without a driver, a GPU or root:   toolkit.sh DIR
# Prints what to set for `cargo build --features cuda`. Done before: does nothing but that.
set -euo pipefail
dir=$(mkdir -p "$1" && cd "$1" && pwd)
readonly PACKAGES=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)

if [[ ! -x "$dir/bin/nvcc" ]]; then
  wheels=$(mktemp -d)
  trap 'rm -rf "$wheels"' EXIT
  python3 -m pip download -q --no-deps -d "$wheels" "${PACKAGES[@]}"
  for wheel in "$wheels"/*.whl; do python3 -m zipfile -e "$wheel" "$wheels/unpacked"; done
  cp -r "$wheels"/unpacked/nvidia/cu13/. "$dir/"
  # nvcc looks for lib64; the wheels' archives do not keep the executable bits.
  ln -sfn lib "$dir/lib64"
  chmod +x "$dir"/bin/* "$dir"/nvvm/bin/*
fi
echo "export NUCLEUS_NVCC=$dir/bin/nvcc"
