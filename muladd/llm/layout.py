"""How quantised matrices lie in memory: as the product of bytes wants them, laid once at load.

A matrix (out, in) of any kind is cut into groups of 16 or 32 neighbours of a row, each with a scale
(and an offset), and into panels of as many rows as a vector has lanes. The codes of a panel lie

    [group][four][row][1 of 4]      a vector holds 4 neighbours of each row

as bytes; or, where a code fits into 4 bits, two in a byte: the first half of a group below, the
second above. Scales lie [group][row]. So a panel is read from its beginning to its end, and no lane
has to be moved (see `schedule/recipes/dots.py`). Codes without a sign are stored plus a `shift`.
"""
from __future__ import annotations

import functools
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from muladd import config
from muladd import device as devices
from muladd.compile import compile_graph, parameters
from muladd.compile.program import Program
from muladd.device.cpu import HostBuffer
from muladd.device.machine import Machine
from muladd.errors import FormatError
from muladd.formats import quant
from muladd.formats.gguf import GGUFTensor
from muladd.formats.quant import Kind
from muladd.ir import Storage, make, ops, var
from muladd.ir import dtype as dt
from muladd.llm.memory import release, room
from muladd.tensor import Tensor
from muladd.tensor.backend import INTERPRETER, Frame, default_device, inside
from muladd.tensor.handle import no_grad

GROUP = 32  # neighbours that activations have one scale for; weights have as many, or fewer
_AT_ONCE = 1 << 22  # elements laid anew together: what is in between stays small
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

    It is read once, some rows at a time, by a program on as many threads as there are, which writes
    to where the results stay. What was read is let go of where it is mapped from a file, so at no
    time is there a second copy. Raises FormatError for scales that are no numbers.
    """
    kind, (*lead, rows, width) = stored.kind, stored.shape
    lanes, (bits, shift) = _lanes(), _NARROW.get(stored.kind.name, (8, _shift_of_signed()))
    laying = _laying(kind.name, width // kind.elements, bits, shift, lanes, config.of_programs())
    blocks = stored.raw.reshape(-1, rows, width // kind.elements, kind.bytes)
    panels = -(-rows // lanes)
    laid = [room.cut(len(blocks) * panels * r.nbytes) for r in laying.results]
    step = -(-_AT_ONCE // (4 * lanes * width)) * 4  # so that each piece is as aligned as the first
    for first in range(0, len(blocks) * panels, step):
        laying.run(_panels(blocks, lanes, first, min(step, len(blocks) * panels - first)), laid,
                   first)  # fmt: skip
    release(stored.raw)
    if not all(_finite(b, r.dtype) for b, r in zip(laid[1:], laying.results[1:])):
        raise FormatError("has scales that are no numbers: the file is damaged, bring it anew")
    # bytes with signs are multiplied as words where there is no instruction for two of them
    signed = laying.results[0].dtype is dt.int8
    form = Form(bits, shift, rows, "int16" if signed and not _multiplies_signed_bytes() else "int8")
    return [_tensor((*lead, panels, *r.shape), r.dtype, b)
            for b, r in zip(laid, laying.results)], form  # fmt: skip


def _panels(blocks: np.ndarray, lanes: int, first: int, count: int) -> np.ndarray:
    """The rows of so many panels, blocks (matrices, rows, blocks of a row, bytes) to (rows, ...):
    where they are, or as a copy with zeros below each matrix whose last panel is not full."""
    rows, tail = blocks.shape[1], blocks.shape[2:]
    if rows % lanes == 0:
        return blocks.reshape(-1, *tail)[first * lanes : (first + count) * lanes]
    some = np.zeros((count, lanes, *tail), np.uint8)
    for k in range(count):
        i, panel = divmod(first + k, -(-rows // lanes))
        part = blocks[i, panel * lanes : (panel + 1) * lanes]
        some[k, : len(part)] = part
    return some.reshape(-1, *tail)


@dataclass(frozen=True)
class _Result:
    """What there is of each panel: its sizes, dtype and bytes."""

    shape: tuple[int, ...]
    dtype: dt.DType
    nbytes: int


@dataclass(frozen=True)
class _Laying:
    """What lays rows of blocks of one kind and number: a program of any number of panels."""

    program: Program
    inputs: list[Any]  # buffers: constants of the kind; None for the rows
    results: list[_Result]

    def run(self, rows: np.ndarray, out: list[HostBuffer], first: int) -> None:
        """Lay rows, uint8 (panels * lanes, blocks of a row, bytes), as panels from `first` on."""
        host: Any = devices.get("CPU")
        count = len(rows) // self.results[0].shape[-2]
        places = [host.part(b, first * r.nbytes, count * r.nbytes)
                  for b, r in zip(out, self.results)]  # fmt: skip
        given = host.wrap(rows)
        self.program.run([given if b is None else b for b in self.inputs], (count,), places)


@functools.cache
def _laying(
    name: str, per_row: int, bits: int, shift: int, lanes: int, settings: tuple
) -> _Laying:
    kind = quant.KINDS[name]
    given = Storage((var("panels", 1, 1 << 30), lanes, per_row, kind.bytes), dt.uint8)
    with config.context(DEVICE="CPU"), no_grad(), inside(Frame("lay")):
        found = _laid(Tensor(make(ops.INPUT, (), given)), kind, bits, shift)
        graph, storages = parameters(tuple(t.node for t in found))
        program = compile_graph(graph, "CPU")
    shapes = [tuple(n for n in t.shape if isinstance(n, int)) for t in found]  # all but panels
    results = [_Result(s, t.dtype, prod(s) * t.dtype.itemsize) for s, t in zip(shapes, found)]
    return _Laying(program, [s.buffer for s in storages], results)


def _laid(blocks: Tensor, kind: Kind, bits: int, shift: int) -> list[Tensor]:
    """Blocks, uint8 (panels, lanes, blocks of a row, bytes), as panels of codes, scales, offsets.
    """
    rest = [x for x in _scales(blocks, kind) if x is not None]
    groups = rest[0].shape[-1]
    codes = quant.codes(blocks, kind.name).reshape(*blocks.shape[:2], groups, -1)
    if shift or bits < 8:
        codes = codes.bitcast("uint8") + shift
    if bits == 4:
        half = codes.shape[-1] // 2
        codes = codes[..., :half] | codes[..., half:] << 4
    codes = codes.reshape(*codes.shape[:-1], -1, 4).permute(0, 2, 3, 1, 4)
    return [codes, *(x.permute(0, 2, 1) for x in rest)]


def _finite(buffer: HostBuffer, dtype: dt.DType) -> bool:
    """Whether there is neither NaN nor infinity. It takes a thirtieth of the time of laying."""
    x = np.asarray(buffer).view(dtype.storage)
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


def _tensor(shape: tuple[int, ...], dtype: dt.DType, buffer: HostBuffer) -> Tensor:
    """What was laid: of the same memory on the CPU, else copied to where tensors are."""
    if default_device() != "CPU":
        return Tensor(np.asarray(buffer).view(dtype.storage).reshape(shape), dtype=dtype)
    return Tensor(make(ops.INPUT, (), Storage(shape, dtype, "CPU", buffer)))


__all__ = ["GROUP", "Form", "in_rows", "lay"]
