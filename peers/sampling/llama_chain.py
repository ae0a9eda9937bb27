"""llama.cpp's samplers through llama-cpp-python's low-level bindings: chains in the order of llama.cpp's `common/sampling.cpp`."""

import ctypes
import importlib.metadata
import pathlib

import llama_cpp as llama
import numpy as np

VERSION = f"llama-cpp-python {importlib.metadata.version('llama_cpp_python')}"
ORDER = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
SEED = 7

CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

# llama.cpp's test entry for DRY takes breakers as token ids: f(multiplier, base, allowed, last_n, const vector<vector<int32>> &).
_DRY = ctypes.CDLL(str(pathlib.Path(llama.__file__).parent / "lib" / "libllama.so"))._Z30llama_sampler_init_dry_testingffiiRKSt6vectorIS_IiSaIiEESaIS1_EE
_DRY.restype = llama.llama_sampler_p_ctypes


class _Vector(ctypes.Structure):
    """The layout of libstdc++'s std::vector."""

    _fields_ = [("begin", ctypes.c_void_p), ("end", ctypes.c_void_p), ("capacity", ctypes.c_void_p)]

    @classmethod
    def over(cls, array):
        begin = ctypes.addressof(array)
        return cls(begin, begin + ctypes.sizeof(array), begin + ctypes.sizeof(array))


def dry(multiplier, base, allowed_length, last_n, breakers):
    """A DRY sampler with sequence breakers given as token ids. (The test entry must not be called for one that is off.)"""
    if multiplier == 0.0 or last_n == 0:
        return llama.llama_sampler_init_dry(None, 0.0, base, allowed_length, last_n, None, 0)
    lists = [(ctypes.c_int32 * len(ids))(*ids) for ids in breakers]
    vectors = (_Vector * len(lists))(*map(_Vector.over, lists))
    return _DRY(
        ctypes.c_float(multiplier), ctypes.c_float(base), ctypes.c_int32(allowed_length), ctypes.c_int32(last_n), ctypes.byref(_Vector.over(vectors))
    )


def logit_bias(vocab, biases):
    entries = [llama.llama_logit_bias(token=int(token), bias=bias) for token, bias in biases.items()]
    return llama.llama_sampler_init_logit_bias(vocab, len(entries), (llama.llama_logit_bias * len(entries))(*entries))


def stage(name, params, vocab):
    """One sampler of the chain, with llama.cpp's neutral value for what is absent."""
    get, min_keep = params.get, params.get("min_keep", 0)
    if name == "penalties":
        return llama.llama_sampler_init_penalties(
            vocab, get("repeat_last_n", 0), get("repetition_penalty", 1.0), get("frequency_penalty", 0.0), get("presence_penalty", 0.0)
        )
    if name == "dry":
        return dry(
            get("dry_multiplier", 0.0), get("dry_base", 1.75), get("dry_allowed_length", 2), get("dry_penalty_last_n", 0), get("dry_sequence_breakers", [])
        )
    if name == "top_n_sigma":
        return llama.llama_sampler_init_top_n_sigma(get("top_n_sigma", -1.0))
    if name == "top_k":
        return llama.llama_sampler_init_top_k(get("top_k", 0))
    if name == "typ_p":
        return llama.llama_sampler_init_typical(get("typical_p", 1.0), min_keep)
    if name == "top_p":
        return llama.llama_sampler_init_top_p(get("top_p", 1.0), min_keep)
    if name == "min_p":
        return llama.llama_sampler_init_min_p(get("min_p", 0.0), min_keep)
    if name == "xtc":
        return llama.llama_sampler_init_xtc(get("xtc_probability", 0.0), get("xtc_threshold", 0.1), min_keep, SEED)
    if name == "temperature":
        return llama.llama_sampler_init_temp_ext(get("temperature", 1.0), get("dynatemp_range", 0.0), get("dynatemp_exponent", 1.0))
    raise ValueError(name)


def stages(params, vocab):
    """The samplers of a chain, as `common_sampler_init` lists them."""
    if "logit_bias" in params:
        yield logit_bias(vocab, params["logit_bias"])
    if params.get("mirostat", 0):
        yield llama.llama_sampler_init_temp(params.get("temperature", 1.0))
        tau, eta = params.get("mirostat_tau", 5.0), params.get("mirostat_eta", 0.1)
        if params["mirostat"] == 1:
            yield llama.llama_sampler_init_mirostat(vocab, SEED, tau, eta, 100)
        else:
            yield llama.llama_sampler_init_mirostat_v2(SEED, tau, eta)
        return
    for name in params.get("samplers", ORDER):
        yield stage(name, params, vocab)
    if params.get("adaptive_target", -1.0) >= 0.0:
        yield llama.llama_sampler_init_adaptive_p(params["adaptive_target"], params.get("adaptive_decay", 0.9), SEED)
    else:
        yield llama.llama_sampler_init_dist(SEED)


class Chain:
    """A llama.cpp sampler chain."""

    def __init__(self, samplers):
        self.chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        for sampler in samplers:
            llama.llama_sampler_chain_add(self.chain, sampler)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        llama.llama_sampler_free(self.chain)

    def accept(self, tokens):
        for token in tokens:
            llama.llama_sampler_accept(self.chain, token)

    def apply(self, candidates):
        """Runs the chain over the candidates in place; returns those left, and the chosen id."""
        array = array_over(candidates)
        llama.llama_sampler_apply(self.chain, ctypes.byref(array))
        left = np.ctypeslib.as_array(ctypes.cast(array.data, ctypes.POINTER(ctypes.c_uint8)), (array.size * CANDIDATE.itemsize,)).view(CANDIDATE)
        return left, int(left["id"][array.selected])


def array_over(candidates):
    """llama.cpp's view of an array of candidates."""
    data = candidates.ctypes.data_as(llama.llama_token_data_p)
    return llama.llama_token_data_array(data=data, size=len(candidates), selected=-1, sorted=False)


def candidates(row):
    """The candidate array of a row of logits."""
    made = np.empty(len(row), dtype=CANDIDATE)
    made["id"], made["logit"], made["p"] = np.arange(len(row)), row, 0.0
    return made
