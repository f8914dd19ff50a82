"""Timing contenders fairly: alternating, after a pause and warm-up calls, medians of several turns.

Two libraries in one process share the cores, and the threads of each spin for a while after their
work. A sample taken right after the other's call measures that spinning (errors of 2-5 times both
ways were seen), so each sample waits a few milliseconds and calls twice before the clock starts.
"""
from __future__ import annotations

import ctypes
import gc
import itertools
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

Clock = Callable[[], float]
Call = Callable[[], object]

GAP = 0.02  # seconds: until the threads of whoever ran last sleep (OpenMP spins for some 6 ms)
LEAST = 1.5  # seconds for a case, so that a moment in which others were busy is not half of it
WARM_UPS = 2
_LONG = 0.2  # seconds of a call beyond which one warm-up call is enough
_MOST = 100_000  # calls of a sample
_SAMPLE = 0.01  # seconds that a sample lasts at least, so that short calls are timed in batches


@dataclass(frozen=True)
class Timing:
    """Seconds a call took: the median, the least, and how many samples there were."""

    median: float
    least: float
    samples: int


@dataclass(frozen=True)
class Effort:
    """How much measuring is spent on a case."""

    repeat: int = 9  # samples of each contender, if the seconds suffice
    seconds: float = 12.0  # after so long a case takes no more than three samples
    gap: float = GAP
    least: float = 0.0  # seconds of sampling at least, however many samples that are
    best: bool = False  # judge by the fastest sample, on a machine that is not quiet


QUICK = Effort(repeat=3, seconds=2.0)


def alternate(
    contenders: Mapping[str, Call], effort: Effort, clock: Clock = time.perf_counter,
    sleep: Callable[[float], object] = time.sleep,
) -> dict[str, Timing]:  # fmt: skip
    """The time of each contender, sampled in turns so that drift of the machine hits all alike."""
    plans = {name: _batch(call, clock) for name, call in contenders.items()}
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    soon, end = clock() + effort.least, clock() + effort.seconds
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        for turn in itertools.count():
            if turn >= effort.repeat and clock() >= soon:
                break
            if clock() > end and (turn >= 3 or clock() > end + effort.seconds):
                break
            for name, call in contenders.items():
                sleep(effort.gap)
                taken[name].append(_sample(call, *plans[name], clock))
    finally:
        if was_collecting:
            gc.enable()
    return {name: Timing(statistics.median(ts), min(ts), len(ts)) for name, ts in taken.items()}


def _batch(call: Call, clock: Clock) -> tuple[int, int]:
    """(calls of a sample, calls before it). The first call is not looked at: it may compile; and
    one call alone, after others' work, takes several times what it takes among its like."""
    call()
    count = 1
    while True:
        start = clock()
        for _ in range(count):
            call()
        taken = max(clock() - start, 1e-8)
        if taken >= _SAMPLE / 4 or count >= _MOST:
            break
        count *= 4
    each = taken / count
    return max(1, min(_MOST, round(_SAMPLE / each))), WARM_UPS if each < _LONG else 1


def _sample(call: Call, count: int, warm_ups: int, clock: Clock) -> float:
    for _ in range(warm_ups):
        call()
    start = clock()
    for _ in range(count):
        call()
    return (clock() - start) / count


# --- who else is here -----------------------------------------------------------------------------


class Neighbours:
    """How much of the cores other processes took since this was made."""

    def __init__(self) -> None:
        self._before = _busy()

    def share(self) -> float | None:
        """Their part of all cores' time, 0 to 1; None where the system does not tell."""
        after = _busy()
        if after is None or self._before is None:
            return None
        everybody, ours, whole = (b - a for a, b in zip(self._before, after))
        # both clocks tick in hundredths and not at once: a short while may seem more than whole
        return min(max((everybody - ours) / whole, 0.0), 1.0) if whole > 0 else 0.0


def _busy() -> tuple[float, float, float] | None:
    """Seconds since the start that all processes, this one with its children, and all cores ran."""
    try:
        with open("/proc/stat", encoding="ascii") as file:
            ticks = [int(n) for n in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    per_second = os.sysconf("SC_CLK_TCK")
    idle = ticks[3] + ticks[4]
    own = os.times()
    return ((sum(ticks) - idle) / per_second, sum(own[:4]), sum(ticks) / per_second)


# --- memory of the peers -------------------------------------------------------------------------

# glibc's mallopt: numbers from malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


@contextmanager
def recycled_memory() -> Iterator[bool]:
    """Inside, memory that malloc gets back is handed out again instead of returned to the system.

    A peer whose large results are fresh pages of the system each time pays for their first touch,
    often more than for the arithmetic. Yields False where the C library cannot be told.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield False
        return
    library.mallopt(_M_MMAP_MAX, 0)
    library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield True
    finally:  # what glibc's own adaption reaches after the first large block
        library.mallopt(_M_MMAP_MAX, 65536)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        library.malloc_trim(0)


__all__ = ["GAP", "LEAST", "QUICK", "Effort", "Neighbours", "Timing", "alternate",
           "recycled_memory"]  # fmt: skip
