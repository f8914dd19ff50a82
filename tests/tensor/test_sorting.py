"""Sorting of many: the network, keys of all dtypes, stability, both directions."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from muladd import Tensor, config
from muladd.tensor.network import ascending


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 4, 7, 10])
def test_the_network_sorts_every_size(bits, device, rng):
    x = rng.integers(-(1 << 62), 1 << 62, (3, 1 << bits))
    t = Tensor(x)
    assert (t._result(ascending(t.node)).numpy() == np.sort(x, -1)).all()


def test_the_network_sorts_all_zeros_and_ones():
    """So it sorts everything (the 0-1 principle)."""
    numbers = np.arange(1 << 16)
    x = (numbers[:, None] >> np.arange(16)) & 1
    t = Tensor(x, device="CPU")
    assert (t._result(ascending(t.node)).numpy() == np.sort(x, -1)).all()


SPECIAL = {
    "float32": [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, np.float32(3.4e38)],
    "float64": [np.nan, np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1.7e308],
    "int64": [-(1 << 63), (1 << 63) - 1, -1, 0, 1 << 32, (1 << 32) - 1, -(1 << 32)],
    "int32": [-(1 << 31), (1 << 31) - 1, -1, 0],
    "uint8": [0, 255],
}


@pytest.mark.parametrize("dtype, descending", [
    ("float32", False), ("float32", True), ("float64", False), ("int64", True), ("int32", False),
    ("uint8", True),
])  # fmt: skip
def test_many_are_sorted_as_torch_does(dtype, descending, rng):
    n = 5000  # of which the network sorts 8192
    x = (rng.standard_normal(n) * 50).astype(dtype)
    x[:: n // 300] = rng.choice(np.array(SPECIAL[dtype], dtype), len(x[:: n // 300]))
    found = Tensor(x, device="CPU").sort(0, descending)
    expected = torch.from_numpy(x).sort(dim=0, descending=descending, stable=True)
    assert np.array_equal(found.values.numpy(), expected.values.numpy(), equal_nan=True)
    assert (found.indices.numpy() == expected.indices.numpy()).all()


def test_rows_and_columns_of_many(device, rng):
    x = rng.integers(0, 1000, (5000, 3)).astype(np.float32)
    for axis, given in ((0, x), (1, x.T.copy())):
        found = Tensor(given).sort(axis)
        assert (found.indices.numpy() == np.argsort(given, axis, kind="stable")).all()
        assert (found.values.numpy() == np.sort(given, axis)).all()


def test_the_gradient_goes_back_to_where_values_came_from(rng):
    x = rng.standard_normal(5000).astype(np.float32)
    weight = rng.standard_normal(5000).astype(np.float32)
    t = Tensor(x, device="CPU", requires_grad=True)
    (t.sort().values * Tensor(weight, device="CPU")).sum().backward()
    expected = np.empty_like(weight)
    expected[np.argsort(x, kind="stable")] = weight
    assert (t.grad.numpy() == expected).all()


@pytest.mark.slow
def test_both_profiles_agree(rng):
    x = rng.standard_normal(4097).astype(np.float32)
    fast = Tensor(x, device="CPU").sort().indices.numpy()
    with config.context(PROFILE="exact"):
        assert (Tensor(x, device="CPU").sort().indices.numpy() == fast).all()


@pytest.mark.slow
def test_a_million(rng):
    x = rng.standard_normal(1 << 20).astype(np.float32)
    with config.context(CHECK=0):
        found = Tensor(x, device="CPU").sort()
        kernels = found.values.kernels()
    assert (found.indices.numpy() == np.argsort(x, kind="stable")).all()
    assert len(kernels) < 30  # each does all steps of a half
