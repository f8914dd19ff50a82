"""A model's weights: matrices in the one layout that products read, whatever their file's kind.

A quantised matrix is laid anew once, when it is loaded: its codes as int8 in rows, and a scale (and
an offset) for each group of neighbours. A product reads these and makes numbers of them on the way,
inside of its kernel, so no matrix is ever held as floats. What is stored plainly keeps its dtype.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import numpy as np

from muladd.errors import ShapeError
from muladd.formats import quant
from muladd.formats.gguf import GGUFTensor
from muladd.formats.stored import StoredArray
from muladd.ir import dtype as dt
from muladd.tensor import Tensor
from muladd.tensor.functional import checkpoint

_AT_ONCE = 1 << 20  # elements laid anew together: what is in between stays small

Stored = GGUFTensor | StoredArray


class Matrix:
    """A weight of shape (..., out, in): plain (`values`), or int8 codes with scales of groups.

    This is the one place that knows a layout: `self(x)` is the product, `rows(ids)` a look-up.
    `adapter`, if there is one, is a function of x that is added to the product (fine-tuning).
    """

    def __init__(
        self, values: Tensor, scale: Tensor | None = None, offset: Tensor | None = None
    ) -> None:
        self.stored, self.scale, self.offset = values, scale, offset
        self.adapter: Callable[[Tensor], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        *lead, last = sizes(self.stored)
        if self.scale is None:
            return (*lead, last)
        return (*lead[:-1], lead[-1] * last)

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        held = (t for t in (self.stored, self.scale, self.offset) if t is not None)
        return sum(prod(sizes(t)) * t.dtype.itemsize for t in held)

    def __call__(self, x: Tensor) -> Tensor:
        """The product: x (..., n, in) to (..., n, out), in float32."""
        product = x @ self._numbers(lambda t: t).transpose(-2, -1)
        return product if self.adapter is None else product + self.adapter(x)

    def numbers(self) -> Tensor:
        """All of it as float32 (..., out, in), which lies in memory as a whole for as long as it is
        used: for training, where many rows and derivatives read it."""
        if self.scale is None:
            return self.stored.cast("float32")
        parts = [t for t in (self.stored, self.scale, self.offset) if t is not None]
        return checkpoint(lambda *given: Matrix(*given)._numbers(lambda t: t))(*parts)

    def rows(self, ids: Tensor) -> Tensor:
        """Row ids[i] for each i, float32: ids (n,) to (n, ..., in)."""
        return self._numbers(lambda t: t[ids])

    def _numbers(self, chosen: Callable[[Tensor], Tensor]) -> Tensor:
        """The elements that are wanted, as float32; a graph."""
        values = chosen(self.stored).cast("float32")
        if self.scale is None:
            return values
        values = values * chosen(self.scale)
        if self.offset is not None:
            values = values + chosen(self.offset)
        return values.reshape(*values.shape[:-2], values.shape[-2] * values.shape[-1])

    def __repr__(self) -> str:
        kind = self.stored.dtype.name if self.scale is None else "codes"
        return f"Matrix({kind}{list(self.shape)})"


def matrix(stored: Stored, device: str | None = None) -> Matrix:
    """A stored weight as a Matrix. A quantised one is read once, a few rows at a time."""
    if isinstance(stored, StoredArray):
        return Matrix(stored.tensor(device))
    kind = stored.kind
    if kind.dtype is not None:
        little = np.ascontiguousarray(stored.raw).view(kind.dtype.storage.newbyteorder("<"))
        array = StoredArray(kind.dtype, little.reshape(stored.shape))
        return Matrix(array.tensor(device))
    *lead, width = stored.shape
    blocks = stored.raw.reshape(-1, width // kind.elements, kind.bytes)
    scale, offset = quant.scales(blocks[:1], kind)
    groups = width // kind.elements * scale.shape[-1]
    size = width // groups
    codes = np.empty((len(blocks), groups, size), np.int8)
    scales = np.empty((len(blocks), groups, 1), np.float32)
    offsets = None if offset is None else np.empty_like(scales)
    step = max(1, _AT_ONCE // width)
    for i in range(0, len(blocks), step):
        some = blocks[i : i + step]
        codes[i : i + step] = quant.codes(some, kind).reshape(len(some), groups, size)
        scale, offset = quant.scales(some, kind)
        scales[i : i + step] = scale.reshape(len(some), groups, 1)
        if offsets is not None and offset is not None:
            offsets[i : i + step] = offset.reshape(len(some), groups, 1)
    parts = (codes, scales, *([] if offsets is None else [offsets]))
    return Matrix(*(Tensor(p.reshape(*lead, *p.shape[1:]), device=device) for p in parts))


def sizes(t: Tensor) -> tuple[int, ...]:
    """The shape of a tensor that lies in memory, where no size is symbolic."""
    return tuple(n for n in t.shape if isinstance(n, int))


def vector(stored: Stored, device: str | None = None) -> Tensor:
    """A stored weight of one axis as a float32 tensor."""
    return Tensor(numbers(stored), device=device)


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
