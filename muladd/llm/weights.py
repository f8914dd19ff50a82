"""A model's weights: matrices of any kind, their products and look-ups.

A quantised matrix is laid anew once, when it is loaded (see `layout`), and stays quantised: a
product takes numbers out of its bytes on the way. What is stored plainly keeps its dtype.

Two arithmetics. In `float32` codes become numbers, which are multiplied as such. In `int8` what is
multiplied by a quantised matrix is quantised too, 32 neighbours of a row with one scale (the
greatest becomes 127), products of bytes are added in whole numbers, and the groups' sums are
scaled and added in float32. That is several times as fast, and about as exact as 8-bit weights are.
"""
from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from muladd.errors import ShapeError
from muladd.formats.gguf import GGUFTensor
from muladd.formats.stored import StoredArray
from muladd.ir import dtype as dt
from muladd.llm.layout import GROUP, Form, in_rows, lay
from muladd.tensor import Tensor
from muladd.tensor.functional import checkpoint
from muladd.tensor.handle import grad_enabled

_LEAST = 1e-30  # a row of zeros is divided by it, not by 0

ARITHMETICS = ("int8", "float32")  # of products with quantised weights
Stored = GGUFTensor | StoredArray


class Matrix:
    """A weight of shape (..., out, in): plain (one array), or laid in a form: codes, scale, offset.

    This is the one place that knows a layout: `self(x)` is the product, `rows(ids)` a look-up.
    `adapter`, if there is one, is a function of x that is added to the product (fine-tuning).
    `arithmetic` is float32 or int8; where gradients are recorded, it is float32 for all.
    """

    def __init__(
        self, *arrays: Tensor, form: Form | None = None, arithmetic: str = "float32"
    ) -> None:
        self.arrays, self.form, self.arithmetic = arrays, form, arithmetic
        self.adapter: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        first = sizes(self.arrays[0])
        if self.form is None:
            return first
        *lead, _, groups, fours, _, four = first
        return (*lead, self.form.rows, groups * fours * four * (2 if self.form.bits == 4 else 1))

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return sum(prod(sizes(t)) * t.dtype.itemsize for t in self.arrays)

    @property
    def by_bytes(self) -> bool:
        """Whether what it is multiplied by is quantised."""
        return self.form is not None and self.arithmetic == "int8"

    def __call__(self, x: Tensor) -> Tensor:
        """The product: x (..., n, in) to (..., n, out), in float32."""
        if self.by_bytes and not grad_enabled():
            product = self._by_bytes(x)
        else:
            product = x @ self._numbers(lambda t: t).transpose(-2, -1)
        return product if self.adapter is None else product + self.adapter(x)

    def numbers(self) -> Tensor:
        """All of it as float32 (..., out, in), which lies in memory as a whole for as long as it is
        used: for training, where many rows and derivatives read it."""
        if self.form is None:
            return self.arrays[0].cast("float32")
        again = functools.partial(Matrix, form=self.form)
        return checkpoint(lambda *given: again(*given)._numbers(lambda t: t))(*self.arrays)

    def rows(self, ids: Tensor) -> Tensor:
        """Row ids[i] for each i, float32: ids (n,) to (n, ..., in)."""
        return self._numbers(lambda t: t[ids])

    def _numbers(self, chosen: Callable[[Tensor], Tensor]) -> Tensor:
        """The elements that are wanted, as float32; a graph."""
        if self.form is None:
            return chosen(self.arrays[0]).cast("float32")
        codes, *rest = [chosen(in_rows(t, self.form)) for t in self.arrays]
        parts = self.form.unpacked(codes)  # (..., groups, fours, 4)
        values = parts[0]
        if len(parts) == 2:
            half = Tensor.arange(2, dtype="int32", device=codes.device).reshape(2, 1, 1)
            values = (half == 0).where(parts[0].unsqueeze(-3), parts[1].unsqueeze(-3))
            values = values.reshape(*codes.shape[:-2], -1, 4)
        values = values.reshape(*values.shape[:-2], -1).cast("float32")
        if self.form.shift:
            values = values - self.form.shift
        values = values * rest[0].cast("float32").unsqueeze(-1)
        if len(rest) > 1:
            values = values + rest[1].cast("float32").unsqueeze(-1)
        return values.reshape(*values.shape[:-2], -1)

    def _by_bytes(self, x: Tensor) -> Tensor:
        """The product in whole numbers, group by group: sums of bytes' products, scaled."""
        assert self.form is not None
        codes, *rest = [in_rows(t, self.form) for t in self.arrays]
        parts = self.form.unpacked(codes)  # (..., out, groups, fours, 4)
        groups, fours = (int(n) for n in codes.shape[-3:-1])  # type: ignore[arg-type]
        bytes_, scale, total = quantized(x, groups, self.form.beside)
        lies = bytes_.reshape(*bytes_.shape[:-1], len(parts), fours, 4).cast("int32").unsqueeze(-5)
        sums = lies[..., 0, :, :] * parts[0].cast("int32").unsqueeze(-5)
        for i, part in enumerate(parts[1:], 1):
            sums = sums + lies[..., i, :, :] * part.cast("int32").unsqueeze(-5)
        sums = sums.sum((-2, -1), dtype="int32").cast("float32")  # (..., n, out, groups)
        weights = [t.cast("float32").unsqueeze(-3) for t in rest]
        sums = sums * scale.unsqueeze(-2)
        if len(weights) == 1 and self.form.shift:
            sums = sums + (total * -self.form.shift).unsqueeze(-2)
        y = sums * weights[0]
        return (y if len(weights) == 1 else y + weights[1] * total.unsqueeze(-2)).sum(-1)

    def __repr__(self) -> str:
        kind = self.arrays[0].dtype.name if self.form is None else f"{self.form.bits} bits"
        return f"Matrix({kind}{list(self.shape)})"


def quantized(x: Tensor, groups: int, dtype: str = "int8") -> tuple[Tensor, Tensor, Tensor]:
    """(codes, scale, total): int8 or int16 (..., groups, in / groups), float32 (..., groups) twice.

    32 neighbours have one scale, by which the greatest becomes 127 or -127; the others are rounded
    to the nearest, ties to even. total is what a group's bytes stand for, added up.
    """
    cut = x.reshape(*x.shape[:-1], -1, GROUP)
    scale = cut.abs().amax(-1, keepdim=True).maximum(_LEAST) * (1 / 127)
    # a sum with 1.5 * 2**23 rounds to a whole number, which its last bits are
    moved = cut * (1.0 / scale) + 12582912.0
    found = moved.bitcast("int32").cast(dtype).reshape(*x.shape[:-1], groups, -1)
    if groups != cut.shape[-2]:
        scale = scale.expand(*cut.shape[:-1], groups // cut.shape[-2])
    scale = scale.reshape(*x.shape[:-1], groups)
    return found, scale, found.cast("int32").sum(-1, dtype="int32").cast("float32") * scale


def matrix(stored: Stored, arithmetic: str = "float32") -> Matrix:
    """A stored weight as a Matrix."""
    if isinstance(stored, StoredArray):
        return Matrix(stored.tensor())
    kind = stored.kind
    if kind.dtype is not None:
        little = np.ascontiguousarray(stored.raw).view(kind.dtype.storage.newbyteorder("<"))
        return Matrix(StoredArray(kind.dtype, little.reshape(stored.shape)).tensor())
    arrays, form = lay(stored)
    return Matrix(*arrays, form=form, arithmetic=arithmetic)


def sizes(t: Tensor) -> tuple[int, ...]:
    """The shape of a tensor that lies in memory, where no size is symbolic."""
    return tuple(n for n in t.shape if isinstance(n, int))


def fits(stored: Stored, shape: tuple[int, ...]) -> bool:
    """Whether a stored weight has this shape, in which 0 is any size."""
    return len(stored.shape) == len(shape) and all(n in (0, m) for n, m in zip(shape, stored.shape))


def kind_of(stored: Stored) -> str:
    """How a stored weight's elements are kept: a dtype's name, or that of a quantised kind."""
    return stored.kind.name if isinstance(stored, GGUFTensor) else stored.dtype.name


def is_of_numbers(stored: Stored) -> bool:
    """Whether a stored weight says its values by itself: plain floating-point numbers of 16 bits or
    more, or blocks with their scales. Whole numbers and bytes have scales elsewhere."""
    d = stored.kind.dtype if isinstance(stored, GGUFTensor) else stored.dtype
    return d is None or d.is_float and d.bits >= 16


def numbers(stored: Stored) -> np.ndarray:
    """A stored weight as a float32 array."""
    values = stored.dequantize() if isinstance(stored, GGUFTensor) else stored.numpy()
    return np.asarray(values, np.float32)


def parts(stored: Stored, sizes: list[int], who: str) -> Iterator[Any]:
    """A stored weight cut along its rows, as files keep several matrices in one."""
    if sum(sizes) != stored.shape[0]:
        raise ShapeError(f"{who}: has {stored.shape[0]} rows; expected {sum(sizes)}")
    start = 0
    for size in sizes:
        if isinstance(stored, GGUFTensor):
            raw = stored.raw[start : start + size]
            if len(stored.shape) == 1:  # a vector is one row of blocks
                plain = stored.dequantize()[start : start + size]
                yield StoredArray(dt.float32, np.ascontiguousarray(plain, np.float32))
            else:
                yield GGUFTensor(stored.kind, (size, *stored.shape[1:]), raw)
        else:
            yield StoredArray(stored.dtype, stored.stored[start : start + size])
        start += size


def stacked(arrays: list[Stored]) -> StoredArray:
    """Matrices of equal shape as one of one more axis: the experts of a layer."""
    first = arrays[0]
    if isinstance(first, StoredArray):
        same = [a.stored for a in arrays if isinstance(a, StoredArray)]
        return StoredArray(first.dtype, np.stack(same))
    return StoredArray(dt.float32, np.stack([numbers(a) for a in arrays]))
