"""The process that runs candidates of a search: it may crash or hang, and nobody is hurt.

    python -m muladd.compile.search.worker         requests and answers, a JSON object a line each

    {"kernel": ..., "device": "CPU", "baseline": [line, ...]}   ->  {"seconds": of one run}
    {"try": [line, ...], "turns": 5}    ->  {"pairs": [[seconds, baseline's], ...]}
    or {"refused": why}

A candidate's results are compared with the baseline's, on random data, before it is timed. The two
are timed in turns, so that a busy machine slows both.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from muladd import device as devices
from muladd.compile import backends
from muladd.device import Arg, Executable, Launch, Repeat
from muladd.errors import MuladdError
from muladd.ir import DType, dtype
from muladd.loop import codec
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.loop.validate import validate
from muladd.schedule import legal
from muladd.schedule.analysis import size
from muladd.schedule.primitives import apply

_SAMPLE = 0.002  # seconds that a sample lasts at least
_MOST_RUNS = 10_000  # of a sample
_HOPELESS = 1.25  # a candidate that takes so many times the baseline's time is not timed again
_BLOCK = 1_000_003  # random numbers, repeated to fill an array


class Bench:
    """A kernel on random data, its heuristic plan as the baseline."""

    def __init__(self, kernel: Kernel, device: str, baseline: list[str]) -> None:
        self.kernel, self.device = kernel, devices.get(device)
        self.backend = backends.of(self.device)
        random = np.random.default_rng(0)
        self.buffers = []
        for a in kernel.arguments:
            assert isinstance(a.size, int)
            self.buffers.append(self.device.allocate(a.size * a.dtype.itemsize))
            if not a.written:
                self.device.copy_in(self.buffers[-1], filling(random, a.dtype, a.size))
        plan = apply(self.kernel, tuple(baseline))
        self.groups = plan.group > 0
        programs = self.programs(plan)
        self.expected = self.results(programs(1))
        self.runs = 1
        self.seconds = self.sample(programs(1))
        if self.seconds < _SAMPLE:
            self.runs = min(_MOST_RUNS, int(_SAMPLE / max(self.seconds, 1e-7)) + 1)
        self.baseline = programs(self.runs)
        self.seconds = self.sample(self.baseline) / self.runs

    def programs(self, plan: Plan) -> Callable[[int], Executable]:
        """Makes programs that run the plan so many times."""
        lowered = lower(plan)
        validate(lowered)
        rendered = self.backend.render(lowered, {})
        handle = self.backend.load(self.backend.build(rendered), rendered.scratch)
        assert isinstance(lowered.grid, int)
        arguments = tuple(Arg(i) for i in range(len(self.buffers)))
        launch = Launch(handle, arguments, lowered.grid, "candidate")
        return lambda runs: self.device.program(
            (Repeat(runs, (launch,)),), len(self.buffers), rendered.scratch)

    def results(self, program: Executable) -> list[np.ndarray]:
        """What one run writes, over memory that holds nothing else."""
        found = []
        for a, buffer in zip(self.kernel.arguments, self.buffers):
            if a.written:
                self.device.copy_in(buffer, np.full(buffer.nbytes, 0xFF, np.uint8))
        program.run(self.buffers)
        for a, buffer in zip(self.kernel.arguments, self.buffers):
            if a.written:
                found.append(np.empty(buffer.nbytes, np.uint8))
                self.device.copy_out(buffer, found[-1])
        return found

    def sample(self, program: Executable) -> float:
        start = time.perf_counter()
        program.run(self.buffers)
        self.device.synchronize()
        return time.perf_counter() - start

    def pairs(self, lines: list[str], turns: int) -> list[tuple[float, float]]:
        """Seconds of a candidate and of the baseline, in so many turns, or in two if it is
        hopeless. Raises MuladdError if it is no plan, or computes something else."""
        plan = apply(self.kernel, tuple(lines))
        legal.check(plan, self.kernel, self.groups)
        programs = self.programs(plan)
        found = self.results(programs(1))
        written = [a.dtype for a in self.kernel.arguments if a.written]
        terms = max(size(s.reduced) for s in self.kernel.stages)
        for d, ours, theirs in zip(written, found, self.expected):
            if not equal(d, ours, theirs, terms, self.kernel.exact):
                raise MuladdError("search: the candidate computes something else")
        program = programs(self.runs)
        self.sample(program)
        out: list[tuple[float, float]] = []
        for turn in range(turns):
            pair = [self.baseline, program]
            taken = {one: self.sample(one) for one in (pair if turn % 2 else pair[::-1])}
            out.append((taken[program] / self.runs, taken[self.baseline] / self.runs))
            if turn >= 1 and all(a > _HOPELESS * b for a, b in out):
                break
        return out


def filling(random: np.random.Generator, d: DType, count: int) -> np.ndarray:
    """Random elements of a dtype as bytes: normal floats, whole numbers from 0 to 100."""
    few = min(count, _BLOCK)
    values: np.ndarray = random.integers(0, 101, few)
    if d.is_float:
        values = random.standard_normal(few, np.float32)
    elif d is dtype.bool_:
        values = values > 50
    stored = dtype.encode(values.astype(d.numpy), d)
    return np.resize(stored, count).view(np.uint8)


def equal(d: DType, ours: np.ndarray, theirs: np.ndarray, terms: int, exact: bool) -> bool:
    """Whether two results, as bytes, agree: to the bit in whole numbers and in the exact profile,
    else as closely as sums of so many terms in another order do."""
    if np.array_equal(ours, theirs):
        return True
    if exact or not d.is_float:
        return False
    a, b = (dtype.decode(x.view(d.storage), d) for x in (ours, theirs))
    finite = np.isfinite(b)
    if not np.array_equal(finite, np.isfinite(a)) or not np.array_equal(
            a[~finite], b[~finite], equal_nan=True):  # fmt: skip
        return False
    if not finite.any():
        return True
    step = 2.0**-52 if d is dtype.float64 else 2.0**-23
    own = 2.0 ** -(d.mantissa or 1)
    tolerance = 4 * own * (own > step) + 64 * step * max(terms, 1) ** 0.5
    a, b = a[finite], b[finite]
    return float(np.abs(a - b).max()) <= tolerance * float(np.abs(b).max())


def main() -> None:
    """Answer requests until there are none."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints, prints elsewhere
    bench: Bench | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if hasattr(signal, "alarm"):  # nobody may be left to end this process if it hangs
            signal.alarm(int(asked["limit"]) + 5)
        answer: dict[str, Any]
        try:
            if "kernel" in asked:
                bench = None
                kernel = codec.decode(asked["kernel"])
                bench = Bench(kernel, asked["device"], asked["baseline"])
                answer = {"seconds": bench.seconds}
            else:
                assert bench is not None
                answer = {"pairs": bench.pairs(asked["try"], asked["turns"])}
        except Exception as error:  # any refusal is an answer
            answer = {"refused": f"{type(error).__name__}: {error}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
