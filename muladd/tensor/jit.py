"""jit: a function of tensors becomes one program, replayed in one call.

The first call with a signature runs as it stands, so that whatever a function makes once (optimiser
state, say) is there. The second is traced: `f` runs on the same handles while nothing computes, and
every handle that it reads or writes is noted. What a call needs is then

* its arguments' tensors, wherever they are nested,
* the *captured* handles: tensors that f reached otherwise (a model's parameters, an optimiser's
  state). Handles, not their contents: whoever assigns them later is seen by the next call;
* *guards*: the Python values f's code can reach (arguments, closure, globals, the attributes of
  modules among them). If one changes, the function is traced again, never silently frozen.

What f changed of captured or given handles becomes outputs, given to the same handles after each
call. Results are always fresh memory: a later call never changes them.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from muladd import config
from muladd import device as devices
from muladd.errors import TraceError
from muladd.ir import Node, Param, Storage, Var, ops, param, substitute, sym, toposort
from muladd.ir.node import stored, variables
from muladd.tensor import backend
from muladd.tensor import handle as handles
from muladd.tensor.handle import Handle, _leaves, grad_enabled
from muladd.tensor.random import default_generator
from muladd.tensor.tensor import Tensor
from muladd.tensor.tree import Branch, Leaf, Static, Structure, flatten, is_module, unflatten

_RANDOM = object()  # stands for the state of the random numbers, whichever tensor holds it now
_MOST_TRACES = 64  # signatures kept per function; the oldest goes first
_lock = threading.RLock()


def jit(
    function: Callable | None = None, *, symbolic: dict[str, dict[int, tuple]] | None = None
) -> Any:
    """`function`, compiled at its second call and replayed from then on.

    symbolic={"x": {0: ("n", 1, 512)}}: axis 0 of argument x is the symbolic size n, between 1 and
    512; calls with other sizes need no new trace and no new code. Use as a decorator too, on
    functions and methods. Raises TraceError where the function asks for a value (.item(), bool).
    Gradients that the function leaves behind are dropped, unless they were there before.
    """
    if function is None:
        return functools.partial(jit, symbolic=symbolic)
    return Jitted(function, symbolic or {})


class Jitted:
    """What jit returns. `traces` counts how often the function was traced."""

    def __init__(self, function: Callable, symbolic: dict[str, dict[int, tuple]]) -> None:
        self.function, self.symbolic = function, symbolic
        self.traces = 0
        self._programs: dict[Any, list[_Trace]] = {}
        self._seen: dict[Any, None] = {}
        self._methods: weakref.WeakKeyDictionary[Any, Jitted] = weakref.WeakKeyDictionary()
        functools.update_wrapper(self, function, updated=())

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        if instance not in self._methods:
            bound = self.function.__get__(instance, owner)
            self._methods[instance] = Jitted(bound, self.symbolic)
        return self._methods[instance]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if backend.is_tracing() or handles.watcher:  # inside another trace: part of it
            return self.function(*args, **kwargs)
        if not kwargs and len(args) == 1 and type(args[0]) is Tensor and not self.symbolic:
            leaves: list[Any] = list(args)
            node = args[0]._raw
            key: Any = (node.shape, node.dtype, args[0].device, args[0]._leaf, grad_enabled())
        else:
            leaves, structure = flatten((args, kwargs))
            key = self._key(leaves, structure)
        for trace in self._programs.get(key, ()):
            if trace.holds():
                return trace.run(leaves)
        with _lock:
            return self._first(key, leaves, args, kwargs)

    def _key(self, leaves: list[Any], structure: Structure) -> Any:
        first: dict[int, int] = {}
        sizes = []
        named = self._symbolic_leaves(leaves, structure)
        for i, t in enumerate(leaves):
            axes = named.get(i, {})
            shape = tuple(axes[k][0] if k in axes else n for k, n in enumerate(t.shape))
            sizes.append((shape, t.dtype, t.device, t._leaf, first.setdefault(id(t._root), i)))
        return (tuple(sizes), _frozen(structure), grad_enabled(), config.get("PROFILE"))

    def _symbolic_leaves(self, leaves: list[Any], structure: Structure) -> dict[int, dict]:
        """Which argument tensors have symbolic axes: leaf -> axis -> (name, low, high)."""
        if not self.symbolic:
            return {}
        args, kwargs = unflatten(structure, list(range(len(leaves))))
        bound = inspect.signature(self.function).bind(*args, **kwargs).arguments
        found = {}
        for name, axes in self.symbolic.items():
            place = bound.get(name)
            if not isinstance(place, int):
                raise TraceError(f"jit: symbolic names {name!r}, which is no tensor argument of "
                                 f"{_name(self.function)}")  # fmt: skip
            found[place] = axes
        return found

    def _first(self, key: Any, leaves: list[Any], args: tuple, kwargs: dict) -> Any:
        """A call that no trace fits: run it, and from the second one on trace it."""
        if key not in self._seen:
            self._seen[key] = None
            result = self.function(*args, **kwargs)
            tensors, _ = flatten(result)
            if tensors:
                tensors[0].realize(*tensors[1:])
            return result
        _, structure = flatten((args, kwargs))
        symbolic = self._symbolic_leaves(leaves, structure)
        trace = _Trace(self.function, leaves, args, kwargs, symbolic, structure)
        self.traces += 1
        kept = self._programs.setdefault(key, [])
        kept[:] = [t for t in kept if not t.stale][-_MOST_TRACES:] + [trace]
        return trace.run(leaves)


def _name(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _frozen(structure: Structure) -> Any:
    """The structure as a key: Python values by type and value, modules by identity."""
    if isinstance(structure, Leaf):
        return structure.index
    if isinstance(structure, Static):
        value = structure.value
        try:
            hash(value)
        except TypeError:
            return (type(value), id(value))
        return (type(value), value)
    children = tuple(map(_frozen, structure.children))
    return (structure.kind, structure.keys, children, id(structure.original))


# --- guards ---------------------------------------------------------------------------------------

_SIMPLE = (int, float, bool, str, bytes, complex, type(None))


@dataclass(slots=True)
class _Guard:
    """A Python value that the traced function could see: where it stands and what it was."""

    holder: Any  # a dict, or a closure cell
    key: Any
    value: Any
    counted: bool = False  # a module's attribute: setting it counts as a change

    def holds(self) -> bool:
        now = self.holder.cell_contents if self.key is None else self.holder.get(self.key, _MISSING)
        return now is self.value or (
            type(now) is type(self.value)
            and isinstance(now, (*_SIMPLE, tuple))
            and now == self.value
        )


_MISSING = object()


def guards_of(function: Callable) -> list[_Guard]:
    """Every Python value a function's code can reach: cells, globals, attributes."""
    found: list[_Guard] = []
    seen: set[int] = set()
    todo: list[Any] = [function]
    while todo:
        x = todo.pop()
        if id(x) in seen or isinstance(x, Handle):
            continue
        seen.add(id(x))
        for holder, key, value in _reachable(x):
            found.append(_Guard(holder, key, value, is_module(x)))
            todo.append(value)
    return found


def _reachable(x: Any) -> Iterator[tuple[Any, Any, Any]]:
    if isinstance(x, Jitted):
        x = x.function
    if inspect.ismethod(x):
        yield from _reachable(x.__func__)
        if not isinstance(x.__self__, Handle | type):
            yield from _attributes(x.__self__)
        return
    if isinstance(x, functools.partial):
        yield from _reachable(x.func)
        return
    code = getattr(x, "__code__", None)
    if code is None:
        if isinstance(x, list | tuple):
            yield from (({"item": v}, "item", v) for v in x if _looked_into(v))
        elif isinstance(x, dict):
            yield from ((x, k, v) for k, v in x.items() if _guarded(v))
        elif not isinstance(x, (*_SIMPLE, type)) and hasattr(x, "__dict__") and _ours(x):
            yield from _attributes(x)
        return
    if (getattr(x, "__module__", "") or "").startswith("muladd."):
        return
    for cell in x.__closure__ or ():
        try:
            value = cell.cell_contents
        except ValueError:
            continue
        yield cell, None, value
    for name in _names(code):
        if name in x.__globals__ and _guarded(x.__globals__[name]):
            yield x.__globals__, name, x.__globals__[name]


def _names(code: Any) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if hasattr(constant, "co_names"):
            names |= _names(constant)
    return names


def _attributes(x: Any) -> Iterator[tuple[Any, Any, Any]]:
    held = getattr(x, "__dict__", None)
    if held is not None:
        yield from ((held, k, v) for k, v in held.items() if _guarded(v))


def _guarded(value: Any) -> bool:
    return not inspect.ismodule(value) and not isinstance(value, type)


def _looked_into(value: Any) -> bool:
    return not isinstance(value, _SIMPLE)


def _ours(x: Any) -> bool:
    """Objects whose attributes a function is likely to read: modules, optimisers, plain classes."""
    return is_module(x) or type(x).__module__.startswith("muladd.nn") or not type(
        x).__module__.startswith(("muladd", "numpy", "builtins", "collections"))  # fmt: skip


# --- one trace ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Snapshot:
    """A handle as it was before the trace."""

    handle: weakref.ref
    raw: Node
    stopped: bool
    kept: Any
    grad: Any


class _Watch:
    """Notes handles as they are first touched, and puts them back."""

    def __init__(self) -> None:
        self.noted: dict[int, _Snapshot] = {}
        self.born: dict[int, weakref.ref] = {}  # handles that the trace itself makes

    def made(self, handle: Handle) -> None:
        self.born[id(handle)] = weakref.ref(handle)

    def note(self, root: Handle) -> None:
        born = self.born.get(id(root))
        if born is not None and born() is root:
            return
        if id(root) not in self.noted or self.noted[id(root)].handle() is not root:
            self.noted[id(root)] = _Snapshot(
                weakref.ref(root), root._raw, root._stopped, root._kept, root.grad
            )

    def alive(self) -> list[tuple[Handle, _Snapshot]]:
        return [(h, s) for s in self.noted.values() if (h := s.handle()) is not None]

    def restore(self, assigned: set[Storage]) -> None:
        """Every handle as it was; what the trace assigned is forgotten."""
        for storage in list(backend._assigned):
            if storage not in assigned:
                backend._assigned.pop(storage, None)
        for h, s in self.alive():
            if h._raw is not s.raw:
                if h._leaf and isinstance(h._raw.arg, Storage):
                    _leaves.pop(h._raw.arg, None)
                h._raw = s.raw
            h._stopped, h._kept, h.grad = s.stopped, s.kept, s.grad
            if h._leaf:
                _leaves[s.raw.arg] = (weakref.ref(h), False)


class _Trace:
    """A function traced for one signature: a program, and where its inputs and outputs are."""

    def __init__(
        self, function: Callable, leaves: list[Any], args: tuple, kwargs: dict,
        symbolic: dict[int, dict], structure: Structure,
    ) -> None:  # fmt: skip
        self.stale = False
        self.guards = guards_of(function)
        # modules count their changes, so their attributes need a look only when something changed
        self.watched = [g for g in self.guards if isinstance(g.holder, dict) and g.counted]
        self.loose = [g for g in self.guards if not (isinstance(g.holder, dict) and g.counted)]
        self._realise(leaves)
        default_generator().state(leaves[0].device if leaves else backend.default_device())
        for _ in range(4):
            watch, result, changed, lazy = self._run_traced(
                function, leaves, args, kwargs, symbolic, structure
            )
            if not lazy:
                break
            lazy[0].realize(*lazy[1:])  # state that had no contents yet
        self._compile(leaves, watch, result, changed)

    @staticmethod
    def _realise(tensors: list[Any]) -> None:
        if tensors:
            tensors[0].realize(*tensors[1:])

    def _run_traced(
        self, function: Callable, leaves: list[Any], args: tuple, kwargs: dict,
        symbolic: dict[int, dict], structure: Structure,
    ) -> tuple[_Watch, tuple, tuple, list[Any]]:  # fmt: skip
        watch, assigned = _Watch(), set(backend._assigned)
        self.sizes: dict[str, tuple[int, int]] = {}  # symbolic size -> (leaf, axis)
        stand_ins = list(leaves)
        self.given: list[Storage | None] = []
        for i, t in enumerate(leaves):
            if i in symbolic:
                shape = list(t.shape)
                for axis, (name, low, high) in symbolic[i].items():
                    shape[axis] = _variable(name, low, high)
                    self.sizes[name] = (i, axis)
                storage = Storage(tuple(shape), t.dtype, t.device)
                stand_ins[i] = Tensor._of(stored(storage), t.device)
                self.given.append(storage)
            else:
                self.given.append(None)
        if symbolic:
            args, kwargs = unflatten(structure, stand_ins)
        handles.watcher.append(watch)
        try:
            with backend.tracing(f"jit of {_name(function)}"):
                result = function(*args, **kwargs)
                tensors, outside = flatten(result)
                values = [t.node if not t._stopped else t._value() for t in tensors]
                changed = [
                    (h, s, h._value())
                    for h, s in watch.alive()
                    if h._raw is not s.raw and _persistent(s.raw)
                ]
                grads = [(h, s, h.grad._value()) for h, s in watch.alive()
                         if h.grad is not None and s.grad is not None
                         and h.grad is not s.grad]  # fmt: skip
                roots, _ = self._expanded(values, changed, grads, leaves)
        finally:
            handles.watcher.pop()
            watch.restore(assigned)
        del tensors
        lazy = [h for h, s in watch.alive() if backend.is_deferred(s.raw) and h._raw is s.raw]
        lazy = [h for h in lazy if not any(h is t for t in stand_ins)] if not symbolic else lazy
        self.structure: Structure = outside
        return watch, (roots, len(values)), (changed, grads), lazy

    def _expanded(self, values, changed, grads, leaves):  # type: ignore[no-untyped-def]
        every = [*values, *[n for _, _, n in changed], *[n for _, _, n in grads]]
        self.device = (leaves[0].device if leaves else None) or backend.default_device()
        for h, _, _ in changed:
            self.device = h.device
        return backend.expand(every, self.device, reuse=False)

    def _compile(self, leaves, watch, result, changed) -> None:  # type: ignore[no-untyped-def]
        from muladd.compile import compile_graph

        roots, self.count = result
        mutated, grads = changed
        by_storage: dict[Storage, Any] = {}
        random = default_generator().tensors.get(self.device)
        for h, s in watch.alive():
            if s.raw.op is ops.INPUT and isinstance(s.raw.arg, Storage):
                by_storage[s.raw.arg] = _RANDOM if h is random else h
        for i, t in enumerate(leaves):
            where = self.given[i] or t._raw.arg
            by_storage[where] = i if t._parent is None else i
        inputs: dict[Node, Node] = {}
        self.inputs: list[Any] = []  # leaf number, handle, or storage
        for n in toposort(roots):
            if n.op is ops.INPUT and isinstance(n.arg, Storage):
                inputs[n] = param(len(self.inputs), n.shape, n.dtype)
                self.inputs.append(by_storage.get(n.arg, n.arg))
        graph = substitute(tuple(roots), inputs)
        self.names = tuple(sorted(v.arg.name for v in variables(graph)))
        place = self.device
        self.program = compile_graph(graph, place)
        self.place = devices.get(place)
        self.shapes = [r.shape for r in roots]
        self.types = [r.dtype for r in roots]
        index: dict[int, Any] = {id(t): i for i, t in enumerate(leaves)}
        if random is not None:
            index[id(random)] = _RANDOM
        self.mutated = [(index.get(id(h), h), False) for h, _, _ in mutated]
        self.mutated += [(index.get(id(h), h), True) for h, _, _ in grads]
        self.bound: Any = None
        self._prepare()

    def _prepare(self) -> None:
        """What the quickest path needs: one result, no symbolic sizes, nothing changed."""
        self.fixed: Any = None
        self.seen_changes = -1
        self.quick = not self.mutated and not self.names and self.count == 1 \
            and isinstance(self.structure, Leaf) and self.device == "CPU" \
            and not config.get("DEBUG")  # fmt: skip

    def holds(self) -> bool:
        """Whether the trace still fits what the function can see."""
        for g in self.loose:
            if not g.holds():
                return False
        if handles.changes[0] != self.seen_changes:
            if not all(g.holds() for g in self.watched):
                return False
            self.seen_changes, self.fixed = handles.changes[0], None
        return True

    def _run_quickly(self, leaves: list[Any]) -> Any:
        """One result and unchanged captured tensors: their addresses are known already."""
        fixed = self.fixed
        if fixed is None:
            bound = self.program.bind()
            if bound.memory is None:
                bound.memory = self.place.allocate(bound.arena)
            addresses = [0 if type(x) is int else self._buffer(x, leaves).address
                         for x in self.inputs]  # fmt: skip
            given = [(i, x) for i, x in enumerate(self.inputs) if type(x) is int]
            executable: Any = bound.executable
            fixed = self.fixed = (addresses + [0, bound.memory.address], given, bound.outputs[0],
                                  executable.packed, executable.call, len(addresses))  # fmt: skip
        addresses, given, nbytes, pack, call, out = fixed
        held = []
        for i, x in given:
            buffer = self._buffer(x, leaves)
            held.append(buffer)
            addresses[i] = buffer.address
        result = self.place.allocate(nbytes)
        addresses[out] = result.address
        with self.program.lock:
            call(pack(*addresses))
        storage = Storage(self.shapes[0], self.types[0], self.device, result)
        tensor = Tensor._of(stored(storage), self.device)
        tensor._kept = storage
        return tensor

    def _buffer(self, x: Any, leaves: list[Any]) -> Any:
        """The memory of an input: a given tensor (by number), a captured one, or a constant."""
        if type(x) is int:
            x = leaves[x]
        elif x is _RANDOM:
            x = default_generator().state(self.device)
        if isinstance(x, Handle):
            storage = x._raw.arg
            if x._origin is not None or x._raw.op is not ops.INPUT or storage.buffer is None:
                storage = x.storage()
            return storage.buffer
        return x.buffer

    # --- running ---

    def run(self, leaves: list[Any]) -> Any:
        if self.quick:
            return self._run_quickly(leaves)
        values: tuple[int, ...] = ()
        if self.names:
            values = tuple(
                int(leaves[self.sizes[n][0]].shape[self.sizes[n][1]]) for n in self.names
            )
            self._check(values, leaves)
        buffers = [self._buffer(x, leaves) for x in self.inputs]
        results = self.program.run(buffers, values)
        number = dict(zip(self.names, values))
        stores = [
            Storage(s if not self.names else tuple(sym.evaluate(d, number) for d in s), d,
                    self.device, b)
            for s, d, b in zip(self.shapes, self.types, results)
        ]  # fmt: skip
        for (h, gradient), storage in zip(self.mutated, stores[self.count :]):
            h = default_generator().state(self.device) if h is _RANDOM else h
            _give(leaves[h] if type(h) is int else h, storage, gradient)
        tensors = [Tensor._of(stored(s), self.device) for s in stores[: self.count]]
        for t, s in zip(tensors, stores):
            t._kept = s
        return (
            tensors[0] if isinstance(self.structure, Leaf) else unflatten(self.structure, tensors)
        )

    def _check(self, values: tuple[int, ...], leaves: list[Any]) -> None:
        for name, value in zip(self.names, values):
            leaf, axis = self.sizes[name]
            given = self.given[leaf]
            assert given is not None
            var = given.shape[axis].arg  # type: ignore[union-attr]
            if not var.low <= value <= var.high:
                raise TraceError(f"jit: size {name} is {value}, declared {var.low} to {var.high}")


def _variable(name: str, low: int, high: int) -> Node:
    from muladd.ir import var

    return var(name, low, high)


def _persistent(raw: Node) -> bool:
    """Whether a handle stood for stored contents before the trace (so it is state)."""
    return raw.op is ops.INPUT and isinstance(raw.arg, Storage)


def _give(h: Handle, storage: Storage, gradient: bool) -> None:
    """New contents for a handle, as its own assignment would have given them."""
    if gradient:
        h.grad = Tensor._of(stored(storage), h.device)
        return
    handles.changes[0] += 1
    if h._leaf:
        _leaves[h._raw.arg] = (weakref.ref(h), True)
        _leaves[storage] = (weakref.ref(h), False)
    h._raw, h._kept = stored(storage), storage
    h._stopped = False


__all__ = ["Branch", "Jitted", "Param", "Static", "Var", "jit"]
