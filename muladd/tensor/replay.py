"""The shortest way to call a compiled function again: one tensor in, one tensor out.

What a general call asks in five functions is asked in one here, over variables of its own: of a
small network's call, which takes three microseconds, each function more takes a fiftieth, and the
kernels a sixth.
"""
from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import TYPE_CHECKING, Any

from muladd import config
from muladd.ir import ops
from muladd.tensor import handle as handles
from muladd.tensor.guards import MISSING
from muladd.tensor.tensor import Tensor

if TYPE_CHECKING:
    from muladd.tensor.trace import Trace


def replayer(trace: Trace, kind: tuple, around: Callable[[], list]) -> Callable[[Any], Any]:
    """A function from an argument to the result of `trace`, or to None where the argument is not of
    this kind (see jit._kind), or something changed that the function sees: then ask in full."""
    shape, dtype, device, leaf, grad, overrides, expected = kind
    grad_now, overrides_now = handles._grad_enabled.get, config._overrides.get
    ambient, changes, stored = handles.ambient, handles.changes, ops.INPUT
    guards, fresh, lock = trace.guards, trace._fresh, trace.lock
    others = guards.others()
    missing = MISSING
    new_object: Any = object.__new__

    def replay(t: Any) -> Any:
        if type(t) is not Tensor or t._origin is not None:
            return None
        raw = t._raw
        if raw.op is not stored or raw.dtype is not dtype or raw.shape != shape:
            return None
        source = raw.arg.buffer
        if source is None or t.device != device or t._leaf is not leaf or grad_now() is not grad:
            return None
        now = overrides_now()
        if now is not overrides and now != overrides or (ambient and around()) != expected:
            return None
        fixed = trace.fixed
        if fixed is None or changes[0] != trace.seen_changes:
            return None
        for holder, key, value in guards._items:
            if holder.get(key, missing) is not value:
                return None
        if any(guards._empty) or others and not guards.hold(False):
            return None
        head, _, pack, call, arena, ring, _ = fixed
        with lock:
            node = ring.pop(0)
            storage = node.arg
            buffer = storage.buffer
            if getrefcount(node) > 2 or getrefcount(storage) > 4 or getrefcount(buffer) > 3:
                node = fresh(buffer.nbytes)  # somebody still looks at the old result
                storage = node.arg
                buffer = storage.buffer
            node.memo = None
            ring.append(node)
            call(head + pack(source.address, buffer.address, arena))
        new = new_object(Tensor)
        new._raw, new.device, new._kept = node, device, storage
        new._parent = new._step = new._seen = new._origin = new.grad = new._beside = None
        new._stopped = new._leaf = False
        return new

    return replay
