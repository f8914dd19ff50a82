"""The CPU's computing threads: starting, stopping, pinning, and giving the pin up when crowded.

The threads are native and run threads.py's `muladd_worker`; Python only decides policy. Each worker
is kept on its own core, because an idle worker that the scheduler may place anywhere often wakes
milliseconds late. When other processes contest the cores (the system takes ours away again and
again) pins do harm, so they are given up until it is quiet.
"""
from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Generator

from muladd import config
from muladd.device.machine import affinity, physical_cores, usable_cores
from muladd.device.native import layout
from muladd.errors import DeviceError

TICK_SECONDS = 0.1  # how often a long run looks for Ctrl-C
RIVAL_SECONDS = 0.25  # how often, at most, it looks for rivals
CROWDED_PER_SECOND, QUIET_PER_SECOND = 100, 20  # involuntary switches of this process

_C = ctypes.CDLL(None)
_Tick = ctypes.CFUNCTYPE(ctypes.c_int64)


class Pool:
    """Up to `threads` threads, of which the caller is one; the others start at first use."""

    def __init__(self, functions: dict[str, int]) -> None:
        self._functions = functions
        # Never freed: a thread may still look at it while the interpreter goes away.
        self._memory = (ctypes.c_int64 * (layout.POOL_WORDS + 16))()
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._memory))
        self.address = (ctypes.addressof(self._memory) + 127) & -128
        offset = (self.address - ctypes.addressof(self._memory)) // 8
        self._words = memoryview(self._memory).cast("B").cast("q")[offset:]
        self._try_lock = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(
            functions["muladd_try_lock"]
        )
        self._unlock = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(functions["muladd_unlock"])
        self._stop = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(functions["muladd_stop"])
        self._changing = threading.Lock()
        self._handles: list[ctypes.c_ulong] = []
        self._allowed: set[int] = set()
        self._switches: tuple[float, int] = (0.0, 0)
        self.interruption = threading.local()  # what a tick raised, for the run to raise again
        self._ticker = self._ticks()
        next(self._ticker)
        self._tick = _Tick(self._ticker.__next__)
        self.threads = 0  # 0 until set_threads: decided at first use
        self._reset()
        _pools.add(self)

    def ready(self) -> None:
        """Start the threads if they are not running (first use, and after a fork)."""
        if not self.threads:
            self.set_threads(config.get("THREADS") or usable_cores())

    def set_threads(self, count: int) -> None:
        """Compute on `count` threads from now on. Waits for a run in progress to end."""
        if not 1 <= count <= layout.MOST_THREADS:
            raise DeviceError(f"set_threads: given {count}, expected 1 to {layout.MOST_THREADS}")
        with self._changing:
            while not self._try_lock(self.address):
                time.sleep(0.0005)
            try:
                if count != self.threads:
                    self._join()
                    self._start(count)
            finally:
                self._unlock(self.address)

    def stop(self, patience: float = 1e9) -> None:
        """End the worker threads; the next use starts them again. Does nothing if a run in
        another thread goes on for more than `patience` seconds."""
        with self._changing:
            until = time.monotonic() + patience
            while not self._try_lock(self.address):
                if time.monotonic() > until:
                    return
                time.sleep(0.0005)
            self._join()
            self._unlock(self.address)

    def take_interruption(self) -> BaseException | None:
        """What ended this thread's run early, if anything did."""
        error: BaseException | None = getattr(self.interruption, "error", None)
        self.interruption.error = None
        return error

    @property
    def pinned(self) -> bool:
        return bool(self._words[layout.PINNED])

    def after_fork(self) -> None:
        """In the child there are no workers, and locks may have been held by lost threads."""
        self._changing = threading.Lock()
        self._handles = []
        self.threads = 0
        self._reset()

    def _reset(self) -> None:
        words = self._words
        for index in range(layout.POOL_WORDS):
            words[index] = 0  # scratch memory too: a lost thread may have been freeing it
        for worker in range(layout.MOST_THREADS):
            base = layout.FIRST_WORKER + worker * layout.WORKER_WORDS
            words[base + layout.W_POOL] = self.address
            words[base + layout.W_NUMBER] = worker
            words[base + layout.W_CPU] = -1
        words[layout.THREADS] = 1
        words[layout.JOB_HOMES] = 1
        words[layout.FREE_CPU] = -1
        words[layout.PERIOD] = int(TICK_SECONDS * 1e9)
        words[layout.TICK] = ctypes.cast(self._tick, ctypes.c_void_p).value or 0

    def _start(self, count: int) -> None:
        words = self._words
        words[layout.STOP] = 0
        words[layout.SPIN] = config.get("SPIN") * 1000
        created = 1
        everything = signal.valid_signals()
        previous = signal.pthread_sigmask(signal.SIG_SETMASK, everything)  # inherited by workers
        try:
            for worker in range(1, count):
                handle = ctypes.c_ulong()
                address = self.address + 8 * self._worker(worker)
                words[self._worker(worker) + layout.W_THREAD_ID] = 0
                if _C.pthread_create(ctypes.byref(handle), None,
                                     ctypes.c_void_p(self._functions["muladd_worker"]),
                                     ctypes.c_void_p(address)):  # fmt: skip
                    break  # no more threads are allowed: go on with those there are
                self._handles.append(handle)
                created += 1
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        for worker in range(1, created):
            while not words[self._worker(worker) + layout.W_THREAD_ID]:
                time.sleep(0)
        words[layout.THREADS] = created
        words[layout.READY] = 1
        self.threads = count
        self._switches = (time.monotonic(), _involuntary_switches())
        self._allowed = affinity()
        self._pin(config.get("PIN"))

    def _join(self) -> None:
        if self._handles:
            self._stop(self.address)
        for handle in self._handles:
            _C.pthread_join(handle, None)
        self._handles = []
        self._words[layout.THREADS] = 1
        self._words[layout.SLEEPERS] = 0
        self._words[layout.READY] = 0
        self.threads = 0

    def _worker(self, number: int) -> int:
        return layout.FIRST_WORKER + number * layout.WORKER_WORDS

    def _pin(self, wanted: bool) -> None:
        """Put each worker on its own core, leaving one for the caller; or let all run anywhere."""
        words = self._words
        count = words[layout.THREADS]
        cores = physical_cores(self._allowed)
        fits = wanted and sys.platform == "linux" and 1 < count <= len(cores) and cores[-1] < 1024
        here = _C.sched_getcpu() if fits else -1
        if fits:
            free = here if here in cores else cores[0]
            homes = [core for core in cores if core != free]
            words[layout.FREE_CPU] = free
        for worker in range(1, count):
            base = self._worker(worker)
            words[base + layout.W_CPU] = homes[worker - 1] if fits else -1
            if sys.platform == "linux":
                allowed = {homes[worker - 1]} if fits else self._allowed
                try:
                    os.sched_setaffinity(words[base + layout.W_THREAD_ID], allowed)
                except OSError:
                    fits = False  # a CPU was taken away meanwhile; the next tick looks again
        words[layout.PINNED] = int(fits)

    def _adapt(self) -> None:
        """Pin, or give the pin up, by how often the system took a core away from us."""
        if sys.platform != "linux" or not self._changing.acquire(blocking=False):
            return  # the threads are being started or ended
        try:
            if self.threads:
                self._look_for_rivals()
        finally:
            self._changing.release()

    def _look_for_rivals(self) -> None:
        since, before = self._switches
        now, switches = time.monotonic(), _involuntary_switches()
        if now - since < RIVAL_SECONDS:
            return
        rate = (switches - before) / (now - since)
        self._switches = (now, switches)
        allowed = affinity()
        moved, self._allowed = allowed != self._allowed, allowed
        if self.pinned and (rate > CROWDED_PER_SECOND or moved):
            self._pin(not rate > CROWDED_PER_SECOND)
        elif not self.pinned and rate < QUIET_PER_SECOND and config.get("PIN"):
            self._pin(True)

    def _ticks(self) -> Generator[int, None, None]:
        """Called from native code every TICK_SECONDS of a run: 0 goes on, 1 ends the run.

        Ctrl-C is raised wherever Python code runs next, so the code here is a generator whose
        every line stands inside the `try`; a plain function could be interrupted at its door.
        """
        answer = 0
        while True:
            try:
                yield answer
                answer = 0
                self._adapt()
            except GeneratorExit:
                return
            except BaseException as error:
                self.interruption.error = error
                answer = 1


def _involuntary_switches() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


def _stop_all() -> None:
    for pool in list(_pools):
        pool.stop(patience=0.1)


def _after_fork() -> None:
    for pool in list(_pools):
        pool.after_fork()


atexit.register(_stop_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
