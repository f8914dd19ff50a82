"""`muladd bench`: choose cases, measure each beside its peers, print the table as it grows."""
from __future__ import annotations

import argparse
import gc
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from muladd import config
from muladd import device as devices
from muladd.bench import table
from muladd.bench.case import Case, Target, reason
from muladd.bench.cases import MEANS, chosen, unknown
from muladd.bench.measure import LEAST, QUICK, Effort, Neighbours, alternate, recycled_memory
from muladd.bench.peers import NAMES, Peers, installed
from muladd.bench.worst import Gap, compiled_programs, gaps, worst_text
from muladd.compile.roofline import Peaks, peaks
from muladd.options import command, new_file, number, positive, seconds

EXAMPLES = """\
examples:
  muladd bench --list                      the cases, their groups and targets
  muladd bench all                         every case, as without a name
  muladd bench foundation                  what must always hold
  muladd bench models compile              whole networks, beside peers that compile too
  muladd bench matmul softmax --quick      cases whose name contains a word, few samples
  muladd bench exact                       what the exact profile costs
  muladd bench --write BENCHMARKS.md       all of it, into the page of results

exit status: 0 if every case was measured (targets may be missed), 1 if one failed, 2 if something
is asked for that is not there
"""


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    cases = chosen(given.names, given.quick)
    nobody = unknown(given.names)
    if nobody or not cases:
        names = " and ".join(map(repr, nobody)) or f"{' '.join(given.names)} with --quick"
        print(f"muladd bench: no case or group matches {names}; see --list", file=sys.stderr)
        return 2
    if given.list:
        _list(cases, given.json)
        return 0
    if given.write:
        table.around(given.write)  # a page that cannot be written to is refused before the work
    effort = QUICK if given.quick else Effort(given.repeat, given.seconds, least=LEAST)
    effort = replace(effort, best=given.best)
    with config.context(DEVICE="CPU"):
        return _run(cases, given, effort)


def _list(cases: Sequence[Case], as_json: bool) -> None:
    targets = {c.name: "; ".join(filter(None, (
        c.target.text(), *(f"{n}: {t.text()}" for n, t in c.beside.items())))) for c in cases}
    if as_json:
        print(json.dumps({c.name: {"group": c.group, "target": targets[c.name]} for c in cases}))
        return
    for c in cases:
        print(f"{c.group:11} {c.name:44} {targets[c.name]}")


def _parser() -> argparse.ArgumentParser:
    parser = command("bench", "Measure cases beside installed peers, in one process, alternating.",
                     EXAMPLES)  # fmt: skip
    parser.add_argument("names", nargs="*", help="groups, or words in the names of cases")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    parser.add_argument("--quick", action="store_true",
                        help="the quicker cases and peers (none that compiles), few samples")
    parser.add_argument("--repeat", type=positive, default=9, help="samples a case (default 9)")
    parser.add_argument("--seconds", type=seconds, default=12.0,
                        help="most sampling time a case, after the least that it needs")
    parser.add_argument("--best", action="store_true",
                        help="fastest samples instead of medians, where others use the cores too")
    parser.add_argument("--limit", type=positive, default=300,
                        help="seconds after which a case failed")
    parser.add_argument("--threads", default=0, help="threads for everybody (0: one a core)",
                        type=number(int, lambda n: 0 <= n <= 256, "0 to 256 threads"))
    parser.add_argument("--peer", action="append", choices=[*NAMES, "none"],
                        help="which peers take part (default: all that are installed)")  # fmt: skip
    parser.add_argument("--worst", action="store_true",
                        help="list the kernels that are furthest from the roofline")  # fmt: skip
    parser.add_argument("--write", type=new_file, metavar="PAGE",
                        help="put the table into a page of Markdown, between its lines "
                        "<!-- figures --> and <!-- end of figures -->, or into a new one")
    return parser


def _run(cases: Sequence[Case], given: argparse.Namespace, effort: Effort) -> int:
    place: Any = devices.get("CPU")
    threads = given.threads or config.get("THREADS") or place.machine.cores
    place.set_threads(threads)
    peers = installed(given.peer, threads, given.quick)
    if given.peer and peers.absent:
        told = "; ".join(f"{name}: {why}" for name, why in peers.absent.items())
        print(f"muladd bench: {told}; pip install '.[bench]'", file=sys.stderr)
        return 2
    neighbours = Neighbours()
    ceilings = peaks(threads)
    rows: list[table.Row] = []
    kernels: list[Gap] | None = [] if given.worst else None
    out = sys.stderr if given.json else sys.stdout
    widths = [max(len(c.name) + len(" (recycled)") for c in cases), 9, 9, 11, 6, 13, 8, 18, 8]
    print(table.line(table.HEADER, widths), file=out, flush=True)
    # recycled memory last: what malloc keeps would not be fresh to the cases after it
    again = [c for c in cases if c.recycled_target != Target()]
    for case, recycled in [*((c, False) for c in cases), *((c, True) for c in again)]:
        place.set_threads(threads)  # the group `threads` sets others
        row = measured(case, peers, effort, ceilings, given.limit, recycled, kernels)
        rows.append(row)
        for cells in row.cells():
            print(table.line(cells, widths), file=out, flush=True)
    for mean in filter(None, (table.mean_row(rows, *of) for of in MEANS)):
        rows.append(mean)
        print(table.line(mean.cells()[0], widths), file=out)
    versions = {"muladd": _version(), **peers.versions}
    found = table.machine(ceilings, threads, versions, effort.best, neighbours.share())
    print(f"\n{table.summary(rows)}\n{table.machine_text(found)}", file=out)
    if kernels is not None:
        print("\n" + worst_text(kernels), file=out)
    if given.write:
        table.write(given.write, table.markdown(rows, found))
    if given.json:
        print(json.dumps({"machine": found, "versions": found["versions"], "date": found["date"],
                          "cases": {r.name: r.as_json() for r in rows}}))  # fmt: skip
    return 1 if any(r.failure for r in rows) else 0


def measured(
    case: Case, peers: Peers, effort: Effort, ceilings: Peaks, limit: int, recycled: bool = False,
    kernels: list[Gap] | None = None,
) -> table.Row:  # fmt: skip
    """The row of a case, with fresh outputs or with recycled ones. A failure is a row too."""
    if recycled:
        case = replace(case, name=f"{case.name} (recycled)", target=case.recycled_target, beside={})
    try:
        with _time_limit(limit):
            with compiled_programs() as programs:
                contest = case.prepare(peers)
                contenders = contest.recycled if recycled else contest.contenders
                with recycled_memory() if recycled else nullcontext():
                    timings = alternate(contenders, effort) if contenders else {}
            contest.programs = contest.programs or programs  # a second call may compile anew
            if kernels is not None and not recycled:
                kernels += gaps(case.name, contest, ceilings)
            contest.absent = {**peers.absent, **contest.absent}
            return table.row_of(case, contest, timings, ceilings, effort.best)
    except Exception as error:  # whatever a case does, the others are measured
        return table.Row(case.name, case.group, case.target, failure=reason(error))
    finally:
        gc.collect()


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    """Raises TimeoutError in the main thread, where the operating system can do so."""
    if not hasattr(signal, "SIGALRM") or seconds <= 0:
        yield
        return

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _version() -> str:
    try:
        return version("muladd")
    except PackageNotFoundError:
        return "source tree"
