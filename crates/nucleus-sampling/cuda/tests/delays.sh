#!/usr/bin/env bash
# Every kernel of the sampler with warps that wait at random (delays.cuh), so that warps, blocks and launches come and go in any order:   delays.sh CORPUS [BUILD]
#
# CORPUS is what tests/cuda_corpus.rs writes; `-`: the program is built, and nothing is run. In BUILD (target/delays/sampling) lie the program, which is built unless it is there, and
# what each run said. Tells a line a run, as they end, and at the end which kernels were reached; fails if a result differed, a run did not come to an end or a kernel was not
# reached. NUCLEUS_NVCC: the compiler; DELAYS_ROUNDS, DELAYS_SECONDS, DELAYS_JOBS: how often each part is gone through, no two times with the same waits, how long a run may take, and
# how many go beside each other.
set -uo pipefail
corpus=$1
cuda=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${2:-target/delays/sampling}"
build=$(cd "${2:-target/delays/sampling}" && pwd)
rounds=${DELAYS_ROUNDS:-4}
source "$cuda/tests/programs.sh"
program gpu_test_delays "-include $cuda/tests/delays.cuh" || exit 2
[[ $corpus == - ]] && exit

rm -f "$build"/failed "$build"/*.txt
# check BATCHES PART [ROUNDS]
check() {
  local log="$build/${1//\//_}_$2.txt" code began=$SECONDS
  timeout -k 5 "${DELAYS_SECONDS:-120}" "$build/gpu_test_delays" "$corpus" "$1" "$2" "${3:-$rounds}" >"$log" 2>&1
  code=$?
  [[ $code == 0 ]] || echo "$*" >>"$build/failed"
  echo "vocabularies $1, $2: $([[ $code == 124 ]] && echo "did not come to an end" || grep -a " differ, " "$log" || echo "ended with $code"); $((SECONDS - began)) s"
}
# start BATCHES PART [ROUNDS]: as soon as fewer than DELAYS_JOBS run
start() {
  while (($(jobs -rp | wc -l) >= ${DELAYS_JOBS:-4})); do wait -n; done
  check "$@" &
}

# A part is a cluster and flags (sampling_config.h), copies of the batch, rows, how they are sorted.
start 0-0 flat 1
for type in 0 1 2; do start 0-0 "deviation,$type,3001,60"; done
for type in 0 1 2; do for shape in 40000,40 40000,70 3001,140; do start 0-0 "chains,$type,$shape"; done; done # short lists cut in many ways, edited and not: spread, relay
for type in 0 1 2; do for shape in 151936,20 40000,70 3001,140 111,13; do start 0-0 "drawn,$type,$shape"; start 0-0 "top_p,$type,$shape"; done; done
for type in 0 1 2; do for shape in 151936,20 151936,40 40000,70 3001,140 111,13; do start 0-0 "edited,$type,$shape"; done; done # draws with edits by id
for part in 0,4 0,36 0,4,9,25 0,4,9,35 0,4,9,60 0,52,9,25; do start 32000-32000/6 "$part"; done # spread: clusters of 8, 4, 3 and 2, without a launch behind it, and with
for part in 0,0,9,25,1 0,0,9,60,1 0,0,20,150,1 0,32,9,60,1 0,32,20,150,1; do start 32000-32000/6 "$part"; done # rows sorted by kind: launches beside each other
for vocabulary in 111-111 5-5 3000-3000/6 6000-6000/6; do
  for part in 0,0,20,300,1 0,4096,20,300,2 0,64,20,300,1; do start "$vocabulary" "$part"; done
  for part in 0,4,20,300 0,52,20,300 0,68,20,300; do start "$vocabulary" "$part"; done # relay
done
for part in 0,0 0,2 0,3 0,8 0,264 0,776 0,4104 0,4106 0,64 0,128 0,72; do # held and whole rows, draws, programs by sums, few ids
  start 1-111 "$part"
  start 3000-6000/8 "$part"
done
for part in 1,1 2,1 4,1 8,1 8,1025 2,2 4,0; do # clusters, and their exact path
  start 1-111 "$part"
  start 3000-6000/4 "$part"
done
for part in top single processed,0 processed,1 processed,4 late; do start 1-111 "$part"; done
start 1-111 portable # without clusters
start 3000-6000/4 portable
start 32000-32000/6 top
start 111-111/6 crowds
wait

names=$(reached "$build"/*.txt)
echo "reached: $names"
unreached "$names" | tee -a "$build/failed"
[[ ! -s "$build/failed" ]]
