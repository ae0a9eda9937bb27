"""Fixture of what llama.cpp's sampler chain keeps: testdata/peers/llama_cpp.jsonl."""

import itertools

import numpy as np

import llama_chain
import rows

STAGES = {
    "temperature": (0.0, 0.3, 0.8, 1.5),
    "dynatemp": ((0.8, 0.5, 1.0), (1.0, 1.0, 2.0), (0.5, 0.7, 0.5)),
    "top_n_sigma": (0.5, 1.0, 2.0),
    "top_k": (1, 2, 5, 40, 200, 5000),
    "typical_p": (0.0, 0.2, 0.5, 0.9, 0.95),
    "top_p": (0.0, 0.1, 0.5, 0.9, 0.95, 0.999),
    "min_p": (0.01, 0.05, 0.3, 1.0),
    "xtc_threshold": (0.02, 0.1, 0.3, 0.5, 0.6),
    "penalties": ((1.3, 0.0, 0.0), (1.0, 0.4, 0.0), (1.0, 0.0, 0.7), (0.8, 0.2, -0.5), (1.1, 0.1, 0.1)),
    "dry": ((0.8, 1.75, 2), (2.0, 1.2, 1), (0.5, 3.0, 3)),
    "logit_bias": ("few",),
    "min_keep": (3, 10),
}
CHOOSERS = {
    "mirostat": ((1, 3.0, 0.1), (1, 6.0, 0.5), (2, 3.0, 0.1), (2, 5.0, 0.3), (2, 0.5, 0.1), (1, 1.0, 1.0)),
    "adaptive": ((0.1, 0.9), (0.5, 0.5), (0.9, 0.0), (0.0, 0.99)),
}
TIED_SHAPES = ("steps", "ties", "flat")  # of tied tokens llama.cpp may draw one that Nucleus cut
WINDOWS = (0, 3, 16, 64, 200)
THRESHOLDS = ("top_p", "min_p", "typical_p", "top_n_sigma", "xtc_threshold", "adaptive_target", "mirostat_tau", "temperature", "dynatemp_range")
OFF = (("top_p", 1.0), ("typical_p", 1.0), ("min_p", 1.0))
TRUNCATIONS = (
    "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_probability", "xtc_threshold", "min_keep", "mirostat", "adaptive_target",
    "dynatemp_range", "dynatemp_exponent",
)


def step(chain, row):
    """One application of the chain to a row: the outcome, and the chosen token."""
    memory = llama_chain.candidates(row)
    left, chosen = chain.apply(memory)
    final, own = np.full(len(row), -np.inf, dtype=np.float32), np.zeros(len(row))
    final[left["id"]], own[left["id"]] = left["logit"], left["p"]
    return rows.Outcome(final, own), chosen


def run(row, prompt, output, params, case):
    """The candidates that the chain leaves. A case with `draws` has the chain see the row, and choose those tokens, as often before."""
    with llama_chain.Chain(llama_chain.stages(params, len(row))) as chain:
        chain.accept(prompt + output)
        for token in case.get("draws", ()):
            step(chain, row)
            chain.accept([token])
        return step(chain, row)[0]


def draws(row, prompt, output, params, count):
    """The first tokens that the chain chooses from the same row over and over."""
    with llama_chain.Chain(llama_chain.stages(params, len(row))) as chain:
        chain.accept(prompt + output)
        chosen = []
        for _ in range(count):
            chosen.append(step(chain, row)[1])
            chain.accept(chosen[-1:])
        return chosen


def nudges(params, vocab):
    """The parameters with every threshold in turn moved both ways by more than f32 sums can err."""
    share = 1e-5 if vocab <= 4000 else 3e-5
    for name in THRESHOLDS:
        for sign in (-share, share):
            if params.get(name, 0.0) > 0.0 and (name, params[name]) not in OFF:
                yield dict(params, **{name: params[name] * (1 + sign)})


def masked_at(stage, case, row, text):
    """Whether candidates at -inf reach a stage: llama.cpp keeps them in its list."""
    params = case["params"]
    if params.get("mirostat", 0):
        return not np.isfinite(row).all()
    order = params.get("samplers", llama_chain.ORDER)
    before = dict(params, samplers=order[: order.index(stage)], adaptive_target=-1.0)
    with llama_chain.Chain(llama_chain.stages(before, len(row))) as chain:
        chain.accept(text)
        memory = llama_chain.candidates(row)
        return not np.isfinite(chain.apply(memory)[0]["logit"]).all()


def cause(case, row, prompt, output):
    """The rule of llama.cpp, listed in README.md, that Nucleus does not follow and that this case meets."""
    params, text = case["params"], prompt + output
    if params.get("mirostat") == 1 and masked_at("mirostat", case, row, text):
        return "mirostat_1_masked"
    if params.get("mirostat"):
        return None
    if params.get("typical_p", 1.0) < 1.0 and masked_at("typ_p", case, row, text):
        return "typical_p_masked"
    if params.get("dynatemp_range", 0.0) > 0.0 and masked_at("temperature", case, row, text):
        return "dynatemp_masked"
    if any(inside(x, y) for x, y in itertools.permutations(params.get("dry_sequence_breakers", []), 2)):
        return "dry_nested_breaker"
    return None


def inside(x, y):
    """Whether x stands in y, after its beginning."""
    return any(y[at : at + len(x)] == x for at in range(1, len(y)))


def set_parameters(params, name, choice, rng, row, case):
    """Sets what a choice from STAGES or CHOOSERS stands for."""
    if name == "dynatemp":
        params["temperature"], params["dynatemp_range"], params["dynatemp_exponent"] = choice
    elif name == "xtc_threshold":
        params["xtc_probability"], params[name] = 1.0, choice
    elif name == "penalties":
        params["repetition_penalty"], params["frequency_penalty"], params["presence_penalty"] = choice
        params["repeat_last_n"] = rng.choice(WINDOWS)
    elif name == "dry":
        params["dry_multiplier"], params["dry_base"], params["dry_allowed_length"] = choice
        params["dry_penalty_last_n"] = rng.choice(WINDOWS[1:])
        params["dry_sequence_breakers"] = breakers(rng, case)
    elif name == "logit_bias":
        best = [int(i) for i in np.argsort(-row, kind="stable")[:10]]
        picked = {rng.choice(best), best[0]} | {rng.randrange(len(row)) for _ in range(4)}
        params[name] = {str(i): rng.randrange(-640, 640) / 64 for i in sorted(picked)}
    elif name == "mirostat":
        params["mirostat"], params["mirostat_tau"], params["mirostat_eta"] = choice
    elif name == "adaptive":
        params["adaptive_target"], params["adaptive_decay"] = choice
    else:
        params[name] = choice


def breakers(rng, case):
    """No breaker, one token, or two tokens of which the second is also a letter of the text."""
    a, b, c, *_, rare = case["history"]["alphabet"]
    kinds = ([], [[rare]], [[rare], [a, b]], [[c, a]])
    return rng.choice(kinds)


def combinations(rng):
    """Every stage alone with every value, pairs of stages, random combinations, other orders, and the choosers."""
    singles = [{name: choice} for name, choices in STAGES.items() for choice in choices]
    pairs = [
        {a: rng.choice(STAGES[a]), b: rng.choice(STAGES[b])}
        for a, b in itertools.combinations(("temperature", "top_n_sigma", "top_k", "typical_p", "top_p", "min_p", "xtc_threshold", "min_keep"), 2)
    ]
    mixed = [{name: rng.choice(STAGES[name]) for name in rng.sample(sorted(STAGES), rng.randint(3, 8))} for _ in range(220)]
    for index, made in enumerate(mixed):
        if index % 2:
            made["samplers"] = rng.sample(llama_chain.ORDER, len(llama_chain.ORDER))
    choosers = [{name: choice, "draws": draws} for name, choices in CHOOSERS.items() for choice in choices for draws in (0, 1, 12)]
    for index, made in enumerate(choosers):
        if index % 2:
            made.update(temperature=rng.choice((0.7, 1.4)))
        if "adaptive" in made and index % 3:
            made.update(min_p=0.02, penalties=(1.2, 0.1, 0.0))
        if "mirostat" in made and index % 3 == 2:
            made.update(top_k=3, penalties=(1.3, 0.2, 0.0))
        if "mirostat" in made and index % 6 == 2:
            made.update(dynatemp=(0.8, 0.5, 1.0))
    return singles + singles + pairs + pairs + mixed + choosers


def suit_typical(spec, choices, index):
    """Leaves few of the rows in which llama.cpp's typical_p meets -inf, and none with two levels about as far from the entropy."""
    if spec["shape"] == "flat" or spec["shape"] in ("masked", "sparse") and index % 4:
        spec["shape"] = "bell"
    if index % 4:
        choices.pop("top_n_sigma", None)


def cases():
    rng = rows.generator(3)
    for index, choices in enumerate(combinations(rng)):
        case = {"n": index, "logits": rows.shapes(rng, index), "params": {"preset": "llama.cpp"}}
        if choices.get("draws") and case["logits"]["shape"] in TIED_SHAPES:
            case["logits"]["shape"] = "bell"
        if "typical_p" in choices:
            suit_typical(case["logits"], choices, index)
        row = rows.logits(**case["logits"])
        if "penalties" in choices or "dry" in choices:
            case["history"] = rows.make_history(rng, row, rng.randint(0, 60), rng.randint(1, 60), letters=5)
        count = choices.pop("draws", 0)
        for name, choice in choices.items():
            set_parameters(case["params"], name, choice, rng, row, case)
        if count:
            case["draws"] = draws(row, *rows.history(case.get("history")), case["params"], count)
        yield case
    yield nested_breakers(rng, index + 1)


def nested_breakers(rng, index):
    """A text that ends with a breaker a b c, within which another one, b, begins later; c was followed by something before."""
    spec = {"shape": "bell", "seed": rng.randrange(1 << 32), "vocab": 500}
    best = [int(i) for i in np.argsort(-rows.logits(**spec), kind="stable")[:5]]
    while True:
        text = {"seed": rng.randrange(1 << 32), "prompt": 6, "output": 6, "alphabet": best}
        ids = sum(rows.history(text), [])
        if ids[-3:] == best[:3] and best[2] in ids[:-4]:
            break
    params = {"preset": "llama.cpp", "dry_multiplier": 1.0, "dry_allowed_length": 1, "dry_penalty_last_n": 64}
    params["dry_sequence_breakers"] = [[best[1]], best[:3]]
    return {"n": index, "logits": spec, "params": params, "history": text}


if __name__ == "__main__":
    header = {"peer": "llama.cpp", "version": llama_chain.VERSION, "script": "peers/sampling/llama_cpp_chain.py"}
    rows.write("llama_cpp.jsonl", header, cases(), rows.Peer(run, TRUNCATIONS, nudges, cause))
