"""Which kernels are furthest from what the machine could do: predicted beside measured time.

The prediction is the roofline: the longer of the time for a kernel's operations and the time for
its arguments, each read or written once.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from muladd.bench.case import US, Contest, quantity
from muladd.bench.roofline import Peaks
from muladd.ir import sym, toposort
from muladd.schedule.analysis import work

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
        return self.taken / max(self.predicted, 1e-9)


def gaps(case: str, contest: Contest, ceilings: Peaks) -> list[Gap]:
    """The kernels of a contest's programs, each timed by the device itself."""
    found = []
    for program in contest.programs:
        executable: Any = program.bind(()).executable
        executable.timing = True
        try:
            executable.times()
            for _ in range(_RUNS):
                contest.contenders[US]()
            taken = {t.name: t.seconds / max(t.calls, 1) for t in executable.times()}
        finally:
            executable.timing = False
        for kernel in program.kernels():
            if taken.get(kernel.name):
                least = ceilings.seconds(*_work(kernel.kernel))
                found.append(Gap(case, kernel.name, least, taken[kernel.name]))
    return found


def _work(kernel: Any) -> tuple[float, float]:
    """(operations, bytes of the arguments)."""
    flops = 0.0
    for stage in kernel.stages:
        scalar = sum(n.op.flops for n in toposort((stage.value,)) if n.dtype.is_float)
        flops += float(work(stage)) * (scalar + (stage.reduction is not None))
    nbytes = sum(sym.bounds(a.size)[1] * a.dtype.itemsize for a in kernel.arguments)
    return flops, float(nbytes)


def worst_text(found: Sequence[Gap], most: int = 20) -> str:
    """The kernels with the largest gap first."""
    lines = [f"{'gap':>7}  {'predicted':>9}  {'taken':>9}  kernel (case)"]
    for gap in sorted(found, key=lambda g: -g.times)[:most]:
        lines.append(f"{gap.times:6.1f}x  {quantity(gap.predicted, 's'):>9}  "
                     f"{quantity(gap.taken, 's'):>9}  {gap.kernel} ({gap.case})")  # fmt: skip
    return "\n".join(lines)
