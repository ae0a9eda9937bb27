"""Times of llama.cpp's sampler chain on one core, vocab 151,936, as a table.

`apply` is the chain alone. `with array` adds what llama.cpp does before it: one {id, logit, p} per token, written by the loop below (llama.cpp's
own loop is inside a function that needs a model). Each figure is the median, and in brackets the least, of REPEATS runs over a fresh array.
"""

import ctypes
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

import llama_cpp as llama
import numpy as np

import llama_chain
import rows

VOCAB = 151936
REPEATS = 200
# Top-p .9 keeps 7, 7,394 and 21,779 tokens of these.
ROWS = {name: {"shape": shape, "seed": seed, "vocab": VOCAB} for name, shape, seed in (("peaked", "peaked", 5), ("wide", "peaked", 1), ("bell", "bell", 1))}
CHAINS = {
    "top-k 40, top-p .95, min-p .05, T .8, dist": {"top_k": 40, "top_p": 0.95, "min_p": 0.05, "temperature": 0.8},
    "top-p .9, dist": {"top_p": 0.9},
    "T .8, dist": {"temperature": 0.8},
    "top-p .9 alone": {"top_p": 0.9, "dist": False},
}
FILL = """
struct candidate { int id; float logit; float p; };
void fill(struct candidate *out, const float *logits, int count) {
    for (int i = 0; i < count; i++) out[i] = (struct candidate){i, logits[i], 0.0f};
}
"""


def compiled_fill():
    """The loop that writes the candidate array, compiled with the system's C compiler."""
    folder = pathlib.Path(tempfile.mkdtemp())
    (folder / "fill.c").write_text(FILL)
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", folder / "fill.so", folder / "fill.c"], check=True)
    return ctypes.CDLL(str(folder / "fill.so")).fill


def samplers(params):
    """The chain with only the samplers that act."""
    order = [("top_k", "top_k"), ("top_p", "top_p"), ("min_p", "min_p"), ("temperature", "temperature")]
    for name, key in order:
        if key in params:
            yield llama_chain.stage(name, params, VOCAB)
    if params.get("dist", True):
        yield llama.llama_sampler_init_dist(llama_chain.SEED)


def measure(params, row, fill):
    """Microseconds of each run: the chain alone, and with the array."""
    alone, whole = [], []
    memory = llama_chain.candidates(row)
    out, logits, count = memory.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p), ctypes.c_int(len(row))
    with llama_chain.Chain(samplers(params)) as chain:
        for _ in range(REPEATS):
            start = time.perf_counter_ns()
            fill(out, logits, count)
            array = llama_chain.array_over(memory)
            middle = time.perf_counter_ns()
            llama.llama_sampler_apply(chain.chain, ctypes.byref(array))
            end = time.perf_counter_ns()
            alone.append((end - middle) / 1e3)
            whole.append((end - start) / 1e3)
    return alone, whole, array.size


def cell(times):
    return f"{statistics.median(times):,.0f} ({min(times):,.0f})"


if __name__ == "__main__":
    os.sched_setaffinity(0, {0})
    fill = compiled_fill()
    print(f"{llama_chain.VERSION}, load {os.getloadavg()[0]:.2f}, {REPEATS} runs, µs: median (least)\n")
    print("| chain | row | kept | apply | with array |\n|---|---|---|---|---|")
    for name, params in CHAINS.items():
        for kind, spec in ROWS.items():
            alone, whole, kept = measure(params, rows.logits(**spec), fill)
            print(f"| {name} | {kind} | {kept:,} | {cell(alone)} | {cell(whole)} |")
