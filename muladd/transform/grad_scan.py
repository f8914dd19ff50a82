"""The reverse derivative of SCAN: a scan backwards.

Going forwards, the scan also stacks the residuals of each step. Going backwards, a scan in the
other direction carries the cotangents of the carried values; it stacks those of the stacked inputs
and sums up, as further carried values, those of what every step sees alike (or, where that is
cheaper, leaves their sums until it is done: deferred.py). A residual that no step changes is
computed once, outside; one that is a stacked input is read where it already lies.

With a body marked `recompute`, a step keeps only its carried values; `scan_checkpointed` nests two
scans so, which needs memory for 2 sqrt(n) steps in place of n (Chen et al., "Training deep nets
with sublinear memory cost", 2016).
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isqrt

from muladd.errors import GradientError
from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.ir.node import Body, Node, ScanArg, const, iota, param, substitute, toposort
from muladd.transform import build as b
from muladd.transform import grad
from muladd.transform.deferred import Deferred, defer, finish
from muladd.transform.grad_call import extended, wrapped
from muladd.transform.residuals import body_over, residuals

# --- which carried values have a derivative ------------------------------------------------------


def dependences(body: Body) -> list[int]:
    """Per result, the set of parameters it depends on along float paths, as a bit mask."""
    if "dependences" not in body.memo:
        mask = {p: 1 << i for i, p in enumerate(body.params) if p.dtype.is_float}
        for n in toposort(body.outs):
            if n not in mask:
                mask[n] = 0
                if grad.carries_derivative(n):
                    for s in n.srcs:
                        mask[n] |= mask[s]
        body.memo["dependences"] = [mask[out] for out in body.outs]
    return body.memo["dependences"]


def active_carries(body: Body, carries: int, active: int) -> int:
    """A mask of parameters, enlarged by the carried values that come to depend on them."""
    reads = dependences(body)
    while True:
        more = active
        for i in range(carries):
            if reads[i] & active:
                more |= 1 << i
        if more == active:
            return active
        active = more


def _live_carries(body: Body, carries: int, given: Sequence[int]) -> set[int]:
    """The carried values that results `given` depend on, in this step or a later one."""
    reads = dependences(body)
    live = {i for i in given if i < carries}
    todo = list(given)
    seen = set(given)
    while todo:
        mask = reads[todo.pop()]
        for i in range(carries):
            if mask >> i & 1:
                live.add(i)
                if i not in seen:
                    seen.add(i)
                    todo.append(i)
    return live


# --- the plan of one derivative ------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """One derivative of a scan's body.

    live: carried values with a cotangent. slices: stacked outputs with a cotangent. stacks and
    constants: the parameters of those kinds that get one. forward: the body with residuals as
    further stacked outputs. stacked and alike: what a step backwards reads besides cotangents, as
    ("source", number), ("result", number of a result of `forward`) or ("once", number in `once`).
    once: residuals that are the same in each step, over the body's parameters. waiting: sums done
    afterwards, each with its leaves' places (or ("back", number of a result of `backward`)) and
    whether they are stacked.
    """

    live: tuple[int, ...]
    slices: tuple[int, ...]
    stacks: tuple[int, ...]
    constants: tuple[int, ...]
    forward: Body
    backward: Body
    stacked: tuple[tuple[str, int], ...]
    alike: tuple[tuple[str, int], ...]
    once: tuple[Node, ...]
    waiting: tuple[tuple[Deferred, tuple[tuple[str, int], ...], tuple[bool, ...]], ...]


def scan_cotangents(n: Node, results: dict[int, Node], wanted: list[int]) -> dict[int, Node]:
    """The wanted sources' cotangents, given those of some results of the same scan."""
    arg: ScanArg = n.arg
    if arg.body.gradient is not None:
        arg = replace(arg, body=wrapped(arg.body))
    plan = scan_plan(arg, tuple(wanted), tuple(sorted(results)))
    body, srcs = arg.body, n.srcs
    over = dict(zip(body.params, srcs))
    once = substitute(plan.once, over) if plan.once else ()
    forward = replace(arg, body=plan.forward)

    def value(kind: str, i: int) -> Node:
        if kind == "back":
            return found[i]
        if kind == "result":
            return b.scan(forward, srcs, i)
        return once[i] if kind == "once" else srcs[i]

    first = [results[i] if i in results else b.zeros(body.outs[i]) for i in plan.live]
    sums = [_zero_sum(body.params[i]) for i in plan.constants]
    stacked = [results[i] for i in plan.slices] + [value(*read) for read in plan.stacked]
    back = ScanArg(
        plan.backward, arg.length, len(first) + len(sums), len(stacked), not arg.reverse
    )
    found = b.scans(back, [*first, *sums, *stacked, *(value(*read) for read in plan.alike)])
    keys = (*plan.live, *plan.constants, *plan.stacks)
    cotangents = {i: c for i, c in zip(keys, found) if i in set(wanted)}
    for deferred, places, stacked_ones in plan.waiting:
        axes = [0 if flag else None for flag in stacked_ones]
        values = [value(*place) for place in places]
        cotangents[deferred.source] = finish(deferred, values, axes, arg.length)
    return {i: b.cast(c, srcs[i].dtype) for i, c in cotangents.items()}


def _sum_dtype(dtype: DType) -> DType:
    """Sums over steps are kept in float32 at least, and rounded once at the end (as SUM)."""
    return dt.float32 if dtype.bits < 32 else dtype


def _zero_sum(p: Node) -> Node:
    return const(0, _sum_dtype(p.dtype), p.shape)


def scan_plan(arg: ScanArg, wanted: tuple[int, ...], given: tuple[int, ...]) -> Plan:
    key = ("scan gradient", arg.carries, arg.stacked, wanted, given)
    if key not in arg.body.memo:
        arg.body.memo[key] = _make_plan(arg.body, arg.carries, arg.stacked, wanted, given)
    return arg.body.memo[key]


@dataclass(frozen=True)
class Step:
    """One step backwards, over the body's parameters, cotangents and running sums."""

    live: tuple[int, ...]
    slices: tuple[int, ...]
    stacks: tuple[int, ...]
    constants: tuple[int, ...]
    cotangents: tuple[Node, ...]  # parameters: of live, then of slices
    sums: tuple[Node, ...]  # parameters: one for each of constants
    outs: tuple[Node, ...]  # new cotangents of live, new sums, cotangents of stacks, then leaves
    leaves: tuple[Node, ...]  # of deferred sums: those that depend on cotangents
    deferred: tuple[Deferred, ...]


def _step(
    body: Body, carries: int, stacked: int, wanted: tuple[int, ...], given: tuple[int, ...]
) -> Step:
    active = active_carries(body, carries, sum(1 << i for i in wanted))
    live = tuple(i for i in sorted(_live_carries(body, carries, given)) if active >> i & 1)
    slices = tuple(i for i in given if i >= carries)
    results = [body.outs[i] for i in (*live, *slices)]
    cotangents = b.params(results, start=len(body.params))
    targets = [*live, *(i for i in wanted if i >= carries)]
    cells = grad.gradient(results, [body.params[i] for i in targets], cotangents)
    found = {i: g for i, g in zip(targets, cells) if g is not None}
    stacks = tuple(i for i in found if carries <= i < carries + stacked)
    constants = tuple(i for i in found if i >= carries + stacked)
    deferred = _deferrable(body, carries, {i: found[i] for i in constants})
    constants = tuple(i for i in constants if i not in {d.source for d in deferred})
    unknown = _changing(list(found.values()), cotangents)
    leaves = tuple(dict.fromkeys(x for d in deferred for x in d.leaves if x in unknown))
    zeros = [_zero_sum(body.params[i]) for i in constants]
    sums = b.params(zeros, start=len(body.params) + len(results))
    new = [found[i] if i in found else b.zeros(body.params[i]) for i in live]
    new += [b.add(s, b.cast(found[i], s.dtype)) for s, i in zip(sums, constants)]
    new += [found[i] for i in stacks]
    outs = (*new, *leaves)
    return Step(live, slices, stacks, constants, cotangents, sums, outs, leaves, deferred)


def _deferrable(body: Body, carries: int, found: dict[int, Node]) -> tuple[Deferred, ...]:
    """The constants' cotangents that are better summed afterwards.

    Not so in a body marked `recompute`: it is there to store little.
    """
    if body.recompute:
        return ()
    free = set(body.params[carries:])
    plans: dict[int, Deferred] = {}
    for i, g in [*found.items()] * 2:  # twice: what one stores is free for the others
        plan = None if i in plans else defer(i, g, free.__contains__)
        if plan is not None:
            plans[i] = plan
            free.update(plan.leaves)
    return tuple(plans.values())


def _make_plan(
    body: Body, carries: int, stacks: int, wanted: tuple[int, ...], given: tuple[int, ...]
) -> Plan:
    step = _step(body, carries, stacks, wanted, given)
    coming = (*step.cotangents, *step.sums)
    handed = residuals(step.outs, body.params, coming, body.recompute)
    number = {p: i for i, p in enumerate(body.params)}
    used = [x for d in step.deferred for x in d.leaves if x not in step.leaves]
    needed = list(dict.fromkeys((*handed, *used)))
    changing = _changing(needed, body.params[: carries + stacks])
    stacked = [r for r in handed if r in changing]
    alike = [r for r in handed if r not in changing]
    # a stacked input lies there already; a carried value at the start of a step does not
    extra = [r for r in needed if r in changing and number.get(r, -1) < carries]
    once = [r for r in needed if r not in changing and r not in number]
    place = {r: ("source", i) for r, i in number.items()}
    place |= {r: ("result", len(body.outs) + k) for k, r in enumerate(extra)}
    place |= {r: ("once", k) for k, r in enumerate(once)}
    place |= {r: ("back", k) for k, r in enumerate(step.leaves, len(step.outs) - len(step.leaves))}
    changing.update(step.leaves)
    waiting = tuple(
        (d, tuple(place[x] for x in d.leaves), tuple(x in changing for x in d.leaves))
        for d in step.deferred
    )
    ends = len(step.live)
    leaves = (
        *step.cotangents[:ends], *step.sums, *step.cotangents[ends:], *stacked, *alike
    )  # fmt: skip
    backward = body_over(leaves, step.outs, f"{body.name}.gradient", body.recompute)
    return Plan(
        step.live, step.slices, step.stacks, step.constants, extended(body, extra), backward,
        tuple(place[r] for r in stacked), tuple(place[r] for r in alike), tuple(once), waiting,
    )  # fmt: skip


def _changing(nodes: Sequence[Node], varying: Sequence[Node]) -> set[Node]:
    """The nodes that depend on a value that differs from step to step."""
    found = set(varying)
    for n in toposort(nodes):
        if any(s in found for s in n.srcs):
            found.add(n)
    return found


# --- checkpointing -------------------------------------------------------------------------------


def scan_checkpointed(
    arg: ScanArg, srcs: Sequence[Node], segment: int | None = None
) -> list[Node]:
    """All results of a scan, written as a scan of segments whose inside is recomputed backwards.

    `segment` is the number of steps in one (by default near the square root of the length); what
    does not fill a segment runs as a short scan of its own at the end. Values are the same as the
    plain scan's. The length must be static: GradientError otherwise.
    """
    n = arg.length
    if not isinstance(n, int):
        raise GradientError(
            f"scan_checkpointed: the length {n!r} is symbolic; a static length is needed"
        )
    size = max(1, isqrt(n) if segment is None else segment)
    segments, rest = divmod(n, size)
    if segments <= 1:
        return b.scans(arg, srcs)
    whole = segments * size
    # In reverse, the steps begin at the far end: the short scan then takes the first slices.
    start = rest if arg.reverse else 0
    main = _segmented(arg, _part(arg, srcs, start, whole), segments, size)
    if not rest:
        return main
    tail_srcs = _part(arg, srcs, 0 if arg.reverse else whole, rest)
    tail = b.scans(replace(arg, length=rest), [*main[: arg.carries], *tail_srcs[arg.carries :]])
    pieces = [
        (t, m) if arg.reverse else (m, t)
        for m, t in zip(main[arg.carries :], tail[arg.carries :])
    ]
    return tail[: arg.carries] + [_joined(first, second) for first, second in pieces]


def _part(arg: ScanArg, srcs: Sequence[Node], start: int, size: int) -> list[Node]:
    """The sources with each stacked one cut to `size` steps."""
    stacks = range(arg.carries, arg.carries + arg.stacked)
    return [
        b.slice_(s, [(start, size, 1), *((0, m, 1) for m in s.shape[1:])]) if i in stacks else s
        for i, s in enumerate(srcs)
    ]


def _segmented(arg: ScanArg, srcs: list[Node], segments: int, size: int) -> list[Node]:
    stacks = range(arg.carries, arg.carries + arg.stacked)
    chunks = [
        b.reshape(s, (segments, size, *s.shape[1:])) if i in stacks else s
        for i, s in enumerate(srcs)
    ]
    chunk_params = [
        (size, *p.shape) if i in stacks else p.shape for i, p in enumerate(arg.body.params)
    ]
    inner_srcs = tuple(
        param(i, shape, p.dtype) for i, (shape, p) in enumerate(zip(chunk_params, arg.body.params))
    )
    inner = b.scans(replace(arg, length=size), inner_srcs)
    outer = Body(tuple(inner), inner_srcs, f"{arg.body.name}.segment", recompute=True)
    found = b.scans(replace(arg, body=outer, length=segments), chunks)
    return found[: arg.carries] + [
        b.reshape(s, (segments * size, *s.shape[2:])) for s in found[arg.carries :]
    ]


def _joined(first: Node, second: Node) -> Node:
    """Two arrays one after the other along axis 0, chosen and not added (an or keeps -0.0)."""
    n, m = first.shape[0], second.shape[0]
    still = [(0, 0, 0)] * (first.ndim - 1)
    before = b.pad(first, [(0, m, 0), *still])
    after = b.pad(second, [(n, 0, 0), *still])
    shape = before.shape
    index = b.reshape(iota(shape[0]), [shape[0]] + [1] * (len(shape) - 1))
    from_first = b.less(index, b.like(n, index))
    return b.where(b.expand(from_first, shape), before, after)
