"""Blocks turned in registers: the shuffles give the columns, and products that need them hold."""
from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from muladd import Tensor, config
from muladd.codegen.llvm_ops import Emitter
from muladd.codegen.transpose import in_order, transposed, turned
from muladd.ir import dtype, make, ops, sym
from muladd.loop.statements import Store


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


@pytest.mark.parametrize("lanes, count", [(16, 8), (16, 4), (16, 2), (8, 4), (8, 2), (4, 2)])
def test_blocks_of_fewer_rows_than_lanes(lanes, count):
    known = {f"%r{i}": [(i, j) for j in range(lanes)] for i in range(count)}
    lines: list[str] = []
    names = (f"%v{i}" for i in range(1000))
    columns = turned(list(known), "float", lanes,
                     Emitter(lines, lambda: next(names), {}.__setitem__, True))  # fmt: skip
    for line in lines:
        to, n, a, b, mask = re.fullmatch(
            r"(%\w+) = shufflevector <(\d+) x float> (%\w+), <\d+ x float> (%\w+|poison), "
            r"<\d+ x i32> <(.*)>", line).groups()  # fmt: skip
        both = known[a] + known.get(b, [])
        assert len(known[a]) == int(n)
        known[to] = [both[int(x.removeprefix("i32 "))] for x in mask.split(", ")]
    assert [known[c] for c in columns] == [[(i, j) for i in range(count)] for j in range(lanes)]


def store(place: int, begin: int) -> Store:
    """A store of four lanes that lie 8 apart."""
    lane = make(ops.IOTA, (), 4, dtype.INDEX)
    first, apart = (make(ops.EXPAND, (sym.as_node(x),), (4,)) for x in (begin, 8))
    value = make(ops.EXPAND, (make(ops.CONST, (), 1.0, dtype.float32),), (4,))
    return Store(place, make(ops.ADD, (first, make(ops.MUL, (lane, apart)))), value)


def test_stores_are_done_in_the_order_of_places():
    there = [store(0, begin) for begin in (0, 32, 1, 33, 2)]
    assert in_order(there) == [there[i] for i in (0, 2, 4, 1, 3)]
    apart = [there[1], store(1, 7), there[0]]
    assert in_order(apart) == apart


@pytest.mark.parametrize("size, channels", [(20, 32), (24, 32), (18, 48), (7, 16), (40, 32)])
def test_convolutions_of_narrow_images(size, channels):
    """What follows the sums is stored by places: tiles of 10, 8, 9 and 7 of them."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(17, 16, size + 2, size + 2)).astype("f")
    w = rng.normal(size=(channels, 16, 3, 3)).astype("f")
    b = rng.normal(size=channels).astype("f")
    with config.context(WINOGRAD=0):
        sums = Tensor(x).conv2d(Tensor(w), Tensor(b))
        both = [sums.relu(), sums < 0]
        both[0].realize(both[1])
    wanted = torch.conv2d(torch.tensor(x), torch.tensor(w), torch.tensor(b)).numpy()
    np.testing.assert_allclose(both[0].numpy(), np.maximum(wanted, 0), rtol=1e-4, atol=1e-3)
    sure = np.abs(wanted) > 1e-3
    np.testing.assert_array_equal(both[1].numpy()[sure], (wanted < 0)[sure])


@pytest.mark.parametrize("size, channels", [(20, 32), (24, 16), (16, 33), (7, 48)])
def test_weights_gradients_over_narrow_images(size, channels):
    """Long sums over pixels: 4, 8 and 16 of a channel are read at once, and turned."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(40, 16, size + 2, size + 2)).astype("f")
    w = rng.normal(size=(channels, 16, 3, 3)).astype("f")
    g = rng.normal(size=(40, channels, size, size)).astype("f")
    given, weight = Tensor(x), Tensor(w, requires_grad=True)
    theirs = torch.tensor(w, requires_grad=True)
    torch.conv2d(torch.tensor(x), theirs).backward(torch.tensor(g))
    with config.context(CHECK=True):
        (given.conv2d(weight) * Tensor(g)).sum().backward()
        found = weight.grad.numpy()
    np.testing.assert_allclose(found, theirs.grad.numpy(), rtol=1e-3, atol=2e-2)
