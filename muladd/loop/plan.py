"""A plan is how to compute: the loops of each stage of a kernel, as plain data.

Every axis is made of *leaves* (loops): value = sum of leaf * stride, the outermost leaf first. The
leaves of shared axes that stand in `outer` are loops around stages; a stage is computed inside the
first `level` of them, and its own nest runs over whatever leaves it needs that are not fixed yet.
Schedule primitives are functions from plan to plan; `lower` turns the final plan into loops.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from muladd.errors import ScheduleError
from muladd.ir import Dim, Node, sym
from muladd.loop.kernel import Kernel, Stage


@dataclass(frozen=True)
class Leaf:
    loop: Node  # a RANGE
    stride: int

    @property
    def extent(self) -> Dim:
        return self.loop.arg.extent


@dataclass(frozen=True)
class Plan:
    """The loops of a kernel. Immutable; `replace` makes variants."""

    kernel: Kernel
    leaves: dict[Node, tuple[Leaf, ...]]  # axis -> its leaves, outermost first
    outer: tuple[Node, ...]  # loops around stages, outermost first
    parallel: int  # how many of `outer` form the grid
    nests: dict[str, tuple[Node, ...]]  # stage -> its own loops, outermost first
    levels: dict[str, int]  # stage -> how many of `outer` it is inside
    vector: frozenset[tuple[str, Node]] = frozenset()  # (stage, loop)
    unroll: frozenset[tuple[str, Node]] = frozenset()  # (stage, loop)
    inline: frozenset[tuple[str, Node]] = frozenset()  # (stage, or "" where it is outer, loop)
    layouts: dict[str, tuple[Node, ...]] | None = None  # stage -> order of its buffer's loops
    nontemporal: frozenset[str] = frozenset()
    threads: dict[str, tuple[Node, ...]] | None = None  # stage -> loops on the threads of a group
    dotted: frozenset[tuple[str, Node]] = frozenset()  # (stage, loop): see the directive `dot`
    ahead: dict[str, tuple[Node, int]] | None = None  # copy -> the loop and turns it looks ahead
    meanwhile: dict[str, tuple[tuple[str, Node], ...]] | None = None  # sum -> for whom it looks on
    claims: dict[str, tuple[str, ...]] | None = None  # sum -> stages whose lines it asks for
    inside: dict[str, tuple[Node, Node]] | None = None  # stage -> its reader's loop, and its own
    decays: dict[str, str] | None = None  # sum -> the maximum which it is scaled for as that grows
    lines: tuple[str, ...] = ()  # the directives that made it: they make it again

    def owner(self, loop: Node) -> Node:
        return next(a for a, ls in self.leaves.items() if any(x.loop is loop for x in ls))

    def value(self, axis: Node) -> Dim:
        """The axis in terms of its leaves."""
        return sym.sum_of(sym.mul(x.loop, x.stride) for x in self.leaves[axis])

    def enclosing(self, stage: Stage) -> tuple[Node, ...]:
        copied = (self.inside or {}).get(stage.name)
        return self.outer[: self.levels[stage.name]] + (copied[1:] if copied else ())

    def bound(self, stage: Stage) -> tuple[Node, ...]:
        """The loops of a stage whose turns are the threads of a group, the last one fastest."""
        return (self.threads or {}).get(stage.name, ())

    @property
    def group(self) -> int:
        """Threads that do a point of the grid together; 0 where one thread does it alone."""
        bound = (self.threads or {}).values()  # loops of known sizes
        return max((prod(x.arg.extent for x in loops) for loops in bound), default=0)

    def unrolls(self, stage: Stage, loop: Node) -> bool:
        """Whether a stage has the turns of a loop written out."""
        return (stage.name, loop) in self.unroll

    def spreads(self, stage: Stage, loop: Node) -> bool:
        """Whether a stage runs the turns of a loop as vector lanes."""
        return (stage.name, loop) in self.vector

    def dots(self, stage: Stage) -> Node | None:
        """The loop of a stage whose turns one instruction multiplies and adds, if there is one."""
        return next((x for name, x in self.dotted if name == stage.name), None)

    def overhangs(self, axis: Node) -> bool:
        """Whether the last turn of the outermost leaf may run past the axis' extent."""
        first = self.leaves[axis][0]
        if first.stride == 1:
            return False
        return sym.mod(axis.arg.extent, first.stride) != 0

    def padding(self, axis: Node) -> int:
        """How many elements past an axis' greatest extent its last turn reaches. (Where an extent
        is symbolic there is such a turn even if the greatest divides: nobody says it is not run.)
        """
        most, stride = sym.bounds(axis.arg.extent)[1], int(self.leaves[axis][0].stride)
        beyond = -most % stride
        return beyond if beyond or isinstance(axis.arg.extent, int) else stride

    def text(self) -> str:
        """The plan in words: one line for the shared loops, one for each stage."""
        lines = [f"grid {' '.join(self._loop(x) for x in self.outer[: self.parallel]) or '1'}"]
        rest = self.outer[self.parallel :]
        if rest:
            lines.append(f"loop {' '.join(map(self._loop, rest))}")
        for s in self.kernel.stages:
            nest = " ".join(self._loop(x, s.name) for x in self.nests[s.name])
            extra = " nontemporal" * (s.name in self.nontemporal)
            if s.name in (self.ahead or {}):
                loop, turns = (self.ahead or {})[s.name]
                extra += f" ahead {loop.arg.name}+{turns}"
            for reader, loop in (self.meanwhile or {}).get(s.name, ()):
                extra += f" prefetch {reader} {loop.arg.name}"
            extra += "".join(f" claim {name}" for name in (self.claims or {}).get(s.name, ()))
            lines.append(f"{s.name} at {self.levels[s.name]}: {nest}{extra}")
        return "\n".join(lines)

    def _loop(self, loop: Node, stage: str = "") -> str:
        if loop in (self.threads or {}).get(stage, ()):
            return f"{loop.arg.name}<{loop.arg.extent}*t"
        mark = (
            "*v" if (stage, loop) in self.vector else "*u" if (stage, loop) in self.unroll
            else "*d" if (stage, loop) in self.dotted
            else "*i" if (stage, loop) in self.inline else ""
        )
        return (
            f"{loop.arg.name}<{loop.arg.extent if isinstance(loop.arg.extent, int) else '?'}{mark}"
        )


def plain(kernel: Kernel) -> Plan:
    """The plan without any decision: every axis one loop, all shared loops parallel."""
    leaves: dict[Node, tuple[Leaf, ...]] = {}
    for s in kernel.stages:
        for a in (*kernel.shared, *s.axes, *s.reduced):
            leaves[a] = (Leaf(a, 1),)
    outer = kernel.shared
    nests = {s.name: (*kernel.free_axes(s), *s.reduced) for s in kernel.stages}
    return Plan(
        kernel, leaves, outer, len(outer), nests, {s.name: len(outer) for s in kernel.stages}
    )


def in_lanes(plan: Plan) -> Plan:
    """The plan with the lanes that the exact profile prescribes, where it has not chosen a way.

    A stage of 64 lanes must run 64 turns of its innermost reduced axis side by side (as vectors or
    written out), so that each has a partial result. Raises ScheduleError for another number.
    """
    for s in plan.kernel.stages:
        if s.lanes == 1 or not s.reduced:
            continue
        leaves = plan.leaves[s.reduced[-1]]
        beside = [x for x in leaves if plan.spreads(s, x.loop) or plan.unrolls(s, x.loop)
                  or x.loop in plan.bound(s)]  # fmt: skip
        count = sym.product(x.extent for x in beside)
        if not beside and len(leaves) == 1:
            name = leaves[0].loop.arg.name
            plan = split(plan, leaves[0].loop, (s.lanes,), (f"{name}.0", f"{name}.lane"))
            lane = plan.leaves[s.reduced[-1]][-1].loop
            plan = replace(plan, unroll=plan.unroll | {(s.name, lane)})
        elif count != s.lanes:
            raise ScheduleError(
                f"plan: stage {s.name} runs {count} turns of its innermost reduced "
                f"axis side by side; exact arithmetic wants {s.lanes}"
            )
    return plan


def split(plan: Plan, loop: Node, factors: tuple[int, ...], names: tuple[str, ...]) -> Plan:
    """Replace one loop by len(factors) + 1 loops; factors are the inner extents, outermost first.

    The outermost new loop runs over the extent divided by the product, rounded up. Only an axis as
    a whole may end within a turn, so an inner loop's factors divide it. Raises ScheduleError.
    """
    axis = plan.owner(loop)
    old = plan.leaves[axis]
    at = next(i for i, x in enumerate(old) if x.loop is loop)
    if at and sym.mod(loop.arg.extent, prod(factors)) != 0:
        raise ScheduleError(f"split: {loop.arg.name} is an inner loop of {loop.arg.extent} turns; "
                            f"expected factors whose product divides that, not {factors}")
    stride = old[at].stride
    inner = 1
    new: list[Leaf] = []
    for f, name in zip(reversed(factors), reversed(names[1:])):
        new.append(Leaf(sym.axis(name, f), stride * inner))
        inner *= f
    outer = sym.div(sym.add(old[at].extent, inner - 1), inner)
    new.append(Leaf(sym.axis(names[0], outer), stride * inner))
    new.reverse()
    loops = tuple(x.loop for x in new)
    def exchange(seq: tuple[Node, ...]) -> tuple[Node, ...]:
        return tuple(y for x in seq for y in (loops if x is loop else (x,)))

    grown = lambda n: n + len(factors) * (loop in plan.outer[:n])  # noqa: E731
    return replace(
        plan,
        leaves={**plan.leaves, axis: (*old[:at], *new, *old[at + 1 :])},
        outer=exchange(plan.outer),
        parallel=grown(plan.parallel),
        nests={k: exchange(v) for k, v in plan.nests.items()},
        levels={k: grown(v) for k, v in plan.levels.items()},
    )
