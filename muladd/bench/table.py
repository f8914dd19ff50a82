"""Results as rows, as a table for people, as one JSON object, and as a page of Markdown."""
from __future__ import annotations

import datetime
import platform
import statistics
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muladd.bench.case import US, Case, Contest, Target, quantity
from muladd.bench.measure import Timing
from muladd.compile.roofline import Peaks
from muladd.errors import FormatError

HEADER = ("case", "muladd", "peer", "", "ratio", "rate", "roofline", "target", "")
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"


@dataclass(frozen=True)
class Line:
    """One line of a row: our time beside a peer's, judged by a target."""

    peer: str | None
    target: Target
    ratio: float | None  # the peer's time by ours: above 1 is faster than the peer
    verdict: str


@dataclass
class Row:
    """One case, or why there are no figures for it."""

    name: str
    group: str
    target: Target = Target()
    seconds: dict[str, float] | None = None  # by contender
    samples: int = 0
    flops: float = 0.0
    nbytes: float = 0.0
    items: int = 0
    item: str = ""
    roofline: float | None = None  # share of the machine's ceiling, 1 is at it
    difference: float | None = None
    failure: str = ""
    beside: Mapping[str, Target] = field(default_factory=dict)  # peers judged each by itself
    absent: Mapping[str, str] = field(default_factory=dict)  # which of these are not here, and why

    @property
    def peer(self) -> str | None:
        """The fastest of the others."""
        return self._fastest(set(self.seconds or {}) - {US})

    def _fastest(self, names: Collection[str]) -> str | None:
        return min(names, key=lambda n: (self.seconds or {})[n]) if names else None

    def _ratio(self, peer: str | None) -> float | None:
        ours = (self.seconds or {}).get(US)
        return self.seconds[peer] / ours if self.seconds and peer and ours else None

    @property
    def ratio(self) -> float | None:
        """The fastest peer's time by ours."""
        return self._ratio(self.peer)

    def lines(self) -> list[Line]:
        """Ours beside the fastest peer without a target of its own, then beside each with one."""
        seconds = self.seconds or {}
        others = set(seconds) - {US} - set(self.beside)
        found = [self._line(self._fastest(others), self.target)]
        for peer, target in self.beside.items():
            if peer in seconds:
                found.append(self._line(peer, target))
            elif peer in self.absent:
                found.append(Line(peer, target, None, self.absent[peer]))
        empty = not others and self.target == Target()
        return found[1:] if empty and len(found) > 1 else found

    def _line(self, peer: str | None, target: Target) -> Line:
        ratio = self._ratio(peer)
        return Line(peer, target, ratio, target.verdict((self.seconds or {}).get(US, 0.0), ratio))

    @property
    def verdict(self) -> str:
        """The worst of its lines."""
        if self.failure:
            return "failed"
        found = {line.verdict for line in self.lines()}
        return next((v for v in ("missed", "must met", "met") if v in found), "")

    def cells(self) -> list[tuple[str, ...]]:
        """The cells of each line."""
        if self.failure or not self.seconds:
            blank = ("",) * 6
            return [(self.name, *blank, self.target.text(), f"failed: {self.failure}")]
        return [self._cells(line, self.seconds) for line in self.lines()]

    def _cells(self, line: Line, seconds: dict[str, float]) -> tuple[str, ...]:
        ours = seconds.get(US, 0.0)
        return (
            self.name, quantity(ours, "s"),
            quantity(seconds[line.peer], "s") if line.peer in seconds else "",
            line.peer or "", f"{line.ratio:.2f}" if line.ratio is not None else "",
            self._rate(ours), f"{100 * self.roofline:.0f}%" if self.roofline is not None else "",
            line.target.text(), line.verdict,
        )  # fmt: skip

    def _rate(self, ours: float) -> str:
        """What the work is bound by says which rate is telling."""
        if ours and self.items:
            return quantity(self.items / ours, f"{self.item}/s")
        if not ours or not (self.flops or self.nbytes):
            return ""
        if self.flops >= 8 * self.nbytes:
            return quantity(self.flops / ours, "FLOP/s")
        return quantity(self.nbytes / ours, "B/s")

    def as_json(self) -> dict[str, Any]:
        if self.failure:
            return {"group": self.group, "failed": self.failure}
        seconds = self.seconds or {}
        return {
            "group": self.group, "muladd": seconds.get(US),
            "peers": {n: t for n, t in seconds.items() if n != US}, "ratio": self.ratio,
            "roofline": self.roofline, "target": self.target.text(), "verdict": self.verdict,
            "difference": self.difference, "samples": self.samples,
            "beside": {
                line.peer: {"ratio": line.ratio, "target": line.target.text(),
                            "verdict": line.verdict}
                for line in self.lines() if line.peer
            },
        }  # fmt: skip


def row_of(
    case: Case, contest: Contest, timings: dict[str, Timing], peaks: Peaks, best: bool = False
) -> Row:
    """The row of a measured contest, by medians or by the fastest samples."""
    seconds = {n: t.least if best else t.median for n, t in timings.items()} | contest.seconds
    row = Row(case.name, case.group, case.target, seconds,
              min((t.samples for t in timings.values()), default=1),
              contest.flops, contest.nbytes, contest.items, contest.item,
              difference=contest.difference, beside=case.beside, absent=contest.absent)  # fmt: skip
    least = peaks.seconds(contest.flops, contest.nbytes)
    if least and seconds.get(US):
        row.roofline = least / seconds[US]
    return row


def mean_row(
    rows: Sequence[Row], name: str, group: str, of: Sequence[str], target: Target
) -> Row | None:
    """The geometric mean of these rows, whose ratio is that of their ratios; None unless all of
    them were measured, and beside the same peers."""
    found = [r.seconds for r in rows if r.name in of and r.seconds]
    if len(found) < len(of) or len({frozenset(s) for s in found}) > 1:
        return None
    means = {who: statistics.geometric_mean(s[who] for s in found) for who in found[0]}
    return Row(name, group, target, means)


def widths_of(rows: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows)]


def line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Names to the left, figures to the right."""
    left = {0, 3, 7, 8}
    return "  ".join(c.ljust(w) if i in left else c.rjust(w)
                     for i, (c, w) in enumerate(zip(cells, widths))).rstrip()  # fmt: skip


def text(rows: Sequence[Row]) -> str:
    cells = [HEADER, *(line for r in rows for line in r.cells())]
    short = [c for c in cells if not c[8].startswith("failed")]
    widths = widths_of(short or cells)
    widths[0] = max(len(c[0]) for c in cells)
    return "\n".join(line(c, widths) for c in cells)


def summary(rows: Sequence[Row]) -> str:
    """How many lines met their targets."""
    found = [cells[-1].split(":")[0] for row in rows for cells in row.cells()]
    counts = {word: found.count(word) for word in ("met", "must met", "missed", "failed")}
    return f"{len(rows)} cases; targets: " + ", ".join(f"{n} {w}" for w, n in counts.items())


def machine(
    peaks: Peaks, threads: int, versions: dict[str, str], best: bool, others: float | None
) -> dict[str, Any]:
    """What the figures were measured on and with, and how much others disturbed them."""
    from muladd.device.machine import description

    return {
        "processor": description(), "threads": threads, "system": platform.platform(),
        "python": sys.version.split()[0], "versions": versions,
        "fma_peak_flops": peaks.flops, "copy_bandwidth": peaks.bandwidth,
        "date": datetime.date.today().isoformat(), "others": others,
        "figures": f"each figure is the {'fastest' if best else 'median'} of its samples",
    }  # fmt: skip


def machine_text(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{n} {v}" for n, v in found["versions"].items())
    others = found["others"]
    noise = f"; other processes used {others:.0%} of the cores" if others is not None else ""
    warning = ", so these figures say little" if others is not None and others > 0.1 else ""
    return (f"{found['date']}, {found['processor']}; {found['threads']} threads\n"
            f"{found['figures']}{noise}{warning}\n"
            f"Python {found['python']}, {versions}\n"
            f"measured: {quantity(found['fma_peak_flops'], 'FLOP/s')} of multiply-adds in float32, "
            f"{quantity(found['copy_bandwidth'], 'B/s')} copying (read and written)")  # fmt: skip


def markdown(rows: Sequence[Row], found: dict[str, Any]) -> str:
    titles = ("case", "muladd", "peer", "which", "ratio", "rate", "roofline", "target", "verdict")
    lines = [*machine_text(found).splitlines(), "", "| " + " | ".join(titles) + " |",
             "|---" * len(titles) + "|"]  # fmt: skip
    cells = [found for row in rows for found in row.cells()]
    lines += ["| " + " | ".join(c.replace("|", "\\|") for c in found) + " |" for found in cells]
    return "\n".join([*lines, "", summary(rows)])


def write(path: Path, page: str) -> None:
    """Put the figures between the marks of a page, so that the words around them stay."""
    head, tail = around(path)
    path.write_text(f"{head}{_BEGIN}\n{page}\n{_END}{tail}")


def around(path: Path) -> tuple[str, str]:
    """What stands before and after the figures of a page, which may not be there yet."""
    old = path.read_text() if path.exists() else f"# Benchmarks\n\n{_BEGIN}\n{_END}\n"
    head, mark, rest = old.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not mark or not end:
        raise FormatError(f"bench: {path} has no lines {_BEGIN} and {_END} to write between")
    return head, tail
