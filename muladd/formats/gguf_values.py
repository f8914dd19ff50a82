"""The bytes of GGUF's metadata: numbers, text and arrays, read with every length checked.

The format is the specification at https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, in
its little-endian versions 2 and 3.
"""
from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, FormatError

# number in the file -> (name, NumPy type); text and arrays have no fixed width
SCALARS: dict[int, tuple[str, np.dtype]] = {
    0: ("UINT8", np.dtype("u1")), 1: ("INT8", np.dtype("i1")), 2: ("UINT16", np.dtype("<u2")),
    3: ("INT16", np.dtype("<i2")), 4: ("UINT32", np.dtype("<u4")), 5: ("INT32", np.dtype("<i4")),
    6: ("FLOAT32", np.dtype("<f4")), 7: ("BOOL", np.dtype("u1")), 10: ("UINT64", np.dtype("<u8")),
    11: ("INT64", np.dtype("<i8")), 12: ("FLOAT64", np.dtype("<f8")),
}  # fmt: skip
STRING, ARRAY, BOOL = 8, 9, 7
NUMBERS = {name: number for number, (name, _) in SCALARS.items()}
MOST_DEPTH = 4  # arrays in arrays
MOST_KEY = 65535  # bytes, by the specification
MOST_OBJECTS = 1 << 22  # texts, or arrays, in an array: vocabularies have at most a tenth
_LENGTH = struct.Struct("<Q")


class Metadata(dict[str, Any]):
    """Metadata by key: bool, int, float, str, NumPy arrays of numbers, lists of text or arrays.

    `types` keeps the format's own type of a key ("UINT32", "ARRAY[STRING]"), so that writing what
    was read gives the same types. A key without one is written by its value (see `encode`).
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.types: dict[str, str] = dict(getattr(given[0], "types", {})) if given else {}

    def copy(self) -> Metadata:
        """A copy, types included."""
        return Metadata(self)


class Cursor:
    """A place in a file's bytes, which never leaves them: what reaches past the end is refused."""

    def __init__(self, data: memoryview, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def damaged(self, given: str, expected: str, at: int | None = None) -> FormatError:
        """The error that names the file, the offset, what stands there and what should."""
        place = self.at if at is None else at
        return FormatError(
            f"gguf: {self.where}: at byte {place}: {given}; expected {expected}. "
            "The file is damaged, incomplete or not a GGUF file"
        )

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int, what: str) -> memoryview:
        """The next bytes."""
        if size > self.left:
            raise self.damaged(f"{what} of {size} bytes", f"at most the {self.left} bytes left")
        self.at += size
        return self.data[self.at - size : self.at]

    def uint(self, size: int, what: str) -> int:
        return int.from_bytes(self.take(size, what), "little")

    def text(self, what: str, most: int | None = None) -> str:
        """A length (8 bytes) and so many bytes of UTF-8."""
        start = self.at
        size = self.uint(8, f"the length of {what}")
        if most is not None and size > most:
            raise self.damaged(f"{what} of {size} bytes", f"at most {most} bytes", start)
        return self._utf8(self.take(size, what), what, start)

    def _utf8(self, data: memoryview, what: str, at: int) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{what} is not text ({error.reason})", "UTF-8", at) from None

    def value(self, kind: int, what: str, depth: int = 0) -> tuple[Any, str]:
        """A value of a type, given by its number, and the type's name."""
        if kind == STRING:
            return self.text(what), "STRING"
        if kind == ARRAY:
            return self._array(what, depth)
        if kind not in SCALARS:
            raise self.damaged(f"{what} has type {kind}", "a type 0 to 12", self.at - 4)
        name, dtype = SCALARS[kind]
        start = self.at
        value = np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()
        if kind == BOOL:
            if value > 1:
                raise self.damaged(f"{what} is a bool of {value}", "0 or 1", start)
            value = bool(value)
        return value, name

    def _array(self, what: str, depth: int) -> tuple[Any, str]:
        if depth == MOST_DEPTH:
            raise self.damaged(f"{what} is nested deeper", f"at most {MOST_DEPTH} arrays deep")
        kind, start = self.uint(4, f"the type of {what}"), self.at
        count = self.uint(8, f"the length of {what}")
        if kind in (STRING, ARRAY) and count > MOST_OBJECTS:
            raise self.damaged(f"{what} has {count} elements", f"at most {MOST_OBJECTS}", start)
        if kind != STRING and kind != ARRAY and kind not in SCALARS:
            raise self.damaged(f"{what} is an array of type {kind}", "a type 0 to 12", start - 4)
        least = {STRING: 8, ARRAY: 12}.get(kind) or SCALARS[kind][1].itemsize
        if count > self.left // least:
            raise self.damaged(
                f"{what} has {count} elements", f"at most {self.left // least} in {self.left} bytes"
                " left", start,
            )  # fmt: skip
        if kind == STRING:
            return self._texts(count, what), "ARRAY[STRING]"
        if kind == ARRAY:
            found = [self.value(ARRAY, what, depth + 1) for _ in range(count)]
            inner = {name for _, name in found} or {"ARRAY[INT32]"}
            if len(inner) > 1:
                raise self.damaged(f"{what} holds {sorted(inner)}", "arrays of one type", start)
            return [value for value, _ in found], f"ARRAY[{inner.pop()}]"
        name, dtype = SCALARS[kind]
        values = np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if kind == BOOL:
            if count and values.max() > 1:
                raise self.damaged(f"{what} holds a bool of {values.max()}", "0 or 1", start)
            values = values.view(np.bool_)
        return values, f"ARRAY[{name}]"

    def _texts(self, count: int, what: str) -> list[str]:
        """Many texts: the vocabulary has 10^5 of them, so this is one tight loop."""
        data, end, at, length = self.data, len(self.data), self.at, _LENGTH.unpack_from
        found = []
        for i in range(count):
            if end - at < 8:
                self.at = at
                raise self.damaged(f"element {i} of {what} is missing", f"{count} elements")
            start = at + 8
            at = start + length(data, at)[0]
            if at > end:
                self.at = start - 8
                self.take(8, "")
                self.take(at - start, f"element {i} of {what}")
            try:
                found.append(str(data[start:at], "utf-8"))
            except UnicodeDecodeError:
                self._utf8(data[start:at], f"element {i} of {what}", start)
        self.at = at
        return found


# --- writing -------------------------------------------------------------------------------------


def encode(key: str, value: Any, given: str | None = None) -> bytes:
    """A value with its type before it. `given` is the type wanted; without one, or where the value
    does not fit it, the value decides: int is UINT32, INT32, UINT64 or INT64, the first that holds
    it (in lists INT32 first, as the format's tools do), float is FLOAT32, a NumPy scalar or array
    is of its own type. Raises ArgumentError for what the format cannot hold."""
    kind, body = _encoded(key, value, given)
    return struct.pack("<I", kind) + body


def text_bytes(text: str) -> bytes:
    data = text.encode("utf-8")
    return _LENGTH.pack(len(data)) + data


def _encoded(key: str, value: Any, given: str | None) -> tuple[int, bytes]:
    if isinstance(value, str):
        return STRING, text_bytes(value)
    if isinstance(value, np.ndarray) and not value.ndim:
        value = value[()]
    if isinstance(value, list | tuple | np.ndarray):
        return ARRAY, _encoded_array(key, value, _inside(given))
    if isinstance(value, bool | int | float | np.generic):
        name = _scalar_type(key, value, given, ("UINT32", "INT32", "UINT64", "INT64"))
        return NUMBERS[name], np.array(value, SCALARS[NUMBERS[name]][1]).tobytes()
    raise ArgumentError(
        f"gguf.save: metadata {key!r} is {type(value).__name__}; expected bool, int, float, str, "
        "or a list or NumPy array of one of them"
    )


def _inside(given: str | None) -> str | None:
    return given[6:-1] if given is not None and given.startswith("ARRAY[") else None


def _encoded_array(key: str, value: Any, given: str | None) -> bytes:
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind in "biuf":
        name = _numpy_type(key, value.dtype)
        body = np.ascontiguousarray(value, SCALARS[NUMBERS[name]][1]).tobytes()
        return struct.pack("<IQ", NUMBERS[name], len(value)) + body
    items = list(value)
    if all(isinstance(item, str) for item in items) and (items or given == "STRING"):
        return struct.pack("<IQ", STRING, len(items)) + b"".join(map(text_bytes, items))
    if items and all(isinstance(item, list | tuple | np.ndarray) for item in items):
        inner = [_encoded_array(key, item, _inside(given)) for item in items]
        if len({body[:4] for body in inner}) > 1:
            raise ArgumentError(f"gguf.save: metadata {key!r} mixes lists of different types")
        return struct.pack("<IQ", ARRAY, len(items)) + b"".join(inner)
    kinds = {type(item) is bool or isinstance(item, np.bool_) for item in items}
    if len(kinds) > 1 or not all(isinstance(i, bool | int | float | np.generic) for i in items):
        found = sorted({type(item).__name__ for item in items})
        raise ArgumentError(f"gguf.save: metadata {key!r} is a list of {', '.join(found)}; "
                            "expected one type of bool, int, float, str or list")  # fmt: skip
    names = {_scalar_type(key, item, given, ("INT32", "UINT32", "INT64", "UINT64"))
             for item in items} or {given if given in NUMBERS else "INT32"}  # fmt: skip
    name = names.pop() if len(names) == 1 else _common(key, items)
    body = np.array(items, SCALARS[NUMBERS[name]][1]).tobytes()
    return struct.pack("<IQ", NUMBERS[name], len(items)) + body


def _common(key: str, items: list[Any]) -> str:
    """The type of a list whose numbers need several."""
    if any(isinstance(item, float | np.floating) for item in items):
        return "FLOAT32"
    for name in ("INT64", "UINT64"):
        if all(_fits(int(item), name) for item in items):
            return name
    raise ArgumentError(f"gguf.save: metadata {key!r} holds numbers that no one type holds")


def _fits(value: int, name: str) -> bool:
    info = np.iinfo(SCALARS[NUMBERS[name]][1])
    return int(info.min) <= value <= int(info.max)


def _scalar_type(key: str, value: Any, given: str | None, order: tuple[str, ...]) -> str:
    if isinstance(value, bool | np.bool_):
        return "BOOL"
    if isinstance(value, np.generic) and given is None:
        return _numpy_type(key, value.dtype)
    if isinstance(value, float | np.floating):
        return "FLOAT64" if given == "FLOAT64" else "FLOAT32"
    if given in NUMBERS and given not in ("BOOL", "FLOAT32", "FLOAT64") and _fits(value, given):
        return given
    if given in ("FLOAT32", "FLOAT64"):
        return given  # an int put in a float's place
    for name in order:
        if _fits(int(value), name):
            return name
    raise ArgumentError(f"gguf.save: metadata {key!r} is {value}; expected at most 64 bits")


def _numpy_type(key: str, dtype: np.dtype) -> str:
    if dtype.kind == "b":
        return "BOOL"
    if dtype == np.float16:
        return "FLOAT32"
    for name, known in SCALARS.values():
        if name != "BOOL" and known == dtype.newbyteorder("<"):
            return name
    raise ArgumentError(f"gguf.save: metadata {key!r} is of {dtype}, which the format lacks")


def pairs(metadata: dict[str, Any]) -> Iterator[bytes]:
    """Keys and values, each as it stands in a file."""
    types = getattr(metadata, "types", {})
    for key, value in metadata.items():
        if not isinstance(key, str) or not 0 < len(key.encode("utf-8")) <= MOST_KEY:
            raise ArgumentError(f"gguf.save: {key!r:.80} is no key; expected text of 1 to "
                                f"{MOST_KEY} bytes")  # fmt: skip
        yield text_bytes(key) + encode(key, value, types.get(key))
