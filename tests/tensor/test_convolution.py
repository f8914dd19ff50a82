"""Convolutions and transposed ones of every rank beside torch, as users write them: whatever the
compiler knows better is on, and every access of a kernel is proven."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from muladd import Tensor
from muladd.errors import ShapeError

SHAPES = [  # of which there were errors: name, image, weight, stride, padding
    ("conv3d", (1, 15, 6, 5, 3), (5, 15, 1, 2, 2), (3, 3, 3), (0, 0, 1)),  # fewer rows than taken
    ("conv3d", (1, 3, 7, 7, 6), (2, 3, 4, 4, 1), (1, 3, 3), (3, 2, 0)),
    ("conv3d", (3, 8, 4, 3, 8), (8, 8, 2, 3, 1), (1, 1, 1), (0, 1, 0)),  # a remainder's quotient
    ("conv_transpose3d", (1, 5, 6, 6, 6), (5, 17, 2, 3, 1), (1, 1, 1), (1, 1, 0)),
    ("conv_transpose3d", (2, 14, 4, 6, 1), (14, 10, 3, 1, 3), (2, 3, 2), (1, 0, 0)),  # no middle
    ("conv_transpose2d", (3, 15, 8, 2), (15, 13, 4, 2), (2, 3), (3, 0)),  # chunks of phases
    ("conv_transpose2d", (1, 11, 1, 4), (11, 11, 3, 4), (2, 3), (0, 0)),
    ("conv_transpose2d", (3, 8, 8, 11), (8, 17, 3, 3), (4, 3), (2, 1)),  # phases between results
    ("conv_transpose3d", (2, 18, 3, 8, 8), (18, 2, 2, 4, 2), (3, 3, 4), (0, 1, 1)),
    ("conv2d", (2, 19, 28, 28), (33, 19, 3, 3), (2, 2), (1, 1)),  # images taken apart by phases
    ("conv2d", (2, 9, 27, 25), (18, 9, 4, 5), (3, 2), (2, 1)),
    ("conv2d", (3, 40, 14, 15), (40, 40, 5, 5), (2, 2), (0, 3)),
    ("conv1d", (2, 7, 30), (5, 7, 6), (4,), (5,)),
    ("conv3d", (2, 17, 4, 7, 4), (9, 17, 4, 1, 3), (2, 3, 4), (3, 0, 2)),  # torch's own, in float32
]


@pytest.mark.parametrize("which", range(len(SHAPES)))
def test_shapes_of_which_there_were_errors(which):
    name, image, weight, stride, padding = SHAPES[which]
    same_as_torch(name, image, weight, stride=stride, padding=padding)


@pytest.mark.parametrize("number", range(36))
def test_any_rank_stride_and_padding(number):
    random = np.random.default_rng(number)
    rank, transposed, groups = 1 + number % 3, number % 2 == 0, int(random.choice([1, 1, 1, 2, 3]))
    taps = random.integers(1, 6 - rank // 2, rank)
    dilation = random.choice([1, 1, 2, 3], rank) if number % 4 < 2 else np.ones(rank, int)
    stride = random.integers(1, 4, rank)
    pad = [int(random.integers(0, d * (t - 1) + 1)) for t, d in zip(taps, dilation)]
    size = dilation * (taps - 1) + 1 + random.integers(0, (40, 16, 6)[rank - 1], rank)
    before, after = (groups * int(random.choice([1, 3, 8, 17])) for _ in range(2))
    weight = (before, after // groups) if transposed else (after, before // groups)
    options = {"stride": whole(stride), "padding": whole(pad), "dilation": whole(dilation),
               "groups": groups}  # fmt: skip
    if transposed:
        extra = [int(random.integers(0, max(s, d))) for s, d in zip(stride, dilation)]
        options["output_padding"] = whole(extra)
    image = (int(random.integers(1, 4)), before, *whole(size))
    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    same_as_torch(name, image, (*weight, *whole(taps)), **options)


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_derivatives_of_derivatives_with_strides(name):
    given = [np.random.default_rng(i).standard_normal(s) for i, s in enumerate(
        ((2, 3, 7, 6), (3, 3, 3, 2)))]  # fmt: skip
    found = []
    for kind, function in ((Tensor, Tensor), (torch.tensor, torch.nn.functional)):
        x, w = (kind(a, requires_grad=True) for a in given)
        (getattr(function, name)(x, w, stride=(2, 3), padding=1) ** 3).sum().backward(
            create_graph=True)  # fmt: skip
        slope, x.grad = x.grad, None
        (slope**2).sum().backward()
        found.append((x.grad, w.grad))
    for a, b in zip(*found):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-9)


def whole(values):
    return tuple(map(int, values))


def same_as_torch(name, image, weight, **options):
    """Forward and both gradients."""
    random = np.random.default_rng(0)
    given = [random.standard_normal(shape).astype(np.float32) for shape in (image, weight)]
    ours = [Tensor(a, requires_grad=True) for a in given]
    theirs = [torch.tensor(a.astype(np.float64), requires_grad=True) for a in given]
    y = getattr(ours[0], name)(ours[1], **options)
    z = getattr(torch.nn.functional, name)(*theirs, **options)
    assert y.shape == z.shape
    y.square().sum().backward()
    z.square().sum().backward()
    for a, b in zip((y, *(t.grad for t in ours)), (z, *(t.grad for t in theirs))):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-3,
                                   atol=2e-5 * float(b.detach().abs().max()))  # fmt: skip


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_whole_numbers(name):
    random = np.random.default_rng(3)
    x, w = random.integers(-9, 9, (2, 3, 8, 7)), random.integers(-9, 9, (3, 3, 3, 2))
    ours = getattr(Tensor(x), name)(Tensor(w), stride=2, padding=1)
    theirs = getattr(torch.nn.functional, name)(*map(torch.tensor, (x, w)), stride=2, padding=1)
    np.testing.assert_array_equal(ours.numpy(), theirs.numpy())


@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize("option", ["stride", "dilation"])
@pytest.mark.parametrize("value", [0, (2, 0), (1, -1)])
def test_strides_and_dilations_go_forward(name, option, value):
    with pytest.raises(ShapeError, match=f"{name}: stride .* must be at least 1"):
        getattr(Tensor.ones(1, 2, 9, 9), name)(Tensor.ones(2, 2, 3, 3), **{option: value})
