#!/usr/bin/env bash
# Every kernel of the decoder under compute-sanitizer, in cases so small that each tool comes to an end:   sanitize.sh [BUILD]
#
# In BUILD (target/sanitize/engine) lie the programs, which are built unless they are there, and what each run said. Tells a line a run, as they end, and at the end which kernels
# each tool has reached; fails if a tool found something, a test failed or a run did not come to an end. NUCLEUS_NVCC: the compiler; SANITIZE_TOOLS, SANITIZE_SECONDS,
# SANITIZE_JOBS: which tools, how long a run may take, and how many go beside each other.
set -uo pipefail
cuda=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-target/sanitize/engine}"
cd "${1:-target/sanitize/engine}" || exit 2
nvcc=("${NUCLEUS_NVCC:-nvcc}" -O3 -lineinfo -gencode=arch=compute_90a,code=sm_90a)
launches=$cuda/../../nucleus-sampling/cuda/tests/launches.cpp

# program NAME FLAGS TEST KERNELS…
# Kernels are C++20. Some tests as such end nvcc 13.0 with an internal error; those that include kernels must be.
program() {
  local name=$1 flags=$2 test=$3 unit objects=()
  [[ -x $name ]] && return
  for unit in "${@:4}"; do
    objects+=("$name.$unit.o")
    "${nvcc[@]}" -std=c++20 $flags -c "$cuda/kernels/$unit.cu" -o "$name.$unit.o" || return
  done
  "${nvcc[@]}" -std=c++$((${#objects[@]} ? 17 : 20)) $flags -cudart static -Xlinker --wrap=cudaLaunchKernelExC -Xlinker --wrap=__cudaLaunchKernel "$cuda/tests/$test.cu" "$launches" "${objects[@]}" -o "$name"
}
program groups "" groups_test &&
  program groups_race -DNUCLEUS_RACECHECK groups_test &&
  program linear "" linear_test linear &&
  program linear_tiles "-DNUCLEUS_RACECHECK -DNUCLEUS_NO_WGMMA" linear_test linear &&
  program attention "" attention_test attention rotary &&
  program attention_race -DNUCLEUS_RACECHECK attention_test attention rotary &&
  program pointwise "" pointwise_test norm activation rotary step || exit 2

rm -f failed ./*.txt
# check TOOL PROGRAM ARGUMENTS…
check() {
  local tool=$1 log options=(--print-limit 20 --error-exitcode 9) code found began=$SECONDS
  log=$(IFS=_ && echo "$*.txt")
  [[ $tool == synccheck ]] && options+=(--num-cuda-barriers 16384)
  timeout -k 5 "${SANITIZE_SECONDS:-120}" compute-sanitizer --tool "$tool" "${options[@]}" "./$2" "${@:3}" >"$log" 2>&1
  code=$?
  found=$(grep -aoE "(ERROR|RACECHECK) SUMMARY: .*" "$log" | tail -1)
  [[ $code == 124 ]] && found="did not come to an end"
  [[ $code == 0 ]] || echo "$*" >>failed
  echo "$*: ${found:-ended with $code}; $((SECONDS - began)) s"
}
# start TOOL PROGRAM ARGUMENTS…: as soon as fewer than SANITIZE_JOBS run
start() {
  while (($(jobs -rp | wc -l) >= ${SANITIZE_JOBS:-4})); do wait -n; done
  check "$@" &
}

tools=${SANITIZE_TOOLS:-memcheck initcheck synccheck racecheck}
for tool in $tools; do # the longest first
  if [[ $tool == racecheck ]]; then
    for type in F32 Q8_0 Q4_K Q6_K; do start racecheck groups_race "$type"; done
    start racecheck linear_tiles wide Q8_0
    start racecheck attention_race tiny
  else
    if [[ $tool == synccheck ]]; then start synccheck attention_race tiny; else start "$tool" attention quick; fi
    start "$tool" groups
    start "$tool" linear tiny
  fi
  start "$tool" linear_tiles tiny # streamed products, and tiles by mma.sync
  start "$tool" pointwise quick
done
wait
for tool in $tools; do
  echo "$tool reached: $(grep -ah "^launched" "$tool"_*.txt | sed -E 's/launched +[0-9]+ times: (void )?//; s/nucleus:://g; s/<.*//' | sort -u | tr '\n' ' ')"
done
[[ ! -e failed ]]
