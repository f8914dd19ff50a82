"""Tasks shared with forked copies of this process: compiling a program's kernels on all cores.

Threads would not help: lowering is Python's work, and llvmlite lets one thread into LLVM at a time.
A fork has everything that was planned at hand and starts within milliseconds.

    results(40, make, processes=2)       [make(0), make(1), ...], each by whoever came to it first

The numbers of the tasks wait in a pipe, from which every process takes the next one. A copy writes
what it made into a file in memory; this process reads it when no task is left. Copies cannot do
harm: one that crashes, is killed or hangs (a lock that another thread held at the fork stays held
for ever in the copy) has its tasks done here. Where there is no fork, or no second core, everything
is done here.
"""
from __future__ import annotations

import contextlib
import os
import signal
import struct
import sys
import time
import warnings
from collections.abc import Callable, Iterator

Make = Callable[[int], bytes]

_TASK = struct.Struct("<I")  # its number, in the pipe
_RESULT = struct.Struct("<IQ")  # number and length of what follows, in a copy's file
PATIENCE = 10.0  # seconds, or ten times the longest task here: a copy that takes longer hangs
_trusted = [True]  # no copy has hung in this process


def results(count: int, make: Make, processes: int) -> list[bytes]:
    """[make(0), ..., make(count - 1)]. Raises what `make` raises here; what it raises in a copy
    counts for nothing, as the task is done again."""
    found: dict[int, bytes] = {}
    if count > 1 and processes > 1 and _trusted[0] and _possible():
        found = _shared(count, make, min(processes, count))
    return [found[i] if i in found else make(i) for i in range(count)]


def _possible() -> bool:
    """Elsewhere a fork is missing, or is not safe in a process that uses the system's libraries."""
    return sys.platform == "linux" and hasattr(os, "fork") and hasattr(os, "memfd_create")


def _shared(count: int, make: Make, processes: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    tasks = _queue(count)
    copies: list[_Copy] = []
    longest = 0.0
    try:
        with contextlib.suppress(OSError):  # no memory or no process left: fewer copies
            while len(copies) < processes - 1:
                copies.append(_Copy(tasks, make))
        for i in _taken(tasks):
            start = time.perf_counter()
            found[i] = make(i)
            longest = max(longest, time.perf_counter() - start)
        for copy in copies:
            _trusted[0] &= copy.wait(max(PATIENCE, 10 * longest))
            found.update(copy.made())
    finally:
        os.close(tasks)
        for copy in copies:
            copy.end()
    return found


def _queue(count: int) -> int:
    """A pipe of tasks; what does not fit into it is left to the caller."""
    take, give = os.pipe()
    os.set_blocking(give, False)
    with contextlib.suppress(BlockingIOError):
        for i in range(count):
            os.write(give, _TASK.pack(i))
    os.close(give)
    return take


def _taken(tasks: int) -> Iterator[int]:
    """Tasks until there are none."""
    while raw := os.read(tasks, _TASK.size):
        yield _TASK.unpack(raw)[0]


class _Copy:
    """A forked copy of this process that takes tasks until there are none."""

    def __init__(self, tasks: int, make: Make) -> None:
        self.running = True
        self.file = os.memfd_create("muladd")
        try:
            with warnings.catch_warnings():  # that there are threads is known: see `wait`
                warnings.simplefilter("ignore")
                self.process = os.fork()
        except BaseException:
            os.close(self.file)
            raise
        if self.process == 0:
            _work(tasks, make, self.file)

    def wait(self, patience: float) -> bool:
        """Wait until it has done its last task; False if that takes too long, and it is ended."""
        until = time.monotonic() + patience
        while self.running and time.monotonic() < until:
            try:
                self.running = os.waitpid(self.process, os.WNOHANG) == (0, 0)
            except ChildProcessError:  # somebody else has waited for it
                self.running = False
            if self.running:
                time.sleep(0.001)
        return not self.running

    def made(self) -> Iterator[tuple[int, bytes]]:
        """Tasks and results, as far as they were written."""
        at, size = 0, os.fstat(self.file).st_size
        while at + _RESULT.size <= size:
            number, length = _RESULT.unpack(os.pread(self.file, _RESULT.size, at))
            at += _RESULT.size
            if at + length <= size:
                yield number, os.pread(self.file, length, at)
            at += length

    def end(self) -> None:
        """Nothing is left of it."""
        if self.running:
            with contextlib.suppress(OSError):
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
        os.close(self.file)


def _work(tasks: int, make: Make, file: int) -> None:
    """What a copy does; it never returns, or the copy would go on as if it were this process."""
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM):  # this process' handlers are not for copies
            signal.signal(number, signal.SIG_DFL)
        with open(file, "wb", closefd=False) as out:
            for i in _taken(tasks):
                blob = make(i)
                out.write(_RESULT.pack(i, len(blob)))
                out.write(blob)
                out.flush()
        code = 0
    finally:
        os._exit(code)
