"""Guards: the Python values that a traced function can see, and what it did to them.

Starting from a function and its arguments, everything its code can reach is noted: closure cells,
globals, items of containers, attributes of objects. Of plain objects only attributes whose names
stand in the code that was reached count, so that a trainer's diary does not cause new traces.
Before a replay each is compared with what it was; what tracing itself changed is an `Effect`.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from operator import is_
from pathlib import Path
from typing import Any

import numpy as np

import muladd
from muladd.errors import TraceError
from muladd.tensor.handle import Handle
from muladd.tensor.tree import is_module

CELL, ITEM, ATTRIBUTE, CLASS, LIST, DICT, SET, ARRAY = range(8)
MISSING: Any = type("Missing", (), {"__repr__": lambda self: "missing"})()
SIMPLE = (int, float, bool, str, bytes, complex, type(None))
_HERE = str(Path(muladd.__file__).parent)
_FOREIGN = frozenset((*sys.stdlib_module_names, "numpy", "muladd")) - {"__main__"}
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


class Entry:
    """One guarded value: where it stands (holder, key) and what it was."""

    __slots__ = ("kind", "holder", "key", "value", "counted", "pattern")

    def __init__(self, kind: int, holder: Any, key: Any, counted: bool = False) -> None:
        self.kind, self.holder, self.key, self.counted = kind, holder, key, counted
        self.pattern: Any = None  # set for places that tracing gave other tensors
        self.value: Any = self.now()
        if kind == ARRAY:
            self.value = holder.copy()

    def now(self) -> Any:
        """The value as it is, containers as tuples or dicts of their own."""
        kind, holder = self.kind, self.holder
        if kind == CELL:
            try:
                return holder.cell_contents
            except ValueError:
                return MISSING
        if kind == ITEM:
            return holder.get(self.key, MISSING)
        if kind == ATTRIBUTE:
            return getattr(holder, self.key, MISSING)
        if kind == CLASS:
            return vars(holder).get(self.key, MISSING)
        if kind == LIST:
            return list(holder)
        if kind == DICT:
            return dict(holder)
        return frozenset(holder) if kind == SET else holder

    def holds(self) -> bool:
        """Whether the value is what it was, or for a place of tensors: of the same kind."""
        now, then = self.now(), self.value
        if self.pattern is not None:
            return take_apart(now)[0] == self.pattern
        if self.kind == LIST:
            return len(now) == len(then) and all(map(same, now, then))
        if self.kind == DICT:
            return tuple(now) == tuple(then) and all(map(same, now.values(), then.values()))
        if self.kind == ARRAY:
            return bool(now.shape == then.shape and now.dtype == then.dtype
                        and now.tobytes() == then.tobytes())  # fmt: skip
        return now == then if self.kind == SET else same(now, then)

    def set(self, value: Any) -> None:
        """Put another value in its place."""
        kind, holder = self.kind, self.holder
        if kind == CELL:
            holder.cell_contents = value
        elif kind == ITEM and value is MISSING:
            holder.pop(self.key, None)
        elif kind == ITEM:
            holder[self.key] = value
        elif kind in (ATTRIBUTE, CLASS):
            setattr(holder, self.key, value)
        elif kind == LIST and isinstance(holder, list):
            holder[:] = value
        elif kind == ARRAY:
            holder[...] = value
        else:
            holder.clear()
            (holder.extend if kind == LIST else holder.update)(value)

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

    def walk(x: Any) -> Any:
        if isinstance(x, Handle):
            tensors.append(x)
            return (Handle, x.shape, x.dtype, x.device, x._leaf)
        if isinstance(x, list | tuple):
            return (type(x), tuple(map(walk, x)))
        if type(x) is dict:
            return (dict, tuple(x), tuple(map(walk, x.values())))
        return simple_key(x) if isinstance(x, SIMPLE) else Identity(x)

    return walk(value), tensors


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
        self._cells = [(e.holder, e.value) for e in loose if e.kind == CELL]
        self._items = [(e.holder, e.key, e.value) for e in loose if e.kind == ITEM]
        self._lists = [(e.holder, e.value) for e in loose if e.kind == LIST]
        dicts = [e for e in loose if e.kind == DICT]
        self._empty = [e.holder for e in dicts if not e.value]
        self._dicts = [
            (e.holder, tuple(e.value), tuple(e.value.values())) for e in dicts if e.value
        ]
        self._others = special + [e for e in loose if e.kind not in (CELL, ITEM, LIST, DICT)]

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

    def broken(self) -> str:
        """Which of them does not hold, for people."""
        names = dict.fromkeys(repr(e) for e in self.entries if not e.holds())
        return ", ".join(names) or "a tensor"

    def changed(self) -> list[Entry]:
        """The entries whose value is another one now."""
        return [e for e in self.entries if not e.holds()]

    # --- one object ---

    def _visit(self, x: Any) -> None:
        if isinstance(x, Handle):
            self.tensors.append(x)
        elif isinstance(x, SIMPLE) or inspect.ismodule(x):
            return
        elif isinstance(x, type):
            if not _is_foreign(x):
                self._class(x)
        elif inspect.ismethod(x):
            self._todo += [x.__func__, x.__self__]
        elif isinstance(x, functools.partial):
            self._todo += [x.func, *x.args, *x.keywords.values()]
        elif isinstance(x, staticmethod | classmethod):
            self._todo.append(x.__func__)
        elif isinstance(x, property):
            self._todo += [f for f in (x.fget, x.fset) if f is not None]
        elif hasattr(x, "__code__"):
            self._function(x)
        elif isinstance(x, list | deque | tuple):
            self._container(x, LIST if not isinstance(x, tuple) else None, x)
        elif isinstance(x, dict):
            self._container(x, DICT, x.values())
        elif isinstance(x, set | frozenset):
            self._container(x, SET if isinstance(x, set) else None, x)
        elif isinstance(x, np.ndarray):
            self.entries.append(Entry(ARRAY, x, None))
        elif isinstance(x, Iterator) and not hasattr(x, "fileno"):
            raise TraceError(
                f"jit: the function can see an iterator ({type(x).__name__}), whose values would "
                "be frozen; pass what it gives as an argument"
            )
        else:
            self._object(x)

    def _container(self, x: Any, kind: int | None, items: Iterable[Any]) -> None:
        if kind is not None:
            self.entries.append(Entry(kind, x, None))
        self._todo += list(items)

    def _item(self, kind: int, holder: Any, key: Any, counted: bool = False) -> None:
        entry = Entry(kind, holder, key, counted)
        value = entry.value
        if inspect.ismodule(value) or isinstance(value, type) and _is_foreign(value):
            if inspect.ismodule(value) and not _is_foreign_name(value.__name__):
                for name in self.names & vars(value).keys():
                    if id(value) != id(vars(value)[name]):
                        self._item(ITEM, vars(value), name)
            return
        self.entries.append(entry)
        self._todo.append(value)

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
        ours = kind.__module__.startswith("muladd.nn")
        if _is_foreign(kind) and not ours and not is_module(x):
            return
        if not ours:
            self._class(kind)
        reflection = bool(self.names & _REFLECTION)
        held = getattr(x, "__dict__", None) or {}
        counted = is_module(x) and any(c.__module__.startswith("muladd.nn") for c in kind.__mro__)
        for name, value in list(held.items()):
            inside = counted and not isinstance(value, SIMPLE)
            if ours or reflection or inside or name in self.names:
                self._item(ITEM, held, name, counted)
        for name in sorted(self.names - held.keys()):
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


def _is_foreign_name(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _FOREIGN


def _is_foreign(kind: type) -> bool:
    """Classes of Python, NumPy and muladd itself, whose code is not followed."""
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
