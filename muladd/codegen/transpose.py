"""Blocks that are stored the other way round: turned in registers, and stored by whole vectors.

    for j  out[k * 64 + j] = a[j * n + k]   for 16 lanes k     one number at a time, 16 * 16 of them
    ->     16 vectors along k, turned into 16 along j           64 shuffles and 16 stores

Blocks of fewer stores than lanes are turned in parts: 8 stores of 16 lanes as twice 8 x 8. The
first steps turn 4 x 4 numbers in each 128 bits, where shuffles cost least; the others move pieces
of 128 bits. Vectors whose lanes lie as far apart as there are vectors are interleaved, and stored
as one.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from muladd.codegen.addresses import lanes_apart
from muladd.codegen.llvm_ops import Emitter
from muladd.ir import Dim, Node, ops, sym, toposort
from muladd.loop.statements import Place, Statement, Store
from muladd.loop.vector import base_of

_PIECE = 4  # numbers in 128 bits


def in_order(body: Sequence[Statement]) -> list[Statement]:
    """The statements, with stores of lanes that lie apart in the order of where they begin, as far
    as they follow each other and none of them reads what they store to."""
    out: list[Statement] = []
    run: list[tuple[int, Store]] = []
    begin: Dim = 0
    for s in body:
        ramp = _ramp(s)
        if isinstance(s, Store) and ramp is not None:
            apart = sym.sub(ramp[0], begin) if run else 0
            if not run or not isinstance(apart, int) or s.place != run[0][1].place:
                out += _sorted(run)
                run, begin, apart = [], ramp[0], 0
            run.append((apart, s))
            continue
        out += _sorted(run)
        run = []
        out.append(s)
    return out + _sorted(run)


def _sorted(run: list[tuple[int, Store]]) -> list[Store]:
    stores = [s for _, s in run]
    if len(run) < 3 or _read(stores):
        return stores
    return [s for _, s in sorted(run, key=lambda x: x[0])]


def block(body: Sequence[Statement], at: int) -> tuple[list[Store], int] | None:
    """The stores from a statement on that fill a block together, and how far apart a store's lanes
    are: of 32 bits as many stores as lanes, or half of them and so on; or as many as lanes are
    apart, so no gap is left."""
    first = body[at]
    ramp = _ramp(first)
    if ramp is None or not isinstance(first, Store):
        return None
    begin, apart = ramp
    lanes = first.value.shape[0]
    counts = [apart] if apart in (2, 4) else []
    if lanes in (4, 8, 16) and first.value.dtype.bits == 32:
        counts = [n for n in (16, 8, 4, 2) if n <= lanes]
    found: list[Store] = []
    for k, s in enumerate(body[at : at + max(counts, default=0)]):
        ramp = _ramp(s)
        if ramp is None or not isinstance(s, Store) or s.place != first.place:
            break
        if ramp[1] != apart or sym.sub(ramp[0], begin) != k:
            break
        found.append(s)
    count = next((n for n in counts if n <= len(found)), 0)
    return None if not count or _read(found[:count]) else (found[:count], apart)


def _read(stores: list[Store]) -> bool:
    """Whether stores read what they store to: they are done together, after all reading."""
    return any(_reads(n, stores[0].place) for n in toposort(tuple(s.value for s in stores)))


def _reads(n: Node, place: Place) -> bool:
    return n.op is ops.LOAD and place == (n.arg[0] if isinstance(n.arg, tuple) else n.arg)


def _ramp(s: Statement) -> tuple[Dim, int] | None:
    """Where the first lane of a store goes, and how far apart lanes are, if that is more than 1."""
    if not isinstance(s, Store) or s.guard is not None or not s.value.shape:
        return None
    apart = lanes_apart(s.index)
    start = base_of(s.index) if apart else s.index
    return (sym.as_dim(start), apart) if apart and sym.trusted(start) else None


def interleaved(rows: list[str], kind: str, lanes: int, e: Emitter) -> str:
    """A register with the first lanes of 2 or 4 others, then their second ones, and so on."""
    if len(rows) == 1:
        return rows[0]
    half = len(rows) // 2
    a, b = (interleaved(x, kind, lanes, e) for x in (rows[::2], rows[1::2]))
    n = lanes * half
    mask = ", ".join(f"i32 {i}, i32 {i + n}" for i in range(n))
    return e.put(f"shufflevector <{n} x {kind}> {a}, <{n} x {kind}> {b}, <{2 * n} x i32> <{mask}>")


def turned(rows: list[str], kind: str, lanes: int, e: Emitter) -> list[str]:
    """Registers of the columns of 2, 4, 8 or 16 rows of so many lanes."""
    count = len(rows)
    if count == 2:
        both, n = interleaved(rows, kind, lanes, e), 2 * lanes
        return [e.put(f"shufflevector <{n} x {kind}> {both}, <{n} x {kind}> poison, <2 x i32> "
                      f"<i32 {k}, i32 {k + 1}>") for k in range(0, n, 2)]  # fmt: skip
    done: list[str] = []
    for start in range(0, lanes, count):
        mask = ", ".join(f"i32 {k}" for k in range(start, start + count))
        parts = rows if count == lanes else [
            e.put(f"shufflevector <{lanes} x {kind}> {r}, <{lanes} x {kind}> poison, "
                  f"<{count} x i32> <{mask}>") for r in rows]  # fmt: skip
        done += transposed(parts, kind, e)
    return done


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
