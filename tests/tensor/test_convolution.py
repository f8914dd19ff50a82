"""Convolutions and transposed ones of every rank beside torch, as users write them: whatever the
compiler knows better is on, and every access of a kernel is proven."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from muladd import Tensor

SHAPES = [  # of which there were errors: name, image, weight, stride, padding
    ("conv3d", (1, 15, 6, 5, 3), (5, 15, 1, 2, 2), (3, 3, 3), (0, 0, 1)),  # fewer rows than taken
    ("conv3d", (1, 3, 7, 7, 6), (2, 3, 4, 4, 1), (1, 3, 3), (3, 2, 0)),
    ("conv3d", (3, 8, 4, 3, 8), (8, 8, 2, 3, 1), (1, 1, 1), (0, 1, 0)),  # a remainder's quotient
    ("conv_transpose3d", (1, 5, 6, 6, 6), (5, 17, 2, 3, 1), (1, 1, 1), (1, 1, 0)),
    ("conv_transpose3d", (2, 14, 4, 6, 1), (14, 10, 3, 1, 3), (2, 3, 2), (1, 0, 0)),  # no middle
]


@pytest.mark.parametrize("which", range(len(SHAPES)))
def test_shapes_of_which_there_were_errors(which):
    same_as_torch(*SHAPES[which])


@pytest.mark.parametrize("number", range(24))
def test_any_rank_stride_and_padding(number):
    random = np.random.default_rng(number)
    rank = 1 + number % 3
    taps = random.integers(1, 5, rank)
    stride, pad = random.integers(1, 4, rank), [int(random.integers(0, t)) for t in taps]
    size = taps + random.integers(0, (40, 16, 8)[rank - 1], rank)
    before, after = (int(random.choice([1, 3, 8, 17])) for _ in range(2))
    name = f"conv{rank}d" if number % 2 else f"conv_transpose{rank}d"
    weight = (after, before, *taps) if number % 2 else (before, after, *taps)
    image = (int(random.integers(1, 4)), before, *size)
    same_as_torch(name, image, weight, tuple(map(int, stride)), tuple(pad))


def same_as_torch(name, image, weight, stride, padding):
    """Forward and both gradients."""
    random = np.random.default_rng(0)
    given = [random.standard_normal(shape).astype(np.float32) for shape in (image, weight)]
    ours = [Tensor(a, requires_grad=True) for a in given]
    theirs = [torch.tensor(a, requires_grad=True) for a in given]
    y = getattr(ours[0], name)(ours[1], stride=stride, padding=padding)
    z = getattr(torch.nn.functional, name)(*theirs, stride=stride, padding=padding)
    assert y.shape == z.shape
    y.square().sum().backward()
    z.square().sum().backward()
    for a, b in zip((y, *(t.grad for t in ours)), (z, *(t.grad for t in theirs))):
        np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=1e-3,
                                   atol=2e-5 * float(b.detach().abs().max()))  # fmt: skip
