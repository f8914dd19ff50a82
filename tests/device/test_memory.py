"""Size classes, recycling, and giving back from many threads."""
from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest

from muladd import device as devices
from muladd.device.native.memory import SMALL, Memory, size_class
from muladd.errors import OutOfMemory


def test_size_classes_hold_what_is_asked_and_waste_little():
    for nbytes in [*range(5000), 10**5, 10**6 + 1, 2**21 - 1, 2**21, 2**21 + 1, 10**9]:
        size = size_class(nbytes)
        assert size >= nbytes and size % 64 == 0 and size_class(size) == size
        assert size - nbytes <= max(64, nbytes / 8 + 1)


def test_blocks_never_overlap():
    memory = Memory(1 << 30)
    blocks = [memory.allocate(nbytes) for nbytes in [1, 64, 100, 4000, 70_000, SMALL, 3 << 20] * 20]
    spans = sorted((block.address, block.address + block.size) for block in blocks)
    assert all(end <= start for (_, end), (start, _) in zip(spans, spans[1:], strict=False))


def test_accounting_under_threads():
    memory = Memory(1 << 30)

    def work(seed):
        for turn in range(500):
            blocks = [memory.allocate(100 * (seed + turn) % 300_000) for _ in range(5)]
            for block in blocks:
                memory.give_back(block)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert memory.bytes_in_use == 0


def test_free_blocks_do_not_pile_up():
    memory = Memory(1 << 40)
    for step in range(200):  # sizes that never return
        memory.give_back(memory.allocate((20 << 20) + step * (5 << 20)))
    assert memory.mapped <= (1 << 28) + (2 << 30)
    memory.release()
    assert memory.mapped == 0


def test_the_limit_is_exact_and_free_blocks_do_not_count():
    memory = Memory(10 << 20)
    block = memory.allocate(8 << 20)
    with pytest.raises(OutOfMemory, match="in use"):
        memory.allocate(4 << 20)
    memory.give_back(block)
    memory.allocate(4 << 20)


def test_zeros_are_zeros_in_recycled_memory_too():
    place = devices.get("CPU")
    for nbytes in (0, 3, 100, 70_000, SMALL, 3 << 20):
        for _ in range(3):
            buffers = [place.zeros(nbytes) for _ in range(3)]
            assert all(not np.asarray(b).any() for b in buffers)
            for b in buffers:
                np.asarray(b)[...] = 255
            del b, buffers


def test_zeros_that_nobody_wrote_take_no_memory():
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("the system does not tell")
    place = devices.get("CPU")
    place.memory.release()

    def resident():
        return int(status.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    held = place.zeros(512 << 20)
    assert resident() - before < 16 << 20 and held.nbytes == 512 << 20
