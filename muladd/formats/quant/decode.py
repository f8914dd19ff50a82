"""Blocks to numbers: `decode` runs now, with NumPy; `dequantize` is a graph that fuses."""
from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, DTypeError, ShapeError
from muladd.formats.quant.fields import NUMPY, TENSOR, Arithmetic, Array, Block
from muladd.formats.quant.kinds import KINDS, Kind
from muladd.ir import dtype as dt
from muladd.tensor import Tensor

_AT_ONCE = 1 << 15  # elements decoded together: their temporaries stay in the cache


def kind(given: Any) -> Kind:
    """The Kind meant by a Kind or by its name. Raises ArgumentError when there is none."""
    if isinstance(given, Kind):
        return given
    if not isinstance(given, str) or given not in KINDS:
        raise ArgumentError(f"quant: {given!r} is no kind of tensor; expected one of "
                            f"{', '.join(KINDS)}")  # fmt: skip
    return KINDS[given]


def decode(raw: np.ndarray, kind_: Any) -> np.ndarray:
    """Stored bytes as numbers: uint8 (..., blocks * bytes) to (..., blocks * elements).

    float32, or the kind's own dtype for F64 and whole numbers. Raises ArgumentError for an unknown
    kind, DTypeError unless `raw` is uint8, ShapeError unless a row is a whole number of blocks.
    """
    k = kind(kind_)
    shape = _shape("decode", raw, k)
    if k.dtype is not None:
        little = np.ascontiguousarray(raw).view(k.dtype.storage.newbyteorder("<"))
        values = np.asarray(dt.decode(little, k.dtype))
        return values.astype(np.float32 if k.dtype is dt.float16 else k.dtype.numpy, copy=False)
    blocks = np.ascontiguousarray(raw).reshape(-1, k.bytes)
    out = np.empty((len(blocks), k.elements), np.float32)
    step = max(1, _AT_ONCE // k.elements)
    with np.errstate(invalid="ignore", over="ignore"):  # scales may be infinite, or NaN
        for i in range(0, len(blocks), step):
            out[i : i + step] = _values(k, blocks[i : i + step], NUMPY)
    return out.reshape(shape)


def dequantize(raw: Tensor, kind_: Any) -> Tensor:
    """The same as `decode` for a uint8 tensor: a float32 tensor, whose graph fuses with its users.

    Equal to `decode` in every bit in the exact profile; the fast one may round
    `scale * code + offset` once. Plain kinds but F32, F16 and BF16 are refused (ArgumentError):
    their bytes are a tensor of that dtype already.
    """
    k = kind(kind_)
    shape = _shape("dequantize", raw, k)
    block = Block(raw.reshape(*raw.shape[:-1], raw.shape[-1] // k.bytes, k.bytes), TENSOR)
    if k.dtype is None:
        values = _values(k, block.raw, TENSOR)
    elif k.name == "F32":
        values = block.single(0)
    elif k.name in ("F16", "BF16"):
        bits = block.bytes(0) + block.bytes(1) * 256
        values = bits.bitcast(k.dtype).cast("float32")
    else:
        raise ArgumentError(f"dequantize: {k.name} is a plain kind; read the bytes as "
                            f"{k.dtype.name} instead")  # fmt: skip
    return values.reshape(*shape)


def codes(raw: Array, kind_: Any) -> Array:
    """The whole numbers -128 to 127 that blocks hold: uint8 (..., blocks, bytes), an array or a
    tensor, to int8 (..., blocks, elements)."""
    block, k = _block("codes", raw, kind_)
    assert k.code is not None
    return block.arithmetic.cast(k.code(block), "int8")


def scales(raw: Array, kind_: Any) -> tuple[Array, Array | None]:
    """(scale, offset) of the groups in blocks: uint8 (..., blocks, bytes) to float32
    (..., blocks, groups); None where the kind has no offsets. An element is scale * code + offset,
    its group being the next elements / groups of the block."""
    block, k = _block("scales", raw, kind_)
    assert k.scale is not None
    return k.scale(block), None if k.offset is None else k.offset(block)


def _values(k: Kind, raw: Array, arithmetic: Arithmetic) -> Array:
    block = Block(raw, arithmetic)
    assert k.code is not None and k.scale is not None
    scale = k.scale(block)
    groups = scale.shape[-1]
    grouped = (*block.lead, groups, k.elements // groups)
    values = arithmetic.cast(k.code(block), "float32").reshape(*grouped) * scale[..., None]
    if k.offset is not None:
        values = values + k.offset(block)[..., None]
    return values.reshape(*block.lead, k.elements)


def _block(who: str, raw: Array, kind_: Any) -> tuple[Block, Kind]:
    k = kind(kind_)
    if k.dtype is not None:
        raise ArgumentError(f"{who}: {k.name} is a plain kind, which has no codes and scales")
    if _shape(who, raw, k)[-1] != k.elements:
        raise ShapeError(f"{who}: expected blocks of {k.bytes} bytes of {k.name} along the last "
                         f"axis, got {list(raw.shape)}")  # fmt: skip
    return Block(raw, TENSOR if isinstance(raw, Tensor) else NUMPY), k


def _shape(who: str, raw: Array, k: Kind) -> tuple[int, ...]:
    """The shape of the elements."""
    if not isinstance(raw, Tensor | np.ndarray) or dt.dtype(raw.dtype) is not dt.uint8:
        given = getattr(raw, "dtype", type(raw).__name__)
        raise DTypeError(f"{who}: expected the stored bytes as uint8, got {given}")
    if not raw.ndim or raw.shape[-1] % k.bytes:
        raise ShapeError(
            f"{who}: {list(raw.shape)} bytes; expected rows of whole blocks of {k.name}, "
            f"{k.bytes} bytes for {k.elements} elements"
        )
    return (*raw.shape[:-1], raw.shape[-1] // k.bytes * k.elements)


def stored_shape(k: Kind, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a tensor's bytes: rows of whole blocks. Raises ShapeError where a row is not."""
    row = shape[-1] if shape else 1
    if row % k.elements:
        raise ShapeError(
            f"quant: {k.name} stores blocks of {k.elements} elements of a row; rows of "
            f"{list(shape)} have {row}"
        )
    return (*shape[:-1], k.size(row))


def nbytes(k: Kind, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor of a kind."""
    return prod(stored_shape(k, shape))
