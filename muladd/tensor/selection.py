"""The least few of many, without sorting the rest.

The k-th least key is found bit by bit: the greatest number below which there are fewer than k keys.
Which block holds the j-th of those that lie below it, and where, is then a matter of counting, and
only these are sorted.
"""

from __future__ import annotations

from muladd.ir import Body, Node, ScanArg, const, iota, make, ops, param
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.gathering import gather
from muladd.tensor.running import running_sum

MANY, FEW = 4096, 16  # a row of so many, of which at most one in so many is wanted


def pays(n: int, k: int) -> bool:
    """Whether selecting k of n is less work than sorting n."""
    return n >= MANY and 0 < k * FEW <= n


def threshold(keys: Node, k: int) -> Node:
    """The k-th least (from 1) along the last axis, which stays with one element."""
    d, shape = keys.dtype, (*keys.shape[:-1], 1)
    start = g.where(_fewer(keys, const(0, d, shape), k), 0, const(d.min, d, shape))
    found, weight, seen = param(0, shape, d), param(1, (), d), param(2, keys.shape, d)
    higher = g.add(found, g.expand(weight, shape))
    kept = g.where(_fewer(seen, higher, k), higher, found)
    step = Body((kept, make(ops.DIV, (weight, g.like(weight, 2)))), (found, weight, seen), "bit")
    bits = d.bits - 1
    first = const(1 << (bits - 1), d)
    return make(ops.SCAN, (start, first, keys), ScanArg(step, bits, 2, 0))


def _fewer(keys: Node, bound: Node, k: int) -> Node:
    """Whether fewer than k keys lie below a bound."""
    last = keys.ndim - 1
    below = g.cast(g.lt(keys, g.expand(bound, keys.shape)), dt.int32)
    count = g.unsqueeze(g.total(below, (last,)), last)
    return g.lt(count, k)


def least(keys: Node, k: int) -> Node:
    """Where the k least of the last axis are: those below the k-th least by their places, then as
    many equal to it as are missing, again by their places."""
    last, n = keys.ndim - 1, int(keys.shape[-1])  # type: ignore[arg-type]
    outer = keys.shape[:-1]
    bound = threshold(keys, k)
    size = 1 << (n.bit_length() + 1) // 2  # about as long as there are blocks
    count = -(-n // size)
    still = [(0, 0)] * last
    blocks = g.reshape(g.pad(keys, [*still, (0, count * size - n)], keys.dtype.max),
                       (*outer, count, size))  # fmt: skip
    here = g.expand(g.unsqueeze(bound, last + 1), blocks.shape)
    below, same = (_count(f(blocks, here)) for f in (g.lt, g.eq))
    less = g.cut(below, last, count - 1, 1)
    # the j-th found is number `rank` of its kind, which lies in the block where so many have been
    slot = g.along(iota(k), last, (*outer, k))
    under = g.lt(slot, g.expand(less, slot.shape))
    rank = g.where(under, slot, g.sub(slot, g.expand(less, slot.shape)))
    pairs = (*outer, k, count)
    wide = lambda x, axis, shape: g.expand(g.unsqueeze(x, axis), shape)  # noqa: E731
    totals = g.where(wide(under, last + 1, pairs), *(wide(x, last, pairs) for x in (below, same)))
    passed = g.le(totals, wide(rank, last + 1, pairs))
    block = _number(passed)
    before = g.greatest(g.where(passed, totals, 0), (last + 1,))
    # and there it is the element where so many of the block's have been
    rows = (*outer, k, size)
    place = g.add(wide(g.mul(block, size), last + 1, rows), g.along(iota(size), last + 1, rows))
    inside = g.lt(place, n)
    flat = g.reshape(g.where(inside, place, 0), (*outer, k * size))
    row = g.reshape(gather(keys, last, flat), rows)
    level = g.expand(g.unsqueeze(bound, last + 1), rows)
    found = g.where(wide(under, last + 1, rows), g.lt(row, level), g.both(g.eq(row, level), inside))
    seen = running_sum(g.cast(found, dt.int64), last + 1)
    within = _number(g.le(seen, wide(g.sub(rank, before), last + 1, rows)))
    return g.add(g.mul(block, size), within)


def _count(flags: Node) -> Node:
    """How many flags are set in all blocks so far."""
    last = flags.ndim - 1
    return running_sum(g.total(g.cast(flags, dt.int64), (last,)), last - 1)


def _number(flags: Node) -> Node:
    """How many flags are set along the last axis."""
    return g.total(g.cast(flags, dt.int64), (flags.ndim - 1,))
