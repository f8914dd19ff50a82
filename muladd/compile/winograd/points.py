"""Polynomials by their values at points: the matrices, and graphs that apply them.

m neighbouring results of a kernel of r taps are y = A (G w * B x), where x are the m + r - 1 values
that they see. Values are taken at m + r - 2 points, and at infinity, which is the leading
coefficient. Everything is exact here (fractions); what rounding costs depends on the points, and
the next floats of these matrices are as good as any.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache

from muladd.compile.join import join
from muladd.ir import Node, const, make, ops
from muladd.transform.build import reshape

Matrix = tuple[tuple[Fraction, ...], ...]
Grid = list[list[Node]]

MOST = 6  # points
_FEW = (Fraction(0), Fraction(1), Fraction(-1))
# Of five these lose least in float32; opposite ones have half of their sums in common.
_MANY = (Fraction(0), Fraction(3, 4), Fraction(-3, 4), Fraction(3, 2), Fraction(-3, 2))


@lru_cache
def matrices(m: int, r: int) -> tuple[Matrix, Matrix, Matrix]:
    """(A, G, B) for m results of r taps, where m + r - 1 is 4 or 6: (m, n), (n, r) and (n, n)."""
    points = _FEW if m + r == 5 else _MANY
    a = [[p**j for p in points] + [Fraction(j == m - 1)] for j in range(m)]
    g, b = [], []
    for p in points:
        others = [q for q in points if q != p]
        scale = Fraction(1)
        for q in others:
            scale *= p - q
        g.append([p**k / scale for k in range(r)])
        b.append([*_with_roots(others), Fraction(0)])
    g.append([Fraction(k == r - 1) for k in range(r)])
    b.append(_with_roots(points))
    return _frozen(a), _frozen(g), _frozen(b)


def _with_roots(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients, lowest first, of the product of all x - root."""
    out = [Fraction(1)]
    for q in roots:
        out = [low - q * high for low, high in zip([Fraction(0), *out], [*out, Fraction(0)])]
    return out


def _frozen(rows: list[list[Fraction]]) -> Matrix:
    return tuple(map(tuple, rows))


def on_both_sides(matrix: Matrix, values: Grid) -> Grid:
    """matrix times values times its transpose."""
    columns = [_times(matrix, [row[j] for row in values]) for j in range(len(values[0]))]
    return [_times(matrix, [column[i] for column in columns]) for i in range(len(matrix))]


def _times(matrix: Matrix, values: list[Node]) -> list[Node]:
    """matrix times values. Opposite points have even powers and odd ones in common, but for a sign:
    equal sums are one node, which is computed once."""
    out = []
    for row in matrix:
        odd = list(row[1::2])
        turned = next((c for c in odd if c), 1) < 0
        parts = [_sum(row[0::2], values[0::2]),
                 _sum([-c for c in odd] if turned else odd, values[1::2])]  # fmt: skip
        if turned and parts[1] is not None:
            parts[1] = _scaled(parts[1], -1.0)
        some = [x for x in parts if x is not None]
        out.append(some[0] if len(some) == 1 else make(ops.ADD, tuple(some)))
    return out


def _sum(factors: Sequence[Fraction], values: Sequence[Node]) -> Node | None:
    total: Node | None = None
    for c, x in zip(factors, values):
        if c:
            term = x if c == 1 else _scaled(x, float(c))
            total = term if total is None else make(ops.ADD, (total, term))
    return total


def _scaled(x: Node, by: float) -> Node:
    return make(ops.MUL, (x, const(by, x.dtype, x.shape)))


def stacked(values: Grid) -> Node:
    """All values one after the other, along a new axis in front."""
    return join([reshape(x, (1, *x.shape)) for row in values for x in row], 0)
