"""Fixture of what transformers' own logits processors keep: testdata/peers/transformers.jsonl.

The list of processors, their order and their arguments come from transformers itself (`GenerationMixin._get_logits_processor`), called
with a `GenerationConfig`; this script chooses rows and parameters and reads the scores that come out.
"""

import itertools
import types
import warnings

import numpy as np
import torch
import transformers
from transformers import GenerationConfig
from transformers.generation.utils import GenerationMixin

import rows

DECODER_ONLY = types.SimpleNamespace(is_encoder_decoder=False)

STAGES = {
    "temperature": (0.3, 0.7, 1.3, 2.0),
    "top_k": (1, 2, 5, 40, 100, 5000),
    "top_p": (0.0, 0.1, 0.5, 0.9, 0.95, 0.999),
    "min_p": (0.0, 0.01, 0.05, 0.3, 1.0),
    "typical_p": (0.2, 0.5, 0.9, 0.95),
    "epsilon_cutoff": (1e-4, 3e-3, 0.05),
    "eta_cutoff": (3e-4, 4e-3, 0.1),
    "repetition_penalty": (0.8, 1.1, 1.5),
    "no_repeat_ngram_size": (1, 2, 3),
    "bad_words": ("single", "pairs"),
    "logit_bias": ("few",),
    "allowed_token_ids": ("some",),
    "min_tokens": (5, 60),
    "min_keep": (2,),
}
THRESHOLDS = ("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")
TRUNCATIONS = THRESHOLDS + ("top_k", "min_keep")
NEEDS_HISTORY = ("repetition_penalty", "no_repeat_ngram_size", "bad_words", "min_tokens")


def config(params, eos):
    """The parameters by transformers' names. Absent ones get the value that turns them off."""
    bias = params.get("logit_bias") or {}
    allowed = params.get("allowed_token_ids")
    made = GenerationConfig(
        do_sample=True,
        num_beams=2 if "min_keep" in params else 1,  # only beams raise transformers' min_tokens_to_keep: to 1 + the number of eos ids, or 2
        temperature=params.get("temperature", 1.0),
        top_k=params.get("top_k", 0),
        top_p=params.get("top_p", 1.0),
        min_p=params.get("min_p"),
        typical_p=params.get("typical_p", 1.0),
        epsilon_cutoff=params.get("epsilon_cutoff", 0.0),
        eta_cutoff=params.get("eta_cutoff", 0.0),
        repetition_penalty=params.get("repetition_penalty", 1.0),
        no_repeat_ngram_size=params.get("no_repeat_ngram_size", 0),
        bad_words_ids=params.get("bad_words"),
        min_new_tokens=params.get("min_tokens"),
        sequence_bias=[[[int(i)], float(b)] for i, b in bias.items()] or None,
    )
    made._eos_token_tensor = torch.tensor(eos) if eos else None
    return made, (lambda batch, ids: allowed) if allowed else None


def run(row, prompt, output, params, case):
    """The scores after every processor, in transformers' order."""
    made, allowed = config(params, case.get("eos"))
    processors = GenerationMixin._get_logits_processor(
        types.SimpleNamespace(config=DECODER_ONLY, _merge_criteria_processor_list=lambda default, custom: default),
        generation_config=made,
        input_ids_seq_length=len(prompt),
        prefix_allowed_tokens_fn=allowed,
        device="cpu",
    )
    ids = torch.tensor([prompt + output], dtype=torch.long)
    if made.num_beams > 1:  # the prefix function is asked once per beam
        scores = processors(ids.repeat(made.num_beams, 1), torch.tensor(row)[None].repeat(made.num_beams, 1))
    else:
        scores = processors(ids, torch.tensor(row)[None])
    return rows.Outcome(scores[0].numpy(), torch.softmax(scores[0], -1).numpy())


def nudges(params, vocab):
    """The parameters with every threshold, and then the temperature, moved both ways by more than f32 sums can err."""
    step = 1e-5 if vocab <= 4000 else 3e-5
    for sign in (-step, step):
        moved = {name: min(max(params[name] * (1 + sign), 0.0), 1.0) for name in THRESHOLDS if params.get(name, 0.0) not in (0.0, 1.0)}
        if moved:
            yield dict(params, **moved)
        if "temperature" in params:
            yield dict(params, temperature=params["temperature"] * (1 + sign))


def cause(case, row, prompt, output):
    """The rule of transformers, listed in README.md, that Nucleus does not follow and that this case meets."""
    params = case["params"]
    allowed = params.get("allowed_token_ids")
    free = {name: value for name, value in params.items() if name not in TRUNCATIONS + ("allowed_token_ids",)}
    if allowed and not np.isfinite(run(row, prompt, output, free, case).final[allowed]).any():
        return "nothing_allowed"
    return None


def value(name, choice, rng, row, case):
    """A choice from STAGES as a value for this row."""
    vocab = len(row)
    best = (-row).argsort(kind="stable")
    if choice == "few":
        picked = [int(best[rng.randrange(10)]), int(best[0])] + [rng.randrange(vocab) for _ in range(4)]
        return {str(i): rng.randrange(-640, 640) / 64 for i in sorted(set(picked))}
    if choice == "some":
        return sorted({int(best[i]) for i in range(0, 40, 3)} | {rng.randrange(vocab) for _ in range(min(vocab // 8, 60))})
    if choice == "single":
        return [[int(i)] for i in rng.sample([int(b) for b in best[:12]], 4)]
    if choice == "pairs":
        prompt, output = rows.history(case["history"])
        text = prompt + output
        return [[text[-1], int(best[0])], text[-2:] + [int(best[1])], [(text[-1] + 1) % vocab, int(best[2])], [int(best[3])]]
    return choice


def cases():
    """Every stage alone with every value, pairs of stages, then random combinations."""
    rng = rows.generator(1)
    singles = [{name: choice} for name, choices in STAGES.items() for choice in choices]
    pairs = [
        {a: rng.choice(STAGES[a]), b: rng.choice(STAGES[b])}
        for a, b in itertools.combinations(("temperature", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff", "min_keep"), 2)
    ]
    mixed = [{name: rng.choice(STAGES[name]) for name in rng.sample(sorted(STAGES), rng.randint(3, 7))} for _ in range(190)]
    for index, choices in enumerate(singles + singles + pairs + pairs + mixed):
        case = {"n": index, "logits": rows.shapes(rng, index), "params": {"preset": "hf"}}
        row = rows.logits(**case["logits"])
        if any(name in choices for name in NEEDS_HISTORY):
            case["history"] = rows.make_history(rng, row, rng.randint(4, 40), rng.randint(3, 50))
        if "min_tokens" in choices:
            case["eos"] = [int((-row).argsort()[0]), rng.randrange(len(row))]
            choices = {name: 3 if name == "min_keep" else choice for name, choice in choices.items()}
        for name, choice in choices.items():
            case["params"][name] = value(name, choice, rng, row, case)
        yield case


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    peer = {"peer": "transformers", "version": transformers.__version__, "torch": torch.__version__, "script": "peers/sampling/transformers_processors.py"}
    rows.write("transformers.jsonl", peer, cases(), rows.Peer(run, TRUNCATIONS, nudges, cause))
