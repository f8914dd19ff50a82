"""Divisions by powers of two, which are shifts: both round down, whatever the sign."""
from __future__ import annotations

from muladd.ir import Node, ops


def power_of_two(n: Node) -> int | None:
    """k, where n divides whole numbers by the constant 2^k or gives what is left, or None."""
    if n.op not in (ops.DIV, ops.MOD):
        return None
    by = n.srcs[1].srcs[0] if n.srcs[1].op is ops.EXPAND else n.srcs[1]
    if by.op is not ops.CONST or not by.dtype.is_int or by.arg <= 0 or by.arg & (by.arg - 1):
        return None
    return by.arg.bit_length() - 1


__all__ = ["power_of_two"]
