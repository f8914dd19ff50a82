"""What a benchmark is: contenders that do the same work, how much work it is, and the target.

A `Case` is cheap to make and says nothing of sizes in memory; `prepare` builds its contenders,
compares their outputs, and gives a `Contest` ready to be timed.
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muladd.bench.peers import Peers, torch_call, torch_tensors
from muladd.errors import MuladdError
from muladd.ir import Node
from muladd.ir.cost import cost
from muladd.tensor import Tensor

US = "muladd"


class BenchmarkError(MuladdError):
    """A benchmark cannot be run or its contenders do not agree."""


@dataclass(frozen=True)
class Target:
    """What is aimed at: at least `ratio` times the peer's speed, or at most so many seconds.

    `must` is the ratio below which the case counts as missed; `ratio` may aim higher.
    """

    ratio: float | None = None
    must: float | None = None
    seconds: float | None = None

    def text(self) -> str:
        if self.seconds is not None:
            return f"<= {quantity(self.seconds, 's')}"
        if self.ratio is None:
            return ""
        least = self.ratio if self.must is None else self.must
        return f">= {least:g}" + (f", aim {self.ratio:g}" if least != self.ratio else "")

    def verdict(self, seconds: float, ratio: float | None) -> str:
        """'met', 'aim' (the must is met, the aim too), 'missed', or '' if nothing can be said."""
        if self.seconds is not None:
            return "met" if seconds <= self.seconds else "missed"
        if self.ratio is None or ratio is None:
            return ""
        if ratio >= self.ratio:
            return "met"
        return "missed" if self.must is None or ratio < self.must else "must met"


def quantity(value: float, unit: str) -> str:
    """A number in people's units: 0.0000032 s is 3.2 us."""
    for factor, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"),
                           (1e-6, "u"), (1e-9, "n")):  # fmt: skip
        if abs(value) >= factor * 0.9995 and not (unit == "s" and factor > 1):
            return f"{value / factor:.3g} {prefix}{unit}" if value < 1000 * factor else (
                f"{value / factor:.0f} {prefix}{unit}")  # fmt: skip
    return f"{value:.3g} {unit}"


Call = Callable[[], Any]


@dataclass
class Contest:
    """Contenders by name ('muladd', 'torch'); `recycled` are the same with outputs in memory that
    was written before. `seconds` holds times that were measured elsewhere (other processes)."""

    contenders: dict[str, Call]
    recycled: dict[str, Call] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    flops: float = 0.0
    nbytes: float = 0.0
    items: int = 0  # what else there is to count, for work that is no arithmetic
    item: str = ""
    absent: dict[str, str] = field(default_factory=dict)  # peers that cannot, and why
    difference: float | None = None  # the greatest relative difference of the outputs
    programs: list[Any] = field(default_factory=list)  # compiled programs, for `--worst`

    def enter(self, peer: str, call: Call, check: Callable[[Call], float]) -> None:
        """Let a peer take part once `check` has compared its outputs, giving their difference. A
        peer that raises is absent, and its row says why."""
        try:
            found = check(call)
        except (BenchmarkError, TimeoutError):
            raise
        except Exception as error:  # whatever goes wrong over there, ours is measured
            self.absent[peer] = reason(error)
        else:
            self.contenders[peer] = call
            self.difference = max(found, self.difference or 0.0)


@dataclass(frozen=True)
class Case:
    """One benchmark: `prepare` is called with the peers when its turn comes.

    `target` is judged beside the fastest peer, or is a limit of our own time; `beside` has the
    targets of peers that are judged each by itself.
    """

    name: str
    group: str
    prepare: Callable[[Peers], Contest]
    target: Target = Target()
    beside: Mapping[str, Target] = field(default_factory=dict)
    recycled_target: Target = Target()
    quick: bool = True  # whether `--quick` includes it


# --- kernels: one expression for both sides ------------------------------------------------------


@dataclass(frozen=True)
class Given:
    """An input: values of a distribution, in a shape and dtype."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    high: int = 0  # whole numbers below it, for indices

    def array(self, rng: np.random.Generator) -> np.ndarray:
        if self.high:
            return rng.integers(0, self.high, self.shape, dtype=np.int64)
        if self.dtype == "int8":
            return rng.integers(-100, 100, self.shape, dtype=np.int8)
        return rng.standard_normal(self.shape, dtype=np.float32)


Expression = Callable[..., Any]  # (f, *tensors) -> a tensor, or several


@dataclass(frozen=True)
class Kernel:
    """A case of one compiled program, called with its arrays directly.

    flops and nbytes are those of the graph unless given (for work that can be skipped).
    """

    ours: Expression
    given: tuple[Given, ...]
    theirs: Expression | None = None  # None: the same expression
    backward: bool = False
    flops: float | None = None
    nbytes: float | None = None
    tolerance: float = 2e-4

    def __call__(self, peers: Peers) -> Contest:
        rng = np.random.default_rng(0)
        arrays = [g.array(rng) for g in self.given]
        dtypes = [g.dtype if not g.high else "int64" for g in self.given]
        contest, values = self._ours(arrays, dtypes)
        torch = peers.torch
        if torch is not None:
            tensors = torch_tensors(torch, arrays, dtypes)
            call, expected = torch_call(torch, self.theirs or self.ours, tensors, self.backward)
            contest.contenders["torch"] = contest.recycled["torch"] = call
            contest.difference = compare(values(), expected(), self.tolerance)
        return contest

    def _ours(
        self, arrays: Sequence[np.ndarray], dtypes: Sequence[str]
    ) -> tuple[Contest, Callable[[], list[np.ndarray]]]:
        from muladd.compile import compile_graph, parameters

        tensors = [Tensor(a).cast(d) for a, d in zip(arrays, dtypes)]
        tensors[0].realize(*tensors[1:])
        outputs = self._outputs(tensors)
        device = outputs[0].device
        graph, storages = parameters(tuple(t.node for t in outputs))
        program = compile_graph(graph, device)
        inputs = [s.buffer for s in storages]
        kept = program.run(inputs)
        flops, nbytes = work(graph) if self.flops is None or self.nbytes is None else (0.0, 0.0)
        contest = Contest(
            {US: lambda: program.run(inputs)},
            {US: lambda: program.run(inputs, (), kept)},
            flops=flops if self.flops is None else self.flops,
            nbytes=nbytes if self.nbytes is None else self.nbytes,
            programs=[program],
        )  # fmt: skip
        return contest, lambda: [_values(t) for t in outputs]

    def _outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        leaves = [t for t in tensors if self.backward and t.dtype.is_float]
        for leaf in leaves:
            leaf.requires_grad_()
        found = self.ours(Tensor, *tensors)
        outputs = list(found) if isinstance(found, (tuple, list)) else [found]
        if leaves:
            outputs[0].sum().backward()
            outputs += [leaf.grad for leaf in leaves if leaf.grad is not None]
        return outputs


def _values(t: Tensor) -> np.ndarray:
    return np.asarray(t.detach().numpy())


def work(graph: Sequence[Node]) -> tuple[float, float]:
    """(operations, bytes that must be moved) of a graph with fixed sizes."""
    price = cost(graph)
    return _number(price.flops), _number(price.bytes_read) + _number(price.bytes_written)


def _number(x: Any) -> float:
    if not isinstance(x, int):
        raise BenchmarkError(f"bench: a case has fixed sizes, its cost is {x}")
    return float(x)


def compare(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], tolerance: float) -> float:
    """The greatest difference, relative to the greatest value of its array. Raises if too large."""
    worst = 0.0
    if len(ours) != len(theirs):
        raise BenchmarkError(f"bench: {len(ours)} outputs here, {len(theirs)} at the peer")
    for a, b in zip(ours, theirs):
        if a.shape != b.shape:
            raise BenchmarkError(f"bench: shapes {a.shape} here, {b.shape} at the peer")
        a, b = a.astype(np.float64), b.astype(np.float64)
        scale = max(float(np.abs(b).max(initial=0.0)), 1e-30)
        found = float(np.abs(a - b).max(initial=0.0)) / scale
        if not found <= tolerance:  # also when it is NaN
            raise BenchmarkError(f"bench: outputs differ by {found:.2g} of their range, more than "
                                 f"{tolerance:.0e}")  # fmt: skip
        worst = max(worst, found)
    return worst


def kernel(
    name: str, ours: Expression, *given: Given | tuple[int, ...], group: str = "kernels",
    target: Target = Target(), recycled_target: Target = Target(), quick: bool = True,
    **options: Any,
) -> Case:  # fmt: skip
    """A case of the kernel table; shapes stand for float32 inputs."""
    inputs = tuple(g if isinstance(g, Given) else Given(g) for g in given)
    made = Kernel(ours, inputs, **options)
    return Case(name, group, made, target, recycled_target=recycled_target, quick=quick)


def reason(error: Exception) -> str:
    """A failure in one short line."""
    said = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {said}"[:160]
