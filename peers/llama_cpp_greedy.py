#!/usr/bin/env python3
"""Greedy continuations by llama.cpp, for the engine's test of equal text.

Writes crates/nucleus-engine/testdata/llama_cpp_greedy.json: for each prompt its ids, the ids and text of the continuation,
and at each step the difference between the two largest logits, since two correct engines may differ where it is tiny.
The KV cache is F32 and flash attention is off, so that nothing but the order of sums differs from an F32 engine.
"""
import argparse
import json
from pathlib import Path

import numpy as np

from llama_cpp_model import BUNDLED_MODEL, LlamaCpp, Token, versions

OUT = Path(__file__).resolve().parent.parent / "crates/nucleus-engine/testdata/llama_cpp_greedy.json"
PROMPTS = [
    "Once upon a time",
    "The king said to his daughter,",
    "It was a dark night, and the",
    "There was once a poor woodcutter who had",
    "\"Who are you?\" asked the fox.",
    "Alice looked up at the moon and",
    "The old ship sailed out of the harbour with 12 men, 3 dogs",
    "In the middle of the forest stood a little house;",
    "CHAPTER I.\n\nThe Giant's Garden\n\n",
    "\"No,\" said the dragon, \"I don't eat princesses\u2014",
]


def top_two(logits):
    """The largest logit's id (the lowest on a tie) and its lead over the second."""
    second, first = np.partition(logits, -2)[-2:]
    return int(logits.argmax()), float(first - second)


def greedy(llm, prompt, count):
    """At most `count` tokens after the prompt; ends before a token that ends a generation."""
    llm.clear()
    prompt_ids = llm.tokenize(prompt)
    logits, ids, gaps = llm.prefill(prompt_ids), [], []
    while len(ids) < count:
        token_id, gap = top_two(logits)
        if llm.ends(token_id):
            break
        ids.append(token_id)
        gaps.append(float(f"{gap:.6g}"))
        logits = llm.decode([Token(token_id, len(prompt_ids) + len(ids) - 1, 0, True)])[0]
    return {"prompt": prompt, "prompt_ids": prompt_ids, "token_ids": ids,
            "text": b"".join(map(llm.piece, ids)).decode(), "finish_reason": "length" if len(ids) == count else "stop",
            "top2_gap": gaps}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--count", type=int, default=64, help="tokens after each prompt")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()

    llm = LlamaCpp(args.model, threads=args.threads, kv="f32", context=512)
    header = {"made_by": "peers/llama_cpp_greedy.py", "model": args.model.name, **versions(),
              "kv_cache": "f32", "flash_attention": False, "threads": args.threads}
    rows = [greedy(llm, prompt, args.count) for prompt in PROMPTS]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    args.out.write_text(f'{{"header": {json.dumps(header)},\n"prompts": [\n{lines}\n]}}\n')
    for row in rows:
        print(f"{len(row['token_ids'])} tokens, smallest gap {min(row['top2_gap'], default=0):.1e}: {row['prompt']!r}")


if __name__ == "__main__":
    main()
