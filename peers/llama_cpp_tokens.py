#!/usr/bin/env python3
"""Tokens of awkward texts by llama.cpp, for the test of the engine's tokenizer.

Writes crates/nucleus-engine/testdata/llama_cpp_tokens.json: for each text its ids with special tokens in it as plain text
(`ids`) and as themselves (`ids_special`), on the vocabulary of the bundled model.

With --vocabularies DIR, a folder that crates/nucleus-engine/tests/llama_cpp_files/fetch.sh has filled, writes
llama_cpp_vocabularies.json instead: the same for the WordPiece and the Unigram vocabulary there, with the ids of whole texts
(`ids_whole`: with special tokens as themselves, and what the model wants around a text).
"""
import argparse
import ctypes
import json
from pathlib import Path

import llama_cpp as ll

from llama_cpp_model import BUNDLED_MODEL, LlamaCpp, log_errors, versions

TESTDATA = Path(__file__).resolve().parent.parent / "crates/nucleus-engine/testdata"
VOCABULARIES = ["bert-bge", "nomic-bert-moe"]
TEXTS = [
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\n\n\n", "\r\n", "\t\n", " \n ", "\n \n\n \n\n\n",
    "Once upon a time", " Once upon a time ", "Once  upon   a    time", "ONCE UPON A TIME", "once\tupon\ta\ttime",
    "The king's daughters didn't, couldn't, wouldn't; they'll've gone, I'm sure; we're, he'd", "IT'S I'M YOU'LL",
    "'s't're've'm'll'd", "''''", "\"\"", "(...)!?", "Hello, world!", "Hello,world", " Hello, y'all! How are you?",
    "12345", "1 22 333 4444 55555", "3.14159e-10", "1,000,000", "\u00bd \u00b2 \u2167 \u0664", "v1.2.3-rc4+build",
    "caf\u00e9", "cafe\u0301", "na\u00efve fa\u00e7ade \u00c4pfel stra\u00dfe", "\u043d\u0435\u0449\u043e \u043d\u0430 \u0411\u044a\u043b\u0433\u0430\u0440\u0441\u043a\u0438",
    "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8", "\ud55c\uad6d\uc5b4", "\u4f60\u597d\uff0c\u4e16\u754c\uff01", "\u1780\u17b6\u1793\u17cb\u178f\u17c2", "\u0645\u0631\u062d\u0628\u0627",
    "\U0001f409", "\U0001f409\U0001f525 and \U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1eb\U0001f1f7\u2764\ufe0f", "\u00a0\u2003\u3000x", "a\u200bb\ufeffc",
    "\x00", "a\x00b", "\x01\x02\x7f", "\u0085\u2028\u2029x", "\ufffd", "\U0010ffff", "\U000e0041",
    "<|endoftext|>", "<|im_start|>user\nHello<|im_end|>\n", "a<|im_end|>b <|im_end|> c", "<|im_end|><|im_end|>", "<|im_end", "<|im_end |>", "<<|im_end|>>",
    "<|endoftext|>Once upon", "<|IM_END|>", "fn main() { println!(\"{}\", x[0] & 0xff); }", "    if x:\n        return None\n\n\n    # end",
    "https://example.org/a?b=c&d=%20#e", "x" * 40, "ab" * 20, " " * 40 + "x", "\n" * 20, "aA" * 10, "supercalifragilisticexpialidocious",
    "It was a dark and stormy night; the rain fell in torrents\u2014except at occasional intervals, when it was checked by a violent gust of wind.",
]
# What cleaning and normalising change, and special tokens of these vocabularies.
NORMALIZED_TEXTS = [
    "\ufb01ne \u2460 \uff21\uff42\uff43 \u2122 \u33c2 \u00bc", "\u1e9e\u0130\u01c5 \u03a3\u03af\u03c3\u03c5\u03c6\u03bf\u03c2", "\u0041\u030a \u00c5 \u212b", "\uac01 \u1100\u1161\u11a8",
    "\u304c \u304b\u3099 \uff76\uff9e", "a\u00adb\u200cd\u2060e", "a\tb\r\nc \u3000 d", "\u4e2d\u6587abc\u4e2d\u6587", "\U00020000x\U0002b820", "$5+5=10~ish ^_^ `code`", "\u00a35 \u20ac6 \u00a77",
    "[CLS] a [MASK]b [SEP] [UNK] [unused5] [PAD]", "<s>a</s> b <mask> c<unk>d<pad>", "\u2581a\u2581\u2581b", "##ing ing", "\u0e01\u0e33 \u0e44\u0e17\u0e22", "\u0915\u094d\u0937\u093f", "\u0628\u0650\u0633\u0652\u0645\u0650",
    "It's John's dog, isn't it? Yes! No... (maybe)", "co-operate re-enter", "1,234.5%", "Q: \"Why?\" A: 'Because.'",
]


def tokenize(vocab, text, parse_special, add_special=False):
    raw = text.encode()
    ids = (ll.llama_token * (len(raw) + 8))()
    count = ll.llama_tokenize(vocab, raw, len(raw), ids, len(ids), add_special, parse_special)
    assert count >= 0, (text, count)
    return list(ids[:count])


def load_vocabulary(path):
    ll.llama_log_set(log_errors, ctypes.c_void_p(0))
    params = ll.llama_model_default_params()
    params.vocab_only = True
    model = ll.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise SystemExit(f"cannot load {path}")
    return ll.llama_model_get_vocab(model)


def write(path, header, body):
    header = {"made_by": "peers/llama_cpp_tokens.py", **header, **versions()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{{"header": {json.dumps(header)},\n{body}}}\n')


def lines(rows):
    return ",\n".join(json.dumps(row) for row in rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUNDLED_MODEL)
    parser.add_argument("--vocabularies", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    if args.vocabularies:
        ll.llama_backend_init()
        all_rows = {}
        for name in VOCABULARIES:
            vocab = load_vocabulary(args.vocabularies / f"ggml-vocab-{name}.gguf")
            texts = TEXTS + NORMALIZED_TEXTS
            all_rows[name] = [{"text": t, "ids": tokenize(vocab, t, False), "ids_special": tokenize(vocab, t, True), "ids_whole": tokenize(vocab, t, True, True)} for t in texts]
            print(f"{name}: {len(texts)} texts, {sum(len(row['ids']) for row in all_rows[name])} tokens")
        body = ",\n".join(f'{json.dumps(name)}: [\n{lines(rows)}\n]' for name, rows in all_rows.items())
        write(args.out or TESTDATA / "llama_cpp_vocabularies.json", {}, f'"vocabularies": {{\n{body}\n}}')
        return
    vocab = LlamaCpp(args.model, threads=1, kv="f32", context=8).vocab
    rows = [{"text": t, "ids": tokenize(vocab, t, False), "ids_special": tokenize(vocab, t, True)} for t in TEXTS]
    write(args.out or TESTDATA / "llama_cpp_tokens.json", {"model": args.model.name}, f'"texts": [\n{lines(rows)}\n]')
    print(f"{len(rows)} texts, {sum(len(row['ids']) for row in rows)} tokens")


if __name__ == "__main__":
    main()
