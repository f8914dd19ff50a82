"""collapse OUTER INNER: two axes that always occur as OUTER * n + INNER become one.

    collapse p0 p1    out[p0, p1] = b0[p0*50 + p1]  ->  out[p0] = b0[p0]   (p0<40, p1<50 -> p0<2000)

Must come before all other directives. Raises ScheduleError if some access tells the two apart.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from muladd.errors import ScheduleError
from muladd.ir import Dim, Node, make, ops, rebuild, sym, toposort
from muladd.loop.kernel import Kernel, reaxis, reindex
from muladd.loop.plan import Plan, plain
from muladd.schedule.primitives import loop_named


def apply(plan: Plan, outer: str, inner: str) -> Plan:
    new = collapsed(plan.kernel, loop_named(plan, outer), loop_named(plan, inner))
    if new is None:
        raise ScheduleError(f"collapse: {outer} and {inner} are not one axis to every access")
    return plain(new)


def collapsed(kernel: Kernel, a: Node, b: Node, loads: bool = True) -> Kernel | None:
    """The kernel with axes a and b merged into one named like a, or None if that cannot be.

    Where a stage reads another by two of these axes, both pairs become one axis. If that cannot be,
    a stage that nobody reads here takes what it reads apart again.
    loads: whether every load must see one axis too, not only every store.
    """
    pairs = _joined(kernel, a, b)
    found = _merged(kernel, pairs, loads) if pairs else None
    kept = any(a in s.axes and s.name in kernel.kept() for s in kernel.stages)
    if found is not None or pairs == [(a, b)] or kept and a not in kernel.shared:
        return found
    return _merged(kernel, [(a, b)], loads)


def _merged(kernel: Kernel, pairs: list[tuple[Node, Node]], loads: bool) -> Kernel | None:
    """The kernel with each pair as one axis, or None if an access tells one apart."""
    wholes = {x: sym.axis(x.arg.name, sym.mul(x.arg.extent, y.arg.extent)) for x, y in pairs}
    axes: dict[Node, Dim] = {}
    for x, y in pairs:
        axes |= {x: sym.div(wholes[x], y.arg.extent), y: sym.mod(wholes[x], y.arg.extent)}
    stages, gone = [], {y for _, y in pairs}
    for s in kernel.stages:
        mine = [(x, y) for x, y in pairs if x in s.axes or x in s.reduced or y in s.axes
                or y in s.reduced]  # fmt: skip
        if not all(_adjacent(xs, x, y) for x, y in mine
                   for xs in [s.axes if x in s.axes or y in s.axes else s.reduced]):  # fmt: skip
            return None
        if any(x in s.reduced for x, _ in mine) and s.lanes > 1:  # whose order is laid down
            return None
        if not mine:
            stages.append(s)
            continue
        value = reaxis(_merged_reads(s.value, pairs, wholes, kernel), axes, {})
        position = reindex(s.position, axes)
        for whole in [wholes[x] for x, _ in mine]:
            if loads and _splits(value, whole, bool(s.reduced)):
                return None
            if isinstance(position, Node) and _splits(position, whole):
                return None
        swap = lambda xs: tuple(wholes.get(x, x) for x in xs if x not in gone)  # noqa: E731
        stages.append(replace(s, axes=swap(s.axes), reduced=swap(s.reduced), value=value,
                              position=position))  # fmt: skip
    left = tuple(wholes.get(x, x) for x in kernel.shared if x not in gone)
    return replace(kernel, stages=tuple(stages), shared=left, _memo={})


def _joined(kernel: Kernel, a: Node, b: Node) -> list[tuple[Node, Node]] | None:
    """The pair, and all that must be merged with it; None if one of these is no pair of axes."""
    pairs = [(a, b)]
    for x, y in pairs:  # which grow meanwhile
        for s in kernel.stages:
            own = {*s.axes, *s.reduced}
            for n in s.reads():
                source = kernel.stage(n.arg[0]).axes
                if x not in source and x not in n.srcs:
                    continue
                for axes, at in zip(pairwise(source), pairwise(n.srcs)):
                    if (x, y) not in (axes, at):
                        continue
                    other = at if axes == (x, y) else axes
                    alike = [p.op is ops.RANGE and p.arg.extent == q.arg.extent
                             for p, q in zip(other, (x, y))]  # fmt: skip
                    if other in pairs:
                        continue
                    taken = any(p in pair for p in other for pair in pairs)
                    if not all(alike) or taken or not own.issuperset(at):
                        return None
                    pairs.append(other)
    return pairs


def _adjacent(axes: tuple[Node, ...], x: Node, y: Node) -> bool:
    return x in axes and axes[axes.index(x) + 1 :][:1] == (y,)


def _splits(value: Node, whole: Node, reads: bool = False) -> bool:
    """Whether the merged axis is still taken apart: outside the reads of other stages, or in these
    too (a sum reads them many times, and by vectors only where it does so along an axis)."""
    found = toposort((value,), into=lambda n: reads or n.op is not ops.READ)
    return any(n.op in (ops.DIV, ops.MOD) and not n.dtype.is_float and whole in toposort((n,))
               for n in found)  # fmt: skip


def _merged_reads(
    value: Node, pairs: list[tuple[Node, Node]], wholes: dict[Node, Node], kernel: Kernel
) -> Node:
    """READs name every axis of the stage read: where two become one, so do their indices."""
    done: dict[Node, Node] = {}
    for n in toposort((value,)):
        srcs = tuple(done[s] for s in n.srcs)
        if n.op is ops.READ:
            source, at = kernel.stage(n.arg[0]).axes, list(srcs)
            for k in reversed(range(len(source) - 1)):
                if source[k : k + 2] in pairs:
                    at[k : k + 2] = [wholes[n.srcs[k]]]
            done[n] = make(ops.READ, tuple(at), (n.arg[0], len(at)), n.dtype)
            continue
        done[n] = n if srcs == n.srcs else rebuild(n, srcs)
    return done[value]
