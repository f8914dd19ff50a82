"""What every lowered kernel obeys, checked statement by statement (with CHECK=1).

    loops are entered before they are used, and once      arrays and arguments exist
    stores fit their array's dtype and lanes              indices are int64, guards are bools
    registers are named by constants within their count   only written arguments are stored to
"""
from __future__ import annotations

from muladd.errors import GraphError
from muladd.ir import Node, Var, dtype, ops, sym, toposort
from muladd.ir.dtype import DType
from muladd.loop.kernel import show
from muladd.loop.statements import (
    Barrier,
    For,
    Grid,
    If,
    Lowered,
    Place,
    Prefetch,
    Statement,
    Store,
)


def validate(lowered: Lowered, name: str = "kernel") -> None:
    """Raises GraphError, naming the kernel and the statement, where the loop language is broken."""
    _Validator(lowered, name).statements(lowered.body, frozenset())


class _Validator:
    def __init__(self, lowered: Lowered, name: str) -> None:
        self.lowered, self.name = lowered, name

    def refuse(self, s: Statement, given: str, expected: str) -> None:
        text = f"{s.place}[{show(s.index)}]" if isinstance(s, Store) else ""
        raise GraphError(f"{self.name}, {type(s).__name__} {text}: {given}; expected {expected}")

    def statements(self, body: list[Statement], loops: frozenset[Node]) -> None:
        for s in body:
            if isinstance(s, Grid):
                if loops:
                    self.refuse(s, "a grid inside a loop", "the grid outside of everything")
                for loop in s.loops:
                    self.enter(s, loop, loops)
                    loops = loops | {loop}
                self.statements(s.body, loops)
                loops = frozenset()
            elif isinstance(s, For):
                self.enter(s, s.loop, loops)
                for end in (s.start, s.stop):
                    self.expression(s, sym.as_node(end), loops, dtype.INDEX, ())
                self.statements(s.body, loops | {s.loop})
            elif isinstance(s, If):
                self.expression(s, s.condition, loops, dtype.bool_, ())
                self.statements(s.body, loops)
                self.statements(s.orelse, loops)
            elif isinstance(s, Store):
                self.store(s, loops)
            elif not isinstance(s, Barrier | Prefetch):
                raise GraphError(f"{self.name}: {type(s).__name__} is no statement")

    def enter(self, s: Statement, loop: Node, loops: frozenset[Node]) -> None:
        if loop.op is not ops.RANGE:
            self.refuse(s, f"a loop over {loop!r}", "a RANGE")
        if loop in loops:
            self.refuse(s, f"loop {loop.arg.name} inside itself", "each loop once")

    def store(self, s: Store, loops: frozenset[Node]) -> None:
        d, lanes = self.place(s, s.place)
        if isinstance(s.place, int) and not self.lowered.kernel.arguments[s.place].written:
            self.refuse(s, f"a store to b{s.place}, which is only read", "a written argument")
        shape = s.value.shape
        if lanes:
            self.register(s, s.place, s.index)
            shape = (lanes,) if lanes > 1 else ()
            if s.guard is not None:
                self.refuse(s, "a guarded register", "no guard")
        else:
            self.expression(s, s.index, loops, dtype.INDEX, shape)
        self.expression(s, s.value, loops, d, shape)
        if s.guard is not None:
            self.expression(s, s.guard, loops, dtype.bool_, s.guard.shape and shape)

    def place(self, s: Statement, place: Place) -> tuple[DType, int]:
        """The dtype of an array or argument, and its lanes if it is registers."""
        if isinstance(place, str):
            array = self.lowered.arrays.get(place)
            if array is None:
                self.refuse(s, f"array {place!r}", f"one of {', '.join(self.lowered.arrays)}")
            assert array is not None
            return array.dtype, array.lanes
        count = len(self.lowered.kernel.arguments)
        if not 0 <= place < count:
            self.refuse(s, f"argument b{place}", f"one of b0 to b{count - 1}")
        return self.lowered.kernel.arguments[place].dtype, 0

    def register(self, s: Statement, place: Place, index: Node) -> None:
        bare = index.srcs[0] if index.op is ops.EXPAND else index
        assert isinstance(place, str)
        count = self.lowered.arrays[place].count
        if bare.op is not ops.CONST or not 0 <= bare.arg < count:
            self.refuse(s, f"register {place}[{show(bare)}]", f"a constant from 0 to {count - 1}")

    def expression(self, s: Statement, value: Node, loops: frozenset[Node], d: DType,
                   shape: tuple) -> None:  # fmt: skip
        """A value of dtype d and of this shape, over loops that have been entered."""
        if value.dtype is not d:
            self.refuse(s, f"{show(value)} of {value.dtype.name}", d.name)
        if value.shape != shape:
            self.refuse(s, f"{show(value)} of shape {value.shape}", f"shape {shape}")
        for n in toposort((value,)):
            if n.op is ops.RANGE and n not in loops:
                self.refuse(s, f"loop {n.arg.name} outside of itself", "an enclosing loop")
            elif n.op is ops.LOAD:
                self.load(s, n)
            elif n.op is ops.INPUT and not isinstance(n.arg, Var):
                self.refuse(s, "an array as a value", "a LOAD")
            elif n.op is ops.READ or n.op.group == "structure":
                self.refuse(s, n.op.name, "loads, loops and arithmetic")
            elif n.op.elementwise and len({x.shape for x in n.srcs}) > 1:
                self.refuse(s, f"{n.op.name} of shapes {[x.shape for x in n.srcs]}", "equal shapes")

    def load(self, s: Statement, n: Node) -> None:
        place = n.arg[0] if isinstance(n.arg, tuple) else n.arg
        d, lanes = self.place(s, place)
        if n.dtype is not d:
            self.refuse(s, f"a load of {n.dtype.name} from {place}", d.name)
        if bool(lanes) != isinstance(n.arg, tuple):
            self.refuse(s, f"LOAD of {n.arg}", "(name, lanes) for registers, else a place")
        if lanes:
            self.register(s, place, n.srcs[0])
            if max(n.arg[1], 1) != lanes:
                self.refuse(s, f"a register of {n.arg[1]} lanes", f"{lanes} lanes")
        elif n.srcs[0].dtype is not dtype.INDEX:
            self.refuse(s, f"an index of {n.srcs[0].dtype.name}", "int64")
        if len(n.srcs) > 1 and (n.srcs[1].dtype is not dtype.bool_
                                or n.srcs[1].shape not in ((), n.srcs[0].shape)):  # fmt: skip
            self.refuse(s, f"guard {show(n.srcs[1])}", "a bool, or one for each lane")


__all__ = ["validate"]
