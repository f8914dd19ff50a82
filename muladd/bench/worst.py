"""Which kernels are furthest from what the machine could do: predicted beside measured time.

The prediction is the roofline: the longer of the time for a kernel's operations and the time for
its arguments, each read or written once.
"""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from muladd.bench.case import US, Contest, quantity
from muladd.compile import pipeline, report
from muladd.compile.roofline import Peaks

_RUNS = 5


@dataclass(frozen=True)
class Gap:
    """One kernel of a case: seconds predicted and seconds taken."""

    case: str
    kernel: str
    predicted: float
    taken: float

    @property
    def times(self) -> float:
        return self.taken / max(self.predicted, 1e-7)  # nothing is done in less than 100 ns


@contextmanager
def compiled_programs() -> Iterator[list[Any]]:
    """The programs that are compiled inside."""
    found: list[Any] = []
    before = set(map(id, pipeline.compiled()))
    yield found
    found += [p for p in pipeline.compiled() if id(p) not in before]


def gaps(case: str, contest: Contest, ceilings: Peaks) -> list[Gap]:
    """The kernels of a contest's programs, each timed by the device itself, joined by name."""
    executables = [t.executable for p in contest.programs for t in p.tables.values()]
    if US not in contest.contenders:
        return []
    for executable in executables:
        executable.timing = True
        executable.times()
    try:
        for _ in range(_RUNS):
            contest.contenders[US]()
        seconds: dict[str, float] = defaultdict(float)
        calls: dict[str, int] = defaultdict(int)
        for time in (t for e in executables for t in e.times()):
            seconds[time.name] += time.seconds
            calls[time.name] += time.calls
    finally:
        for executable in executables:
            executable.timing = False
    least: dict[str, list[float]] = defaultdict(list)
    for kernel in (k for p in contest.programs for k in p.kernels()):
        work, moved = report.flops(kernel.kernel, {}), report.nbytes(kernel.kernel, {})
        least[kernel.name].append(ceilings.seconds(work, moved))
    return [Gap(case, name, sum(found) / len(found), seconds[name] / calls[name])
            for name, found in least.items() if calls[name]]  # fmt: skip


def worst_text(found: Sequence[Gap], most: int = 20) -> str:
    """The kernels with the largest gap first."""
    lines = [f"{'gap':>7}  {'predicted':>9}  {'taken':>9}  kernel (case)"]
    for gap in sorted(found, key=lambda g: -g.times)[:most]:
        lines.append(f"{gap.times:6.1f}x  {quantity(gap.predicted, 's'):>9}  "
                     f"{quantity(gap.taken, 's'):>9}  {gap.kernel} ({gap.case})")  # fmt: skip
    return "\n".join(lines)
