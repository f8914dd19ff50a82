"""Blocks turned in registers: the shuffles give the columns, and products that need them hold."""
from __future__ import annotations

import re

import numpy as np
import pytest

from muladd import Tensor
from muladd.codegen.llvm_ops import Emitter
from muladd.codegen.transpose import transposed


@pytest.mark.parametrize("n", [4, 8, 16])
def test_shuffles_give_the_columns(n):
    """The lines that are written, done by hand."""
    known = {f"%r{i}": [(i, j) for j in range(n)] for i in range(n)}
    lines: list[str] = []
    names = (f"%v{i}" for i in range(1000))
    columns = transposed(list(known), "float", Emitter(lines, lambda: next(names), {}.__setitem__,
                                                       True))  # fmt: skip
    for line in lines:
        to, a, b, mask = re.fullmatch(
            rf"(%\w+) = shufflevector <{n} x float> (%\w+), <{n} x float> (%\w+), "
            rf"<{n} x i32> <(.*)>", line).groups()  # fmt: skip
        both = known[a] + known[b]
        known[to] = [both[int(x.removeprefix("i32 "))] for x in mask.split(", ")]
    assert [known[c] for c in columns] == [[(i, j) for i in range(n)] for j in range(n)]
    assert len(lines) == {4: 8, 8: 24, 16: 64}[n]


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("m, k, n", [(64, 64, 64), (40, 512, 96), (100, 48, 80), (64, 50, 64),
                                     (128, 1024, 33)])  # fmt: skip
def test_products_with_a_turned_operand(m, k, n, dtype):
    rng = np.random.default_rng(0)
    a, b = ((rng.normal(size=s) * 9).astype(dtype) for s in ((m, k), (n, k)))
    found = (Tensor(a) @ Tensor(b).T).numpy()
    np.testing.assert_allclose(found, a.astype("d") @ b.T.astype("d"), rtol=1e-4, atol=1e-2)


def test_stores_that_read_what_others_store_stay_apart():
    """Neighbours of one array, the second made of the first."""
    x = np.random.default_rng(0).normal(size=(64, 64)).astype("f")
    first = Tensor(x).exp()
    both = Tensor.stack([first, first * 2 + 1], -1).numpy()
    np.testing.assert_allclose(both[..., 1], np.exp(x) * 2 + 1, rtol=1e-6)
    np.testing.assert_allclose(both[..., 0], np.exp(x), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_rows_asked_for_ahead_may_lie_anywhere(rows):
    """The lanes of the other side are no vector, so there is nothing to ask for."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(rows, 600)).astype("f"), rng.normal(size=(600, 1024)).astype("f")
    np.testing.assert_allclose((Tensor(a) @ Tensor(b).roll(3, 1)).numpy(), a @ np.roll(b, 3, 1),
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    folded = (Tensor(a) @ Tensor(b).reshape(600, 32, 32).permute(0, 2, 1).reshape(600, 1024))
    wanted = a @ b.reshape(600, 32, 32).transpose(0, 2, 1).reshape(600, 1024)
    np.testing.assert_allclose(folded.numpy(), wanted, rtol=1e-3, atol=1e-3)
