#!/usr/bin/env python3
"""Make model files and the logits that transformers computes on their weights.

Writes to crates/nucleus-engine/testdata:
  <name>.gguf             tiny random Llama models in several tensor types, each under 1 MB
  <name>.json             token ids of a few sequences, and all logits at some of their positions
  little-storyteller.json the same for the bundled model, with the 50 largest logits of a position
  <architecture>.gguf, <architecture>/, <architecture>.json   every architecture, as architectures.py describes them

The weights are quantised by ggml, read back by the gguf package and given to transformers as f32, so what is compared is
the arithmetic and not the quantisation. Every row has two sets of logits: `logits` are transformers' own; for
`rounded_logits` the input of each matrix product with quantised weights is rounded to 8 bits first, as ggml and candle do
it; except with Q8_0, where Nucleus keeps 16 bits.
Two runs write the same bytes.
"""
import argparse, ctypes, json, math
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from transformers import LlamaConfig, LlamaForCausalLM

ROOT = Path(__file__).resolve().parent.parent
TESTDATA = ROOT / "crates/nucleus-engine/testdata"
BUNDLED_MODEL = ROOT / "models/little-storyteller/little-storyteller-15m-Q8_0.gguf"
TOP = 50
CONTEXT = 64
# Sequence lengths below, at and above one and two cache blocks of 16, and the positions whose logits are written.
SEQUENCES = {1: [0], 9: [0, 8], 37: [0, 15, 16, 36]}
PROMPTS = ["Once upon a time", "The old king looked at his three sons and said", "\"I am hungry,\" said the fox"]

LAYER_NAMES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
               "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
               "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}


@dataclass
class Fixture:
    """A tiny model: its shape, and the type of each of its matrices by GGUF name, `""` for the others."""

    name: str
    types: dict = field(default_factory=lambda: {"": Type.F32})
    hidden: int = 64
    feed_forward: int = 96
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    tied: bool = False
    bias: bool = False
    rope: dict = field(default_factory=lambda: {"rope_type": "default", "rope_theta": 10000.0})

    def matrix_type(self, name):
        return self.types.get(name.rsplit(".", 1)[0].rsplit(".", 1)[-1], self.types[""])


LLAMA3_ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 32}
WIDE = dict(hidden=256, feed_forward=256, layers=1, kv_heads=2, head_dim=64)
FIXTURES = [
    Fixture("tiny-f32", kv_heads=4),
    # Heads narrower than hidden / heads, grouped queries, one matrix for input and output, Llama 3.1's frequencies.
    Fixture("tiny-f32-gqa", hidden=80, feed_forward=112, kv_heads=1, tied=True, rope=LLAMA3_ROPE),
    Fixture("tiny-f32-bias", bias=True, rope={"rope_type": "linear", "rope_theta": 1000.0, "factor": 4.0}),
    *(Fixture(f"tiny-{t.name.lower()}", {"": t}, tied=True) for t in (Type.F16, Type.BF16, Type.Q8_0, Type.Q4_0)),
    *(Fixture(f"tiny-{t.name.lower()}", {"": t}, tied=True, **WIDE) for t in (Type.Q4_K, Type.Q6_K)),
    # Several types in one file, as in real ones.
    Fixture("tiny-mixed", {"": Type.Q5_K, "attn_q": Type.Q2_K, "attn_k": Type.Q3_K, "attn_output": Type.Q4_0, "ffn_gate": Type.Q5_0,
                           "ffn_up": Type.Q4_K, "ffn_down": Type.Q8_0, "output": Type.Q6_K}, **WIDE),
]


def ggml():
    import llama_cpp
    library = ctypes.CDLL(str(Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    return library


def quantize(array, kind):
    """The bytes of a matrix in a tensor type, `[rows, bytes of a row]`."""
    if kind == Type.F32:
        return array
    if kind in (Type.F16, Type.BF16):
        return gguf.quantize(array, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    rows, columns = array.shape
    data = np.empty((rows, columns // block * size), np.uint8)
    written = ggml().ggml_quantize_chunk(kind.value, array.ctypes.data, data.ctypes.data, 0, rows, columns, None)
    assert written == data.nbytes
    return data


def permute(w, heads):
    """Hugging Face rotates a head's halves, llama.cpp its neighbouring pairs: reorder the rows of Q and K."""
    return np.ascontiguousarray(w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def unpermute(w, heads):
    return np.ascontiguousarray(w.reshape(heads, w.shape[0] // heads // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape))


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    stem, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{LAYER_NAMES[stem]}.{kind}"


def heads_of(name, config):
    """The heads by which a tensor is permuted; None for the others."""
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def random_state(fixture, model, seed):
    """Weights that give activations, scores and logits of the order of 1, so that every part of the model matters."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and fixture.tied:
            continue
        if tensor.dim() == 2:
            gain = 1.0 if "embed_tokens" in name else 2.0
            scale = gain / (1.0 if "embed_tokens" in name and not fixture.tied else math.sqrt(tensor.shape[1]))
            state[name] = rng.normal(0.0, scale, tensor.shape).astype(np.float32)
        else:
            center = 0.0 if name.endswith(".bias") else 1.0
            state[name] = (center + rng.uniform(-0.5, 0.5, tensor.shape)).astype(np.float32)
    return state


def llama_config(fixture, vocab_size):
    return LlamaConfig(vocab_size=vocab_size, hidden_size=fixture.hidden, intermediate_size=fixture.feed_forward, num_hidden_layers=fixture.layers,
                       num_attention_heads=fixture.heads, num_key_value_heads=fixture.kv_heads, head_dim=fixture.head_dim, max_position_embeddings=CONTEXT,
                       rms_norm_eps=1e-5, tie_word_embeddings=fixture.tied, rope_parameters=fixture.rope, attention_bias=fixture.bias, mlp_bias=fixture.bias)


def byte_characters():
    """GPT-2's printable character for each byte."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary():
    """Tokens and merges. Two control tokens, every byte, and a few merges: 267 tokens, so that no kernel's width divides it."""
    merges = ["t h", "th e", "i n", "a n", "an d", "Ġ the", "Ġ and", "e r", "o n"]
    return ["<|bos|>", "<|eos|>", *byte_characters(), *(merge.replace(" ", "") for merge in merges)], merges


def add_vocabulary(writer):
    tokens, merges = vocabulary()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 2 + [gguf.TokenType.NORMAL] * (len(tokens) - 2))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(False)
    return len(tokens)


def add_rope(writer, fixture):
    writer.add_rope_dimension_count(fixture.head_dim)
    writer.add_rope_freq_base(fixture.rope["rope_theta"])
    if fixture.rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(fixture.rope["factor"])
    if fixture.rope["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(fixture))


def llama3_factors(fixture):
    """What each frequency is divided by: 1 for short waves, the factor for long ones, in between interpolated."""
    rope = fixture.rope
    frequencies = rope["rope_theta"] ** -(np.arange(0, fixture.head_dim, 2) / fixture.head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    smooth = np.clip((turns - rope["low_freq_factor"]) / (rope["high_freq_factor"] - rope["low_freq_factor"]), 0, 1)
    return (1 / ((1 - smooth) / rope["factor"] + smooth)).astype(np.float32)


def write_model(fixture, config, state, path):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(fixture.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(fixture.hidden)
    writer.add_block_count(fixture.layers)
    writer.add_feed_forward_length(fixture.feed_forward)
    writer.add_head_count(fixture.heads)
    writer.add_head_count_kv(fixture.kv_heads)
    writer.add_key_length(fixture.head_dim)
    writer.add_value_length(fixture.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    add_vocabulary(writer)
    add_rope(writer, fixture)
    for name, array in state.items():
        heads = heads_of(name, config)
        array = permute(array, heads) if heads else array
        kind = fixture.matrix_type(gguf_name(name)) if array.ndim == 2 else Type.F32
        writer.add_tensor(gguf_name(name), quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert path.stat().st_size < 1_000_000, path


def read_state(path, config, names):
    """The weights of a file, dequantised and in transformers' order."""
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = {}
    for name in names:
        tensor = tensors[gguf_name(name)]
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape([*map(int, reversed(tensor.shape))])
        heads = heads_of(name, config)
        state[name] = torch.from_numpy(unpermute(array, heads) if heads else np.array(array))
    return state


def load(model, path, config):
    names = [name for name in model.state_dict() if not (config.tie_word_embeddings and name == "lm_head.weight")]
    missing, unexpected = model.load_state_dict(read_state(path, config, names), strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected
    model.tie_weights()


def round_to_q8_0(x):
    """8 bits and an f16 scale for 32 values, ties to even; what ggml multiplies with types of blocks of 32."""
    blocks = x.reshape(-1, 32)
    largest = blocks.abs().amax(1, keepdim=True)
    integers = torch.where(largest > 0, blocks * (127.0 / largest), 0.0).round()
    return (integers * (largest / 127.0).half().float()).reshape(x.shape)


def round_to_q8_k(x):
    """8 bits and an f32 scale for 256 values, the largest at -127; what ggml multiplies with types of blocks of 256."""
    blocks = x.reshape(-1, 256)
    largest = blocks.gather(1, blocks.abs().argmax(1, keepdim=True))
    inverse = torch.where(largest != 0, -127.0 / largest, 0.0)
    integers = (blocks * inverse).round().clamp(max=127)
    return torch.where(inverse != 0, integers / inverse, 0.0).reshape(x.shape)


@contextmanager
def rounded_inputs(model, path):
    """Rounds the inputs of linear layers while it lasts, by the types of the file's matrices."""
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(path).tensors}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            kind = types.get(gguf_name(f"{name}.weight"), types["token_embd.weight"])
            block = gguf.GGML_QUANT_SIZES[kind][0]
            if block > 1 and kind != Type.Q8_0:
                rounding = round_to_q8_0 if block == 32 else round_to_q8_k
                hooks.append(module.register_forward_pre_hook(lambda _, inputs, rounding=rounding: (rounding(inputs[0]),)))
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def logits(model, tokens):
    return model(torch.tensor([tokens])).logits[0].numpy()


def logits_both(model, path, tokens):
    """Logits `[positions, vocabulary]`, without and with rounding."""
    plain = logits(model, tokens)
    with rounded_inputs(model, path):
        return plain, logits(model, tokens)


def header(model):
    names = ["transformers", "torch", "gguf"]
    try:
        versions = {name: version(name) for name in [*names, "llama-cpp-python"]}
    except PackageNotFoundError:
        versions = {name: version(name) for name in names}
    return {"made_by": "peers/make_fixtures.py", "model": model, **versions}


def digits(values):
    return [float(f"{value:.7g}") for value in values]


def row(position, plain, rounded, top=None):
    """A row of a sequence; of the `top` largest logits, or all."""
    if top is None:
        return {"position": position, "logits": digits(plain), "rounded_logits": digits(rounded)}
    ids = np.argsort(-plain, kind="stable")[:top]
    return {"position": position, "ids": ids.tolist(), "logits": digits(plain[ids]), "rounded_logits": digits(rounded[ids])}


def write_json(path, head, sequences):
    """One sequence a line."""
    lines = ",\n".join(json.dumps(sequence, separators=(",", ":")) for sequence in sequences)
    path.write_text(f'{{"header": {json.dumps(head)},\n"sequences": [\n{lines}\n]}}\n')


def make(fixture, seed):
    path = TESTDATA / f"{fixture.name}.gguf"
    vocab_size = add_vocabulary(gguf.GGUFWriter(None, "llama"))
    config = llama_config(fixture, vocab_size)
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    write_model(fixture, config, random_state(fixture, model, seed), path)
    load(model, path, config)
    rng = np.random.default_rng(seed)
    sequences = []
    for length, positions in SEQUENCES.items():
        tokens = rng.integers(0, vocab_size, length).tolist()
        plain, rounded = logits_both(model, path, tokens)
        sequences.append({"tokens": tokens, "rows": [row(p, plain[p], rounded[p]) for p in positions]})
    write_json(TESTDATA / f"{fixture.name}.json", header(path.name), sequences)
    print(f"{path.name}: {path.stat().st_size:,} bytes, logits' standard deviation {np.std(plain):.2f}, "
          f"moved by rounding up to {np.abs(rounded - plain).max():.2g}")


def make_bundled():
    reader = gguf.GGUFReader(BUNDLED_MODEL)
    value = lambda key: reader.fields[f"llama.{key}"].contents()
    config = LlamaConfig(vocab_size=value("vocab_size"), hidden_size=value("embedding_length"), intermediate_size=value("feed_forward_length"),
                         num_hidden_layers=value("block_count"), num_attention_heads=value("attention.head_count"), num_key_value_heads=value("attention.head_count_kv"),
                         head_dim=value("attention.key_length"), max_position_embeddings=value("context_length"), rms_norm_eps=value("attention.layer_norm_rms_epsilon"),
                         tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": value("rope.freq_base")})
    model = LlamaForCausalLM._from_config(config, attn_implementation="eager").eval()
    load(model, BUNDLED_MODEL, config)
    import llama_cpp
    tokenizer = llama_cpp.Llama(str(BUNDLED_MODEL), vocab_only=True, verbose=False)
    sequences = []
    for prompt in PROMPTS:
        tokens = tokenizer.tokenize(prompt.encode(), add_bos=False)
        both = zip(*logits_both(model, BUNDLED_MODEL, tokens))
        rows = [row(position, plain, rounded, TOP) for position, (plain, rounded) in enumerate(both)]
        sequences.append({"prompt": prompt, "tokens": tokens, "rows": rows})
    write_json(TESTDATA / "little-storyteller.json", header(BUNDLED_MODEL.name), sequences)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", action="store_true", help="make only these; needs no llama-cpp-python")
    only_architectures = parser.parse_args().architectures
    TESTDATA.mkdir(exist_ok=True)
    import architectures
    architectures.make_all()
    if only_architectures:
        return
    for seed, fixture in enumerate(FIXTURES):
        make(fixture, seed)
    make_bundled()


if __name__ == "__main__":
    main()
