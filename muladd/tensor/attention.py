"""Attention on nodes, as a call with a derivative of its own that keeps no scores.

The language would derive a backward pass that reads the weights of every pair of positions, so they
would wait in memory from one pass to the other. Here both directions compute them again, a band at
a time: once for bands of queries, once, turned, for bands of keys (Dao, 2022).
"""
from __future__ import annotations

import math
from functools import lru_cache

from muladd.ir import Body, CallArg, Dim, DType, Node, Shape, dtype, iota, make, ops, param
from muladd.ir.named import LOG2_E
from muladd.tensor import graph as g
from muladd.tensor.linear import matrix_product


def attend(
    q: Node, k: Node, v: Node, mask: Node | None, causal: bool, factor: float
) -> Node:
    """softmax(q k^T * factor, masked) v; q is (*B, L, E), k (*B, S, E), v (*B, S, F).

    mask broadcasts to (*B, L, S) and is bool (True takes part) or added; its derivative is zero.
    """
    given = (q, k, v) if mask is None else (q, k, v, mask)
    body = _body(tuple((n.shape, n.dtype) for n in given), causal, factor)
    return make(ops.CALL, given, CallArg(body, 0))


@lru_cache(1024)
def _body(kinds: tuple[tuple[Shape, DType], ...], causal: bool, factor: float) -> Body:
    given = tuple(param(i, shape, d) for i, (shape, d) in enumerate(kinds))
    q, k, v, *rest = given
    mask = rest[0] if rest else None
    outs = _forward(q, k, v, mask, causal, factor)
    handed = tuple(param(len(given) + i, x.shape, x.dtype) for i, x in enumerate((*outs, *outs)))
    grads = _backward(q, k, v, mask, causal, factor, *handed)
    back = (*grads, g.like(mask, 0)) if mask is not None else grads
    return Body(outs, given, "attention", Body(back, (*given, *handed), "attention backward"))


def _forward(
    q: Node, k: Node, v: Node, mask: Node | None, causal: bool, factor: float
) -> tuple[Node, Node]:
    """The result, and each row's level: log2 of the sum of exp of its scores."""
    scores = _scores(g.mul(q, factor), k, mask, causal)
    weights, total, top = _weights(scores, mask is not None)
    out = matrix_product(weights, v, "scaled_dot_product_attention")
    level = g.add(g.mul(_precise(top), LOG2_E), g.log2(_precise(total)))
    return g.div(out, _wide(total, out.shape)), level


def _backward(
    q: Node, k: Node, v: Node, mask: Node | None, causal: bool, factor: float,
    result: Node, level: Node, cotangent: Node, of_level: Node,
) -> tuple[Node, Node, Node]:  # fmt: skip
    """What q, k and v get, of the cotangents of the result and of its level.

    Along a row, d softmax = p * (dp - sum of p * dp), and that sum is the product of the result
    with its cotangent; the level's derivative is p too, in bits. Weights are computed again: for q
    in rows that are queries; for k and v turned, in rows that are keys.
    """
    who = "scaled_dot_product_attention backward"
    dot = g.total(g.mul(_precise(result), _precise(cotangent)), (result.ndim - 1,))
    shared = g.sub(dot, g.mul(of_level, LOG2_E))
    # other expressions than the forward pass has: equal ones would be kept from there, not redone
    keys = g.mul(k, factor)
    scores = _scores(q, keys, mask, causal)
    p = g.exp2(g.sub(g.mul(_precise(scores), LOG2_E), _wide(level, scores.shape)))
    dp = matrix_product(cotangent, _turned(v), who)
    ds = g.mul(p, g.sub(_precise(dp), _wide(shared, dp.shape)))
    for_q = matrix_product(g.cast(ds, q.dtype), keys, who)
    queries = g.mul(q, factor)
    scores = _scores(k, queries, None if mask is None else _turned(mask), causal, turned=True)
    p = g.exp2(g.sub(g.mul(_precise(scores), LOG2_E), _across(level, scores.shape)))
    for_v = matrix_product(g.cast(p, v.dtype), cotangent, who)
    dp = matrix_product(v, _turned(cotangent), who)
    ds = g.mul(p, g.sub(_precise(dp), _across(shared, dp.shape)))
    return for_q, matrix_product(g.cast(ds, k.dtype), queries, who), for_v


def _scores(
    rows: Node, columns: Node, mask: Node | None, causal: bool, turned: bool = False
) -> Node:
    scores = matrix_product(rows, _turned(columns), "scaled_dot_product_attention")
    shape = scores.shape
    if causal:
        i, j = (_positions(shape, axis) for axis in (-2, -1))
        query, key = (j, i) if turned else (i, j)
        scores = g.where(g.le(key, query), scores, -math.inf)
    if mask is not None:
        wide = g.expand(mask, shape)
        allowed = mask.dtype.name == "bool"
        scores = g.where(wide, scores, -math.inf) if allowed else g.add(scores, wide)
    return scores


def _positions(shape: Shape, axis: int) -> Node:
    """0, 1, 2... along the last axis or the one before it."""
    n: Dim = shape[axis]
    line = iota(n)
    return g.expand(line if axis == -1 else g.unsqueeze(line, 1), shape)


def _weights(scores: Node, masked: bool) -> tuple[Node, Node, Node]:
    """exp of the scores less each row's greatest; the rows' sums; what was greatest."""
    top = g.stop(g.greatest(scores, (scores.ndim - 1,)))
    if masked:  # a row may be -inf throughout
        top = g.where(g.eq(top, -math.inf), 0.0, top)
    weights = g.exp(g.sub(scores, _wide(top, scores.shape)))
    total = g.total(weights, (scores.ndim - 1,))
    if masked:
        total = g.where(g.eq(total, 0.0), 1.0, total)
    return weights, total, top


def _precise(x: Node) -> Node:
    """Levels are too coarse in 16 bits: a weight is 2 to the power of a difference of them."""
    return g.cast(x, dtype.float32) if x.dtype.itemsize < 4 else x


def _wide(rows: Node, shape: Shape) -> Node:
    """A value for each row, along the columns."""
    return g.expand(g.unsqueeze(rows, rows.ndim), shape)


def _across(columns: Node, shape: Shape) -> Node:
    """A value for each column, along the rows."""
    return g.expand(g.unsqueeze(columns, columns.ndim - 1), shape)


def _turned(x: Node) -> Node:
    return g.permute(x, (*range(x.ndim - 2), x.ndim - 1, x.ndim - 2))
