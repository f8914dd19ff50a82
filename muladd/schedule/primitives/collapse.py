"""collapse OUTER INNER: two axes that always occur as OUTER * n + INNER become one.

    collapse p0 p1    out[p0, p1] = b0[p0*50 + p1]  ->  out[p0] = b0[p0]   (p0<40, p1<50 -> p0<2000)

Must come before all other directives. Raises ScheduleError if some access tells the two apart.
"""

from __future__ import annotations

from dataclasses import replace

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

    loads: whether every load must see one axis too, not only every store.
    """
    whole = sym.axis(a.arg.name, sym.mul(a.arg.extent, b.arg.extent))
    axes: dict[Node, Dim] = {a: sym.div(whole, b.arg.extent), b: sym.mod(whole, b.arg.extent)}
    stages = []
    for s in kernel.stages:
        here = [x in (*s.axes, *s.reduced) for x in (a, b)]
        if here == [False, False]:
            stages.append(s)
            continue
        together = all(x in s.axes for x in (a, b)) or all(x in s.reduced for x in (a, b))
        if not all(here) or not together or not _adjacent(s.axes, s.reduced, a, b):
            return None
        if a not in kernel.shared and a in s.axes and s.name in kernel.kept():
            return None
        value = reaxis(s.value, axes, {})
        position = reindex(s.position, axes)
        if loads and _splits(value, whole, bool(s.reduced)):
            return None
        if isinstance(position, Node) and _splits(position, whole):
            return None
        swap = lambda xs: tuple(whole if x is a else x for x in xs if x is not b)  # noqa: E731
        stages.append(replace(s, axes=swap(s.axes), reduced=swap(s.reduced),
                              value=_fixed(value, whole, a, b, kernel),
                              position=position))  # fmt: skip
    shared = tuple(whole if x is a else x for x in kernel.shared if x is not b)
    return replace(kernel, stages=tuple(stages), shared=shared, _memo={})


def _adjacent(axes: tuple, reduced: tuple, a: Node, b: Node) -> bool:
    for xs in (axes, reduced):
        if a in xs:
            return xs.index(b) == xs.index(a) + 1
    return False


def _splits(value: Node, whole: Node, reads: bool = False) -> bool:
    """Whether the merged axis is still taken apart: outside the reads of other stages, or in these
    too (a sum reads them many times, and by vectors only where it does so along an axis)."""
    found = toposort((value,), into=lambda n: reads or n.op is not ops.READ)
    return any(n.op in (ops.DIV, ops.MOD) and not n.dtype.is_float and whole in toposort((n,))
               for n in found)  # fmt: skip


def _fixed(value: Node, whole: Node, a: Node, b: Node, kernel: Kernel) -> Node:
    """READs name every axis of the stage read: drop the index that was b's."""
    done: dict[Node, Node] = {}
    for n in toposort((value,)):
        srcs = tuple(done[s] for s in n.srcs)
        if n.op is ops.READ:
            source = kernel.stage(n.arg[0])
            if a in source.axes and b in source.axes:
                k = source.axes.index(b)
                at = list(srcs)
                at[source.axes.index(a)] = whole
                del at[k]
                done[n] = make(ops.READ, tuple(at), (n.arg[0], len(at)), n.dtype)
                continue
        done[n] = n if srcs == n.srcs else rebuild(n, srcs)
    return done[value]
