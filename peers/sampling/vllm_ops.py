"""Fixture of what vLLM's sampler keeps: testdata/peers/vllm.jsonl.

Runs vLLM's own `v1/sample/sampler.py` with its PyTorch ops on the CPU. vLLM itself needs a GPU build to import, so only the files of the
sampler are loaded from the unpacked wheel, and every other `vllm` module is replaced by an empty stand-in:

    pip download --no-deps --only-binary=:all: vllm==0.33.0
    python -m zipfile -e vllm-*.whl WHEEL
    python vllm_ops.py WHEEL
"""

import importlib.abc
import importlib.machinery
import itertools
import pathlib
import sys
import types
import unittest.mock

import numpy as np
import torch

import rows

WHEEL = pathlib.Path(sys.argv[1])

# The files that are vLLM's own; the module `vllm._custom_ops` is loaded for its PyTorch repetition penalty.
OWN = (
    "vllm.v1.sample.sampler",
    "vllm.v1.sample.metadata",
    "vllm.v1.sample.ops.bad_words",
    "vllm.v1.sample.ops.penalties",
    "vllm.v1.sample.ops.topk_topp_sampler",
    "vllm.v1.sample.logits_processor.builtin",
    "vllm.v1.sample.logits_processor.interface",
    "vllm.model_executor.layers.utils",
    "vllm._custom_ops",
)


class StandIn(types.ModuleType):
    """A module that has whatever is asked of it."""

    __path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return unittest.mock.MagicMock(name=name)


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds vLLM's own files in the wheel and stand-ins for the rest of it."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] != "vllm":
            return None
        if name in OWN:
            return importlib.machinery.ModuleSpec(name, importlib.machinery.SourceFileLoader(name, str(self.file(name))), origin=str(self.file(name)))
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def file(self, name):
        return WHEEL.joinpath(*name.split(".")).with_suffix(".py")

    def create_module(self, spec):
        return StandIn(spec.name)

    def exec_module(self, module):
        pass


def tensor_with_pad(lists, pad, device, dtype, pin_memory):
    width = max(map(len, lists), default=0)
    return torch.tensor([list(ids) + [pad] * (width - len(ids)) for ids in lists], dtype=dtype).reshape(len(lists), width)


def stand_ins():
    """What the stand-ins must do: say that this is neither a GPU nor a CPU build, and copy to tensors."""
    sys.meta_path.insert(0, Loader())
    import vllm.platforms
    import vllm.triton_utils
    import vllm.utils.torch_utils

    vllm.triton_utils.HAS_TRITON = False
    vllm.platforms.current_platform = types.SimpleNamespace(
        is_cpu=lambda: False, is_cuda=lambda: False, is_rocm=lambda: False, is_xpu=lambda: False, is_cuda_alike=lambda: False,
        import_kernels=lambda: None,
    )
    vllm.utils.torch_utils.PIN_MEMORY = False
    vllm.utils.torch_utils.make_tensor_with_pad = tensor_with_pad
    vllm.utils.torch_utils.async_tensor_h2d = lambda data, device=None, dtype=None: torch.tensor(data, dtype=dtype)
    import vllm._aiter_ops

    vllm._aiter_ops.rocm_aiter_ops = types.SimpleNamespace(is_enabled=lambda: False)


stand_ins()
from vllm.v1.sample.logits_processor.builtin import LogitBiasLogitsProcessor, MinPLogitsProcessor, MinTokensLogitsProcessor
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.sampler import Sampler

SAMPLER = Sampler(logprobs_mode="processed_logprobs")
CONFIG = types.SimpleNamespace(scheduler_config=types.SimpleNamespace(max_num_seqs=1))
GREEDY = 1e-5  # vLLM's own limit

STAGES = {
    "temperature": (0.0, 0.3, 0.7, 1.3, 2.0),
    "top_k": (1, 2, 5, 40, 100, 5000),
    "top_p": (0.1, 0.5, 0.9, 0.95, 0.999),
    "min_p": (0.01, 0.05, 0.3, 1.0),
    "repetition_penalty": (0.8, 1.1, 1.5),
    "frequency_penalty": (-0.5, 0.25, 0.7, 2.0),
    "presence_penalty": (-1.0, 0.3, 2.0),
    "bad_words": ("single", "pairs"),
    "logit_bias": ("few",),
    "allowed_token_ids": ("some",),
    "min_tokens": (5, 60),
}
THRESHOLDS = ("top_p", "min_p")
TRUNCATIONS = THRESHOLDS + ("top_k",)
PENALTIES = ("repetition_penalty", "frequency_penalty", "presence_penalty")
NEEDS_HISTORY = PENALTIES + ("bad_words", "min_tokens")


def processors(params, prompt, output, eos):
    """vLLM's builtin processors, told about one request."""
    request = types.SimpleNamespace(
        min_p=params.get("min_p", 0.0),
        logit_bias={int(i): b for i, b in params.get("logit_bias", {}).items()},
        min_tokens=params.get("min_tokens", 0),
        all_stop_token_ids=set(eos or ()),
        structured_outputs=None,
    )
    made = [kind(CONFIG, torch.device("cpu"), False) for kind in (MinTokensLogitsProcessor, LogitBiasLogitsProcessor, MinPLogitsProcessor)]
    for processor in made:
        processor.update_state(BatchUpdate(batch_size=1, removed=[], added=[(0, request, prompt, output)], moved=[]))
    return types.SimpleNamespace(
        argmax_invariant=[p for p in made if p.is_argmax_invariant()],
        non_argmax_invariant=[p for p in made if not p.is_argmax_invariant()],
    )


def metadata(params, vocab, prompt, output, eos):
    """One request as vLLM's input batch describes it to the sampler."""
    temperature = params.get("temperature", 1.0)
    greedy = temperature < GREEDY
    top_k, top_p = params.get("top_k", 0), params.get("top_p", 1.0)
    allowed = params.get("allowed_token_ids")
    mask = torch.ones(1, vocab, dtype=torch.bool)
    mask[0, allowed or []] = False
    return SamplingMetadata(
        temperature=torch.tensor([temperature]),
        all_greedy=greedy,
        all_random=not greedy,
        top_p=torch.tensor([top_p]) if top_p < 1.0 else None,
        top_k=torch.tensor([min(top_k, vocab)], dtype=torch.int32) if top_k > 0 else None,
        generators={},
        max_num_logprobs=0,
        no_penalties=not any(name in params for name in PENALTIES),
        prompt_token_ids=torch.tensor([prompt], dtype=torch.long),
        frequency_penalties=torch.tensor([params.get("frequency_penalty", 0.0)]),
        presence_penalties=torch.tensor([params.get("presence_penalty", 0.0)]),
        repetition_penalties=torch.tensor([params.get("repetition_penalty", 1.0)]),
        output_token_ids=[output],
        allowed_token_ids_mask=mask if allowed else None,
        bad_words_token_ids={0: params["bad_words"]} if "bad_words" in params else {},
        logitsprocs=processors(params, prompt, output, eos),
    )


def run(row, prompt, output, params, case):
    """The log-probabilities that vLLM draws from (its mode `processed_logprobs`); for a greedy row its choice alone."""
    made = metadata(params, len(row), prompt, output, case.get("eos"))
    processed = SAMPLER.apply_logits_processors(torch.tensor(row)[None], made, predict_bonus_token=False)
    sampled, logprobs = SAMPLER.sample(processed, made)
    if made.all_greedy:
        chosen = torch.full_like(logprobs, -torch.inf)
        chosen[0, sampled] = 0.0
        logprobs = chosen
    return rows.Outcome(logprobs[0].numpy(), logprobs[0].exp().numpy())


def nudges(params, vocab):
    """The parameters with every threshold, and then the temperature, moved both ways by more than f32 sums can err."""
    step = 1e-5 if vocab <= 4000 else 3e-5
    for sign in (-step, step):
        moved = {name: params[name] * (1 + sign) for name in THRESHOLDS if params.get(name, 1.0) < 1.0}
        if moved:
            yield dict(params, **moved)
        if params.get("temperature", 0.0) > 0.0:
            yield dict(params, temperature=params["temperature"] * (1 + sign))


def value(choice, rng, row, case):
    """A choice from STAGES as a value for this row."""
    vocab = len(row)
    best = [int(i) for i in np.argsort(-row, kind="stable")]
    if choice == "few":
        picked = [best[rng.randrange(10)], best[0]] + [rng.randrange(vocab) for _ in range(4)]
        return {str(i): rng.randrange(-640, 640) / 64 for i in sorted(set(picked))}
    if choice == "some":
        return sorted({best[i] for i in range(0, 40, 3)} | {rng.randrange(vocab) for _ in range(min(vocab // 8, 60))})
    if choice == "single":
        return [[i] for i in rng.sample(best[:12], 4)]
    if choice == "pairs":
        prompt, output = rows.history(case["history"])
        return [[output[-1], best[0]], (prompt + output)[-2:] + [best[1]], [(output[-1] + 1) % vocab, best[2]], [best[3]]]
    return choice


def cases():
    """Every stage alone with every value, pairs of stages, then random combinations."""
    rng = rows.generator(2)
    singles = [{name: choice} for name, choices in STAGES.items() for choice in choices]
    pairs = [
        {a: rng.choice(STAGES[a]), b: rng.choice(STAGES[b])}
        for a, b in itertools.combinations(("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty"), 2)
    ]
    mixed = [{name: rng.choice(STAGES[name]) for name in rng.sample(sorted(STAGES), rng.randint(3, 7))} for _ in range(190)]
    for index, choices in enumerate(singles + singles + pairs + pairs + mixed):
        case = {"n": index, "logits": rows.shapes(rng, index), "params": {"preset": "vllm"}}
        row = rows.logits(**case["logits"])
        if any(name in choices for name in NEEDS_HISTORY):
            case["history"] = rows.make_history(rng, row, rng.choice((0, 4, 25, 40)), rng.choice((1, 3, 20, 50)))
        if "min_tokens" in choices:
            case["eos"] = [int((-row).argsort()[0]), rng.randrange(len(row))]
        for name, choice in choices.items():
            case["params"][name] = value(choice, rng, row, case)
        yield case


if __name__ == "__main__":
    version = next(WHEEL.glob("vllm-*.dist-info"), None)
    peer = {"peer": "vllm", "version": version.name.removeprefix("vllm-").removesuffix(".dist-info"), "torch": torch.__version__, "script": "peers/sampling/vllm_ops.py"}
    rows.write("vllm.jsonl", peer, cases(), rows.Peer(run, TRUNCATIONS, nudges, lambda *_: None))
