"""`muladd tune`: search faster schedules for the kernels of a model, longest delay first.

A model is anything that runs: MODULE:FUNCTION, FILE.py:FUNCTION, or a name (`demo`, a benchmark).
Its kernels are timed as they run; each gets a share of the seconds by what it takes beyond the
roofline. At the end whole programs are timed with the new schedules and without, and schedules that
made their program slower are withdrawn. Stopping early (Ctrl-C) keeps what has been found.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, TextIO

from muladd.compile import pipeline, report, tuned
from muladd.compile.program import Program
from muladd.compile.search import Progress, adopted, can_search, search, whole
from muladd.compile.search.process import Worker
from muladd.device import Device
from muladd.errors import ArgumentError, MuladdError
from muladd.loop import codec
from muladd.tensor import Tensor
from muladd.tensor.tree import tree_leaves

Model = Callable[[], object]
_WARM_UPS = 2  # runs until nothing is compiled: as it stands, then traced
_LEAST = 3.0  # seconds that a search has, if there are so many left
_SLOWER = 1.01  # of a whole program: more is not noise


# --- models --------------------------------------------------------------------------------------


def load(name: str) -> Model:
    """What runs the model of this name once. Raises ArgumentError if there is none."""
    place, _, function = name.partition(":")
    suffix = Path(place).suffix
    if suffix in LOADERS:
        return LOADERS[suffix](Path(place), function)
    if function:
        return _named(_imported(place), function)
    if name == "demo":
        return _demo
    return _benchmark(name)


def _from_file(path: Path, function: str) -> Model:
    if not path.is_file():
        raise ArgumentError(f"tune: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return _named(module, function or "main")


def _imported(name: str) -> Any:
    sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ArgumentError(f"tune: module {name} cannot be imported: {error}") from None


def _named(module: Any, function: str) -> Model:
    found = getattr(module, function, None)
    if not callable(found):
        raise ArgumentError(f"tune: {module.__name__} has no function {function!r}; a model is a "
                            "function that is called without arguments")  # fmt: skip
    try:
        signature(found).bind()
    except TypeError as error:
        raise ArgumentError(f"tune: {module.__name__}.{function} cannot be called without arguments"
                            f" ({error}); make a function that gives them") from None  # fmt: skip
    except ValueError:  # of a function in C, say: it is seen when it is called
        pass
    return found


def _demo() -> None:
    from muladd import demo

    quiet = contextlib.redirect_stderr(io.StringIO())  # its progress is not ours
    with tempfile.TemporaryDirectory() as folder, quiet:
        demo.run(Path(folder) / "demo.safetensors", epochs=1, quiet=True)


def _benchmark(name: str) -> Model:
    from muladd.bench.case import US
    from muladd.bench.cases import chosen
    from muladd.bench.peers import Peers

    cases = chosen([name])
    exact = [c for c in cases if c.name == name] or cases
    alone = Peers((), threads=1)
    contests = [c.prepare(alone) for c in exact if c.group not in ("compile", "graph")]
    calls = [c.contenders[US] for c in contests if US in c.contenders]
    if not calls:
        raise ArgumentError(f"tune: no model {name!r}; expected MODULE:FUNCTION, a file "
                            f"({', '.join(LOADERS)}) and :FUNCTION, demo, or (a part of) the name "
                            "of a benchmark")  # fmt: skip
    return lambda: [call() for call in calls]


# by suffix: what makes a model of a file, and of what is named behind the colon
LOADERS: dict[str, Callable[[Path, str], Model]] = {".py": _from_file}


# --- tuning --------------------------------------------------------------------------------------


@dataclass
class Line:
    """What became of one kernel. ratio is its time by the heuristic's; state: found, none, known
    (found before) or withdrawn."""

    name: str
    shapes: str
    part: float  # of the model's time
    ratio: float = 1.0
    state: str = "none"
    tried: int = 0
    lost: int = 0


@dataclass
class _Found:
    row: report.Row
    line: Line
    tuned: tuned.Tuned


def overall(lines: list[Line]) -> float:
    """The time of all of a model's kernels by what it is with the heuristic's schedules."""
    before = sum(x.part / (x.ratio if x.state == "known" else 1) for x in lines)
    now = sum(x.part * (1 if x.state == "known" else x.ratio) for x in lines)
    rest = 1 - sum(x.part for x in lines)
    return (now + rest) / max(before + rest, 1e-12)


def timed(model: Model) -> list[report.Row]:
    """The kernels that a model runs, with the time each takes."""
    for _ in range(_WARM_UPS):
        _run(model)
    with report.profile() as found:
        _run(model)
    return found.sorted()


def _run(model: Model) -> None:
    """Once, with all that it gives computed."""
    tensors = [x for x in tree_leaves(model()) if isinstance(x, Tensor)]
    if tensors:
        tensors[0].realize(*tensors[1:])


def tune(
    model: Model, seconds: float, width: int, display: Display,
    clock: Callable[[], float] = time.monotonic,
) -> list[Line]:  # fmt: skip
    """Search for the model's kernels, for so many seconds; what is found lies in the cache."""
    rows = [r for r in timed(model) if can_search(r.kernel.kernel, r.kernel.backend.device)]
    if not rows:
        raise ArgumentError("tune: the model ran no kernel that schedules can be searched for; it "
                            "should compute what it gives")  # fmt: skip
    whole_time = sum(r.seconds for r in rows) or 1.0
    ceilings = report.ceilings()
    gaps = {id(r): max(r.seconds - ceilings.seconds(r.flops, r.nbytes), 0.0) for r in rows}
    rows.sort(key=lambda r: -gaps[id(r)])
    lines, found, end = [], [], clock() + seconds
    workers: dict[str, Worker] = {}
    try:
        for k, row in enumerate(rows):
            left = end - clock()
            share = left * gaps[id(row)] / max(sum(gaps[id(r)] for r in rows[k:]), 1e-12)
            share = min(left, max(share, _LEAST))
            line = Line(row.name, row.shapes, row.seconds / whole_time)
            known = _known(row, width)
            if known is not None:
                line.state, line.ratio = "known", known.ratio
            elif share < _LEAST / 2:
                continue  # others may be known
            else:
                device = row.kernel.backend.device
                worker = workers.setdefault(device.name, Worker(device))
                display.begin(line, k, len(rows), end)
                found.append(_searched(row, line, share, width, worker, display))
            lines.append(line)
            display.done(line)
    except KeyboardInterrupt:
        display.say("stopped; what was found is kept")
    finally:
        for worker in workers.values():
            worker.stop()
    withdraw([f for f in found if f.line.state == "found"], display)
    return lines


def _known(row: report.Row, width: int) -> tuned.Tuned | None:
    """What an earlier search found, if it was as wide, came to its end, and is in use."""
    kernel = row.kernel
    known = tuned.find([kernel.key], kernel.backend.device).get(kernel.key)
    if known is None or known.width < width:
        return None
    return known if known.schedule in (None, kernel.plan.lines) else None


def _searched(
    row: report.Row, line: Line, seconds: float, width: int, worker: Worker, display: Display
) -> _Found:
    last = Progress()

    def told(progress: Progress) -> None:
        nonlocal last
        last = progress
        display.show(progress)

    found = search(row.kernel.kernel, worker.device, seconds, width, worker, told=told)
    line.tried, line.lost, line.ratio = last.tried, last.lost, found.ratio
    if found.schedule is not None:
        line.state = "known" if found.schedule == row.kernel.plan.lines else "found"
    tuned.keep(row.kernel.key, found)
    return _Found(row, line, found)


def withdraw(found: list[_Found], display: Display) -> None:
    """Time whole programs with and without what was found; give up what makes one slower."""
    programs = [p for p in pipeline.compiled() if not p.variables]
    pipeline.forget()
    fresh = {f.row.kernel.key: f for f in found}
    for program in programs:
        mine = {k.key for k in program.kernels()} & fresh.keys()
        if not mine:
            continue
        display.say(f"a program of {len(program.kernels())} kernels is timed as a whole")
        if _whole_ratio(program) > _SLOWER:
            display.say(f"it is slower with {len(mine)} of what was found, which is withdrawn")
            for f in (fresh.pop(key) for key in mine):
                f.line.state, f.line.ratio = "withdrawn", 1.0
                tuned.keep(f.row.kernel.key, dataclasses.replace(f.tuned, schedule=None, ratio=1.0))
            pipeline.forget()


def _whole_ratio(program: Program) -> float:
    try:
        return whole.ratio(whole.again(program), program)
    except MuladdError:  # there is no room for its inputs a second time, say
        return 1.0


def adopt(path: Path, device: Device, seconds: float, display: Display) -> tuple[int, int]:
    """Take schedules from a file, each measured first; gives how many were taken, and not."""
    records, end, taken = tuned.read(path), time.monotonic() + seconds, 0
    with Worker(device) as worker:
        for k, record in enumerate(records):
            if time.monotonic() > end:
                display.say(f"the time is over: {len(records) - k} schedules were not looked at")
                break
            display.count("importing", k, len(records))
            try:
                found = adopted(record, device, worker)
            except MuladdError as error:
                display.say(f"refused: {error}")
                continue
            if found is not None and _is_better(found, device):
                taken += 1
                tuned.keep(codec.decode(found.kernel).key(), found)
            else:
                why = "not one that runs here" if found is None else "no faster than what is known"
                display.say(f"not taken: {k + 1} of {len(records)} is {why}")
    pipeline.forget()
    return taken, len(records) - taken


def _is_better(found: tuned.Tuned, device: Device) -> bool:
    key = codec.decode(found.kernel).key()
    known = tuned.find([key], device).get(key)
    return known is None or known.baseline != found.baseline or found.ratio < known.ratio


# --- what is seen --------------------------------------------------------------------------------


class Display:
    """A line for every kernel that is done and, on a terminal, one that tells how far it is."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.live = out, out.isatty()
        self.head, self.end, self.seconds = "", 0.0, 0.0

    def begin(self, line: Line, number: int, count: int, end: float) -> None:
        self.head, self.end = f"{number + 1}/{count} {line.name}", end
        self.show(Progress())

    def show(self, progress: Progress) -> None:
        left = max(0.0, self.end - time.monotonic())
        self._over(f"{self.head}: {progress.tried} tried, {progress.lost} lost, best "
                   f"{1 / max(progress.best, 1e-9):.2f}x, {left:.0f} s left")  # fmt: skip

    def count(self, what: str, number: int, count: int) -> None:
        self._over(f"{what} {number + 1}/{count}")

    def done(self, line: Line) -> None:
        speed = f"{1 / line.ratio:.2f}x" if line.ratio < 1 else "as it was"
        self.say(f"{line.name:32} {line.shapes:28} {line.part:4.0%}  {speed:>9}  "
                 f"{line.state}, {line.tried} tried" + f", {line.lost} lost" * (line.lost > 0))

    def say(self, text: str) -> None:
        self._over("")
        print(text, file=self.out, flush=True)

    def _over(self, text: str) -> None:
        if self.live:
            print("\r" + text[:99].ljust(99), end="\r" * (not text), file=self.out, flush=True)
