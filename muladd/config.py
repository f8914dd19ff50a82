"""Every environment variable of muladd, typed, in one table, and settable in code.

    DEBUG=2 python train.py                 from outside
    with config.context(DEBUG=2): ...       in code, for this thread and its asyncio tasks

The table below is the documentation: `python -c "from muladd import config; print(config.table())"`
prints it. Nothing else in muladd reads the environment.
"""
from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from muladd.errors import MuladdError


class ConfigError(MuladdError, ValueError):
    """An environment variable, or a setting made in code, has a value that does not fit."""


@dataclass(frozen=True)
class Setting:
    """One row: `parse` turns text or a Python value into the setting's type, or raises ValueError
    with what it expected. MULADD_<name> may be written in the environment for <name>, and wins.
    """

    name: str
    kind: str
    default: Any
    parse: Callable[[Any], Any]
    doc: str


def _whole(low: int, high: int | None = None) -> Callable[[Any], int]:
    def parse(value: Any) -> int:
        if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d+\s*", value):
            value = int(value)
        if isinstance(value, bool):
            value = int(value)
        if not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ValueError(f"a whole number {low} <= n" + (f" <= {high}" if high else ""))
        return value

    return parse


def _flag(value: Any) -> bool:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in ("1", "true", "yes", "on"):
            return True
        if word in ("0", "false", "no", "off"):
            return False
    elif isinstance(value, int) and value in (0, 1):
        return bool(value)
    raise ValueError("0 or 1")


def _choice(*words: str) -> Callable[[Any], str]:
    def parse(value: Any) -> str:
        if value not in words:
            raise ValueError(" or ".join(words))
        return str(value)

    return parse


_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+\.?\d*)\s*([KMGT]?)(I?B)?\s*", re.IGNORECASE)


def _size(value: Any) -> int:
    """Bytes: 1500000, or 512M, 8G (powers of 1024)."""
    if isinstance(value, str):
        if found := _SIZE.fullmatch(value):
            value = int(float(found[1]) * _UNITS[found[2].upper()])
    if not isinstance(value, int) or value < 0:
        raise ValueError("a number of bytes such as 500M or 8G")
    return value


def _path(value: Any) -> str:
    return os.path.expanduser(os.fspath(value))


class Secret:
    """A value that is not shown: `value` has it."""

    def __init__(self, value: str) -> None:
        self.value = value

    def __repr__(self) -> str:
        return "(hidden)" if self.value else ""


def _secret(value: Any) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise ValueError("text")
    return Secret(value.strip())


def _upper(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a name")
    return value.strip().upper()


SETTINGS: Mapping[str, Setting] = {
    row.name: row
    for row in (
        Setting("DEBUG", "0..5", 0, _whole(0, 5),
                "what is printed: 1 summary, 2 a line per kernel, 3 schedules, 4 source, "
                "5 assembly"),
        Setting("DEVICE", "name", "CPU", _upper,
                "the device of new tensors: CPU, OPENCL, NULL (which computes nothing), INTERP "
                "(the interpreter)"),
        Setting("PROFILE", "fast|exact", "fast", _choice("fast", "exact"),
                "arithmetic: fast lets the compiler choose the order of sums and forget the sign "
                "of zeros; exact gives the same bits on every device"),
        Setting("WINOGRAD", "0..4", 4, _whole(0, 4),
                "how many neighbouring results of an axis a convolution may compute at once, from "
                "values at points, where that is quicker (fast profile): 4 rounds up to twice as "
                "coarsely as the plain sum, 2 finer; 0 is the plain sum"),
        Setting("THREADS", "0..256", 0, _whole(0, 256),
                "threads which compute on the CPU; 0 takes the usable physical cores"),
        Setting("PIN", "0|1", True, _flag,
                "keep each computing thread on its own core (given up while cores are contested)"),
        Setting("SPIN", "microseconds", 200, _whole(0, 1_000_000),
                "how long an idle computing thread waits busily before it sleeps"),
        Setting("MEMORY", "bytes", 0, _size,
                "the most bytes tensors may hold on the CPU, such as 8G; 0 takes the machine's "
                "memory"),
        Setting("CHECK", "0|1", False, _flag,
                "slow proofs: every pass is validated, accesses proven in bounds, fresh memory "
                "filled with NaN"),
        Setting("GRAPH", "0|1", False, _flag,
                "draw each graph that is compiled (DOT and SVG, in the cache folder's graphs) and "
                "print the file's path"),
        Setting("NOCACHE", "0|1", False, _flag, "neither read nor write the cache on disk"),
        Setting("CACHE_DIR", "folder", "", _path,
                "where compiled kernels and programs, measured peaks and drawn graphs are kept; "
                "empty takes the user's cache folder"),
        Setting("CACHE_SIZE", "bytes", 1 << 30, _size,
                "the cache on disk forgets what was not used for longest beyond this size"),
        Setting("BEAM", "0..64", 0, _whole(0, 64),
                "search a faster schedule for each kernel that is compiled, keeping so many of the "
                "best (for about four seconds each); 0 searches nothing"),
        Setting("SEED", "number", 0, _whole(0), "where the random numbers of a process start"),
        Setting("HF_ENDPOINT", "address", "https://huggingface.co", str,
                "the hub that models are downloaded from"),
        Setting("HF_TOKEN", "token", Secret(""), _secret,
                "the access token for models of the hub that are not public"),
    )
}  # fmt: skip


def _parsed(name: str, value: Any, where: str) -> Any:
    row = SETTINGS.get(name)
    if row is None:
        raise ConfigError(f"{where}: there is no setting {name!r}; there are: "
                          + ", ".join(SETTINGS))  # fmt: skip
    try:
        return row.parse(value)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{where}: {name}={value!r} is not {row.kind}; expected {error}. {name}: {row.doc}"
        ) from None


_environment: dict[str, Any] = {}  # what the environment said, parsed once per name
_NOTHING: Mapping[str, Any] = MappingProxyType({})
_overrides: ContextVar[Mapping[str, Any]] = ContextVar("muladd.config", default=_NOTHING)


def of_programs() -> tuple:
    """The settings that a compiled program depends on: part of what it is remembered under."""
    return get("PROFILE"), get("CHECK"), get("WINOGRAD")


def get(name: str) -> Any:
    """The value of setting `name` here and now: context, else environment, else default."""
    overrides = _overrides.get()
    if name in overrides:
        return overrides[name]
    if name not in _environment:
        if name not in SETTINGS:
            _parsed(name, None, "config.get")
        text = os.environ.get("MULADD_" + name) or os.environ.get(name)  # empty is not set
        _environment[name] = (
            _parsed(name, text, "environment") if text else SETTINGS[name].default
        )
    return _environment[name]


def __getattr__(name: str) -> Any:
    """`config.DEBUG` reads a setting; any other capital name is an AttributeError."""
    if name in SETTINGS:
        return get(name)
    raise AttributeError(f"muladd.config has no {name!r}; settings: {', '.join(SETTINGS)}")


@contextmanager
def context(**settings: Any) -> Iterator[None]:
    """Set values for the code inside the `with`: this thread, and asyncio tasks it starts.

    A new thread starts without them; give it contextvars.copy_context().run.
    """
    parsed = {name: _parsed(name, value, "config.context") for name, value in settings.items()}
    token = _overrides.set({**_overrides.get(), **parsed})
    try:
        yield
    finally:
        _overrides.reset(token)


def reload() -> None:
    """Forget what the environment said, so that the next read looks again."""
    _environment.clear()


def cache_folder() -> Path:
    """Where muladd may keep files between runs: CACHE_DIR, else the user's cache folder."""
    chosen = get("CACHE_DIR")
    if chosen:
        return Path(chosen)
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA", os.path.expanduser("~"))) / "muladd" / "cache"
    if os.uname().sysname == "Darwin":
        return Path(os.path.expanduser("~/Library/Caches/muladd"))
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "muladd"


def table() -> str:
    """All settings, one a line: name, values, value now, meaning."""
    rows = [(row.name, row.kind, repr(get(row.name)), row.doc) for row in SETTINGS.values()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]])
        for row in rows
    )


def threads(count: int) -> AbstractContextManager[None]:
    """So many threads inside of the block; 0 is as many as the settings say."""
    return context(**({"THREADS": count} if count else {}))
