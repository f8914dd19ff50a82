"""Loops that end where a condition makes nothing of the rest."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from muladd import Tensor
from muladd.ir import ops, sym, toposort
from muladd.loop.limits import limits
from muladd.loop.statements import For, Grid, If


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def turns(body: list, loops: dict) -> int:
    """Stores that a body runs, with its loops' variables as given."""
    total = 0
    for s in body:
        if isinstance(s, Grid):
            sizes = [sym.bounds(x.arg.extent)[1] for x in s.loops]
            for turn in np.ndindex(*sizes):
                total += turns(s.body, {**loops, **dict(zip(s.loops, map(int, turn)))})
        elif isinstance(s, For):
            start, stop = (sym.replace(x, loops) for x in (s.start, s.stop))
            total += sum(turns(s.body, {**loops, s.loop: i}) for i in range(start, stop))
        elif isinstance(s, If):
            known = {n: sym.as_node(loops[n]) for n in toposort((s.condition,)) if n in loops}
            a, b = (sym.replace(_dim(x), {k: _dim(v) for k, v in known.items()})
                    for x in s.condition.srcs)  # fmt: skip
            total += turns(s.body if a < b else s.orelse, loops)
        else:
            total += 1
    return total


def _dim(n):
    return n.arg if n.op is ops.CONST else n


def attention(causal: bool, length: int = 384, keys: int = 384) -> Tensor:
    q, k, v = (Tensor(data(1, 2, n, 8, seed=i)) for i, n in enumerate((length, keys, keys)))
    return q.scaled_dot_product_attention(k, v, is_causal=causal)


def test_causal_attention_leaves_half_of_the_pairs_out():
    (full,), (causal,) = attention(False).kernels(), attention(True).kernels()
    assert not limits(full.kernel) and limits(causal.kernel)
    run = [turns(k.lowered().body, {}) for k in (full, causal)]
    assert run[1] < 0.75 * run[0]


def test_what_is_read_outside_has_no_limits():
    """The exponentials are stored, so each of them must be computed."""
    x = Tensor(data(64, 64))
    masked = Tensor.ones(64, 64).tril().cast("bool").where(x, -np.inf)
    scores = (masked - masked.amax(1, keepdim=True)).exp()
    result = Tensor.cat([scores, (scores.sum(1, keepdim=True))], 1)
    for k in result.kernels():
        assert not any(s.argument is not None and set(s.axes) & set(limits(k.kernel))
                       for s in k.kernel.stages)  # fmt: skip
    i, j = np.indices((64, 64))
    m = np.where(j <= i, x.numpy(), -np.inf)
    e = np.exp(m - m.max(1, keepdims=True))
    np.testing.assert_allclose(result.numpy(), np.c_[e, e.sum(1)], rtol=1e-5)


@pytest.mark.parametrize("length", [1, 7, 31, 64, 97, 300])
@pytest.mark.parametrize("keys", [1, 40, 97, 301])
def test_causal_attention_of_any_length(length, keys):
    """Forward and gradient; where there are more queries than keys or fewer."""
    arrays = [data(1, 2, n, 8, seed=i) for i, n in enumerate((length, keys, keys))]
    theirs = [torch.tensor(a, requires_grad=True) for a in arrays]
    ours = [Tensor(a, requires_grad=True) for a in arrays]
    weight = data(1, 2, length, 8, seed=9)
    a = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=True)
    a.backward(torch.tensor(weight))
    b = ours[0].scaled_dot_product_attention(ours[1], ours[2], is_causal=True)
    (b * Tensor(weight)).sum().backward()
    np.testing.assert_allclose(b.numpy(), a.detach().numpy(), rtol=1e-4, atol=1e-5)
    for x, y in zip(ours, theirs):
        np.testing.assert_allclose(x.grad.numpy(), y.grad.numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", ["band", "window", "suffix"])
def test_sums_under_a_condition(kind):
    """Sums and maxima over what a comparison of positions lets through."""
    x = data(90, 170)
    i, j = np.indices(x.shape)
    rows, columns = Tensor.arange(90).reshape(90, 1), Tensor.arange(170).reshape(1, 170)
    inside, near = {
        "band": (j <= i, columns <= rows), "suffix": (j > i + 3, columns > rows + 3),
        "window": ((j <= i) & (j > i - 9), (columns <= rows) & (columns > rows - 9)),
    }[kind]  # fmt: skip
    t = Tensor(x)
    total = near.where(t * 2, 0.0).sum(1)
    most = near.where(t, -np.inf).amax(1)
    np.testing.assert_allclose(total.numpy(), np.where(inside, x * 2, 0).sum(1), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    np.testing.assert_array_equal(most.numpy(), np.where(inside, x, -np.inf).max(1))


def test_attention_keeps_no_scores():
    """Forward and backward, memory grows with the length and not with its square."""
    from muladd import grad
    from muladd.compile import compile_graph, parameters
    from muladd.tensor import backend

    length = 1024
    q, k, v = (Tensor(data(1, 1, length, 16, seed=i)) for i in range(3))
    step = grad(lambda q, k, v: q.scaled_dot_product_attention(k, v, is_causal=True).square().sum(),
                argnums=(0, 1, 2))  # fmt: skip
    roots, _ = backend.expand([t._raw for t in step(q, k, v)], "CPU")
    graph, _ = parameters(tuple(roots))
    assert compile_graph(graph, "CPU").peak_bytes() < length * length * 4 // 4
