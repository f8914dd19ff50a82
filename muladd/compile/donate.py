"""Which outputs may be written over which inputs: state updated in place, proven from the actions.

An output may take an input's memory if everything that reads the input is done before the output is
written, or happens in the same kernel, at the same index, no later than the store: stages of a
kernel run in order at each point of their shared axes, and tails never store twice.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

from muladd.ir import Node, sym
from muladd.loop.kernel import Kernel

if TYPE_CHECKING:
    from muladd.compile.program import Action, Array, Program


def donatable(program: Program) -> set[tuple[int, int]]:
    """(output, input) pairs which may share their memory, each input for itself."""
    if program.donatable is None:
        program.donatable = _proven(program)
    return program.donatable


def _proven(program: Program) -> set[tuple[int, int]]:
    from muladd.compile.program import Loop, Run, walk

    looped: set[Array] = set()
    first: dict[Array, int] = {}
    last: dict[Array, int] = {}
    for at, action in enumerate(program.actions):
        for a in walk([action]):
            for use in a.uses if isinstance(a, Run) else (a.to, a.source):
                root = use.array.root()
                first.setdefault(root, at)
                last[root] = at
                if isinstance(action, Loop):
                    looped.add(root)
    alike: dict[tuple, list[tuple[int, Array]]] = {}
    for i, given in enumerate(program.inputs):
        if given not in looped:
            alike.setdefault((given.dtype, given.size), []).append((i, given))
    pairs = set()
    for o, out in enumerate(program.outputs):
        if out in looped or out not in first:
            continue
        for i, given in alike.get((out.dtype, out.size), ()):
            end = last.get(given, -1)
            if end < first[out] or (
                end == first[out] and _together(program.actions[end], out, given)
            ):
                pairs.add((o, i))
    return pairs


def _together(action: Action, out: Array, given: Array) -> bool:
    """Whether one kernel reads each element of `given` only where and before it stores `out`."""
    from muladd.compile.program import Run

    if not isinstance(action, Run):
        return False
    roots = [use.array.root() for use in action.uses]
    reads = [i for i, r in enumerate(roots) if r is given]
    stores = [i for i, r in enumerate(roots) if r is out]
    if len(stores) != 1 or any(use.steps for use in action.uses):
        return False
    return _in_order(action.kernel.kernel, reads, stores[0])


def _in_order(kernel: Kernel, reads: list[int], store: int) -> bool:
    stored = [i for i, s in enumerate(kernel.stages) if s.argument == store]
    if len(stored) != 1:
        return False
    stage = kernel.stages[stored[0]]
    if stage.scatter or stage.reduction is not None or set(stage.axes) != set(kernel.shared):
        return False
    position = sym.as_node(stage.position)
    return all(
        i <= stored[0] and load.srcs[0] is position
        for i, loads in enumerate(_loads(kernel))
        for load in loads
        if load.arg in reads
    )


def _loads(kernel: Kernel) -> list[list[Node]]:
    """What each stage loads: asked for every array that a kernel might write over."""
    if "loads" not in kernel._memo:
        kernel._memo["loads"] = [s.loads() for s in kernel.stages]
    return kernel._memo["loads"]
