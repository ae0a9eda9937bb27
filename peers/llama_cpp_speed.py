#!/usr/bin/env python3
"""Decoding speed of llama.cpp on the CPU, as JSON on standard output.

For each of --context and --batch, that many sequences, all filled with a prompt of that many tokens, are decoded together, one token each
a step, greedily. Timed: --steps forward passes through llama_decode, with the choice of the largest logit (numpy) and the
filling of the batch, and apart from them, once, the prompt of the first sequence, whose keys and values are copied for the others; not timed:
loading and --warmup steps before. Shown: the median of --repeats such runs.
"""
import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path

from llama_cpp_model import BUNDLED_MODEL, KV_TYPES, LlamaCpp, Token, versions


def prompt_of(llm, length):
    """`length` ids, the same as those of Nucleus's `decode_speed` example; what they say does not matter."""
    return [7919 * i % llm.vocab_size for i in range(length)]


def steps(llm, last, position, count):
    """Decodes `count` tokens for every sequence, whose last tokens are `last`."""
    for position in range(position, position + count):
        logits = llm.decode([Token(int(token_id), position, sequence, True) for sequence, token_id in enumerate(last)])
        last = logits.argmax(axis=1)
    return last


def run(llm, first, batch, context, args):
    """Seconds of the timed steps of so many sequences, which go on from the prompt of the first with the token `first`."""
    llm.cut(0, context)
    for sequence in range(1, batch):
        llm.cut(sequence, 0)
        llm.copy(0, sequence)
    # Different tokens, so that the sequences go different ways.
    last = [(first + 101 * sequence) % llm.vocab_size for sequence in range(batch)]
    last = steps(llm, last, context, args.warmup)
    warm = time.perf_counter()
    steps(llm, last, context + args.warmup, args.steps)
    return time.perf_counter() - warm


def measure(context, args):
    """The rows of one context."""
    llm = LlamaCpp(args.model, threads=args.threads, kv=args.kv, context=context + args.warmup + args.steps,
                   sequences=max(args.batch), flash_attention=args.flash_attention)
    # The first pass through a model reads its file.
    llm.prefill(prompt_of(llm, 1))
    llm.clear()
    ids = prompt_of(llm, context)
    start = time.perf_counter()
    first = int(llm.prefill(ids).argmax())
    prefill = time.perf_counter() - start
    for batch in args.batch:
        decode = [run(llm, first, batch, context, args) for _ in range(args.repeats)]
        rates = [batch * args.steps / seconds for seconds in decode]
        yield {"context": context, "batch": batch, "decode_tokens_per_s": round(statistics.median(rates), 1),
               "decode_tokens_per_s_min": round(min(rates), 1), "decode_tokens_per_s_max": round(max(rates), 1),
               "ms_per_step": round(1e3 * statistics.median(decode) / args.steps, 4),
               "prefill_tokens_per_s": round(context / prefill, 1)}


def cpu_name():
    """The processor's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0] if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16], help="sequences decoded together")
    parser.add_argument("--context", type=int, nargs="+", default=[16], help="tokens in each sequence before decoding")
    parser.add_argument("--steps", type=int, default=128, help="timed steps")
    parser.add_argument("--warmup", type=int, default=8, help="steps before them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--kv", choices=KV_TYPES, default="f16", help="type of the KV cache")
    parser.add_argument("--flash-attention", action="store_true")
    args = parser.parse_args()
    rows = [row for context in args.context for row in measure(context, args)]
    header = {"made_by": "peers/llama_cpp_speed.py", **versions(), "cpu": cpu_name(), "cores": os.cpu_count()}
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name not in ("batch", "context")}
    print(json.dumps({"header": header, "settings": settings | {"model": args.model.name}, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
