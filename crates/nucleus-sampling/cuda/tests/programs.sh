# Sourced by sanitize.sh and delays.sh, which set $cuda, this crate's folder of that name, and $build: gpu_test in several forms, and what it has reached.
# NUCLEUS_NVCC: the compiler.

# program NAME [FLAGS]: gpu_test with kernels that are compiled with these flags, too, as $build/NAME, unless it is there.
program() {
  local name=$1 nvcc=${NUCLEUS_NVCC:-nvcc} options="--fmad=false -gencode=arch=compute_90a,code=sm_90a" units="$build/$1.units"
  [[ -x "$build/$name" ]] && return
  mkdir -p "$units"
  printf "%s\n" "$cuda"/kernels/*.cu |
    xargs -P "$(nproc)" -I{} sh -c "$nvcc -O3 -std=c++20 $options ${2:-} -c {} -o $units/\$(basename {} .cu).o" &&
    "$nvcc" -O3 -std=c++17 $options -cudart static -Xlinker --wrap=cudaLaunchKernelExC -Xlinker --wrap=__cudaLaunchKernel "$cuda/tests/gpu_test.cu" "$cuda/tests/launches.cpp" "$units"/*.o \
      -o "$build/$name"
}

# reached LOGS…: the kernels that the runs with these logs have launched.
reached() { grep -ah "^launched" "$@" | sed -E 's/launched +[0-9]+ times: (void )?//; s/nucleus:://g' | sort -u | tr '\n' ' '; }

# unreached NAMES: the kernels of the sources that are not among them.
unreached() {
  local kernel
  for kernel in $(cat "$cuda"/kernels/*.cu | sed -nE 's/.*__global__ void (__launch_bounds__\(.*\) )?([a-z_]+)\(.*/\2/p'); do
    [[ " $1" =~ [\ :]$kernel[\ \<] ]] || echo "$kernel was not reached"
  done
}
