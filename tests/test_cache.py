"""The cache on disk: bytes come back, and no trouble with the file ever reaches the caller."""
from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

from muladd import config
from muladd.cache import Cache, cache
from muladd.errors import MuladdError

WRITER = """
import sys, hashlib
from pathlib import Path
from muladd.cache import Cache
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
cache = Cache(Path(path))
print("ready", flush=True)
for number in range(count):
    key = f"{name} {number}".encode()
    cache.put("objects", key, hashlib.sha256(key).digest() * 50)
assert cache.persistent
"""


def value_of(key: bytes) -> bytes:
    import hashlib

    return hashlib.sha256(key).digest() * 50


def start_writer(path, name, count):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count)],
                            stdout=subprocess.PIPE, env=environment)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "folder" / "cache.sqlite"


def test_values_come_back_and_outlive_the_process(path):
    first = Cache(path)
    first.put("objects", b"k", b"v" * 1000)
    first.put("objects", b"k", b"w")
    first.put("tuned", b"k", b"")
    first.close()
    again = Cache(path)
    assert again.get("objects", b"k") == b"w"
    assert again.get("tuned", b"k") == b""
    assert again.get("schedules", b"k") is None
    assert again.persistent


def test_many_at_once(path):
    store = Cache(path)
    values = {b"%d" % i: b"value %d" % i for i in range(1200)}
    store.put_many("schedules", values)
    assert store.get_many("schedules", [*values, b"absent"]) == values
    store.clear()
    assert store.get_many("schedules", values) == {}


def test_versions_live_side_by_side(path):
    old, new = Cache(path, "1.0"), Cache(path, "1.1")
    old.put("objects", b"k", b"old")
    new.put("objects", b"k", b"new")
    assert (old.get("objects", b"k"), new.get("objects", b"k")) == (b"old", b"new")


def test_unknown_kind_is_refused(path):
    with pytest.raises(MuladdError, match="objects, programs, schedules, tuned"):
        Cache(path).get("pickles", b"k")


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100, b"SQLite format 3\0" * 99])
def test_a_damaged_file_is_moved_aside(path, content):
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        store = Cache(path)
    store.put("objects", b"k", b"v")
    assert store.persistent and Cache(path).get("objects", b"k") == b"v"
    if content:  # an empty file is a fresh database
        assert any("begun anew" in str(one.message) for one in caught)
        (aside,) = path.parent.glob("*.damaged-*")
        assert aside.read_bytes() == content


def test_damage_in_the_middle_heals_while_in_use(path):
    store = Cache(path)
    values = {b"%d" % i: os.urandom(3000) for i in range(200)}
    store.put_many("objects", values)
    store.close()
    raw = bytearray(path.read_bytes())
    raw[4096:-4096] = os.urandom(len(raw) - 8192)
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = Cache(path)
        found = store.get_many("objects", values)
        assert all(values[key] == value for key, value in found.items())
        for key, value in values.items():
            store.put("objects", key, value)
        assert store.get_many("objects", values) == values
    assert store.persistent


def test_one_flipped_byte_of_a_value_is_a_miss(path):
    store = Cache(path)
    store.put("objects", b"k", b"A" * 5000)
    store.close()
    raw = path.read_bytes()
    at = raw.index(b"A" * 1000)
    path.write_bytes(raw[: at + 500] + b"B" + raw[at + 501 :])
    assert Cache(path).get("objects", b"k") is None


def test_a_file_without_a_kind_of_today_keeps_what_it_has(path):
    with contextlib.closing(Cache(path)) as cache:
        cache.put("tuned", b"key", b"value")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP TABLE machine")
    with contextlib.closing(Cache(path)) as cache:
        assert cache.get("machine", b"key") is None and cache.get("tuned", b"key") == b"value"
        cache.put("machine", b"key", b"other")
        assert cache.get("machine", b"key") == b"other"


def test_a_folder_that_cannot_be_made_means_memory_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(RuntimeWarning, match="CACHE_DIR"):
        store = Cache(tmp_path / "file" / "cache.sqlite")
    store.put("objects", b"k", b"v")
    assert store.get("objects", b"k") == b"v" and not store.persistent


def test_the_path_being_a_folder_means_memory_only(tmp_path):
    with pytest.warns(RuntimeWarning, match="memory only"):
        store = Cache(tmp_path)
    store.put("objects", b"k", b"v")
    assert store.get("objects", b"k") == b"v"


def test_no_cache_setting(tmp_path):
    with config.context(NOCACHE=1, CACHE_DIR=str(tmp_path)):
        cache().put("objects", b"k", b"v")
        assert not list(tmp_path.iterdir())
    with config.context(CACHE_DIR=str(tmp_path)):
        cache().put("objects", b"k", b"v")
        assert cache() is cache() and (tmp_path / "muladd.sqlite").exists()


def test_the_oldest_go_when_the_limit_is_reached(path):
    now = [0.0]
    store = Cache(path, limit=100_000, clock=lambda: now[0])
    for number in range(400):
        now[0] += 1e5
        store.put("objects", b"%d" % number, bytes(1000))
        if number % 10 == 0:
            assert store.get("objects", b"0") is not None  # used again and again, so it stays
    assert store.size() <= 100_000 + 64 * 1000
    assert store.get("objects", b"399") is not None
    assert store.get("objects", b"5") is None


def test_many_processes_write_at_once(path):
    writers = [start_writer(path, f"writer {i}", 100) for i in range(6)]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 6
    store = Cache(path)
    for i in range(6):
        keys = [f"writer {i} {number}".encode() for number in range(100)]
        assert store.get_many("objects", keys) == {key: value_of(key) for key in keys}


def test_a_killed_writer_loses_nothing_else(path):
    store = Cache(path)
    store.put("objects", b"before", b"kept")
    for attempt in range(4):
        writer = start_writer(path, f"killed {attempt}", 10**6)
        writer.stdout.readline()
        time.sleep(0.05 + 0.05 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        store.put("objects", b"%d" % attempt, b"after")
    again = Cache(path)
    assert again.get("objects", b"before") == b"kept"
    assert all(again.get("objects", b"%d" % attempt) == b"after" for attempt in range(4))
    for attempt in range(4):
        key = f"killed {attempt} 0".encode()
        assert again.get("objects", key) in (None, value_of(key))


def test_a_forked_child_uses_its_own_connection(path):
    store = Cache(path)
    store.put("objects", b"k", b"parent")
    child = os.fork()
    if child == 0:
        good = store.get("objects", b"k") == b"parent"
        store.put("objects", b"c", b"child")
        os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert store.get("objects", b"c") == b"child"
