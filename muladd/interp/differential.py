"""Holds a device against the interpreter on random graphs, and makes what fails small.

    report = fuzz(run, seconds=60, seed=0)          run(outputs, inputs, variables) -> arrays
    print(report)

Integers and bools must be equal. A float may differ by what rounding explains: the graph is run
again with every rounded result nudged by an ulp or so, a few times, and a device may be off by some
multiple of how far that moves an output. In the exact profile all bits must be equal.
"""
from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muladd.errors import MuladdError
from muladd.interp import meaning
from muladd.interp.evaluate import Expand, _plan, _Run, evaluate
from muladd.interp.generate import generate, rounds
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.dtype import DType
from muladd.ir.node import Node, Storage, make, substitute, toposort
from muladd.ir.text import to_text

Inputs = Mapping[Node, np.ndarray]
Run = Callable[[list[Node], dict[Node, np.ndarray], dict[str, int]], Sequence[np.ndarray]]

NUDGED_RUNS = 3
SPREAD = 32.0  # times the movement that nudging causes
ULPS = 8.0  # times the distance of neighbouring floats, in any case
MOST_ATTEMPTS = 300  # runs of the device while a failing graph is made small


class Mismatch(MuladdError, AssertionError):
    """A device computed something else than the interpreter."""


# --- one graph -----------------------------------------------------------------------------------


def check(
    outputs: Sequence[Node], inputs: Inputs, variables: Mapping[str, int], run: Run, *,
    profile: str = "fast", expand: Expand | None = None,
) -> None:  # fmt: skip
    """Raises Mismatch, with the graph's text, where `run` differs from the interpreter.

    `run` gives one array per output, in the value representation or as storage bits; whatever it
    raises passes through.
    """
    needed = {n: inputs[n] for n in toposort(outputs) if n in inputs}
    found = run(list(outputs), needed, dict(variables))
    wrong = difference(outputs, needed, variables, found, profile=profile, expand=expand)
    if wrong:
        raise Mismatch(f"{wrong}\n{to_text(outputs)}{_bindings(variables)}")


def difference(
    outputs: Sequence[Node], inputs: Inputs, variables: Mapping[str, int],
    found: Sequence[np.ndarray], *, profile: str = "fast", expand: Expand | None = None,
) -> str:  # fmt: skip
    """How `found` differs from the interpreter's results, in words; "" where it agrees."""
    wanted = evaluate(outputs, inputs, variables=variables, profile=profile, expand=expand)
    if len(found) != len(wanted):
        return f"{len(found)} results for {len(wanted)} outputs"
    bands: list[np.ndarray | None] = [None] * len(wanted)
    if profile == "fast" and any(o.dtype.is_float for o in outputs):
        bands = _bands(outputs, inputs, variables, wanted)
    for i, (node, want, band) in enumerate(zip(outputs, wanted, bands)):
        got = _as_values(np.asarray(found[i]), node.dtype)
        wrong = _difference(got, want, band, node.dtype)
        if wrong:
            return f"output {i}, {node!r}: {wrong}"
    return ""


def _as_values(x: np.ndarray, d: DType) -> np.ndarray:
    return dt.decode(x, d) if x.dtype == d.storage != d.numpy else x


def _difference(got: np.ndarray, want: np.ndarray, band: np.ndarray | None, d: DType) -> str:
    if got.shape != want.shape or got.dtype != want.dtype:
        return f"is {got.dtype}{list(got.shape)}, expected {want.dtype}{list(want.shape)}"
    with np.errstate(all="ignore"):
        if band is None:
            same = _bits(got) == _bits(want)
        else:
            a, b = got.astype(np.float64), want.astype(np.float64)
            same = (np.abs(a - b) <= band) | (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return ""
    where = tuple(int(i) for i in np.argwhere(~same)[0])
    allowed = "" if band is None else f", allowed is a difference of {band[where]:.3g}"
    return (f"{np.count_nonzero(~same)} of {same.size} elements differ; the first at "
            f"{list(where)}: {got[where]!r}, expected {want[where]!r}{allowed}")  # fmt: skip


def _bits(x: np.ndarray) -> np.ndarray:
    """Floats as integers, every NaN alike; anything else as it is."""
    if x.dtype.kind != "f":
        return x
    one_nan = np.array(np.where(np.isnan(x), x.dtype.type(np.nan), x), order="C")
    return one_nan.view(f"u{x.dtype.itemsize}")


def _bindings(variables: Mapping[str, int]) -> str:
    return "".join(f"{name} = {n}\n" for name, n in variables.items())


# --- how far rounding moves a result ----------------------------------------------------------


class _Nudged(_Run):
    """An interpreter that moves each rounded result by up to an ulp, up, down or not at all."""

    random: np.random.Generator

    def compute(self, node: Node, values: dict[Node, np.ndarray]) -> np.ndarray:
        exact = super().compute(node, values)
        if not rounds(node):
            return exact
        size: Any = np.abs(exact)
        if node.op is ops.SUM:  # the partial sums' size is what counts
            size = np.sum(np.abs(values[node.srcs[0]]), axis=node.arg, dtype=np.float64)
        elif node.op is ops.ADD:
            size = np.maximum(np.abs(values[node.srcs[0]]), np.abs(values[node.srcs[1]]))
        step = size * epsilon(node.dtype) * self.random.integers(-1, 2, exact.shape)
        return meaning.cast(np.asarray(exact + step, np.float64), dt.float64, node.dtype)


def epsilon(d: DType) -> float:
    """The distance of 1 from its neighbour."""
    return 2.0**-d.mantissa


def _bands(
    outputs: Sequence[Node], inputs: Inputs, variables: Mapping[str, int],
    wanted: Sequence[np.ndarray],
) -> list[np.ndarray | None]:  # fmt: skip
    """For each float output the difference allowed, per element; None for the others."""
    moved = [0.0] * len(outputs)
    plan = _plan(outputs, False)
    with np.errstate(all="ignore"):
        for seed in range(NUDGED_RUNS):
            nudged = _Nudged(dict(inputs), dict(variables), False, None, None)
            nudged.random = np.random.default_rng(seed)
            for i, result in enumerate(nudged.scope(plan, {})):
                if outputs[i].dtype.is_float and result.size:
                    gap = np.abs(result.astype(np.float64) - wanted[i].astype(np.float64))
                    moved[i] = max(moved[i], float(np.nanmax(np.where(np.isfinite(gap), gap, 0))))
        return [
            SPREAD * far + ULPS * epsilon(n.dtype) * np.abs(want.astype(np.float64))
            if n.dtype.is_float else None
            for n, far, want in zip(outputs, moved, wanted)
        ]  # fmt: skip


# --- many graphs ---------------------------------------------------------------------------------


@dataclass
class Failure:
    """One graph on which a device failed, made small; `seed` gives the whole one again."""

    seed: tuple[int, int]
    message: str
    outputs: list[Node]
    inputs: dict[Node, np.ndarray]
    variables: dict[str, int]


@dataclass
class Report:
    """What a fuzzing run did; printing it tells all."""

    graphs: int = 0
    nodes: int = 0
    seconds: float = 0.0
    operations: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.graphs} graphs, {self.nodes} nodes, {self.seconds:.1f} s, "
                 f"{len(self.failures)} failures"]  # fmt: skip
        lines += [f"--- seed {f.seed}\n{f.message}" for f in self.failures]
        return "\n".join(lines)


def fuzz(
    run: Run, seconds: float, seed: int = 0,
    progress: Callable[[Report], None] | None = None, *,
    profile: str = "fast", expand: Expand | None = None, most_failures: int = 5,
    most_graphs: int | None = None, first: int = 0, size: int = 20,
    clock: Callable[[], float] = time.monotonic, **options: Any,
) -> Report:  # fmt: skip
    """Checks `run` on random graphs for `seconds`, or until `most_failures` or `most_graphs`.

    The graphs of a seed are numbered; they are taken from number `first` on. progress is called
    after each graph; options go to `generate`.
    """
    report, start = Report(), clock()
    while clock() - start < seconds and len(report.failures) < most_failures:
        if most_graphs is not None and report.graphs >= most_graphs:
            break
        this = (seed, first + report.graphs)
        outputs, inputs, variables = generate(np.random.default_rng(this), size, **options)
        order = toposort(outputs)
        report.graphs += 1
        report.nodes += len(order)
        report.operations.update(n.op.name for n in order)
        trial = _Trial(run, variables, profile, expand)
        if trial.message(outputs, inputs):
            report.failures.append(minimise(outputs, inputs, trial, this))
        report.seconds = clock() - start
        if progress is not None:
            progress(report)
    return report


@dataclass
class _Trial:
    """Tells whether a graph fails, and counts how often that was asked."""

    run: Run
    variables: dict[str, int]
    profile: str
    expand: Expand | None
    attempts: int = 0

    def message(self, outputs: Sequence[Node], inputs: Inputs) -> str:
        """What went wrong, or ""."""
        self.attempts += 1
        try:
            check(outputs, inputs, self.variables, self.run, profile=self.profile,
                  expand=self.expand)  # fmt: skip
        except Mismatch as error:
            return str(error)
        except Exception as error:
            text = f"{type(error).__name__}: {error}\n{to_text(outputs)}"
            return text + _bindings(self.variables)
        return ""

    def fails(self, outputs: Sequence[Node], inputs: Inputs) -> bool:
        return self.attempts < MOST_ATTEMPTS and bool(self.message(outputs, inputs))


def minimise(
    outputs: list[Node], inputs: Inputs, trial: _Trial, seed: tuple[int, int] = (0, 0)
) -> Failure:
    """A smaller graph that fails too: fewer outputs, then inputs in the place of nodes."""
    inputs = dict(inputs)
    single = next(([o] for o in outputs if trial.fails([o], inputs)), None)
    single = _fewer(outputs, inputs, trial) if single is None else single
    for node in toposort(single):  # the earliest node that is wrong by itself
        if node.op is not ops.INPUT and [node] != single and trial.fails([node], inputs):
            single = [node]
            break
    single, inputs = _cut(single, inputs, trial)
    needed = {n: inputs[n] for n in toposort(single) if n in inputs}
    trial.attempts = 0
    message = trial.message(single, needed) or "it failed once, and not again"
    return Failure(seed, message, single, needed, trial.variables)


def _fewer(outputs: list[Node], inputs: Inputs, trial: _Trial) -> list[Node]:
    """Outputs that fail together though each alone does not, without those that do not matter."""
    for out in outputs:
        rest = [o for o in outputs if o is not out]
        if rest and trial.fails(rest, inputs):
            outputs = rest
    return outputs


def _cut(
    outputs: list[Node], inputs: dict[Node, np.ndarray], trial: _Trial
) -> tuple[list[Node], dict[Node, np.ndarray]]:
    """Puts inputs in the place of nodes, those nearest to the outputs first, while it fails."""
    tried: set[Node] = set()
    while True:
        ends = set(outputs)
        order = [n for n in reversed(toposort(outputs))
                 if n not in ends and n not in tried and n.op is not ops.INPUT]  # fmt: skip
        if not order or trial.attempts >= MOST_ATTEMPTS:
            return outputs, inputs
        node = order[0]
        tried.add(node)
        stand_in = make(ops.INPUT, (), Storage(node.shape, node.dtype))
        value = evaluate([node], inputs, variables=trial.variables)[0]
        shorter = list(substitute(tuple(outputs), {node: stand_in}))
        if trial.fails(shorter, {**inputs, stand_in: value}):
            outputs, inputs = shorter, {**inputs, stand_in: value}
