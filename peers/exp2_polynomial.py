"""The coefficients of P(f) ~ 2^f that `crates/nucleus-sampling/src/fixed.rs` uses.

1. Minimax in relative error over [-1/2, 1/2] under P(0) = 1, degree 6, by the Remez exchange in 50 digits.
2. Each coefficient rounded to f32; then the neighbours of the leading ones (a few units in the last place) are tried, and the set is kept whose
   Horner evaluation in f32 fused multiply-adds errs least.

Prints the coefficients, constant term first, and the largest relative error in bits. Needs numpy and mpmath.
"""

import itertools

import mpmath as mp
import numpy as np

DEGREE = 6
mp.mp.dps = 50


def error_at(coefficients, x):
    """Relative error of the exact polynomial."""
    return mp.polyval(coefficients[::-1], x) * mp.power(2, -x) - 1


def interpolate(points):
    """The polynomial whose relative error alternates at the points with equal size."""
    size = len(points)
    matrix, right = mp.matrix(size, size), mp.matrix(size, 1)
    for i, x in enumerate(points):
        weight = mp.power(2, -x)
        for j in range(1, DEGREE + 1):
            matrix[i, j - 1] = x**j * weight
        matrix[i, size - 1] = (-1) ** i
        right[i] = 1 - weight
    solution = mp.lu_solve(matrix, right)
    return [mp.mpf(1)] + [solution[j] for j in range(DEGREE)]


def extrema(coefficients):
    """One extremum of the error between each two sign changes."""
    grid = [mp.mpf(i) / 8000 - mp.mpf(1) / 2 for i in range(8001)]
    best = []
    for x in grid:
        value = error_at(coefficients, x)
        if best and mp.sign(best[-1][1]) == mp.sign(value):
            if abs(value) > abs(best[-1][1]):
                best[-1] = (x, value)
        elif value != 0:
            best.append((x, value))
    while len(best) > DEGREE + 1:
        best.pop(0 if abs(best[0][1]) < abs(best[-1][1]) else -1)
    return [x for x, _ in best]


def remez():
    count = DEGREE + 1
    points = sorted(mp.cos(mp.pi * (i + mp.mpf(1) / 2) / count) / 2 for i in range(count))
    for _ in range(12):
        coefficients = interpolate(points)
        points = extrema(coefficients)
    return coefficients


def evaluate(coefficients, f):
    """Horner's rule in f32 with one rounding a step (a double holds the exact product and almost always the exact sum)."""
    total = np.full_like(f, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        total = (total.astype(np.float64) * f.astype(np.float64) + np.float64(coefficient)).astype(np.float32)
    return total


def worst(coefficients, f, exact):
    return float(np.abs(evaluate(coefficients, f).astype(np.float64) / exact - 1).max())


def neighbours(value, reach):
    """f32 numbers within `reach` units in the last place."""
    bits = np.float32(value).view(np.int32)
    return [(bits + np.int32(step)).view(np.float32) for step in range(-reach, reach + 1)]


def search(coefficients):
    rounded = [np.float32(float(c)) for c in coefficients]
    coarse = np.linspace(-0.5, 0.5, 20001).astype(np.float32)
    fine = np.linspace(-0.5, 0.5, (1 << 20) + 1).astype(np.float32)
    ranges = [neighbours(rounded[1], 2), neighbours(rounded[2], 6), neighbours(rounded[3], 24)[::4]]
    exact = np.exp2(coarse.astype(np.float64))
    trials = [[rounded[0], *head, *rounded[4:]] for head in itertools.product(*ranges)]
    trials.sort(key=lambda trial: worst(trial, coarse, exact))
    exact = np.exp2(fine.astype(np.float64))
    return min(trials[:20], key=lambda trial: worst(trial, fine, exact)), fine, exact


if __name__ == "__main__":
    found, f, exact = search(remez())
    print([float(c) for c in found], [str(c) for c in found])
    print(f"largest relative error 2^{np.log2(worst(found, f, exact)):.2f}")
