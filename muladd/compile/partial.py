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
    if results >= (_FEW_SUMS if product else _FEW) or total < _LONG or results == 0:
        return n
    axes = [a for a in n.arg if sizes[a] > 1]
    kept = 1
    for k, a in enumerate(axes[:-1] if not product else ()):
        kept *= sizes[a]
        if sizes[a] > _MANY and _pieces(source, a, _PARTS):
            break  # pieces of it are long
        if kept * results >= _FEW:
            inner = make(n.op, (source,), tuple(x for x in n.arg if x not in axes[: k + 1]))
            left = [x for x in range(source.ndim) if x not in n.arg or x in axes[: k + 1]]
            return make(n.op, (inner,), tuple(left.index(x) for x in axes[: k + 1]))
    axis = max(axes, key=lambda a: sizes[a])
    parts = _pieces(source, axis, _FEW_PARTS if product else _PARTS)
    if parts is None:
        return n
    shape = (*source.shape[:axis], parts, sizes[axis] // parts, *source.shape[axis + 1 :])
    cut = make(ops.RESHAPE, (source,), shape)
    inner_axes = tuple(a + (a >= axis) for a in n.arg)  # the part axis stays
    inner = make(n.op, (cut,), inner_axes)
    at = sum(1 for a in range(axis) if a not in n.arg)
    return make(n.op, (inner,), (at,))


def _pieces(source: Node, axis: int, among: tuple[int, ...]) -> int | None:
    """How many equal pieces an axis is cut into."""
    size = source.shape[axis]
    return next((p for p in among if isinstance(size, int) and size % p == 0 and size > p), None)


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
    return n.op is ops.SUM and n.srcs[0].op is ops.MUL and all(map(_is_repeated, n.srcs[0].srcs))


def _is_repeated(n: Node) -> bool:
    while n.op in (ops.RESHAPE, ops.PERMUTE, ops.SLICE):
        n = n.srcs[0]
    return n.op is ops.EXPAND
