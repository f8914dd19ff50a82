"""Blocks that are stored the other way round: turned in registers, and stored by whole vectors.

    for j  out[k * 64 + j] = a[j * n + k]   for 16 lanes k     one number at a time, 16 * 16 of them
    ->     16 vectors along k, turned into 16 along j           64 shuffles and 16 stores

The first steps turn 4 x 4 numbers in each 128 bits, where shuffles cost least; the others move
pieces of 128 bits.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from muladd.codegen.llvm_ops import Emitter
from muladd.ir import Dim, ops, sym
from muladd.loop.statements import Statement, Store

_PIECE = 4  # numbers in 128 bits


def block(body: Sequence[Statement], at: int) -> tuple[list[Store], int] | None:
    """The stores from a statement on that make a square block, and how far apart its rows are."""
    first = body[at]
    lanes = first.value.shape[0] if isinstance(first, Store) and first.value.shape else 0
    if lanes not in (4, 8, 16) or len(body) < at + lanes:
        return None
    found: list[Store] = []
    for k, s in enumerate(body[at : at + lanes]):
        ramp = _ramp(s) if isinstance(s, Store) and s.guard is None else None
        if ramp is None or not isinstance(s, Store) or s.value.dtype.bits != 32:
            return None
        start, apart = ramp
        if k == 0:
            begin, rows = start, apart
        if s.place != body[at].place or apart != rows or sym.sub(start, begin) != k:  # type: ignore
            return None
        found.append(s)
    return found, rows


def _ramp(s: Store) -> tuple[Dim, int] | None:
    """Where the first lane goes, and how far apart lanes are (more than 1)."""
    i = s.index
    if i.op is not ops.ADD or i.srcs[0].op is not ops.EXPAND or i.srcs[1].op is not ops.MUL:
        return None
    lane, by = i.srcs[1].srcs
    if lane.op is not ops.IOTA or by.op is not ops.EXPAND or by.srcs[0].op is not ops.CONST:
        return None
    start = i.srcs[0].srcs[0]
    return (sym.as_dim(start), by.srcs[0].arg) if sym.trusted(start) else None


def transposed(rows: list[str], kind: str, e: Emitter) -> list[str]:
    """Registers of the columns of a square block, given those of its rows."""
    n = len(rows)

    def pick(a: str, b: str, places: list[int]) -> str:
        mask = ", ".join(f"i32 {p}" for p in places)
        return e.put(f"shufflevector <{n} x {kind}> {a}, <{n} x {kind}> {b}, <{n} x i32> <{mask}>")

    def pairs(a: str, b: str, size: int) -> tuple[str, str]:
        """Pieces of so many numbers of a and b in turn: of the first half of each 128 bits, and of
        the second."""
        out = []
        for half in (0, _PIECE // 2):
            places = [x + half + part * n + i for x in range(0, n, _PIECE)
                      for s in range(0, _PIECE // 2, size) for part in (0, 1)
                      for i in range(s, s + size)]  # fmt: skip
            out.append(pick(a, b, places))
        return out[0], out[1]

    columns: list[list[str]] = []  # of each group of four rows: their column c of each 128 bits
    for g in range(0, n, _PIECE):
        (a, b), (c, d) = (pairs(rows[g + i], rows[g + i + 1], 1) for i in (0, 2))
        columns.append([*pairs(a, c, 2), *pairs(b, d, 2)])
    result = [""] * n
    for j in range(_PIECE):
        for k, x in enumerate(_turned([group[j] for group in columns], n, pick)):
            result[k * _PIECE + j] = x
    return result


def _turned(parts: list[str], n: int, pick: Callable[[str, str, list[int]], str]) -> list[str]:
    """Vectors of 128-bit pieces: piece k of each, for each k."""
    if len(parts) == 1:
        return parts
    pieces = n // _PIECE

    def every(a: str, b: str, start: int) -> str:
        """Every second piece of a, then of b."""
        chosen = range(start, 2 * pieces, 2)
        return pick(a, b, [p * _PIECE + i for p in chosen for i in range(_PIECE)])

    halves = [[every(parts[i], parts[i + 1], s) for i in range(0, len(parts), 2)] for s in (0, 1)]
    if len(parts) == 2:
        return [halves[0][0], halves[1][0]]
    even, odd = (_turned(h, n, pick) for h in halves)
    return [even[0], odd[0], even[1], odd[1]]
