"""Searching for a kernel's schedule: candidates near the heuristic's, pruned by price, measured.

A beam of the best plans so far. In each generation plans near them are priced (schedule/price.py),
the cheapest are measured in a process of their own (worker.py), and the best make the next beam.
What is found must beat the heuristic's plan by a margin in a longer measurement, or nothing is
found: noise does not make a kernel slower.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from random import Random

from muladd.compile import backends, tuned
from muladd.compile.search.process import Worker
from muladd.device import Device
from muladd.errors import FormatError, ScheduleError
from muladd.loop import codec
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.schedule import legal, neighbours
from muladd.schedule.price import cycles
from muladd.schedule.primitives import apply

MARGIN = 0.97  # of the heuristic's time: what takes more is not worth its place
_TURNS, _MORE_TURNS = 5, 15  # samples of a candidate, and of one that is to be kept
_MEASURED = 3  # candidates of a generation for each plan of the beam; four times as many are priced
_DEAR = 2.0  # times the best plan's price: not measured
_IDLE = 2  # generations without a better plan after which a search ends
_LIMIT = 10.0  # seconds for compiling and measuring a candidate
_OVER = 3.0  # seconds that the last candidate may take too long
_RESERVE = 0.1  # of the time: for the last measurement


@dataclass
class Progress:
    """What a search has done so far; `best` is the time of the best plan by the heuristic's."""

    tried: int = 0
    lost: int = 0
    best: float = 1.0


@dataclass(frozen=True)
class _Candidate:
    plan: Plan
    price: float
    ratio: float = 1.0


def can_search(kernel: Kernel, device: Device) -> bool:
    """Whether there is anything to choose, and sizes to measure at."""
    return (device.name in tuned.DEVICES and not kernel.variables()
            and not any(s.scatter for s in kernel.stages))  # fmt: skip


def search(
    kernel: Kernel, device: Device, seconds: float, width: int, worker: Worker | None = None,
    clock: Callable[[], float] = time.monotonic,
    told: Callable[[Progress], object] = lambda progress: None,
) -> tuned.Tuned:  # fmt: skip
    """The fastest schedule found in so many seconds, or none where the heuristic's is as fast.

    It begins with what is known from earlier, too. A search that time ended has width 0.
    """
    if not can_search(kernel, device):
        return tuned.Tuned({}, tuned.place_of(device), (), None, 1.0, width)
    if worker is None:
        with Worker(device) as own:
            return search(kernel, device, seconds, width, own, clock, told)
    return _Search(kernel, device, width, worker, clock() + seconds, seconds, clock, told).run()


class _Search:
    def __init__(
        self, kernel: Kernel, device: Device, width: int, worker: Worker, end: float,
        seconds: float, clock: Callable[[], float], told: Callable[[Progress], object],
    ) -> None:  # fmt: skip
        self.kernel, self.device, self.width, self.worker = kernel, device, width, worker
        self.backend = backends.of(device)
        self.usual = self.backend.schedule(self.kernel)
        self.nothing = tuned.Tuned(codec.encode(kernel), tuned.place_of(device), self.usual.lines,
                                   None, 1.0, width)  # fmt: skip
        self.end, self.clock = end - seconds * _RESERVE, clock
        self.told, self.progress, self.lost = told, Progress(), worker.lost
        known = tuned.find([kernel.key()], device).get(kernel.key())
        stale = known is None or known.schedule is None or known.baseline != self.usual.lines
        self.known = None if stale else known
        self.seen: set[tuple[str, ...]] = set()
        self.plans: set[str] = set()
        self.random = Random(0)

    def run(self) -> tuned.Tuned:
        if self.worker.begin(self.nothing.kernel, self.usual.lines) is None:
            return self.nothing
        first = self.priced(self.usual)
        self.seen.add(self.usual.lines)
        beam, idle, done = [first], 0, False
        new = self.generation(self.starts(), first.price)
        while self.clock() < self.end and not done:
            best = beam[0].ratio
            beam = sorted([*beam, *self.measured(new)], key=lambda c: c.ratio)[: self.width]
            idle = 0 if beam[0].ratio < best * 0.99 else idle + 1
            new = self.generation(self.near(beam), min(c.price for c in beam))
            done = self.clock() < self.end and (not new or idle > _IDLE)
        found = self.confirmed([c for c in beam if c.ratio < MARGIN])
        return replace(found, width=self.width if done else 0)

    def starts(self) -> Iterator[tuple[str, ...]]:
        if self.known is not None and self.known.schedule is not None:
            yield self.known.schedule
        yield from neighbours.starts(self.kernel, self.device.machine, self.backend.schedule)

    def near(self, beam: list[_Candidate]) -> Iterator[tuple[str, ...]]:
        found = [lines for c in beam for lines in neighbours.near(c.plan) if lines not in self.seen]
        self.random.shuffle(found)
        yield from found

    def generation(self, given: Iterable[tuple[str, ...]], least: float) -> list[_Candidate]:
        """The cheapest of plans not met before, cheapest first. Pricing them takes a quarter of
        the time at most, or what it takes to have enough."""
        found: list[_Candidate] = []
        wanted = _MEASURED * self.width
        enough = self.clock() + (self.end - self.clock()) / 4
        for lines in given:
            if len(found) >= (wanted if self.clock() > enough else 4 * wanted):
                break
            if self.clock() > self.end:
                break
            if lines in self.seen:
                continue
            self.seen.add(lines)
            try:
                plan = apply(self.kernel, lines)
                legal.check(plan, self.kernel, self.usual.group > 0)
                candidate = self.priced(plan)
            except Exception:  # a change that fits no kernel fails anywhere
                continue
            text = f"{plan.kernel.text()} {plan.text()} {plan.layouts} {plan.inside} {plan.ahead}"
            if text not in self.plans and candidate.price <= _DEAR * least:
                self.plans.add(text)
                found.append(candidate)
        return sorted(found, key=lambda c: c.price)[:wanted]

    def priced(self, plan: Plan) -> _Candidate:
        return _Candidate(plan, cycles(lower(plan), self.device.machine))

    def measured(self, given: list[_Candidate]) -> Iterator[_Candidate]:
        for c in given:
            left = self.end - self.clock()
            if left <= 0:
                return
            pairs = self.worker.pairs(c.plan.lines, _TURNS, min(_LIMIT, left + _OVER))
            self.progress.tried += 1
            self.progress.lost = self.worker.lost - self.lost
            if pairs:
                c = replace(c, ratio=_ratio(pairs))
                self.progress.best = min(self.progress.best, c.ratio)
                yield c
            self.told(self.progress)

    def confirmed(self, best: list[_Candidate]) -> tuned.Tuned:
        """The first that is faster in a longer measurement too, and whose accesses are proven."""
        for c in best[:3]:
            try:
                ratio = verdict(self.kernel, c.plan.lines, self.usual, self.worker)
            except ScheduleError:
                continue
            if ratio is not None and (self.known is None or ratio < self.known.ratio):
                return replace(self.nothing, schedule=c.plan.lines, ratio=ratio)
        return self.known or self.nothing


def adopted(given: tuned.Tuned, device: Device, worker: Worker) -> tuned.Tuned | None:
    """A record from elsewhere as one of this machine, if its schedule passes here what one that was
    searched passes: checks, equal results, and a measurement. Raises FormatError or ScheduleError
    where it is not to be trusted."""
    kernel = codec.decode(given.kernel)
    if given.schedule is None or not can_search(kernel, device):
        return None
    try:
        written = codec.encode(kernel)
        usual = backends.of(device).schedule(kernel)
    except Exception as error:  # a kernel that no graph gives may break any assumption
        raise FormatError(f"tuned schedule: of a kernel that cannot be: {error}") from None
    if worker.begin(written, usual.lines) is None:
        return None
    ratio = verdict(kernel, given.schedule, usual, worker)
    if ratio is None:
        return None
    return replace(given, kernel=written, where=tuned.place_of(device), baseline=usual.lines,
                   ratio=ratio)  # fmt: skip


def verdict(
    kernel: Kernel, lines: tuple[str, ...], usual: Plan, worker: Worker, limit: float = _LIMIT
) -> float | None:
    """The time by the heuristic's of a schedule for a kernel that the worker has begun;
    None if it is not faster for sure. Raises ScheduleError if it is not to be trusted."""
    tuned.checked(kernel, lines, usual.group > 0)
    pairs = worker.pairs(lines, _MORE_TURNS, limit)
    faster = sum(a < b for a, b in pairs)
    if len(pairs) < _MORE_TURNS or faster < len(pairs) * 3 / 4 or _ratio(pairs) > MARGIN:
        return None
    return _ratio(pairs)


def _ratio(pairs: list[list[float]]) -> float:
    """The least time of a candidate by the least of the baseline: what disturbs only adds."""
    return min(a for a, _ in pairs) / max(min(b for _, b in pairs), 1e-9)
