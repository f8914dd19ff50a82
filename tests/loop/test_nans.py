"""Maxima that may pass over NaNs: which they are, and that nobody misses one."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor
from muladd.ir import ops
from muladd.loop.nans import careless


def scores(rows=48, columns=300) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(rows, columns)).astype("f")
    x[3, 7], x[5], x[6, 1], x[8, -1], x[9, 0] = np.nan, np.nan, np.inf, -np.nan, np.nan
    x[10], x[11, :-1], x[12, 5:] = -np.inf, -np.inf, -np.inf
    return x


def maxima(t: Tensor) -> list[tuple[bool, int]]:
    """Of each kernel: whether its maxima may pass over NaNs, and how many it has."""
    found = []
    for k in t.kernels():
        names = {s.name for s in k.kernel.stages if s.reduction is ops.AMAX}
        found += [(careless(k.kernel) >= names, len(names))] if names else []
    return found


def plain(x: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)


def test_softmax_finds_every_nan_without_its_maximum():
    t = Tensor(scores()).softmax(-1)
    assert maxima(t) == [(True, 1)]
    np.testing.assert_allclose(t.numpy(), plain(scores()), rtol=2e-6, atol=1e-30)


@pytest.mark.parametrize("length", [70, 700])
@pytest.mark.parametrize("causal", [False, True])
def test_attention_finds_every_nan_without_its_maximum(length, causal):
    rng = np.random.default_rng(1)
    q, k, v = (rng.normal(size=(2, length, 64)).astype("f") for _ in range(3))
    k[0, 50, 3] = q[1, 20, 5] = v[0, 3, 3] = np.nan
    t = Tensor(q).scaled_dot_product_attention(Tensor(k), Tensor(v), is_causal=causal)
    assert maxima(t) == [(True, 1)]
    s = q @ k.transpose(0, 2, 1) / 8
    if causal:
        s = np.where(np.tril(np.ones(s.shape)) > 0, s, -np.inf)
    np.testing.assert_allclose(t.numpy(), plain(s) @ v, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name, of", {
    "the maximum itself": lambda x: x.amax(-1),
    "no sum": lambda x: (x - x.amax(-1, keepdim=True)).exp(),
    "the exponentials too": lambda x: Tensor.cat([(e := (x - x.amax(-1, keepdim=True)).exp()),
                                                  e.sum(-1, keepdim=True)], -1),
    "another row's sum": lambda x: (x - x.amax(-1, keepdim=True)).exp().sum(-1).flip(0),
    "a choice": lambda x: (x - x.amax(-1, keepdim=True)).exp().clip(0, 1).sum(-1),
    "other values": lambda x: (x.isnan().where(0.0, x) - x.amax(-1, keepdim=True)).exp().sum(-1),
}.items())  # fmt: skip
def test_what_others_read_tells_nans(name, of):
    x = scores()
    found, wanted = of(Tensor(x)).numpy(), of(Tensor(x).to("INTERP")).numpy()
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-30, err_msg=name)
