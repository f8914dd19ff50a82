"""Memory that stays as long as a model does, in huge pages; files are let go of once read."""
from __future__ import annotations

import contextlib
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from muladd import device as devices
from muladd.device.cpu import HostBuffer
from muladd.errors import OutOfMemory

_PIECE, _HUGE = 32 << 20, 2 << 20
_BLOCK = 4 << 20  # of a file, let go of at once: a call for each small matrix would take longer
_OWN = ({"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {})


def memory_of(nbytes: int, huge: bool) -> np.ndarray:
    """uint8 (nbytes,) of zeros, which the system gives as they are touched, a page at a time: 2 MB,
    if it has such, or 4096 bytes."""
    try:
        mapped = mmap.mmap(-1, max(nbytes, 1), **_OWN)
    except OSError as error:
        raise OutOfMemory(f"memory: there are no {nbytes / 2**30:,.1f} GiB ({error.strerror}); "
                          "choose a smaller model or context, or fewer tokens") from None
    advice = getattr(mmap, "MADV_HUGEPAGE" if huge else "MADV_NOHUGEPAGE", None)
    if advice is not None:
        with contextlib.suppress(OSError):  # a system without huge pages
            mapped.madvise(advice)
    return np.frombuffer(mapped, np.uint8, nbytes)


class _Room:
    """Memory for many arrays, in large pieces and huge pages: a model reads all of its weights for
    each token, and a small page for every 4096 bytes of them would have to be looked up each time.
    A piece is freed with the last of its arrays."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.piece: Callable[[], HostBuffer | None] = lambda: None
        self.used = 0

    def cut(self, nbytes: int) -> HostBuffer:
        """So many bytes, aligned to 64."""
        host: Any = devices.get("CPU")
        with self.lock:
            piece = self.piece()
            if piece is None or self.used + nbytes > piece.nbytes:
                size = -(-max(nbytes, _PIECE) // _HUGE) * _HUGE + _HUGE
                piece = host.wrap(memory_of(size, huge=True))
                self.used, self.piece = -piece.address % _HUGE, weakref.ref(piece)
            found = host.part(piece, self.used, nbytes)
            self.used += -(-nbytes // 64) * 64
            return found


room = _Room()


def release(raw: np.ndarray) -> None:
    """Let the system take back what was read of a mapped file: the blocks up to whose ends `raw`
    reaches, for files are read from their beginnings on. What is wanted again is read anew."""
    for base in _bases(raw):
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            whole = np.frombuffer(base, np.uint8)
            first = raw.ctypes.data - whole.ctypes.data
            last = first + raw.nbytes
            start = first // _BLOCK * _BLOCK
            size = (last if last == len(whole) else last // _BLOCK * _BLOCK) - start
            if size > 0:
                base.madvise(mmap.MADV_DONTNEED, start, size)


def _bases(raw: np.ndarray) -> Iterator[object]:
    base: object = raw
    while base is not None:
        yield base
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)


__all__ = ["memory_of", "release", "room"]
