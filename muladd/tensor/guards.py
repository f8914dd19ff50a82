"""Guards: the Python values that a traced function can see, and what it did to them.

Starting from a function and its arguments, everything its code can reach is noted: closure cells,
globals, items of containers, attributes of objects. Of plain objects only attributes whose names
stand in the code that was reached count, so that a trainer's diary does not cause new traces.
Before a replay each is compared with what it was; what tracing itself changed is an `Effect`.
"""

from __future__ import annotations

import functools
import inspect
import operator
import sys
from array import array
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from operator import is_
from pathlib import Path
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

import muladd
from muladd.errors import TraceError
from muladd.tensor.handle import Handle
from muladd.tensor.tree import is_module

MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing"})()
SIMPLE = (int, float, bool, str, bytes, complex, type(None))
_HERE = str(Path(muladd.__file__).parent)
_FOREIGN = frozenset((*sys.stdlib_module_names, "numpy", "muladd")) - {"__main__"}
_INSTALLED = {"site-packages", "dist-packages"}
_REFLECTION = {"getattr", "setattr", "vars", "__dict__", "locals", "globals", "eval", "exec"}


def simple_key(value: Any) -> Any:
    """A Python value as part of a key: 1, 1.0 and True differ, 0.0 and -0.0 too, NaN is itself."""
    kind = type(value)
    if kind is float:
        return (kind, value.hex())
    return (kind, repr(value)) if kind is complex else (kind, value)


def same(now: Any, then: Any) -> bool:
    """The same object, or equal values of a simple type (tuples of them too)."""
    if now is then:
        return True
    if type(now) is not type(then):
        return False
    if isinstance(now, SIMPLE):
        return simple_key(now) == simple_key(then)
    if isinstance(now, tuple):
        return len(now) == len(then) and all(map(same, now, then))
    return isinstance(now, np.generic) and now.tobytes() == then.tobytes()


# --- places ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Kind:
    """A kind of place where a value stands: how it is read (containers as copies), whether two
    readings are the same, and how another value is put there."""

    read: Callable[[Any, Any], Any]
    write: Callable[[Any, Any, Any], None]
    same: Callable[[Any, Any], bool] = same


def _cell(holder: Any, _: Any) -> Any:
    try:
        return holder.cell_contents
    except ValueError:
        return MISSING


def _put_item(holder: Any, key: Any, value: Any) -> None:
    if value is MISSING:
        holder.pop(key, None)
    else:
        holder[key] = value


def _refill(holder: Any, _: Any, items: Any) -> None:
    if isinstance(holder, deque | dict | set):
        holder.clear()
    else:  # an array.array has no clear()
        del holder[:]
    (holder.update if isinstance(holder, dict | set) else holder.extend)(items)


def _same_items(now: Any, then: Any) -> bool:
    return len(now) == len(then) and all(map(same, now, then))


def _same_dicts(now: dict, then: dict) -> bool:
    return tuple(now) == tuple(then) and all(map(same, now.values(), then.values()))


def _same_arrays(now: np.ndarray, then: np.ndarray) -> bool:
    alike = now.shape == then.shape and now.dtype == then.dtype
    return alike and now.tobytes() == then.tobytes()


CELL = Kind(_cell, lambda cell, _, value: setattr(cell, "cell_contents", value))
ITEM = Kind(lambda holder, key: holder.get(key, MISSING), _put_item)
ATTRIBUTE = Kind(lambda holder, key: getattr(holder, key, MISSING), setattr)
CLASS = Kind(lambda holder, key: vars(holder).get(key, MISSING), setattr)
CONTEXT = Kind(lambda holder, _: holder.get(MISSING), lambda holder, _, value: holder.set(value))
LIST = Kind(lambda holder, _: list(holder), _refill, _same_items)
DICT = Kind(lambda holder, _: dict(holder), _refill, _same_dicts)
SET = Kind(lambda holder, _: frozenset(holder), _refill, operator.eq)
ARRAY = Kind(lambda holder, _: holder.copy(), lambda holder, _, value: np.copyto(holder, value),
             _same_arrays)  # fmt: skip


class Entry:
    """One guarded value: where it stands (holder, key) and what it was."""

    __slots__ = ("kind", "holder", "key", "value", "counted", "pattern")

    def __init__(self, kind: Kind, holder: Any, key: Any, counted: bool = False) -> None:
        self.kind, self.holder, self.key, self.counted = kind, holder, key, counted
        self.pattern: Any = None  # set for places that tracing gave other tensors
        self.value: Any = self.now()

    def now(self) -> Any:
        """The value as it is, containers as copies."""
        return self.kind.read(self.holder, self.key)

    def holds(self) -> bool:
        """Whether the value is what it was, or for a place of tensors: of the same kind."""
        if self.pattern is not None:
            return take_apart(self.now())[0] == self.pattern
        return self.kind.same(self.now(), self.value)

    def set(self, value: Any) -> None:
        """Put another value in its place."""
        self.kind.write(self.holder, self.key, value)

    def __repr__(self) -> str:
        return f"{self.key}" if isinstance(self.key, str) else f"{type(self.holder).__name__}"


# --- values with tensors inside -------------------------------------------------------------------


class Identity:
    """An object as part of a key: equal only to itself, and kept alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def take_apart(value: Any) -> tuple[Any, list[Any]]:
    """(pattern, tensors) of a value: equal patterns hold tensors of equal kinds in equal places."""
    tensors: list[Any] = []
    return _pattern(value, tensors), tensors


def _pattern(x: Any, tensors: list[Any]) -> Any:
    if isinstance(x, Handle):
        tensors.append(x)
        return (Handle, x.shape, x.dtype, x.device, x._leaf)
    if isinstance(x, list | tuple):
        return (type(x), tuple([_pattern(v, tensors) for v in x]))
    if type(x) is dict:
        return (dict, tuple(x), tuple([_pattern(v, tensors) for v in x.values()]))
    return simple_key(x) if isinstance(x, SIMPLE) else Identity(x)


def put_together(value: Any, tensors: Iterator[Any]) -> Any:
    """The value with other tensors in the places of its own, in order."""
    if isinstance(value, Handle):
        return next(tensors)
    if isinstance(value, list | tuple):
        items = [put_together(v, tensors) for v in value]
        if isinstance(value, list):
            return items
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if type(value) is dict:
        return {k: put_together(v, tensors) for k, v in value.items()}
    return value


# --- everything a function can see ----------------------------------------------------------------

# (types, how their own contents are watched, what else can be seen from them)
_CONTENTS: tuple[tuple[Any, Kind | None, Callable[[Any], Iterable[Any]]], ...] = (
    (SIMPLE, None, lambda x: ()),
    (dict, DICT, lambda x: x.values()),
    (list | deque, LIST, lambda x: x),
    (array | bytearray, LIST, lambda x: ()),
    (set, SET, lambda x: x),
    (tuple | frozenset, None, lambda x: x),
    (np.ndarray, ARRAY, lambda x: ()),
    (MethodType, None, lambda x: (x.__func__, x.__self__)),
    (functools.partial, None, lambda x: (x.func, *x.args, *x.keywords.values())),
    (staticmethod | classmethod, None, lambda x: (x.__func__,)),
    (property, None, lambda x: (x.fget, x.fset)),
)


class Guards:
    """All that `roots` (functions, objects) can see now: `entries`, and the tensors among it."""

    def __init__(self, roots: Iterable[Any]) -> None:
        self.names: set[str] = {"forward", "training"}
        roots = list(roots)
        known = -1
        while known != len(self.names):  # code found late may name attributes passed by before
            known = len(self.names)
            self.entries: list[Entry] = []
            self.tensors: list[Any] = []
            self._seen: dict[int, Any] = {}
            self._todo: list[Any] = list(roots)
            while self._todo:
                x = self._todo.pop()
                if id(x) not in self._seen:
                    self._seen[id(x)] = x
                    self._visit(x)
        self.random = [x for x in self._seen.values() if _draws(x)]
        del self._seen
        self.sort()

    def sort(self) -> None:
        """Sort the entries by how they are compared; the most frequent kinds have short ways."""
        special = [e for e in self.entries if e.pattern is not None]
        plain = [e for e in self.entries if e.pattern is None]
        self._watched = [e for e in plain if e.counted]
        loose = [e for e in plain if not e.counted]
        cells = [e for e in loose if e.kind is CELL]
        self._cells = [(e.holder, e.value) for e in cells if e.value is not MISSING]
        self._items = [(e.holder, e.key, e.value) for e in loose if e.kind is ITEM]
        self._lists = [(e.holder, e.value) for e in loose if e.kind is LIST]
        dicts = [e for e in loose if e.kind is DICT]
        self._empty = [e.holder for e in dicts if not e.value]
        self._dicts = [
            (e.holder, tuple(e.value), tuple(e.value.values())) for e in dicts if e.value
        ]
        self._others = special + [e for e in cells if e.value is MISSING]
        self._others += [e for e in loose if e.kind not in (CELL, ITEM, LIST, DICT)]

    def hold(self, anything_changed: bool) -> bool:
        """Whether everything is as it was. Modules count their changes: they are looked at only
        if anything changed at all."""
        for cell, value in self._cells:
            if cell.cell_contents is not value and not same(cell.cell_contents, value):
                return False
        for holder, key, value in self._items:
            now = holder.get(key, MISSING)
            if now is not value and not same(now, value):
                return False
        for items, value in self._lists:
            if len(items) != len(value) or not (
                all(map(is_, items, value)) or all(map(same, items, value))
            ):
                return False
        if any(self._empty):
            return False
        for holder, keys, value in self._dicts:
            if tuple(holder) != keys or not (
                all(map(is_, holder.values(), value)) or all(map(same, holder.values(), value))
            ):
                return False
        for e in self._others:
            if not e.holds():
                return False
        return not anything_changed or all(e.holds() for e in self._watched)

    def others(self) -> bool:
        """Whether there is more to compare than items and empty dictionaries."""
        return bool(self._cells or self._lists or self._dicts or self._others)

    def broken(self) -> str:
        """Which of them does not hold, for people."""
        names = dict.fromkeys(repr(e) for e in self.entries if not e.holds())
        return ", ".join(names) or "a tensor"

    def changed(self) -> list[Entry]:
        """The entries whose value is another one now."""
        return [e for e in self.entries if not e.holds()]

    # --- one object ---

    def _visit(self, x: Any) -> None:
        for types, kind, inside in _CONTENTS:
            if isinstance(x, types):
                if kind is not None:
                    self.entries.append(Entry(kind, x, None))
                self._todo += inside(x)
                return
        if isinstance(x, Handle):
            self.tensors.append(x)
        elif isinstance(x, ModuleType):
            self._module(x)
        elif isinstance(x, type):
            self._class(x)
        elif isinstance(x, ContextVar):
            self._item(CONTEXT, x, None)
        elif hasattr(x, "__code__"):
            self._function(x)
        elif isinstance(x, Iterator) and not hasattr(x, "fileno"):
            raise TraceError(
                f"jit: the function can see an iterator ({type(x).__name__}), whose values would "
                "be frozen; pass what it gives as an argument"
            )
        else:
            self._object(x)

    def _item(self, kind: Kind, holder: Any, key: Any, counted: bool = False) -> None:
        entry = Entry(kind, holder, key, counted)
        if isinstance(entry.value, type) and _is_foreign(entry.value):
            return
        self._todo.append(entry.value)
        if not isinstance(entry.value, ModuleType):
            self.entries.append(entry)

    def _module(self, x: ModuleType) -> None:
        """What code mentions of a module: of Python's own, containers alone (sys.argv)."""
        held, names = vars(x), self.names
        if _is_foreign_name(x.__name__):
            names = names | {"environ"} if "getenv" in names else names
            found = [held[name] for name in sorted(names & held.keys())]
            self._todo += [v for v in found if isinstance(v, Container) and not callable(v)]
        else:
            for name in sorted(names & held.keys()):
                self._item(ITEM, held, name)

    def _function(self, x: Any) -> None:
        code = x.__code__
        for cell in x.__closure__ or ():
            self._item(CELL, cell, None)
        self._todo += [*(x.__defaults__ or ()), *(x.__kwdefaults__ or {}).values()]
        if hasattr(x, "__wrapped__"):
            self._todo.append(x.__wrapped__)
        if code.co_filename.startswith(_HERE) or _is_foreign_name(x.__globals__.get("__name__")):
            return
        mentioned = _names(code)
        self.names |= mentioned
        for name in sorted(mentioned & x.__globals__.keys()):
            self._item(ITEM, x.__globals__, name)

    def _object(self, x: Any) -> None:
        """Attributes: of muladd's own modules and optimisers all, of others what code mentions."""
        kind = type(x)
        if hasattr(x, "__wrapped__"):
            self._todo.append(x.__wrapped__)
        if kind.__module__ == "muladd.tensor.jit":  # a jitted function, a method of an instance
            self._todo.append(x.bound() if hasattr(x, "bound") else x.function)
        ours, foreign = kind.__module__.startswith("muladd.nn"), _is_foreign(kind)
        if kind.__module__.startswith("muladd.") and not ours and not is_module(x):
            return
        if not ours:
            self._class(kind)
        # a container of Python's own (UserDict, os.environ) keeps its items in its attributes
        whole = ours or bool(self.names & _REFLECTION) or foreign and isinstance(x, Container)
        held = getattr(x, "__dict__", None) or {}
        counted = is_module(x) and any(c.__module__.startswith("muladd.nn") for c in kind.__mro__)
        for name, value in list(held.items()):
            inside = counted and not isinstance(value, SIMPLE)
            if whole or inside or name in self.names:
                self._item(ITEM, held, name, counted)
        for name in () if foreign and not ours else sorted(self.names - held.keys()):
            found = inspect.getattr_static(kind, name, MISSING)
            if inspect.ismemberdescriptor(found):
                self._item(ATTRIBUTE, x, name)
            elif found is not MISSING and not callable(found) and hasattr(x, "__dict__"):
                if not isinstance(found, property | staticmethod | classmethod):
                    self.entries.append(Entry(ITEM, x.__dict__, name, counted))

    def _class(self, x: type) -> None:
        """What instances of a class share: its data and its code, as far as code mentions them."""
        for owner in x.__mro__:
            if _is_foreign(owner):
                continue
            inherited = {n for c in owner.__mro__ if c.__module__.startswith("muladd.")
                         for n in vars(c)}  # fmt: skip
            for name, value in list(vars(owner).items()):
                special = name.startswith("__") and callable(value)
                if name in self.names or name in inherited and callable(value) or special:
                    if name not in ("__init__", "__class__", "__weakref__", "__dict__"):
                        self._item(CLASS, owner, name)


def _names(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names |= _names(constant)
    return names


@functools.cache
def _is_foreign_name(module: str | None) -> bool:
    """Modules whose code is not followed: of Python, NumPy, muladd itself, and of installed
    packages (torch, say) all that have not imported anything of muladd's."""
    if (module or "builtins").partition(".")[0] in _FOREIGN:
        return True
    loaded = sys.modules.get(module or "")
    if not _INSTALLED & set(Path(getattr(loaded, "__file__", None) or "").parts):
        return False
    known = (v for v in vars(loaded).values() if isinstance(v, ModuleType | type | FunctionType))
    homes = (v.__name__ if isinstance(v, ModuleType) else v.__module__ for v in known)
    return not any(str(home).partition(".")[0] == "muladd" for home in homes)


def _is_foreign(kind: type) -> bool:
    return _is_foreign_name(getattr(kind, "__module__", None))


# --- random numbers that are not ours -------------------------------------------------------------


def _draws(x: Any) -> bool:
    random = sys.modules.get("random")
    return isinstance(x, np.random.Generator | np.random.RandomState) or (
        random is not None and isinstance(x, random.Random)
    )


def random_states(guards: Guards) -> list[Any]:
    """The states of Python's and NumPy's random numbers, and of generators that can be seen."""
    import random

    states: list[Any] = [random.getstate(), repr(np.random.get_state())]  # noqa: NPY002
    for x in guards.random:
        state: Callable | None = getattr(x, "getstate", None) or getattr(x, "get_state", None)
        states.append(repr(state()) if state is not None else repr(x.bit_generator.state))
    return states
