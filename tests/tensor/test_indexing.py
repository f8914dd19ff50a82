"""Indexing, assignment, gather and scatter against torch (and NumPy where torch has no form)."""
import numpy as np
import pytest
import torch
from oracle import compare

from muladd import Tensor
from muladd.errors import IndexingError

I = np.array([2, 0, 1, 2])
J = np.array([[0, 3], [1, -1]])
MASK = np.array([True, False, True])
GRID = np.array([[True, False, True, False], [False] * 4, [True] * 4])

READ = {
    "int": lambda i: 1, "negative": lambda i: -1, "two": lambda i: (0, 2),
    "slice": lambda i: slice(1, 3), "step": lambda i: slice(None, None, 2),
    "all": lambda i: slice(None), "ellipsis": lambda i: (Ellipsis, 1),
    "middle": lambda i: (0, Ellipsis, 1), "none": lambda i: (None, 1), "none2": lambda i: (0, None),
    "empty": lambda i: slice(2, 2), "mixed": lambda i: (slice(1, None), 2, slice(0, 4, 3)),
    "tensor": lambda i: i(I), "tensor2": lambda i: (slice(None), i(J)),
    "pair": lambda i: (i(I), i(I)), "broadcast": lambda i: (i(I[:2])[:, None], i(J)),
    "apart": lambda i: (i(I), slice(None), i(I)), "last": lambda i: (Ellipsis, i(I)),
    "with_int": lambda i: (0, i(I)), "with_slice": lambda i: (slice(0, 2), i(I), slice(1, 4)),
    "with_none": lambda i: (None, i(I)), "mask": lambda i: i(MASK), "grid": lambda i: i(GRID),
    "mask_later": lambda i: (slice(None), i(np.array([True, False, True, True]))),
    "mask_and_int": lambda i: (i(MASK), 1), "mask_and_slice": lambda i: (i(MASK), slice(1, 3)),
    "mask_and_tensor": lambda i: (i(MASK), i(np.array([0, 1]))),
    "list": lambda i: [0, 2], "lists": lambda i: ([0, 2], [1, 1]),
    "triple": lambda i: (i(I), i(I), i(I)),
    "scalar_tensor": lambda i: i(np.array(1)),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_reading(name, device, rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    compare(lambda t: t[READ[name](Tensor)], x, oracle=lambda t: t[READ[name](torch.tensor)])


def test_steps_backwards_as_in_numpy(device, rng):
    x = rng.normal(size=(5, 6)).astype(np.float32)
    for index in (slice(None, None, -1), (slice(4, 0, -2), slice(None, None, -3)),
                  (slice(1, 3), slice(-1, None, -1)), (slice(0, 4, -1),)):  # fmt: skip
        np.testing.assert_array_equal(Tensor(x)[index].numpy(), x[index])


@pytest.mark.parametrize("value", ["scalar", "tensor"])
@pytest.mark.parametrize("name", [n for n in READ if n != "empty"])
def test_writing(name, value, device, rng):
    x = rng.normal(size=(3, 4, 5)).astype(np.float32)
    shape = torch.tensor(x)[READ[name](torch.tensor)].shape
    v = rng.normal(size=shape).astype(np.float32)

    def written(t, make, given):
        y = t * 1
        index = READ[name](make)
        if value == "scalar":
            y[index] = 2.5
        elif unique(index):
            y[index] = given
        return y

    def unique(index):
        flat = np.arange(x.size).reshape(x.shape)
        index = tuple(n.numpy() if hasattr(n, "numpy") else n for n in index) \
            if isinstance(index, tuple) else index  # fmt: skip
        index = index.numpy() if hasattr(index, "numpy") else index
        hit = flat[index]
        return np.unique(hit).size == hit.size

    compare(lambda t, g: written(t, Tensor, g), x, v,
            oracle=lambda t, g: written(t, torch.tensor, g))  # fmt: skip


def test_the_last_of_equal_indices_wins(device):
    x = np.zeros(4)
    x[[1, 1, 2]] = [5, 6, 7]
    t = Tensor.zeros(4)
    t[Tensor([1, 1, 2])] = Tensor([5.0, 6.0, 7.0])
    np.testing.assert_array_equal(t.numpy(), x)


def test_adding_in_place_through_an_index(device):
    t = Tensor.zeros(3, 2)
    t[1] += Tensor([1.0, 2.0])
    t[Tensor([0, 2])] += 1
    t[:, 1] *= 3
    assert t.tolist() == [[1, 3], [1, 6], [1, 3]]


GATHER = {
    "gather0": lambda t, i: t.gather(0, i % 3), "gather1": lambda t, i: t.gather(1, i % 4),
    "take": lambda t, i: t.take(i), "index_select": lambda t, i: t.index_select(1, i[0] % 4),
    "take_along": lambda t, i: t.take_along_dim(i % 4, dim=1),
    "take_along_flat": lambda t, i: t.take_along_dim(i),
    "scatter": lambda t, i: t.scatter(1, i[:, :1] % 4, t[:, :1] * 2),
    "scatter_value": lambda t, i: t.scatter(1, i % 4, 1.5),
    "scatter_add": lambda t, i: t.scatter_add(0, i % 3, t * 2),
    "scatter_add1": lambda t, i: t.scatter_add(1, i[:, :2] % 4, t[:, :2]),
    "index_add": lambda t, i: t.index_add(0, i[0] % 3, t.repeat(2, 1)[:4], alpha=2),
    "index_copy": lambda t, i: t.index_copy(0, i[0, :2] * 0 + i.new_tensor([0, 2]), t[:2] * 3),
    "index_fill": lambda t, i: t.index_fill(1, i[0] % 4, 9.0),
    "masked_fill": lambda t, i: t.masked_fill(i % 2 == 0, -1.0),
    "masked_select": lambda t, i: t.masked_select(i % 2 == 0),
    "index_put": lambda t, i: t.index_put((i[0] % 3, i[1] % 4), t[0], accumulate=True),
    "put": lambda t, i: t.put(i[:1] * 0 + i.new_tensor([1, 5, 7, 2]), t[0]),
}  # fmt: skip


@pytest.mark.parametrize("name", GATHER)
def test_gathering(name, device, rng):
    x = rng.normal(size=(3, 4)).astype(np.float32)
    compare(GATHER[name], x, rng.integers(0, 12, (3, 4)))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("reduce", ["sum", "prod", "mean", "amax", "amin"])
def test_scatter_reduce(reduce, include, device, rng):
    x, src = rng.normal(size=(3, 5)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    index = rng.integers(0, 5, (3, 4))
    compare(lambda t, i, s: t.scatter_reduce(1, i, s, reduce, include_self=include), x, index, src,
            rtol=1e-4)  # fmt: skip


def test_embedding(device, rng):
    w = rng.normal(size=(7, 3)).astype(np.float32)
    i = rng.integers(0, 7, (2, 4))
    F = torch.nn.functional
    compare(lambda t, w: t.embedding(w), i, w, oracle=F.embedding)
    compare(lambda t, w: t.embedding(w, 2), i, w, oracle=lambda t, w: F.embedding(t, w, 2))


def test_counting(device, rng):
    i = rng.integers(0, 6, 20)
    compare(lambda t: t.bincount(minlength=9), i)
    compare(lambda t: t.one_hot(6), i, oracle=lambda t: torch.nn.functional.one_hot(t, 6))
    line, values = np.sort(rng.normal(size=9)), rng.normal(size=(2, 5))
    compare(lambda a, b: a.searchsorted(b), line, values, gradient=False,
            oracle=lambda a, b: torch.searchsorted(a, b))  # fmt: skip
    compare(lambda a, b: b.bucketize(a, right=True), line, values, gradient=False,
            oracle=lambda a, b: torch.bucketize(b, a, right=True))  # fmt: skip
    compare(lambda t: t.nonzero(), i % 3)
    compare(lambda t: t.histc(5, -2, 2), values.reshape(-1).astype(np.float32), gradient=False)


def test_masked_scatter(device, rng):
    x, s = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=12).astype(np.float32)
    compare(lambda t, u: t.masked_scatter(t > 0, u), x, s)


@pytest.mark.parametrize("index", [3, -4, (0, 9), (0, 0, 0), 1.5, "a", (Ellipsis, Ellipsis)])
def test_bad_indices_are_refused_at_once(index, device):
    with pytest.raises(IndexingError):
        Tensor([[1.0, 2.0]] * 3)[index]


def test_a_known_index_outside_its_axis_is_refused(device):
    if device == "INTERP":
        with pytest.raises(IndexingError, match="outside"):
            Tensor([1.0, 2.0])[Tensor([2])]
