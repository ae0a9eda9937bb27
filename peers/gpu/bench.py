#!/usr/bin/env python3
"""Times Nucleus's kernel beside the peers' samplers on one NVIDIA GPU, from logits to token, in one process on the same logits.

    bench.py --library libnucleus_sampling.so [--peers DIR] [--plane small|full] [--budget SECONDS]

DIR is what assemble.sh made: FlashInfer (rejection and Cake) and vLLM's Triton kernels; without it only PyTorch is a peer. Every figure is the
median of CUDA-graph replays in microseconds a batch; `floor` reads the logits once and takes each row's maximum. Inputs: `peaked` = N(0, 2^2) with
20 tokens raised by 6 to 14; `flat` = N(0, 1). Results: plane.csv (finished cells are not timed again when it exists) and plane.md in $OUT.
"""
import argparse
import contextlib
import csv
import glob
import itertools
import os
import statistics
import subprocess
import sys
import time
import types
from pathlib import Path

import torch
import triton
import triton.language as tl

import nucleus

DEVICE = "cuda"
FIELDS = ["batch", "vocab", "dtype", "kind", "cache", "case", "implementation", "us", "mode"]


@triton.jit
def _read(x, out, vocab, stride, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + row * stride + offsets, mask=offsets < vocab, other=float("-inf")).to(tl.float32)
    tl.store(out + row * tl.num_programs(1) + tl.program_id(1), tl.max(values, 0))


def read_once(logits, out):
    rows, vocab = logits.shape
    _read[(rows, triton.cdiv(vocab, 8192))](logits, out, vocab, logits.stride(0), BLOCK=8192, num_warps=8)


def make(rows, vocab, kind, dtype, seed=0):
    generator = torch.Generator(device=DEVICE).manual_seed(seed)
    logits = torch.randn(rows, vocab, device=DEVICE, generator=generator)
    if kind != "flat":
        logits *= 2.0
        places = torch.randint(0, vocab, (rows, 20), device=DEVICE, generator=generator)
        logits.scatter_add_(1, places, torch.rand(rows, 20, device=DEVICE, generator=generator) * 8 + 6)
    return logits.to(dtype)


def microseconds(function, launches=10, repeats=9):
    """Median time of one call, and how it was run."""
    for _ in range(3):
        function()
    torch.cuda.synchronize()
    try:
        graph = torch.cuda.CUDAGraph()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            for _ in range(launches):
                function()
        run, mode = graph.replay, "graph"
    except Exception:  # a peer that synchronises with the host cannot be captured
        torch.cuda.synchronize()

        def run():
            for _ in range(launches):
                function()

        mode = "eager"
    for _ in range(2):
        run()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) / launches * 1e3)
    return statistics.median(times), mode


class Peers:
    """The peers' functions, as far as they can be loaded."""

    def __init__(self, folder):
        self.flashinfer = self.cake = self.vllm = None
        if folder is None:
            return
        folder = Path(folder).resolve()
        site = folder / "site"
        if not (site / "tvm_ffi").exists():
            wheels = glob.glob(f"{folder}/*.whl")
            subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--target", str(site), *wheels], check=True)
        os.environ.setdefault("FLASHINFER_CUDA_ARCH_LIST", "9.0a")
        sys.path.insert(0, str(site))
        for load in (self._load_vllm, self._load_flashinfer, self._load_cake):
            try:
                load(folder)
            except Exception as error:
                print(f"{load.__name__}: {error!r}"[:300], flush=True)

    def _load_vllm(self, folder):
        """vLLM's sampling kernels without the rest of vLLM, whose modules they import are stood in for."""

        def module(name, path=None, **contents):
            made = types.ModuleType(name)
            made.__dict__.update(contents)
            if path is not None:
                made.__path__ = [str(path)]
            sys.modules[name] = made
            return made

        class Platform:
            def is_cuda(self):
                return True

            def __getattr__(self, name):
                return lambda *args, **kwargs: False

        root = module("vllm", folder / "vllm")
        module("vllm.platforms", current_platform=Platform())
        module("vllm.triton_utils", tl=tl, triton=triton, HAS_TRITON=True, tldevice=None)
        module("vllm.utils", folder / "vllm/utils")
        module("vllm.utils.gpu_sync_debug", gpu_sync_allowed=lambda: contextlib.nullcontext())
        module("vllm.utils.math_utils", next_power_of_2=triton.next_power_of_2, cdiv=triton.cdiv)
        module("vllm.utils.platform_utils", num_compute_units=lambda i=0: torch.cuda.get_device_properties(0).multi_processor_count)
        module("vllm.utils.torch_utils", async_tensor_h2d=None)
        root.envs = module("vllm.envs")
        module("vllm.sampling_params", SamplingParams=object)
        for name in ("model_executor", "v1", "v1/sample", "v1/sample/ops", "v1/worker", "v1/worker/gpu", "v1/worker/gpu/sample"):
            module("vllm." + name.replace("/", "."), folder / "vllm" / name)
        module("vllm.v1.worker.gpu.buffer_utils", UvaBackedTensor=object, StagedWriteTensor=object)
        module("vllm.v1.worker.gpu.sample.logits_processor", folder / "none")
        module("vllm.v1.worker.gpu.sample.logits_processor.interface", LogitsContext=object, LogitsProcessor=object, LogitsProcRequestState=object)
        from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton
        from vllm.v1.worker.gpu.sample.gumbel import apply_temperature, gumbel_sample
        from vllm.v1.worker.gpu.sample.min_p import apply_min_p
        from vllm.v1.worker.gpu.sample.penalties import apply_penalties

        self.vllm = types.SimpleNamespace(top_k_top_p=apply_top_k_top_p_triton, gumbel=gumbel_sample, temperature=apply_temperature,
                                          min_p=apply_min_p, penalties=apply_penalties)

    def _load_flashinfer(self, folder):
        import flashinfer.jit.core as core
        import tvm_ffi

        core.JitSpec.build_and_load = lambda spec, *args, **kwargs: tvm_ffi.load_module(f"{folder}/so/{spec.name}.so")
        import flashinfer.sampling as sampling

        sampling.softmax(torch.randn(2, 1000, device=DEVICE))
        self.flashinfer = sampling

    def _load_cake(self, folder):
        import flashinfer.jit.cake_sampling as jit
        import tvm_ffi

        jit.load_cake_sampling_module = lambda: jit._LOADED.setdefault("m", tvm_ffi.load_module(f"{folder}/so/cake.so"))
        import flashinfer.cake_sampling as cake

        probs = torch.softmax(torch.randn(2, 128256, device=DEVICE), -1)
        cake.top_k_top_p_sampling_from_probs(probs, 50, 0.9)
        self.cake = cake


class Cell:
    """The implementations of every case for one batch of logits."""

    def __init__(self, logits, peers):
        self.logits, self.peers = logits, peers
        rows, vocab = logits.shape
        full = lambda value, dtype=torch.float32: torch.full((rows,), value, dtype=dtype, device=DEVICE)
        self.temperature, self.k, self.p, self.m = full(0.7), full(50, torch.int32), full(0.9), full(0.05)
        self.index = torch.arange(rows, dtype=torch.int32, device=DEVICE)
        self.seeds = torch.arange(rows, dtype=torch.int64, device=DEVICE)
        self.positions = full(7, torch.int64)
        generator = torch.Generator(device=DEVICE).manual_seed(1)
        self.history = torch.randint(0, vocab, (rows, 1024), device=DEVICE, generator=generator)
        self.repetition, self.frequency, self.presence = full(1.1), full(0.2), full(0.2)
        self.zeros = torch.zeros(rows, dtype=torch.int32, device=DEVICE)
        self.counts = self.prompt = None

    def vllm(self, penalties=False, k=None, p=None, m=None):
        ops = self.peers.vllm
        logits = torch.empty(self.logits.shape, dtype=torch.float32, device=DEVICE).copy_(self.logits)
        if penalties:
            ops.penalties(logits, self.index, self.zeros, self.zeros, self.repetition, self.frequency, self.presence, self.prompt, self.counts)
        ops.temperature(logits, self.index, self.temperature)
        if m is not None:
            ops.min_p(logits, self.index, m)
        if k is not None or p is not None:
            logits = ops.top_k_top_p(logits, k, p)
        return ops.gumbel(logits, self.index, self.temperature, self.seeds, self.positions, apply_temperature=False, is_drafting=False)

    def with_counts(self):
        """vLLM's count matrix and prompt bits, made outside the timed part."""
        if self.counts is None:
            rows, vocab = self.logits.shape
            self.counts = torch.zeros(rows, vocab, dtype=torch.int32, device=DEVICE)
            self.counts.scatter_add_(1, self.history[:, 24:], torch.ones_like(self.history[:, 24:], dtype=torch.int32))
            self.prompt = torch.zeros(rows, (vocab + 31) // 32, dtype=torch.int32, device=DEVICE)

    def flashinfer(self, k=False, p=False, m=False, penalties=False):
        sampling = self.peers.flashinfer
        logits = self.logits.float()
        if penalties:
            logits = torch.empty_like(logits).copy_(logits)
            self.peers.vllm.penalties(logits, self.index, self.zeros, self.zeros, self.repetition, self.frequency, self.presence, self.prompt,
                                      self.counts)
        seeds = dict(seed=self.seed, offset=self.offset)
        probs = sampling.softmax(logits, temperature=self.temperature)
        if penalties:
            probs = sampling.top_p_renorm_probs(sampling.top_k_renorm_probs(probs, self.k), self.p)
            return sampling.min_p_sampling_from_probs(probs, self.m, **seeds)
        if k and p:
            return sampling.top_k_top_p_sampling_from_probs(probs, self.k, self.p, filter_apply_order="top_k_first", **seeds)
        if k:
            return sampling.top_k_sampling_from_probs(probs, self.k, **seeds)
        if p:
            return sampling.top_p_sampling_from_probs(probs, self.p, **seeds)
        return sampling.min_p_sampling_from_probs(probs, self.m, **seeds)

    def cake(self, p):
        probs = self.peers.flashinfer.softmax(self.logits.float(), temperature=self.temperature)
        return self.peers.cake.top_k_top_p_sampling_from_probs(probs, self.k, p, top_k_max=50, philox_seed=1, philox_offset=0)

    def torch(self, k=None, p=None, m=None):
        logits = self.logits.float() / 0.7
        vocab = logits.shape[1]
        if p is not None:
            ordered, ids = logits.sort(-1, descending=False)
            if k is not None:
                ordered = ordered.masked_fill(ordered < ordered[:, vocab - k][:, None], -float("inf"))
            below = ordered.softmax(-1).cumsum(-1) <= (1 - p)
            below[:, -1] = False
            logits = torch.empty_like(ordered).scatter_(1, ids, ordered.masked_fill(below, -float("inf")))
        elif k is not None:
            logits = logits.masked_fill(logits < logits.topk(k, -1).values[:, -1:], -float("inf"))
        probs = logits.softmax(-1)
        if m is not None:
            probs = torch.where(probs < m * probs.amax(-1, keepdim=True), torch.zeros_like(probs), probs)
        return probs.div_(torch.empty_like(probs).exponential_(1)).argmax(-1)

    def implementations(self, case):
        """Name and function of each peer that has the case with the same meaning."""
        found = {}
        if case == "greedy":
            return {"torch": lambda: self.logits.argmax(-1)}
        settings = {"temp": {}, "topk50": dict(k=50), "topp.9": dict(p=0.9), "minp.05": dict(m=0.05), "topk+topp": dict(k=50, p=0.9)}
        if case in settings:
            values = settings[case]
            found["torch"] = lambda: self.torch(**values)
        if case.startswith("grammar") or case == "everything":
            return found  # no peer has it in its sampling pipeline
        penalties = case == "all on"  # without DRY and biases, which the peers do not have
        named = {"k", "p", "m"} if penalties else set(settings[case])
        if self.peers.vllm:
            self.with_counts()
            arguments = {name: getattr(self, name) for name in named}
            found["vllm"] = lambda: self.vllm(penalties=penalties, **arguments)
        if self.peers.flashinfer and (not penalties or self.peers.vllm):
            self.seed, self.offset = (torch.tensor([n], dtype=torch.int64, device=DEVICE) for n in (1, 0))
            if case == "temp":
                found["flashinfer"] = lambda: self.peers.flashinfer.sampling_from_logits(self.logits.float() / self.temperature[:, None],
                                                                                         seed=self.seed, offset=self.offset)
            else:
                found["flashinfer"] = lambda: self.flashinfer(penalties=penalties, **{name: True for name in named})
        if self.peers.cake and case in ("topk50", "topk+topp"):
            found["flashinfer-cake"] = lambda: self.cake(1.0 if case == "topk50" else self.p)
        return found

    def ours(self, library, case, **how):
        ops, values, needs = nucleus.chains()[case]
        vocab = self.logits.shape[1]
        extra = {}
        if "history" in needs:
            extra["history"] = self.history
        if "bias" in needs:
            extra["bias"] = [(i * (vocab // 17), 1.0) for i in range(16)]
        if "mask" in needs:
            generator = torch.Generator(device=DEVICE).manual_seed(2)
            bits = torch.randint(-(2**31), 2**31 - 1, ((vocab + 31) // 32,), device=DEVICE, generator=generator, dtype=torch.int64)
            extra["mask"] = bits.to(torch.int32)
        if "few" in needs:
            ids = torch.arange(200, device=DEVICE) * (vocab // 200)
            words = torch.zeros((vocab + 31) // 32, device=DEVICE, dtype=torch.int64).scatter_add_(0, ids // 32, 1 << ids % 32)
            # As CudaSampler decides of bounded rows.
            extra |= dict(mask=(words & 0xFFFFFFFF).to(torch.uint32), few=self.logits.shape[0] > 66)
        return nucleus.Sampler(library, self.logits, ops, **extra, **values, **how)


def plane(size):
    """Batch, vocabulary, dtype, kind."""
    batches = [1, 8, 32, 64, 128, 256, 512]
    cells = [(batch, 151936, "float32", "peaked") for batch in batches]
    if size == "full":
        cells += [(batch, 151936, dtype, "peaked") for dtype in ("bfloat16", "float16") for batch in (1, 32, 128, 512)]
        cells += [(batch, 151936, "float32", "flat") for batch in (1, 32, 256)]
        cells += [(batch, vocab, "float32", "peaked") for vocab in (32000, 128256, 262144) for batch in (1, 32, 256)]
    return cells


class Table:
    """Finished measurements, on disk."""

    def __init__(self, path):
        self.path = path
        self.rows = list(csv.DictReader(path.open())) if path.exists() else []

    def has(self, **key):
        return any(all(row[name] == str(value) for name, value in key.items()) for row in self.rows)

    def add(self, **row):
        new = not self.path.exists()
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if new:
                writer.writeheader()
            writer.writerow(row)
        self.rows.append({name: str(value) for name, value in row.items()})

    def markdown(self):
        lines = ["| batch | vocab | logits | case | floor | ours | best peer | ratio |", "|---|---|---|---|---|---|---|---|"]
        cells = {}
        for row in self.rows:
            key = tuple(row[name] for name in ("batch", "vocab", "dtype", "kind", "cache"))
            cells.setdefault(key, {}).setdefault(row["case"], {})[row["implementation"]] = float(row["us"])
        for (batch, vocab, dtype, kind, cache), cases in cells.items():
            floor = cases.get("floor", {}).get("read-once-max", float("nan"))
            for case, times in cases.items():
                ours = times.get("nucleus")
                if ours is None:
                    continue
                peers = {name: us for name, us in times.items() if not name.startswith("nucleus") and us == us}
                best = min(peers, key=peers.get) if peers else None
                peer = f"{peers[best]:.1f} ({best})" if best else "none"
                ratio = f"{peers[best] / ours:.2f}" if best else ""
                logits = f"{dtype}, {kind}" + (", cold" if cache == "cold" else "")
                lines.append(f"| {batch} | {vocab} | {logits} | {case} | {floor:.1f} | {ours:.1f} | {peer} | {ratio} |")
        return "\n".join(lines) + "\n"


def measure(table, key, case, implementation, function, launches=10):
    if table.has(**key, case=case, implementation=implementation):
        return
    try:
        us, mode = microseconds(function, launches)
    except Exception as error:
        us, mode = float("nan"), f"failed: {error!r}"[:160]
    table.add(**key, case=case, implementation=implementation, us=round(us, 3), mode=mode)


def rotating(functions):
    """A function that calls the next of the functions each time."""
    turn = itertools.cycle(functions)
    return lambda: next(turn)()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", required=True)
    parser.add_argument("--peers")
    parser.add_argument("--plane", choices=["small", "full"], default="small")
    parser.add_argument("--budget", type=float, default=500, help="seconds after which no cell is begun")
    args = parser.parse_args()
    out = Path(os.environ.get("OUT", "."))
    table, peers, start = Table(out / "plane.csv"), Peers(args.peers), time.time()
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, triton {triton.__version__}", flush=True)
    for batch, vocab, dtype, kind in plane(args.plane):
        if time.time() - start > args.budget:
            print("the budget is spent", flush=True)
            break
        logits = make(batch, vocab, kind, getattr(torch, dtype))
        cell = Cell(logits, peers)
        key = dict(batch=batch, vocab=vocab, dtype=dtype, kind=kind, cache="warm")
        maxima = torch.empty(batch * 64, device=DEVICE)
        measure(table, key, "floor", "read-once-max", lambda: read_once(logits, maxima))
        for case in nucleus.chains():
            sampler = cell.ours(args.library, case)
            measure(table, key, case, "nucleus", sampler)
            status = sampler.tokens()[2]
            assert (status == 0).all(), (case, status)
            for name, function in cell.implementations(case).items():
                measure(table, key, case, name, function)
        exact = cell.ours(args.library, "all on", exact=True)
        measure(table, key, "fallback forced", "nucleus", exact)
        if args.plane == "full" and kind == "peaked" and dtype == "float32" and vocab == 151936 and batch <= 64:
            cold = key | dict(cache="cold")
            # So many copies that none stays in the cache.
            copies = [logits.clone() for _ in range(4 * properties.L2_cache_size // (logits.numel() * 4) + 2)]
            floors = rotating([lambda copy=copy: read_once(copy, maxima) for copy in copies])
            measure(table, cold, "floor", "read-once-max", floors, len(copies))
            for case in ("all on", "temp"):
                first = cell.ours(args.library, case)
                samplers = [first.on(copy) for copy in copies]
                measure(table, cold, case, "nucleus", rotating(samplers), len(copies))
        (out / "plane.md").write_text(table.markdown())
        print(f"{batch} x {vocab} {dtype} {kind}: {time.time() - start:.0f} s", flush=True)
        del cell, logits
        torch.cuda.empty_cache()
    print(table.markdown()[-9000:])


if __name__ == "__main__":
    main()
