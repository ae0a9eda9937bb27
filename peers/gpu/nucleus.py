"""Nucleus's kernel through its C library, on torch tensors: the plain data of cuda/include/sampling_config.h by ctypes."""
import copy
import ctypes
import math
import struct

import torch

OPS = ["none", "dry", "no_repeat_ngram", "penalties", "temperature", "dynamic_temperature", "smoothing", "top_n_sigma", "top_k", "typical_p", "top_p",
       "min_p", "epsilon", "eta", "top_a", "tfs", "xtc", "argmax", "draw", "mirostat_1", "mirostat_2", "adaptive_p"]
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
PROCESSED, FEW = 2, 128  # of a row
EXACT, ALL_BOUNDED, NONE_BOUNDED, ALL_COUNTED, ALL_FEW, NO_EDITS, ALL_DRAWN, DRAW_AFTER_MIN_P, NONE_WHOLE, DRAWN_AFTER_TOP_P = 1, 4, 8, 32, 128, 256, 512, 2048, 4096, 65536  # of a batch
# Field order of SamplingConfig with neutral values; the floats, then the integers.
FLOATS = dict(temperature=1, dynatemp_range=0, dynatemp_exponent=1, smoothing_factor=0, smoothing_curve=1, top_p=1, min_p=0, typical_p=1,
              top_n_sigma=0, epsilon_cutoff=0, eta_cutoff=0, top_a=0, tfs_z=1, xtc_probability=0, xtc_threshold=0.1, repetition_penalty=1,
              frequency_penalty=0, presence_penalty=0, dry_multiplier=0, dry_base=1.75, mirostat_tau=5, mirostat_eta=0.1, adaptive_target=-1,
              adaptive_decay=0.9)
INTEGERS = dict(top_k=0, min_keep=1, repeat_last_n=0xFFFFFFFF, dry_allowed_length=2, dry_penalty_last_n=0xFFFFFFFF, no_repeat_ngram_size=0,
                min_tokens=0, mirostat=0, vocab_size=0, flags=0)


class Batch(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_uint32), ("dtype", ctypes.c_uint32), ("rows", ctypes.c_uint32), ("row_len", ctypes.c_uint32),
                ("row_stride", ctypes.c_uint64), ("logits", ctypes.c_void_p), ("row", ctypes.c_void_p), ("configs", ctypes.c_void_p),
                ("programs", ctypes.c_void_p), ("arena", ctypes.c_void_p), ("masks", ctypes.c_void_p), ("mask_stride", ctypes.c_uint64),
                ("mask_words", ctypes.c_uint32), ("cluster", ctypes.c_uint32), ("out", ctypes.c_void_p), ("max_edited", ctypes.c_uint32),
                ("flags", ctypes.c_uint32), ("slots", ctypes.c_void_p), ("slot_tokens", ctypes.c_void_p)]


def f32(x):
    return struct.unpack("f", struct.pack("f", x))[0]


def mass(p):
    """A probability in Q32, as the compiler of parameters rounds it for a mass that has to be reached (an f32 is up to 2^-24 too large)."""
    return int(f32(p) * (1 - 2**-24) * 2**32)


def config(seed, vocab, **values):
    unknown = set(values) - set(FLOATS) - set(INTEGERS)
    assert not unknown, unknown
    floats = [values.get(name, neutral) for name, neutral in FLOATS.items()]
    integers = [values.get(name, vocab if name == "vocab_size" else neutral) for name, neutral in INTEGERS.items()]
    return struct.pack("Q24f10I", seed, *floats, *integers)


def program(*ops):
    """Operations as (name, arg, threshold); the last one chooses."""
    packed = b"".join(struct.pack("IfQ", OPS.index(name), arg, threshold) for name, arg, threshold in ops)
    return packed.ljust(16 * 16, b"\0") + struct.pack("II", len(ops), 0)


def op(name, arg=0.0, threshold=0):
    return (name, arg, threshold)


def to_device(data):
    return torch.frombuffer(bytearray(data or b"\0" * 16), dtype=torch.uint8).cuda()


def known(ops, edits):
    """The bits that say whether few tokens decide a chain, and what is known of one that they do not."""
    first = next(name for name, _, _ in ops if name not in ("dry", "penalties", "no_repeat_ngram", "temperature"))
    if first in ("top_k", "argmax"):
        return ALL_BOUNDED | ALL_COUNTED
    unedited = 0 if edits else NO_EDITS
    if first == "min_p":
        names = [name for name, _, _ in ops]
        return ALL_BOUNDED | unedited | (DRAW_AFTER_MIN_P if names[names.index("min_p") + 1] == "draw" else 0)
    names = [name for name, _, _ in ops if name != "temperature"]
    drawn = 0 if edits else ALL_DRAWN if names == ["draw"] else DRAWN_AFTER_TOP_P if names == ["top_p", "draw"] else 0
    return NONE_BOUNDED | unedited | drawn | (0 if first in ("top_p", "draw") else NONE_WHOLE)


class Sampler:
    """One chain for all rows of a batch; everything but the launch is done when it is made."""

    def __init__(self, library, logits, ops, history=None, bias=None, mask=None, few=False, exact=False, cluster=0, **values):
        self.library = ctypes.CDLL(library)
        self.library.sampling_workspace_size.restype = ctypes.c_size_t
        rows, vocab = logits.shape
        words, row_data, configs, programs = [], [], [], []
        history_len = 0 if history is None else history.shape[1]
        lists = [] if history is None else history.tolist()
        for row in range(rows):
            fields = [0]  # uniform
            offset = len(words)
            words += lists[row] if lists else []
            spans = [(offset, history_len)]
            if len(words) % 2:
                words.append(0)
            offset = len(words)
            for token, value in bias or []:
                words += [token, struct.unpack("I", struct.pack("f", value))[0]]
            spans.append((offset, len(bias or [])))
            empty = len(words)
            words += [0, 0]
            spans += [(empty, 0)] * 4  # allowed, bad words, breakers, eos
            data = struct.pack("Q", *fields) + b"".join(struct.pack("QII", offset, length, 0) for offset, length in spans)
            data += struct.pack("5I2iiII", min(24, history_len), row, 7, 0, 0, 0, 0, 0 if mask is not None else -1, PROCESSED | (FEW if few else 0), 0)
            row_data.append(data)
            configs.append(config(row + 1, vocab, **values))
            programs.append(program(*ops))
        self.keep = [logits, to_device(b"".join(row_data)), to_device(b"".join(configs)), to_device(b"".join(programs)),
                     torch.tensor(words or [0], dtype=torch.int64).to(torch.uint32).cuda() if words else to_device(b""),
                     mask if mask is not None else to_device(b""), torch.empty(rows, 5, dtype=torch.int32, device="cuda")]
        max_edited = history_len + len(bias or [])
        size = self.library.sampling_workspace_size(rows, max_edited)
        self.workspace = torch.empty(max(size, 16), dtype=torch.uint8, device="cuda")
        pointer = lambda tensor: tensor.data_ptr()
        mask_words = 0 if mask is None else mask.numel()
        self.batch = Batch(ctypes.sizeof(Batch), DTYPES[logits.dtype], rows, vocab, logits.stride(0), *map(pointer, self.keep[:6]), mask_words,
                           mask_words, cluster, pointer(self.keep[6]), max_edited, EXACT if exact else ALL_FEW if few else known(ops, history is not None or bias is not None),
                           None, None)

    def __call__(self):
        stream = torch.cuda.current_stream().cuda_stream
        code = self.library.launch_advanced_sample_batch(ctypes.byref(self.batch), ctypes.c_void_p(self.workspace.data_ptr()),
                                                         ctypes.c_size_t(self.workspace.numel()), ctypes.c_void_p(stream))
        assert code == 0, code

    def on(self, logits):
        """The same requests on other logits of the same shape and type."""
        other = copy.copy(self)
        other.keep = [logits, *self.keep[1:]]
        other.batch = Batch.from_buffer_copy(self.batch)
        other.batch.logits = logits.data_ptr()
        return other

    def tokens(self):
        """Ids, kept counts and statuses of the last launch."""
        out = self.keep[6]
        return out[:, 0], out[:, 2], out[:, 3]


def chains():
    """Name: (operations, parameters, needs). The chains of the plane, by the names of the peers' cases."""
    temperature, draw = op("temperature", 0.7), op("draw")
    top_k, top_p, min_p = op("top_k", threshold=50), op("top_p", threshold=mass(0.9)), op("min_p", arg=math.log(f32(0.05)))
    penalties = dict(repetition_penalty=1.1, frequency_penalty=0.2, presence_penalty=0.2, repeat_last_n=1000)
    dry = dict(dry_multiplier=0.8, dry_penalty_last_n=1024)
    base = dict(temperature=0.7)
    everything = [op("dry"), op("penalties"), temperature, top_k, op("top_n_sigma", arg=2.0), op("typical_p", threshold=mass(0.95)), top_p, min_p,
                  op("xtc", threshold=int(f32(0.1) * 2**32)), draw]
    return {
        "greedy": ([op("argmax")], {}, ()),
        "temp": ([temperature, draw], base, ()),
        "topk50": ([temperature, top_k, draw], base, ()),
        "topp.9": ([temperature, top_p, draw], base, ()),
        "minp.05": ([temperature, min_p, draw], base, ()),
        "topk+topp": ([temperature, top_k, top_p, draw], base, ()),
        "all on": ([op("dry"), op("penalties"), temperature, top_k, top_p, min_p, draw], base | penalties | dry, ("history", "bias")),
        "everything": (everything, base | penalties | dry | dict(xtc_probability=0.5), ("history", "bias")),
        "grammar": ([temperature, top_k, top_p, draw], base, ("mask",)),
        "grammar, 200 ids": ([temperature, top_k, top_p, draw], base, ("few",)),
    }
