"""What a plan costs, guessed without running it: good enough to leave bad candidates unmeasured.

Cycles of the slowest core, counted from the loops: an operation costs one for each vector it fills,
what is no vector in memory one for each lane, results that do not fit the registers are loaded and
stored again. Caches are not looked at: measuring sees those.
"""

from __future__ import annotations

from muladd.device.machine import Machine
from muladd.ir import Node, ops, sym
from muladd.loop.statements import For, Grid, If, Lowered, Prefetch, Statement, Store

_CHUNK = 150.0  # cycles until a thread has its next chunk
_TURN = 1.0  # of a loop, beside its body
_INDEX = 0.1  # arithmetic of indices, most of which is done outside of the innermost loop
_DEAR = {ops.DIV: 8.0, ops.MOD: 8.0, ops.SQRT: 10.0}


def cycles(lowered: Lowered, machine: Machine) -> float:
    """Cycles that one run takes, if the machine did one operation in each."""
    made = _Counter(lowered, machine).total(lowered.body)
    chunks = sym.bounds(lowered.grid)[1]
    return (made + _CHUNK) * -(-chunks // machine.cores)


class _Counter:
    def __init__(self, lowered: Lowered, machine: Machine) -> None:
        self.arrays, self.bytes = lowered.arrays, machine.vector_bits // 8
        registers = [
            a.count * -(-a.lanes * a.dtype.itemsize // self.bytes)
            for a in lowered.arrays.values() if a.lanes
        ]  # fmt: skip
        most = max(registers, default=0)
        self.spilled = max(0.0, 1 - (machine.vector_registers - 2) / max(most, 1))

    def total(self, body: list[Statement]) -> float:
        """Cycles of statements in a row, each expression once."""
        seen: set[Node] = set()
        found = 0.0
        for s in body:
            if isinstance(s, Grid):
                found += self.total(s.body)
            elif isinstance(s, For):
                turns = max(0, sym.bounds(sym.sub(s.stop, s.start))[1])
                found += turns * (self.total(s.body) + _TURN)
            elif isinstance(s, If):
                found += self.total(s.body or s.orelse)
            elif isinstance(s, Store):
                found += self.store(s, seen)
            elif isinstance(s, Prefetch):
                found += 1
        return found

    def store(self, s: Store, seen: set[Node]) -> float:
        found = self.memory(s.place, s.index, s.value)
        waiting = [x for x in (s.value, s.guard) if x is not None]
        while waiting:
            n = waiting.pop()
            if n in seen:
                continue
            seen.add(n)
            found += self.one(n)
            waiting += n.srcs
        return found

    def one(self, n: Node) -> float:
        if n.op is ops.LOAD:
            return self.memory(n.arg[0] if isinstance(n.arg, tuple) else n.arg, n.srcs[0], n)
        if n.op in (ops.CONST, ops.RANGE, ops.EXPAND, ops.IOTA):
            return 0.0
        if n.dtype.name == "int64" and not n.shape:
            return _INDEX
        return self.vectors(n) * _DEAR.get(n.op, 1.0)

    def vectors(self, n: Node) -> int:
        lanes = n.shape[0] if n.shape else 1
        assert isinstance(lanes, int)
        return -(-lanes * n.dtype.itemsize // self.bytes)

    def memory(self, place: int | str, index: Node, value: Node) -> float:
        if isinstance(place, str) and self.arrays[place].lanes:
            return self.vectors(value) * self.spilled
        beside = index.op is ops.ADD and index.srcs[1].op is ops.IOTA
        if not index.shape or beside or index.op is ops.EXPAND:
            return float(self.vectors(value))
        assert isinstance(index.shape[0], int)
        return float(index.shape[0])
