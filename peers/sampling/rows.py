"""Deterministic rows of logits and histories, and the fixture format. peers/sampling/README.md describes both.

`crates/nucleus-sampling/tests/peers/rows.rs` repeats every generator here, number for number.
"""

import datetime
import json
import pathlib
import random

import numpy as np

FIXTURES = pathlib.Path(__file__).resolve().parents[2] / "testdata" / "peers"
UNIT = 1 << 17  # logits are integers divided by this, so they are exact in f32
GAMMA = np.uint64(0x9E3779B97F4A7C15)
LISTED = 32  # kept sets up to this size are listed, larger ones hashed
TOP = 8  # number of probabilities recorded
LOW, HIGH = 18.0, 23.0  # nats below the best token between which kept sets are cut


def splitmix64(seed, count):
    """The first `count` outputs of splitmix64 started at `seed`."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, count + 1, dtype=np.uint64) * GAMMA
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def _byte_sums(words):
    """Sum of the eight bytes of each word less its mean: an approximately normal integer in [-1020, 1020], sigma 209."""
    return words.view(np.uint8).reshape(-1, 8).sum(axis=1, dtype=np.int64) - 1020


def _bell(words, fine):
    return _byte_sums(words) * 1536 + (fine % np.uint64(1536)).astype(np.int64)


def _raised(values, seed):
    """Raises 20 tokens by 6 to 14."""
    draws = splitmix64(seed ^ 0x5EED, 40)
    for place, amount in zip(draws[0::2], draws[1::2]):
        values[int(place) % len(values)] += 6 * UNIT + (int(amount) >> 44)
    return values


def _leading_zeros(words):
    return sum((words < np.uint64(1 << (64 - k))).astype(np.int64) for k in range(1, 64))


def logits(shape, seed, vocab):
    """One row of `vocab` f32 logits."""
    words, fine = splitmix64(seed, vocab), splitmix64(seed ^ 0xF14E, vocab)
    masked = np.zeros(vocab, dtype=bool)
    if shape in ("bell", "peaked", "masked", "sparse", "one_hot"):
        values = _bell(words, fine)
    if shape == "peaked":
        values = _raised(values, seed)
    elif shape == "masked":
        masked = fine & np.uint64(3 << 32) == 0
    elif shape == "sparse":
        masked = fine & np.uint64(31 << 32) != 0
    elif shape == "one_hot":
        values[int(fine[0]) % vocab] += 40 * UNIT
    elif shape == "steps":  # multiples of 1/64
        values = (_byte_sums(words) * 3 >> 2) * (UNIT >> 6)
    elif shape == "ties":  # multiples of 1/4
        values = (_byte_sums(words) * 3 >> 6) * (UNIT >> 2)
    elif shape == "heavy":  # an exponential tail
        values = _leading_zeros(words) * 196608 + (fine % np.uint64(196608)).astype(np.int64)
    elif shape == "flat":  # two levels
        values = (fine & np.uint64(1)).astype(np.int64) * (UNIT >> 6)
    row = values.astype(np.float32) / np.float32(UNIT)
    row[masked] = -np.inf
    return row


def history(spec):
    """Prompt and output ids: draws from a small alphabet, so that passages repeat."""
    if spec is None:
        return [], []
    draws = splitmix64(spec["seed"], spec["prompt"] + spec["output"])
    ids = [spec["alphabet"][int(d >> np.uint64(32)) % len(spec["alphabet"])] for d in draws]
    return ids[: spec["prompt"]], ids[spec["prompt"] :]


def make_history(rng, row, prompt, output, letters=8):
    """A history over the row's most likely tokens and a few others, so that penalties reach the kept set."""
    best = [int(i) for i in np.argsort(-row, kind="stable")[: 2 * letters] if np.isfinite(row[i])]
    alphabet = rng.sample(best, min(letters - 2, len(best))) + [rng.randrange(len(row)) for _ in range(2)]
    return {"seed": rng.randrange(1 << 32), "prompt": prompt, "output": output, "alphabet": alphabet}


def fnv1a(ids):
    """64-bit FNV-1a over the ids in ascending order, four little-endian bytes each."""
    value = 0xCBF29CE484222325
    for byte in np.sort(np.asarray(ids, dtype="<u4")).tobytes():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return f"{value:016x}"


class Outcome:
    """What a peer left of a row: the final logit of every id, -inf where it cannot be drawn, and their softmax.

    The softmax is taken in f64: the peers' own f32 ones, `own`, are off by 2e-5 of each probability at 151,936 tokens.
    """

    def __init__(self, final, own):
        self.final = np.asarray(final, dtype=np.float32)
        powers = np.exp(self.final.astype(np.float64) - self.final.max()) if np.isfinite(self.final).any() else np.zeros(len(self.final))
        self.probs = powers / max(powers.sum(), 1.0)
        assert np.allclose(np.nan_to_num(own), self.probs, rtol=0.0, atol=5e-5)

    def gap(self):
        """The middle and width (in nats below the best) of the widest gap between LOW and HIGH, where the kept set is cut.

        Nucleus gives tokens 30 nats below the best no weight, and tokens near that a weight of few digits; the peers give them what f32
        can hold.
        """
        below = self.final.max() - self.final[np.isfinite(self.final)].astype(np.float64)
        edges = np.concatenate(([LOW], np.sort(below[(below > LOW) & (below < HIGH)]), [HIGH]))
        widths = np.diff(edges)
        widest = int(widths.argmax())
        return float(edges[widest] + widths[widest] / 2), float(widths[widest])

    def kept(self, floor):
        if not np.isfinite(self.final).any():
            return np.array([], dtype=np.int64)
        return np.flatnonzero(self.final.astype(np.float64) >= float(self.final.max()) - floor)


def tied(final, edited):
    """The ids whose logits equal that of a removed id and that of a kept id: which of them stay is a rule about ties."""
    kept, finite = np.isfinite(final), np.isfinite(edited)
    shared = np.intersect1d(edited[kept & finite], edited[~kept & finite])
    return np.flatnonzero(np.isin(edited, shared) & finite)


class Peer:
    """A peer's code as functions of a row and parameters, and what it takes to judge its outcomes."""

    def __init__(self, run, truncations, nudges, cause):
        self.run, self.truncations, self.nudges, self.cause = run, truncations, nudges, cause

    def edited(self, row, prompt, output, case):
        """The logits as they reach the truncations."""
        params = {name: value for name, value in case["params"].items() if name not in self.truncations and (name, value) != ("temperature", 0.0)}
        return self.run(row, prompt, output, params, case).final

    def record(self, case):
        """One line of a fixture: the case, what the peer kept of it, and whether that holds when its parameters are nudged."""
        row = logits(**case["logits"])
        prompt, output = history(case.get("history"))
        outcome = self.run(row, prompt, output, case["params"], case)
        floor, width = outcome.gap()
        kept = outcome.kept(floor)
        line = dict(case, kept=len(kept), floor=round(floor, 3), **ids_or_hash("ids", kept))
        group = tied(outcome.final, self.edited(row, prompt, output, case))
        if len(group):
            line.update(ids_or_hash("tied", group), **ids_or_hash("untied", np.setdiff1d(kept, group)))
        order = kept[np.lexsort((kept, -outcome.probs[kept]))][:TOP]
        line["top"] = [[int(i), float(np.format_float_positional(outcome.probs[i], 9, fractional=False))] for i in order]
        nudged = [self.run(row, prompt, output, params, case).kept(floor) for params in self.nudges(case["params"], len(row))]
        if width < 0.02 or any(not np.array_equal(other, kept) for other in nudged):
            counts = [len(kept)] + [len(other) for other in nudged]
            line["band"] = [min(counts), max(counts)]
        cause = self.cause(case, row, prompt, output)
        if cause:
            line["cause"] = cause
        return line


def ids_or_hash(name, ids):
    """A set of ids, listed if small, else hashed with the lowest and highest few."""
    if len(ids) <= LISTED:
        return {name: [int(i) for i in ids]}
    return {name: {"count": len(ids), "fnv1a": fnv1a(ids), "first": int(ids[0]), "last": int(ids[-1])}}


def write(name, header, cases, peer):
    """Runs every case and writes the fixture of that name."""
    lines = [peer.record(case) for case in cases]
    counts = {"rows": len(lines)} | {name: sum(name in line for line in lines) for name in ("band", "tied", "cause")}
    header = dict(header, date=datetime.date.today().isoformat(), **counts)
    with open(FIXTURES / name, "w") as out:
        for line in [header] + lines:
            out.write(json.dumps(line, separators=(",", ":")) + "\n")
    print(name, counts)


def shapes(rng, index):
    """The shape, seed and size of the row of case number `index`: mostly small, every 18th large, every 40th very large."""
    shape = ("bell", "peaked", "heavy", "steps", "masked", "peaked", "ties", "bell", "sparse", "flat", "one_hot")[index % 11]
    vocab = rng.choice((100, 111, 257, 500, 1000, 2048, 4000))
    if index % 40 == 39:
        shape, vocab = "peaked", 151936
    elif index % 18 == 17:
        shape, vocab = ("peaked", "heavy")[index % 2], 32000
    return {"shape": shape, "seed": rng.randrange(1 << 32), "vocab": vocab}


def generator(seed):
    """The random numbers that choose parameters."""
    return random.Random(seed)
