"""Sums in parts, so that all cores (and lanes) have work, and products kernels of their own.

Long reductions to few results are done in two steps. A sum of several matrix products, as the
gradient of a weight that is used twice, is done product by product.

Only in the fast profile: the order of additions changes.
"""
from __future__ import annotations

import functools
import math

from muladd.ir import Node, make, ops, rebuild, sym, toposort

_FEW = 16  # results that are enough work for all cores
_LONG = 1 << 15  # elements from which two steps pay
_MANY = 1 << 12  # results of a first step that are more than pieces would be
_PARTS = (256, 128, 64, 32, 16)
_NARROW, _LARGE = (512, 2048), 1 << 19  # bytes of a row, elements of all
_BLOCKS = (16, 8, 12, 10)  # of rows
_LARGE_PRODUCT = 1 << 18  # terms from which a product has a kernel of its own
_LONG_SUM = 128  # the same of each of its results, which are written and read once more
_FEW_SUMS, _FEW_PARTS = 1 << 10, (32, 16, 8)  # the same of matrix products, whose tiles are large
_SOME_SUMS, _SOME_PARTS = 1 << 16, (8, 16, 12, 10, 6, 14, 4)  # of products over several axes,
_A_TERM = 8  # at most so many for each term of a sum
_IMAGE, _PIECE = 1 << 13, 1 << 11  # places of an image that is too large for a cache, and of parts
_MOST_PARTS = 1 << 21  # results of all parts
_LINES = (8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 128)


def products_apart(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The graph with sums of a*b + c*d + ... written as the sum of a*b, plus that of c*d, ..."""
    done: dict[Node, Node] = {}
    for n in toposort(outputs):
        srcs = tuple(done[s] for s in n.srcs)
        new = n if all(a is b for a, b in zip(srcs, n.srcs)) else rebuild(n, srcs)
        done[n] = _apart(new) if n.op is ops.SUM and n.dtype.is_float else new
    return tuple(done[o] for o in outputs)


def _apart(n: Node) -> Node:
    terms = list(n.srcs)
    for t in terms:  # which grow meanwhile
        if t.op is ops.ADD:
            terms.extend(t.srcs)
    sums = [make(ops.SUM, (t,), n.arg) for t in terms if t.op is not ops.ADD]
    work = sym.bounds(sym.product(n.srcs[0].shape))[1]
    results = max(sym.bounds(sym.product(n.shape))[1], 1)
    if len(sums) < 2 or work < max(_LARGE_PRODUCT, _LONG_SUM * results):
        return n
    if not all(map(is_product, sums)):
        return n
    return functools.reduce(lambda a, b: make(ops.ADD, (a, b)), sums)


def split_reductions(outputs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The graph with SUM and AMAX of long axes to few results cut into partial results."""
    done: dict[Node, Node] = {}
    for n in toposort(outputs):
        srcs = tuple(done[s] for s in n.srcs)
        new = n if all(a is b for a, b in zip(srcs, n.srcs)) else rebuild(n, srcs)
        done[n] = _split(new) if n.op.group == "reduce" else new
    return tuple(done[o] for o in outputs)


def _split(n: Node) -> Node:
    source = n.srcs[0]
    sizes = [sym.bounds(d)[1] for d in source.shape]
    results = sym.bounds(sym.product(n.shape))[1]
    total = 1
    for a in n.arg:
        total *= sizes[a]
    product = is_product(n)
    if not product and _is_narrow(n, results, total):
        return _by_rows(n)
    axes = [a for a in n.arg if sizes[a] > 1]
    few = results < (_FEW_SUMS if product else _FEW) and total >= _LONG
    along = source.ndim - 1 in n.arg and len(axes) > 1  # operands lie along the sum: images do
    if product and (few or along and results <= min(_SOME_SUMS, _A_TERM * total)):
        return _product_in_parts(n, axes, _FEW_PARTS if few else _SOME_PARTS)
    if not few or results == 0:
        return n
    kept = 1
    for k, a in enumerate(axes[:-1]):
        kept *= sizes[a]
        if sizes[a] > _MANY and _pieces(source, a, _PARTS):
            break  # pieces of it are long
        if kept * results >= _FEW:
            inner = make(n.op, (source,), tuple(x for x in n.arg if x not in axes[: k + 1]))
            left = [x for x in range(source.ndim) if x not in n.arg or x in axes[: k + 1]]
            return make(n.op, (inner,), tuple(left.index(x) for x in axes[: k + 1]))
    axis = max(axes, key=lambda a: sizes[a])
    parts = _pieces(source, axis, _PARTS)
    return n if parts is None else _in_parts(n, axis, parts)


def _product_in_parts(n: Node, axes: list[int], among: tuple[int, ...]) -> Node:
    """The same along the first axis (images, and not their places) that has pieces, or along lines
    of images that are too large for a cache."""
    sizes = [sym.bounds(d)[1] for d in n.srcs[0].shape]
    places = math.prod(sizes[a] for a in axes[1:])
    if len(axes) > 1 and places > _IMAGE:
        results = sym.bounds(sym.product(n.shape))[1]
        fit = [p for p in _LINES if p * results <= _MOST_PARTS]
        enough = (p for p in fit if places <= p * _PIECE)
        parts = _pieces(n.srcs[0], axes[1], (*enough, *reversed(fit)))
        if parts is not None:
            return _in_parts(n, axes[1], parts)
    for a in axes:
        parts = _pieces(n.srcs[0], a, among)
        if parts is not None:
            return _in_parts(n, a, parts)
    return n


def _in_parts(n: Node, axis: int, parts: int) -> Node:
    """The sum of equal pieces along an axis, then that of these, which lie one after the other."""
    (source,) = n.srcs
    shape = (*source.shape[:axis], parts, sym.div(source.shape[axis], parts),
             *source.shape[axis + 1 :])  # fmt: skip
    cut = make(ops.RESHAPE, (source,), shape)
    first = make(ops.PERMUTE, (cut,), (axis, *(a for a in range(len(shape)) if a != axis)))
    inner = make(n.op, (first,), tuple(a + 1 for a in n.arg))
    return make(n.op, (inner,), (0,))


def _pieces(source: Node, axis: int, among: tuple[int, ...]) -> int | None:
    """How many equal pieces an axis is cut into."""
    size = source.shape[axis]
    return next((p for p in among if isinstance(size, int) and size % p == 0 and size >= p), None)


def _is_narrow(n: Node, results: int, total: int) -> bool:
    """Whether these are sums down the columns of a large matrix whose rows are too short for each
    core to read a piece of every one."""
    down = n.arg == tuple(range(len(n.arg))) and all(isinstance(d, int) for d in n.srcs[0].shape)
    least, most = _NARROW
    return down and least <= results * n.dtype.itemsize < most and results * total >= _LARGE


def _by_rows(n: Node) -> Node:
    """The same of blocks of whole rows, and then of these."""
    sizes = [sym.bounds(d)[1] for d in n.srcs[0].shape]
    kept, rest = sizes[: len(n.arg)], sizes[len(n.arg) :]
    rows = math.prod(kept)
    parts = next((p for p in _BLOCKS if rows % p == 0), None)
    if parts is None:
        return n
    blocks = make(ops.RESHAPE, n.srcs, (parts, rows // parts, *rest))
    return make(n.op, (make(n.op, (blocks,), (1,)),), (0,))


def is_product(n: Node) -> bool:
    """Whether a sum is one of products of what is repeated: rows by columns."""
    if n.op is not ops.SUM:
        return False
    product = _unmoved(n.srcs[0])
    return product.op is ops.MUL and all(_unmoved(s).op is ops.EXPAND for s in product.srcs)


def _unmoved(n: Node) -> Node:
    while n.op in (ops.RESHAPE, ops.PERMUTE, ops.SLICE):
        n = n.srcs[0]
    return n
