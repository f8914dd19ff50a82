"""Processes that share the cores: how many threads each takes, and what it does while it waits."""
from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from muladd import Tensor, config, device

PRODUCT = """
import resource, sys, time
from muladd import Tensor, device
from muladd.compile import compile_graph, parameters

def seconds():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

size, count = map(int, sys.argv[1:])
a, b = (Tensor.rand(size, size, device="CPU").realize() for _ in range(2))
graph, storages = parameters(((a @ b).relu().node,))
program, inputs = compile_graph(graph, "CPU"), [s.buffer for s in storages]
kept = program.run(inputs)
print("ready", flush=True)
sys.stdin.readline()
before = seconds()
for _ in range(count):
    program.run(inputs, (), kept)
used = seconds() - before
print(used, device.get("CPU").pool.threads, flush=True)
"""


@dataclass
class Done:
    seconds: float  # of processor time
    threads: int


def at_once(count: int, arguments: Sequence[int], **options) -> list[Done]:
    """So many processes that begin to compute together."""
    settings = {k: v for k, v in os.environ.items() if k not in ("THREADS", "MULADD_THREADS")}
    started = [
        subprocess.Popen([sys.executable, "-c", PRODUCT, *map(str, arguments)], text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=settings, **options)
        for _ in range(count)
    ]  # fmt: skip
    try:
        for process in started:
            assert process.stdout.readline() == "ready\n"
        for process in started:
            process.stdin.write("\n")
            process.stdin.flush()
        lines = [process.stdout.readline().split() for process in started]
        assert [process.wait(20) for process in started] == [0] * count
    finally:
        for process in started:
            process.kill()
            process.communicate()
    return [Done(float(used), int(threads)) for used, threads in lines]


needs_masks = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs masks")


@needs_masks
def test_a_process_that_may_use_one_core_computes_on_one_thread():
    core = min(os.sched_getaffinity(0))
    (done,) = at_once(1, (64, 3), preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    assert done.threads == 1


@needs_masks
def test_threads_are_those_of_the_cores_that_may_be_used():
    (done,) = at_once(1, (64, 3))
    assert done.threads == device.machine.usable_cores()


@pytest.mark.slow
def test_eight_processes_at_once_take_no_more_time_of_the_cores_than_one_by_one():
    """Threads that wait busily for others whose core was taken away would burn what these need."""
    for _ in range(3):  # whoever else is on the machine shows in the time, too
        (alone,) = at_once(1, (256, 250))
        together = sum(done.seconds for done in at_once(8, (256, 250)))
        if together <= 1.3 * 8 * alone.seconds:
            return
    raise AssertionError(f"{together:.2f} s together, {8 * alone.seconds:.2f} s one by one")


def used() -> float:
    now = resource.getrusage(resource.RUSAGE_SELF)
    return now.ru_utime + now.ru_stime


def test_who_has_nothing_to_do_sleeps():
    cpu = device.get("CPU")
    cpu.set_threads(4)
    x = Tensor.rand(300, 300, device="CPU").realize()
    for _ in range(3):
        (x @ x).realize()
        time.sleep(2e-6 * config.get("SPIN") + 0.02)
        before = used()
        time.sleep(0.3)
        assert used() - before < 0.06
    cpu.set_threads(2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_children_compile_and_compute_while_the_parent_does():
    """Threads, locks and the connection to the cache do not come along."""
    x = Tensor.rand(200, 200, device="CPU").realize()
    expected = (x @ x).numpy()
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            good = np.array_equal((x @ x).numpy(), expected)  # compiled before
            new = (Tensor.ones(90 + number, 70, device="CPU") @ x[:70]).sum().item()
            os._exit(0 if good and abs(new / float(x[:70].sum().item()) - 90 - number) < 0.1 else 1)
        children.append(child)
    for number in range(3):
        (Tensor.ones(50 + number, 70, device="CPU") @ x[:70]).realize()
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
