"""The CPU device: programs, loops, copies, memory, and everything threads can do to each other."""
from __future__ import annotations

import ctypes
import functools
import gc
import os
import random
import signal
import sys
import threading
import time
import weakref
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from muladd import config, device
from muladd.device import Arg, Copy, Launch, Repeat, Variable
from muladd.device import cpu as host
from muladd.device.native import layout, walker
from muladd.errors import DeviceError, OutOfMemory


@functools.cache
def compiled(more: str = "") -> bytes:
    """The kernels of kernels.ll as an object file for this machine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple = llvm.get_process_triple()
    text = f'target triple = "{triple}"\n' + Path(__file__).with_name("kernels.ll").read_text()
    target = llvm.Target.from_triple(triple).create_target_machine(reloc="pic", opt=1)
    return bytes(target.emit_object(llvm.parse_assembly(text + more)))


@pytest.fixture
def cpu():
    cpu = device.get("CPU")
    yield cpu
    cpu.set_threads(2)


def numbers(cpu, values):
    array = np.asarray(values, np.int64)
    buffer = cpu.allocate(array.nbytes)
    cpu.copy_in(buffer, array)
    return buffer


def read(cpu, buffer):
    array = np.empty(buffer.nbytes // 8, np.int64)
    cpu.copy_out(buffer, array)
    return array


def count(cpu, grid, *args):
    return Launch(cpu.load(compiled(), "count"), args or (Arg(0),), grid, "count")


# Programs


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("grid", [0, 1, 2, 3, 7, 64, 1001])
def test_every_chunk_runs_once(cpu, threads, grid):
    cpu.set_threads(threads)
    buffer = numbers(cpu, np.zeros(1024))
    program = cpu.program([count(cpu, grid)], 1)
    for _ in range(50):
        program.run([buffer])
    expected = np.zeros(1024)
    expected[:grid] = 50
    assert (read(cpu, buffer) == expected).all()


def test_many_epochs_of_odd_grids(cpu):
    cpu.set_threads(3)
    draw = random.Random(1)
    grids = [draw.choice([1, 2, 3, 5, 17, 100]) for _ in range(60)]
    expected = np.zeros(128, np.int64)
    for grid in grids:
        expected[:grid] += 500
    buffer = numbers(cpu, np.zeros(128))
    step = Repeat(500, tuple(count(cpu, grid) for grid in grids))
    cpu.program([step], 1).run([buffer])
    assert (read(cpu, buffer) == expected).all()


def test_workers_that_fell_asleep_come_back(cpu):
    cpu.set_threads(2)
    sleep = Launch(cpu.load(compiled(), "sleep"), (), 2, "sleep")
    program = cpu.program([sleep], 0, variables=1)
    best = 1.0
    for _ in range(5):
        time.sleep(0.02)  # longer than they spin
        start = time.perf_counter()
        program.run([], [20_000])
        best = min(best, time.perf_counter() - start)
    assert best < 0.035  # both chunks at once, though the worker slept


def test_grid_function_and_variables(cpu):
    kernel = cpu.load(compiled(), "add", "add_grid")
    program = cpu.program([Launch(kernel, (Arg(0), Arg(1)), None, "add")], 2)
    cpu.set_threads(1)
    to, source = numbers(cpu, [5]), numbers(cpu, [3])
    with pytest.raises(DeviceError, match="0 whole numbers"):
        program.run([to, source], [4])  # no step names a variable, so the call has none
    program = cpu.program([Launch(kernel, (Arg(0), Arg(1)), None, "add")], 2, variables=1)
    program.run([to, source], [4])
    assert read(cpu, to) == [17]
    program.run([to, source], [0])
    assert read(cpu, to) == [17]


def test_repeat_moves_arguments_by_every_loop(cpu):
    kernel = cpu.load(compiled(), "add")
    source = numbers(cpu, np.arange(24))
    to = numbers(cpu, np.zeros(6))
    inner = Launch(kernel, (Arg(0, 0, ((0, 8),)), Arg(1, 0, ((0, 32), (1, 8)))), 1, "add")
    program = cpu.program([Repeat(6, (Repeat(4, (inner,)),))], 2)
    program.run([to, source])
    assert (read(cpu, to) == np.arange(24).reshape(6, 4).sum(1)).all()


@pytest.mark.parametrize("reverse,expected", [(False, 12_012), (True, 210_210)])
def test_repeat_writes_its_index(cpu, reverse, expected):
    append = Launch(cpu.load(compiled(), "append"), (Arg(0),), 1, "append")
    body = Repeat(Variable(1), (append,), reverse=reverse, index_var=0)
    never = (Repeat(0, (append,)), Repeat(Variable(2), (append,)))
    program = cpu.program([Repeat(2, (body,)), *never], 1)
    buffer = numbers(cpu, [0])
    variables = [7, 3, 0]
    program.run([buffer], variables)
    assert read(cpu, buffer) == [expected] and variables == [7, 3, 0]


def test_symbolic_offset_stride_and_grid(cpu):
    buffer = numbers(cpu, np.zeros(40))
    place = Arg(0, Variable(0, 8), ((0, Variable(1, 8)),))
    program = cpu.program([Repeat(3, (count(cpu, Variable(2), place),))], 1)
    program.run([buffer], [2, 10, 4])
    expected = np.zeros(40)
    for start in (2, 12, 22):
        expected[start : start + 4] = 1
    assert (read(cpu, buffer) == expected).all()


@pytest.mark.parametrize("size", [8, 1000 * 8, 3 * walker.COPY_CHUNK + 8])
def test_copies_apart_and_overlapping(cpu, size):
    values = np.arange(size // 8)
    a, b = numbers(cpu, values), numbers(cpu, np.zeros(size // 8))
    cpu.program([Copy(Arg(0), Arg(1), Variable(0))], 2).run([b, a], [size])
    assert (read(cpu, b) == values).all()
    if size > 8:
        cpu.program([Copy(Arg(0, 8), Arg(0), size - 8)], 1).run([a])
        assert (read(cpu, a)[1:] == values[:-1]).all()
    cpu.program([Copy(Arg(0), Arg(0), size), Copy(Arg(0), Arg(0), 0)], 1).run([b])
    assert (read(cpu, b) == values).all()


def test_scratch_is_private_and_aligned(cpu):
    kernel = cpu.load(compiled(), "scratch")
    for nbytes in (64, 100_000, 5_000_000):
        program = cpu.program([Launch(kernel, (Arg(0),), Variable(1), "s")], 1, scratch=nbytes)
        buffer = numbers(cpu, np.zeros(200))
        program.run([buffer], [nbytes, 200])
        assert (read(cpu, buffer) == np.arange(200)).all()


def test_bind_keeps_its_buffers(cpu):
    buffer = numbers(cpu, [0, 0])
    view = cpu.view(buffer, np.int64, (2,))
    program = cpu.program([count(cpu, 2)], 1)
    run = program.bind([buffer])
    del buffer, program
    gc.collect()
    run()
    run()
    assert (view == 2).all()


def test_times(cpu):
    sleep = Launch(cpu.load(compiled(), "sleep"), (), 1, "sleep")
    program = cpu.program([Repeat(3, (sleep,)), Copy(Arg(0), Arg(0, 8), 8)], 1, variables=1)
    buffer = numbers(cpu, [0, 0])
    program.timing = True
    program.run([buffer], [2000])
    slept, copied = program.times()
    assert 0.006 <= slept.seconds < 0.1 and copied.seconds < 0.001
    assert (slept.name, slept.calls, copied.name, copied.calls) == ("sleep", 3, "copy", 1)
    assert program.times()[0].calls == 0


def test_misuse_is_explained(cpu):
    program = cpu.program([count(cpu, 1)], 1)
    with pytest.raises(DeviceError, match="expected 1 buffers"):
        program.run([])
    with pytest.raises(DeviceError, match="expected 1 addresses"):
        program.call(b"1234")
    with pytest.raises(TypeError):
        program.call(7)
    with pytest.raises(DeviceError, match="expected a slot below 1"):
        cpu.program([count(cpu, 1, Arg(3))], 1)
    with pytest.raises(DeviceError, match="depth 0, but stands inside 0 loops"):
        cpu.program([count(cpu, 1, Arg(0, 0, ((0, 8),)))], 1)
    with pytest.raises(DeviceError, match="no grid function"):
        cpu.program([count(cpu, None)], 1)
    with pytest.raises(DeviceError, match="CPU.load returned"):
        cpu.program([Launch("no kernel", (), 1, "x")], 0)
    with pytest.raises(DeviceError, match="expected Launch"):
        cpu.program(["x"], 0)
    with pytest.raises(DeviceError, match="no object file"):
        cpu.load(b"rubbish", "f")
    with pytest.raises(DeviceError, match="nothing_of_this_name"):
        cpu.load(compiled(), "nothing_of_this_name")
    with pytest.raises(DeviceError, match="expected 1 to"):
        cpu.set_threads(0)


def test_damaged_object_files_are_refused(cpu):
    blob = compiled()
    with pytest.raises(DeviceError):
        cpu.load(blob[:200], "count")


def test_equal_bytes_load_once_and_go_when_dropped(cpu):
    blob = compiled("@only_here = global i64 7\n")
    first, second = cpu.load(blob, "append"), cpu.load(bytes(bytearray(blob)), "append")
    assert first.library is second.library and first.address == second.address
    library = weakref.ref(first.library)
    program = cpu.program([Launch(first, (Arg(0),), 1, "a")], 1)
    del first, second
    gc.collect()
    assert library() is not None
    del program
    gc.collect()
    assert library() is None


# Threads and processes


def test_python_threads_run_at_once(cpu):
    cpu.set_threads(2)
    program = cpu.program([Repeat(200, (count(cpu, 5), count(cpu, 1)))], 1)
    buffers = [numbers(cpu, np.zeros(5)) for _ in range(4)]

    def work(buffer):
        for _ in range(20):
            program.run([buffer])

    threads = [threading.Thread(target=work, args=(buffer,)) for buffer in buffers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for buffer in buffers:
        assert (read(cpu, buffer) == [8000] + [4000] * 4).all()


def test_thread_count_changes_while_others_run(cpu):
    program = cpu.program([Repeat(50, (count(cpu, 9),))], 1)
    buffer = numbers(cpu, np.zeros(9))
    stop = threading.Event()
    runs = [0]

    def work():
        while not stop.is_set():
            program.run([buffer])
            runs[0] += 1

    thread = threading.Thread(target=work)
    thread.start()
    for threads in (1, 4, 2, 3, 1, 2):
        cpu.set_threads(threads)
        time.sleep(0.01)
    stop.set()
    thread.join()
    assert (read(cpu, buffer) == 50 * runs[0]).all() and runs[0] > 0


def test_the_interpreter_lock_is_free_during_a_run(cpu):
    sleep = Launch(cpu.load(compiled(), "sleep"), (), 1, "sleep")
    program = cpu.program([sleep], 1, variables=1)
    thread = threading.Thread(target=program.run, args=([numbers(cpu, [0])], [200_000]))
    start = time.perf_counter()
    thread.start()
    turns = 0
    while thread.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 20 and time.perf_counter() - start >= 0.2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_computes_with_its_own_threads(cpu):
    cpu.set_threads(2)
    buffer = numbers(cpu, np.zeros(64))
    program = cpu.program([Repeat(100, (count(cpu, 64),))], 1)
    program.run([buffer])
    busy = threading.Thread(target=cpu.program([Repeat(20_000, (count(cpu, 64),))], 1).run,
                            args=([numbers(cpu, np.zeros(64))],))  # fmt: skip
    busy.start()  # so that the pool is taken at the moment of the fork
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        program.run([buffer])
        more = numbers(cpu, np.zeros(64))
        program.run([more])
        good = (read(cpu, buffer) == 200).all() and (read(cpu, more) == 100).all()
        os._exit(0 if good and cpu.pool.threads >= 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    busy.join()
    program.run([buffer])
    assert (read(cpu, buffer) == 200).all()


def test_control_c_ends_a_long_run(cpu):
    sleep = Launch(cpu.load(compiled(), "sleep"), (), 1, "sleep")
    program = cpu.program([Repeat(10**6, (sleep,))], 1, variables=1)
    buffer = numbers(cpu, [0])
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        program.run([buffer], [100])
    assert time.perf_counter() - start < 5
    cpu.program([count(cpu, 1)], 1).run([buffer])  # and all is well afterwards
    assert read(cpu, buffer) == [1]


def test_control_c_waits_for_one_shared_launch_at_most(cpu):
    """Eight launches used to pass before anybody looked at the clock."""
    cpu.set_threads(2)
    sleep = Launch(cpu.load(compiled(), "sleep"), (), 2, "sleep")
    program = cpu.program([Repeat(20, (sleep,))], 1, variables=1)
    threading.Timer(0.1, signal.raise_signal, [signal.SIGINT]).start()
    start = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        program.run([numbers(cpu, [0])], [400_000])
    assert time.perf_counter() - start < 2


@pytest.mark.skipif(sys.platform != "linux", reason="pins are Linux's")
def test_workers_are_pinned_within_the_mask_and_pins_are_given_up(cpu):
    pool = cpu.pool
    cpu.set_threads(1)
    cpu.set_threads(2)
    worker = pool._words[pool._worker(1) + layout.W_THREAD_ID]
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        pytest.skip("one core")
    assert pool.pinned and len(os.sched_getaffinity(worker)) == 1
    pool._switches = (time.monotonic() - 1.0, pool._switches[1] - 10_000)
    pool._adapt()  # ten thousand switches in a second: crowded
    assert not pool.pinned and os.sched_getaffinity(worker) == allowed
    pool._switches = (time.monotonic() - 100.0, pool._switches[1])
    pool._adapt()
    assert pool.pinned and os.sched_getaffinity(worker) < allowed
    with config.context(PIN=0):
        cpu.set_threads(1)
        cpu.set_threads(2)
        assert not pool.pinned


def test_without_futexes_workers_poll(monkeypatch):
    original = walker.source
    monkeypatch.setattr(walker, "source", lambda triple: original(triple, futex=False))
    polling = host.Cpu()
    polling.set_threads(3)
    buffer = numbers(polling, np.zeros(50))
    program = polling.program([Repeat(100, (count(polling, 50),))], 1)
    for _ in range(10):
        time.sleep(0.002)
        program.run([buffer])
    assert (read(polling, buffer) == 1000).all()
    polling.pool.stop()


def test_the_runtime_compiles_for_arm():
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    triple = "aarch64-unknown-linux-gnu"
    module = llvm.parse_assembly(walker.source(triple))
    module.verify()
    target = llvm.Target.from_triple(triple).create_target_machine(reloc="pic")
    assert len(target.emit_object(module)) > 2000


def test_the_compiled_runtime_is_kept(monkeypatch, tmp_path):
    with config.context(CACHE_DIR=tmp_path):
        host.Cpu()
        monkeypatch.setattr(walker, "source", lambda triple: "the same as before")
        with pytest.raises(RuntimeError):
            host.Cpu()
        monkeypatch.undo()
        monkeypatch.setattr(llvm, "parse_assembly", None)  # it is not made again
        again = host.Cpu()
    buffer = numbers(again, [0])
    again.program([count(again, 1)], 1).run([buffer])
    assert read(again, buffer) == [1]
    again.pool.stop()


# Memory


def test_views_and_wraps_do_not_copy(cpu):
    buffer = cpu.allocate(24 * 4)
    view = cpu.view(buffer, np.float32, (4, 6))
    view[:] = 3
    out = np.empty((4, 6), np.float32)
    cpu.copy_out(buffer, out)
    assert (out == 3).all()
    assert (cpu.view(buffer, np.float32, (2,), 8) == 3).all()
    with pytest.raises(DeviceError, match="does not fit"):
        cpu.view(buffer, np.float64, (24,))
    array = np.zeros(10, np.int64)
    wrapped = cpu.wrap(array)
    cpu.program([count(cpu, 10)], 1).run([wrapped])
    assert (array == 1).all()
    assert cpu.wrap(array[::2]) is None
    odd = np.frombuffer(bytearray(33), np.uint8)[1:].view(np.int64)
    assert cpu.wrap(odd) is None
    array.flags.writeable = False
    assert not cpu.wrap(array).writable


def test_a_part_is_the_same_memory_and_keeps_it(cpu):
    whole = cpu.allocate(32)
    cpu.view(whole, np.int64, (4,))[:] = range(4)
    part = cpu.part(whole, 8, 16)
    assert part.address == whole.address + 8 and part.writable
    del whole
    gc.collect()
    cpu.allocate(32)  # would be that memory, if it had been given back
    assert cpu.view(part, np.int64, (2,)).tolist() == [1, 2]
    for offset, size in ((-1, 1), (0, 17), (16, 1), (4, -1)):
        with pytest.raises(DeviceError, match="are not within 16 bytes"):
            cpu.part(part, offset, size)


def test_a_view_keeps_its_buffer_and_memory_is_recycled(cpu):
    buffer = cpu.allocate(1 << 20)
    address = buffer.address
    view = cpu.view(buffer, np.uint8, (1 << 20,))
    del buffer
    assert cpu.allocate(1 << 20).address != address
    del view
    gc.collect()
    taken = [cpu.allocate(1 << 20) for _ in range(4)]
    assert address in [buffer.address for buffer in taken]


def test_sizes_are_checked(cpu):
    buffer = cpu.allocate(8)
    with pytest.raises(DeviceError, match="given 4 bytes for a buffer of 8"):
        cpu.copy_in(buffer, np.zeros(1, np.int32))
    with pytest.raises(DeviceError, match="ascontiguousarray"):
        cpu.copy_in(cpu.allocate(16), np.zeros(4, np.int64)[::2])
    empty = cpu.allocate(0)
    cpu.copy_in(empty, b"")
    assert cpu.view(empty, np.float32, (0, 3)).shape == (0, 3)


def test_out_of_memory_leaves_everything_alive(cpu):
    kept = numbers(cpu, range(1000))
    with pytest.raises(OutOfMemory, match="MEMORY"):
        cpu.allocate(1 << 60)
    limit, cpu.memory.limit = cpu.memory.limit, cpu.memory.bytes_in_use + (64 << 20)
    try:
        held = []
        with pytest.raises(OutOfMemory, match="limit"):
            while True:
                held.append(cpu.allocate(10 << 20))
        assert len(held) == 6
        held.pop()
        cpu.allocate(10 << 20)
    finally:
        cpu.memory.limit = limit
    assert (read(cpu, kept) == np.arange(1000)).all()


def test_scratch_that_cannot_be_had_is_out_of_memory(cpu):
    kernel = cpu.load(compiled(), "scratch")
    program = cpu.program([Launch(kernel, (Arg(0),), Variable(1), "s")], 1, scratch=1 << 55)
    with pytest.raises(OutOfMemory, match="scratch"):
        program.run([numbers(cpu, [0])], [8, 1])
    cpu.program([count(cpu, 1)], 1).run([numbers(cpu, [0])])


def test_fresh_memory_is_nan_when_checking(cpu):
    with config.context(CHECK=1):
        assert np.isnan(cpu.view(cpu.allocate(40), np.float32, (10,))).all()


def test_alignment(cpu):
    for nbytes in (1, 63, 64, 65, 5000, 1 << 18, 3 << 20):
        assert cpu.allocate(nbytes).address % 64 == 0
    assert ctypes.sizeof(ctypes.c_void_p) == 8
