"""Host memory that is recycled: fresh pages cost 4 to 17 ms per 64 MB, used ones nothing.

Buffers come back when their last reference goes, into the free list of their size class. Large
blocks ask for huge pages. Nothing here takes a lock on the way back: a finaliser may run at any
moment, even inside allocate(), so giving back is one append, which the interpreter makes atomic.
"""
from __future__ import annotations

import mmap
import threading
from collections import deque
from typing import Any

import numpy as np

from muladd.errors import OutOfMemory

ALIGNMENT = 64
HUGE = 2 << 20
SMALL = 256 << 10  # below this, blocks are cut from slabs which are never given back
SLAB = 4 << 20
# Blocks of equal alignment would put the same rows of several arrays into the same cache sets and
# make loads wait for unrelated stores 4096 bytes apart; so each starts at another multiple of 256.
COLOURS, COLOUR_STEP = 16, 256


def size_class(nbytes: int) -> int:
    """The smallest of eight sizes per doubling which holds nbytes (so at most 12 % is wasted)."""
    if nbytes <= 512:
        return (nbytes + 63) & -64 or 64
    step = 1 << max(6, (nbytes - 1).bit_length() - 4)
    return (nbytes + step - 1) & -step


class Block:
    """A stretch of memory: `address` to address + size, kept mapped by `source`. One that nobody
    had yet is `fresh`: all 0, and not there until it is written."""

    __slots__ = ("address", "size", "source", "fresh")

    def __init__(self, address: int, size: int, source: Any) -> None:
        self.address, self.size, self.source, self.fresh = address, size, source, True


class Memory:
    """Blocks of memory by size class. `limit` bounds the bytes in use; free blocks are extra
    but are given up before an allocation fails."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_use = 0
        self.mapped = 0  # bytes of blocks of SMALL and above, in use or free
        self._free: dict[int, list[Block]] = {}
        self._returned: deque[Block] = deque()  # not yet sorted into _free
        self._slab: Block | None = None
        self._slab_used = SLAB
        self._colour = 0
        self._lock = threading.RLock()

    def allocate(self, nbytes: int) -> Block:
        """A block of at least nbytes, aligned to 64; OutOfMemory leaves everything as it was."""
        size = size_class(nbytes)
        with self._lock:
            self._collect()
            if self.in_use + size > self.limit:
                raise OutOfMemory(
                    f"CPU: asked for {nbytes:,} bytes with {self.in_use:,} in use and a limit of "
                    f"{self.limit:,}; free tensors, use smaller batches, or raise MEMORY"
                )
            free = self._free.get(size)
            if free:
                block = free.pop()
            elif size < SMALL:
                block = self._cut(size)
            else:
                self._trim(size)
                block = self._map(size)
            self.in_use += size
            return block

    def give_back(self, block: Block) -> None:
        """Recycle a block. Safe from any thread and from inside a garbage collection."""
        self._returned.append(block)

    def release(self) -> None:
        """Hand all free large blocks to the operating system."""
        with self._lock:
            self._collect()
            for size in [size for size in self._free if size >= SMALL]:
                self.mapped -= size * len(self._free.pop(size))

    @property
    def bytes_in_use(self) -> int:
        with self._lock:
            self._collect()
            return self.in_use

    def reset_lock(self) -> None:
        """After fork: the lock may have been held by a thread that does not exist here."""
        self._lock = threading.RLock()

    def _collect(self) -> None:
        returned, free = self._returned, self._free
        while returned:
            block = returned.popleft()
            self.in_use -= block.size
            block.fresh = False
            free.setdefault(block.size, []).append(block)

    def _trim(self, size: int) -> None:
        """Keep what is mapped but free below what is used: sizes of the past may not return."""
        allowed = max(self.in_use, 1 << 28)
        if self.mapped + size > self.in_use + allowed or self.mapped + size > self.limit:
            self.release()

    def _cut(self, size: int) -> Block:
        if self._slab_used + size > SLAB or self._slab is None:
            self._slab, self._slab_used = self._map_bytes(SLAB), 0
        address = self._slab.address + self._slab_used
        self._slab_used += size
        return Block(address, size, self._slab.source)

    def _map(self, size: int) -> Block:
        try:
            block = self._map_bytes(size)
        except OutOfMemory:
            self.release()
            block = self._map_bytes(size)
        self.mapped += size
        return block

    def _map_bytes(self, size: int) -> Block:
        huge = size >= HUGE
        total = size + COLOURS * COLOUR_STEP + (HUGE if huge else 0)
        try:
            if hasattr(mmap, "MAP_PRIVATE"):
                source = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            else:
                source = mmap.mmap(-1, total)
            view = np.frombuffer(source, np.uint8)  # keeps the mapping, and knows its address
        except (OSError, ValueError, OverflowError, MemoryError) as error:
            raise OutOfMemory(
                f"CPU: the system refused {size:,} bytes ({error}) with {self.in_use:,} in use; "
                "free tensors or use smaller batches"
            ) from None
        address = view.ctypes.data
        if huge:
            address = (address + HUGE - 1) & -HUGE
            if hasattr(mmap, "MADV_HUGEPAGE"):
                try:
                    start = address - view.ctypes.data
                    source.madvise(mmap.MADV_HUGEPAGE, start, size & -HUGE)
                except OSError:
                    pass  # a kernel without huge pages: slower the first time, else the same
        self._colour = (self._colour + 1) % COLOURS
        return Block(address + self._colour * COLOUR_STEP, size, view)
