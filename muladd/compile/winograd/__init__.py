"""Convolutions with fewer products: the minimal algorithms of Toom, Cook and Winograd.

A convolution with r taps is a product of polynomials, and that is known from values at enough
points. So m neighbouring results of an axis cost m + r - 1 products instead of m * r, and m * m of
an image (m + r - 1)^2:

    y = A (G w G' * B x B') A'     * is element by element; A, G and B are small and constant

Sums over channels are taken before A, so the products are (m + r - 1)^2 matrix products, one for
each pair of points; the values of x and the results y are put together from as many parts (join.py)
by kernels that hold a tile in registers.

    points.py     the matrices, made exactly from the points, and graphs that apply them
    windows.py    which sums are convolutions
    results.py    what is done with results in place: a bias, a norm, an activation

In float32, of the fast profile only. What it costs in accuracy is measured in docs/accuracy.md.
Lavin and Gray, 2015; what points cost: Barabasz, Anderson, Soodhalter and Gregg, 2018.
"""

from __future__ import annotations

from collections.abc import Collection

from muladd import config
from muladd.compile.index import OPAQUE
from muladd.compile.winograd.points import MOST, matrices, on_both_sides, stacked
from muladd.compile.winograd.results import Graph, Results
from muladd.compile.winograd.windows import Convolution, convolution
from muladd.device.machine import Machine
from muladd.ir import Node, Param, make, ops, toposort
from muladd.transform.build import reshape, slice_

_TAPS = (3, 5)


def fewer_products(
    outputs: tuple[Node, ...], machine: Machine, fixed: frozenset[int] = frozenset()
) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
    """The graph with convolutions by values at points, where that is less work; and the values of
    weights in it that depend on fixed Params alone: they can be computed once for many runs.

    Where a machine has no vectors, what is less work was never measured.
    """
    most, lanes = config.get("WINOGRAD"), machine.float_lanes
    order = toposort(outputs)
    if lanes < 2 or not most or not any(n.op is ops.SUM and len(n.arg) > 2 for n in order):
        return outputs, ()
    graph = Graph.over(order, outputs)
    held: dict[Node, None] = {}
    for n in order:
        if n in graph.done or n in graph.passed:
            continue
        new = graph.again(n)
        found = convolution(new) if n.op is ops.SUM else None
        once = found is not None and _is_fixed(found.weight, fixed)
        m = _best(found, machine, most, once) if found is not None else 0
        if found is not None and m:
            weight, results = _by_points(found, m, lanes, new)
            held.update({weight: None} if once else {})
            n, results = graph.followed(n, results)
            new = results.node()
        graph.done[n] = new
    return tuple(graph.done[o] for o in outputs), tuple(held)


def may_hold(outputs: Collection[Node]) -> bool:
    """Whether there may be values of weights to be computed once: a sum that could be a
    convolution, in the graph or in a body."""
    todo, seen = [tuple(outputs)], set[tuple[Node, ...]]()
    while todo:
        for n in toposort(todo.pop()):
            if n.op is ops.SUM and len(n.arg) > 2 and n.srcs[0].op is ops.MUL:
                return True
            if n.op in OPAQUE and n.arg.body.outs not in seen:
                seen.add(n.arg.body.outs)
                todo.append(n.arg.body.outs)
    return False


def _is_fixed(n: Node, fixed: frozenset[int]) -> bool:
    leaves = [m for m in toposort((n,)) if m.op is ops.INPUT]
    return all(isinstance(m.arg, Param) and m.arg.index in fixed for m in leaves)


def _by_points(c: Convolution, m: int, lanes: int, total: Node) -> tuple[Node, Results]:
    """The weight's values at points, and the results that they give, m x m at once."""
    a, g, b = matrices(m, c.taps)
    n, out, channels = c.sizes()
    points, size = m + c.taps - 1, (m + c.taps - 1) ** 2
    down, along = _tiles(c, m, lanes)
    image = c.seen((down - 1) * m + points, (along - 1) * m + points)
    image = make(ops.PERMUTE, (image,), (1, 0, 2, 3))
    tiles = [[slice_(image, ((0, channels, 1), (0, n, 1), (i, down, m), (j, along, m)))
              for j in range(points)] for i in range(points)]  # fmt: skip
    taps = [[reshape(slice_(c.weight, ((0, out, 1), (0, channels, 1), (i, 1, 1), (j, 1, 1))),
                     [out, channels]) for j in range(c.taps)] for i in range(c.taps)]  # fmt: skip
    values, weight = stacked(on_both_sides(b, tiles)), stacked(on_both_sides(g, taps))
    shape = (size, out, channels, n, down, along)
    v = make(ops.EXPAND, (reshape(values, [size, 1, channels, n, down, along]),), shape)
    w = make(ops.EXPAND, (reshape(weight, [size, out, channels, 1, 1, 1]),), shape)
    sums = make(ops.SUM, (make(ops.MUL, (w, v)),), (2,))
    needed = [out, n, down, -(-c.size[1] // m)]  # tiles that only fill a vector end here
    whole = [(0, d, 1) for d in needed]
    at = [[reshape(slice_(sums, [(i * points + j, 1, 1), *whole]), needed)
           for j in range(points)] for i in range(points)]  # fmt: skip
    return weight, Results(on_both_sides(a, at), total.shape, c.axes)


# --- whether it is less work ---------------------------------------------------------------------

# Measured, in multiply-adds of a matrix product, for each point: what the values of a tile cost for
# a channel (loads that lie apart, sums, stores), what results do, and a weight's values.
_OF_TILE, _OF_RESULT, _OF_WEIGHT = 45, 30, 25
_OF_NUMBER = 16  # a number of the weight's values that comes from memory
_BEYOND = 48  # one that goes to memory and comes back, of more than half of the last cache holds
_PRODUCTS = 1.15  # many small matrix products beside one with windows
_GAIN = 1.1  # less is not worth its rounding


def _best(c: Convolution, machine: Machine, most: int, once: bool) -> int:
    """How many results of an axis are computed at once: 2 to `most`, or 0 for all by themselves."""
    n, out, channels = c.sizes()
    if c.taps not in _TAPS:
        return 0
    direct = n * out * channels * c.size[0] * c.size[1] * c.taps**2
    best, found = direct / _GAIN, 0
    for m in range(2, most + 1):
        points = m + c.taps - 1
        if points > MOST or points % 2:
            continue
        down, along = _tiles(c, m, machine.float_lanes)
        tiles = n * down * along
        products = max(_PRODUCTS * tiles, _OF_NUMBER) * out * channels
        apart = max(1.0, machine.float_lanes / (2 * along))  # rows that a vector of tiles is from
        values = tiles * apart * (_OF_TILE * channels + _OF_RESULT * out)
        if points**2 * tiles * (channels + out) * 4 > max(machine.l3 // 2, machine.l2):
            values += tiles * _BEYOND * (channels + out)
        weights = 0 if once else _OF_WEIGHT * out * channels
        price = points**2 * (products + values + weights)
        if price < best:
            best, found = price, m
    return found


def _tiles(c: Convolution, m: int, lanes: int) -> tuple[int, int]:
    """Tiles down and along: whole vectors of them, where a row has more than half of one."""
    down, along = (-(-size // m) for size in c.size)
    return down, along + -along % lanes if 2 * along > lanes else along


__all__ = ["fewer_products", "matrices", "may_hold"]
