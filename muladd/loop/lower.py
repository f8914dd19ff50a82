"""Lowering: kernel + plan -> loops. The only place that knows how a plan becomes statements.

Tails are handled in one way everywhere. Where an axis is split by a factor that does not divide it,
the last turn overhangs: loops over whole turns come first, without conditions; the last turn masks
vector accesses to arguments, clamps the others, and skips stores outside. A kernel's own buffers
are padded, so they need neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import lcm

from muladd.errors import ScheduleError
from muladd.ir import Dim, Node, const, make, ops, sym, toposort
from muladd.loop.dots import dot, factors
from muladd.loop.interior import apart, choice, interior
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.limits import Limits, limits
from muladd.loop.nans import careless
from muladd.loop.padding import lies_in, padding
from muladd.loop.plan import Leaf, Plan, in_lanes
from muladd.loop.prefetch import ahead, claims, meanwhile
from muladd.loop.reach import reach, within
from muladd.loop.registers import both_masks, identity, joined, lowest, match, register, tree, wide
from muladd.loop.scatter import added
from muladd.loop.statements import (
    Array,
    Barrier,
    For,
    Grid,
    If,
    Lowered,
    Prefetch,
    Statement,
    Store,
    Threads,
)
from muladd.loop.together import together
from muladd.loop.vector import Known, at, spread, turns_of
from muladd.rewrite import expand_all

Values = dict[Node, Dim]  # loops with a fixed value (unrolled turns, the last turn of a split)
_Inside = Callable[[Values, frozenset], list[Statement]]  # what stands inside a loop


def lower(plan: Plan) -> Lowered:
    """The loops of a plan. Raises ScheduleError where the plan is not one of this kernel."""
    plan = replace(plan, kernel=written_out(plan.kernel))
    return _Lowering(in_lanes(plan) if plan.kernel.exact else plan).run()


def written_out(kernel: Kernel) -> Kernel:
    """The kernel with EXP2, LOG2, SIN and their like as the polynomials that they are."""
    values = expand_all(tuple(s.value for s in kernel.stages))
    stages = tuple(replace(s, value=v) for s, v in zip(kernel.stages, values))
    return replace(kernel, stages=stages, _memo={})


class _Lowering:
    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.kernel: Kernel = plan.kernel
        self.arrays: dict[str, Array] = {}
        self.known = Known()
        self.places = {a: plan.value(a) for a in plan.leaves}  # each axis in terms of its loops
        self.thread = sym.axis("thread", max(plan.group, 1))
        self.stages = {s.name: s for s in self.kernel.stages}
        self.common = {x.loop for a in self.kernel.shared for x in plan.leaves[a]}
        self.limits, self.careless = limits(self.kernel), careless(self.kernel)
        self.padded: dict[Stage, dict[Node, Limits]] = {}  # as far as asked for
        strides = [plan.leaves[a][0].stride for a in self.limits]
        self.grain = lcm(*strides) if strides else 1  # limits are rounded to it, all alike
        self.waiting: frozenset[str] = frozenset()  # stages with partial results in their buffers
        self.carried = frozenset((plan.decays or {}).values())
        self.strides = {s.name: self._storage(s) for s in self.kernel.stages}

    def run(self) -> Lowered:
        plan = self.plan
        body = self._level(0)
        if plan.group:
            body = [Threads(self.thread, 0, plan.group, body)]
        grid = plan.outer[: plan.parallel]
        size = sym.product(x.arg.extent for x in grid)
        return Lowered(self.kernel, [Grid(grid, body)], size, self.arrays)

    def _level(
        self, depth: int, values: Values | None = None, whole: frozenset = frozenset()
    ) -> list[Statement]:
        """What runs inside the first `depth` outer loops: stages of that level, then deeper.

        values: loops around that are at a known turn; whole: axes of which none overhangs there.
        """
        plan = self.plan
        if depth < plan.parallel:
            return self._level(plan.parallel)
        mine = [s for s in self.kernel.stages if s.name not in (plan.inside or {})
                and max(plan.levels[s.name], plan.parallel) == depth]  # fmt: skip
        out = together([self._stage(s, values, whole) for s in mine], self.common)
        if any(plan.levels[s.name] > depth for s in self.kernel.stages):
            loop = plan.outer[depth]
            if ("", loop) in plan.inline:
                turns = [{**(values or {}), loop: k} for k in range(loop.arg.extent)]
                return out + [x for v in turns for x in self._level(depth + 1, v, whole)]
            axis = apart(plan, loop)
            known = whole if axis is None else whole | {axis}
            stop = loop.arg.extent if axis is None else loop.arg.extent - 1
            body = self._level(depth + 1, values, known)
            out.append(For(loop, 0, stop, [*body, Barrier()] if plan.group else body))
            if axis is not None:  # the last turn, which overhangs
                out += self._level(depth + 1, {**(values or {}), loop: stop}, whole)
        return out

    # --- storage of stages that stay inside the kernel ---

    def _storage(self, s: Stage) -> list[tuple[Leaf, Node, int]]:
        """(leaf, axis, stride) of each loop that a stage's buffer has an extent for."""
        plan = self.plan
        fixed = set(plan.enclosing(s))
        loops = [(x, a) for a in s.axes for x in plan.leaves[a] if x.loop not in fixed]
        order = (plan.layouts or {}).get(s.name)
        if order:
            loops.sort(key=lambda la: order.index(la[0].loop))
        out: list[tuple[Leaf, Node, int]] = []
        stride = 1
        for x, a in reversed(loops):
            out.append((x, a, stride))
            extent = sym.bounds(x.extent)[1]
            if a not in self.kernel.shared and x is plan.leaves[a][0] and extent > 16:
                extent += -extent % 16 if x.stride > 1 else -extent % 128
                if stride * extent * s.dtype.itemsize % 4096 == 0:
                    extent += max(1, 16 // stride)  # rows of a buffer would share cache lines' sets
            stride *= max(extent, 1)
        if s.name in self.kernel.kept():
            beyond = max(64, self._overrun(s, out))
            self.arrays[s.name] = Array(s.name, s.dtype, stride + beyond, group=plan.group > 0)
            if s.name in self.carried:
                name = f"{s.name}.decay"
                self.arrays[name] = replace(self.arrays[s.name], name=name)
        return out

    def _overrun(self, s: Stage, storage: list[tuple[Leaf, Node, int]]) -> int:
        """Elements past its end that readers of a stage's buffer load in turns that overhang."""
        plan = self.plan
        first = {axis: (leaf, stride) for leaf, axis, stride in storage
                 if leaf is plan.leaves[axis][0]}  # fmt: skip
        most = 0
        for t in self.kernel.stages:
            ragged = {a for a in (*t.axes, *t.reduced) if plan.overhangs(a)}
            for r in t.reads() if ragged else ():
                if r.arg[0] != s.name:
                    continue
                far = 0
                for axis, index in zip(s.axes, r.srcs):
                    beyond = sum(plan.padding(a) for a in ragged & {*toposort((index,))})
                    if beyond and axis in first:
                        leaf, stride = first[axis]
                        last = (sym.bounds(axis.arg.extent)[1] - 1 + beyond) // leaf.stride
                        far += max(0, last + 1 - sym.bounds(leaf.extent)[1]) * stride
                most = max(most, far)
        return most

    def _slot(self, name: str, indices: tuple[Dim, ...], values: Values) -> Dim:
        """Where a stage's buffer holds the element at `indices` (one for each of its axes)."""
        s = self.stages[name]
        by_axis = dict(zip(s.axes, indices))
        terms = []
        for leaf, axis, stride in self.strides[name]:
            if axis in self.kernel.shared:
                part: Dim = values.get(leaf.loop, leaf.loop)
            else:
                part = sym.div(by_axis[axis], leaf.stride)
                if leaf is not self.plan.leaves[axis][0]:
                    part = sym.mod(part, leaf.extent)
            terms.append(sym.mul(part, stride))
        return sym.sum_of(terms)

    def _shared_turns(self, name: str, values: Values) -> tuple[Dim, ...]:
        """What `_slot` reads of values."""
        return tuple(values.get(leaf.loop, leaf.loop) for leaf, axis, _ in self.strides[name]
                     if axis in self.kernel.shared)  # fmt: skip

    # --- one stage ---

    def _stage(
        self, s: Stage, around: Values | None = None, whole: frozenset = frozenset()
    ) -> list[Statement]:
        """A stage, and where threads work together its threads and a barrier if others read it.

        around: values of the reader's loops that it is computed inside of; whole: axes of which
        no turn there overhangs.
        """
        if not self.plan.group:
            return self._turned(s, around or {}, whole)
        threads = self.plan.bound(s)
        values, active = self._decoded(threads)
        out = self._turned(s, {**(around or {}), **values}, whole)
        if active < self.plan.group:
            if any(self.plan.owner(x) in s.reduced for x in threads):
                raise ScheduleError(f"stage {s.name}: {active} threads of {self.plan.group} join")
            out = [If(sym.as_node(sym.less(self.thread, active)), out)]
        return [*out, Barrier()] if s.name in self.kernel.kept() else out

    def _turned(self, s: Stage, values: Values, whole: frozenset) -> list[Statement]:
        plan = self.plan
        fixed = set(plan.enclosing(s))
        needed = {x.loop for a in (*s.axes, *s.reduced) for x in plan.leaves[a]} - fixed
        nest = plan.nests[s.name]
        if set(nest) != needed:
            names = sorted(x.arg.name for x in needed ^ set(nest))
            raise ScheduleError(f"stage {s.name}: its nest lacks, or should not have, {names}")
        ragged = [a for a in s.axes if plan.overhangs(a) and plan.leaves[a][0].loop in fixed
                  and a not in whole and any(x.loop in nest for x in plan.leaves[a])]  # fmt: skip
        full = {a for a in (*s.axes, *s.reduced) if a in whole or not plan.overhangs(a)}
        if s.scatter:  # each turn adds to what is there, in the order of the loops
            s = replace(s, axes=(*s.reduced, *s.axes), reduced=(), reduction=None)
        elif not plan.group and not values:
            if (found := interior(plan, s, full)) is not None:
                chunk = self._ragged(found[1], values, ragged, found[2])
                return [If(found[0], chunk, self._ragged(s, values, ragged, full))]
            if (chosen := choice(plan, s)) is not None:
                return [If(chosen[0], *(self._turned(x, values, whole) for x in chosen[1:]))]
        return self._ragged(s, values, ragged, full)

    def _ragged(
        self, s: Stage, values: Values, ragged: list[Node], full: set[Node]
    ) -> list[Statement]:
        """A stage's own loops: without conditions where no axis of these overhangs, told by the
        loops around, and with them otherwise."""
        plan = self.plan
        fixed = set(plan.enclosing(s))
        nest = plan.nests[s.name]
        loops = [x for x in nest if x not in plan.bound(s)]
        if not ragged:
            return self._nest(s, loops, values, frozenset(full))
        condition: sym.Condition = True
        for a in ragged:
            last_turn = [values.get(x.loop, x.loop) if x.loop in fixed else sym.sub(x.extent, 1)
                         for x in plan.leaves[a]]  # fmt: skip
            end = sym.sum_of(sym.mul(t, x.stride) for t, x in zip(last_turn, plan.leaves[a]))
            condition = sym.both(condition, sym.less(end, a.arg.extent))
        if plan.group and self._meets(s):
            return self._nest(s, loops, values, frozenset(full))
        serial = [x for x in loops if self._serial(s, x)]
        if condition is not True and not self._touches_arguments(s):
            if any(plan.owner(x) in ragged for x in serial):
                return self._nest(s, loops, values, frozenset(full))  # only its loops end sooner
            condition = True
        inside = self._nest(s, loops, values, frozenset(full | set(ragged)))
        if condition is True:
            return inside
        last = self._nest(s, loops, values, frozenset(full))
        return [If(condition, inside, last)] if isinstance(condition, Node) else last

    def _serial(self, s: Stage, loop: Node) -> bool:
        """Whether a loop of a stage is a loop in the end."""
        plan = self.plan
        return not (plan.unrolls(s, loop) or plan.spreads(s, loop) or loop is plan.dots(s))

    def _touches_arguments(self, s: Stage) -> bool:
        return s.argument is not None or bool(s.loads())

    def _nest(
        self, s: Stage, loops: list[Node], values: Values, full: frozenset
    ) -> list[Statement]:
        """Serial loops outside in; then the unrolled and vector ones all at once."""
        plan = self.plan
        serial = [x for x in loops if self._serial(s, x)]
        if not serial:
            return self._reduce_body(s, loops, values, full, [])
        loop = serial[0]
        rest = [x for x in loops if x is not loop]
        if plan.owner(loop) in s.reduced:
            if any(plan.owner(x) not in s.reduced for x in serial):
                return self._blocked(s, loop, rest, values, full)
            return self._reduce_body(s, [x for x in loops if x not in serial], values, full, serial)
        return self._turns(s, loop, values, full, lambda v, f: self._nest(s, rest, v, f))

    def _turns(
        self, s: Stage, loop: Node, values: Values, full: frozenset, inside: _Inside
    ) -> list[Statement]:
        """A serial loop; whole turns apart from the last where the axis overhangs."""
        plan = self.plan
        axis = plan.owner(loop)
        leaves = plan.leaves[axis]
        n = axis.arg.extent
        leaf = next(x for x in leaves if x.loop is loop)
        if axis in full and (s.name, loop) in plan.inline:
            return [x for k in range(loop.arg.extent) for x in inside({**values, loop: k}, full)]
        if axis in full:
            start: Dim = 0
            stop: Dim = loop.arg.extent
            if leaf is leaves[0]:
                start, stop = self._limited(s, axis, leaf, stop, values)
            return [For(loop, start, stop, inside(values, full))]
        if leaf is leaves[0]:
            whole = sym.div(n, leaf.stride)
            start, stop = self._limited(s, axis, leaf, whole, values)
            out: list[Statement] = []
            if whole != 0:
                out = [For(loop, start, stop, inside(values, full | {axis}))]
            last = inside({**values, loop: whole}, full)
            rest = sym.both(sym.less(0, sym.mod(n, leaf.stride)),
                            self._reached(s, axis, leaf, whole, values))  # fmt: skip
            return out + (last if rest is True else [If(rest, last)] if rest is not False else [])
        before = sym.sum_of(
            sym.mul(values.get(x.loop, x.loop), x.stride) for x in leaves[: leaves.index(leaf)]
        )
        left = sym.div(sym.add(sym.sub(n, before), leaf.stride - 1), leaf.stride)
        sums = leaf.stride == 1 and axis in s.reduced
        inner = full | {axis} if sums else full  # the bound keeps every turn inside
        return [For(loop, 0, sym.minimum(left, loop.arg.extent), inside(values, inner))]

    def _limited(self, s: Stage, axis: Node, leaf: Leaf, stop: Dim, at: Values) -> tuple[Dim, Dim]:
        """The turns of an axis' outermost loop that a stage needs at all."""
        if axis not in self.limits:
            found = reach(self.plan, s, axis, self._padding(s))
            if found is None:
                return 0, stop
            end = sym.div(sym.add(sym.replace(found[1], at), leaf.stride - 1), leaf.stride)
            return sym.div(sym.replace(found[0], at), leaf.stride), sym.minimum(end, stop)
        low, high = (sym.replace(x, at) for x in within(self.plan, s, axis, self.limits[axis]))
        per = self.grain // leaf.stride
        start = sym.mul(sym.div(sym.maximum(low, 0), self.grain), per)
        end = sym.mul(sym.div(sym.add(sym.maximum(high, 0), self.grain - 1), self.grain), per)
        return sym.minimum(start, stop), sym.minimum(end, stop)

    def _padding(self, s: Stage) -> dict[Node, Limits]:
        """Where a sum has its terms that may not be zero; where threads stay together, anywhere."""
        if s not in self.padded:
            self.padded[s] = {} if self.plan.group else padding(self.kernel, s)
        return self.padded[s]

    def _reached(self, s: Stage, axis: Node, leaf: Leaf, turn: Dim, at: Values) -> sym.Condition:
        """Whether a stage needs the last turn, the one that overhangs."""
        if axis not in self.limits:
            found = reach(self.plan, s, axis, self._padding(s))
            end = None if found is None else sym.replace(found[1], at)
            return True if end is None else sym.less(sym.mul(turn, leaf.stride), end)
        high = sym.replace(within(self.plan, s, axis, self.limits[axis])[1], at)
        parts = sym.div(sym.add(sym.maximum(high, 0), self.grain - 1), self.grain)
        return sym.less(sym.mul(turn, leaf.stride), sym.mul(parts, self.grain))

    def _blocked(
        self, s: Stage, loop: Node, rest: list[Node], values: Values, full: frozenset
    ) -> list[Statement]:
        """A sum done a block at a time: the partial results wait in the stage's own buffer."""
        plan = self.plan
        beside = [x for x in rest if plan.spreads(s, x) or plan.unrolls(s, x)]
        if s.argument is not None or s.accumulator is not s.dtype or s.name not in self.arrays:
            raise ScheduleError(f"stage {s.name}: an output loop stands inside a reduced loop; "
                                "`keep` the stage first")  # fmt: skip
        if any(plan.owner(x) in s.reduced for x in beside):
            raise ScheduleError(f"stage {s.name}: lanes of a sum that is done block by block")
        out: list[Statement] = []
        inside = {name: own for name, (at, own) in (plan.inside or {}).items() if at is loop}
        abreast = [t for t in self.kernel.stages
                   if t.name in inside and plan.owner(inside[t.name]) in t.reduced]  # fmt: skip
        if s.name not in self.waiting:
            outputs = [x for x in rest if plan.owner(x) not in s.reduced]
            out = self._nest(self._empty(s), outputs, values, full)
            for t in abreast:
                out += self._filled(self._empty(t), values)
        before, self.waiting = self.waiting, self.waiting | {s.name, *(t.name for t in abreast)}
        out += self._turns(
            s, loop, values, full,
            lambda v, f: self._with_copies(loop, v, f, lambda: self._nest(s, rest, v, f)),
        )  # fmt: skip
        self.waiting = before
        for t in abreast:
            if t.name in self.carried:  # nothing at all was above the least
                found = make(ops.READ, t.axes, (t.name, len(t.axes)), t.dtype)
                least = make(ops.LT, (const(lowest(t.dtype), t.dtype), found))
                value = make(ops.WHERE, (least, found, identity(ops.AMAX, t.dtype)))
                out += self._filled(replace(t, value=value, reduction=None, reduced=()), values)
        return out

    def _filled(self, s: Stage, values: Values) -> list[Statement]:
        """A value for each result of a reduction, which writes nothing but its own buffer."""
        outputs = [x for x in self.plan.nests[s.name] if self.plan.owner(x) in s.axes]
        return self._nest(s, outputs, values, frozenset(s.axes))

    def _empty(self, s: Stage) -> Stage:
        """A stage that writes what a reduction starts from where its results will be.

        A maximum that sums are scaled for starts from a finite number, so that differences are.
        """
        assert s.reduction is not None
        start = identity(s.reduction, s.dtype)
        if s.name in self.carried:
            start = const(lowest(s.dtype), s.dtype)
        return replace(s, value=start, reduction=None, reduced=())

    def _reduce_body(
        self, s: Stage, lanes: list[Node], values: Values, full: frozenset, serial: list[Node]
    ) -> list[Statement]:
        plan = self.plan
        vector = next((x for x in lanes if plan.spreads(s, x)), None)
        unrolled = [x for x in lanes if plan.unrolls(s, x)]
        if not s.reduced:
            out: list[Statement] = []
            for turn in turns_of(unrolled, values):
                value = self._value(s, turn, full, vector)
                put = self._put(s, value, turn, full, vector)
                fetched = self._fetched(s, turn, full, vector)
                out = together([out, put], ()) if s.scatter else [*out, *fetched, *put]
            return out
        if any(plan.owner(x) not in s.reduced for x in serial):
            raise ScheduleError(f"stage {s.name}: an output loop stands inside a reduced loop")
        if plan.dots(s) is not None:
            return self._dotted(s, vector, unrolled, values, full, serial)
        return self._reduction(s, vector, unrolled, values, full, serial)

    def _dotted(
        self, s: Stage, vector: Node | None, unrolled: list[Node], values: Values,
        full: frozenset, serial: list[Node],
    ) -> list[Statement]:  # fmt: skip
        """One accumulator for each unrolled turn of the results; what is reduced and unrolled
        goes to the same instruction, which may add bytes' products up in 16 bits for a while."""
        plan, inner = self.plan, self.plan.dots(s)
        pairs = factors(s)
        if vector is None or inner is None or pairs is None or plan.owner(vector) in s.reduced:
            raise ScheduleError(f"stage {s.name}: `dot` wants a vector of results")
        if s.name in self.waiting or not {plan.owner(vector), plan.owner(inner)} <= full:
            raise ScheduleError(f"stage {s.name}: a `dot` in blocks, or one that overhangs")
        width = vector.arg.extent
        terms = [x for x in unrolled if plan.owner(x) in s.reduced]
        results = list(turns_of([x for x in unrolled if x not in terms], {}))
        name = f"{s.name}.acc{len(self.arrays)}"
        self.arrays[name] = Array(name, s.dtype, len(results), width)
        start = wide(identity(ops.SUM, s.dtype), width)
        out: list[Statement] = [Store(name, _at(k), start) for k in range(len(results))]

        def update(v: Values, f: frozenset) -> list[Statement]:
            body: list[Statement] = []
            for k, turn in enumerate(results):
                for term in turns_of(terms, {**v, **turn}):
                    fetched = self._fetched(s, {**term, inner: 0}, f, vector, True)
                    body += [x for x in fetched if x not in body]
                operands = [self._value(replace(s, value=x), term, f, None)
                            for term in turns_of(terms, {**v, **turn}) for p in pairs for x in p]
                total = dot(register(name, k, width, s.dtype), operands, vector, inner)
                body.append(Store(name, _at(k), total))
            return body

        out += self._reduced_loops(s, serial, values, full, update)
        for k, turn in enumerate(results):
            out += self._put(s, register(name, k, width, s.dtype), {**values, **turn}, full, vector)
        return out

    def _reduction(
        self, s: Stage, vector: Node | None, unrolled: list[Node], values: Values,
        full: frozenset, serial: list[Node],
    ) -> list[Statement]:  # fmt: skip
        """Accumulators in registers: one for each unrolled turn, lanes wide; a tree at the end."""
        plan, d = self.plan, s.accumulator
        assert s.reduction is not None
        width = vector.arg.extent if vector is not None else 0
        inner = [x for x in unrolled if plan.owner(x) in s.reduced]
        outer = [x for x in unrolled if x not in inner]
        turns = list(turns_of(outer + inner, {}))
        name = f"{s.name}.acc{len(self.arrays)}"
        self.arrays[name] = Array(name, d, len(turns), max(width, 1))
        start = wide(identity(s.reduction, d), width)
        waits = s.name in self.waiting
        beside = bool(inner) or (vector is not None and plan.owner(vector) in s.reduced)
        at_first = {**values, vector: 0} if vector is not None else values
        out: list[Statement] = [*claims(self.plan, s, self.places, [*turns_of(outer, at_first)])]
        out += [
            Store(name, _at(k), self._partial(s, {**values, **turn}, vector)
                  if waits and not beside else start)
            for k, turn in enumerate(turns)
        ]  # fmt: skip

        def update(v: Values, f: frozenset) -> list[Statement]:
            body: list[Statement] = []
            for k, turn in enumerate(turns):
                if lies_in(self._padding(s), self.places, {**v, **turn}):
                    continue
                fetched = self._fetched(s, {**v, **turn}, f, vector, True)
                body += [x for x in fetched if x not in body]
                accumulator = make(ops.LOAD, (_at(k),), (name, width), d)
                if width:
                    accumulator = make(
                        ops.LOAD, (make(ops.EXPAND, (_at(k),), (width,)),), (name, width), d
                    )
                new = self._accumulate(s, accumulator, {**v, **turn}, f, vector)
                body.append(Store(name, _at(k), new))
            return body

        out.extend(self._reduced_loops(s, serial, values, full, update))
        per = len(turns) // max(len(list(turns_of(outer, {}))), 1)
        for j, turn in enumerate(turns_of(outer, values)):
            parts = [register(name, j * per + k, width, d) for k in range(per)]
            total = tree(s.reduction, parts)
            across = vector if vector is not None and plan.owner(vector) not in s.reduced else None
            if vector is not None and across is None:
                total = make(s.reduction, (total,), (0,))
            if waits and beside:
                op = ops.ADD if s.reduction is ops.SUM else ops.MAX
                total = make(op, (self._partial(s, turn, across), total))
            first, total = self._joined(s, total, out)
            if s.dtype is not d:
                total = make(ops.CAST, (total,), None, s.dtype)
            put = self._put(s, total, turn, full, across)
            out.extend([If(first, put)] if isinstance(first, Node) else put)
        return out

    def _partial(self, s: Stage, values: Values, vector: Node | None) -> Node:
        """What a sum done block by block has come to, at one turn."""
        at_turn = tuple(sym.replace(self.places[a], values) for a in s.axes)
        slot = sym.as_node(self._slot(s.name, at_turn, values))
        found = make(ops.LOAD, (slot,), s.name, s.dtype)
        if s.name in (self.plan.decays or {}):
            m = self.stages[(self.plan.decays or {})[s.name]]
            row = tuple(sym.replace(self.places[a], values) for a in m.axes)
            at_row = sym.as_node(self._slot(m.name, row, values))
            scale = make(ops.LOAD, (at_row,), f"{m.name}.decay", m.dtype)
            found = make(ops.MUL, (found, scale))
        return spread(found, vector, self.known)

    def _reduced_loops(
        self, s: Stage, serial: list[Node], values: Values, full: frozenset, update: _Inside
    ) -> list[Statement]:
        if not serial:
            return [*self._meanwhile(s, values), *update(values, full)]
        return self._turns(
            s, serial[0], values, full,
            lambda v, f: self._with_copies(
                serial[0], v, f, lambda: self._reduced_loops(s, serial[1:], v, f, update)),
        )  # fmt: skip

    # --- threads of a group ---

    def _meets(self, s: Stage) -> bool:
        """Whether barriers stand inside of a stage; drivers like them under no condition."""
        return any(self.plan.owner(x) in s.reduced for x in self.plan.bound(s)) or any(
            outside in self.plan.nests[s.name] for outside, _ in (self.plan.inside or {}).values()
        )

    def _decoded(self, loops: tuple[Node, ...]) -> tuple[Values, int]:
        """What turn of each bound loop a thread has, and how many threads have one."""
        values: Values = {}
        size = 1
        for x in reversed(loops):
            values[x] = sym.mod(sym.div(self.thread, size), x.arg.extent)
            size *= x.arg.extent
        return values, size

    def _joined(self, s: Stage, total: Node, out: list[Statement]) -> tuple[sym.Condition, Node]:
        """Partial results of threads joined, halves pairwise, as the exact profile says. Gives who
        has the result, and where it is."""
        count = sym.product(x.arg.extent for x in self.plan.bound(s)
                            if self.plan.owner(x) in s.reduced)  # fmt: skip
        if s.reduction is None or not isinstance(count, int) or count == 1:
            return True, total
        name, d = f"{s.name}.part{len(self.arrays)}", total.dtype
        self.arrays[name] = Array(name, d, self.plan.group + count // 2, group=True)
        mine, lane = sym.as_node(self.thread), sym.mod(self.thread, count)
        op = ops.ADD if s.reduction is ops.SUM else ops.MAX
        out += [Store(name, mine, total), Barrier()]
        own = make(ops.LOAD, (mine,), name, d)
        while count > 1:
            count //= 2
            other = make(ops.LOAD, (sym.as_node(sym.add(self.thread, count)),), name, d)
            first = sym.less(lane, count)
            store: Statement = Store(name, mine, make(op, (own, other)))
            out += [If(first, [store]) if isinstance(first, Node) else store, Barrier()]
        return sym.less(lane, 1), own

    def _with_copies(
        self, loop: Node, values: Values, full: frozenset, body: Callable[[], list[Statement]]
    ) -> list[Statement]:
        """One turn of a reduced loop, after the stages that are computed in it."""
        made: list[Statement] = []
        plan = self.plan
        axis = plan.owner(loop)
        for s in self.kernel.stages:
            outside, own = (plan.inside or {}).get(s.name, (None, loop))
            if outside is loop:
                whole = full | {plan.owner(own)} if axis in full else full
                made += self._stage(s, {own: values.get(loop, loop)}, whole)
        return [*made, *body(), Barrier()] if made and plan.group else made + body()

    def _accumulate(
        self, s: Stage, accumulator: Node, values: Values, full: frozenset, vector: Node | None
    ) -> Node:
        value = self._value(s, values, full, vector)
        masks = [self._inside(a, values, vector) for a in s.reduced if a not in full]
        new = joined(s, accumulator, value, self.kernel.exact, s.name in self.careless)
        for m in masks:
            if m is not True:
                new = make(ops.WHERE, (match(m, new), new, accumulator))
        return new

    def _fetched(
        self, s: Stage, values: Values, full: frozenset, vector: Node | None, vectors: bool = False
    ) -> list[Prefetch]:
        """What is asked of memory before a turn of a stage, for a later one."""
        return ahead(self.plan, s, values, lambda at: self._value(s, at, full, vector), vectors)

    def _meanwhile(self, s: Stage, values: Values) -> list[Prefetch]:
        """What a term of a sum asks of memory for its copy."""
        return meanwhile(self.plan, s, values, lambda copy, at: self._value(
            copy, at, frozenset((*copy.axes, *copy.reduced)), None))  # fmt: skip

    # --- expressions ---

    def _inside(self, axis: Node, values: Values, vector: Node | None) -> Node | bool:
        """axis < extent at the current turn: a bool, a scalar, or one bool for each lane."""
        value = sym.replace(self.places[axis], values)
        condition = sym.less(value, axis.arg.extent)
        return condition if isinstance(condition, bool) else spread(condition, vector, self.known)

    def _value(self, s: Stage, values: Values, full: frozenset, vector: Node | None) -> Node:
        """The stage's value with loops for axes, buffers for stages, and safe loads."""
        plan = self.plan
        exact: dict[Node, Dim] = {}
        clamped: dict[Node, Dim] = {}
        masks: dict[Node, Node | bool] = {}
        for a in (*s.axes, *s.reduced):
            exact[a] = clamped[a] = sym.replace(self.places[a], values)
            if a in full:
                continue
            wide = vector is not None and plan.owner(vector) is a
            if wide:
                masks[a] = sym.less(exact[a], a.arg.extent)
            else:
                clamped[a] = sym.minimum(exact[a], sym.sub(a.arg.extent, 1))
        return at(s.value, exact, clamped, masks, vector, lambda n, i: self._slot(n, i, values),
                  self.known, lambda n: self._shared_turns(n, values))  # fmt: skip

    def _put(
        self, s: Stage, value: Node, values: Values, full: frozenset, vector: Node | None
    ) -> list[Statement]:
        """Store a value in the stage's buffer, and in its argument if it leaves the kernel."""
        out: list[Statement] = []
        plan = self.plan
        axes = {a: sym.replace(self.places[a], values) for a in s.axes}
        width = vector.arg.extent if vector is not None else 0
        value = wide(value, width) if not value.shape else value
        if s.name in self.arrays:
            slot = self._slot(s.name, tuple(axes[a] for a in s.axes), values)
            if s.name in self.carried and s.name in self.waiting:
                out.append(self._decay(s, value, slot, vector))
            out.append(Store(s.name, spread(sym.as_node(slot), vector, self.known), value))
        if s.argument is not None:
            guard: Node | None = None
            for a in s.axes:
                if a in full:
                    continue
                inside = self._inside(a, values, vector)
                if inside is False:
                    return out
                if isinstance(inside, Node):
                    guard = inside if guard is None else both_masks(guard, inside, width)
            if s.scatter:
                if vector is not None and plan.owner(vector) in self.stages[s.name].reduced:
                    raise ScheduleError(f"stage {s.name}: lanes that may add to one place")
                index = self._value(replace(s, value=sym.as_node(s.position)), values, full, vector)
                size = self.kernel.arguments[s.argument].size
                return added(s, index, value, guard, width, size)
            place = spread(sym.as_node(sym.replace(s.position, axes)), vector, self.known)
            out.append(Store(s.argument, place, value, guard,
                             s.name in plan.nontemporal))  # fmt: skip
        return out

    def _decay(self, s: Stage, value: Node, slot: Dim, vector: Node | None) -> Statement:
        """By how much what was summed under the maximum so far is too large under the next."""
        if vector is not None:
            raise ScheduleError(f"stage {s.name}: lanes of a maximum that sums are scaled for")
        at_row = sym.as_node(slot)
        before = make(ops.LOAD, (at_row,), s.name, s.dtype)
        difference = make(ops.ADD, (before, make(ops.MUL, (value, const(-1, s.dtype)))))
        return Store(f"{s.name}.decay", at_row, expand_all((make(ops.EXP, (difference,)),))[0])


def _at(k: int) -> Node:
    return sym.as_node(k)


__all__ = ["identity", "lower", "toposort"]
