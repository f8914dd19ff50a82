"""One traced function: how tracing watches handles, the program it gives, and how that is run.

While `f` runs, every tensor it touches stands on an INPUT of its own (a stand-in over the same
memory), so that two tensors which happen to share a value are still two inputs. Afterwards all
handles are put back; what `f` changed has become outputs.
"""

from __future__ import annotations

import struct
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from sys import getrefcount
from typing import Any

from muladd import config
from muladd import device as devices
from muladd.errors import TraceError
from muladd.garbage import uncollected
from muladd.ir import Node, Storage, ops, param, substitute, sym, toposort, var
from muladd.ir.node import stored, variables
from muladd.tensor import backend
from muladd.tensor import handle as handles
from muladd.tensor.guards import Entry, Guards, put_together, random_states, take_apart
from muladd.tensor.handle import Handle, _leaves, end_history, grad_enabled, no_grad
from muladd.tensor.random import default_generator
from muladd.tensor.tensor import Tensor
from muladd.tensor.tree import Leaf, flatten, unflatten


class Inline(Exception):
    """The function meets a stand-in of grad, vmap and the like: it has to become part of those."""


RANDOM = object()  # stands for the state of the random numbers, whichever tensor holds it now


@dataclass(slots=True)
class Snapshot:
    """A handle as it was before the trace, and the node it stands on in it."""

    handle: weakref.ref
    raw: Node
    stopped: bool
    kept: Any
    grad: Any
    start: Node
    view: tuple | None = None  # (parent, origin, step, seen) of a view that was cut loose


class Undo(backend.Frame):
    """Notes handles as they are first touched, so that they can be put back."""

    traces = False

    def __init__(self, who: str) -> None:
        super().__init__(who)
        self.noted: dict[int, Snapshot] = {}
        self.assigned = set(backend.written.states)

    def note(self, root: Handle) -> None:
        if self.is_born(root):
            return
        known = self.noted.get(id(root))
        if known is None or known.handle() is not root:
            self.noted[id(root)] = Snapshot(
                weakref.ref(root), root._raw, root._stopped, root._kept, root.grad, root._raw
            )
            self.substitute(root, self.noted[id(root)])

    def substitute(self, root: Handle, s: Snapshot) -> None:
        """What a trace does besides: give the handle a stand-in."""

    def alive(self) -> list[tuple[Handle, Snapshot]]:
        return [(h, s) for s in list(self.noted.values()) if (h := s.handle()) is not None]

    def restore(self) -> None:
        """Every handle as it was; what was assigned meanwhile is forgotten."""
        for storage in list(backend.written.states):
            if storage not in self.assigned:
                backend.written.states.pop(storage, None)
        for h, s in self.alive():
            if h._leaf and h._raw is not s.raw and isinstance(h._raw.arg, Storage):
                _leaves.pop(h._raw.arg, None)
            h._raw, h._stopped, h._kept, h.grad = s.raw, s.stopped, s.kept, s.grad
            if s.view is not None:
                h._parent, h._origin, h._step, h._seen = s.view
            if h._leaf:
                _leaves[s.raw.arg] = (weakref.ref(h), False)


class Watch(Undo):
    """An Undo whose handles stand on stand-ins: inputs of their own, over the same memory."""

    traces = True

    def __init__(self, who: str) -> None:
        super().__init__(who)
        self.owner: dict[Storage, Handle] = {}  # stand-in -> handle
        self.history: list[tuple[weakref.ref, Node]] = []  # handles that kept their graph

    def substitute(self, root: Handle, s: Snapshot) -> None:
        raw = root._raw
        if not (raw.op is ops.INPUT and isinstance(raw.arg, Storage)) or raw.arg.buffer is None:
            if has_stand_in(root):
                raise Inline
            if not root._leaf and root.requires_grad:  # backward() may want its graph
                self.history.append((weakref.ref(root), raw))
                return
            realise_now([root], self)
            s.kept, s.stopped = root._kept, root._stopped
            s.raw = root._raw if root._raw.op is ops.INPUT else raw
        self.stand_in(root, s, storage_of(root))

    def stand_in(
        self, root: Handle, s: Snapshot, storage: Storage, shape: tuple | None = None
    ) -> None:
        new = Storage(shape or storage.shape, storage.dtype, storage.device, storage.buffer)
        s.start = root._raw = stored(new)
        self.owner[new] = root
        if root._leaf:
            _leaves[new] = (weakref.ref(root), False)


def has_stand_in(t: Handle) -> bool:
    """Whether a tensor's graph leads to a stand-in of grad, vmap and the like."""
    if t._leaf or t._raw.op is ops.INPUT and t._raw.arg.buffer is not None:
        return False
    return any(n.op is ops.INPUT and backend.is_deferred(n) and _is_stand_in(n.arg)
               for n in toposort([t._raw]))  # fmt: skip


def _is_stand_in(storage: Storage) -> bool:
    reference, retired = _leaves.get(storage, (None, True))
    owner = None if reference is None else reference()
    return not retired and owner is not None and not owner._leaf


def storage_of(t: Any) -> Storage:
    """The storage behind a tensor's value, computed if it was not yet."""
    raw = t._raw
    if t._origin is None and raw.op is ops.INPUT and raw.arg.buffer is not None:
        return raw.arg
    return t.storage()


def realise_now(tensors: Sequence[Any], watch: Watch | None = None) -> None:
    """Compute tensors in the middle of a trace: with what was there before it, and nothing else."""
    before = watch.assigned if watch is not None else set(backend.written.states)
    inside = [s for s in backend.written.states if s not in before]
    for s in inside:
        backend.written.states.pop(s)
    try:
        with backend.inside(None):
            tensors[0].realize(*tensors[1:])
    finally:
        backend.written.states.update((s, None) for s in inside if backend.is_waiting(s))


@dataclass
class Effect:
    """A Python value that f changed: on every run it gets this value, with new tensors in it."""

    entry: Entry
    value: Any
    tensors: list[Any] = field(default_factory=list)  # handles, or numbers of outputs


class _Interpreted:
    """A program for the reference interpreter, which has no compiler."""

    lock = threading.Lock()

    def __init__(self, graph: Sequence[Node], inputs: Sequence[Node]) -> None:
        self.graph, self.params = list(graph), list(inputs)

    def run(self, buffers: Sequence[Any], values: Sequence[int] = ()) -> list[Any]:
        from muladd import interp

        sizes = {n.arg: v for n, v in zip(sorted(variables(self.graph), key=_by_name), values)}
        if sizes:
            raise TraceError("jit: symbolic sizes need a compiling device; set DEVICE=CPU")
        return interp.evaluate(self.graph, dict(zip(self.params, buffers)))


def _by_name(n: Node) -> str:
    return n.arg.name


class Trace:
    """A function traced for one signature: a program, and where its inputs and outputs are."""

    @uncollected()
    def __init__(
        self, function: Callable, name: str, leaves: list[Any], args: tuple, kwargs: dict,
        symbolic: dict[int, dict], statics: list[Any],
    ) -> None:  # fmt: skip
        self.name = name
        self.guards = Guards([function, *statics])
        captured = set(map(id, self.guards.tensors))  # arguments among these are one with them
        self.both = [(i, weakref.ref(t)) for i, t in enumerate(leaves) if id(t) in captured]
        self.device = leaves[0].device if leaves else backend.default_device()
        self.overrides = config._overrides.get()
        self.seen_changes = -1
        self._record(lambda: function(*args, **kwargs), leaves, symbolic, [])
        self._settle_places()
        self._compile()

    # --- tracing ---

    def _record(
        self, call: Callable[[], Any], leaves: list[Any], symbolic: dict, replaced: list[Any]
    ) -> None:
        """Run the function, and note all that it does. `replaced` are tensors for which it puts
        others; how they came about does not matter, so they get stand-ins as the arguments do."""
        before = {id(t): t.grad for t in (*self.guards.tensors, *leaves)}
        draws = random_states(self.guards)
        given = [*leaves, *replaced]
        if given:
            given[0].realize(*given[1:])
        storages = [storage_of(t) for t in given]
        default_generator().state(self.device)
        watch = Watch(f"jit of {self.name}")
        try:
            with backend.inside(watch):
                self._take(watch, given, storages, symbolic)
                result = call()
                if random_states(self.guards) != draws:
                    raise TraceError(
                        f"jit of {self.name}: random numbers of Python or NumPy were drawn inside, "
                        "and would be the same in every call; use Tensor.rand and the like, or "
                        "pass them as arguments"
                    )
                more = self._replaced(watch, given)
                if not more:
                    self._collect(watch, leaves, result, before)
        finally:
            for e in self.guards.changed():
                e.set(e.value)  # the run that follows changes it, as later ones do
            watch.restore()
        if more:
            self._record(call, leaves, symbolic, [*replaced, *more])

    def _replaced(self, watch: Watch, given: list[Any]) -> list[Any]:
        """Tensors for which the function put others, and which were read by way of another: views
        (h.detach() of the last call) and those with a history."""
        known = set(map(id, given))
        histories = {id(reference()) for reference, _ in watch.history}
        old = [t for e in self.guards.changed() for t in take_apart(e.value)[1]]
        return [t for t in old if id(t) not in known
                and (t._parent is not None or id(t) in histories)]  # fmt: skip

    def _take(
        self, watch: Watch, given: list[Any], storages: list[Storage], symbolic: dict
    ) -> None:
        """Give every argument a stand-in of its own, views cut loose, axes made symbolic."""
        self.views: list[tuple[Handle, Handle]] = []
        self.sizes: dict[str, list[tuple[int, int, int, int]]] = {}
        for i, t in enumerate(given):
            shape = list(t.shape)
            for axis, (name, low, high) in symbolic.get(i, {}).items():
                shape[axis] = var(name, low, high)
                self.sizes.setdefault(name, []).append((i, axis, low, high))
            s = Snapshot(weakref.ref(t), t._raw, t._stopped, t._kept, t.grad, t._raw)
            watch.noted[id(t)] = s
            with backend.inside(None):  # the argument counts, not what it is a view of
                history = not t._leaf and t.requires_grad
            if t._parent is not None:
                s.view = (t._parent, t._origin, t._step, t._seen)
                self.views.append((t, t._origin))
                t._parent = t._origin = t._step = t._seen = None
            watch.stand_in(t, s, storages[i], tuple(shape))
            if history:  # a gradient through an argument's past would be lost: refuse it
                end_history(t._raw.arg)

    def _collect(self, watch: Watch, leaves: list[Any], result: Any, before: dict) -> None:
        """What the call gives: results, new values of handles, gradients, Python values."""
        for t in (*self.guards.tensors, *leaves):
            self._note_gradient(watch, t, before)
        number = {id(t): i for i, t in enumerate(leaves)}
        self.outs: dict[int, int] = {}
        self.carrying: set[int] = set()  # outputs whose history ends here
        random = default_generator().tensors.get(self.device)
        self.roots: list[Node] = []
        places: dict[int, tuple[Entry, int]] = {}
        changed_entries = self.guards.changed()
        for e in changed_entries:
            for j, t in enumerate(take_apart(e.value)[1]):
                places.setdefault(id(t), (e, j))
        tensors, self.structure = flatten(result)
        self.results = [self._out(watch, t, number, random) for t in tensors]
        self.changed = []
        grads: list[tuple[Any, int | None]] = []
        changed_ids = set()
        for h, s in watch.alive():
            if h._raw is not s.start:
                self.device = h.device
                self._refuse_aliases(watch, h)
                changed_ids.add(id(h))
                self.changed.append((self._known(h, number, random), self._root(h._value())))
        self._gradients(watch, before, number, grads, changed_ids)
        self.grads = grads
        self.effects = [self._effect(watch, e, number, random) for e in changed_entries]
        del self.outs
        self.roots, _ = backend.expand(self.roots, self.device, reuse=False)
        self.sources: dict[Storage, Any] = {}
        for storage, h in watch.owner.items():
            place = places.get(id(h))
            owner = self.gradient_of.get(id(h))
            self.sources[storage] = ("place", *place) if place is not None else \
                ("grad", self._known(owner, number, random)) if owner is not None else \
                self._known(h, number, random)  # fmt: skip
        self.history = watch.history

    def _settle_places(self) -> None:
        """Places of tensors that f fills anew hold other tensors in every call, of one kind."""
        for effect in self.effects:
            pattern, tensors = take_apart(effect.entry.value)
            if tensors:
                effect.entry.pattern, effect.entry.value = pattern, None
        self.guards.sort()

    def _note_gradient(self, watch: Watch, t: Handle, before: dict) -> None:
        if t._origin is None and t.grad is not before[id(t)]:
            watch.note(t)
        known = watch.noted.get(id(t))
        if known is not None:
            known.grad = before[id(t)]

    def _gradients(
        self, watch: Watch, before: dict, number: dict, grads: list, changed: set[int]
    ) -> None:
        """Gradients that f leaves behind are results too, unless f itself used them up to assign
        their tensor (its optimiser did) and does not go on adding to them."""
        self.gradient_of: dict[int, Handle] = {}
        self.absent: list[Any] = []  # whose gradient must be absent before a call
        self.present: list[Any] = []
        owners = [(h, s) for h, s in watch.alive() if h.grad is not s.grad]
        for h, s in owners:
            if s.grad is not None:
                self.gradient_of[id(s.grad)] = h
        for h, s in owners:
            who = self._known(h, number, None)
            if h.grad is None:
                grads.append((who, None))
                continue
            node = h.grad._value()
            stand_in = watch.noted.get(id(s.grad)) if s.grad is not None else None
            adds = stand_in is not None and self._reads(node, stand_in.start)
            if adds:
                self.present.append(who)
            elif s.grad is None and id(h) not in changed:
                self.absent.append(who)
            grads.append((who, None if id(h) in changed and not adds else self._root(node)))

    def _reads(self, node: Node, source: Node) -> bool:
        return source in set(toposort(backend.expand([node], self.device, reuse=False)[0]))

    def _refuse_aliases(self, watch: Watch, changed: Handle) -> None:
        """Where a view and its tensor are both in play and one is written to, replays cannot know
        how later arguments overlap."""
        for view, origin in self.views:
            group = [v for v, o in self.views if o is origin]
            touched = id(origin) in watch.noted
            if (changed is origin) or (changed is view and (touched or len(group) > 1)):
                raise TraceError(
                    f"jit of {self.name}: a tensor is written to while a view of it is an "
                    "argument; pass the tensor itself, or a copy (x.clone())"
                )

    def _known(self, h: Any, number: dict[int, int], random: Any) -> Any:
        """A handle as later calls find it: argument number, random state, or itself."""
        return RANDOM if h is random and h is not None else number.get(id(h), h)

    def _root(self, node: Node) -> int:
        self.roots.append(node)
        return len(self.roots) - 1

    def _out(self, watch: Watch, t: Any, number: dict[int, int], random: Any) -> Any:
        """A result: the number of an output, or a tensor that was there before, itself."""
        if not watch.is_born(t) and t._parent is None:
            return ("same", self._known(t, number, random))
        if id(t) not in self.outs:
            self.outs[id(t)] = self._root(t._value())
            if grad_enabled() and t.requires_grad:
                self.carrying.add(self.outs[id(t)])
        return self.outs[id(t)]

    def _effect(self, watch: Watch, e: Entry, number: dict[int, int], random: Any) -> Effect:
        value = e.now()
        _, tensors = take_apart(value)
        return Effect(e, value, [self._out(watch, t, number, random) for t in tensors])

    def _compile(self) -> None:
        inputs: dict[Node, Node] = {}
        self.inputs: list[Any] = []  # argument number, handle, place, gradient, or storage
        found = [(self.sources.get(n.arg, n.arg), n) for n in toposort(self.roots)
                 if n.op is ops.INPUT and isinstance(n.arg, Storage)]  # fmt: skip
        found.sort(key=lambda pair: type(pair[0]) is int)  # arguments last: see _fix
        for source, n in found:
            inputs[n] = param(len(self.inputs), n.shape, n.dtype)
            self.inputs.append(source)
        del self.sources
        graph = substitute(tuple(self.roots), inputs)
        self.names = tuple(sorted(v.arg.name for v in variables(graph)))
        self.shapes = [r.shape for r in self.roots]
        self.types = [r.dtype for r in self.roots]
        self.changing = bool(self.changed or self.grads or self.effects)
        self.program: Any
        if self.device == backend.INTERPRETER:
            self.program = _Interpreted(graph, list(inputs.values()))
        else:
            from muladd.compile import compile_graph

            fixed = [i for i, x in enumerate(self.inputs) if not self.changing and _is_fixed(x)]
            self.program = compile_graph(graph, self.device, frozenset(fixed))
        self.held: tuple[list[Any], list[tuple[Any, weakref.ref]]] | None = None  # of whom
        self.donated = self._find_donated()
        self.fixed: tuple | None = None
        self.lock = self.program.lock  # nobody who holds it asks for a tensor's value
        self.quick = not self.changing and not self.names and not self.both \
            and self.results == [0] \
            and isinstance(self.structure, Leaf) and self.device == "CPU" \
            and not config.get("DEBUG") and not config.get("CHECK") \
            and not any(x is RANDOM or type(x) is tuple for x in self.inputs)  # fmt: skip
        self.steady = not self.changing and self.device == "CPU" \
            and not any(x is RANDOM or type(x) is tuple for x in self.inputs)  # fmt: skip
        del self.roots

    def _find_donated(self) -> list[tuple[Any, int, int]]:
        """(handle, output, input) of state that may be written over in place."""
        if self.device != "CPU" or not self.changed:
            return []
        from muladd.compile.donate import donatable

        allowed = donatable(self.program)
        known = [(id(x) if isinstance(x, Handle) else x, i) for i, x in enumerate(self.inputs)
                 if isinstance(x, Handle | int) or x is RANDOM]  # fmt: skip
        number = dict(known)
        found = []
        for who, i in self.changed:
            given = number.get(id(who) if isinstance(who, Handle) else who)
            if given is not None and (i, given) in allowed:
                found.append((who, i, given))
        return found

    # --- guards ---

    def holds(self, leaves: Sequence[Any]) -> bool:
        """Whether the trace still fits what the function can see."""
        moved = handles.changes[0] != self.seen_changes
        if not self.guards.hold(moved) or any(leaves[i] is not t() for i, t in self.both):
            return False
        if moved:
            for reference, raw in self.history:
                h = reference()
                if h is None or h._raw is not raw:
                    return False
            self.seen_changes, self.fixed = handles.changes[0], None
        if self.absent or self.present:
            return all(self._find(h, leaves).grad is None for h in self.absent) and \
                all(self._find(h, leaves).grad is not None for h in self.present)  # fmt: skip
        return True

    # --- running ---

    def run(self, leaves: Sequence[Any]) -> Any:
        if self.quick and config._overrides.get() is self.overrides:
            return self.run_quickly(leaves)
        if self.changing:
            with backend.state_lock:
                return self._run(leaves)
        return self._run(leaves)

    def _run(self, leaves: Sequence[Any]) -> Any:
        values = self._values(leaves) if self.names or self.sizes else ()
        if self.steady and not config.get("DEBUG"):
            results = self._run_steadily(leaves, values)
        else:
            buffers = [self._buffer(x, leaves) for x in self.inputs]
            outputs = self._outputs(buffers, leaves) if self.donated and not values else None
            if self.device == backend.INTERPRETER:
                results = self.program.run(buffers, values)
            else:
                results = self.program.run(buffers, values, outputs, self._held(leaves))
        number = dict(zip(self.names, values))
        stores = [
            Storage(s if not self.names else tuple(sym.evaluate(d, number) for d in s), d,
                    self.device, b)
            for s, d, b in zip(self.shapes, self.types, results)
        ]  # fmt: skip
        made: dict[int, Any] = {}

        def tensor(x: Any) -> Any:
            if type(x) is not int:
                return self._find(x[1], leaves)
            if x not in made:
                made[x] = _tensor(stores[x])
                if x in self.carrying:
                    end_history(stores[x])
            return made[x]

        for who, i in self.changed:
            _give(self._find(who, leaves), stores[i])
        for who, j in self.grads:
            self._find(who, leaves).grad = None if j is None else _tensor(stores[j])
        for e in self.effects:
            e.entry.set(put_together(e.value, iter([tensor(x) for x in e.tensors])))
            handles.changes[0] += e.entry.counted
        return unflatten(self.structure, [tensor(x) for x in self.results])

    def _run_steadily(self, leaves: Sequence[Any], values: tuple[int, ...]) -> list[Any]:
        """The buffers of the results, where captured tensors are unchanged: their addresses (of a
        language model's weights, hundreds) are known already."""
        place: Any = devices.get(self.device)
        bound = self.program.bind(values)
        fixed = self.fixed
        if fixed is None:
            held = self._captured(leaves)
            given = [x for x in self.inputs if type(x) is int]
            packed = struct.pack(f"={len(held)}q", *[b.address for b in held])
            fixed = (packed, given, held)
            self.fixed = None if self._may_change() else fixed
        head, given = fixed[:2]
        used = [storage_of(leaves[x]).buffer for x in given]
        used += [place.allocate(n) for n in bound.outputs]
        with self.lock:
            memory = self.program.room(bound)
            addresses = [*[b.address for b in used], memory.address, *bound.variables]
            executable: Any = bound.executable
            executable.call(head + struct.pack(f"={len(addresses)}q", *addresses))
        return used[len(given) :]

    def _captured(self, leaves: Sequence[Any]) -> list[Any]:
        """What a program is given before the arguments, while captured tensors stay as they are."""
        captured = [self._buffer(x, leaves) for x in self.inputs if type(x) is not int]
        return self._held(leaves) + captured

    def _held(self, leaves: Sequence[Any]) -> list[Any]:
        """What the program computes of captured tensors once, and again when they have others."""
        before = self.program.held
        if before is None:
            return []
        held = self.held
        if held is None or self._may_change() or any(
            storage_of(x) is not old() for x, old in held[1]
        ):
            of = [(x, weakref.ref(storage_of(x))) for x in self.inputs if isinstance(x, Handle)]
            held = (before.run([self._buffer(x, leaves) for x in self.inputs]), of)
            self.held = held
        return held[0]

    def _may_change(self) -> bool:
        """Whether captured tensors have come to lie in memory that others write to as well."""
        of = self.held[1] if self.held is not None else ()
        return self.program.held is not None and not all(_is_fixed(x) for x, _ in of)

    def _outputs(self, buffers: list[Any], leaves: Sequence[Any]) -> list[Any]:
        """The memory of the outputs: new, or that of the state which each replaces, if nobody else
        looks at it (views, clones, lazy graphs and other programs hold on to what they read)."""
        place: Any = devices.get(self.device)
        sizes = self.program.bind().outputs
        outputs: list[Any] = [None] * len(sizes)
        for who, i, given in self.donated:
            h = self._find(who, leaves)
            raw = h._raw
            storage, buffer = raw.arg, buffers[given]
            known = 4 + (h._kept is storage)  # raw.arg, the interned key, h._kept, two here
            if (
                h._origin is None and h._parent is None and buffer.owner is None
                and getrefcount(raw) <= 3 and getrefcount(storage) <= known
                and getrefcount(buffer) <= 4
            ):  # fmt: skip
                outputs[i] = buffer
        return [place.allocate(n) if b is None else b for b, n in zip(outputs, sizes)]

    def _values(self, leaves: Sequence[Any]) -> tuple[int, ...]:
        found: dict[str, int] = {}
        for name, uses in self.sizes.items():
            for leaf, axis, low, high in uses:
                value = int(leaves[leaf].shape[axis])
                if not low <= value <= high:
                    raise TraceError(
                        f"jit of {self.name}: size {name} is {value}, declared {low} to {high}"
                    )
                if found.setdefault(name, value) != value:
                    raise TraceError(
                        f"jit of {self.name}: size {name} is {found[name]} and {value} in one "
                        "call; give sizes that may differ different names"
                    )
        return tuple(found[n] for n in self.names)

    def _buffer(self, x: Any, leaves: Sequence[Any]) -> Any:
        """The memory of an input now."""
        if type(x) is tuple:
            if x[0] == "place":
                x = take_apart(x[1].now())[1][x[2]]
            else:
                x = self._find(x[1], leaves).grad
        elif not isinstance(x, Storage):
            x = self._find(x, leaves)
        return (x if isinstance(x, Storage) else storage_of(x)).buffer

    def _find(self, x: Any, leaves: Sequence[Any]) -> Any:
        """What an argument number, the random state or a handle is in this call."""
        if type(x) is int:
            return leaves[x]
        return default_generator().state(self.device) if x is RANDOM else x

    def run_quickly(self, leaves: Sequence[Any]) -> Any:
        """One result and unchanged captured tensors, whose addresses are known already."""
        fixed = self.fixed or self._fix(leaves)  # alive, and with it what was captured
        head, given, pack, call, arena, ring, _ = fixed
        held = [storage_of(leaves[x]).buffer for x in given]
        with self.lock:
            node = ring.pop(0)
            storage = node.arg
            buffer = storage.buffer
            if getrefcount(node) > 2 or getrefcount(storage) > 4 or getrefcount(buffer) > 3:
                node = self._fresh(buffer.nbytes)  # somebody still looks at the old result
                storage = node.arg
                buffer = storage.buffer
            node.memo = None
            ring.append(node)
            call(head + pack(*[b.address for b in held], buffer.address, arena))
        new = object.__new__(Tensor)
        new._raw, new.device, new._kept = node, self.device, storage
        new._parent = new._step = new._seen = new._origin = new.grad = new._beside = None
        new._stopped = new._leaf = False
        return new

    def _fresh(self, nbytes: int) -> Node:
        """A node over new memory for a result."""
        storage = Storage(self.shapes[0], self.types[0], self.device, self.place.allocate(nbytes))
        if self.carrying:
            end_history(storage)
        return stored(storage)

    def _fix(self, leaves: Sequence[Any]) -> tuple:
        self.place: Any = devices.get(self.device)
        bound = self.program.bind()
        held = self._captured(leaves)
        with self.lock:
            memory = self.program.room(bound)
        given = [x for x in self.inputs if type(x) is int]
        ring = [self._fresh(bound.outputs[0]) for _ in range(4)]
        head = struct.pack(f"={len(held)}q", *[b.address for b in held])
        pack = struct.Struct(f"={len(given) + 2}q").pack
        executable: Any = bound.executable
        fixed = (head, given, pack, executable.call, memory.address, ring, held)
        self.fixed = None if self._may_change() else fixed
        return fixed


def _is_fixed(x: Any) -> bool:
    """Whether an input of a trace is a captured tensor in memory that only muladd writes to."""
    if not isinstance(x, Handle | Storage):
        return False
    buffer = (x if isinstance(x, Storage) else storage_of(x)).buffer
    flags = getattr(buffer.owner, "flags", None)  # of a NumPy array, if it is its memory
    return buffer.owner is None or (flags is not None and not flags.writeable)


def _tensor(storage: Storage) -> Tensor:
    new = Tensor._of(stored(storage), storage.device)
    new._kept = storage
    return new


def _give(h: Handle, storage: Storage) -> None:
    """New contents for a handle, as its own assignment would have given them."""
    if h._parent is not None:
        with no_grad():
            h._write(stored(storage), "jit")
        return
    handles.changes[0] += 1
    if h._leaf:
        _leaves[h._raw.arg] = (weakref.ref(h), True)
        _leaves[storage] = (weakref.ref(h), False)
    h._raw, h._kept = stored(storage), storage
    h._stopped = False
