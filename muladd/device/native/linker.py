"""Object files into memory: ELF for x86-64, as kernels and the runtime are on Linux.

What code refers to lies in the object itself or is a function of this process (memmove, free). The
object's sections are put one after the other; a table of addresses of what lies outside, with a
jump to each, follows: from anywhere in the code it can be reached.

LLVM links all kinds of objects (see `jit`). But it takes 80 MB of memory, and a process whose
kernels are compiled already needs nothing else of it.
"""
from __future__ import annotations

import ctypes
import mmap
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from muladd.errors import DeviceError

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_RELOCATABLE, _X86_64 = 1, 62  # an object's type, and machine
_SYMBOLS, _RELOCATIONS, _EMPTY, _SHORT_RELOCATIONS = 2, 4, 8, 9  # types of sections
_UNWINDING = 0x70000001
_WEAK, _CHOSEN = 2, 10  # a symbol that may be absent; a function that chooses a function
_WRITABLE, _PLACED = 1, 2  # flags of sections
_UNDEFINED = 0  # the section of symbols that lie outside
_WHOLE, _NEAR, _CALL, _SLOTS = 1, 2, 4, (9, 41, 42)  # how a place refers to a symbol
_JUMP = b"\xff\x25"  # to the address that stands at a distance from here
_ENTRY = 16  # bytes for an address and the jump to it
_READ_AND_RUN = mmap.PROT_READ | mmap.PROT_EXEC


class NotKnown(Exception):
    """An object with something in it that LLVM has to link."""


@dataclass(frozen=True)
class _Section:
    kind: int
    flags: int
    offset: int
    size: int
    link: int
    info: int
    align: int


@dataclass(frozen=True)
class _Symbol:
    name: str
    section: int  # its number; others than sections of the object are beyond all of these
    value: int  # its place in the section


class Linked:
    """Machine code in memory, which is given back with this object."""

    def __init__(self, blob: bytes) -> None:
        """Raises NotKnown, and DeviceError for a damaged object or a symbol that nobody has."""
        try:
            self._link(blob)
        except (struct.error, IndexError, ValueError, OverflowError, OSError) as error:
            raise DeviceError(f"an object file of {len(blob)} bytes is damaged ({error})") from None

    def _link(self, blob: bytes) -> None:
        ident, what, machine, _, _, _, first, _, _, _, _, _, count, _ = _HEADER.unpack_from(blob)
        if ident[:6] != b"\x7fELF\2\1" or (what, machine) != (_RELOCATABLE, _X86_64):
            raise NotKnown
        if platform.machine() != "x86_64" or struct.calcsize("P") != 8:
            raise NotKnown
        sections = []
        for i in range(count):
            _, *rest = _SECTION.unpack_from(blob, first + i * _SECTION.size)
            kind, flags, _, offset, size, link, info, align, _ = rest
            sections.append(_Section(kind, flags, offset, size, link, info, align))
        places, end = _laid(sections)
        symbols = _symbols(blob, sections)
        references = [
            (places[s.info] + offset, info & 0xFFFFFFFF, symbols[info >> 32], more)
            for s in sections if s.kind == _RELOCATIONS and s.info in places
            for offset, info, more in _entries(blob, s, _RELOCATION)
        ]  # fmt: skip
        if any(how not in (_WHOLE, _NEAR, _CALL, *_SLOTS) for _, how, _, _ in references):
            raise NotKnown
        outside = dict.fromkeys(symbol.name for *_, symbol, _ in references
                                if symbol.section == _UNDEFINED)  # fmt: skip
        table = -(-end // _ENTRY) * _ENTRY
        self._memory = mmap.mmap(-1, table + _ENTRY * len(outside) or 1,
                                 flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # fmt: skip
        base = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        for i, place in places.items():
            s = sections[i]
            if s.kind != _EMPTY:
                self._memory[place : place + s.size] = blob[s.offset : s.offset + s.size]
        slots = {name: table + _ENTRY * k for k, name in enumerate(outside)}
        for name, slot in slots.items():
            entry = struct.pack("<Q2si", _address_of(name), _JUMP, -14)
            self._memory[slot : slot + len(entry)] = entry
        for at, how, symbol, more in references:
            if symbol.section != _UNDEFINED and how not in _SLOTS and symbol.section in places:
                place = places[symbol.section] + symbol.value
            elif symbol.section == _UNDEFINED and how in (_CALL, *_SLOTS):
                place = slots[symbol.name] + (8 if how == _CALL else 0)
            else:
                raise NotKnown
            if how == _WHOLE:
                struct.pack_into("<Q", self._memory, at, base + place + more)
            else:
                struct.pack_into("<i", self._memory, at, place + more - at)
        self.addresses = {s.name: base + places[s.section] + s.value for s in symbols
                          if s.name and s.section in places}  # fmt: skip
        if _C.mprotect(ctypes.c_void_p(base), ctypes.c_size_t(len(self._memory)), _READ_AND_RUN):
            raise NotKnown


def _laid(sections: list[_Section]) -> tuple[dict[int, int], int]:
    """Where the sections that are wanted in memory lie, and the end of all."""
    places, end = {}, 0
    if any(s.kind == _SHORT_RELOCATIONS for s in sections):
        raise NotKnown
    for i, s in enumerate(sections):
        if not s.flags & _PLACED or s.kind == _UNWINDING:
            continue
        if s.flags & _WRITABLE or s.align > mmap.PAGESIZE:
            raise NotKnown
        align = max(1, s.align)
        places[i] = -(-end // align) * align
        end = places[i] + s.size
    return places, end


def _symbols(blob: bytes, sections: list[_Section]) -> list[_Symbol]:
    found = []
    for s in sections:
        if s.kind == _SYMBOLS:
            texts = sections[s.link].offset
            for name, info, _, section, value, _ in _entries(blob, s, _SYMBOL):
                if section == _UNDEFINED and info >> 4 == _WEAK or info & 15 == _CHOSEN:
                    raise NotKnown
                end = blob.index(b"\0", texts + name)
                found.append(_Symbol(blob[texts + name : end].decode(), section, value))
    return found


def _entries(blob: bytes, s: _Section, kind: struct.Struct) -> Iterator[tuple[int, ...]]:
    return kind.iter_unpack(blob[s.offset : s.offset + s.size])


_C = ctypes.CDLL(None)


def _address_of(name: str) -> int:
    for library in (_C, ctypes.pythonapi):
        found = getattr(library, name, None)
        if found is not None:
            return ctypes.cast(found, ctypes.c_void_p).value or 0
    raise DeviceError(f"an object refers to {name!r}, which this process does not have")
