"""The safetensors format, read strictly and lazily, written atomically.

A file is: the header's length (8 bytes, little-endian), the header (JSON: name to dtype, shape and
data_offsets), the arrays' bytes one after another. The format's description is the documentation
of https://huggingface.co/docs/safetensors.
"""
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, DTypeError, FormatError
from muladd.formats.stored import (
    PathLike,
    StoredArray,
    StoredArrays,
    map_file,
    stored,
    view,
    write_atomically,
)
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.tensor import Tensor

# In the order in which the reference library lays arrays out, last first: never narrower before
# wider, so that every array lies at a multiple of its element's size.
DTYPES: dict[str, DType] = {
    "BOOL": dt.bool_, "U8": dt.uint8, "I8": dt.int8,
    "F8_E5M2": dt.float8_e5m2, "F8_E4M3": dt.float8_e4m3,
    "I16": dt.int16, "U16": dt.uint16, "F16": dt.float16, "BF16": dt.bfloat16,
    "I32": dt.int32, "U32": dt.uint32, "F32": dt.float32,
    "F64": dt.float64, "I64": dt.int64, "U64": dt.uint64,
}  # fmt: skip
_PLACE = {d: place for place, d in enumerate(DTYPES.values())}
NAMES = {d: name for name, d in DTYPES.items()}
MOST_HEADER = 100_000_000  # bytes; the format's own limit
METADATA = "__metadata__"


class File(StoredArrays):
    """An opened file: a mapping from name to `StoredArray`, in the order of the header.

    `metadata` is the header's own map from text to text. Nothing but the header has been read.
    """

    def __init__(self, arrays: dict[str, StoredArray], metadata: dict[str, str]) -> None:
        super().__init__(arrays)
        self.metadata = metadata

    def __repr__(self) -> str:
        return f"safetensors.File({len(self)} arrays, {self.nbytes} bytes)"


class Tensors(Mapping[str, Tensor]):
    """The arrays of a file as tensors, each made when it is first asked for."""

    def __init__(self, file: File, device: str | None) -> None:
        self._file, self._device = file, device
        self._made: dict[str, Tensor] = {}
        self.metadata = file.metadata

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._made:
            self._made[name] = self._file[name].tensor(self._device)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._file)

    def __len__(self) -> int:
        return len(self._file)

    def __contains__(self, name: object) -> bool:
        return name in self._file

    def __repr__(self) -> str:
        return f"safetensors.Tensors({', '.join(self)})"


def load(path: PathLike, device: str | None = None) -> Tensors:
    """A file as a mapping from name to Tensor. The file is mapped into memory; only what is asked
    for is read. Raises FormatError naming what is wrong with the file."""
    return Tensors(open_file(path), device)


def save(
    tensors: Mapping[str, Any], path: PathLike, metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors (or arrays) to a file by name. A reader finds the old file or the new one,
    never a part, whatever happens meanwhile."""
    if not isinstance(tensors, Mapping):
        raise ArgumentError(
            "safetensors.save: expected a mapping from name to tensor, such as "
            f"model.state_dict() gives, got {type(tensors).__name__}"
        )
    values = list(tensors.values())
    lazy = [value for value in values if isinstance(value, Tensor)]
    if lazy:
        lazy[0].realize(*lazy[1:])  # together, so that what they share is computed once
    write_file(path, dict(zip(tensors, map(stored, values))), metadata)


# --- reading -----------------------------------------------------------------------------------


def open_file(path: PathLike) -> File:
    """The arrays of a file, memory-mapped. Raises FormatError naming what is wrong with it."""
    return parse(map_file(path, "safetensors"), str(path))


def parse(data: bytes | memoryview, where: str = "bytes") -> File:
    """The arrays that lie in bytes. Raises FormatError naming what is wrong with them."""
    data = memoryview(data)
    header, start = _header(data, where)
    metadata = header.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _damaged(where, f"{METADATA} is not a map from text to text")
    arrays: dict[str, StoredArray] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        dtype, shape, begin, end = _entry(name, entry, len(data) - start, where)
        spans.append((begin, end, name))
        arrays[name] = StoredArray(dtype, view(data[start + begin : start + end], dtype, shape))
    _check_spans(spans, len(data) - start, where)
    return File(arrays, metadata)


def _damaged(where: str, what: str) -> FormatError:
    return FormatError(
        f"safetensors: {where}: {what}; the file is damaged or is not a safetensors file"
    )


def _header(data: memoryview, where: str) -> tuple[dict[str, Any], int]:
    """The parsed header, and where the arrays' bytes start."""
    if len(data) < 8:
        raise _damaged(where, f"has {len(data)} bytes, and 8 are needed for the header's length")
    length = int.from_bytes(data[:8], "little")
    if length > MOST_HEADER or length > len(data) - 8:
        raise _damaged(where, f"says its header has {length} bytes; it has {len(data) - 8} in all")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise _damaged(where, f"names {twice!r} twice")
        return found

    def refuse(word: str) -> Any:
        raise _damaged(where, f"its header holds {word}, which is not JSON")

    try:
        text = bytes(data[8 : 8 + length]).decode("utf-8")
        header = json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except FormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise _damaged(where, f"its header is not JSON ({error})") from None
    if not isinstance(header, dict) or not text.startswith("{"):
        raise _damaged(where, "its header is not a JSON object")
    return header, 8 + length


def _entry(
    name: str, entry: Any, room: int, where: str
) -> tuple[DType, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one line of the header, checked."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(where, f"{name!r} is {entry!r}, not dtype, shape and data_offsets")
    known = entry["dtype"]
    if not isinstance(known, str) or known not in DTYPES:
        raise FormatError(
            f"safetensors: {where}: {name!r} has dtype {known!r}; "
            f"muladd reads {', '.join(DTYPES)}"
        )
    dtype = DTYPES[known]
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape):
        raise _damaged(where, f"{name!r} has shape {shape!r}, not a list of sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise _damaged(where, f"{name!r} has data_offsets {offsets!r} in {room} bytes of data")
    needed, given = prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if needed != given:
        raise _damaged(
            where, f"{name!r} is {dtype.name}{shape} of {needed} bytes, and is given {given}"
        )
    return dtype, tuple(shape), offsets[0], offsets[1]


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _check_spans(spans: list[tuple[int, int, str]], room: int, where: str) -> None:
    """Every byte of data belongs to exactly one array, as the format demands."""
    at, previous = 0, "the header"
    for begin, end, name in sorted(spans):
        if begin < at:
            raise _damaged(where, f"{name!r} overlaps {previous!r}")
        if begin > at:
            raise _damaged(where, f"{begin - at} bytes before {name!r} belong to no array")
        at, previous = end, name
    if at != room:
        raise _damaged(where, f"{room - at} bytes at the end belong to no array")


# --- writing -----------------------------------------------------------------------------------


def write_file(
    path: PathLike, arrays: Mapping[str, StoredArray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write arrays to a file. A reader never sees half of it, whatever happens meanwhile."""
    write_atomically(path, _pieces(arrays, metadata), "safetensors")


def to_bytes(
    arrays: Mapping[str, StoredArray], metadata: Mapping[str, str] | None = None
) -> bytes:
    """The same file as bytes. Equal arrays give equal bytes, in whatever order they are given."""
    return b"".join(_pieces(arrays, metadata))


def _pieces(
    arrays: Mapping[str, StoredArray], metadata: Mapping[str, str] | None
) -> Iterable[bytes | memoryview]:
    header: dict[str, Any] = {}
    if metadata:
        bad = [k for k, v in metadata.items() if not isinstance(k, str) or not isinstance(v, str)]
        if bad:
            raise FormatError(f"safetensors: metadata maps text to text; {bad[0]!r} does not")
        header[METADATA] = dict(sorted(metadata.items()))
    order = sorted(arrays, key=lambda name: (-_PLACE[_named(arrays[name], name)], name))
    at = 0
    for name in order:
        array = arrays[name]
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for name in order:
        flat = np.ascontiguousarray(arrays[name].stored).reshape(-1)
        little = flat.astype(flat.dtype.newbyteorder("<"), copy=False)
        yield little.view(np.uint8).data


def _named(array: StoredArray, name: str) -> DType:
    if not isinstance(name, str) or name == METADATA:
        raise FormatError(f"safetensors: an array cannot be named {name!r}")
    if array.dtype not in NAMES:
        raise DTypeError(f"safetensors: {name!r} is {array.dtype.name}, which the format lacks")
    return array.dtype
