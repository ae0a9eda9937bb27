#!/usr/bin/env python3
"""Tiny random models of every architecture, in two forms, with the logits that transformers computes on each.

Called by make_fixtures.py. Writes to crates/nucleus-engine/testdata, for each architecture:
  <name>/        what `save_pretrained` writes of a model with BF16 weights: config.json and safetensors files
  <name>.gguf    the same weights in Q8_0 or F16, under the names and in the order that llama.cpp's converter gives them
  <name>-q5_1.gguf and the like, for some: in a type whose inputs are rounded to 8 bits
  <name>.json    token ids of a few sequences, and logits at some of their positions, of each of these by its name without
                 ".gguf"; the weights are those read back from the file, as f32
  <name>/tokenizer.json and tokenizer_config.json, for some: vocabularies of the four kinds in use
  tokenizer_json.json  texts with their tokens, as transformers encodes them with these vocabularies
Some sequences are longer than the sliding windows and than the original context.
"""
import json, shutil
from dataclasses import dataclass, field

import gguf
import numpy as np
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType as Type

import make_fixtures as common

VOCAB = 267
CONTEXT = 128
SHAPE = dict(vocab_size=VOCAB, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             max_position_embeddings=CONTEXT, bos_token_id=0, eos_token_id=1, pad_token_id=None)
GEMMA = dict(SHAPE, num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, rms_norm_eps=1e-6)
LONG_FACTORS = {"short_factor": [1.0 + 0.05 * i for i in range(8)], "long_factor": [1.0 + 0.6 * i for i in range(8)]}
# The positions whose logits are written, by the length of the sequence.
SEQUENCES = {9: [8], 60: [20, 59]}

LAYER_NAMES = dict(common.LAYER_NAMES, **{"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"})
POST_NORM_NAMES = dict(LAYER_NAMES, post_attention_layernorm="post_attention_norm", pre_feedforward_layernorm="ffn_norm", post_feedforward_layernorm="post_ffw_norm")


@dataclass
class Fixture:
    """An architecture: transformers' configuration, GGUF's name and keys, and the types of the GGUF files' matrices."""

    name: str
    config: transformers.PreTrainedConfig
    architecture: str
    types: list
    keys: dict = field(default_factory=dict)
    # What the configuration of the GGUF file's model has otherwise: what GGUF files do not say.
    gguf_config: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)
    shards: bool = False

    @property
    def is_gemma(self):
        return self.architecture.startswith("gemma")

    @property
    def is_permuted(self):
        return self.architecture == "llama"

    def gguf_name(self, name):
        if name in common.NAMES:
            return common.NAMES[name]
        _, _, layer, rest = name.split(".", 3)
        stem, kind = rest.rsplit(".", 1)
        names = POST_NORM_NAMES if self.architecture in ("gemma2", "gemma3") else LAYER_NAMES
        return f"blk.{layer}.{names[stem]}.{kind}"


def rope(kind="default", theta=10000.0, **more):
    return {"rope_type": kind, "rope_theta": theta, **more}


def fixtures():
    t = transformers
    return [
        Fixture("llama3", t.LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=common.LLAMA3_ROPE), "llama", [Type.Q8_0],
                {"rope.freq_base": 500000.0}, tensors={"rope_freqs.weight": common.llama3_factors(common.Fixture("", head_dim=16, rope=common.LLAMA3_ROPE))}, shards=True),
        Fixture("mistral", t.MistralConfig(**SHAPE, head_dim=32, sliding_window=16, rope_parameters=rope(theta=1e6)), "llama", [Type.Q8_0, Type.Q4_0],
                {"rope.freq_base": 1e6, "attention.sliding_window": 16}),
        Fixture("qwen2", t.Qwen2Config(**SHAPE, rope_parameters=rope(theta=1e6), use_sliding_window=False), "qwen2", [Type.Q8_0, Type.Q5_1], {"rope.freq_base": 1e6}),
        Fixture("qwen3", t.Qwen3Config(**SHAPE, head_dim=32, tie_word_embeddings=True, use_sliding_window=False,
                                       rope_parameters=rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=32)), "qwen3", [Type.Q8_0],
                {"rope.freq_base": 1e6, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}),
        Fixture("phi3", t.Phi3Config(**dict(SHAPE, num_attention_heads=2, num_key_value_heads=1), sliding_window=24, original_max_position_embeddings=32,
                                     rope_parameters=rope("longrope", partial_rotary_factor=0.5, original_max_position_embeddings=32, **LONG_FACTORS)), "phi3", [Type.Q8_0, Type.Q4_1],
                {"rope.dimension_count": 16, "attention.sliding_window": 24, "rope.scaling.original_context_length": 32, "rope.scaling.attn_factor": (1 + np.log(4) / np.log(32)) ** 0.5},
                tensors={f"rope_factors_{n}.weight": np.array(LONG_FACTORS[f"{n}_factor"], np.float32) for n in ("short", "long")}),
        Fixture("gemma", t.GemmaConfig(**GEMMA, rope_parameters=rope()), "gemma", [Type.F16]),
        Fixture("gemma2", t.Gemma2Config(**GEMMA, rope_parameters=rope(), sliding_window=16, query_pre_attn_scalar=24, attn_logit_softcapping=2.0, final_logit_softcapping=3.0), "gemma2",
                [Type.Q8_0], {"attention.sliding_window": 16, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0}, {"query_pre_attn_scalar": 32}),
        Fixture("gemma3", t.Gemma3TextConfig(**dict(GEMMA, num_hidden_layers=7, intermediate_size=64), sliding_window=16, query_pre_attn_scalar=24,
                                             rope_parameters={"full_attention": rope("linear", 1e6, factor=8.0), "sliding_attention": rope()}), "gemma3", [Type.Q8_0, Type.Q5_0],
                {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0, "attention.sliding_window": 16}, {"query_pre_attn_scalar": 32}),
    ]


def random_state(fixture, model, seed):
    """Weights that give activations, scores and logits of the order of 1, exact in BF16."""
    rng = np.random.default_rng(seed)
    state = {}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and fixture.config.tie_word_embeddings:
            continue
        if tensor.dim() == 2:
            is_embedding = "embed_tokens" in name
            scale = 1.0 if is_embedding and not fixture.config.tie_word_embeddings else tensor.shape[1] ** -0.5
            array = rng.normal(0.0, scale if is_embedding else 2 * scale, tensor.shape)
        else:
            center = 0.0 if name.endswith(".bias") or fixture.is_gemma else 1.0
            array = center + rng.uniform(-0.5, 0.5, tensor.shape)
        state[name] = torch.tensor(array, dtype=torch.bfloat16)
    return state


def new_model(config):
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def load(model, state):
    missing, unexpected = model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()


def write_safetensors(fixture, model):
    path = common.TESTDATA / fixture.name
    shutil.rmtree(path, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(path, max_shard_size="120KB" if fixture.shards else "1GB")
    (path / "generation_config.json").unlink(missing_ok=True)
    model.to(torch.float32)


def write_gguf(fixture, kind_of_matrices, config, state, path):
    writer = gguf.GGUFWriter(path, fixture.architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(fixture.name)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if fixture.architecture != "phi3":
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    for key, value in fixture.keys.items():
        add = {str: writer.add_string, int: writer.add_uint32}.get(type(value), writer.add_float32)
        add(f"{fixture.architecture}.{key}", value if isinstance(value, (str, int)) else float(value))
    common.add_vocabulary(writer)
    for name, array in fixture.tensors.items():
        writer.add_tensor(name, array)
    for name, tensor in state.items():
        array = tensor.float().numpy()
        heads = common.heads_of(name, config) if fixture.is_permuted else None
        array = common.permute(array, heads) if heads else array
        if fixture.is_gemma and name.endswith("norm.weight"):
            array = array + 1
        kind = kind_of_matrices if array.ndim == 2 else Type.F32
        writer.add_tensor(fixture.gguf_name(name), gguf.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(fixture, config, names, path):
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    state = {}
    for name in names:
        tensor = tensors[fixture.gguf_name(name)]
        array = gguf.dequantize(tensor.data, tensor.tensor_type).reshape([*map(int, reversed(tensor.shape))])
        heads = common.heads_of(name, config) if fixture.is_permuted else None
        array = common.unpermute(array, heads) if heads else np.array(array)
        state[name] = torch.from_numpy(array - 1 if fixture.is_gemma and name.endswith("norm.weight") else array)
    return state


def expected(tokens, model):
    """Sequences with the logits at some of their positions."""
    sequences = []
    for ids in tokens:
        logits = common.logits(model, ids)
        rows = [{"position": position, "logits": common.digits(logits[position])} for position in SEQUENCES[len(ids)]]
        sequences.append({"tokens": ids, "rows": rows})
    return sequences


def make_gguf(fixture, name, kind, state, tokens):
    config = type(fixture.config)(**{**fixture.config.to_dict(), **fixture.gguf_config})
    path = common.TESTDATA / f"{name}.gguf"
    write_gguf(fixture, kind, config, state, path)
    model = new_model(config)
    load(model, read_gguf(fixture, config, state, path))
    result = expected(tokens, model)
    hooks = [module.register_forward_pre_hook(lambda _, inputs: (common.round_to_q8_0(inputs[0]),)) for module in model.modules() if isinstance(module, torch.nn.Linear)]
    moved = max(np.abs(np.subtract(a["logits"], b["logits"])).max() for x, y in zip(result, expected(tokens, model)) for a, b in zip(x["rows"], y["rows"]))
    print(f"{path.name}: {path.stat().st_size:,} bytes, logits' standard deviation {np.std(result[1]['rows'][1]['logits']):.2f}, moved by rounding to 8 bits by up to {moved:.2g}")
    return result


def make(fixture, seed):
    model = new_model(fixture.config)
    state = random_state(fixture, model, 100 + seed)
    load(model, state)
    rng = np.random.default_rng(seed)
    tokens = [rng.integers(0, VOCAB, length).tolist() for length in SEQUENCES]
    parts = {"safetensors": expected(tokens, model)}
    write_safetensors(fixture, model)
    for index, kind in enumerate(fixture.types):
        name = f"{fixture.name}-{kind.name.lower()}" if index else fixture.name
        parts[name] = make_gguf(fixture, name, kind, state, tokens)
    lines = ",\n".join(f'"{name}": {json.dumps(part, separators=(",", ":"))}' for name, part in parts.items())
    (common.TESTDATA / f"{fixture.name}.json").write_text(f'{{"header": {json.dumps(common.header(fixture.name))},\n"forms": {{\n{lines}\n}}}}\n')


CHATML = "{% for message in messages %}{{ '<|bos|>' + message['role'] + '\\n' + message['content'] + eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|bos|>assistant\\n' }}{% endif %}"
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEXTS = ["", " ", "the", "Hello world", "  the  end ", "and the man", "é🐉", "a\n\nb\t", "<|bos|>the<|eos|> x", "▁the", "it's 12 o'clock\r\n"]


def byte_level(with_bos):
    """A vocabulary as Qwen's and Llama 3's: that of add_vocabulary."""
    tokens, merges = common.vocabulary()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, [tuple(merge.split(" ")) for merge in merges], ignore_merges=with_bos))
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(QWEN2), "isolated")
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    if with_bos:
        tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return tokenizer


def on_characters(with_prefix):
    """A vocabulary as Llama 2's and Gemma's: spaces as ▁, and bytes for what has no token."""
    texts = ["▁", "t", "h", "e", "▁t", "he", "▁the", "a", "n"]
    tokens = ["<|bos|>", "<|eos|>", *(f"<0x{byte:02X}>" for byte in range(256)), *texts]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he")]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE({token: id for id, token in enumerate(tokens)}, merges, byte_fallback=True))
    normalizers, decoders = [tokenizers.normalizers.Replace(" ", "▁")], [tokenizers.decoders.Replace("▁", " "), tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    if with_prefix:
        normalizers.insert(0, tokenizers.normalizers.Prepend("▁"))
        decoders.append(tokenizers.decoders.Strip(" ", 1, 0))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(normalizers)
    tokenizer.decoder = tokenizers.decoders.Sequence(decoders)
    tokenizer.add_special_tokens(["<|bos|>", "<|eos|>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<|bos|> $A", special_tokens=[("<|bos|>", 0)])
    return tokenizer


def make_tokenizers():
    vocabularies = {"qwen3": byte_level(False), "llama3": byte_level(True), "gemma3": on_characters(False), "mistral": on_characters(True)}
    expected = {}
    for name, library in vocabularies.items():
        library.save(str(common.TESTDATA / name / "tokenizer.json"))
        config = {"bos_token": "<|bos|>", "eos_token": {"content": "<|eos|>"}, "tokenizer_class": "PreTrainedTokenizerFast"}
        if name == "qwen3":
            config |= {"bos_token": None, "chat_template": CHATML}
        (common.TESTDATA / name / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(common.TESTDATA / name / "tokenizer.json"))
        encode = lambda text, special: {"ids": tokenizer(text, add_special_tokens=special)["input_ids"]}
        expected[name] = {"adds_bos": encode("", True)["ids"] == [0], "texts": [
            {"text": text, **encode(text, False), "decoded": library.decode(encode(text, False)["ids"], skip_special_tokens=False)} for text in TEXTS]}
    (common.TESTDATA / "tokenizer_json.json").write_text(json.dumps({"header": common.header("tokenizer.json"), "vocabularies": expected}, ensure_ascii=False, indent=1) + "\n")


def make_all():
    for seed, fixture in enumerate(fixtures()):
        make(fixture, seed)
    make_tokenizers()
