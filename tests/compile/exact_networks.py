"""The networks that the exact profile is held to: forward, backward, a training loop."""
from __future__ import annotations

from collections.abc import Callable

import numpy as np

from muladd.ir import Body, Node, ScanArg, Storage, const, make, ops, param
from muladd.ir import dtype as dt
from muladd.tensor import graph
from muladd.tensor.windows import windows
from muladd.transform import gradient

Network = Callable[[list[Node], Node], Node]  # (parameters, data) -> loss


class g:
    """Node functions that broadcast."""

    reshape, permute, expand, keep, sqrt = (
        staticmethod(f)
        for f in (graph.reshape, graph.permute, graph.expand, graph.keep, graph.sqrt)
    )

    @staticmethod
    def _binary(f, a, b):
        if isinstance(a, Node) and isinstance(b, Node):
            shape = np.broadcast_shapes(a.shape, b.shape)
            a, b = graph.expand(a, shape), graph.expand(b, shape)
        return f(a, b)

    add, sub, mul, div, maximum, lt = (
        staticmethod(lambda a, b, f=f: g._binary(f, a, b))
        for f in (graph.add, graph.sub, graph.mul, graph.div, graph.maximum, graph.lt)
    )
    where = staticmethod(graph.where)


def summed(x: Node, *axes: int) -> Node:
    """A sum that keeps its axes, so that it broadcasts."""
    return g.keep(make(ops.SUM, (x,), axes), x.shape, axes)


def product(a: Node, b: Node) -> Node:
    """Matrix product of (..., m, k) and (..., k, n)."""
    m, k, n = *a.shape[-2:], b.shape[-1]
    lead = a.shape[:-2]
    left = g.expand(g.reshape(a, (*lead, m, k, 1)), (*lead, m, k, n))
    shape = (*b.shape[:-2], 1, k, n)
    right = g.expand(g.reshape(b, shape), (*lead, m, k, n))
    return make(ops.SUM, (make(ops.MUL, (left, right)),), (len(lead) + 1,))


def exponential(x: Node) -> Node:
    return make(ops.EXP2, (g.mul(x, 1.4426950408889634),))


def softmax(x: Node) -> Node:
    top = g.keep(make(ops.AMAX, (x,), (x.ndim - 1,)), x.shape, (x.ndim - 1,))
    e = exponential(g.sub(x, top))
    return g.div(e, summed(e, x.ndim - 1))


def normalised(x: Node) -> Node:
    """Layer norm over the last axis."""
    n = x.shape[-1]
    centred = g.sub(x, g.mul(summed(x, x.ndim - 1), 1 / n))
    variance = g.mul(summed(make(ops.MUL, (centred, centred)), x.ndim - 1), 1 / n)
    return g.div(centred, g.sqrt(g.add(variance, 1e-5)))


def gelu(x: Node) -> Node:
    """By the logistic function (Hendrycks and Gimpel, 2016)."""
    return g.div(x, g.add(exponential(g.mul(x, -1.702)), 1.0))


def square_error(x: Node) -> Node:
    """The mean square distance from a fixed wave, which is as good a target as any."""
    rank = x.ndim
    position = g.reshape(make(ops.IOTA, (), int(np.prod(x.shape)), dt.float32), x.shape)
    off = g.sub(x, make(ops.SIN, (g.mul(position, 0.37),)))
    axes = tuple(range(rank))
    return g.mul(make(ops.SUM, (make(ops.MUL, (off, off)),), axes), 1 / float(np.prod(x.shape)))


def perceptron(p: list[Node], x: Node) -> Node:
    hidden = g.maximum(g.add(product(x, p[0]), p[1]), 0.0)
    return square_error(g.add(product(hidden, p[2]), p[3]))


def convolution(x: Node, w: Node) -> Node:
    """x (n, c, h, w), w (o, c, 3, 3), without padding."""
    taps = windows(x, (2, 3), (3, 3), (1, 1), (1, 1))  # (3, 3, n, c, h, w)
    seen = g.permute(taps, (2, 3, 4, 5, 0, 1))
    n, c, high, wide = seen.shape[:4]
    o = w.shape[0]
    shape = (n, o, c, high, wide, 3, 3)
    left = g.expand(g.reshape(seen, (n, 1, c, high, wide, 3, 3)), shape)
    right = g.expand(g.reshape(w, (1, o, c, 1, 1, 3, 3)), shape)
    return make(ops.SUM, (make(ops.MUL, (left, right)),), (2, 5, 6))


def convolutional(p: list[Node], x: Node) -> Node:
    hidden = g.maximum(g.add(convolution(x, p[0]), g.reshape(p[1], (1, 5, 1, 1))), 0.0)
    pooled = make(ops.AMAX, (g.reshape(hidden, (2, 5, 3, 2, 3, 2)),), (3, 5))
    flat = g.reshape(pooled, (2, 45))
    return square_error(product(flat, p[2]))


def transformer(p: list[Node], x: Node) -> Node:
    """One block: x (batch 2, time 5, width 8), two heads, causal."""
    b, t, width, heads = 2, 5, 8, 2

    def split(y: Node) -> Node:
        return g.permute(g.reshape(y, (b, t, heads, width // heads)), (0, 2, 1, 3))

    def linear(y: Node, w: Node) -> Node:
        return product(y, g.expand(w, (b, *w.shape)))

    n = normalised(x)
    q, k, v = (split(linear(n, w)) for w in p[:3])
    scores = g.mul(product(q, g.permute(k, (0, 1, 3, 2))), 0.5)
    line = make(ops.IOTA, (), t, dt.int64)
    future = g.lt(g.reshape(line, (t, 1)), g.reshape(line, (1, t)))
    weights = softmax(g.where(g.expand(future, scores.shape), -1e9, scores))
    mixed = g.reshape(g.permute(product(weights, v), (0, 2, 1, 3)), (b, t, width))
    x = g.add(x, linear(mixed, p[3]))
    x = g.add(x, linear(gelu(linear(normalised(x), p[4])), p[5]))
    return square_error(x)


SHAPES: dict[str, tuple[Network, list[tuple[int, ...]], tuple[int, ...]]] = {
    "perceptron": (perceptron, [(9, 20), (20,), (20, 3), (3,)], (7, 9)),
    "convolutional": (convolutional, [(5, 2, 3, 3), (5,), (45, 4)], (2, 2, 8, 8)),
    "transformer": (
        transformer, [(8, 8), (8, 8), (8, 8), (8, 8), (8, 16), (16, 8)], (2, 5, 8),
    ),
}  # fmt: skip


def once(name: str) -> tuple[list[Node], dict[Node, np.ndarray]]:
    """Forward and backward: (loss and gradients, inputs)."""
    network, shapes, data = SHAPES[name]
    leaves = [make(ops.INPUT, (), Storage(s, dt.float32)) for s in (*shapes, data)]
    loss = network(leaves[:-1], leaves[-1])
    gradients = gradient([loss], leaves, [const(1.0, dt.float32)])
    return [loss, *(x for x in gradients if x is not None)], values(leaves)


def values(leaves: list[Node]) -> dict[Node, np.ndarray]:
    rng = np.random.default_rng(11)
    return {n: rng.standard_normal(n.shape).astype(np.float32) * np.float32(0.5) for n in leaves}


def training(name: str, steps: int = 200) -> tuple[list[Node], dict[Node, np.ndarray]]:
    """Steps of Adam (Kingma and Ba, 2015) as one scan: (parameters and losses, inputs)."""
    network, shapes, data = SHAPES[name]
    count = len(shapes)
    carried = [*shapes * 3, (), ()]  # parameters, both averages, powers of both decays
    ps = [param(i, s, dt.float32) for i, s in enumerate([*carried, data])]
    weights, first, second = ps[:count], ps[count : 2 * count], ps[2 * count : 3 * count]
    power1, power2, x = ps[-3:]
    loss = network(weights, x)
    gradients = gradient([loss], weights, [const(1.0, dt.float32)])
    power1, power2 = g.mul(power1, 0.9), g.mul(power2, 0.99)
    outs: list[list[Node]] = [[], [], []]
    for w, m, v, d in zip(weights, first, second, gradients):
        assert d is not None
        m = g.add(g.mul(m, 0.9), g.mul(d, 0.1))
        v = g.add(g.mul(v, 0.99), g.mul(make(ops.MUL, (d, d)), 0.01))
        rate = g.mul(g.div(m, g.sub(1.0, power1)), 0.01)
        step = g.div(rate, g.add(g.sqrt(g.div(v, g.sub(1.0, power2))), 1e-8))
        for kind, new in zip(outs, (g.sub(w, step), m, v)):
            kind.append(new)
    body = Body((*outs[0], *outs[1], *outs[2], power1, power2, loss), tuple(ps), "adam")
    leaves = [make(ops.INPUT, (), Storage(s, dt.float32)) for s in (*shapes, data)]
    starts = [*leaves[:-1], *(const(0.0, dt.float32, s) for s in shapes * 2),
              const(1.0, dt.float32), const(1.0, dt.float32)]  # fmt: skip
    srcs = (*starts, leaves[-1])
    results = [make(ops.SCAN, srcs, ScanArg(body, steps, len(carried), 0, False, i))
               for i in (*range(count), len(carried))]  # fmt: skip
    return results, values(leaves)
