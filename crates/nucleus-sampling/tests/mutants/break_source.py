"""Breaks the sampler's sources one line at a time and runs the tests: every change must make one fail.

    python3 crates/nucleus-sampling/tests/mutants/break_source.py [NAME…]

A file is changed in place and restored, so the working tree must be clean. Prints a table of what noticed each change; ends with 1 if
something was noticed by nothing, or if a line to be changed is no longer there.
"""

import pathlib
import subprocess
import sys
import time

CRATE = pathlib.Path(__file__).resolve().parents[2]

# The fewest tests first: a change that one run notices is not given to the next.
RUNS = [
    ["--lib", "--test", "corpus"],
    ["--test", "draws", "--test", "fallback"],
    ["--test", "parity"],
    ["--test", "oracle", "--test", "peers", "--test", "extremes", "--test", "half_precision"],
]

# (name, file below src, old, new); the old text must be there exactly once.
MUTANTS = [
    # Shared arithmetic: only what does not follow from the code can notice.
    ("weights of T x 1.05", "fixed.rs", "(LOG2_E / f64::from(temperature)) as f32", "(LOG2_E / (f64::from(temperature) * 1.05)) as f32"),
    ("a coefficient of 2^f", "fixed.rs", "    0.240_226_54,", "    0.240_226_51,"),
    ("nine rounds of Philox", "random.rs", "for _ in 0..ROUNDS", "for _ in 1..ROUNDS"),
    # The fast sampler's draw.
    ("top 80 % of the mass", "cpu/choose.rs", "fixed::mulhi64(uniform, mass.total)", "fixed::mulhi64(uniform, mass.total / 5 * 4)"),
    ("a listed draw by rank", "cpu/choose.rs", "sort_unstable_by_key(|place| keys[*place as usize].id())", "sort_unstable_by_key(|place| *place)"),
    (">= for > in the draw", "cpu/cdf.rs", "        sum > target", "        sum >= target"),
    (">= for > in the draw of blocks", "cpu/cdf.rs", "        before > target", "        before >= target"),
    # Order and ties.
    ("higher ids first", "cpu/key.rs", "<< 32 | u64::from(id))", "<< 32 | u64::from(!id))"),
    ("-0 below +0", "cpu/key.rs", "(logit + 0.0).to_bits()", "logit.to_bits()"),
    ("top_k keeps one more", "cpu/select.rs", "            keys.truncate(k);", "            keys.truncate(k + 1);"),
    ("a maximum at a cut counts", "cpu/select.rs", "*bound > lowest)", "*bound >= lowest)"),
    # Thresholds.
    ("> for >= in top_p", "cpu/prefix.rs", "        sum >= target", "        sum > target"),
    ("> for >= in epsilon", "cpu/select.rs", "mass.scale.weight(logit) >= least", "mass.scale.weight(logit) > least"),
    ("> for >= in mirostat 2", "cpu/select.rs", "mass.scale.log2_q16(logit) >= least", "mass.scale.log2_q16(logit) > least"),
    ("< for <= in typical_p", "cpu/listed.rs", "above <= below", "above < below"),
    ("> for >= in what a band holds", "cpu/kernels.rs", "if *logit >= band.low && *logit < band.high", "if *logit > band.low && *logit < band.high"),
    ("an equal too few at a cut", "cpu/band.rs", "place <= last.id()", "place < last.id()"),
    ("every equal at a cut", "cpu/band.rs", "*logit > last.logit() ||", "*logit >= last.logit() ||"),
    ("XTC's coin is biased", "cpu/run.rs", "self.random(Purpose::Xtc) >> 32 < chance", "self.random(Purpose::Xtc) >> 33 < chance"),
    # Edits.
    ("repetition multiplies all", "cpu/history.rs", "logit / repetition", "logit * repetition"),
    ("one rounding for two penalties", "cpu/history.rs", "repeated - frequency * number as f32 - presence", "repeated - (frequency * number as f32 + presence)"),
    ("DRY's mirror image", "cpu/history.rs", ".min(end - low);", ".min(end - low + 1);"),
    ("bits of a mask reversed", "cpu/edits.rs", "word >> bit & 1 == 1", "word >> (31 - bit) & 1 == 1"),
    ("an edited maximum is kept", "cpu/edits.rs", "if edits.iter().any(|edit| edit.original == raw)", "if edits.iter().any(|edit| edit.original > raw)"),
    # Instructions.
    ("no doubt about a sum", "cpu/kernels.rs", "sum.to_bits() & 0x1FFF_FFFF == 0x1000_0000", "sum.to_bits() & 0x1FFF_FFFF == 0x1000_0001"),
    ("vectors: the weightless", "cpu/avx2.rs", "split::<24>(group(vectors), scale, -SURPLUS)", "split::<24>(group(vectors), scale, -SURPLUS + 1)"),
    # Log-probabilities.
    ("raw log-probabilities without the sum", "cpu/logprob.rs", "- self.max - self.log_sum", "- self.max"),
]


def tests(run):
    """The first binary of a run that fails, or None."""
    command = ["cargo", "test", "-p", "nucleus-sampling", *run]
    done = subprocess.run(command, cwd=CRATE, capture_output=True, text=True)
    if done.returncode == 0:
        return None
    if "could not compile" in done.stderr:
        sys.exit(done.stderr)
    failed = [line.split("`")[1] for line in done.stderr.splitlines() if "to rerun pass `" in line]
    return failed[0].removeprefix("-p nucleus-sampling --").replace("test ", "", 1)


def noticed_by(file, old, new):
    path = CRATE / "src" / file
    source = path.read_text()
    if source.count(old) != 1:
        return f"not applied: {source.count(old)} places hold {old!r}"
    path.write_text(source.replace(old, new))
    try:
        return next((name for run in RUNS if (name := tests(run))), None)
    finally:
        path.write_text(source)


def main():
    wanted = sys.argv[1:]
    missed = 0
    print("| change | file | noticed by | s |\n|---|---|---|---|", flush=True)
    for name, file, old, new in MUTANTS:
        if wanted and name not in wanted:
            continue
        start = time.monotonic()
        noticed = noticed_by(file, old, new)
        missed += noticed is None or noticed.startswith("not applied")
        print(f"| {name} | {file} | {noticed or 'NOTHING'} | {time.monotonic() - start:.0f} |", flush=True)
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
