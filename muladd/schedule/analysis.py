"""What a schedule needs to know about a kernel: how each access moves along each axis."""
from __future__ import annotations

from dataclasses import dataclass
from math import prod

from muladd.ir import Dim, Node, ops, sym, toposort
from muladd.loop.kernel import Kernel, Stage

FAR = 1 << 30  # stands for a stride that is symbolic or irregular

# The cost of vectors along an axis: of each access whose lanes do not lie side by side, each store
# that all lanes join in, where no access has lanes side by side, where the stage's own buffer has
# them apart, and of lanes that stay empty.
STRIDED, _JOINED, _ALL_STRIDED, _APART, _EMPTY = 8.0, 0.5, 4.0, 4.0, 24.0
_LEAST_LANES = 4
# nodes that stand for one in the end
_WRITTEN_OUT = {ops.EXP: 49, ops.EXP2: 45, ops.LOG2: 61, ops.SIN: 97, ops.COS: 97}


@dataclass(frozen=True)
class Access:
    """One load or store: its argument (or stage), and its index."""

    place: int | str
    index: Dim
    itemsize: int
    store: bool = False
    guarded: bool = False

    def stride(self, axis: Node) -> int:
        """Elements between neighbours along an axis; 0 if it does not matter, FAR if irregular."""
        return stride(self.index, axis)


def stride(index: Dim, axis: Node) -> int:
    if isinstance(index, int):
        return 0
    if axis not in toposort((index,)):
        return 0
    total = 0
    for mono, c in sym.poly(index).items():
        if mono == (axis,):
            total += c
        elif any(axis is a or axis in toposort((a,)) for a in mono):
            return FAR
    return total


def accesses(kernel: Kernel, stage: Stage) -> list[Access]:
    """Everything a stage loads and stores, its stores last. Buffers of stages are row-major."""
    found = []
    for n in stage.loads():
        found.append(Access(n.arg, sym.as_dim(n.srcs[0]), n.dtype.itemsize,
                            guarded=len(n.srcs) > 1))  # fmt: skip
    for r in stage.reads():
        source = kernel.stage(r.arg[0])
        free = [i for i, a in zip(r.srcs, source.axes) if a not in kernel.shared]
        sizes = [a.arg.extent for a in kernel.free_axes(source)]
        at = sym.flatten([sym.as_dim(i) for i in free], sizes)
        found.append(Access(r.arg[0], at, r.dtype.itemsize))
    if stage.argument is not None:
        found.append(Access(stage.argument, stage.position, stage.dtype.itemsize, store=True))
    return found


def extent(axis: Node) -> int:
    """The most turns an axis can have."""
    return sym.bounds(axis.arg.extent)[1]


def size(axes: tuple[Node, ...] | list[Node]) -> int:
    return prod(map(extent, axes))


def operations(stage: Stage) -> int:
    """Nodes of a stage's value, of what is not yet written out as many as it will have."""
    return sum(_WRITTEN_OUT.get(n.op, 1) for n in toposort((stage.value,)))


def work(stage: Stage) -> int:
    """Iterations of a stage."""
    return size((*stage.axes, *stage.reduced))


def cost_of_lanes(
    kernel: Kernel, stage: Stage, axis: Node, known: set[Access] | None = None
) -> float:
    """How badly a stage's accesses suit vectors along an axis: 0 is best. What is `known` was
    loaded before; this stage's loads are then, too."""
    total = 0.0
    for x in accesses(kernel, stage):
        if known is not None and not x.store:
            if x in known:
                continue
            known.add(x)
        s = abs(x.stride(axis))
        total += STRIDED * (s > 1)
        if x.store and s == 0:
            total += _JOINED
    kept = stage.argument is None and axis in stage.axes
    if kept and axis is not stage.axes[-1] and axis not in kernel.shared:
        total += _APART
    if not kept and not any(abs(x.stride(axis)) == 1 for x in accesses(kernel, stage)):
        total += _ALL_STRIDED
    return total + _EMPTY * (extent(axis) < _LEAST_LANES)


@dataclass(frozen=True)
class Product:
    """A stage that sums a product of two reads, each of which lacks an axis of the other.

    rows are the output axes only the left operand moves along, columns only the right one.
    """

    stage: Stage
    left: Node  # LOAD or READ
    right: Node
    rows: tuple[Node, ...]
    columns: tuple[Node, ...]


def product(kernel: Kernel, stage: Stage) -> Product | None:
    """The operands of a matrix product, or None if the stage is not one."""
    if stage.reduction is not ops.SUM or stage.value.op is not ops.MUL or stage.scatter:
        return None
    left, right = stage.value.srcs
    depends = [_axes_of(kernel, x) for x in (left, right)]
    if any(not any(r in d for d in depends) for r in stage.reduced):
        return None
    rows = tuple(a for a in stage.axes if a in depends[0] and a not in depends[1])
    columns = tuple(a for a in stage.axes if a in depends[1] and a not in depends[0])
    if not rows or not columns:
        return None
    return Product(stage, left, right, rows, columns)


def _axes_of(kernel: Kernel, value: Node) -> set[Node]:
    """The axes an operand depends on; a read of a stage depends on what its indices name."""
    return {n for n in toposort((value,)) if n.op is ops.RANGE}


def same_axes(kernel: Kernel, axis: Node) -> set[Node]:
    """The axes of all stages that are one and the same: stages are read along them."""
    found, before = {axis}, 0
    while len(found) > before:
        before = len(found)
        for s in kernel.stages:
            for r in s.reads():
                for index, of in zip(r.srcs, kernel.stage(r.arg[0]).axes):
                    if index in found or (of in found and index.op is ops.RANGE):
                        found |= {index, of}
    return found - set(kernel.shared)
