"""An array as a file holds it, read when asked for; and the one way files are written here."""
from __future__ import annotations

import mmap
import os
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muladd.errors import FormatError
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.tensor import Tensor

PathLike = str | os.PathLike[str]


class StoredArray:
    """One array of a file: its dtype and shape are known, its bytes stay in the file until used.

    `stored` is an array of the dtype's *storage* type (bfloat16 travels as uint16), usually a view
    of a memory-mapped file. Nothing is read or copied before `numpy()` or `tensor()`.
    """

    __slots__ = ("dtype", "stored", "requires_grad")

    def __init__(self, dtype: DType, stored: np.ndarray, requires_grad: bool = False) -> None:
        self.dtype, self.stored, self.requires_grad = dtype, stored, requires_grad

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes

    def numpy(self) -> np.ndarray:
        """The values: a view of the file where NumPy knows the dtype, else decoded to float32."""
        return dt.decode(self.stored, self.dtype)

    def tensor(self, device: str | None = None) -> Tensor:
        """The values as a tensor of the same dtype, on a device."""
        return Tensor(self.numpy(), dtype=self.dtype, device=device).requires_grad_(
            self.requires_grad
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        values = self.numpy()
        return np.array(values, dtype=dtype, copy=copy)

    def __repr__(self) -> str:
        return f"StoredArray({self.dtype.name}{list(self.shape)})"


class StoredArrays(Mapping[str, StoredArray]):
    """The arrays of a file or folder by name, in its order."""

    def __init__(self, arrays: dict[str, StoredArray]) -> None:
        self._arrays = arrays

    def __getitem__(self, name: str) -> StoredArray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self._arrays.values())


def stored(value: Any) -> StoredArray:
    """A tensor, a NumPy array or what a file held, as something that can be written."""
    if isinstance(value, StoredArray):
        return value
    if isinstance(value, Tensor):
        return StoredArray(value.dtype, dt.encode(value.numpy(), value.dtype))
    array = np.asarray(value)
    kind = dt.dtype(array.dtype)
    return StoredArray(kind, dt.encode(array, kind))


def map_file(path: PathLike, who: str) -> memoryview:
    """A file's bytes, mapped into memory, read-only; they are read as they are touched.

    Raises FormatError where the file is missing, is not a file, or may not be read.
    """
    try:
        if stat.S_ISFIFO(os.stat(path).st_mode):  # to open one is to wait for who writes to it
            raise FormatError(f"{who}: {os.fspath(path)!r} is a pipe; expected a file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                return memoryview(b"")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise FormatError(
            f"{who}: cannot read {os.fspath(path)!r}: {error.strerror}; check the path"
        ) from None


def view(data: memoryview | bytes, dtype: DType, shape: tuple[int, ...]) -> np.ndarray:
    """Bytes as an array of a dtype's storage type, copied only if they lie unaligned in memory."""
    kind = dtype.storage.newbyteorder("<")
    array = np.frombuffer(data, dtype=kind).reshape(shape)
    return array if array.flags.aligned else array.copy()


def write_atomically(path: PathLike, pieces: Iterable[bytes | memoryview], who: str) -> None:
    """Write a file so that every reader, even after a crash or a kill, finds the old or the new.

    The bytes go into a new file beside it, reach the disk, and take the name in one step.
    """
    target = Path(path)
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(".part", f".{target.name}.", target.parent)
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fchmod(file.fileno(), _usual_mode(target))
            os.fsync(file.fileno())
        os.replace(temporary, target)
        _sync_folder(target.parent)
    except OSError as error:
        _discard(temporary)
        raise FormatError(
            f"{who}: cannot write {os.fspath(path)!r}: {error.strerror}; "
            "what was there before is unchanged"
        ) from None
    except BaseException:
        _discard(temporary)
        raise


def _discard(temporary: str) -> None:
    if temporary and os.path.exists(temporary):
        os.unlink(temporary)


def _usual_mode(target: Path) -> int:
    """The permissions a plain `open` would give, or those of the file that is replaced."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, where the system lets a folder be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
