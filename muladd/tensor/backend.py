"""Where values live and what runs graphs: the one place that knows the compiler and interpreter.

A storage may be *deferred*: it has an identity now and its contents later, as the value of a graph.
State that changes (parameters, buffers) is held in such storages, so that two parameters which
start as equal zeros are two, and so that a whole training step stays one graph.
"""
from __future__ import annotations

import math
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from muladd import config
from muladd.errors import DeviceError, TraceError
from muladd.ir import DType, Node, Shape, Storage, make, node, ops
from muladd.ir import dtype as dt
from muladd.tensor import known

state_lock = threading.RLock()  # tracing, and runs that change state, one at a time
INTERPRETER = "INTERP"  # the device on which graphs are interpreted and storages are NumPy arrays
HOSTS = (INTERPRETER, "CPU")  # devices whose memory is the host's: looking at it costs little

_deferred: weakref.WeakKeyDictionary[Storage, tuple[Node, weakref.ref | None]] = (
    weakref.WeakKeyDictionary()
)
# Storages that never have a value, each with the words for what was asked if somebody wants it.
_placeholders: weakref.WeakKeyDictionary[Storage, str] = weakref.WeakKeyDictionary()


_left: deque[Storage] = deque()  # by threads that ended, for whichever thread computes next


class _States(weakref.WeakKeyDictionary[Storage, None]):
    """Storages in the order in which a thread wrote them. When it ends, others get them."""

    def __del__(self, left: deque[Storage] = _left) -> None:  # globals may be gone by then
        left.extend(s for r in self.keyrefs() if (s := r()) is not None)


class _Written(threading.local):
    """Deferred storages of state that a thread wrote, in that order: they are computed along with
    what it computes next, and programs are found again by order."""

    def __init__(self) -> None:
        self.states = _States()


written = _Written()


def _waiting() -> list[Storage]:
    """What this thread has written, or one that ended, and nobody has computed yet."""
    states = written.states
    while _left:
        try:
            states[_left.popleft()] = None
        except IndexError:  # another thread took it
            break
    if states:
        for s in [s for s in states if s not in _deferred]:
            del states[s]
    return list(states)


def default_device() -> str:
    """The device of new tensors: the setting DEVICE (see muladd.config)."""
    name: str = config.get("DEVICE")
    return name


def device_name(device: Any) -> str:
    """A device as its name in capitals; None is the default device."""
    if device is None:
        return default_device()
    if not isinstance(device, str):
        raise DeviceError(f"device: given {device!r}, expected a name such as 'CPU'")
    return device.upper()


# --- tracing --------------------------------------------------------------------------------------


class Frame:
    """A function that runs on stand-ins. It is told of every tensor that is made here and now, and
    of every root that is read or written, before it is."""

    traces = True  # what is written down here runs later, as a part of something
    computes = False  # values may be asked for all the same

    def __init__(self, who: str) -> None:
        self.who = who
        self.outer = frame.get()
        self.born: dict[int, weakref.ref] = {}

    def made(self, handle: Any) -> None:
        self.born[id(handle)] = weakref.ref(handle)

    def is_born(self, handle: Any) -> bool:
        """Whether a tensor was made in here."""
        reference = self.born.get(id(handle))
        return reference is not None and reference() is handle

    def note(self, root: Any) -> None:
        """`root` is about to be read or written."""

    def write(self, root: Any) -> None:
        """`root` is about to be written."""
        self.note(root)

    def deferred(self, x: Node, definition: Node) -> None:
        """A tensor made or written here stands on `x`, whose contents will be `definition`."""

    def draw(self, generator: Any, count: Any, device: str) -> Node:
        """The state from which to draw `count` pairs of random words."""
        return generator.advance(count, device)


frame: ContextVar[Frame | None] = ContextVar("muladd.frame", default=None)


@contextmanager
def inside(now: Frame | None) -> Iterator[None]:
    """Inside, `now` is the function that runs (None: no function at all)."""
    token = frame.set(now)
    try:
        yield
    finally:
        frame.reset(token)


def tracing(who: str) -> AbstractContextManager[None]:
    """Inside, nothing may run: asking for a value raises TraceError naming `who`."""
    return inside(Frame(who))


def is_tracing() -> bool:
    """Whether a function is being traced here and now."""
    now = frame.get()
    return now is not None and now.traces


# --- deferred storages ----------------------------------------------------------------------------


def defer(definition: Node, device: str, owner: Any = None, assigned: bool = False) -> Node:
    """An INPUT node of its own identity whose contents will be the value of `definition`.

    When it is realised along with something else, its contents are kept only if `owner` (a tensor)
    still has this node; without an owner, always. `assigned` state is realised along with whatever
    is realised next on its device.
    """
    storage = Storage(definition.shape, definition.dtype, device)
    _deferred[storage] = (definition, None if owner is None else weakref.ref(owner))
    if assigned:
        written.states[storage] = None
    x = make(ops.INPUT, (), storage)
    now = frame.get()
    if now is not None and owner is not None:
        now.deferred(x, definition)
    return x


def placeholder(shape: Shape, d: DType, device: str, what: str) -> Node:
    """An INPUT node without contents, ever. `what` it is, for whoever asks for its value."""
    storage = Storage(shape, d, device)
    _placeholders[storage] = what
    return make(ops.INPUT, (), storage)


def _refuse_placeholders(roots: Sequence[Node]) -> None:
    what = _placeholder_below(roots)
    if what is not None:
        raise TraceError(
            f"{what} was asked for its value; use it as a tensor (for example with where) instead "
            "of .item(), .numpy() or `if`, and return it to have it outside"
        )


def _placeholder_below(roots: Sequence[Node]) -> str | None:
    """What a placeholder is that graphs lead to; None if they lead to none."""
    if not _placeholders:
        return None
    inputs = [n.arg for n in node.toposort(roots) if n.op is ops.INPUT]
    return next((_placeholders[s] for s in inputs if s in _placeholders), None)


def is_deferred(x: Node) -> bool:
    return x.op is ops.INPUT and is_waiting(x.arg)


def is_waiting(storage: Any) -> bool:
    """Whether a storage has its contents later."""
    return isinstance(storage, Storage) and storage in _deferred


def definition(x: Node) -> Node:
    """The graph that a deferred storage stands for (itself for any other node)."""
    found = _deferred.get(x.arg) if x.op is ops.INPUT and isinstance(x.arg, Storage) else None
    return x if found is None else found[0]


def remember(graph: Node, storage: Storage) -> None:
    """Note that a graph's value is at hand: later graphs that contain it load it instead."""
    if graph.op is not ops.INPUT:
        if graph.memo is None:
            graph.memo = {}
        graph.memo["realised"] = weakref.ref(storage)


def _at_hand(x: Node, device: str) -> Storage | None:
    reference = x.memo.get("realised") if x.memo else None
    storage = reference() if reference is not None else None
    return storage if storage is not None and storage.device == device else None


def expand(
    roots: Sequence[Node], device: str, reuse: bool = True
) -> tuple[list[Node], list[Storage]]:
    """The roots with deferred storages replaced by their graphs and realised graphs by their value
    (not without `reuse`: a trace wants the graph). Also the deferred storages that were met.
    """
    done: dict[Node, Node] = {}
    met: dict[Storage, None] = {}
    stack: list[tuple[Node, bool]] = [(r, False) for r in reversed(roots)]
    while stack:
        x, ready = stack.pop()
        if x in done:
            continue
        deferred = is_deferred(x)
        sources = (definition(x),) if deferred else x.srcs
        if not ready:
            known = reuse and not deferred and bool(x.srcs)
            storage = _at_hand(x, device) if known else None
            if storage is not None:
                done[x] = make(ops.INPUT, (), storage)
            elif not sources:
                done[x] = x
            else:
                stack.append((x, True))
                stack.extend((s, False) for s in sources if s not in done)
            continue
        if deferred:
            met[x.arg] = None
            done[x] = done[sources[0]]
        else:
            new = tuple([done[s] for s in sources])
            done[x] = x if all(map(_same, new, sources)) else node.rebuild(x, new)
    return [done[r] for r in roots], list(met)


def _same(a: Node, b: Node) -> bool:
    return a is b


# --- running --------------------------------------------------------------------------------------


def realize(roots: Sequence[Node], device: str) -> list[Storage]:
    """The values of graphs, computed together. A deferred root gets its contents in place."""
    now = frame.get()
    if now is not None and now.traces and not now.computes:
        raise TraceError(
            f"{now.who}: a value was asked for while tracing; use it as a tensor (for example with "
            "where) instead of .item(), .numpy() or `if`, or compute it outside the function"
        )
    waiting = _waiting()
    if not waiting:
        if all(_is_stored(r) for r in roots):
            return [r.arg for r in roots]
        again = _again(roots, device)
        if again is not None:
            return again
    with state_lock:
        plain, states = _with_state(roots, device, waiting)
    if states:
        return _keep(roots, plain, states, device)
    unique = list(dict.fromkeys(plain))
    _check_devices(unique, device)
    values = dict(zip(unique, _run(unique, device)))
    return [values[p] for p in plain]


def _with_state(
    roots: Sequence[Node], device: str, waiting: list[Storage]
) -> tuple[list[Node], dict[Storage, Node]]:
    """The graphs of roots, and those of the deferred storages that are computed along with them."""
    plain, met = expand(roots, device)
    _refuse_placeholders(plain)
    latest = [_latest(s) for s in waiting if s.device == device]
    candidates = dict.fromkeys([s for s in met if _latest(s) is s])
    wanted = list(candidates | dict.fromkeys([s for s in latest if s is not None]))
    graphs = expand([_deferred[s][0] for s in wanted], device)[0]
    return plain, {s: x for s, x in zip(wanted, graphs) if _placeholder_below([x]) is None}


def _keep(
    roots: Sequence[Node], plain: list[Node], states: dict[Storage, Node], device: str
) -> list[Storage]:
    """The values of the roots, with those of states in place."""
    unique = list(dict.fromkeys([*plain, *states.values()]))
    _check_devices(unique, device)
    values = dict(zip(unique, _run(unique, device)))
    mine = {r.arg for r in roots if r.op is ops.INPUT}
    shared = {p for p, r in zip(plain, roots) if r.op is not ops.INPUT or r.arg not in states}
    with state_lock:
        for storage, graph in states.items():
            if storage not in _deferred:  # another thread has computed it meanwhile
                continue
            value = values[graph]
            if graph.op is ops.INPUT or graph in shared:  # state has its memory for itself
                value = _copy(graph, value)
            shared.add(graph)
            storage.buffer = value.buffer
            del _deferred[storage]
            written.states.pop(storage, None)
    kept = mine & states.keys()
    return [r.arg if r.op is ops.INPUT and r.arg in kept else values[p]
            for r, p in zip(roots, plain)]  # fmt: skip


def _again(roots: Sequence[Node], device: str) -> list[Storage] | None:
    """The values where no state waits to be computed, by a program that is found in one walk."""
    if device == INTERPRETER or len(set(roots)) < len(roots):
        return None
    if any(r.op is ops.INPUT or _is_zeros(r) or _at_hand(r, device) is not None for r in roots):
        return None
    reading = known.read(roots, _at_hand, device)
    if reading is None:
        return None
    return known.run(roots, reading, device)


def _is_stored(r: Node) -> bool:
    return r.op is ops.INPUT and isinstance(r.arg, Storage) and r.arg.buffer is not None


def _is_zeros(r: Node) -> bool:
    """Whether a graph is an array of zeros, which a device gives without a program."""
    if r.op is not ops.EXPAND or r.srcs[0].op is not ops.CONST:
        return False
    return not r.srcs[0].arg and math.copysign(1, r.srcs[0].arg) > 0


def waiting_beside(tensors: Iterable[Any]) -> bool:
    """Whether state waits to be computed that is not that of these tensors."""
    own = {t._raw.arg for t in tensors if t._raw.op is ops.INPUT}
    return any(s not in own for s in _waiting())


def _copy(graph: Node, value: Storage) -> Storage:
    """Another storage with the value of a graph."""
    if value.device != INTERPRETER and _is_zeros(graph):
        return _zeros(graph, value.device)
    return write(read(value), value.dtype, value.device)


def _latest(storage: Storage) -> Storage | None:
    """The deferred storage that a deferred one's tensor has by now: another one, if it was written
    to again (by another thread, which may not compute for long); None if it has none."""
    reference = _deferred[storage][1]
    if reference is None:
        return storage
    owner = reference()
    if owner is None or not is_deferred(owner._raw):
        return None
    found: Storage = owner._raw.arg
    return found


def _check_devices(roots: Sequence[Node], device: str) -> None:
    for x in node.toposort(roots):
        if x.op is ops.INPUT and isinstance(x.arg, Storage) and x.arg.device != device:
            raise DeviceError(
                f"realize: {x.arg} is used in a graph that runs on {device}; move it there with "
                f".to({device!r})"
            )


def _run(roots: list[Node], device: str) -> list[Storage]:
    given = {i: r.arg for i, r in enumerate(roots) if r.op is ops.INPUT}
    if device != INTERPRETER:
        given |= {i: _zeros(r, device) for i, r in enumerate(roots) if _is_zeros(r)}
    rest = [r for i, r in enumerate(roots) if i not in given]
    if not rest:
        return [given[i] for i in range(len(roots))]
    if device == INTERPRETER:
        from muladd import interp

        leaves = [n for n in node.toposort(rest) if n.op is ops.INPUT]
        inputs = {n: n.arg.buffer for n in leaves if isinstance(n.arg, Storage)}
        arrays = interp.evaluate(rest, inputs)
        results = [Storage(r.shape, r.dtype, device, a) for r, a in zip(rest, arrays)]
    else:
        import muladd.compile as compiler  # a `from` would look for a file in every call

        results = compiler.realize(rest, device)
    following = iter(results)
    return [given[i] if i in given else next(following) for i in range(len(roots))]


# --- host memory ----------------------------------------------------------------------------------


def write(array: np.ndarray, d: DType, device: str) -> Storage:
    """A new storage with the values of a NumPy array (bfloat16 and float8 come as float32)."""
    if device == INTERPRETER:
        values = np.array(array, dtype=d.numpy, order="C")
        return Storage(values.shape, d, device, dt.decode(dt.encode(values, d), d))
    import muladd.device as devices

    place = devices.get(device)
    values = np.asarray(array, dtype=d.numpy, order="C")
    stored = np.ascontiguousarray(dt.encode(values, d))
    buffer = place.allocate(stored.nbytes)
    if stored.nbytes:
        place.copy_in(buffer, stored)
    return Storage(values.shape, d, device, buffer)


def _zeros(r: Node, device: str) -> Storage:
    """A new storage of zeros: large ones are untouched pages of the system."""
    import muladd.device as devices

    sizes: Any = r.shape
    nbytes = math.prod(sizes) * r.dtype.itemsize
    return Storage(r.shape, r.dtype, device, devices.get(device).zeros(nbytes))


def read(storage: Storage) -> np.ndarray:
    """The values of a storage as a new NumPy array (bfloat16 and float8 come as float32)."""
    if storage.device == INTERPRETER:
        return np.array(storage.buffer)
    import muladd.device as devices

    sizes: Any = storage.shape
    stored = np.empty(sizes, storage.dtype.storage)
    if stored.nbytes:
        devices.get(storage.device).copy_out(storage.buffer, stored)
    return np.array(dt.decode(stored, storage.dtype))


def synchronize(devices_used: Iterable[str]) -> None:
    """Wait until all work on these devices has finished."""
    import muladd.device as devices

    for name in devices_used:
        if name != INTERPRETER:
            devices.get(name).synchronize()
