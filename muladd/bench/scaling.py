"""What a second thread gains: the same compiled kernel on one thread and on two, in turns."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from muladd import device as devices
from muladd.bench.case import US, BenchmarkError, Case, Contest, Kernel, Target
from muladd.bench.peers import Peers
from muladd.device.machine import usable_cores

_LEAST = 1.8  # times as fast, where multiply-adds are what takes the time


@dataclass(frozen=True)
class Scaling:
    """The time on one thread, as the peer's, and on two as ours."""

    kernel: Callable[[Peers], Contest]

    def __call__(self, peers: Peers) -> Contest:
        if usable_cores() < 2:
            raise BenchmarkError("bench: this process may use one core only")
        contest = self.kernel(Peers((), 2))
        run = contest.contenders[US]
        contest.contenders = {"1 thread": _on(1, run), US: _on(2, run)}
        contest.recycled = {}
        return contest


def _on(threads: int, run: Callable[[], Any]) -> Callable[[], Any]:
    place: Any = devices.get("CPU")

    def call() -> Any:
        place.set_threads(threads)  # nothing to do but in the first call of a sample
        return run()

    return call


def threaded(cases: Iterator[Case], names: tuple[str, ...]) -> Iterator[Case]:
    """These cases of kernels, by name, as cases of the group `threads`."""
    for case in cases:
        if case.name in names:
            assert isinstance(case.prepare, Kernel)
            yield Case(f"{case.name}, 1 -> 2 threads", "threads", Scaling(case.prepare),
                       Target(_LEAST))  # fmt: skip
