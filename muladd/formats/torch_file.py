"""torch's .pt and .pth files, read without running anything that they contain.

Both layouts are read: the zip archive of today (torch >= 1.6) and the older stream of pickles. The
pickle inside is walked by `unpickle.Machine`, which can build tensors and plain containers only.
"""
from __future__ import annotations

import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np

from muladd.errors import FormatError
from muladd.formats.stored import PathLike, StoredArray, map_file, view
from muladd.formats.unpickle import Machine
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.tensor import Tensor

STORAGES = {
    "BoolStorage": dt.bool_, "CharStorage": dt.int8, "ShortStorage": dt.int16,
    "IntStorage": dt.int32, "LongStorage": dt.int64, "ByteStorage": dt.uint8,
    "HalfStorage": dt.float16, "BFloat16Storage": dt.bfloat16, "FloatStorage": dt.float32,
    "DoubleStorage": dt.float64,
}  # fmt: skip
DTYPES = {
    "bool": dt.bool_, "int8": dt.int8, "int16": dt.int16, "short": dt.int16, "int32": dt.int32,
    "int": dt.int32, "int64": dt.int64, "long": dt.int64, "uint8": dt.uint8, "uint16": dt.uint16,
    "uint32": dt.uint32, "uint64": dt.uint64, "float16": dt.float16, "half": dt.float16,
    "bfloat16": dt.bfloat16, "float32": dt.float32, "float": dt.float32, "float64": dt.float64,
    "double": dt.float64, "float8_e4m3fn": dt.float8_e4m3, "float8_e5m2": dt.float8_e5m2,
}  # fmt: skip
_UNTYPED = "untyped storage"  # bytes: the tensor's own dtype says what they are
# what zipfile raises over damaged archives, by its documentation and by trying
_ZIP_ERRORS = (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, OSError, EOFError,
               KeyError, struct.error, zlib.error)  # fmt: skip
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage:
    """A run of stored elements that tensors share. `data()` gives its bytes, when first needed."""

    __slots__ = ("dtype", "read", "array")

    def __init__(self, dtype: DType | None, read: Callable[[], bytes | memoryview]) -> None:
        self.dtype, self.read = dtype, read
        self.array: dict[DType, np.ndarray] = {}

    def elements(self, dtype: DType) -> np.ndarray:
        if dtype not in self.array:
            data = memoryview(self.read())
            whole = len(data) - len(data) % dtype.itemsize
            self.array[dtype] = view(data[:whole], dtype, (whole // dtype.itemsize,))
        return self.array[dtype]


def open_file(path: PathLike) -> Any:
    """What was saved, with a `StoredArray` for every tensor; tied tensors are one object.

    Raises FormatError for a missing or damaged file, and for one that asks for more than tensors
    and plain containers (it names what was asked for; nothing of it has run).
    """
    data = map_file(path, "torch file")
    where = str(path)
    if bytes(data[:4]) == b"PK\x03\x04":
        return _Zip(data, where).load()
    return _Stream(data, where).load()


def load(path: PathLike, device: str | None = None) -> Any:
    """What was saved, with Tensors in it; tied tensors are one. Raises FormatError as open_file."""
    return _tensors(open_file(path), device, {})


def _tensors(value: Any, device: str | None, made: dict[int, Tensor]) -> Any:
    """The value with tensors for stored arrays, one for each."""
    if isinstance(value, StoredArray):
        if id(value) not in made:
            made[id(value)] = value.tensor(device)
        return made[id(value)]
    if isinstance(value, dict):
        return type(value)((key, _tensors(item, device, made)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return type(value)([_tensors(item, device, made) for item in value])
    return value


# --- tensors -----------------------------------------------------------------------------------


class _Reader:
    """What both layouts share: the names that may stand in a file, and how a tensor is rebuilt."""

    def __init__(self, data: memoryview, where: str) -> None:
        self.data, self.where = data, where
        self.storages: dict[Any, _Storage] = {}
        self.alive: list[_Storage] = []
        self.tied: dict[tuple, StoredArray] = {}
        self.allowed: dict[str, Any] = {
            "torch._utils._rebuild_tensor_v2": self.rebuild,
            "torch._utils._rebuild_tensor": self.rebuild,
            "torch._utils._rebuild_tensor_v3": self.rebuild_typed,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
            "collections.OrderedDict": OrderedDict,
            "torch.Size": tuple,
            "torch.device": lambda *args: ":".join(map(str, args)),
            "builtins.set": set,
            "__builtin__.set": set,
            "builtins.frozenset": frozenset,
            "_codecs.encode": _latin,
            "torch.storage.UntypedStorage": _UNTYPED,
        }
        for name, dtype in STORAGES.items():
            self.allowed[f"torch.{name}"] = dtype
        for name, dtype in DTYPES.items():
            self.allowed.setdefault(f"torch.{name}", dtype)

    def damaged(self, what: str) -> FormatError:
        return FormatError(f"torch file: {self.where}: {what}; the file is damaged")

    def rebuild(
        self, storage: Any, offset: Any, size: Any, stride: Any,
        requires_grad: Any = False, hooks: Any = None, metadata: Any = None,
    ) -> StoredArray:  # fmt: skip
        """A tensor is a window on a storage: offset and strides in elements."""
        if not isinstance(storage, _Storage) or storage.dtype is None:
            raise self.damaged("a tensor without a typed storage")
        shape, steps = _sizes(size), _sizes(stride)
        if shape is None or steps is None or len(shape) != len(steps) or type(offset) is not int:
            raise self.damaged(f"a tensor of size {size!r} and stride {stride!r}")
        key = (id(storage), offset, shape, steps)
        if key not in self.tied:
            self.tied[key] = self._window(storage, offset, shape, steps, bool(requires_grad))
        return self.tied[key]

    def rebuild_typed(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any,
        hooks: Any, dtype: Any, metadata: Any = None,
    ) -> StoredArray:  # fmt: skip
        """The same over bytes: how torch saves the dtypes that are newer than its storages."""
        if not isinstance(storage, _Storage):
            raise self.damaged("a tensor without a storage")
        typed = _Storage(self.storage_dtype(dtype), storage.read)
        self.alive.append(typed)  # `tied` knows storages by identity
        return self.rebuild(typed, offset, size, stride, requires_grad)

    def _window(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], steps: tuple[int, ...],
        requires_grad: bool,
    ) -> StoredArray:  # fmt: skip
        dtype = storage.dtype
        assert dtype is not None
        elements = storage.elements(dtype)
        last = offset + sum((n - 1) * s for n, s in zip(shape, steps))
        if 0 in shape:
            return StoredArray(dtype, np.empty(shape, dtype.storage), requires_grad)
        if offset < 0 or last >= len(elements):
            raise self.damaged(
                f"a tensor of {list(shape)} reaches element {last} of a storage of {len(elements)}"
            )
        window = np.lib.stride_tricks.as_strided(
            elements[offset:], shape, [s * dtype.itemsize for s in steps], writeable=False
        )
        return StoredArray(dtype, window, requires_grad)

    def storage_dtype(self, kind: Any) -> DType:
        if not isinstance(kind, DType):
            raise self.damaged(f"a storage of {kind!r}")
        return kind


def _parameter(data: Any, requires_grad: Any = True, *rest: Any) -> Any:
    if not isinstance(data, StoredArray):
        raise TypeError("a parameter that is not a tensor")
    data.requires_grad = bool(requires_grad)
    return data


def _latin(text: Any, encoding: Any = "latin1") -> bytes:
    """How protocol 2 spells bytes. Any other codec is refused."""
    if not isinstance(text, str) or encoding != "latin1":
        raise TypeError(f"codec {encoding!r}")
    return text.encode("latin-1")


def _sizes(value: Any) -> tuple[int, ...] | None:
    if not isinstance(value, tuple | list) or any(type(n) is not int or n < 0 for n in value):
        return None
    return tuple(value)


# --- the zip archive -----------------------------------------------------------------------------


class _Zip(_Reader):
    def load(self) -> Any:
        try:
            self.archive = zipfile.ZipFile(_File(self.data))
        except _ZIP_ERRORS as error:
            raise self.damaged(f"its archive cannot be opened ({error})") from None
        names = self.archive.namelist()
        pickles = [n for n in names if n == "data.pkl" or n.endswith("/data.pkl")]
        if len(pickles) != 1:
            what = "TorchScript" if any(n.endswith("constants.pkl") for n in names) else "no"
            raise self.damaged(f"it holds {what} data.pkl")
        self.root = pickles[0].removesuffix("data.pkl")
        if self.root + "byteorder" in names:
            if bytes(self.member(self.root + "byteorder")).strip() != b"little":
                raise FormatError(f"torch file: {self.where}: was saved on a big-endian machine")
        pickle = self.member(pickles[0])
        return Machine(pickle, self.allowed, self.storage, self.where).load()

    def storage(self, reference: Any) -> _Storage:
        if not isinstance(reference, tuple) or len(reference) != 5 or reference[0] != "storage":
            raise self.damaged(f"an unknown reference {reference!r}")
        _, kind, key, _, count = reference
        if key not in self.storages:
            dtype = None if kind is _UNTYPED else self.storage_dtype(kind)
            data = self.member(f"{self.root}data/{key}")
            width = dtype.itemsize if dtype else 1
            if type(count) is not int or count * width > len(data):
                raise self.damaged(f"storage {key!r} has {len(data)} bytes, not {count} elements")
            self.storages[key] = _Storage(dtype, lambda: data)
        return self.storages[key]

    def member(self, name: str) -> bytes | memoryview:
        """A member's bytes: a view of the mapped file if stored uncompressed, as torch does."""
        try:
            info = self.archive.getinfo(name)
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                return self.archive.read(info)
            at = info.header_offset
            header = bytes(self.data[at : at + 30])
            start = at + 30 + int.from_bytes(header[26:28], "little")
            start += int.from_bytes(header[28:30], "little")
        except _ZIP_ERRORS as error:
            raise self.damaged(f"its member {name!r} cannot be read ({error})") from None
        if header[:4] != b"PK\x03\x04" or start + info.file_size > len(self.data):
            raise self.damaged(f"its member {name!r} lies outside it")
        return self.data[start : start + info.file_size]


class _File:
    """A memoryview as the seekable file that `zipfile` wants."""

    def __init__(self, data: memoryview) -> None:
        self.data, self.at = data, 0

    def seekable(self) -> bool:
        return True

    def seek(self, to: int, whence: int = 0) -> int:
        base = (0, self.at, len(self.data))[whence]
        if base + to < 0:
            raise OSError("a position before the start")
        self.at = base + to
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, n: int = -1) -> bytes:
        end = len(self.data) if n is None or n < 0 else min(self.at + n, len(self.data))
        out = bytes(self.data[self.at : end])
        self.at = max(self.at, end)
        return out


# --- the older stream of pickles -----------------------------------------------------------------


class _Stream(_Reader):
    """magic, protocol, system, the object, the storages' keys; then each storage's raw elements."""

    def load(self) -> Any:
        self.bytes: dict[Any, memoryview] = {}
        self.views: dict[Any, tuple] = {}
        machine = Machine(self.data, self.allowed, self.storage, self.where)
        try:
            magic = machine.load()
        except FormatError:
            magic = None
        if magic != _LEGACY_MAGIC:
            raise FormatError(
                f"torch file: {self.where}: is neither a zip archive nor the older layout that "
                "torch.save writes"
            )
        version, system = machine.load(), machine.load()
        if version != 1001 or not isinstance(system, dict) or not system.get("little_endian", True):
            raise self.damaged(f"protocol {version!r} on system {system!r}")
        start = machine.at  # the object comes before its elements: walk it once to find those
        self.skipping = True
        machine.load()
        keys = machine.load()
        self._find_elements(keys, machine.at)
        self.skipping = False
        self.storages.clear()
        self.tied.clear()
        machine.at = start
        return machine.load()

    def storage(self, reference: Any) -> _Storage:
        if not isinstance(reference, tuple) or len(reference) != 6 or reference[0] != "storage":
            raise self.damaged(f"an unknown reference {reference!r}")
        _, kind, key, _, count, window = reference
        dtype = self.storage_dtype(kind)
        if type(count) is not int or count < 0 or window is not None:
            raise self.damaged(f"storage {key!r} of {count!r} elements, view {window!r}")
        if key not in self.storages:
            self.views[key] = (dtype, count)
            self.storages[key] = _Storage(dtype, lambda: self.bytes[key])
        return self.storages[key]

    def _window(
        self, storage: _Storage, offset: int, shape: tuple[int, ...], steps: tuple[int, ...],
        requires_grad: bool,
    ) -> StoredArray:  # fmt: skip
        if self.skipping:
            assert storage.dtype is not None
            return StoredArray(storage.dtype, np.empty(0, storage.dtype.storage))
        return super()._window(storage, offset, shape, steps, requires_grad)

    def _find_elements(self, keys: Any, at: int) -> None:
        if not isinstance(keys, list) or set(keys) != set(self.views):
            raise self.damaged(f"its list of storages {keys!r} does not fit its tensors")
        for key in keys:
            dtype, count = self.views[key]
            given = int.from_bytes(self.data[at : at + 8], "little")
            end = at + 8 + count * dtype.itemsize
            if given != count or end > len(self.data):
                raise self.damaged(f"storage {key!r} has {given} elements, not {count}")
            self.bytes[key] = self.data[at + 8 : end]
            at = end
