"""Loops to LLVM IR text. Vectors are explicit; LLVM only selects instructions and registers.

Every expression is emitted once, in the outermost loop where its value is known (so addresses are
hoisted level by level and nothing is left for LLVM's loop passes). Loads move outwards only past
loops that run at least once and do not write the same array, and never past a condition.

The kernel's native form: void name(ptr args, ptr vars, i64 lo, i64 hi, ptr scratch), which runs
chunks lo <= c < hi of the grid.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from muladd.codegen import Rendered
from muladd.codegen.addresses import (
    Turns,
    contiguous,
    innermost,
    is_multiple,
    lanes_apart,
    repeated,
    terms,
)
from muladd.codegen.dots import emit_dot
from muladd.codegen.llvm_ops import (
    Emitter,
    Typed,
    element,
    literal,
    memory_type,
    operation,
    register_type,
)
from muladd.codegen.transpose import block, in_order, interleaved, turned
from muladd.errors import ScheduleError
from muladd.ir import Dim, Node, Var, dtype, is_const, make, ops, sym, toposort
from muladd.ir.polynomial import Poly
from muladd.loop.lifetime import offsets, waiting
from muladd.loop.statements import (
    Array,
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
from muladd.loop.vector import at_lane, base_of

_Operand = Callable[[Node], str]  # the register that holds a node's value

_STACK_BYTES = 2048  # arrays up to this size live on the stack, where registers may take them
# numbers that are not to wait in registers while other sums need these: several vectors of them,
# and the padding that arrays end with
_WAITING = 128


@dataclass(slots=True)
class _Scope:
    lines: list[str] = field(default_factory=list)
    memo: dict[Node, str] = field(default_factory=dict)
    writes: set[Place] = field(default_factory=set)  # arrays stored to inside
    solid: bool = False  # loads must not leave: a condition, or a loop that may not run
    turns: Turns | None = None  # of an innermost loop
    # what depends on arrays that the kernel writes, till one of these is stored to: the operand,
    # the scope it is emitted in, and the arrays
    fresh: dict[Node, tuple[str, int, set[Place]]] = field(default_factory=dict)

    def stored(self, place: Place) -> None:
        self.fresh = {n: x for n, x in self.fresh.items() if place not in x[2]}

# Where a tile of sums begins, as a line of source: constants of other stages must not stay in
# vector registers across its loops, or too few are left. How to say so, the machine knows.
CLEAR = "; clear the vector registers"
ATTRIBUTES = 'attributes #0 = { nounwind "no-trapping-math"="true"'  # the machine may add some
_MANY = 8  # sums in registers from which on they need all there are


def render(
    lowered: Lowered, variables: dict[str, int], name: str = "kernel", masked: int = 1,
    dot: str = "",
) -> Rendered:  # fmt: skip
    """LLVM IR of a kernel. variables: the index of each symbolic size in the vars array; masked:
    bytes of the narrowest values that the machine loads under a mask; dot: its instructions for
    products of bytes (see Machine)."""
    return _Renderer(lowered, variables, name, masked, dot).run()

class _Renderer:
    def __init__(
        self, lowered: Lowered, variables: dict[str, int], name: str, masked: int, dot: str
    ) -> None:
        self.lowered, self.variables, self.name, self.masked = lowered, variables, name, masked
        self.dot = dot
        self.exact = lowered.kernel.exact
        self.count = 0
        self.declared: dict[str, str] = {}
        self.scopes: list[_Scope] = [_Scope()]
        self.levels: dict[Node, int] = {}
        self.bases: dict[Place, str] = {}
        self.indices: dict[Node, tuple[Poly, tuple[Node, ...]] | None] = {}
        self.written = {a.index for a in lowered.kernel.arguments if a.written}
        self.scratch = 0
        self.offsets: dict[str, int] = {}

    # --- the function ---

    def run(self) -> Rendered:
        entry = self.scopes[0]
        for a in self.lowered.kernel.arguments:
            slot = self.fresh()
            entry.lines.append(f"{slot} = getelementptr ptr, ptr %args, i64 {a.index}")
            entry.lines.append(f"%a{a.index} = load ptr, ptr {slot}, align 8")
            self.bases[a.index] = f"%a{a.index}"
        far_off = waiting(self.lowered.kernel)
        far = [name for name, a in self.lowered.arrays.items() if not a.lanes and (
               a.count * a.dtype.itemsize > _STACK_BYTES
               or a.count >= _WAITING and name in far_off)]  # fmt: skip
        self.offsets, self.scratch = offsets(self.lowered, far)
        for array in self.lowered.arrays.values():
            self.place(array)
        self.statements(self.lowered.body)
        body = "\n  ".join(entry.lines)
        text = [
            f"define void @{self.name}(ptr noalias %args, ptr noalias %vars, i64 %lo, i64 %hi, "
            f"ptr noalias %scratch) #0 {{\nentry:\n  {body}\n  ret void\n}}"
        ]
        text += [*sorted(self.declared.values()), f"{ATTRIBUTES} }}\n!0 = !{{i32 1}}"]
        return Rendered("\n".join(text), self.name, self.scratch)

    def place(self, array: Array) -> None:
        """Give a kernel array an address: registers and small ones on the stack, else scratch."""
        name = f"%m{len(self.bases)}"
        lines = self.scopes[0].lines
        if array.lanes:
            kind = register_type(array.dtype, array.lanes if array.lanes > 1 else 0)
            lines.append(f"{name} = alloca [{array.count} x {kind}], align 64")
        elif array.name in self.offsets:
            at = self.offsets[array.name]
            lines.append(f"{name} = getelementptr i8, ptr %scratch, i64 {at}")
        else:
            lines.append(f"{name} = alloca [{array.count} x {memory_type(array.dtype)}], align 64")
        self.bases[array.name] = name

    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    # --- statements ---

    def statements(self, body: list[Statement]) -> None:
        done = 0  # statements that were done together with one before
        for k, s in enumerate(body := in_order(body)):
            if done:
                done -= 1
            elif isinstance(s, Store) and (found := block(body, k)):
                self.store_block(*found)
                done = len(found[0]) - 1
            elif isinstance(s, Store):
                self.store(s)
            elif isinstance(s, For):
                self.loop(s.loop, self.value(sym.as_node(s.start)), self.value(sym.as_node(s.stop)),
                          s.body, sym.is_less(s.start, s.stop) is True)  # fmt: skip
            elif isinstance(s, If):
                self.condition(s)
            elif isinstance(s, Grid):
                self.grid(s)
            elif isinstance(s, Prefetch):
                self.prefetch(s)
            elif isinstance(s, Barrier):
                raise ScheduleError("codegen: in this plan threads of a group wait for each other "
                                    "(`bind`), but on a CPU one thread does a whole chunk; use "
                                    "`parallel`, or a device with groups")  # fmt: skip
            if isinstance(s, Store):
                self.scopes[-1].stored(s.place)
            elif not isinstance(s, Prefetch):
                self.scopes[-1].fresh = {}

    def grid(self, s: Grid) -> None:
        """for c in lo..hi, with the grid's loops decoded from c."""
        chunk = sym.axis("chunk", sym.product(x.arg.extent for x in s.loops))
        self.loop(chunk, "%lo", "%hi", s.body, True, s.loops)

    def loop(self, loop: Node, start: str, stop: str, body: list[Statement], runs: bool,
             decoded: tuple[Node, ...] = ()) -> None:  # fmt: skip
        k = self.count = self.count + 1
        scope = _Scope(writes=_writes(body), solid=not runs)
        if innermost(body) and not decoded:
            scope.turns = Turns(loop, start)
        self.scopes.append(scope)
        for loops in (loop, *decoded):
            self.levels[loops] = len(self.scopes) - 1
        scope.memo[loop] = f"%i{k}"
        if decoded:
            rest: Dim = loop
            for x in reversed(decoded[1:]):
                scope.memo[x] = self.value(sym.as_node(sym.mod(rest, x.arg.extent)))
                rest = sym.div(rest, x.arg.extent)
            scope.memo[decoded[0]] = self.value(sym.as_node(rest))
        self.statements(body)
        self.scopes.pop()
        test = (
            f"br label %head{k}"
            if runs and not decoded
            else f"%t{k} = icmp slt i64 {start}, {stop}\n  "
            f"br i1 %t{k}, label %head{k}, label %exit{k}"
        )
        self.scopes[-1].lines += [
            f"br label %pre{k}", f"pre{k}:", test, f"head{k}:",
            f"%i{k} = phi i64 [ {start}, %pre{k} ], [ %n{k}, %latch{k} ]",
            *(scope.turns.heads(k) if scope.turns else ()),
            *scope.lines, f"br label %latch{k}", f"latch{k}:",
            *(scope.turns.latches() if scope.turns else ()),
            f"%n{k} = add nuw nsw i64 %i{k}, 1", f"%c{k} = icmp slt i64 %n{k}, {stop}",
            f"br i1 %c{k}, label %head{k}, label %exit{k}", f"exit{k}:",
        ]  # fmt: skip

    def condition(self, s: If) -> None:
        test = self.value(s.condition)
        k = self.count = self.count + 1
        parts = []
        for body in (s.body, s.orelse):
            self.scopes.append(_Scope(writes=_writes(body), solid=True))
            self.statements(body)
            parts.append(self.scopes.pop().lines)
        self.scopes[-1].lines += [
            f"br i1 {test}, label %yes{k}, label %no{k}", f"yes{k}:", *parts[0],
            f"br label %end{k}", f"no{k}:", *parts[1], f"br label %end{k}", f"end{k}:",
        ]  # fmt: skip

    def store(self, s: Store) -> None:
        array = self.lowered.arrays.get(s.place) if isinstance(s.place, str) else None
        value, d, lanes = self.value(s.value), s.value.dtype, _lanes(s.value)
        if array is not None and array.lanes:
            if array.count >= _MANY and is_const(s.value) and is_const(s.index, 0):
                self.here(CLEAR)
            kind = register_type(array.dtype, lanes)
            pointer = self.element_pointer(s.place, s.index, kind)
            self.here(f"store {kind} {value}, ptr {pointer}, align {_align(array.dtype, lanes)}")
            return
        stored = self.to_memory(Typed(value, d, lanes))
        if lanes and not contiguous(s.index):
            self.store_lanes(s, stored, lanes)
        elif s.guard is not None and not lanes:
            self.store_if(s, stored)
        elif s.guard is not None:
            self.store_masked(s, stored, lanes)
        else:
            base = base_of(s.index) if lanes else s.index
            pointer = self.pointer(s.place, base, d)
            aligned = lanes and is_multiple(base, lanes)
            past = bool(s.nontemporal and aligned)  # such arrays are ours, so they are aligned
            hint = ", !nontemporal !0" if past else ""
            align = _align(d, lanes) if aligned and (past or array is not None) else d.itemsize
            self.here(f"store {stored.type()} {stored.name}, ptr {pointer}, align {align}{hint}")

    def store_block(self, rows: list[Store], apart: int) -> None:
        """Stores whose lanes do not lie side by side, but which fill a block together."""
        first, d = rows[0], rows[0].value.dtype
        lanes, kind = _lanes(first.value), memory_type(d)
        values = [self.to_memory(Typed(self.value(s.value), d, lanes)).name for s in rows]
        e = Emitter(self.scopes[-1].lines, self.fresh, self.declare, True)
        if apart == len(rows) <= 4:
            done, lanes = [interleaved(values, kind, lanes, e)], lanes * len(rows)
        else:
            done, lanes = turned(values, kind, lanes, e), len(rows)
        for k, x in enumerate(done):
            at = sym.as_node(sym.add(sym.as_dim(base_of(first.index)), k * apart))
            pointer = self.pointer(first.place, at, d)
            self.here(f"store <{lanes} x {kind}> {x}, ptr {pointer}, align {d.itemsize}")

    def prefetch(self, s: Prefetch) -> None:
        f = "@llvm.prefetch.p0"
        self.declare(f, f"declare void {f}(ptr, i32, i32, i32)")
        base, at, low = base_of(s.index) if _lanes(s.index) else s.index, s.place, self.lowered
        if base.shape:  # lanes that lie anywhere
            return
        of = low.arrays[at] if isinstance(at, str) else low.kernel.arguments[at]
        where, near = self.pointer(at, base, of.dtype), 3 if s.near else 2
        self.here(f"call void {f}(ptr {where}, i32 {int(s.write)}, i32 {near}, i32 1)")

    def store_if(self, s: Store, stored: Typed) -> None:
        assert s.guard is not None
        test, pointer = self.value(s.guard), self.pointer(s.place, s.index, s.value.dtype)
        k = self.count = self.count + 1
        self.here(f"br i1 {test}, label %yes{k}, label %end{k}")
        self.here(f"yes{k}:")
        size = s.value.dtype.itemsize
        self.here(f"store {stored.type()} {stored.name}, ptr {pointer}, align {size}")
        self.here(f"br label %end{k}")
        self.here(f"end{k}:")

    def store_masked(self, s: Store, stored: Typed, lanes: int) -> None:
        mask = self.value(_wide(s.guard, lanes))
        pointer = self.pointer(s.place, base_of(s.index), s.value.dtype)
        kind = stored.type()
        f = f"@llvm.masked.store.{_suffix(kind)}.p0"
        self.declare(f, f"declare void {f}({kind}, ptr, i32, <{lanes} x i1>)")
        size = s.value.dtype.itemsize
        self.here(f"call void {f}({kind} {stored.name}, ptr {pointer}, i32 {size}, "
                  f"<{lanes} x i1> {mask})")  # fmt: skip

    def store_lanes(self, s: Store, stored: Typed, lanes: int) -> None:
        """Lanes that do not lie side by side are stored one by one."""
        mask = self.value(_wide(s.guard, lanes)) if s.guard is not None else None
        kind, size = memory_type(s.value.dtype), s.value.dtype.itemsize
        for lane in range(lanes):
            known = at_lane(s.guard, lane) if s.guard is not None and s.guard.shape else None
            if known is not None and is_const(known, False):
                continue
            index = self.lane_index(s.index, lane, lanes)
            x = self.fresh()
            self.here(f"{x} = extractelement {stored.type()} {stored.name}, i64 {lane}")
            p = self.fresh()
            self.here(f"{p} = getelementptr {kind}, ptr {self.bases[s.place]}, i64 {index}")
            if mask is None or (known is not None and is_const(known, True)):
                self.here(f"store {kind} {x}, ptr {p}, align {size}")
                continue
            k = self.count = self.count + 1
            self.here(f"%b{k} = extractelement <{lanes} x i1> {mask}, i64 {lane}")
            self.here(f"br i1 %b{k}, label %yes{k}, label %end{k}")
            self.here(f"yes{k}:")
            self.here(f"store {kind} {x}, ptr {p}, align {size}")
            self.here(f"br label %end{k}")
            self.here(f"end{k}:")

    # --- expressions ---

    def here(self, line: str) -> None:
        self.scopes[-1].lines.append(line)

    def declare(self, name: str, text: str) -> None:
        self.declared[name] = text

    def value(self, root: Node | None) -> str:
        """The operand that holds a node's value, emitting what is still missing."""
        assert root is not None
        found = self.find(root)
        if found is not None:
            return found
        for n in toposort((root,), into=lambda m: self.find(m) is None and not self.apart(m)):
            if self.find(n) is None:
                where, places = self.level(n)
                operand = self.emit(n, where)
                if places:
                    self.scopes[-1].fresh[n] = operand, where, places
                else:
                    self.scopes[where].memo[n] = operand
        return self.find(root) or ""

    def find(self, n: Node) -> str | None:
        if n.op is ops.CONST:
            return literal(n.arg, n.dtype)
        if n in self.scopes[-1].fresh:
            return self.scopes[-1].fresh[n][0]
        for scope in reversed(self.scopes):
            if n in scope.memo:
                return scope.memo[n]
        return None

    def level(self, n: Node) -> tuple[int, set[Place]]:
        """The outermost scope a node may be emitted in, and the written arrays it depends on."""
        if n.op is ops.RANGE:
            return self.levels[n], set()
        level, places = 0, set[Place]()
        for s in self.apart(n) or n.srcs:
            if s in self.scopes[-1].fresh:
                _, depth, more = self.scopes[-1].fresh[s]
                level, places = max(level, depth), places | more
            else:
                level = max(level, self.depth_of(s))
        if n.op is not ops.LOAD:
            return level, places
        place = n.arg[0] if isinstance(n.arg, tuple) else n.arg
        mutable = isinstance(place, str) or place in self.written
        places |= {place} if mutable else set()
        for depth in range(len(self.scopes) - 1, level, -1):
            scope = self.scopes[depth]
            if scope.solid or (mutable and place in scope.writes):
                return depth, places
        return level, places

    def depth_of(self, n: Node) -> int:
        if n.op is ops.CONST:
            return 0
        return next(i for i in range(len(self.scopes) - 1, -1, -1) if n in self.scopes[i].memo)

    def emit(self, n: Node, where: int) -> str:
        lines = self.scopes[where].lines
        lanes = n.shape[0] if n.shape else 0
        assert isinstance(lanes, int)

        def arg(s: Node) -> str:
            return self.find(s) or ""

        if n.op is ops.LOAD:
            return self.load(n, lanes, lines, arg)
        if n.op is ops.INPUT and isinstance(n.arg, Var):
            p, v = self.fresh(), self.fresh()
            lines.append(f"{p} = getelementptr i64, ptr %vars, i64 {self.variables[n.arg.name]}")
            lines.append(f"{v} = load i64, ptr {p}, align 8")
            return v
        if n.op is ops.MUL and not lanes and n.dtype is dtype.INDEX:
            name = self.fresh()
            if self.runs_along(n, where, name):
                return name
        sources = [Typed(arg(s), s.dtype, _lanes(s)) for s in n.srcs]
        if n.op is ops.DOT:
            return emit_dot(n, sources, Emitter(lines, self.fresh, self.declare, True), self.dot)
        return operation(n, sources, lines, self.fresh, self.declare, not self.exact)

    # --- memory ---

    def turns(self) -> Turns | None:
        """Those of the innermost loop around, if no loop stands in it."""
        return next((s.turns for s in reversed(self.scopes) if s.turns), None)

    def apart(self, n: Node) -> tuple[Node, ...]:
        """What the address of a load depends on, if that is emitted piece by piece."""
        if n.op is not ops.LOAD or isinstance(n.arg, tuple) or len(n.srcs) > 1:
            return ()
        if not self.turns() or n.shape and not contiguous(n.srcs[0]):
            return ()
        found = self.terms(base_of(n.srcs[0]) if n.shape else n.srcs[0])
        for a in found[1] if found else ():
            self.value(a)
        return found[1] if found else ()

    def terms(self, index: Node) -> tuple[Poly, tuple[Node, ...]] | None:
        """The terms of an index (see there) and what they are made of."""
        if index not in self.indices:
            found = terms(index)
            made = dict.fromkeys(a for mono in found for a in mono) if found else {}
            self.indices[index] = None if found is None else (found, tuple(made))
        return self.indices[index]

    def runs_along(self, n: Node, where: int, name: str) -> bool:
        """Whether a product of an innermost loop's turn became a register that runs along."""
        turns = self.scopes[where].turns
        for r, by in (n.srcs, n.srcs[::-1]):
            if turns and r is turns.loop and (by.op is ops.CONST or self.depth_of(by) < where):
                return turns.step(self.find(by) or "", name)
        return False

    def address(self, place: Place, index: Node, kind: str, lines: list[str]) -> str:
        """A pointer to an element, for `lines`."""
        def moved(to: list[str], p: str, by: Node) -> str:
            i = self.value_in(by, to)
            to.append(f"{(q := self.fresh())} = getelementptr {kind}, ptr {p}, i64 {i}")
            return q

        depth = next(i for i, s in enumerate(self.scopes) if s.lines is lines)
        loop = next((i for i in range(depth, -1, -1) if self.scopes[i].turns), 0)
        turns, found, p = self.scopes[loop].turns, self.terms(index), self.bases[place]
        if turns is None or found is None:
            return moved(lines, p, index)
        number, inner, outer = found[0].get((), 0), Poly(), dict[int, Poly]()
        depths = {a: (self.value_in(a, lines), self.depth_of(a))[1] for a in found[1]}
        for mono, c in found[0].items():
            if mono:
                at = max(depths[a] for a in mono)
                (inner if at >= loop else outer.setdefault(at, Poly()))[mono] = c
        for at, part in sorted(outer.items()):  # a pointer for each loop: LLVM would add it all up
            key = (p, kind, frozenset(part.items()))  # in the one that is next to the innermost
            if key not in turns.pointers:
                turns.pointers[key] = moved(self.scopes[at].lines, p, sym.as_node(sym.build(part)))
            p = turns.pointers[key]
        if inner:
            p = moved(lines, p, sym.as_node(sym.build(inner)))
        return moved(lines, p, sym.as_node(number)) if number else p

    def pointer(self, place: Place, index: Node, d: dtype.DType) -> str:
        return self.address(place, index, memory_type(d), self.scopes[-1].lines)

    def element_pointer(self, place: Place, index: Node, kind: str) -> str:
        k = index.srcs[0] if index.op is ops.EXPAND else index
        p = self.fresh()
        self.here(f"{p} = getelementptr {kind}, ptr {self.bases[place]}, i64 {self.value(k)}")
        return p

    def lane_index(self, index: Node, lane: int, lanes: int) -> str:
        scalar = at_lane(index, lane)
        if scalar is not None:
            return self.value(scalar)
        x = self.fresh()
        self.here(f"{x} = extractelement <{lanes} x i64> {self.value(index)}, i64 {lane}")
        return x

    def load(self, n: Node, lanes: int, lines: list[str], arg: _Operand) -> str:
        place = n.arg
        if isinstance(place, tuple):  # a register
            name, width = place
            kind = register_type(n.dtype, width)
            k = n.srcs[0].srcs[0] if n.srcs[0].op is ops.EXPAND else n.srcs[0]
            p, v = self.fresh(), self.fresh()
            lines.append(f"{p} = getelementptr {kind}, ptr {self.bases[name]}, i64 {k.arg}")
            lines.append(f"{v} = load {kind}, ptr {p}, align {_align(n.dtype, width)}")
            return v
        guard = n.srcs[1] if len(n.srcs) > 1 else None
        kind = memory_type(n.dtype)
        if not lanes:
            return self.load_scalar(n, guard, lines, arg)
        if guard is None and repeated(n.srcs[0]):
            return self.load_repeated(n, lanes, lines)
        if lanes_apart(n.srcs[0]) == 2 and lanes >= 4 and (
            guard is None or 0 < self.masked <= n.dtype.itemsize
        ):
            return self.load_every_second(n, lanes, guard, lines, arg)
        if not contiguous(n.srcs[0]):
            return self.load_lanes(n, lanes, guard, lines, arg)
        start = base_of(n.srcs[0])
        p, v = self.address(place, start, kind, lines), self.fresh()
        wide = f"<{lanes} x {kind}>"
        if guard is None:
            own = isinstance(place, str) and is_multiple(start, lanes)
            align = _align(n.dtype, lanes) if own else n.dtype.itemsize
            lines.append(f"{v} = load {wide}, ptr {p}, align {align}")
        else:
            v = self.load_masked(n, p, wide, f"<{lanes} x i1> {arg(guard)}", lines)
        return self.from_memory(v, n, lanes, lines)

    def load_every_second(
        self, n: Node, lanes: int, guard: Node | None, lines: list[str], arg: _Operand
    ) -> str:
        """Lanes two apart: the even places of one vector, and the odd ones of another that begins
        at its last place, so that nothing behind the last lane is touched."""
        kind = memory_type(n.dtype)
        wide, half = f"<{lanes} x {kind}>", lanes // 2
        e = Emitter(lines, self.fresh, self.declare, True)
        p = self.address(n.arg, base_of(n.srcs[0]), kind, lines)
        q = e.put(f"getelementptr {kind}, ptr {p}, i64 {lanes - 1}")
        parts = []
        for odd, at in enumerate((p, q)):
            if guard is None:
                parts.append(e.put(f"load {wide}, ptr {at}, align {n.dtype.itemsize}"))
                continue
            places = [f"i32 {odd * half + k // 2 if k % 2 == odd else lanes}"
                      for k in range(lanes)]  # fmt: skip
            mask = e.put(f"shufflevector <{lanes} x i1> {arg(guard)}, <{lanes} x i1> "
                         f"zeroinitializer, <{lanes} x i32> <{', '.join(places)}>")  # fmt: skip
            parts.append(self.load_masked(n, at, wide, f"<{lanes} x i1> {mask}", lines))
        order = [*range(0, lanes, 2), *range(lanes + 1, 2 * lanes, 2)]
        v = e.put(f"shufflevector {wide} {parts[0]}, {wide} {parts[1]}, <{lanes} x i32> "
                  f"<{', '.join(f'i32 {k}' for k in order)}>")  # fmt: skip
        return self.from_memory(v, n, lanes, lines)

    def load_repeated(self, n: Node, lanes: int, lines: list[str]) -> str:
        """A few bytes or words, again and again: as one number, copied to all lanes of it."""
        group, bits = repeated(n.srcs[0]), n.dtype.bits
        word, times, kind = f"i{bits * group}", lanes // group, memory_type(n.dtype)
        e = Emitter(lines, self.fresh, self.declare, True)
        p = self.address(n.arg, base_of(n.srcs[0]), kind, lines)
        v = e.put(f"load {word}, ptr {p}, align 1")
        one = e.put(f"insertelement <{times} x {word}> poison, {word} {v}, i64 0")
        all_ = e.put(f"shufflevector <{times} x {word}> {one}, <{times} x {word}> poison, "
                     f"<{times} x i32> zeroinitializer")  # fmt: skip
        values = e.put(f"bitcast <{times} x {word}> {all_} to <{lanes} x {kind}>")
        return self.from_memory(values, n, lanes, lines)

    def load_masked(self, n: Node, p: str, wide: str, mask: str, lines: list[str]) -> str:
        """Lanes under a mask, zeros elsewhere. Machines that cannot do it load lane by lane, so
        there it is first asked whether the mask leaves out any."""
        kind, size = mask.split("> ")[0] + ">", n.dtype.itemsize
        f = f"@llvm.masked.load.{_suffix(wide)}.p0"
        self.declare(f, f"declare {wide} {f}(ptr, i32, {kind}, {wide})")
        some = f"call {wide} {f}(ptr {p}, i32 {size}, {mask}, {wide} zeroinitializer)"
        v = self.fresh()
        if self.masked and size >= self.masked:
            lines.append(f"{v} = {some}")
            return v
        k = self.count = self.count + 1
        g = f"@llvm.vector.reduce.and.{_suffix(kind)}"
        self.declare(g, f"declare i1 {g}({kind})")
        lines += [
            f"%all{k} = call i1 {g}({mask})", f"br i1 %all{k}, label %yes{k}, label %no{k}",
            f"yes{k}:", f"%w{k} = load {wide}, ptr {p}, align {size}", f"br label %end{k}",
            f"no{k}:", f"%s{k} = {some}", f"br label %end{k}",
            f"end{k}:", f"{v} = phi {wide} [ %w{k}, %yes{k} ], [ %s{k}, %no{k} ]",
        ]  # fmt: skip
        return v

    def value_in(self, n: Node, lines: list[str]) -> str:
        """The operand of an index that `lines` may use (an address is known where its load is)."""
        found = self.find(n)
        if found is not None:
            return found
        depth = next(i for i, s in enumerate(self.scopes) if s.lines is lines)
        inner, self.scopes = self.scopes[depth + 1 :], self.scopes[: depth + 1]
        try:
            return self.value(n)
        finally:
            if inner:  # in these, arrays may be stored to
                self.scopes[-1].fresh = {}
            self.scopes = self.scopes + inner

    def load_scalar(
        self, n: Node, guard: Node | None, lines: list[str], arg: _Operand
    ) -> str:
        kind, v = memory_type(n.dtype), self.fresh()
        if self.apart(n):
            p = self.address(n.arg, n.srcs[0], kind, lines)
        else:
            i, p = arg(n.srcs[0]), self.fresh()
            if guard is not None:
                safe = self.fresh()
                lines.append(f"{safe} = select i1 {arg(guard)}, i64 {i}, i64 0")
                i = safe
            lines.append(f"{p} = getelementptr {kind}, ptr {self.bases[n.arg]}, i64 {i}")
        lines.append(f"{v} = load {kind}, ptr {p}, align {n.dtype.itemsize}")
        if guard is not None:
            kept = self.fresh()
            lines.append(f"{kept} = select i1 {arg(guard)}, {kind} {v}, {kind} {_zero(n.dtype)}")
            v = kept
        return self.from_memory(v, n, 0, lines)

    def load_lanes(
        self, n: Node, lanes: int, guard: Node | None, lines: list[str], arg: _Operand
    ) -> str:
        """Lanes that do not lie side by side are loaded one by one."""
        kind = memory_type(n.dtype)
        result = "zeroinitializer" if guard is not None else "poison"
        for lane in range(lanes):
            known = at_lane(guard, lane) if guard is not None else None
            if known is not None and is_const(known, False):
                continue
            checked = guard is not None and not (known is not None and is_const(known, True))
            scalar = at_lane(n.srcs[0], lane)
            if scalar is not None:
                i = self.value_in(scalar, lines)
            else:
                i = self.fresh()
                lines.append(f"{i} = extractelement <{lanes} x i64> {arg(n.srcs[0])}, i64 {lane}")
            if checked:
                assert guard is not None
                b, safe = self.fresh(), self.fresh()
                mask = arg(guard)
                lines.append(f"{b} = extractelement <{lanes} x i1> {mask}, i64 {lane}")
                lines.append(f"{safe} = select i1 {b}, i64 {i}, i64 0")
                i = safe
            p, v = self.fresh(), self.fresh()
            lines.append(f"{p} = getelementptr {kind}, ptr {self.bases[n.arg]}, i64 {i}")
            lines.append(f"{v} = load {kind}, ptr {p}, align {n.dtype.itemsize}")
            if checked:
                kept = self.fresh()
                lines.append(f"{kept} = select i1 {b}, {kind} {v}, {kind} {_zero(n.dtype)}")
                v = kept
            x = self.fresh()
            lines.append(f"{x} = insertelement <{lanes} x {kind}> {result}, {kind} {v}, i64 {lane}")
            result = x
        return self.from_memory(result, n, lanes, lines)

    def from_memory(self, v: str, n: Node, lanes: int, lines: list[str]) -> str:
        return element.load(v, n.dtype, lanes, lines, self.fresh)

    def to_memory(self, t: Typed) -> Typed:
        return element.store(t, self.scopes[-1].lines, self.fresh)


def _writes(body: list[Statement]) -> set[Place]:
    found: set[Place] = set()
    for s in body:
        if isinstance(s, Store):
            found.add(s.place)
        elif isinstance(s, For | Grid):
            found |= _writes(s.body)
        elif isinstance(s, If):
            found |= _writes(s.body) | _writes(s.orelse)
    return found


def _lanes(n: Node) -> int:
    return int(n.shape[0]) if n.shape else 0  # type: ignore[arg-type]


def _wide(n: Node | None, lanes: int) -> Node:
    assert n is not None
    return n if n.shape else make(ops.EXPAND, (n,), (lanes,))


def _align(d: dtype.DType, lanes: int) -> int:
    return min(d.itemsize * max(lanes, 1), 64)


def _suffix(kind: str) -> str:
    """<8 x float> -> v8f32, as intrinsics are named."""
    short = {"float": "f32", "double": "f64", "half": "f16"}
    n, _, t = kind.strip("<>").split(" ")
    return f"v{n}{short.get(t, t)}"


def _zero(d: dtype.DType) -> str:
    if memory_type(d) in ("float", "double"):
        return "0x" + struct.pack(">d", 0.0).hex()
    return "0xH0000" if memory_type(d) == "half" else "0"
