#!/usr/bin/env python3
"""Draws the times of plane.csv over the bytes of their logits, beside what the device's memory allows:   roofline.py plane.csv > roofline.svg

One curve a chain and implementation, both axes logarithmic, at one vocabulary and type; the line below them is bytes over --bandwidth (TB/s, measured by
a read of every logit once).
"""
import argparse
import csv
import math

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 560, 70, 210, 30, 50
SHADES = ["#1b6ca8", "#c0392b", "#1e8449", "#8e44ad", "#b9770e", "#34495e", "#d35400", "#117a65"]


def curves(rows, vocab, dtype, kind, cases):
    """(case, implementation): [(bytes, microseconds)], ascending."""
    size = {"float32": 4, "float16": 2, "bfloat16": 2}[dtype]
    found = {}
    for row in rows:
        wanted = (row["vocab"], row["dtype"], row["kind"], row["cache"]) == (str(vocab), dtype, kind, "warm")
        us = float(row["us"])
        if wanted and us == us and (row["case"] in cases or row["case"] == "floor"):
            found.setdefault((row["case"], row["implementation"]), []).append((int(row["batch"]) * vocab * size, us))
    return {key: sorted(points) for key, points in found.items()}


def best_peers(found):
    """The fastest peer of each chain at each size, as one curve."""
    best = {}
    for (case, implementation), points in found.items():
        if case == "floor" or implementation == "nucleus":
            continue
        for size, us in points:
            best[case, size] = min(us, best.get((case, size), math.inf))
    merged = {}
    for (case, size), us in sorted(best.items()):
        merged.setdefault((case, "best peer"), []).append((size, us))
    return merged


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("plane")
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--kind", default="peaked")
    parser.add_argument("--bandwidth", type=float, default=4.45)
    parser.add_argument("--cases", nargs="+", default=["greedy", "temp", "topk+topp", "topp.9", "all on"])
    args = parser.parse_args()
    with open(args.plane) as file:
        found = curves(csv.DictReader(file), args.vocab, args.dtype, args.kind, args.cases)
    drawn = {key: points for key, points in found.items() if key[1] in ("nucleus", "read-once-max")} | best_peers(found)
    sizes = [size for points in drawn.values() for size, _ in points]
    times = [us for points in drawn.values() for _, us in points]
    low_x, high_x, low_y, high_y = (math.log10(v) for v in (min(sizes) * 0.8, max(sizes) * 1.25, 1.0, max(times) * 1.3))
    x = lambda size: LEFT + (math.log10(size) - low_x) / (high_x - low_x) * (WIDTH - LEFT - RIGHT)
    y = lambda us: HEIGHT - BOTTOM - (math.log10(us) - low_y) / (high_y - low_y) * (HEIGHT - TOP - BOTTOM)
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
           f'<text x="{LEFT}" y="18">microseconds a batch, vocabulary {args.vocab}, {args.dtype}, {args.kind}; solid: Nucleus, dashed: best peer</text>']
    for power in range(0, math.ceil(high_y) + 1):
        if low_y <= power <= high_y:
            out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(10**power):.1f}" y2="{y(10**power):.1f}" stroke="#ddd"/>')
            out.append(f'<text x="{LEFT - 8}" y="{y(10**power) + 4:.1f}" text-anchor="end">{10**power}</text>')
    for size in sorted(set(sizes)):
        out.append(f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#eee"/>')
        out.append(f'<text x="{x(size):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{size / 1e6:.3g}</text>')
    out.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">MB of logits</text>')
    limit = [(size, max(size / args.bandwidth / 1e6, 1.0)) for size in sorted(set(sizes))]
    drawn = {("memory", f"{args.bandwidth} TB/s"): limit} | drawn
    shades, labels = {}, []
    for (case, implementation), points in drawn.items():
        shade = "#999" if case in ("memory", "floor") else shades.setdefault(case, SHADES[len(shades) % len(SHADES)])
        dash = ' stroke-dasharray="6 4"' if implementation == "best peer" else ' stroke-dasharray="2 3"' if case == "memory" else ""
        path = " ".join(f"{x(size):.1f},{y(us):.1f}" for size, us in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{shade}" stroke-width="1.8"{dash}/>')
        labels.append([y(points[-1][1]) + 4, shade, f"{case}, {implementation}"])
    labels.sort()
    for before, label in zip(labels, labels[1:]):
        label[0] = max(label[0], before[0] + 13)
    out += [f'<text x="{WIDTH - RIGHT + 8}" y="{at:.1f}" fill="{shade}">{text}</text>' for at, shade, text in labels]
    print("\n".join(out + ["</svg>"]))


if __name__ == "__main__":
    main()
