"""GGUF files, the format of llama.cpp: read strictly and without a copy, written atomically.

A file is: a header, the metadata, a line per tensor (name, sizes, kind, offset), and then the
tensors' bytes, each at a multiple of the alignment. A model may be split over several files. The
specification is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""
from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, DTypeError, FormatError, ShapeError
from muladd.formats.gguf_values import Cursor, Metadata, pairs, text_bytes
from muladd.formats.quant import Kind, decode, kind
from muladd.formats.quant.decode import nbytes, stored_shape
from muladd.formats.quant.encode import quantize
from muladd.formats.quant.kinds import BY_NUMBER, KINDS, RETIRED
from muladd.formats.stored import PathLike, map_file, write_atomically
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.tensor import Tensor

__all__ = ["GGUF", "GGUFTensor", "Metadata", "load", "parse", "quantized", "save"]

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # unless the metadata says otherwise
MOST_AXES = 4
MOST_PARTS = 9999
MOST_TENSORS, MOST_PAIRS = 1 << 17, 1 << 16
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_PLAIN: dict[DType, Kind] = {k.dtype: k for k in KINDS.values() if k.dtype is not None}


class GGUFTensor:
    """A tensor of a file: `kind` (how it is stored), `shape` (rows last, as NumPy has it), `raw`.

    `raw` is uint8 of shape (*shape[:-1], bytes of a row), usually a view of the mapped file.
    """

    __slots__ = ("kind", "shape", "raw")

    def __init__(self, kind: Kind, shape: tuple[int, ...], raw: np.ndarray) -> None:
        self.kind, self.shape, self.raw = kind, shape, raw

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def dequantize(self) -> np.ndarray:
        """The values, float32; float64 and whole numbers keep their type (a view where possible).
        `quant.dequantize(Tensor(t.raw), t.kind)` is the same as a graph."""
        return decode(self.raw, self.kind).reshape(self.shape)

    def __repr__(self) -> str:
        return f"GGUFTensor({self.kind.name}{list(self.shape)})"


class GGUF:
    """A model: `metadata` (of the first file, if several) and `tensors`, in the files' order."""

    def __init__(self, metadata: Metadata, tensors: dict[str, GGUFTensor]) -> None:
        self.metadata, self.tensors = metadata, tensors

    @property
    def architecture(self) -> str:
        """What metadata calls general.architecture, such as llama; '' without."""
        return str(self.metadata.get("general.architecture", ""))

    def __repr__(self) -> str:
        size = sum(t.nbytes for t in self.tensors.values())
        return f"GGUF({self.architecture!r}, {len(self.tensors)} tensors, {size} bytes)"


# --- reading -------------------------------------------------------------------------------------


def load(path: PathLike) -> GGUF:
    """A model from a file, or from all files of a split one (any of them may be named).

    The files are mapped into memory: no tensor is read before it is used, and none is copied.
    Raises FormatError, naming file, offset, what was found and what was expected.
    """
    found = parse(map_file(path, "gguf"), os.fspath(path))
    count = found.metadata.get("split.count", 1)
    if type(count) is not int or not 0 <= count <= MOST_PARTS:
        raise FormatError(f"gguf: {os.fspath(path)}: split.count is {count!r}; expected a number "
                          f"of files, at most {MOST_PARTS}")  # fmt: skip
    return _join(Path(path), count, found) if count > 1 else found


def parse(data: bytes | memoryview, where: str = "bytes") -> GGUF:
    """The model, or the part of one, that lies in bytes. Raises FormatError as `load` does."""
    cursor = Cursor(memoryview(data), where)
    magic = bytes(cursor.take(min(4, cursor.left), "the magic"))
    if magic != MAGIC:
        raise cursor.damaged(f"the first bytes {magic!r}", f"{MAGIC!r}", 0)
    version = cursor.uint(4, "the version")
    if version & 0xFFFF == 0 and version:
        raise FormatError(f"gguf: {where}: is big-endian (version {version >> 24}); muladd reads "
                          "little-endian files: convert it with gguf_convert_endian")  # fmt: skip
    if version not in VERSIONS:
        raise cursor.damaged(f"version {version}", "version 2 or 3", 4)
    tensors = _count(cursor, "tensors", 24, MOST_TENSORS)
    metadata = _metadata(cursor, _count(cursor, "keys", 13, MOST_PAIRS))
    lines = _lines(cursor, tensors)
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise FormatError(f"gguf: {where}: general.alignment is {alignment!r}; expected a power "
                          "of two")  # fmt: skip
    return GGUF(metadata, _tensors(cursor, lines, alignment))


def _count(cursor: Cursor, what: str, least: int, most: int) -> int:
    """A number of things that take at least so many bytes each."""
    start = cursor.at
    count = cursor.uint(8, f"the number of {what}")
    if count > most:
        raise cursor.damaged(f"{count} {what}", f"at most {most}", start)
    if count > cursor.left // least:
        raise cursor.damaged(
            f"{count} {what}", f"at most {cursor.left // least} in the {cursor.left} bytes left",
            start,
        )  # fmt: skip
    return count


def _metadata(cursor: Cursor, count: int) -> Metadata:
    metadata = Metadata()
    for _ in range(count):
        start = cursor.at
        key = cursor.text("a key", 65535)
        if key in metadata:
            raise cursor.damaged(f"the key {key!r:.80} a second time", "each key once", start)
        number = cursor.uint(4, f"the type of {key!r:.80}")
        metadata[key], metadata.types[key] = cursor.value(number, f"{key!r:.80}")
    return metadata


_Line = tuple[Kind, tuple[int, ...], int, int]  # kind, shape, offset in the data, place of the line


def _lines(cursor: Cursor, count: int) -> dict[str, _Line]:
    found: dict[str, _Line] = {}
    for _ in range(count):
        start = cursor.at
        name = cursor.text("a tensor's name", 65535)
        who = f"tensor {name!r:.80}"
        if name in found:
            raise cursor.damaged(f"{who} a second time", "each name once", start)
        axes = cursor.uint(4, f"the number of axes of {who}")
        if axes > MOST_AXES:
            raise cursor.damaged(f"{who} has {axes} axes", f"at most {MOST_AXES}", cursor.at - 4)
        sizes = [cursor.uint(8, f"a size of {who}") for _ in range(axes)]
        if max(sizes, default=0) >= 1 << 63:
            raise cursor.damaged(f"{who} has sizes {sizes}", "sizes below 2**63", start)
        number = cursor.uint(4, f"the kind of {who}")
        if number not in BY_NUMBER:
            was = f", the retired {RETIRED[number]}" if number in RETIRED else ""
            raise cursor.damaged(f"{who} is of kind {number}{was}", _known(), cursor.at - 4)
        offset = cursor.uint(8, f"the offset of {who}")
        found[name] = (BY_NUMBER[number], tuple(reversed(sizes)), offset, start)
    return found


def _known() -> str:
    return "one of " + ", ".join(f"{n} ({k.name})" for n, k in sorted(BY_NUMBER.items()))


def _tensors(cursor: Cursor, lines: dict[str, _Line], alignment: int) -> dict[str, GGUFTensor]:
    start = -(-cursor.at // alignment) * alignment
    room = max(0, len(cursor.data) - start)
    spans: list[tuple[int, int, str]] = []
    found: dict[str, GGUFTensor] = {}
    for name, (k, shape, offset, line) in lines.items():
        who = f"tensor {name!r:.80}"
        if (shape[-1] if shape else 1) % k.elements:
            raise cursor.damaged(f"{who} is {k.name} in rows of {shape[-1] if shape else 1}",
                                 f"a multiple of {k.elements}", line)  # fmt: skip
        size = nbytes(k, shape)
        if offset % alignment:
            raise cursor.damaged(f"{who} lies at offset {offset}", f"a multiple of {alignment}",
                                 line)  # fmt: skip
        if size > room - offset:
            raise cursor.damaged(
                f"{who} takes bytes {offset} to {offset + size} of the data",
                f"at most {room} bytes, which the data has", line,
            )  # fmt: skip
        if size:
            spans.append((offset, offset + size, name))
        raw = np.frombuffer(cursor.data[start + offset : start + offset + size], np.uint8)
        found[name] = GGUFTensor(k, shape, _reshaped(raw, k, shape, cursor, line))
    spans.sort()
    for (_, end, before), (begin, _, name) in zip(spans, spans[1:]):
        if begin < end:
            raise cursor.damaged(f"tensor {name!r:.80} begins at {begin} of the data, inside "
                                 f"{before!r:.80}", f"at least {end}", lines[name][3])  # fmt: skip
    return found


def _reshaped(raw: np.ndarray, k: Kind, shape: tuple[int, ...], cursor: Cursor, line: int
              ) -> np.ndarray:  # fmt: skip
    try:
        return raw.reshape(stored_shape(k, shape))
    except ValueError:  # no elements, but sizes whose product no array may have
        raise cursor.damaged(f"sizes {list(shape)}", "sizes of an array", line) from None


def _join(path: Path, count: int, given: GGUF) -> GGUF:
    """The parts of a split model, which lie beside each other and are named by their numbers."""
    named = _PART.fullmatch(path.name)
    if named is None or int(named[3]) != count or not 1 <= int(named[2]) <= count:
        raise FormatError(
            f"gguf: {path}: is a part of {count} files (split.count), but is not named so; "
            f"expected a name such as model-00001-of-{count:05}.gguf"
        )
    tensors: dict[str, GGUFTensor] = {}
    first: Metadata | None = None
    for i in range(count):
        part = path.with_name(f"{named[1]}-{i + 1:05}-of-{count:05}.gguf")
        found = given if part.name == path.name else parse(map_file(part, "gguf"), str(part))
        for key, wanted in (("split.count", count), ("split.no", i)):
            if found.metadata.get(key) != wanted:
                raise FormatError(f"gguf: {part}: {key} is {found.metadata.get(key)!r}; expected "
                                  f"{wanted}, as the file is named")  # fmt: skip
        twice = tensors.keys() & found.tensors.keys()
        if twice:
            raise FormatError(f"gguf: {part}: tensor {min(twice)!r:.80} is in an earlier part, "
                              "too; expected each tensor in one part")  # fmt: skip
        tensors.update(found.tensors)
        first = first or found.metadata
    assert first is not None
    total = first.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise FormatError(f"gguf: {path}: the parts hold {len(tensors)} tensors; expected "
                          f"{total} (split.tensors.count)")  # fmt: skip
    return GGUF(first, tensors)


# --- writing -------------------------------------------------------------------------------------


def quantized(values: Any, kind_: Any) -> GGUFTensor:
    """A tensor or array as a GGUFTensor of a kind: plain ones are cast, Q8_0, Q4_0, Q4_1, Q4_K and
    Q6_K quantised. Raises ArgumentError for other kinds, ShapeError where rows do not divide."""
    k = kind(kind_)
    array = values.numpy() if isinstance(values, Tensor) else np.asarray(values)
    return GGUFTensor(k, array.shape, quantize(array, k))


def save(
    path: PathLike,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Any],
    kinds: Mapping[str, Any] | None = None,
) -> None:
    """Write a model. A reader finds the old file or the new one, whatever happens meanwhile.

    `tensors` maps names to tensors, arrays, or GGUFTensors (whose bytes are copied); `kinds` names
    the kind to which a tensor is quantised, the others keep their dtype. One tensor at a time is
    computed, quantised and written. `metadata` is written in its order; see
    `gguf_values.encode` for the types of values. Raises ArgumentError, DTypeError or ShapeError
    for what the format cannot hold (before anything is written), FormatError if writing fails.
    """
    wanted = {name: kind(k) for name, k in (kinds or {}).items()}
    if unknown := wanted.keys() - tensors.keys():
        raise ArgumentError(f"gguf.save: kinds names {min(unknown)!r}, which is no tensor here")
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ArgumentError(f"gguf.save: general.alignment is {alignment!r}; expected a power of "
                            "two from 8 to 2**20")  # fmt: skip
    heads = {name: _head(name, value, wanted.get(name)) for name, value in tensors.items()}
    body = list(pairs(dict(metadata) if not isinstance(metadata, dict) else metadata))
    write_atomically(path, _pieces(body, tensors, heads, alignment), "gguf")


def _head(name: str, value: Any, wanted: Kind | None) -> tuple[Kind, tuple[int, ...]]:
    """(kind, shape) of what will be written."""
    if not isinstance(name, str) or len(name.encode("utf-8")) > 63:
        raise ArgumentError(f"gguf.save: {name!r:.80} is no tensor's name; expected text of at "
                            "most 63 bytes")  # fmt: skip
    value = value if isinstance(value, Tensor | GGUFTensor) else np.asarray(value)
    shape = tuple(int(n) for n in value.shape)
    if isinstance(value, GGUFTensor):
        k = value.kind if wanted is None else wanted
    else:
        dtype = dt.dtype(value.dtype)
        if wanted is None and dtype not in _PLAIN:
            raise DTypeError(f"gguf.save: {name!r} is {dtype.name}; the format has "
                             f"{', '.join(d.name for d in _PLAIN)}")  # fmt: skip
        k = _PLAIN[dtype] if wanted is None else wanted
    if len(shape) > MOST_AXES:
        raise ShapeError(f"gguf.save: {name!r} has {len(shape)} axes; expected at most {MOST_AXES}")
    stored_shape(k, shape)  # which raises where rows do not divide into blocks
    return k, shape


def _pieces(
    body: list[bytes], tensors: Mapping[str, Any],
    heads: dict[str, tuple[Kind, tuple[int, ...]]], alignment: int,
) -> Iterator[bytes | memoryview]:  # fmt: skip
    header = MAGIC + struct.pack("<IQQ", VERSIONS[-1], len(tensors), len(body))
    lines, offset = [], 0
    for name, (k, shape) in heads.items():
        sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        lines.append(text_bytes(name) + sizes + struct.pack("<IQ", k.number, offset))
        offset += -(-nbytes(k, shape) // alignment) * alignment
    front = b"".join([header, *body, *lines])
    yield front + bytes(-len(front) % alignment)
    for name, (k, _) in heads.items():
        raw = _raw(tensors[name], k)
        yield raw.reshape(-1).data
        yield bytes(-raw.nbytes % alignment)


def _raw(value: Any, k: Kind) -> np.ndarray:
    if isinstance(value, GGUFTensor):
        if value.kind is k:
            return np.ascontiguousarray(value.raw)
        value = value.dequantize()
    return quantized(value, k).raw
