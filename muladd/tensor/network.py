"""A sorting network on nodes: Batcher's bitonic sorter (1968), laid out for vectors and caches.

A merge compares the elements whose places differ in one bit, for each bit of what is merged from
the highest down. Places are taken as two halves of bits. While bits of one half are compared, each
of them is an axis of two, and the elements which differ in the other half lie side by side:

    (2, 2, 2, ..., n)     compare along one of the twos, n elements at a time

So vectors always have whole lanes, and as no step looks at other lanes, a kernel does all steps of
a half for some lanes while they are in the cache. Between halves the array is turned (transposed).

Merges that should run downwards run upwards on complements: all comparisons are alike.
"""
from __future__ import annotations

from dataclasses import dataclass

from muladd.ir import Node, iota, make, ops
from muladd.tensor import graph as g


def ascending(x: Node) -> Node:
    """Integers in ascending order along the last axis, whose size is a power of two."""
    size = x.shape[-1]
    assert isinstance(size, int) and size & (size - 1) == 0
    bits = size.bit_length() - 1
    low, high = _Half(0, bits // 2), _Half(bits // 2, bits - bits // 2)
    at, line = high, g.reshape(x, (*x.shape[:-1], *[2] * high.count, 1 << low.count))
    for merge in range(1, bits + 1):
        for bit in range(merge - 1, -1, -1):
            half, other = (low, high) if bit < high.first else (high, low)
            if half is not at:
                at, line = half, other.turned(line, half)
            if bit == merge - 1:
                line = half.complemented(line, merge, bits)
            line = half.exchanged(line, bit)
    if at is low:
        line = low.turned(line, high)
    return g.reshape(line, x.shape)


@dataclass(frozen=True)
class _Half:
    """Some bits of the places, each an axis of two before the last axis: the highest first."""

    first: int
    count: int

    def axis(self, x: Node, bit: int) -> int:
        return x.ndim - 2 - (bit - self.first)

    def turned(self, x: Node, other: _Half) -> Node:
        """Bits of the other half as axes, this half's elements side by side."""
        others = x.shape[: x.ndim - 1 - self.count]
        rows = g.reshape(x, (*others, 1 << self.count, 1 << other.count))
        k = len(others)
        rows = g.permute(rows, [*range(k), k + 1, k])
        return g.reshape(rows, (*others, *[2] * other.count, 1 << self.count))

    def is_set(self, x: Node, bit: int) -> Node:
        """Whether a bit of the place is set: one of this half, or the lowest of the other."""
        if self.first <= bit < self.first + self.count:
            a = self.axis(x, bit)
            return g.ne(g.along(iota(2), a, x.shape), 0)
        side = g.along(iota(x.shape[-1]), x.ndim - 1, x.shape)
        return g.ne(g.mod(side, 2), 0)

    def complemented(self, x: Node, merge: int, bits: int) -> Node:
        """All bits of what the next merge should sort downwards turned over, and those of what
        the merge before did turned back."""
        changes = self.is_set(x, merge) if merge < bits else None
        if merge > 1:
            before = self.is_set(x, merge - 1)
            changes = before if changes is None else g.ne(changes, before)
        if changes is None:
            return x
        return make(ops.XOR, (x, g.where(changes, g.like(x, -1), g.like(x, 0))))

    def exchanged(self, x: Node, bit: int) -> Node:
        """The lesser of each pair where the bit is not set, the other where it is."""
        a = self.axis(x, bit)
        other = g.flip(x, a)
        first = g.lt(g.along(iota(2), a, x.shape), 1)
        return g.where(g.eq(g.lt(other, x), first), other, x)
