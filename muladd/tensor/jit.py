"""jit: a function of tensors becomes one program, replayed in one call.

The first call with a signature runs as it stands, so that whatever a function makes once (optimiser
state, say) is there. The second is traced: `f` runs on the same handles while nothing computes, and
every handle that it reads or writes is noted. What a call needs is then

* its arguments' tensors, wherever they are nested,
* the *captured* handles: tensors that f reached otherwise (a model's parameters, an optimiser's
  state). Handles, not their contents: whoever assigns them later is seen by the next call;
* *guards* (guards.py): the Python values f's code can reach (arguments, closure, globals, the
  attributes of objects among them). If one changes, the function is traced again, never silently
  frozen.

What f changed becomes outputs, put in the same places after each call: tensors it assigned, the
attributes, variables and lists in which it put other tensors or numbers, gradients it left behind.
Results are always fresh memory: a later call never changes them while anybody holds them.
"""

from __future__ import annotations

import functools
import inspect
import operator
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from muladd import config
from muladd.errors import TraceError
from muladd.ir import ops
from muladd.tensor import backend
from muladd.tensor.arguments import check_function, name_of
from muladd.tensor.guards import SIMPLE, Identity, simple_key
from muladd.tensor.handle import ambient, grad_enabled
from muladd.tensor.replay import replayer
from muladd.tensor.tensor import Tensor
from muladd.tensor.trace import Inline, Trace, Undo, has_stand_in
from muladd.tensor.tree import Branch, Leaf, Structure, flatten, unflatten

_MOST_SIGNATURES = 128  # kept per function; the oldest go first
_MOST_TRACES = 16  # kept per signature
_MANY = 32  # traces after which a warning tells what keeps changing
_INPUT = ops.INPUT


def jit(
    function: Callable | None = None, *, symbolic: dict[str, dict[int, tuple]] | None = None,
    at_once: bool = False,
) -> Any:  # fmt: skip
    """`function`, compiled at its second call and replayed from then on.

    symbolic={"x": {0: ("n", 1, 512)}}: axis 0 of argument x is the symbolic size n, between 1 and
    512; calls with other sizes need no new trace and no new code. With those, or with `at_once`,
    the first call is compiled, so that all calls compute alike, to the last bit: what the first one
    would round otherwise does not tell a run that was resumed from one that was not.

    Use as a decorator too, on functions and methods. Raises TraceError where the function asks for
    a value (.item(), bool). What it returns has memory of its own, unless it is an argument itself,
    and no history: call backward() inside. Gradients stay in .grad as without jit, except where the
    function itself assigned their tensor (its optimiser used them up): those are dropped.
    """
    if function is None:
        return functools.partial(jit, symbolic=symbolic, at_once=at_once)
    check_function("jit", function)
    return Jitted(function, symbolic or {}, at_once)


class Jitted:
    """What jit returns. `traces` counts how often the function was traced."""

    def __init__(
        self, function: Callable, symbolic: dict[str, dict[int, tuple]], at_once: bool = False
    ) -> None:
        functools.update_wrapper(self, function, updated=())
        self.function, self.symbolic, self.at_once = function, symbolic, at_once
        self.traces = 0
        self._programs: dict[Any, list[Trace]] = {}  # empty: the signature was seen once
        self._methods: dict[int, tuple[Any, Jitted]] = {}
        self._last: Trace | None = None  # replayed without a further look, where
        self._kind: Any = None  # its arguments, all of them tensors, are of this kind
        self._replay: Callable[[Any], Any] | None = None  # the same, for one argument
        self._warned = False
        self._signature: inspect.Signature | None = None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """A method of one instance, with traces of its own."""
        if instance is None:
            return self
        found = self._methods.get(id(instance))
        if found is None:
            bound = Jitted(self.function.__get__(instance, owner), self.symbolic, self.at_once)
            try:
                forget = functools.partial(_forget, weakref.ref(self), id(instance))
                reference: Any = weakref.ref(instance, forget)
                bound.__wrapped__ = self.function  # type: ignore[attr-defined]
                bound.function = _Method(self.function, weakref.ref(instance), owner)
            except TypeError:  # no weak references: the instance is kept
                reference = instance
            found = self._methods[id(instance)] = (reference, bound)
        return found[1]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if backend.frame.get() is not None:
            return self._as_part(args, kwargs)
        if self._replay is not None and len(args) == 1 and not kwargs:
            result = self._replay(args[0])
            if result is not None:
                return result
        last = self._last
        if last is not None and not kwargs:
            kind = _kind(args[0]) if len(args) == 1 else _kinds(args)
            if kind == self._kind and last.holds(args):
                return last.run_quickly(args)
        return self._call(args, kwargs)

    def _as_part(self, args: tuple, kwargs: dict) -> Any:
        """Inside of jit, vmap, scan, and where gradients shall pass: without a program of its own.
        """
        tensors, structure = flatten(self.function(*args, **kwargs))
        return unflatten(structure, _without_views(tensors))

    def _call(self, args: tuple, kwargs: dict) -> Any:
        leaves, structure = flatten((args, kwargs))
        if any(_has_history(t) for t in leaves):
            return self._as_part(args, kwargs)
        named = self._symbolic_leaves(leaves, structure)
        key = _key(leaves, structure, named)
        for trace in self._programs.get(key, ()):
            if trace.holds(leaves):
                return trace.run(leaves)
        with backend.state_lock:
            if key not in self._programs:
                if not named and not self.at_once:
                    return self._first(key, args, kwargs)
                self._programs[key] = []  # traced at once: what needs a number says so now
            try:
                trace = self._traced(key, leaves, structure, named, args, kwargs)
            except Inline:
                return self._as_part(args, kwargs)
            return trace.run(leaves)

    def _first(self, key: Any, args: tuple, kwargs: dict) -> Any:
        """The first call of a signature runs as it stands; its results are like those of replays.
        """
        undo = Undo(f"jit of {name_of(self.function)}")
        try:
            with backend.inside(undo):
                given, structure = flatten(self.function(*args, **kwargs))
                tensors = _without_views(given)
        except BaseException:
            undo.restore()
            raise
        at_hand = [t for t in tensors if not has_stand_in(t)]
        if at_hand:
            at_hand[0].realize(*at_hand[1:])
        del given  # not before: what a view is of may hold the value
        for t in at_hand:
            if undo.is_born(t) and not t._leaf and grad_enabled() and t.requires_grad:
                t._end_history()
        self._programs[key] = []
        if len(self._programs) > _MOST_SIGNATURES:
            self._programs.pop(next(iter(self._programs)))
        return unflatten(structure, tensors)

    def _traced(
        self, key: Any, leaves: list[Any], structure: Structure, named: dict[int, dict],
        args: tuple, kwargs: dict,
    ) -> Trace:  # fmt: skip
        kept = self._programs[key]
        self._warn(kept)
        name = name_of(self.function)
        trace = Trace(self.function, name, leaves, args, kwargs, named, _seen_by(structure))
        after = flatten((args, kwargs))
        if list(map(id, after[0])) != list(map(id, leaves)) or _frozen(after[1]) != _frozen(
            structure
        ):
            raise TraceError(
                f"jit of {name}: it puts something else into one of its arguments, which a replay "
                "would not do; assign to the tensors there (x.assign(...)), or return new values"
            )
        self.traces += 1
        kept[:] = [*kept[-_MOST_TRACES + 1 :], trace]
        if trace.quick and not self.symbolic and not kwargs and len(args) == len(leaves) > 0 \
                and all(map(operator.is_, args, leaves)):  # fmt: skip
            self._kind = _kind(args[0]) if len(args) == 1 else _kinds(args)
            self._last = None if self._kind is None else trace
            one = self._last is not None and len(args) == 1 and trace.inputs and \
                type(trace.inputs[-1]) is int  # arguments are the last inputs
            self._replay = replayer(trace, self._kind, _around) if one else None
        return trace

    def _warn(self, kept: list[Trace]) -> None:
        if self.traces >= _MANY and kept and not self._warned:
            self._warned = True
            warnings.warn(
                f"jit of {name_of(self.function)}: traced {self.traces} times because "
                f"{kept[-1].guards.broken()} changed; what changes often should be a Tensor",
                stacklevel=4,
            )

    def _symbolic_leaves(self, leaves: list[Any], structure: Structure) -> dict[int, dict]:
        """Which argument tensors have symbolic axes: leaf -> axis -> (name, low, high)."""
        if not self.symbolic:
            return {}
        args, kwargs = unflatten(structure, list(range(len(leaves))))
        if self._signature is None:
            self._signature = inspect.signature(self.function)
        bound = self._signature.bind(*args, **kwargs).arguments
        found = {}
        for name, axes in self.symbolic.items():
            place = bound.get(name)
            if type(place) is not int:
                raise TraceError(
                    f"jit: symbolic names {name!r}, which is no tensor argument of "
                    f"{name_of(self.function)}"
                )
            found[place] = axes
        return found


class _Method:
    """A method bound to an instance that it does not keep alive."""

    def __init__(self, function: Callable, instance: weakref.ref, owner: Any) -> None:
        self.plain, self.instance, self.owner = function, instance, owner

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.bound()(*args, **kwargs)

    def bound(self) -> Callable:
        """The ordinary bound method."""
        return self.plain.__get__(self.instance(), self.owner)


def _forget(jitted: weakref.ref, number: int, _: Any) -> None:
    owner = jitted()
    if owner is not None:
        owner._methods.pop(number, None)


def _without_views(tensors: list[Any]) -> list[Any]:
    """Results of which none is a view: writing to one never reaches another tensor."""
    return [t if t._parent is None else t._of(t._value(), t.device, t._stopped) for t in tensors]


# --- signatures -----------------------------------------------------------------------------------


def _kind(t: Any) -> tuple | None:
    """What makes one argument, and the settings around a call, like another; None for what is no
    tensor with memory of its own."""
    if type(t) is not Tensor or t._origin is not None:
        return None
    raw = t._raw
    if raw.op is not _INPUT or raw.arg.buffer is None:
        return None
    return (raw.shape, raw.dtype, t.device, t._leaf, grad_enabled(), config._overrides.get(),
            ambient and _around())  # fmt: skip


def _kinds(tensors: tuple) -> tuple | None:
    """The same of several arguments; None also where one tensor is given twice. (One argument has a
    way of its own because this loop costs a small call a tenth of its time.)"""
    found: list[Any] = []
    for t in tensors:
        if type(t) is not Tensor or t._origin is not None:
            return None
        raw = t._raw
        if raw.op is not _INPUT or raw.arg.buffer is None:
            return None
        found += (raw.shape, raw.dtype, t.device, t._leaf)
    if len(set(map(id, tensors))) < len(tensors):
        return None
    return (*found, grad_enabled(), config._overrides.get(), ambient and _around())


def _has_history(t: Any) -> bool:
    """Whether an argument leads to leaves of differentiation, so that gradients may be wanted."""
    raw = t._raw
    if t._leaf or raw.op is _INPUT and raw.arg.buffer is not None:
        return False
    return has_stand_in(t) or grad_enabled() and t.requires_grad


def _key(leaves: list[Any], structure: Structure, named: dict[int, dict]) -> Any:
    first: dict[int, int] = {}
    sizes = []
    for i, t in enumerate(leaves):
        axes = named.get(i, {})
        shape = tuple(axes[k] if k in axes else n for k, n in enumerate(t.shape))
        alias = first.setdefault(id(t._root), i)
        sizes.append((shape, t.dtype, t.device, t._leaf, t._stopped, alias))
    settings = (config.get("DEVICE"), *config.of_programs())
    return (tuple(sizes), _frozen(structure), grad_enabled(), settings, tuple(_around()))


def _around() -> list[Any]:
    return [f() for f in ambient]


def _frozen(structure: Structure) -> Any:
    """The structure as a key: Python values by type and value, other objects by identity."""
    if isinstance(structure, Leaf):
        return structure.index
    if isinstance(structure, Branch):
        return (structure.kind, structure.keys, tuple(map(_frozen, structure.children)))
    value = structure.value
    if isinstance(value, SIMPLE):
        return simple_key(value)
    if isinstance(value, np.ndarray | np.generic):
        return (type(value), value.shape, str(value.dtype), value.tobytes())
    if isinstance(value, set | frozenset):
        return (type(value), frozenset(map(simple_key, value)))
    if isinstance(value, slice):
        return (slice, value.start, value.stop, value.step)
    return Identity(value)


def _seen_by(structure: Structure) -> list[Any]:
    """The objects in the arguments that may be looked into: attributes, their classes' code."""
    if isinstance(structure, Leaf):
        return []
    if isinstance(structure, Branch):
        inside = [x for child in structure.children for x in _seen_by(child)]
        return [structure.kind, *inside]
    value = structure.value
    plain = isinstance(value, (*SIMPLE, np.ndarray, np.generic, slice, set, frozenset))
    return [] if plain else [value]


__all__ = ["Jitted", "jit"]
