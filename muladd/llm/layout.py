"""How quantised matrices lie in memory: as the product of bytes wants them, laid once at load.

A matrix (out, in) of any kind is cut into groups of 16 or 32 neighbours of a row, each with a scale
(and an offset), and into panels of as many rows as a vector has lanes. The codes of a panel lie

    [group][four][row][1 of 4]      a vector holds 4 neighbours of each row

as bytes; or, where a code fits into 4 bits, two in a byte: the first half of a group below, the
second above. Scales lie [group][row]. So a panel is read from its beginning to its end, and no lane
has to be moved (see `schedule/recipes/dots.py`). Codes without a sign are stored plus a `shift`.
"""
from __future__ import annotations

import contextlib
import functools
import itertools
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from muladd import config
from muladd import device as devices
from muladd.device.machine import Machine
from muladd.errors import FormatError, OutOfMemory
from muladd.formats import quant
from muladd.formats.gguf import GGUFTensor
from muladd.formats.quant import Kind
from muladd.ir import Storage, make, ops
from muladd.ir import dtype as dt
from muladd.tensor import Tensor
from muladd.tensor.backend import INTERPRETER, default_device
from muladd.tensor.handle import no_grad
from muladd.tensor.jit import jit

GROUP = 32  # neighbours that activations have one scale for; weights have as many, or fewer
_AT_ONCE = 1 << 22  # elements laid anew together: what is in between stays small
_PIECE, _HUGE = 32 << 20, 2 << 20
_OWN = ({"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {})
_LANES = 8  # where the device has no machine that could tell
# kinds whose codes span 16 or 128 numbers: the bits, and what makes the least of them 0
_NARROW = {
    "Q4_0": (4, 8), "Q4_1": (4, 0), "Q4_K": (4, 0), "Q2_K": (4, 0), "Q3_K": (4, 4),
    "TQ1_0": (4, 1), "TQ2_0": (4, 1), "Q2_0": (4, 1), "Q1_0": (4, 1),
    "Q5_0": (7, 16), "Q5_1": (7, 0), "Q5_K": (7, 0), "Q6_K": (7, 32), "MXFP4": (7, 12),
    "NVFP4": (7, 12), "IQ1_S": (7, 16), "IQ1_M": (7, 16), "IQ2_XXS": (7, 43), "IQ2_XS": (7, 43),
    "IQ2_S": (7, 43), "IQ3_XXS": (7, 62), "IQ3_S": (7, 15),
}  # fmt: skip
_HALVES = ("Q4_0", "Q4_1", "Q8_0")  # kinds whose scales are float16 as they are stored


@dataclass(frozen=True)
class Form:
    """What is not to be seen from the arrays of a laid matrix."""

    bits: int  # 4: two codes in a byte; 7: less than 128; 8: with a sign, unless shifted
    shift: int  # what was added to each code
    rows: int  # there may be more, to fill the last panel
    beside: str = "int8"  # what is multiplied by them, so that the machine has an instruction

    def unpacked(self, codes: Tensor) -> list[Tensor]:
        """The codes of each byte as int8 or uint8: lower and upper ones, or all."""
        if self.bits == 4:
            return [codes & 15, codes >> 4]
        return [codes & 127 if self.bits == 7 else codes]


def in_rows(panels: Tensor, form: Form) -> Tensor:
    """(..., panels, groups, fours, lanes, 4) or (..., panels, groups, lanes), as they lie, to
    (..., rows, groups, [fours, 4])."""
    tail = 3 if panels.dtype.bits == 8 else 1
    lead = len(panels.shape) - 2 - tail
    order = list(range(len(panels.shape)))
    lane = order.pop(-2 if tail == 3 else -1)
    order.insert(lead + 1, lane)
    turned = panels.permute(*order)
    shape = turned.shape
    joined = turned.reshape(*shape[:lead], shape[lead] * shape[lead + 1], *shape[lead + 2 :])
    if joined.shape[lead] == form.rows:
        return joined
    return joined[(*[slice(None)] * lead, slice(0, form.rows))]


def lay(stored: GGUFTensor) -> tuple[list[Tensor], Form]:
    """(codes, scale, and offset if the kind has one) of a quantised matrix, and their form.

    It is read once, a few rows at a time, by a program on as many threads as there are; what was
    read is let go of where it is mapped from a file, so at no time is there a second copy.
    """
    kind, (*lead, rows, width) = stored.kind, stored.shape
    lanes = _lanes()
    bits, shift = _NARROW.get(kind.name, (8, _shift_of_signed()))
    blocks = stored.raw.reshape(-1, rows, width // kind.elements, kind.bytes)
    first = [x for x in quant.scales(blocks[:1, :1], kind) if x is not None]
    groups = width // min(GROUP, kind.elements // first[0].shape[-1])
    panels = -(-rows // lanes)
    fours = width // groups // (8 if bits == 4 else 4)
    codes = dt.uint8 if shift or bits < 8 else dt.int8
    made = [_empty((*lead, panels, groups, fours, lanes, 4), codes)]
    kept = dt.float16 if kind.name in _HALVES else dt.float32
    made += [_empty((*lead, panels, groups, lanes), kept) for _ in first]
    arrays = [a.reshape(len(blocks), panels, *a.shape[len(lead) + 1 :]) for a, _ in made]
    run = _program(kind.name, bits, shift, lanes)
    step = max(1, _AT_ONCE // (lanes * width))
    for i, p in itertools.product(range(len(blocks)), range(0, panels, step)):
        some = blocks[i, p * lanes : (p + step) * lanes]
        if len(some) % lanes:
            some = np.concatenate([some, np.zeros((-len(some) % lanes, *some.shape[1:]), np.uint8)])
        _lay([a[i, p : p + step] for a in arrays], some, run)
    release(stored.raw)
    # bytes with signs are multiplied as words where there is no instruction for two of them
    beside = "int16" if codes is dt.int8 and not _multiplies_signed_bytes() else "int8"
    return [finish() for _, finish in made], Form(bits, shift, rows, beside)


@functools.cache
def _program(kind: str, bits: int, shift: int, lanes: int) -> Callable[[Tensor], list[Tensor]]:
    """What lays rows of blocks, uint8 (panels, lanes, blocks of a row, bytes), into panels."""

    def laid(blocks: Tensor) -> list[Tensor]:
        panels = blocks.shape[0]
        found = [x for x in _scales(blocks, quant.KINDS[kind]) if x is not None]
        groups = found[0].shape[-1]
        codes = quant.codes(blocks, kind).reshape(panels, lanes, groups, -1)
        if shift or bits < 8:
            codes = codes.bitcast("uint8") + shift
        if bits == 4:
            half = codes.shape[-1] // 2
            codes = codes[..., :half] | codes[..., half:] << 4
        codes = codes.reshape(panels, lanes, groups, -1, 4).permute(0, 2, 3, 1, 4)
        return [t.contiguous() for t in (codes, *(x.permute(0, 2, 1) for x in found))]

    return jit(laid, symbolic={"blocks": {0: ("panels", 1, 1 << 20)}})


def _lay(out: list[np.ndarray], rows: np.ndarray, run: Callable[[Tensor], list[Tensor]]) -> None:
    """Some panels: rows (rows, blocks of a row, bytes) into their places."""
    host: Any = devices.get("CPU")
    shape = (len(out[0]), len(rows) // len(out[0]), *rows.shape[1:])
    stored = Storage(shape, dt.uint8, "CPU", host.wrap(rows))
    with config.context(DEVICE="CPU"), no_grad():
        found = run(Tensor(make(ops.INPUT, (), stored)))
    for place, x in zip(out, found):
        values = host.view(x.storage().buffer, x.dtype.storage, place.shape)
        if x.dtype.is_float and not _finite(values):
            raise FormatError("has scales that are no numbers: the file is damaged, bring it anew")
        place[:] = values


def _finite(x: np.ndarray) -> bool:
    """Whether there is neither NaN nor infinity. It takes a thirtieth of the time of laying."""
    if x.dtype == np.float16:  # whose arithmetic is slow
        return int((x.view(np.uint16) & 0x7C00).max()) < 0x7C00
    return bool(np.isfinite(x).all())


def _scales(blocks: Tensor, kind: Kind) -> tuple[Tensor, Tensor | None]:
    """Scale and offset (..., groups of a row) for groups of 16 or 32: float16 if stored so."""
    scale, offset = quant.scales(blocks, kind)
    again = max(1, kind.elements // int(scale.shape[-1]) // GROUP)

    def of_row(x: Tensor) -> Tensor:
        x = x.cast("float16") if kind.name in _HALVES else x
        return x.unsqueeze(-1).expand(*x.shape, again).reshape(*blocks.shape[:-2], -1)

    return of_row(scale), None if offset is None else of_row(offset)


def _machine() -> Machine | None:
    place = default_device()
    return None if place == INTERPRETER else getattr(devices.get(place), "machine", None)


def _lanes() -> int:
    machine = _machine()
    return machine.float_lanes if machine is not None else _LANES


def _shift_of_signed() -> int:
    """What makes bytes with a sign such without, where those may be multiplied whole: sums of two
    products in 16 bits would be too great."""
    machine = _machine()
    return 128 if machine is not None and machine.dot == "vnni" else 0


def _multiplies_signed_bytes() -> bool:
    machine = _machine()
    return machine is None or machine.dot in ("", "sdot")


def _empty(shape: tuple[int, ...], kind: dt.DType) -> tuple[np.ndarray, Callable[[], Tensor]]:
    """An array to be filled, and what makes a tensor of it then: of the same memory on the CPU."""
    array = _room.cut(prod(shape) * kind.itemsize).view(kind.storage).reshape(shape)

    def finish() -> Tensor:
        if default_device() != "CPU":
            return Tensor(array, dtype=kind)
        host = devices.get("CPU")
        storage = Storage(shape, kind, "CPU", host.wrap(array))  # type: ignore[attr-defined]
        return Tensor(make(ops.INPUT, (), storage))

    return array, finish


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
        self.piece: Callable[[], np.ndarray | None] = lambda: None
        self.used = 0

    def cut(self, nbytes: int) -> np.ndarray:
        """uint8 (nbytes,), aligned to 64 bytes."""
        with self.lock:
            piece = self.piece()
            if piece is None or self.used + nbytes > len(piece):
                size = -(-max(nbytes, _PIECE) // _HUGE) * _HUGE + _HUGE
                whole = memory_of(size, huge=True)
                self.used = -whole.ctypes.data % _HUGE
                piece, self.piece = whole, weakref.ref(whole)
            found = piece[self.used : self.used + nbytes]
            self.used += -(-nbytes // 64) * 64
            return found


_room = _Room()


def release(raw: np.ndarray) -> None:
    """Let the system take back what was read of a mapped file; it is read anew when wanted."""
    for base in _bases(raw):
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            whole = np.frombuffer(base, np.uint8)
            first = raw.ctypes.data - whole.ctypes.data
            start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE  # whole pages of our own
            size = (first + raw.nbytes - start) // mmap.PAGESIZE * mmap.PAGESIZE
            if size > 0:
                base.madvise(mmap.MADV_DONTNEED, start, size)


def _bases(raw: np.ndarray) -> Iterator[object]:
    base: object = raw
    while base is not None:
        yield base
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)


__all__ = ["GROUP", "Form", "in_rows", "lay", "memory_of", "release"]
