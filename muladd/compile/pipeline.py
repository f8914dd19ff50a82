"""From graph to program: the visible list of passes.

parameters    arrays become numbered parameters: equal graphs over other arrays are one program
order         so are equal graphs whose outputs or arrays come in another order (order.py)
name          exp and cos, spelled with two operations, become one each (ir/named.py)
join scans    scans over the same steps become one
inline        calls become their bodies, unless these are to be recomputed
canonicalise  algebra, constants, dead code
empty         what has no elements is nobody's work
crop          what is cut off a reduction is not computed (fast profile only)
winograd      convolutions with fewer products (fast profile only)
partial       long reductions to few results in two steps (fast profile only)
join          values put together from parts are computed part by part (join.py)
fuse          graph -> kernels (fuse.py)
actions       kernels in order; scans become loops over the actions of their bodies
compile       schedule, lower, render, object code: each distinct kernel once (kernels.py), on all
              cores (forked.py)
plan memory   when the sizes are known (program.py, memory.py)

A graph that any process compiled before is read from the disk instead (kept.py).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import Any, cast

import numpy as np

from muladd import config
from muladd import device as devices
from muladd.compile import kept, kernels, report
from muladd.compile.crop import crop
from muladd.compile.empty import drop_empty, is_empty
from muladd.compile.fuse import Call, fuse
from muladd.compile.index import OPAQUE
from muladd.compile.join import joined
from muladd.compile.kernels import CompiledKernel, compile_kernels
from muladd.compile.numbers import lifted
from muladd.compile.order import Ordered
from muladd.compile.partial import products_apart, split_reductions
from muladd.compile.program import Action, Array, Loop, Move, Program, Run, Use
from muladd.compile.winograd import fewer_products, may_hold
from muladd.device import Device
from muladd.errors import GraphError
from muladd.garbage import uncollected
from muladd.ir import (
    Body,
    Node,
    Param,
    Storage,
    Var,
    const,
    dtype,
    make,
    ops,
    param,
    rebuild,
    substitute,
    sym,
    toposort,
)
from muladd.ir.named import named
from muladd.ir.node import variables
from muladd.loop.kernel import Argument, Kernel, Stage, canonical
from muladd.rewrite.canonical import canonicalise
from muladd.rewrite.engine import through_bodies
from muladd.rewrite.rules.inline import inline_calls
from muladd.transform import join_scans

_programs: dict[tuple, Program] = {}
_MOST_PROGRAMS = 4096


def realize(roots: Sequence[Node], device: str) -> list[Storage]:
    """The values of graphs whose inputs are realised, computed together on a device."""
    graph, storages = parameters(tuple(roots))
    place = devices.get(device)
    program, numbers = program_of(graph, len(storages), device)
    buffers = program.run([*[s.buffer for s in storages], *numbers])
    out = []
    for r, b in zip(roots, buffers):
        out.append(Storage(r.shape, r.dtype, place.name, b))
    return out


def parameters(roots: tuple[Node, ...]) -> tuple[tuple[Node, ...], list[Storage]]:
    """The graph over Params, numbered in order of first use, and the storages they stand for."""
    done: dict[Node, Node] = {}
    storages: list[Storage] = []
    for n in toposort(roots):
        if n.op is ops.INPUT:
            done[n] = n
            if isinstance(n.arg, Storage):
                done[n] = param(len(storages), n.shape, n.dtype)
                storages.append(n.arg)
        else:
            srcs = tuple([done[s] for s in n.srcs])
            done[n] = n if srcs == n.srcs else rebuild(n, srcs)
    return tuple([done[r] for r in roots]), storages


def _key(graph: tuple[Node, ...], device: str, fixed: frozenset[int] = frozenset()) -> tuple:
    return graph, device, fixed, *config.of_programs()


def _stored(number: Node, place: Device) -> Any:
    """A constant in a buffer of its own."""
    d = number.dtype
    stored = dtype.encode(np.array([number.arg], d.numpy), d)
    buffer = place.allocate(stored.nbytes)
    place.copy_in(buffer, stored)
    return buffer


def program_of(
    graph: tuple[Node, ...], inputs: int, device: str
) -> tuple[Program, list[Any]]:
    """The program of a graph over so many Params, and further inputs for it: numbers in which the
    graph differs from one that was compiled before (numbers.py)."""
    numbers: list[Node] = []
    if _key(graph, device) not in _programs:
        graph, numbers = lifted(graph, inputs)
    place = devices.get(device)
    return compile_graph(graph, device), [_stored(n, place) for n in numbers]


def compile_graph(
    outputs: Sequence[Node], device: str, fixed: frozenset[int] = frozenset()
) -> Program:
    """The program of a graph over Params (and symbolic sizes), from the cache if it was seen.

    fixed: the numbers of Params that stay the same from run to run, mostly. What is then better
    computed once is computed by the program's `held`, whose results its `run` is given.
    """
    outputs = tuple(outputs)
    if fixed and not may_hold(outputs):
        fixed = frozenset()  # the program is that of anybody
    key = _key(outputs, device, fixed)
    found = _programs.get(key)
    if found is None:
        with uncollected():
            found = _kept_or_compiled(outputs, devices.get(device), fixed)
        if len(_programs) >= _MOST_PROGRAMS:
            _programs.pop(next(iter(_programs)))
        _programs[key] = found
    return found


def _kept_or_compiled(
    outputs: tuple[Node, ...], device: Device, fixed: frozenset[int]
) -> Program:
    start = time.perf_counter()
    exact = config.get("PROFILE") == "exact"
    again = functools.partial(_anew, outputs, device, exact, fixed)
    key = kept.key_of(outputs, device, exact, fixed)
    found = None if key is None else kept.find(key, outputs, device, again)
    if found is None:
        own = Ordered.of(outputs)
        new = own.graph == outputs
        found = _compile(outputs, device, exact, fixed) if new else own.arranged(
            compile_graph(own.graph, device.name, own.renumbered(fixed))
        )  # fmt: skip
        if key is not None:
            kept.keep(key, found)
        if not new:
            return found  # what was compiled was told of, in its own order
    report.compiled_program(found, outputs, time.perf_counter() - start)
    return found


def _anew(
    outputs: tuple[Node, ...], device: Device, exact: bool, fixed: frozenset[int]
) -> Program:
    """The program of a graph that was found on disk, compiled to learn its kernels' algorithms."""
    own = Ordered.of(outputs)
    return own.arranged(_compile(own.graph, device, exact, own.renumbered(fixed)))


def forget() -> None:
    """Drop the programs and kernels of this process: schedules tuned since are used from now on.

    Functions compiled with `jit` before keep what they have.
    """
    _programs.clear()
    kernels.forget()


def compiled() -> list[Program]:
    """Every program in the cache."""
    return [x for p in _programs.values() for x in (p, p.held) if x is not None]


def _compile(
    outputs: tuple[Node, ...], device: Device, exact: bool, fixed: frozenset[int] = frozenset()
) -> Program:
    names = tuple(sorted(v.arg.name for v in variables(outputs)))
    inputs: dict[int, Array] = {}
    for n in toposort(outputs):
        if n.op is ops.INPUT and isinstance(n.arg, Param):
            inputs[n.arg.index] = Array(n.dtype, sym.product(n.shape), "input", n.arg.index)
    count = max(inputs, default=-1) + 1
    results = [Array(n.dtype, sym.product(n.shape), "output", i) for i, n in enumerate(outputs)]
    all_inputs = [inputs.get(i) or Array(outputs[0].dtype, 0, "input", i) for i in range(count)]
    builder = _Builder(device, exact, names)
    graph, held = builder.simplified(outputs, 0, fixed, count)
    given = [Array(n.dtype, sym.product(n.shape), "held", i) for i, n in enumerate(held)]
    known = {**inputs, **{count + i: a for i, a in enumerate(given)}}
    actions = builder.actions(graph, dict(known), list(results), 0)
    before: list[Action] = []
    if held:
        made = [Array(n.dtype, sym.product(n.shape), "output", i) for i, n in enumerate(held)]
        before = builder.actions(held, dict(inputs), list(made), 0)
    builder.compile()
    program = Program(device, actions, all_inputs, results, names, given)
    if held:
        program.held = Program(device, before, all_inputs, made, ())
    return program


class _Builder:
    """Turns graphs into actions; a scan's body is a graph of its own, one loop deeper."""

    def __init__(self, device: Device, exact: bool, names: tuple[str, ...]) -> None:
        self.device, self.exact, self.names = device, exact, names
        self.runs: list[tuple[Run, Kernel]] = []

    def compile(self) -> None:
        """Make the kernels of all actions, now that all are known."""
        made = compile_kernels([kernel for _, kernel in self.runs], self.device, self.names)
        for (run, _), kernel in zip(self.runs, made):
            run.kernel = kernel

    def run(self, kernel: Kernel, uses: tuple[Use, ...]) -> Run:
        """An action that runs a kernel, which `compile` makes."""
        run = Run(cast(CompiledKernel, None), uses)
        self.runs.append((run, kernel))
        return run

    def graph(
        self, outputs: tuple[Node, ...], inputs: dict[int, Array | Use],
        results: list[Array | Use], depth: int,
    ) -> list[Action]:  # fmt: skip
        """The actions that compute outputs (over Params) into results."""
        return self.actions(self.simplified(outputs, depth)[0], inputs, results, depth)

    def simplified(
        self, outputs: tuple[Node, ...], depth: int, fixed: frozenset[int] = frozenset(),
        count: int = 0,
    ) -> tuple[tuple[Node, ...], tuple[Node, ...]]:  # fmt: skip
        """The outputs as `fuse` wants them; and values, over fixed Params alone, that are to be
        computed once: the outputs have them as Params from number `count` on."""
        profile = "exact" if self.exact else "fast"
        outputs = through_bodies(outputs, named)
        simple = canonicalise(inline_calls(tuple(join_scans(outputs))), profile)
        if self.exact and depth == 0:
            simple = tuple(_one_nan(n) for n in simple)
        simple = drop_empty(simple)
        held: tuple[Node, ...] = ()
        if not self.exact:
            simple, held = fewer_products(products_apart(crop(simple)), self.device.machine, fixed)
            places = {n: param(count + i, n.shape, n.dtype) for i, n in enumerate(held)}
            simple = tuple(substitute(simple, places)) if held else simple
            simple = split_reductions(simple)
        return joined(tuple(map(_unshaped, simple))), joined(held)

    def actions(
        self, simple: tuple[Node, ...], inputs: dict[int, Array | Use],
        results: list[Array | Use], depth: int,
    ) -> list[Action]:  # fmt: skip
        """The actions that compute simplified outputs."""
        arrays: dict[Node, Use] = {}
        for n in toposort(simple):
            if n.op is ops.INPUT and isinstance(n.arg, Param):
                arrays[n] = _use(inputs[n.arg.index])
        actions: list[Action] = []
        late: list[tuple[Node, Use]] = []
        for n, r in zip(simple, results):
            if n in arrays or n.op in OPAQUE:
                late.append((n, _use(r)))
            else:
                arrays[n] = _use(r)
        for n in toposort(simple):
            if is_empty(n):
                arrays.setdefault(n, Use(Array(n.dtype, 0)))
        wanted = [n for n in dict.fromkeys(simple) if not is_empty(n)]
        calls = fuse(wanted, self.exact)
        self.ordered(calls, simple, arrays, actions, depth)
        for n, r in late:
            size = sym.product(n.shape)
            actions.append(Move(r, arrays[n], size, n.dtype.itemsize))
        return actions

    def ordered(
        self, calls: list[Call], outputs: tuple[Node, ...], arrays: dict[Node, Use],
        actions: list[Action], depth: int,
    ) -> None:  # fmt: skip
        """Kernels and scans, each as soon as what it reads is there."""
        scans: dict[tuple, list[Node]] = {}
        for n in toposort(outputs):
            if n.op in OPAQUE:
                scans.setdefault((n.op, n.srcs, replace(n.arg, out=0)), []).append(n)
        waiting: list[Call | list[Node]] = [*calls, *scans.values()]
        made = {n for n in arrays if n.op is ops.INPUT or is_empty(n)}
        while waiting:
            left: list[Call | list[Node]] = []
            for item in waiting:
                needs, gives = _flow(item)
                if not needs <= made:
                    left.append(item)
                    continue
                if isinstance(item, Call):
                    self.call(item, arrays, actions)
                elif item[0].op is ops.SCAN:
                    self.scan(item, arrays, actions, depth)
                else:
                    self.body(item, arrays, actions, depth)
                made |= gives
            if len(left) == len(waiting):
                raise GraphError("compile: kernels and scans wait for each other")
            waiting = left

    def call(self, call: Call, arrays: dict[Node, Use], actions: list[Action]) -> None:
        uses = []
        for n in call.arguments:
            if n not in arrays:
                arrays[n] = Use(Array(n.dtype, sym.product(n.shape)))
            uses.append(arrays[n])
        if any(s.scatter for s in call.kernel.stages):
            for stage in call.kernel.stages:
                if stage.scatter:
                    assert stage.argument is not None
                    n = call.arguments[stage.argument]
                    actions.append(self.run(_zeros(n), (arrays[n],)))
        actions.append(self.run(call.kernel, tuple(uses)))

    def body(
        self, nodes: list[Node], arrays: dict[Node, Use], actions: list[Action], depth: int
    ) -> None:
        """A call that was not inlined, because its body is to be computed again."""
        first = nodes[0]
        inputs: dict[int, Array | Use] = {i: arrays[s] for i, s in enumerate(first.srcs)}
        results: list[Array | Use] = []
        for n in nodes:
            arrays[n] = Use(Array(n.dtype, sym.product(n.shape)))
            results.append(arrays[n])
        outs = tuple(first.arg.body.outs[n.arg.out] for n in nodes)
        actions.extend(self.graph(outs, inputs, results, depth))

    def scan(
        self, nodes: list[Node], arrays: dict[Node, Use], actions: list[Action], depth: int
    ) -> None:
        """A loop over the body's actions; carried values live in arrays of their own."""
        first = nodes[0]
        arg = first.arg
        body: Body = arg.body
        inputs: dict[int, Array | Use] = {}
        carried: list[Use] = []
        wanted = {n.arg.out: n for n in nodes}
        for i in range(arg.carries):
            p = body.params[i]
            size = sym.product(p.shape)
            use = Use(Array(p.dtype, size))
            actions.append(Move(use, arrays[first.srcs[i]], size, p.dtype.itemsize))
            carried.append(use)
            inputs[i] = use
            if i in wanted:
                arrays[wanted[i]] = use
        for i in range(arg.carries, len(body.params)):
            source = arrays[first.srcs[i]]
            if i < arg.carries + arg.stacked:
                step = sym.product(body.params[i].shape)
                source = Use(source.array, (*source.steps, (depth, step)))
            inputs[i] = source
        results: list[Array | Use] = []
        outs: list[Node] = []
        after: list[Action] = []
        for i, out in enumerate(body.outs):
            size = sym.product(out.shape)
            if i < arg.carries:
                use = Use(Array(out.dtype, size))
                after.append(Move(carried[i], use, size, out.dtype.itemsize))
            elif i in wanted:
                n = wanted[i]
                array = Use(Array(n.dtype, sym.product(n.shape)))
                arrays[n] = array
                use = Use(array.array, ((depth, size),))
            else:
                continue
            results.append(use)
            outs.append(out)
        inner = self.graph(tuple(outs), inputs, results, depth + 1)
        actions.append(Loop(arg.length, inner + after, arg.reverse))


def _unshaped(n: Node) -> Node:
    """An output before reshapes, which move nothing in memory: its own axes suit a kernel best."""
    while n.op is ops.RESHAPE and n.srcs[0].op is not ops.INPUT and n.srcs[0].op not in OPAQUE:
        n = n.srcs[0]
    return n


def _one_nan(n: Node) -> Node:
    """In the exact profile every NaN that leaves a program is the positive quiet one."""
    if not n.dtype.is_float:
        return n
    nan = const(float("nan"), n.dtype, n.shape)
    return make(ops.WHERE, (make(ops.NE, (n, n)), nan, n))


def _use(x: Array | Use) -> Use:
    return x if isinstance(x, Use) else Use(x)


def _flow(item: Call | list[Node]) -> tuple[Set[Node], Set[Node]]:
    """(what must exist before, what exists after)."""
    if isinstance(item, Call):
        return item.needs, item.gives
    return {p for s in item[0].srcs for p in (s.srcs if s.op is ops.JOIN else (s,))}, set(item)


def _zeros(n: Node) -> Kernel:
    size = sym.product(n.shape)
    at = sym.axis("i", size)
    stage = Stage("zero", (at,), const(0, n.dtype), argument=0, position=at)
    return canonical(Kernel((stage,), (at,), (Argument(0, n.dtype, size, True),)))


__all__ = ["Var", "compile_graph", "parameters", "realize"]
