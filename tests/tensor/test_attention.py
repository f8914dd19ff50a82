"""Attention's own derivative: of first and second order, and in 16 bits, beside PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import muladd
from muladd import Tensor


def operands(dtype: str, shape=(1, 2, 37, 16), count: int = 4):
    """The same values as ours and, exactly, as PyTorch's in double precision."""
    rng = np.random.default_rng(len(dtype))
    theirs = [torch.tensor(rng.standard_normal(shape)).to(getattr(torch, dtype)).double()
              for _ in range(count)]  # fmt: skip
    return [Tensor(t.numpy()).cast(dtype) for t in theirs], theirs


def largest_difference(ours: Tensor, theirs: torch.Tensor) -> float:
    """The greatest difference, relative to the greatest value."""
    found = ours.cast("float64").numpy()
    return float(np.abs(found - theirs.numpy()).max() / theirs.abs().max())


# 16 bits: the weights of a row are rounded to 8 (11) bits before their product, as PyTorch's are
@pytest.mark.parametrize("dtype, most", [
    ("float64", 1e-12), ("float32", 1e-6), ("float16", 1e-3), ("bfloat16", 8e-3),
])  # fmt: skip
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_as_precise_as_the_dtype(dtype, most, causal):
    (*mine, weight), (*theirs, w) = operands(dtype)
    theirs = [t.requires_grad_() for t in theirs]

    def loss(q, k, v):
        return (q.scaled_dot_product_attention(k, v, is_causal=causal) * weight).sum()

    found = muladd.grad(loss, argnums=(0, 1, 2))(*mine)
    out = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal)
    expected = torch.autograd.grad((out * w).sum(), theirs)
    for a, b in zip(found, expected):
        assert largest_difference(a, b) < most


@pytest.mark.parametrize("causal", [False, True])
def test_a_derivative_of_its_derivative(causal):
    """The backward pass reads each row's level, so the level has a derivative too."""
    mine, theirs = operands("float64", (1, 2, 7, 3), 3)
    theirs = [t.requires_grad_() for t in theirs]

    def loss(q, k, v):
        return (q.scaled_dot_product_attention(k, v, is_causal=causal) ** 2).sum()

    def of_gradients(q, k, v):
        return sum((g**3).sum() for g in muladd.grad(loss, argnums=(0, 1, 2))(q, k, v))

    found = muladd.grad(of_gradients, argnums=(0, 1, 2))(*mine)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        out = torch.nn.functional.scaled_dot_product_attention(*theirs, is_causal=causal)
        first = torch.autograd.grad((out**2).sum(), theirs, create_graph=True)
        expected = torch.autograd.grad(sum((g**3).sum() for g in first), theirs)
    for a, b in zip(found, expected):
        assert largest_difference(a, b) < 1e-11


@pytest.mark.parametrize("kind", ["full", "causal", "masked"])
def test_long_rows_are_done_in_blocks(kind):
    """Maxima and sums advance block by block; a mask may leave out the first blocks of a row, or
    all of them. Nothing as large as the scores is ever in memory."""
    length = 2900  # a band of rows is more than the caches want; and no multiple of a block
    mine, theirs = operands("float32", (1, 1, length, 16))
    mine[0], theirs[0] = mine[0] * 3, theirs[0] * 3
    (*mine, weight), (*theirs, w) = mine, theirs
    theirs = [t.requires_grad_() for t in theirs]
    ours: dict = {"is_causal": kind == "causal"}
    other: dict = dict(ours)
    if kind == "masked":
        rng = np.random.default_rng(1)
        mask = rng.random((length, length)) > 0.3
        mask[: length // 2, :1500] = False
        mask[7] = False
        ours["attn_mask"], other["attn_mask"] = Tensor(mask), torch.tensor(mask)

    def loss(q, k, v):
        return (q.scaled_dot_product_attention(k, v, **ours) * weight).sum()

    value = mine[0].scaled_dot_product_attention(*mine[1:], **ours)
    assert all(k.scratch < 1 << 21 for k in value.kernels())
    expected = torch.nn.functional.scaled_dot_product_attention(*theirs, **other)
    expected = torch.nan_to_num(expected)
    assert largest_difference(value, expected.detach()) < 1e-5
    found = muladd.grad(loss, argnums=(0, 1, 2))(*mine)
    for a, b in zip(found, torch.autograd.grad((expected * w).sum(), theirs)):
        assert largest_difference(a, torch.nan_to_num(b)) < 1e-5
