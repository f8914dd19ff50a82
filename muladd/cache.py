"""What compiling found out, kept between processes: one SQLite file of bytes by kind and key.

    cache().put("objects", key, blob)
    cache().get("objects", key)

Losing any of it costs time, never correctness, so every trouble ends in doing without: a damaged
file is moved aside and begun anew, a folder that cannot be written leaves a cache in memory. Many
processes may share the file (write-ahead log; a writer that is killed loses only its own last
write). Values carry a checksum, because a wrong object file would be run.
"""
from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from muladd import config
from muladd.errors import MuladdError

KINDS = ("objects", "programs", "schedules", "tuned", "machine")
SCHEMA = 2  # raise when a table changes; an older file's content is then forgotten
TRIM_EVERY = 64  # writes between looks at the file's size
BUSY_MILLISECONDS = 5000
_AT_ONCE = 500  # keys in one question: SQLite takes 999 parameters in old versions

_caches: weakref.WeakSet[Cache] = weakref.WeakSet()
_abandoned: list[sqlite3.Connection] = []  # connections of a parent process, never to be closed

T = TypeVar("T")


class Cache:
    """Bytes by (kind, key). `version` is what all values depend on (muladd's own version): it is
    part of every key, so that several versions of muladd share one file in peace."""

    def __init__(
        self, path: Path | None, version: str = "", limit: int = 1 << 30,
        clock: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.path, self.limit = path, limit
        self._version = version.encode()
        self._clock = clock
        self._lock = threading.RLock()
        self._memory: dict[tuple[str, bytes], bytes] = {}  # used when there is no file
        self._connection: sqlite3.Connection | None = None
        self._writes = 0
        _caches.add(self)
        if path is not None:
            self._heal(self._open)

    @property
    def persistent(self) -> bool:
        """Whether values outlive this process."""
        return self.path is not None

    def get(self, kind: str, key: bytes) -> bytes | None:
        """The value put under this key, or None."""
        return self.get_many(kind, [key]).get(key)

    def put(self, kind: str, key: bytes, value: bytes) -> None:
        """Keep a value; the last one put under a key wins."""
        self.put_many(kind, {key: value})

    def get_many(self, kind: str, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that have one."""
        _known(kind)
        wanted = list(keys)
        with self._lock:
            found = self._heal(lambda: self._read(kind, wanted)) if self.path else None
            if found is None:
                found = {}
            for key in wanted:
                if key not in found and (kind, key) in self._memory:
                    found[key] = self._memory[kind, key]
            return found

    def put_many(self, kind: str, values: Mapping[bytes, bytes]) -> None:
        """Keep several values in one transaction."""
        _known(kind)
        with self._lock:
            if self.path is None or not self._heal(lambda: self._write(kind, values)):
                self._memory.update({(kind, key): value for key, value in values.items()})

    def values(self, kind: str) -> list[bytes]:
        """All values of a kind, of whichever version."""
        _known(kind)
        with self._lock:
            found = self._heal(lambda: self._all(kind)) if self.path else None
            memory = [v for (k, _), v in self._memory.items() if k == kind]
            return [*(found or ()), *memory]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._memory.clear()
            if self.path is not None:
                self._heal(self._erase)

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.close()
            self._connection = None

    def size(self) -> int:
        """Bytes of all values kept on disk."""
        with self._lock:
            return (self._heal(self._total) if self.path else 0) or 0

    # Below: each action on the file is a function that may raise, run by _heal.

    def _heal(self, action: Callable[[], T]) -> T | None:
        """Do it; on a damaged file begin a new one and do it again; else do without (None)."""
        try:
            return action()
        except sqlite3.DatabaseError as error:
            if _busy(error):
                return None  # somebody writes for seconds: this one value is not kept or found
            if not _damaged(error):
                self._give_up(error)
                return None
            try:
                self._begin_anew(error)
                return action()
            except (sqlite3.Error, OSError) as again:
                self._give_up(again)
        except OSError as error:
            self._give_up(error)
        return None

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"muladd's cache {self.path} cannot be used ({error}); what is compiled is "
                      "kept in memory only. Set CACHE_DIR to a folder that can be written",
                      RuntimeWarning, stacklevel=5)  # fmt: skip
        self.close()
        self.path = None

    def _begin_anew(self, error: Exception) -> None:
        """Move the damaged file out of the way, unless another process has done so already."""
        assert self.path is not None
        self.close()
        with _only_one_process(f"{self.path}.lock"):
            if _healthy(self.path):
                return
            aside = f"{self.path}.damaged-{int(self._clock())}-{os.getpid()}"
            os.replace(self.path, aside)
            for suffix in ("-wal", "-shm"):
                with contextlib.suppress(OSError):
                    os.remove(f"{self.path}{suffix}")
        warnings.warn(f"muladd's cache {self.path} was damaged ({error}); it was moved to {aside} "
                      "and begun anew", RuntimeWarning, stacklevel=5)  # fmt: skip

    def _after_fork(self) -> None:
        """In the child: SQLite's connections must not be used, nor even closed, across a fork."""
        self._lock = threading.RLock()
        if self._connection is not None:
            _abandoned.append(self._connection)
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is not None:
            return self._connection
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=BUSY_MILLISECONDS / 1000,
                                     isolation_level=None, check_same_thread=False)  # fmt: skip
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            with _transaction(connection):
                self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        new = connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA
        for kind in KINDS:  # an older version's file may lack one
            if new:
                connection.execute(f"DROP TABLE IF EXISTS {kind}")
            connection.execute(
                f"CREATE TABLE IF NOT EXISTS {kind} (key BLOB PRIMARY KEY, value BLOB NOT NULL,"
                " checksum BLOB NOT NULL, used REAL NOT NULL)"
            )
        connection.execute(f"PRAGMA user_version = {SCHEMA}")

    def _stored(self, key: bytes) -> bytes:
        """The key in the file: of fixed length, and different for each version."""
        return hashlib.blake2b(key, digest_size=32, key=_checksum(self._version)).digest()

    def _read(self, kind: str, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        connection, now = self._open(), self._clock()
        found: dict[bytes, bytes] = {}
        stale: list[tuple[float, bytes]] = []
        asked = {self._stored(key): key for key in keys}
        stored = list(asked)
        for start in range(0, len(stored), _AT_ONCE):
            some = stored[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            for key, value, checksum, used in connection.execute(
                f"SELECT key, value, checksum, used FROM {kind} WHERE key IN ({marks})", some
            ):
                if _checksum(value) == checksum:
                    found[asked[key]] = value
                    if now - used > 86400:  # one day's precision keeps reading from writing
                        stale.append((now, key))
        if stale:
            with contextlib.suppress(sqlite3.OperationalError), _transaction(connection):
                connection.executemany(f"UPDATE {kind} SET used = ? WHERE key = ?", stale)
        return found

    def _all(self, kind: str) -> list[bytes]:
        rows = self._open().execute(f"SELECT value, checksum FROM {kind} ORDER BY key")
        return [value for value, checksum in rows if _checksum(value) == checksum]

    def _write(self, kind: str, values: Mapping[bytes, bytes]) -> bool:
        connection, now = self._open(), self._clock()
        rows = [
            (self._stored(key), value, _checksum(value), now) for key, value in values.items()
        ]
        with _transaction(connection):
            connection.executemany(f"INSERT OR REPLACE INTO {kind} VALUES (?, ?, ?, ?)", rows)
            self._writes += len(rows)
            if self._writes >= TRIM_EVERY:
                self._writes = 0
                self._trim(connection)
        return True

    def _total(self) -> int:
        return _bytes_kept(self._open())

    def _erase(self) -> None:
        connection = self._open()
        with _transaction(connection):
            for kind in KINDS:
                connection.execute(f"DELETE FROM {kind}")

    def _trim(self, connection: sqlite3.Connection) -> None:
        """Forget what was not used for longest until three quarters of the limit are left."""
        total = _bytes_kept(connection)
        if total <= self.limit:
            return
        union = " UNION ALL ".join(
            f"SELECT '{kind}', key, length(value), used FROM {kind}" for kind in KINDS
        )
        for kind, key, length, _ in connection.execute(f"{union} ORDER BY 4").fetchall():
            if total <= self.limit * 3 // 4:
                break
            connection.execute(f"DELETE FROM {kind} WHERE key = ?", (key,))
            total -= length


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _bytes_kept(connection: sqlite3.Connection) -> int:
    total = 0
    for kind in KINDS:
        total += connection.execute(f"SELECT coalesce(sum(length(value)), 0) FROM {kind}"
                                    ).fetchone()[0]  # fmt: skip
    return total


def _checksum(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=16).digest()


def _busy(error: sqlite3.Error) -> bool:
    return "locked" in str(error) or "busy" in str(error)


def _damaged(error: sqlite3.Error) -> bool:
    """Whether the file's content is at fault, not its place. (An unreadable file, a full disk or
    missing rights are OperationalErrors, but so is a missing table.)"""
    return not isinstance(error, sqlite3.OperationalError) or "no such" in str(error)


def _healthy(path: Path) -> bool:
    """Whether the file at this path can be read through and has our tables."""
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=1)) as connection:
            for kind in KINDS:
                connection.execute(f"SELECT key, value, checksum, used FROM {kind} LIMIT 1")
            return bool(connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok")
    except sqlite3.Error:
        return False


@contextlib.contextmanager
def _only_one_process(path: str) -> Iterator[None]:
    """A lock file, held for the body; where files cannot be locked, nothing."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise MuladdError(f"cache: given kind {kind!r}, expected one of {', '.join(KINDS)}")


_shared: dict[tuple[Path | None, str], Cache] = {}
_shared_lock = threading.Lock()


def cache(version: str = "") -> Cache:
    """The user's cache as CACHE_DIR, CACHE_SIZE and NOCACHE say here and now."""
    path = None if config.get("NOCACHE") else config.cache_folder() / "muladd.sqlite"
    with _shared_lock:
        if (path, version) not in _shared:
            _shared[path, version] = Cache(path, version, config.get("CACHE_SIZE"))
        return _shared[path, version]


def _after_fork() -> None:
    for one in list(_caches):
        one._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
