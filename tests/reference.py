"""The papers' formulas as loops over Python floats: slow, obvious, and independent of the code under test."""

import math

Vector = list[float]


def nt_xent(views: list[list[Vector]], temperature: float) -> float:
    """SimCLR, equation 1 and Algorithm 1, for ``views[v][i]``, view v of image i.

    With more than two views every pair of views of an image is a positive, and its negatives are the views of
    the other images.
    """
    z = {(v, i): unit(x) for v, view in enumerate(views) for i, x in enumerate(view)}
    losses = []
    for v, i in z:
        negatives = [dot(z[v, i], z[w, j]) / temperature for w, j in z if j != i]
        for w in range(len(views)):
            if w != v:
                losses.append(cross_entropy(dot(z[v, i], z[w, i]) / temperature, negatives))
    return math.fsum(losses) / len(losses)


def info_nce(queries: list[Vector], keys: list[Vector], negatives: list[Vector], temperature: float) -> float:
    """MoCo, equation 1."""
    stored = [unit(n) for n in negatives]
    losses = []
    for query, key in zip(map(unit, queries), map(unit, keys), strict=True):
        losses.append(cross_entropy(dot(query, key) / temperature, [dot(query, n) / temperature for n in stored]))
    return math.fsum(losses) / len(losses)


def cross_entropy(positive: float, negatives: list[float]) -> float:
    """-log(e^positive / (e^positive + sum of e^negative)), every exponent taken relative to the positive."""
    largest = max(0.0, *(n - positive for n in negatives))
    total = math.fsum([math.exp(-largest), *(math.exp(n - positive - largest) for n in negatives)])
    if largest == 0.0:  # the positive wins: log1p keeps what 1 + tiny would round away
        return math.log1p(math.fsum(math.exp(n - positive) for n in negatives))
    return largest + math.log(total)


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def unit(v: Vector) -> Vector:
    length = math.sqrt(dot(v, v))
    return [x / length for x in v]
