"""What lies in a block of bytes: bit fields, half floats, digits, signs and codebook points.

A `Block` takes them out, either from a NumPy array or from a Tensor. Both know + - * & ^ >> and
reshape, so a kind of block is described once (`kinds.py`) and gives a decoder and a graph. The
four things that NumPy and Tensor spell differently are an `Arithmetic`.
"""
from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from muladd.formats.quant.codebooks import table
from muladd.tensor import Tensor

Array = Any  # a NumPy array or a Tensor


class Arithmetic(Protocol):
    """What NumPy and Tensor spell differently. dtypes are given by their common names."""

    def cast(self, x: Array, dtype: str) -> Array: ...

    def bitcast(self, x: Array, dtype: str) -> Array: ...

    def join(self, parts: Sequence[Array], axis: int) -> Array: ...

    def fields(self, x: Array, shifts: Sequence[int], mask: int) -> Array:
        """(x >> shift) & mask as int16: uint8 (..., 1, n), shifts 0 to 7 to (..., shifts, n)."""

    def look_up(self, name: str, index: Array) -> Array:
        """The rows of a constant table at int16 indices (...): (..., coordinates), or (...)."""


class _NumPy:
    def cast(self, x: Array, dtype: str) -> Array:
        return x.astype(dtype)

    def bitcast(self, x: Array, dtype: str) -> Array:
        return x.view(dtype)

    def join(self, parts: Sequence[Array], axis: int) -> Array:
        return np.concatenate(parts, axis)

    def fields(self, x: Array, shifts: Sequence[int], mask: int) -> Array:
        return ((x >> np.array(shifts, np.uint8)[:, None]) & np.uint8(mask)).astype(np.int16)

    def look_up(self, name: str, index: Array) -> Array:
        return table(name)[index]


class _Tensor:
    def cast(self, x: Array, dtype: str) -> Array:
        return x.cast(dtype)

    def bitcast(self, x: Array, dtype: str) -> Array:
        return x.bitcast(dtype)

    def join(self, parts: Sequence[Array], axis: int) -> Array:
        return Tensor.cat(*parts, dim=axis)

    def fields(self, x: Array, shifts: Sequence[int], mask: int) -> Array:
        # The language shifts by constants only: up by a factor that varies, then down by 8.
        wide = x.cast("int16")
        up = [wide.new_full((1, 1), 1 << (8 - s)) for s in shifts]
        return ((wide * Tensor.cat(*up)) >> 8) & mask

    def look_up(self, name: str, index: Array) -> Array:
        return _tensor_table(name, index.device)[index.cast("int32")]


@lru_cache(maxsize=32)
def _tensor_table(name: str, device: str) -> Tensor:
    return Tensor(table(name), device=device)


NUMPY: Arithmetic = _NumPy()
TENSOR: Arithmetic = _Tensor()


class Block:
    """Blocks of bytes `raw`, (..., bytes) uint8, and what lies at which offset `at` in each.

    Whole numbers come as int16, which holds every field and wraps; n of them are (..., n).
    """

    def __init__(self, raw: Array, arithmetic: Arithmetic) -> None:
        self.raw, self.arithmetic = raw, arithmetic
        self.lead = tuple(raw.shape[:-1])

    # --- whole numbers ----------------------------------------------------------------------------

    def bytes(self, at: int, count: int = 1) -> Array:
        """Bytes as numbers 0 to 255."""
        return self.arithmetic.cast(self.raw[..., at : at + count], "int16")

    def int8(self, at: int, count: int) -> Array:
        """Bytes as numbers -128 to 127."""
        signed = self.arithmetic.bitcast(self.raw[..., at : at + count], "int8")
        return self.arithmetic.cast(signed, "int16")

    def bits(
        self, width: int, at: int, count: int, run: int = 1, shifts: Sequence[int] | None = None
    ) -> Array:
        """Fields of `width` bits from `count` bytes, which lie in runs: of each run of bytes first
        the fields at the first shift, then those at the next. (No shifts given: all that fit.)

        bits(4, at=0, count=4, run=2) of bytes AB CD EF GH gives B D A C F H E G.
        """
        runs = self.raw[..., at : at + count].reshape(*self.lead, count // run, 1, run)
        shifts = range(0, 8, width) if shifts is None else shifts
        return self.flat(self.arithmetic.fields(runs, shifts, (1 << width) - 1), 3)

    def trits(self, at: int, count: int, digits: int) -> Array:
        """Digits 0, 1, 2 to base 3, first all of the highest digit, then the next, ... A byte is
        ceil(n * 256 / 243), so the highest of five digits of n is what overflows from 3 * byte."""
        run = self.bytes(at, count).reshape(*self.lead, 1, count)
        places = [((run * 3**k & 255) * 3) >> 8 for k in range(digits)]
        return self.flat(self.arithmetic.join(places, -2), 2)

    def join(self, *parts: Array) -> Array:
        """Arrays of fields one after another."""
        return self.arithmetic.join(parts, -1)

    def flat(self, x: Array, axes: int) -> Array:
        """The last axes as one."""
        size = 1
        for n in x.shape[x.ndim - axes :]:
            size *= n
        return x.reshape(*x.shape[: x.ndim - axes], size)

    def every(self, x: Array, size: int, first: int, count: int) -> Array:
        """Of each `size` elements the `count` from `first` on."""
        groups = x.reshape(*x.shape[:-1], x.shape[-1] // size, size)
        return self.flat(groups[..., first : first + count], 2)

    # --- floats -----------------------------------------------------------------------------------

    def half(self, at: int) -> Array:
        """A float16, as float32 (..., 1)."""
        return self.as_half(self.bytes(at) + self.bytes(at + 1) * 256)

    def as_half(self, bits: Array) -> Array:
        """16-bit patterns read as float16, as float32."""
        return self.arithmetic.cast(self.arithmetic.bitcast(bits, "float16"), "float32")

    def single(self, at: int) -> Array:
        """A float32, as (..., 1)."""
        four = [self.arithmetic.cast(self.bytes(at + i), "int32") for i in range(4)]
        bits = four[0] + four[1] * (1 << 8) + four[2] * (1 << 16) + four[3] * (1 << 24)
        return self.arithmetic.bitcast(bits, "float32")

    # --- codebooks --------------------------------------------------------------------------------

    def values(self, name: str, codes: Array) -> Array:
        """What codes mean by a table of numbers."""
        return self.arithmetic.look_up(name, codes)

    def points(self, name: str, index: Array) -> Array:
        """The coordinates of codebook points (..., n) in a row: (..., n * coordinates)."""
        found = self.arithmetic.cast(self.arithmetic.look_up(name, index), "int16")
        return self.flat(found, 2)

    def signs(self, at: int, count: int) -> Array:
        """Each bit as +1 (clear) or -1 (set), of each byte the lowest first."""
        return 1 - self.bits(1, at, count) * 2

    def even_signs(self, seven: Array) -> Array:
        """Eight signs from each 7 bits (..., n): the eighth makes the count of -1 even."""
        parity = seven ^ (seven >> 4)
        parity = parity ^ (parity >> 2)
        parity = (parity ^ (parity >> 1)) & 1
        column = [((seven >> i) & 1)[..., None] for i in range(7)] + [parity[..., None]]
        return 1 - self.flat(self.arithmetic.join(column, -1), 2) * 2

    def four_sevens(self, at: int, count: int, size: int) -> Array:
        """Four fields of 7 bits, from the lowest on, of the last 4 of each `size` bytes among
        `count` bytes: (..., count / size * 4)."""
        region = self.raw[..., at : at + count].reshape(*self.lead, count // size, size)
        b = [self.arithmetic.cast(region[..., i : i + 1], "int16") for i in range(size - 4, size)]
        fields = [b[0] & 127]
        for i in (1, 2, 3):  # 8 - i bits below, i bits of the next byte above
            fields.append((b[i - 1] >> (8 - i)) + (b[i] & ((1 << (7 - i)) - 1)) * (1 << i))
        return self.flat(self.arithmetic.join(fields, -1), 2)
