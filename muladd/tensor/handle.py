"""What a tensor holds: a node, a device, whether it is a leaf of differentiation, and whose view.

A graph never changes; a handle does, by pointing to another node. Three things follow from it:

* a *view* (slice, reshape, permute) keeps its parent and one movement step. Reading it takes the
  step from the parent's node of now; writing to it writes through to the root.
* a *leaf* (requires_grad) always points to an INPUT of its own, so that gradients know it by
  identity. When a leaf is assigned, its old INPUT is retired: a backward pass that meets a retired
  one cannot give the new leaf the right gradient, and says so.
* a *stopped* handle (detached, or computed under no_grad) enters graphs through `graph.stop`.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError, GradientError, ShapeError
from muladd.ir import DType, Node, Shape, Storage, const, make, ops
from muladd.ir import dtype as dt
from muladd.ir.node import stored
from muladd.tensor import backend, graph
from muladd.tensor.backend import frame

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor

_grad_enabled: ContextVar[bool] = ContextVar("muladd.grad_enabled", default=True)


def grad_enabled() -> bool:
    """Whether operations made here and now are seen by backward()."""
    return _grad_enabled.get()


class set_grad_enabled(ContextDecorator):
    """`with set_grad_enabled(False):` (or as a decorator): results are constants for backward."""

    def __init__(self, mode: bool) -> None:
        self.mode = bool(mode)
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> None:
        self._tokens.append(_grad_enabled.set(self.mode))

    def __exit__(self, *exception: object) -> None:
        _grad_enabled.reset(self._tokens.pop())


class no_grad(set_grad_enabled):
    """`with no_grad():` computes without being seen by backward; parameters may be written to."""

    def __init__(self) -> None:
        super().__init__(False)


# Leaves by the storage of their INPUT: (reference to the tensor, retired).
_leaves: weakref.WeakKeyDictionary[Storage, tuple[weakref.ref, bool]] = (
    weakref.WeakKeyDictionary()
)


class _End:
    """Stands as the leaf below what a jitted function gave: its history ended there."""


END = _End()


def end_history(storage: Storage) -> None:
    """Let backward() say, where it meets this array, that it came out of a jitted function."""
    _leaves[storage] = (weakref.ref(END), True)


def leaf_of(node: Node) -> tuple[Any, bool] | None:
    """(the leaf tensor or None if it is gone, whether it has been assigned since) of a node."""
    if node.op is not ops.INPUT or not isinstance(node.arg, Storage):
        return None
    entry = _leaves.get(node.arg)
    return None if entry is None else (entry[0](), entry[1])


_Step = tuple[Any, Any]  # (op, arg) of a movement

# Counts what gives existing tensors other values; jit looks whether anything happened at all.
changes = [0]
# What else decides what an operation gives here and now, for jit to look at: functions of nothing.
ambient: list[Callable[[], Any]] = []


class Handle:
    """The state of a tensor; `Tensor` adds the methods."""

    __slots__ = (
        "_raw", "device", "_parent", "_origin", "_step", "_seen", "_stopped", "_leaf", "_kept",
        "_beside", "grad", "__weakref__",
    )  # fmt: skip

    _raw: Node
    device: str
    _parent: Handle | None
    _origin: Handle | None  # the root of a view
    _step: _Step | None
    _seen: Node | None
    _stopped: bool
    _leaf: bool
    _kept: Any  # the storage of the value, once computed (a graph that remembers it is no owner)
    _beside: list[weakref.ref] | None  # what backward() related to this: a loss and its gradients
    grad: Tensor | None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __add__(self, other: Any) -> Tensor: ...
        def __radd__(self, other: Any) -> Tensor: ...
        def __sub__(self, other: Any) -> Tensor: ...
        def __rsub__(self, other: Any) -> Tensor: ...
        def __mul__(self, other: Any) -> Tensor: ...
        def __rmul__(self, other: Any) -> Tensor: ...
        def __truediv__(self, other: Any) -> Tensor: ...
        def __rtruediv__(self, other: Any) -> Tensor: ...
        def __floordiv__(self, other: Any) -> Tensor: ...
        def __mod__(self, other: Any) -> Tensor: ...
        def __pow__(self, other: Any) -> Tensor: ...
        def __matmul__(self, other: Any) -> Tensor: ...
        def __neg__(self) -> Tensor: ...
        def __invert__(self) -> Tensor: ...
        def __lt__(self, other: Any) -> Tensor: ...
        def __le__(self, other: Any) -> Tensor: ...
        def __gt__(self, other: Any) -> Tensor: ...
        def __ge__(self, other: Any) -> Tensor: ...
        def __eq__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __ne__(self, other: Any) -> Tensor: ...  # type: ignore[override]
        def __and__(self, other: Any) -> Tensor: ...
        def __or__(self, other: Any) -> Tensor: ...
        def __xor__(self, other: Any) -> Tensor: ...
        def __getitem__(self, index: Any) -> Tensor: ...
        def __setitem__(self, index: Any, value: Any) -> None: ...

    @property
    def _root(self) -> Handle:
        """The tensor whose memory this is: itself, unless it is a view. (Not a reference of a
        handle to itself: such a cycle would keep memory until the garbage collector comes.)"""
        return self if self._origin is None else self._origin

    @_root.setter
    def _root(self, root: Handle) -> None:
        self._origin = None if root is self else root

    # --- making handles ---------------------------------------------------------------------------

    @classmethod
    def _of(cls, node: Node, device: str, stopped: bool = False) -> Tensor:
        """A new root handle on a node."""
        new = object.__new__(cls)
        new._raw, new.device, new.grad = node, device, None
        new._parent = new._step = new._seen = new._kept = new._beside = None
        new._origin, new._stopped, new._leaf = None, stopped, False
        now = frame.get()
        if now is not None:
            now.made(new)
        return new  # type: ignore[return-value]

    def _made(self, data: Any, dtype: Any = None) -> Tensor:
        """A new tensor from data, on this tensor's device."""
        return type(self)(data, dtype=dtype, device=self.device)  # type: ignore

    def _result(self, node: Node) -> Tensor:
        """A handle on a result computed from this tensor (and maybe others)."""
        return self._of(node, self.device, not _grad_enabled.get())

    def _view(self, step: _Step | None, node: Node | None = None) -> Tensor:
        """A view of this tensor through one movement step (None: the same elements)."""
        source = self._value()
        if node is None:
            node = source if step is None else make(step[0], (source,), step[1])
        new = self._of(node, self.device, self._stopped or not _grad_enabled.get())
        new._parent, new._root, new._step, new._seen = self, self._root, step, self._root._raw
        return new

    # --- reading ----------------------------------------------------------------------------------

    def _value(self) -> Node:
        """The node of this tensor's value; a view looks whether its root was written to."""
        now = frame.get()
        if now is not None:
            now.note(self._root)
        if self._parent is None:
            return self._raw
        root = self._root._raw
        if self._seen is root:
            return self._raw
        path: list[Handle] = [self]
        above = self._parent
        while above._parent is not None and above._seen is not root:
            path.append(above)
            above = above._parent
        node = above._raw
        for view in reversed(path):
            node = node if view._step is None else make(view._step[0], (node,), view._step[1])
            view._raw, view._seen = node, root
        return node

    @property
    def node(self) -> Node:
        """The node by which this tensor enters graphs (through a stop when it is detached)."""
        node = self._value()
        return graph.stop(node) if self._stopped and _grad_enabled.get() else node

    @property
    def shape(self) -> Shape:
        """The sizes: whole numbers, or symbolic sizes."""
        return self._raw.shape

    @property
    def dtype(self) -> DType:
        return self._raw.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self._raw.shape)

    # --- writing ----------------------------------------------------------------------------------

    def _write(self, node: Node, who: str) -> None:
        """Give this tensor another value; a view passes it on to its root."""
        if not ops.equal_shapes(node.shape, self.shape):
            raise ShapeError(
                f"{who}: a value of shape {list(node.shape)} does not fit into a tensor of shape "
                f"{list(self.shape)}; an in-place operation keeps the shape"
            )
        if node.dtype is not self.dtype:
            raise DTypeError(
                f"{who}: a {node.dtype.name} result cannot be stored in a {self.dtype.name} "
                "tensor; an in-place operation keeps the dtype, so cast first"
            )
        root = self._root
        if root._leaf and _grad_enabled.get() and not self._stopped:
            raise GradientError(
                f"{who}: a tensor that requires a gradient was written to in place; do it inside "
                "`with no_grad():`, or on a copy (x + 0)"
            )
        value = node
        for view, before in self._writing_path():
            value = _put_back(view._step, before, value, who)
        root._rebind(value)
        if self is not root:
            self._raw, self._seen = node, root._raw

    def _writing_path(self) -> Iterator[tuple[Handle, Node]]:
        """From this view to its root: (view, its parent's value so far)."""
        path: list[Handle] = []
        view: Handle = self
        while view._parent is not None:
            path.append(view)
            view = view._parent
        node = view.node
        before: list[Node] = []
        for step in reversed(path):
            before.append(node)
            if step._step is not None:
                node = make(step._step[0], (node,), step._step[1])
        yield from zip(path, reversed(before))

    def _rebind(self, node: Node, state: bool = False) -> None:
        """Point a root to another value.

        A leaf gets a new identity, and its old one is retired. What is written under no_grad (or
        declared to be state) also gets an INPUT of its own: no gradient passes, and the next
        realisation keeps its value, so that state does not drag its history along.
        """
        changes[0] += 1
        now = frame.get()
        if now is not None:
            now.write(self)
        self._kept = None
        if self._leaf:
            _leaves[self._raw.arg] = (weakref.ref(self), True)
            self._enter_leaves(node, True)
        elif state or not _grad_enabled.get():
            self._raw, self._stopped = backend.defer(node, self.device, self, True), False
        else:
            self._raw, self._stopped = node, False

    def _enter_leaves(self, node: Node, assigned: bool = False) -> None:
        self._raw = backend.defer(node, self.device, self, assigned)
        _leaves[self._raw.arg] = (weakref.ref(self), False)

    def _end_history(self) -> None:
        """Keep the value, which is at hand, and forget how it came about."""
        kept = self._kept
        self._kept = Storage(kept.shape, kept.dtype, kept.device, kept.buffer)
        self._raw = stored(self._kept)
        end_history(self._kept)

    def _own(self) -> None:
        """Cut a view from its root: a tensor of its own with the same value."""
        if self._parent is not None:
            self._raw = self._value()
            self._parent = self._step = self._seen = None
            self._root = self

    @property
    def requires_grad(self) -> bool:
        """Whether backward() can reach a leaf from here, or this is one. May be set."""
        if self._leaf:
            return True
        if self._stopped or not self.dtype.is_float:
            return False
        return bool(_leaves) and _reaches_leaf(self._value())

    @requires_grad.setter
    def requires_grad(self, wanted: bool) -> None:
        self.requires_grad_(wanted)

    @property
    def is_leaf(self) -> bool:
        """Whether a gradient is kept here, or nothing here needs one."""
        return self._leaf or not self.requires_grad

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Make this tensor a leaf: backward() fills its `.grad`. Returns the tensor.

        Raises DTypeError for integers and bool, which have no derivative.
        """
        if not requires_grad:
            if self._leaf:
                _leaves.pop(self._raw.arg, None)
                self._leaf = False
            return self
        if self._leaf:
            return self
        if not self.dtype.is_float:
            raise DTypeError(
                f"requires_grad_: only floats have derivatives, got {self.dtype.name}; cast with "
                ".float() first"
            )
        self._own()
        node, self._leaf, self._stopped = self._raw, True, False
        own = node.op is ops.INPUT and isinstance(node.arg, Storage) and node.arg not in _leaves
        if own:
            _leaves[node.arg] = (weakref.ref(self), False)
        else:
            self._enter_leaves(node)
        return self


def _reaches_leaf(root: Node) -> bool:
    """Whether a leaf's input stands below, along values that have derivatives."""
    seen, stack = {root}, [root]
    while stack:
        n = stack.pop()
        if n.op is ops.INPUT:
            if isinstance(n.arg, Storage) and n.arg in _leaves:
                return True
        elif n is root or _carries_gradient(n):
            for s in n.srcs:
                if s not in seen:
                    seen.add(s)
                    stack.append(s)
    return False


def _carries_gradient(node: Node) -> bool:
    return node.dtype.is_float or node.op in (ops.CALL, ops.SCAN)


def _put_back(step: _Step | None, before: Node, value: Node, who: str) -> Node:
    """`before` with the elements that `step` selects replaced by `value`."""
    if step is None:
        return value
    op, arg = step
    if op is ops.RESHAPE:
        return graph.reshape(value, before.shape)
    if op is ops.PERMUTE:
        inverse = [0] * len(arg)
        for i, a in enumerate(arg):
            inverse[a] = i
        return graph.permute(value, inverse)
    if op is ops.SLICE:
        return put_slice(before, arg, value)
    raise ShapeError(
        f"{who}: this view repeats elements (expand), so it cannot be written to; write to a copy "
        "made with .clone()"
    )


def put_slice(before: Node, spec: tuple, value: Node) -> Node:
    """`before` with the region SLICE(spec) replaced by `value`."""
    if all(isinstance(n, int) for n in before.shape):
        if any(n == 0 for n in value.shape):
            return before
        if value.shape == before.shape and all(step == 1 for _, _, step in spec):
            return value
    pads: list[tuple[Any, Any, int]] = []
    for i, (start, size, step) in enumerate(spec):
        if step < 0:
            value = graph.flip(value, i)
            start, step = start + (size - 1) * step, -step
        covered = size if step == 1 else (size - 1) * step + 1
        pads.append((start, before.shape[i] - start - covered, step - 1))
    inside = graph.pad(const(True, dt.bool_, value.shape), pads, False)
    return graph.where(inside, graph.pad(value, pads), before)
