#!/usr/bin/env bash
# Every kernel of the sampler under compute-sanitizer, in cases so small that each tool comes to an end:   sanitize.sh CORPUS [BUILD]
#
# CORPUS is what tests/cuda_corpus.rs writes; `-`: the programs are built, and nothing is run. In BUILD (target/sanitize/sampling) lie the programs, which are built unless they are
# there, and what each run said. Tells a line a run, as they end, and at the end which kernels each tool has reached; fails if a tool found something, a result differed, a run did
# not come to an end or a tool did not reach a kernel. NUCLEUS_NVCC: the compiler; SANITIZE_TOOLS, SANITIZE_SECONDS, SANITIZE_JOBS: which tools, how long a run may take, and how
# many go beside each other.
# Launches do not overlap, since racecheck and initcheck cannot follow that; tests/gpu_test.cu has what overlapping launches need (`late`).
set -uo pipefail
corpus=$1
cuda=$(cd "$(dirname "$0")/.." && pwd)
mkdir -p "${2:-target/sanitize/sampling}"
build=$(cd "${2:-target/sanitize/sampling}" && pwd)
seconds=${SANITIZE_SECONDS:-120} # a run may take
tools=${SANITIZE_TOOLS:-racecheck synccheck initcheck memcheck}
export LAUNCHES=apart
source "$cuda/tests/programs.sh"
program gpu_test && program gpu_test_race "-lineinfo -DNUCLEUS_RACECHECK" || exit 2
[[ $corpus == - ]] && exit

# What racecheck says of right code, by the functions whose accesses it names; anything else fails. tests/tools_test.cu shows the same of the smallest programs.
known=(
  # A cluster's blocks add in the memory of the first, which ends when its barrier has counted what each sent afterwards; the tool asks for a barrier of the cluster (`counted`).
  "a block that may have ended / spread::add_in"
)
# The functions of each message of a log: `this / that`
messages() {
  awk 'function name(s) { sub(/.* access at /, "", s); sub(/^=+ +at /, "", s); sub(/\+0x.*/, "", s); while (gsub(/<[^<>]*>/, "", s)); sub(/\(.*/, "", s); sub(/.* /, "", s); gsub(/nucleus::/, "", s); return s }
    /Race reported between/ { first = name($0) }
    /^=+ +and .* access at / { print first " / " name($0) }
    /Potential invalid/ { ended = 1 }
    ended && /^=+ +at / { ended = 0; print "a block that may have ended / " name($0) }' "$1"
}

rm -f "$build"/failed "$build"/*.txt
# check TOOL BATCHES PART
check() {
  local tool=$1 log="$build/$1_${2//\//_}_$3.txt" options=(--print-limit 1000 --error-exitcode 9) program=gpu_test code found began=$SECONDS unknown
  [[ $tool == synccheck ]] && options+=(--num-cuda-barriers 16384)
  [[ $tool == memcheck || $tool == initcheck ]] || program=gpu_test_race
  timeout -k 5 "$seconds" compute-sanitizer --tool "$tool" "${options[@]}" "$build/$program" "$corpus" "$2" "$3" >"$log" 2>&1
  code=$?
  found=$(grep -aoE "(ERROR|RACECHECK) SUMMARY: .*" "$log" | tail -1)
  if [[ $code == 9 && $tool == racecheck ]] && grep -q ", 0 differ" "$log"; then
    unknown=$(messages "$log" | grep -vxF "$(printf "%s\n" "${known[@]}")" | sort | uniq -c)
    found+=${unknown:+; not known: $unknown}
    # Messages of a kind that is not looked at are not known either.
    [[ ! $unknown && $found == *" $(grep -acE "Race reported between|Potential invalid" "$log") hazards displayed"* ]] && found+=", all known" code=0
  fi
  [[ $code == 124 ]] && found="did not come to an end"
  [[ $code == 0 ]] || echo "$*" >>"$build/failed"
  echo "$tool, vocabularies $2, $3: ${found:-ended with $code}; $(grep -aoE "^[0-9]+ results|[0-9]+ of drawn rows|[0-9]+ top tokens, [0-9]+ differ" "$log" | tr '\n' ' ')$((SECONDS - began)) s"
}
# start TOOL BATCHES PART: as soon as fewer than SANITIZE_JOBS run
start() {
  while (($(jobs -rp | wc -l) >= ${SANITIZE_JOBS:-4})); do wait -n; done
  check "$@" &
}

# What reaches every kernel, the longest runs first. A part is a cluster and flags (sampling_config.h), copies of the batch, rows, how they are sorted. racecheck, which takes a minute for a few
# blocks, gets a row at a time.
for tool in $tools; do
  rows=1,20 batches=/4 spread=/3 drawn=40000,20 cuts="0,40000,20 1,40000,20 2,40000,20" edited="0,40000,20 1,40000,20 2,40000,20" sorted=9,140 single=single
  # racecheck: each form of the kernel, of a type.
  [[ $tool == racecheck ]] && rows=1,1 batches=/1 spread=/1 drawn=3001,3 cuts="0,3001,1,1,0 1,3001,1,1,1 2,3001,1,1,2 0,3001,1,1,3 1,3001,1,1,4 2,3001,1,1,5" edited="0,3001,3,1,1 2,3001,3,1,1" sorted=1,6 single=single,1
  start "$tool" 32000-32000$spread 0,4,1,1                                                  # spread, a cluster of 8; for racecheck and synccheck of 2
  for type in 0 1 2; do start "$tool" 0-0 "drawn,$type,$drawn"; done                        # draws, by one team and by two, one row after another
  for cut in $cuts; do start "$tool" 0-0 "top_p,$cut"; done                                 # the same with lists, and what is left of them
  for shape in $edited; do start "$tool" 0-0 "edited,$shape"; done                          # the same with edits by id, of logits as they are and widened
  start "$tool" 111-111/2 0,4,9,140                                                         # relay: two rows a block
  for part in 0,0 0,64 0,8 0,776 2,2; do start "$tool" 111-111$batches "$part,$rows"; done # few ids, held rows, whole rows
  for part in 0,0 0,4160; do start "$tool" 111-111$batches "$part,$sorted,1"; done         # rows sorted by kind
  for part in 2,4104,1,20 "0,4106,$rows" "0,3,$rows"; do start "$tool" 111-111/2 "$part"; done # programs by sums: clusters of 2 and of 3; first cuts by clusters of 3
  for part in 1,1 2,1 4,0; do start "$tool" 111-111$batches "$part,$rows"; done            # clusters, and their exact path
  start "$tool" 32000-32000$spread top,1                                                   # likeliest tokens: a cluster of 8, and a block
  for part in top processed,1 processed,2; do start "$tool" 1-5/3 "$part"; done
  for part in 0,8192 4,8192 0,9217; do start "$tool" 111-111$batches "$part,$rows"; done   # without clusters: a block a row, four, and the exact path
  for part in top,20,8192 processed,0,8192; do start "$tool" 1-5/3 "$part"; done
  start "$tool" 6000-6000$batches "0,8,$rows" # rows that keep many tokens
  start "$tool" 1-5/3 "$single"               # the call for one row
  [[ $tool == racecheck ]] && continue
  for type in 0 2; do start "$tool" 0-0 "deviation,$type,3001,20"; done                         # rows that top_n_sigma cuts at a token
  for shape in 0,9008,20 2,3001,140; do start "$tool" 0-0 "chains,$shape"; done                 # short lists cut in many ways, edited and not: spread, relay
  for part in 0,4,9,25 0,4,9,35 0,4,9,60 0,52,1,2; do start "$tool" 32000-32000/3 "$part"; done # spread: clusters of 4, 3 and 2, and its exact path
  for part in 0,0,9,60,1 0,32,9,60,1; do start "$tool" 32000-32000/3 "$part"; done              # rows sorted by kind: spread for bounded ones; with nothing behind them
  start "$tool" 5-5/2 0,52,9,140                                                                # the exact path of relay
  start "$tool" 0-0 flat,0,8187,140                                                             # and what draws from the rest of min_p's
  for type in 0 1 2; do start "$tool" 0-0 "flat,$type,32003,5"; done                            # spread: rows that keep many tokens, or as many as a list holds
  [[ $tool == synccheck ]] && continue
  for part in late,20 crowds,72; do # what is written late, and crowds: every way that a caller's words choose
    start "$tool" 5-5/1 "$part"
    start "$tool" 111-111/1 "$part"
  done
done
wait

for tool in $tools; do
  names=$(reached "$build/$tool"_*.txt)
  echo "$tool reached: $names"
  unreached "$names" | sed "s/^/$tool: /" | tee -a "$build/failed"
done
[[ ! -s "$build/failed" ]]
