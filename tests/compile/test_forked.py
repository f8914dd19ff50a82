"""Tasks shared with forked copies: whatever happens to a copy, every task is done, and right."""
from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from muladd import Tensor, config
from muladd import device as devices
from muladd.codegen import native
from muladd.compile import compile_graph, forked, kernels, parameters, pipeline
from muladd.compile.forked import results

HERE = os.getpid()
pytestmark = pytest.mark.skipif(not forked._possible(), reason="there is no fork here")


@pytest.fixture(autouse=True)
def trusting(monkeypatch):
    monkeypatch.setattr(forked, "_trusted", [True])


def name(i: int) -> bytes:
    """Who did a task; slow enough for others to get some too."""
    time.sleep(0.005)
    return f"{i} by {os.getpid()}".encode()


def abort() -> None:
    """What LLVM does where it cannot go on."""
    faulthandler.disable()
    os.abort()


def numbers(found: list[bytes]) -> list[int]:
    return [int(r.split()[0]) for r in found]


def makers(found: list[bytes]) -> set[int]:
    return {int(r.split()[-1]) for r in found}


def no_children() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return True


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_every_task_is_done_once_and_by_all(processes):
    found = results(40, name, processes)
    assert numbers(found) == list(range(40))
    assert len(makers(found)) == processes and HERE in makers(found)
    assert no_children()


def test_long_results_come_whole():
    found = results(6, lambda i: bytes([i]) * (1 + i * 1_000_000) + name(i)[:0], 2)
    assert found == [bytes([i]) * (1 + i * 1_000_000) for i in range(6)]


def test_nothing_and_little():
    assert results(0, name, 2) == [] and makers(results(1, name, 2)) == {HERE}


def test_more_tasks_than_the_pipe_holds():
    count = 70_000
    assert results(count, lambda i: b"%d" % i, 2) == [b"%d" % i for i in range(count)]


@pytest.mark.parametrize("end", [
    lambda: os._exit(3),
    lambda: os.kill(os.getpid(), signal.SIGKILL),
    lambda: abort(),
    lambda: 1 / 0,
    lambda: sys.exit(0),
])  # fmt: skip
def test_a_copy_that_ends_has_its_task_done_here(end):
    def make(i):
        if os.getpid() != HERE and i > 3:
            end()
        return name(i)

    found = results(20, make, 2)
    assert numbers(found) == list(range(20)) and no_children()


def test_a_copy_that_hangs_is_ended_and_there_is_no_second_one(monkeypatch):
    monkeypatch.setattr(forked, "PATIENCE", 0.3)

    def make(i):
        if os.getpid() != HERE:
            time.sleep(100)
        return name(i)

    start = time.monotonic()
    assert makers(results(8, make, 2)) == {HERE}
    assert time.monotonic() - start < 5 and no_children()
    assert makers(results(8, name, 2)) == {HERE}


def test_an_error_here_is_raised_and_ends_the_copies():
    def make(i):
        if os.getpid() == HERE:
            raise ValueError("here")
        time.sleep(100)
        return b""

    with pytest.raises(ValueError, match="here"):
        results(8, make, 2)
    assert no_children()


def test_an_error_in_every_process_is_raised():
    def make(i):
        if i == 5:
            raise KeyError(i)
        return name(i)

    with pytest.raises(KeyError):
        results(8, make, 2)
    assert no_children()


@pytest.mark.parametrize("call", ["fork", "memfd_create"])
def test_without_processes_all_is_done_here(call, monkeypatch):
    def refused(*_):
        raise OSError(11, "no more processes")

    monkeypatch.setattr(os, call, refused)
    before = len(os.listdir("/proc/self/fd"))
    assert makers(results(8, name, 3)) == {HERE}
    assert len(os.listdir("/proc/self/fd")) == before
    monkeypatch.setattr(sys, "platform", "elsewhere")
    assert makers(results(8, name, 3)) == {HERE}


def test_nothing_is_left_open():
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        results(8, name, 3)
    assert len(os.listdir("/proc/self/fd")) == before


def test_somebody_else_may_wait_for_the_copies(monkeypatch):
    def gone(*_):
        raise ChildProcessError

    with monkeypatch.context() as patch:
        patch.setattr(os, "waitpid", gone)
        assert numbers(results(8, name, 2)) == list(range(8))
    os.waitpid(-1, 0)


# --- with kernels ---------------------------------------------------------------------------------


def network(depth: int = 5) -> list[Tensor]:
    """Some kernels of different shapes."""
    x, found = Tensor(np.linspace(-1, 1, 64, dtype=np.float32).reshape(4, 16)), []
    for i in range(1, depth + 1):
        w = Tensor(np.linspace(-1, 1, 16 * (16 + i), dtype=np.float32).reshape(16, -1))
        y = (x @ w).softmax(axis=-1)
        found += [y, y.sum(axis=0).cumsum(0)]
    return found


def compiled(folder: str, share: int) -> list[bytes]:
    """The values, by kernels that nobody has made before, in so many processes."""
    pipeline._programs.clear()
    kernels._made.clear()
    roots, storages = parameters(tuple(t.node for t in network()))
    with config.context(CACHE_DIR=folder, THREADS=share, CHECK=0):
        program = compile_graph(roots, "CPU")
        buffers = program.run([s.buffer for s in storages])
    return [np.asarray(b).tobytes() for b in buffers]


@pytest.fixture
def shares(monkeypatch):
    """How many processes took part in each compilation."""
    seen = []
    real = forked.results

    def counted(count, make, processes):
        seen.append(processes)
        return real(count, make, processes)

    monkeypatch.setattr(forked, "results", counted)
    monkeypatch.setattr(kernels.tuned, "threads_of", lambda device: config.get("THREADS"))
    return seen


def test_kernels_made_in_copies_are_the_same(tmp_path, shares):
    assert compiled(f"{tmp_path}/one", 1) == compiled(f"{tmp_path}/two", 2)
    assert {1, 2} == set(shares)
    kept = [sorted(kernels.cache.Cache(tmp_path / side / "muladd.sqlite").values("objects"))
            for side in ("one", "two")]  # fmt: skip
    assert kept[0] == kept[1] and len(kept[0]) >= kernels._MANY


def test_kernels_whose_copies_crash_are_made_here(tmp_path, shares, monkeypatch):
    values = compiled(f"{tmp_path}/one", 1)
    real = kernels._record

    def crashing(*given):
        if os.getpid() != HERE:
            abort()
        return real(*given)

    monkeypatch.setattr(kernels, "_record", crashing)
    assert compiled(f"{tmp_path}/two", 2) == values and 2 in shares


def test_a_fork_waits_until_no_thread_is_inside_of_the_compiler(tmp_path, shares):
    """Here one always is, as it never stops compiling."""
    source, machine = "define void @f() { ret void }", devices.get("CPU").machine
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            native.compile_object(source, machine)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        values = [compiled(f"{tmp_path}/{i}", 2) for i in range(4)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert len({tuple(v) for v in values}) == 1 and forked._trusted[0]


def test_threads_that_compile_at_once_get_the_same(tmp_path, shares):
    found = []
    kernels._made.clear()

    def work(i):
        roots, storages = parameters(tuple(t.node for t in network(4 + i)))
        with config.context(CACHE_DIR=str(tmp_path), THREADS=2, CHECK=0):
            buffers = compile_graph(roots, "CPU").run([s.buffer for s in storages])
        found.append((i, [np.asarray(b).tobytes() for b in buffers]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    values = dict(found)
    assert len(values) == 3 and values[1][:8] == values[0] and values[2][:10] == values[1]
    assert 2 in shares and no_children()


INTERRUPTED = """
import os, signal, sys, threading, time
from muladd.compile import forked

here = os.getpid()
signal.signal(signal.SIGINT, signal.default_int_handler)

def make(i):
    if os.getpid() == here and i < 8:
        os.kill(here, signal.SIGINT)
    time.sleep(30)

try:
    forked.results(8, make, 2)
except KeyboardInterrupt:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        print("alone")
"""


def test_an_interruption_leaves_no_copy_behind():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED], capture_output=True, text=True,
                          timeout=60, check=False)  # fmt: skip
    assert done.stdout == "alone\n" and not done.stderr
