#!/usr/bin/env bash
# Every kernel of the decoder under compute-sanitizer, in cases so small that each tool comes to an end:   sanitize.sh [BUILD]
#
# In BUILD (target/sanitize/engine) lie the programs, which are built unless they are there, and what each run said. Tells a line a run; fails if a tool found something,
# a test failed or a run did not come to an end. NUCLEUS_NVCC: the compiler; SANITIZE_TOOLS, SANITIZE_SECONDS: which tools, and how long a run may take.
set -uo pipefail
cuda=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${1:-target/sanitize/engine}"
cd "${1:-target/sanitize/engine}" || exit 2
nvcc=("${NUCLEUS_NVCC:-nvcc}" -O3 -lineinfo -std=c++20 -cudart static -gencode=arch=compute_90a,code=sm_90a)

# program NAME FLAGS SOURCES…
program() {
  local name=$1 flags=$2
  [[ -x $name ]] || "${nvcc[@]}" $flags "${@:3}" -o "$name"
}
k=$cuda/kernels t=$cuda/tests
program groups "" "$t/groups_test.cu" &&
  program groups_race -DNUCLEUS_RACECHECK "$t/groups_test.cu" &&
  program linear "" "$t/linear_test.cu" "$k/linear.cu" &&
  program linear_tiles "-DNUCLEUS_RACECHECK -DNUCLEUS_NO_WGMMA" "$t/linear_test.cu" "$k/linear.cu" &&
  program attention "" "$t/attention_test.cu" "$k/attention.cu" "$k/rotary.cu" &&
  program attention_race -DNUCLEUS_RACECHECK "$t/attention_test.cu" "$k/attention.cu" "$k/rotary.cu" &&
  program pointwise "" "$t/pointwise_test.cu" "$k/norm.cu" "$k/activation.cu" "$k/rotary.cu" || exit 2

failed=0
# check TOOL PROGRAM ARGUMENTS…
check() {
  local tool=$1 log options=(--print-limit 20 --error-exitcode 9) code found
  log=$(IFS=_ && echo "$*.txt")
  [[ $tool == synccheck ]] && options+=(--num-cuda-barriers 16384)
  timeout -k 5 "${SANITIZE_SECONDS:-120}" compute-sanitizer --tool "$tool" "${options[@]}" "./$2" "${@:3}" >"$log" 2>&1
  code=$?
  found=$(grep -aoE "(ERROR|RACECHECK) SUMMARY: .*" "$log" | tail -1)
  [[ $code == 124 ]] && found="did not come to an end"
  [[ $code == 0 ]] || failed=1
  echo "$*: ${found:-ended with $code}"
}

for tool in ${SANITIZE_TOOLS:-memcheck initcheck synccheck racecheck}; do
  if [[ $tool == racecheck ]]; then
    for type in F32 Q8_0 Q4_K Q6_K; do check racecheck groups_race "$type"; done
    check racecheck attention_race tiny
  else
    check "$tool" groups
    check "$tool" linear tiny
    if [[ $tool == synccheck ]]; then check synccheck attention_race tiny; else check "$tool" attention quick; fi
  fi
  check "$tool" linear_tiles tiny # streamed products, and tiles by mma.sync
  check "$tool" pointwise quick
done
exit $failed
