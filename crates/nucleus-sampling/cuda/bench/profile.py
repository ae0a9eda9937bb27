#!/usr/bin/env python3
"""What ncu says of every kernel of the sampler, as a table of Markdown:   profile.py BENCH [ROWS…]

BENCH is bench.cu as a program; ROWS are the sizes of batches (1, 64 and 512 unless told). Each kernel runs alone, with caches flushed before it, at the clocks that
the device has. Of the kernel that takes what the others leave, launches that find nothing to do are told in one line below the table.
"""
import csv
import pathlib
import re
import subprocess
import sys
import tempfile

IDLE_MICROSECONDS = 8  # sample_rows takes less where nothing is left for it
DTYPES = ("f32", "f16", "bf16")
TIME, READ, BANDWIDTH = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__throughput.avg.pct_of_peak_sustained_elapsed"
INSTRUCTIONS, WARPS = "sm__inst_executed.avg.per_cycle_elapsed", "sm__warps_active.avg.pct_of_peak_sustained_active"
REGISTERS, THREADS, BLOCKS = "launch__registers_per_thread", "launch__block_size", "launch__grid_size"
SHARED = ("launch__shared_mem_per_block_dynamic", "launch__shared_mem_per_block_static")
METRICS = [TIME, READ, BANDWIDTH, INSTRUCTIONS, WARPS, REGISTERS, THREADS, BLOCKS, *SHARED]
HEAD = ["chain", "rows", "kernel", "blocks of threads", "KiB shared", "registers", "µs", "MB read", "of the peak bandwidth", "instructions a cycle and multiprocessor", "warps resident"]


def short_name(name):
    """A kernel without its arguments and namespaces; the first number of its template is the logits' type."""
    name = re.sub(r"\([\w: ]+\)(?=\d|true|false)", "", name).replace("(anonymous namespace)::", "").removeprefix("void ")
    name = re.sub(r"\(.*", "", name)
    base, _, arguments = name.partition("<")
    arguments = [argument.strip().rstrip("u") for argument in arguments.rstrip(">").split(",") if argument]
    typed = next((i for i, argument in enumerate(arguments) if argument.isdigit()), None)
    if typed is not None and int(arguments[typed]) < len(DTYPES):
        arguments[typed] = DTYPES[int(arguments[typed])]
    return base.split("::")[-1] + (f"<{', '.join(arguments)}>" if arguments else "")


def profile(bench, rows):
    """The cases of that many rows, and the kernels of each, in the order of their launches."""
    with tempfile.TemporaryDirectory() as directory:
        log = pathlib.Path(directory, "log.csv")
        command = ["ncu", "--clock-control", "none", "--csv", "--page", "raw", "--print-units", "base", "--log-file", log, "--metrics", ",".join(METRICS), bench, "launch", str(rows)]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        lines = [line for line in log.read_text().splitlines() if line.startswith('"')]
    names = [line[len("case "):] for line in said.splitlines() if line.startswith("case ")]
    kernels = [kernel for kernel in csv.DictReader(lines) if kernel["Kernel Name"]]  # the line of units names none
    cases, case = {name: [] for name in names}, iter(names)
    for kernel in kernels:
        if "next_case" in kernel["Kernel Name"]:
            name = next(case)
        else:
            cases[name].append(kernel)
    return cases


def number(kernel, metric):
    return float(kernel[metric].replace(",", "") or 0)


def main():
    bench, sizes = sys.argv[1], [int(rows) for rows in sys.argv[2:]] or [1, 64, 512]
    of = {rows: profile(bench, rows) for rows in sizes}
    print("|", " | ".join(HEAD), "|\n|" + "---|" * len(HEAD))
    idle = []
    for case in of[sizes[0]]:
        for rows in sizes:
            for kernel in of[rows][case]:
                name, time = short_name(kernel["Kernel Name"]), number(kernel, TIME) / 1e3
                if name == "sample_rows" and time < IDLE_MICROSECONDS and len(of[rows][case]) > 1:
                    idle.append(time)
                    continue
                cells = [case, rows, name, f"{number(kernel, BLOCKS):.0f} of {number(kernel, THREADS):.0f}", f"{sum(number(kernel, m) for m in SHARED) / 1024:.0f}",
                         f"{number(kernel, REGISTERS):.0f}", f"{time:.1f}", f"{number(kernel, READ) / 1e6:.1f}", f"{number(kernel, BANDWIDTH):.0f} %",
                         f"{number(kernel, INSTRUCTIONS):.1f}", f"{number(kernel, WARPS):.0f} %"]
                print("|", " | ".join(map(str, cells)), "|")
    if idle:
        print(f"\nsample_rows with nothing to do, {len(idle)} times: {min(idle):.1f} to {max(idle):.1f} µs")


if __name__ == "__main__":
    main()
