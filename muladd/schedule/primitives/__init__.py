"""The directives of a schedule, one file each: pure functions from plan to plan.

A schedule is text, one directive a line: its name, then words. `apply` runs it; two schedules of
one kernel can only differ in speed, because lowering computes what the kernel says for any plan.
"""
from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType

from muladd.errors import ScheduleError
from muladd.ir import Node
from muladd.loop.kernel import Kernel, Stage
from muladd.loop.plan import Plan, plain

NAMES = ("collapse", "merge", "split", "outer", "parallel", "copy", "keep", "at", "nest", "layout",
         "vector", "unroll", "dot", "unsigned", "bind", "nontemporal", "ahead",
         "prefetch", "claim", "abreast", "slide", "inline")  # fmt: skip
Schedule = tuple[str, ...]


def directive(name: str) -> ModuleType:
    """The file of a directive: `apply`, and how it is written, in the first line."""
    if name not in NAMES:
        raise ScheduleError(f"schedule: no directive {name!r}; there are {', '.join(NAMES)}")
    return importlib.import_module(f"{__name__}.{name}")


def apply(kernel: Kernel, schedule: Schedule) -> Plan:
    """The plan that a schedule makes of a kernel. Raises ScheduleError naming the directive."""
    plan = plain(kernel)
    for line in schedule:
        plan = step(plan, line)
    return plan


def step(plan: Plan, line: str) -> Plan:
    """The plan after one more directive."""
    name, *words = line.split() or [""]
    module = directive(name)
    try:
        made = module.apply(plan, *words)
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, ScheduleError):
            raise
        usage, _, _ = (module.__doc__ or name).partition(":")
        raise ScheduleError(f"schedule: {line!r} cannot be applied; expected {usage}, and whole "
                            "numbers for LEVEL, COUNT, FACTOR, TURNS") from None  # fmt: skip
    return replace(made, lines=(*plan.lines, line))


def loop_named(plan: Plan, name: str) -> Node:
    """The loop with a name such as p0 or p0.1."""
    for leaves in plan.leaves.values():
        for leaf in leaves:
            if leaf.loop.arg.name == name:
                return leaf.loop
    known = [x.loop.arg.name for ls in plan.leaves.values() for x in ls]
    raise ScheduleError(f"schedule: no loop {name!r}; there are {', '.join(known)}")


def stage_named(plan: Plan, name: str) -> Stage:
    for s in plan.kernel.stages:
        if s.name == name:
            return s
    raise ScheduleError(f"schedule: no stage {name!r}; there are "
                        f"{', '.join(s.name for s in plan.kernel.stages)}")  # fmt: skip


def check_new(plan: Plan, name: str, directive: str) -> None:
    """Refuses to call a new stage like one that is there."""
    if any(s.name == name for s in plan.kernel.stages):
        raise ScheduleError(f"{directive}: there is a stage {name} already; give another name")


def default_nest(plan: Plan, stage: Stage) -> tuple[Node, ...]:
    """The loops a stage needs that are not fixed outside it, output axes before reduced ones."""
    fixed = set(plan.enclosing(stage))
    return tuple(x.loop for a in (*stage.axes, *stage.reduced) for x in plan.leaves[a]
                 if x.loop not in fixed)  # fmt: skip


def renest(plan: Plan, stages: tuple[Stage, ...]) -> Plan:
    nests = dict(plan.nests)
    for s in stages:
        nests[s.name] = default_nest(plan, s)
    return replace(plan, nests=nests)
