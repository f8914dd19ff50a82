"""Sums at places that are looked up: out[index[i]] += x[i], a term after the other."""
from __future__ import annotations

from muladd.ir import Dim, Node, is_const, make, ops, sym
from muladd.loop.kernel import Stage
from muladd.loop.registers import both_masks, wide
from muladd.loop.statements import If, Statement, Store


def added(
    s: Stage, position: Node, value: Node, inside: Node | None, width: int, size: Dim
) -> list[Statement]:
    """One more term, or a vector of terms for places that differ, where there is one to add.

    inside: which lanes are terms at all; width: how many there are; size: of the array. A condition
    for all lanes is asked once, before anything is loaded.
    """
    assert s.argument is not None
    while value.op is ops.EXPAND:
        value = value.srcs[0]
    if value.op is ops.WHERE and is_const(value.srcs[2], 0):
        asked, value = value.srcs[0], value.srcs[1]
    else:  # an index that is known to be inside
        low, high = (wide(sym.as_node(x), width) for x in (-1, size))
        asked = make(ops.MUL, (make(ops.LT, (low, position)), make(ops.LT, (position, high))))
    while asked.op is ops.EXPAND:
        asked = asked.srcs[0]
    guard = inside
    if asked.shape:
        guard = asked if inside is None else both_masks(inside, asked, width)
    guard = None if guard is None else wide(guard, width)
    loaded = (position,) if guard is None else (position, guard)
    old = make(ops.LOAD, loaded, s.argument, s.dtype)
    put = Store(s.argument, position, make(ops.ADD, (old, wide(value, width))), guard)
    return [put] if asked.shape else [If(asked, [put])]


__all__ = ["added"]
