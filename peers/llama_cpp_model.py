"""llama.cpp through llama-cpp-python's low-level interface: one model, one context, many sequences."""
import ctypes
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import llama_cpp as ll
import numpy as np

BUNDLED_MODEL = Path(__file__).resolve().parent.parent / "models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
KV_TYPES = {"f32": ll.GGML_TYPE_F32, "f16": ll.GGML_TYPE_F16}
LOG_ERROR = 4


@ll.llama_log_callback
def log_errors(level, text, _):
    """llama.cpp's log without its hundreds of lines on a model that loads."""
    if level == LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


ll.llama_log_set(log_errors, ctypes.c_void_p(0))


@dataclass
class Token:
    """One token of a batch: its place in its sequence, and whether its logits are wanted."""

    id: int
    position: int
    sequence: int
    logits: bool


class LlamaCpp:
    """A model on the CPU with its own KV cache for each sequence (`kv_unified` off)."""

    def __init__(self, model, *, threads, kv, context, sequences=1, flash_attention=False):
        ll.llama_backend_init()
        params = ll.llama_model_default_params()
        params.n_gpu_layers = 0
        self.model = ll.llama_model_load_from_file(str(model).encode(), params)
        if not self.model:
            raise SystemExit(f"cannot load {model}")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.vocab_size = ll.llama_vocab_n_tokens(self.vocab)

        params = ll.llama_context_default_params()
        params.n_ctx = context * sequences
        params.n_batch = params.n_ubatch = max(context, sequences)
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = threads
        params.type_k = params.type_v = KV_TYPES[kv]
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash_attention else ll.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = ll.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit("cannot create a llama.cpp context")
        self.batch = ll.llama_batch_init(params.n_batch, 0, 1)

    def clear(self):
        """Forgets all sequences."""
        ll.llama_memory_clear(ll.llama_get_memory(self.context), True)

    def cut(self, sequence, length):
        """Forgets what a sequence has beyond its first `length` tokens."""
        ll.llama_memory_seq_rm(ll.llama_get_memory(self.context), sequence, length, -1)

    def copy(self, source, target):
        """Gives a sequence the keys and values of another."""
        ll.llama_memory_seq_cp(ll.llama_get_memory(self.context), source, target, -1, -1)

    def tokenize(self, text):
        """The ids of `text`, with the model's own rule on special tokens at the start; special tokens in the text stay text."""
        raw = text.encode()
        ids = (ll.llama_token * (len(raw) + 8))()
        count = ll.llama_tokenize(self.vocab, raw, len(raw), ids, len(ids), True, False)
        assert count >= 0, count
        return list(ids[:count])

    def piece(self, token_id):
        """The bytes of one token."""
        buffer = ctypes.create_string_buffer(256)
        length = ll.llama_token_to_piece(self.vocab, token_id, buffer, len(buffer), 0, True)
        assert length >= 0, length
        return buffer.raw[:length]

    def ends(self, token_id):
        """Whether the token ends a generation."""
        return ll.llama_vocab_is_eog(self.vocab, token_id)

    def decode(self, tokens):
        """One forward pass; the logits [wanted, vocab_size] of the tokens that want them, valid until the next pass."""
        self.batch.n_tokens = len(tokens)
        for i, t in enumerate(tokens):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = t.id, t.position, t.logits
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, t.sequence
        status = ll.llama_decode(self.context, self.batch)
        assert status == 0, f"llama_decode returned {status}"
        wanted = sum(t.logits for t in tokens)
        first = ll.llama_get_logits(self.context)
        return np.ctypeslib.as_array(first, shape=(wanted, self.vocab_size))

    def prefill(self, ids, sequence=0):
        """The logits after a prompt."""
        last = len(ids) - 1
        return self.decode([Token(token_id, i, sequence, i == last) for i, token_id in enumerate(ids)])[0]


def versions():
    """What made a result, for its header."""
    return {"llama_cpp_python": version("llama-cpp-python"), "llama_cpp": ll.llama_version().decode(),
            "llama_cpp_system_info": ll.llama_print_system_info().decode().strip()}
