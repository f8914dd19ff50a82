"""Where the loads and stores of an innermost loop go: what the loop adds, to a pointer before it.

    a[p * 4096 + i * 64 + 16]    q = &a[p * 4096]            before the loop over i
                                 s = 0, 64, 128, ...          in step with i
                                 q[s], 16 elements on

A load adds a pointer, a register and a number by itself. What would be calculated for it in the
loop takes turns of the units that multiply, as long as these also add numbers.
"""
from __future__ import annotations

from dataclasses import dataclass, field

from muladd.ir import Node, ops, sym, toposort
from muladd.ir.polynomial import Poly
from muladd.loop.statements import For, Grid, If, Statement

_MOST_STEPS = 6  # registers that run along with a loop


@dataclass(slots=True)
class Turns:
    """What an innermost loop has besides its number of the turn."""

    loop: Node
    start: str
    # products of the turn, as registers that run along: (register, what a turn adds to it)
    steps: list[tuple[str, str]] = field(default_factory=list)
    pointers: dict[tuple, str] = field(default_factory=dict)

    def step(self, of: str, name: str) -> bool:
        """A register `name` of the turn times an operand, if there is one left."""
        if len(self.steps) < _MOST_STEPS and self.start == "0":
            self.steps.append((name, of))
            return True
        return False

    def heads(self, k: int) -> list[str]:
        return [f"{name} = phi i64 [ 0, %pre{k} ], [ {name}.n, %latch{k} ]"
                for name, _ in self.steps]  # fmt: skip

    def latches(self) -> list[str]:
        return [f"{name}.n = add i64 {name}, {of}" for name, of in self.steps]


def innermost(body: list[Statement]) -> bool:
    """Whether no loop stands inside."""
    return not any(
        isinstance(s, For | Grid)
        or isinstance(s, If) and not (innermost(s.body) and innermost(s.orelse))
        for s in body
    )


def terms(index: Node) -> Poly | None:
    """A scalar index as a sum of products, or None if algebra does not apply to it, or if it
    depends on what is in memory."""
    if not sym.trusted(index):
        return None
    found = sym.poly(index)
    atoms = {a for mono in found for a in mono if a.op not in (ops.RANGE, ops.INPUT)}
    stored = atoms and any(n.op is ops.LOAD for n in toposort(tuple(atoms)))
    return None if stored else found


def lanes_apart(index: Node) -> int:
    """Of an index base + lane * k, for a number k, k; 0 of others."""
    if index.op is not ops.ADD or index.srcs[0].op is not ops.EXPAND:
        return 0
    ramp = index.srcs[1]
    if ramp.op is not ops.MUL or ramp.srcs[0].op is not ops.IOTA:
        return 0
    by = ramp.srcs[1]
    return int(by.srcs[0].arg) if by.op is ops.EXPAND and by.srcs[0].op is ops.CONST else 0


def contiguous(index: Node) -> bool:
    return index.op is ops.ADD and index.srcs[0].op is ops.EXPAND and index.srcs[1].op is ops.IOTA


def repeated(index: Node) -> int:
    """Of an index base + lane % k, k; 0 of others."""
    if index.op is not ops.ADD or index.srcs[1].op is not ops.MOD:
        return 0
    lane, by = index.srcs[1].srcs
    known = lane.op is ops.IOTA and by.op is ops.EXPAND and index.srcs[0].op is ops.EXPAND
    return int(by.srcs[0].arg) if known and by.srcs[0].op is ops.CONST else 0


def is_multiple(index: Node, of: int) -> bool:
    """Whether an index is certainly a multiple of a number (arrays begin at 64 bytes)."""
    return all(c % of == 0 for c in sym.poly(sym.as_dim(index)).values())
