"""Reductions, running totals, sorting against torch."""
import numpy as np
import pytest
import torch
from oracle import compare

from muladd import Tensor
from muladd.tensor import sorting

AXES = [None, 0, -1, (0, 2)]


def named(name, axis, **options):
    if axis is None:
        return lambda x: getattr(x, name)(**options)
    return lambda x: getattr(x, name)(axis, **options)


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("name", ["sum", "mean", "var", "std", "amax", "amin", "logsumexp", "norm",
                                  "any", "all", "count_nonzero"])  # fmt: skip
def test_reductions(name, axis, device, rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    if name == "logsumexp" and axis is None:
        axis = (0, 1, 2)
    if name == "norm":
        compare(lambda t: t.norm(2, axis) if axis is not None else t.norm(), x)
    else:
        compare(named(name, axis), x, gradient=name not in ("any", "all", "count_nonzero"))
    if name not in ("norm", "count_nonzero") and axis is not None:
        compare(named(name, axis, keepdim=True), x, double=True,
                gradient=name not in ("any", "all"))  # fmt: skip
        a = getattr(Tensor(x), name)(axis=axis).numpy()
        b = getattr(Tensor(x), name)(dim=axis).numpy()
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin", "prod", "cumsum", "cumprod",
                                  "cummax", "cummin", "logcumsumexp", "median", "sort", "argsort",
                                  "softmax", "log_softmax", "softmin", "mode", "diff"])  # fmt: skip
def test_along_an_axis(name, axis, device, rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    if name == "softmin":
        compare(lambda t: t.softmin(axis), x,
                oracle=lambda t: torch.nn.functional.softmin(t, axis))  # fmt: skip
    elif name == "diff":
        compare(lambda t: t.diff(dim=axis), x)
    else:
        compare(named(name, axis), x, rtol=3e-5, gradient=name != "mode")


@pytest.mark.parametrize("name", ["max", "min", "argmax", "argmin", "prod", "median", "aminmax"])
def test_of_everything(name, device, rng):
    compare(named(name, None), rng.normal(size=(3, 5)).astype(np.float32))


@pytest.mark.parametrize("p", [1, 2, 3, 0, 1.5, float("inf"), -float("inf")])
def test_norms(p, device, rng):
    compare(lambda t: t.norm(p, 1), rng.normal(size=(3, 7)).astype(np.float32))


@pytest.mark.parametrize("correction", [0, 1, 2])
def test_correction(correction, device, rng):
    x = rng.normal(size=(3, 7)).astype(np.float32)
    compare(lambda t: t.var(1, correction=correction), x)
    compare(lambda t: t.std(dim=(0, 1), correction=correction, keepdim=True), x)
    compare(lambda t: t.var_mean(1, correction=correction), x,
            oracle=lambda t: torch.var_mean(t, 1, correction=correction))  # fmt: skip


@pytest.mark.parametrize("n", [1, 2, 8, 9, 64, 70, 1030])
def test_running_sums_of_any_length(n, device, rng):
    compare(lambda t: t.cumsum(0), rng.normal(size=(n, 2)).astype(np.float32), rtol=1e-4, atol=1e-5)
    compare(lambda t: t.cumsum(1), rng.integers(-9, 9, (2, n)))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint8, bool])
@pytest.mark.parametrize("descending", [False, True])
def test_sort_is_stable(dtype, descending, device, rng):
    x = rng.integers(0, 5, (3, 13)).astype(dtype)
    compare(lambda t: t.sort(dim=-1, descending=descending, stable=True), x, gradient=False)


def test_sort_of_special_values(device):
    x = np.array([3, np.nan, -0.0, 0.0, -np.inf, np.inf, -1, 1e-40, -1e-40], np.float32)
    for descending in (False, True):
        compare(lambda t, d=descending: t.sort(dim=0, descending=d, stable=True), x, gradient=False)


@pytest.mark.parametrize("n", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint32])
def test_the_sorting_network(n, dtype, device, rng, monkeypatch):
    monkeypatch.setattr(sorting, "FEW", 0)
    monkeypatch.setattr(sorting, "FEW_PAIRS", 0)
    x = rng.integers(0, 6, (2, n)).astype(dtype)
    if dtype == np.uint32:
        x += 2**31
    for descending in (False, True):
        key = x.astype(np.float64) * (-1 if descending else 1)
        got = Tensor(x).argsort(-1, descending=descending).numpy()
        np.testing.assert_array_equal(got, np.argsort(key, -1, kind="stable"))


@pytest.mark.parametrize("k", [1, 40, 256])
@pytest.mark.parametrize("d", ["float32", "float64", "float16", "int64", "uint8"])
def test_topk_of_many(d, k, rng):
    x = (rng.standard_normal((2, 5001)) * 30).astype(d)
    if d.startswith("float"):
        x[0, 5], x[0, 7], x[1, :50] = np.nan, np.inf, x[1, 0]
    for largest in (True, False):
        values, indices = Tensor(x).topk(k, largest=largest)
        wanted = np.sort(x, -1)[:, ::-1] if largest else np.sort(x, -1)  # NaN is greatest
        np.testing.assert_array_equal(values.numpy(), wanted[:, :k])
        np.testing.assert_array_equal(np.take_along_axis(x, indices.numpy(), -1), wanted[:, :k])
        assert all(len(set(row)) == k for row in indices.numpy().tolist())


@pytest.mark.parametrize("largest", [True, False])
def test_topk(largest, device, rng):
    x = rng.permutation(60).reshape(4, 15).astype(np.float32)
    compare(lambda t: t.topk(4, -1, largest), x)
    compare(lambda t: t.topk(2, 0, largest), x)
    compare(lambda t: t.kthvalue(3, 1), x)


@pytest.mark.parametrize("q", [0.0, 0.3, 0.5, 1.0])
def test_quantile(q, device, rng):
    compare(lambda t: t.quantile(q, 1), rng.normal(size=(3, 6)).astype(np.float32))


def test_unique(device):
    x = np.array([3, 1, 2, 3, 1])
    compare(lambda t: t.unique(sorted=True, return_inverse=True, return_counts=True), x)


def test_sums_of_narrow_types(device):
    compare(lambda t: t.sum(), np.full(300, 100, np.uint8))
    compare(lambda t: t.sum(), np.ones(5, bool))
    x = np.full(5000, 0.1, np.float16)
    compare(lambda t: t.sum(), x, gradient=False, rtol=1e-3)
    compare(lambda t: t.mean(), x, gradient=False, rtol=1e-3)


def test_gradients_of_products_with_zeros(device):
    compare(lambda t: t.prod(1), np.array([[1, 0, 3], [0, 0, 2], [1, 2, 3]], np.float32))


def test_max_of_numpy_and_of_torch(device):
    x = Tensor([[1.0, 5.0], [7.0, 2.0]])
    assert x.max(axis=1).tolist() == [5.0, 7.0]
    values, indices = x.max(dim=1)
    assert values.tolist() == [5.0, 7.0] and indices.tolist() == [1, 0]
    assert x.max(1).indices.tolist() == [1, 0]
