"""Schedules that a search found faster than the heuristic's, kept and found by what they are for.

    key = hash of (the kernel's canonical text, the device, the machine, its threads)

A record holds directives and never code. It is used if the heuristic's schedule is still the one
that it was measured against, and if the plan it makes passes every check; else the kernel gets the
heuristic's plan. So a record may be old, damaged or hostile: it changes no result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from muladd import cache, config
from muladd.device import Device
from muladd.errors import FormatError, ScheduleError
from muladd.loop.bounds import prove
from muladd.loop.kernel import Kernel
from muladd.loop.lower import lower
from muladd.loop.plan import Plan
from muladd.loop.validate import validate
from muladd.schedule import legal
from muladd.schedule.primitives import apply

KIND = "schedules"
DEVICES = ("CPU", "OPENCL")  # where something can be measured
Lines = tuple[str, ...]
FORMAT = "muladd schedules 1"
_MOST_BYTES = 256 << 20  # of a file of them
_MOST_LINES, _MOST_TEXT = 500, 500
_MOST_SCRATCH = 64 << 20  # bytes of a thread
_FIELDS = ("kernel", "where", "baseline", "schedule", "ratio", "width")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What a search came to. schedule is None where nothing was faster.

    kernel: its description (loop/codec.py); where: `place_of` the device; baseline: the heuristic's
    schedule; ratio: the time taken by the heuristic's time; width: of the search.
    """

    kernel: dict[str, Any]
    where: str
    baseline: Lines
    schedule: Lines | None
    ratio: float
    width: int

    @property
    def mark(self) -> str:
        """What compiled code depends on."""
        return "" if self.schedule is None else "|".join((*self.schedule, "", *self.baseline))


def place_of(device: Device) -> str:
    """What a measurement depends on: the device, all that is known of the machine, its threads."""
    return f"{device.name} {threads_of(device)} {device.machine.key}"


def threads_of(device: Any) -> int:
    """How many threads compute on a device, started yet or not."""
    started = getattr(getattr(device, "pool", None), "threads", 0)  # others' pools are of memory
    return int(started or config.get("THREADS") or device.machine.cores)


def key_of(kernel: str, where: str) -> bytes:
    """What is known of the kernel with this key at such a place is kept under this."""
    return hashlib.blake2b(f"{where}|{kernel}".encode(), digest_size=20).digest()


def find(kernels: Iterable[str], device: Device) -> dict[str, Tuned]:
    """What is known of the kernels with these keys."""
    where = place_of(device)
    keys = {key_of(kernel, where): kernel for kernel in kernels}
    found = {}
    for key, blob in cache.cache().get_many(KIND, keys).items():
        try:
            tuned = parse(json.loads(blob))
        except (ValueError, RecursionError):
            continue
        if tuned.where == where:
            found[keys[key]] = tuned
    return found


def keep(kernel: str, tuned: Tuned) -> None:
    """Remember what a search came to."""
    blob = json.dumps(dataclasses.asdict(tuned)).encode()
    cache.cache().put(KIND, key_of(kernel, tuned.where), blob)


def export_to(path: Path) -> int:
    """Write every schedule that beats its heuristic to a file; gives their number."""
    records = []
    for blob in cache.cache().values(KIND):
        with contextlib.suppress(ValueError, RecursionError):
            tuned = parse(json.loads(blob))
            if tuned.schedule is not None:
                records.append(dataclasses.asdict(tuned))
    path.write_text(json.dumps({"format": FORMAT, "schedules": records}))
    return len(records)


def read(path: Path) -> list[Tuned]:
    """The records of such a file. Raises FormatError where it is none; what it holds may still be
    anything, and is measured before it is used (search.adopted)."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise FormatError(f"{path}: more than {_MOST_BYTES:,} bytes are no file of schedules")
        given = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path}: cannot be read as tuned schedules: {error}") from None
    if not isinstance(given, dict) or given.get("format") != FORMAT:
        raise FormatError(f"{path}: its format is not {FORMAT!r}; `muladd tune --export` writes it")
    records = given.get("schedules")
    if not isinstance(records, list):
        raise FormatError(f"{path}: schedules is a list")
    return [parse(x) for x in records]


def parse(given: Any) -> Tuned:
    """A record from JSON, of whatever origin. Raises FormatError where it is none."""
    if not isinstance(given, dict) or set(given) != set(_FIELDS):
        raise FormatError(f"tuned schedule: expected the fields {', '.join(_FIELDS)}")
    kernel, where, baseline, schedule, ratio, width = (given[x] for x in _FIELDS)
    if not isinstance(kernel, dict) or not isinstance(where, str):
        raise FormatError("tuned schedule: kernel is an object, where a text")
    if type(ratio) not in (int, float) or not 0 < ratio <= 1 or type(width) is not int:
        raise FormatError(f"tuned schedule: ratio {ratio!r}, expected a number up to 1")
    lines = None if schedule is None else _lines(schedule)
    return Tuned(kernel, where, _lines(baseline), lines, float(ratio), width)


def _lines(given: Any) -> Lines:
    if not isinstance(given, list) or len(given) > _MOST_LINES:
        raise FormatError(f"tuned schedule: a list of at most {_MOST_LINES} lines is a schedule")
    for line in given:
        if not isinstance(line, str) or not line.strip() or len(line) > _MOST_TEXT:
            raise FormatError(f"tuned schedule: a directive is a line of text, not {line!r:.40}")
    return tuple(given)


def plan_of(kernel: Kernel, usual: Plan, tuned: Tuned | None) -> Plan:
    """The plan of an (expanded) kernel: the tuned one if there is one and it holds, else usual."""
    if tuned is None or tuned.schedule is None or tuned.baseline != usual.lines:
        return usual
    try:
        return checked(kernel, tuned.schedule, usual.group > 0)
    except ScheduleError:
        return usual


def checked(kernel: Kernel, lines: Lines, groups: bool = False) -> Plan:
    """The plan that a schedule of unknown origin makes of an (expanded) kernel.

    Raises ScheduleError unless it is legal and every access of its loops is proven.
    """
    try:
        plan = apply(kernel, lines)
        legal.check(plan, kernel, groups)
        lowered = lower(plan)
        scratch = sum(a.count * max(a.lanes, 1) * a.dtype.itemsize for a in lowered.arrays.values())
        if scratch > _MOST_SCRATCH:
            raise ScheduleError(f"schedule: {scratch:,} bytes for each thread")
        validate(lowered)
        prove(lowered)
        return plan
    except ScheduleError:
        raise
    except Exception as error:  # a stranger's directives may break any assumption: all is refusal
        raise ScheduleError(f"schedule: it makes no loops of this kernel: {error}") from None
