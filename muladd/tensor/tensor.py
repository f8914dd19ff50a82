"""`Tensor`: the handle that users hold, put together from its families of methods."""
from __future__ import annotations

import json
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from muladd.errors import DTypeError, FormatError, GradientError, ShapeError
from muladd.ir import Dim, DType, Node, Storage, make, ops, sym, toposort
from muladd.ir import dtype as dt
from muladd.tensor import backend, graph
from muladd.tensor.activation import Activation
from muladd.tensor.backend import frame
from muladd.tensor.casting import Casting
from muladd.tensor.convolution import Convolution
from muladd.tensor.creation import Creation, storage_node
from muladd.tensor.decomposition import Decomposition
from muladd.tensor.elementwise import Elementwise
from muladd.tensor.explain import Explaining
from muladd.tensor.gathering import Gathering
from muladd.tensor.handle import END, _carries_gradient, grad_enabled, leaf_of
from muladd.tensor.indexing import Indexing
from muladd.tensor.linear import Linear
from muladd.tensor.loss import Loss
from muladd.tensor.mathematics import Mathematics
from muladd.tensor.movement import Movement
from muladd.tensor.normalization import Normalization
from muladd.tensor.operands import is_operand
from muladd.tensor.operators import Operators
from muladd.tensor.parts import Parts
from muladd.tensor.pooling import Pooling
from muladd.tensor.random import Random
from muladd.tensor.reduce import Reduce
from muladd.tensor.resample import Resample
from muladd.tensor.sorting import Sorting
from muladd.tensor.statistics import Statistics


class Tensor(
    Creation, Random, Elementwise, Casting, Mathematics, Reduce, Movement, Indexing, Gathering,
    Linear, Decomposition, Convolution, Pooling, Resample, Normalization, Activation, Loss,
    Sorting, Parts, Statistics, Operators, Explaining,
):  # fmt: skip
    """A multi-dimensional array that is computed when its values are asked for.

    `Tensor(data)` takes a number, nested lists, a NumPy array or a tensor. Python floats become
    float32, whole numbers int64, arrays keep their dtype. Device and dtype never change by
    themselves; `requires_grad=True` makes `backward()` fill `.grad`.
    """

    __slots__ = ()
    __array_priority__ = 1000
    __array_ufunc__ = None  # NumPy leaves `array op tensor` to the tensor

    def __init__(
        self, data: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> None:
        wanted = None if dtype is None else dt.dtype(dtype)
        name = backend.device_name(
            device if device is not None or not isinstance(data, Tensor) else data.device
        )
        self.device, self.grad = name, None
        self._parent = self._step = self._seen = None
        self._origin, self._stopped, self._leaf, self._kept = None, False, False, None
        self._beside = None
        now = frame.get()
        if now is not None:
            now.made(self)
        self._raw = _node_of(data, wanted, name)
        if isinstance(data, Tensor):
            self._stopped = True  # a copy starts a history of its own
        if requires_grad:
            self.requires_grad_()

    # --- running ----------------------------------------------------------------------------------

    def realize(self, *others: Tensor) -> Tensor:
        """Compute this tensor (and others, together), and keep the values."""
        by_device: dict[str, list[Tensor]] = {}
        for t in (self, *others):
            by_device.setdefault(t.device, []).append(t)
        for device, tensors in by_device.items():
            nodes = [t._value() for t in tensors]
            for t, node, storage in zip(tensors, nodes, backend.realize(nodes, device)):
                backend.remember(node, storage)
                t._settle(storage)
        return self

    def _settle(self, storage: Storage) -> None:
        """The value is at hand now. What leads to a leaf keeps its graph, for backward()."""
        node = make(ops.INPUT, (), storage)
        self._kept = storage
        if node is not self._raw and not self.requires_grad:
            self._raw = node
            self._stopped = self._stopped and self._parent is not None

    def storage(self) -> Storage:
        """The realised storage behind this tensor (computes it).

        A loss after backward() is computed together with the gradients, which take the same steps.
        """
        raw, kept = self._raw, self._kept
        if kept is not None and kept.buffer is not None and raw.op is ops.INPUT \
                and raw.arg is kept and self._parent is None and frame.get() is None:
            return kept
        if kept is None and self._beside and not backend.is_tracing():
            self.realize(*self._pending_beside())
        else:
            self.realize()
        return self._kept

    def _pending_beside(self) -> list[Tensor]:
        """What backward() related to this tensor, here, and is not computed yet."""
        found = [reference() for reference in self._beside or ()]
        return [t for t in found if t is not None and t._kept is None and t.device == self.device]

    def numpy(self) -> np.ndarray:
        """The values as a new NumPy array (bfloat16 and float8 as float32)."""
        return backend.read(self.storage())

    def item(self) -> Any:
        """The value of a tensor of one element as a Python number."""
        if not all(graph.sym.is_less(n, 2) for n in self.shape):
            raise ShapeError(
                f"item: expected one element, got shape {list(self.shape)}; use .tolist(), or "
                "reduce first"
            )
        return self.numpy().reshape(-1)[0].item()

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers (a scalar: one number)."""
        return self.numpy().tolist()

    def data_bytes(self) -> bytes:
        """The values in row-major order, as they lie in memory."""
        return dt.encode(self.numpy(), self.dtype).tobytes()

    def to(self, *targets: Any, dtype: Any = None, device: Any = None) -> Tensor:
        """Another dtype, another device, or both: `.to('CPU')`, `.to(float16)`, `.to(other)`."""
        for target in targets:
            if isinstance(target, Tensor):
                dtype, device = target.dtype, target.device
            elif isinstance(target, str) and target not in dt._BY_NAME | dt._ALIASES:
                device = target
            elif target is not None:
                dtype = target
        result = self if dtype is None else self.cast(dtype)
        if device is None or backend.device_name(device) == self.device:
            return result
        if grad_enabled() and result.requires_grad:
            raise GradientError(
                "to: gradients do not pass from one device to another; use .detach() first"
            )
        name = backend.device_name(device)
        return self._of(storage_node(result.numpy(), result.dtype, name), name)

    def cpu(self) -> Tensor:
        """The same values on the CPU."""
        return self.to("CPU")

    # --- identity ---------------------------------------------------------------------------------

    def detach(self) -> Tensor:
        """A view of the same values through which no gradient passes."""
        view = self._view(None)
        view._stopped = True
        return view

    @property
    def data(self) -> Tensor:
        """The same as detach()."""
        return self.detach()

    def clone(self) -> Tensor:
        """A tensor of its own with the same values; gradients pass."""
        return self._result(self.node)

    def contiguous(self) -> Tensor:
        """This tensor: every layout is the compiler's."""
        return self

    def assign(self, value: Any) -> Tensor:
        """Give this tensor (and what views it) new values of the same shape and dtype.

        Unlike other in-place operations it may be used on a leaf at any time: it replaces state.
        """
        if not isinstance(value, Tensor):
            value = Tensor(value, dtype=self.dtype, device=self.device)
        if value.shape != self.shape or value.dtype is not self.dtype:
            raise ShapeError(
                f"assign: {graph.describe(value._raw)} does not replace "
                f"{graph.describe(self._raw)}; shapes and dtypes must be equal"
            )
        if self._leaf:
            self._rebind(value._value())
        elif value._stopped and self._parent is None:
            self._rebind(value._value(), state=True)
        else:
            self._write(value.node, "assign")
        return self

    def copy_(self, value: Any) -> Tensor:
        """Overwrite with `value`, broadcast and cast to this tensor's shape and dtype."""
        if not isinstance(value, Tensor):
            value = Tensor(value, device=self.device)
        node = graph.expand(graph.cast(value.node, self.dtype), self.shape)
        self._write(node, "copy_")
        return self

    def zero_(self) -> Tensor:
        """Overwrite with zeros."""
        return self.fill_(0)

    def fill_(self, value: Any) -> Tensor:
        """Overwrite with one number."""
        if isinstance(value, Tensor):
            return self.copy_(value)
        self._write(graph.like(self._value(), value), "fill_")
        return self

    # --- differentiation --------------------------------------------------------------------------

    def backward(
        self, gradient: Tensor | None = None, retain_graph: bool | None = None,
        create_graph: bool = False, inputs: Sequence[Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Add the derivative of this tensor to the `.grad` of every leaf it depends on.

        A tensor of more than one element needs `gradient`, of its own shape. Nothing runs yet.
        `retain_graph` means nothing here: graphs are values and stay. With `create_graph` the
        gradients are themselves differentiable. Raises GradientError where a leaf on the way was
        assigned since, or where there is no leaf.
        """
        from muladd.transform import gradient as reverse

        if gradient is None:
            if any(not graph.equal_dims(n, 1) for n in self.shape):
                raise GradientError(
                    f"backward: a tensor of shape {list(self.shape)} has no one derivative; reduce "
                    "it to a scalar (.sum(), .mean()) or pass gradient="
                )
            cotangent = graph.like(self._value(), 1)
        else:
            cotangent = graph.expand(graph.cast(gradient.node, self.dtype), self.shape)
        leaves = self._leaves_below() if inputs is None else list(inputs)
        if not leaves:
            raise GradientError(
                "backward: no tensor with requires_grad=True leads to this one (it may have been "
                "detached, made under no_grad, or realised since)"
            )
        gradients = self._beside or []
        grads = reverse([self.node], [t._raw for t in leaves], [cotangent])
        for t, node in zip(leaves, grads):
            if node is None:
                continue
            losses = [weakref.ref(self)]
            if t.grad is not None:
                node = graph.add(t.grad._value(), node)
                losses += [r for r in t.grad._beside or () if r() is not None]
            t.grad = t._of(node, t.device, stopped=not create_graph)
            t.grad._beside = losses
            gradients.append(weakref.ref(t.grad))
        self._beside = gradients

    def _leaves_below(self) -> list[Tensor]:
        found: dict[int, Tensor] = {}
        for node in toposort([self.node], into=_carries_gradient):
            entry = leaf_of(node)
            if entry is None:
                continue
            leaf, retired = entry
            if leaf is END:
                raise GradientError(
                    "backward: this was computed from the result of a jitted function, which has "
                    "no history; call backward() inside that function, or jit "
                    "muladd.value_and_grad of it"
                )
            if retired:
                raise GradientError(
                    f"backward: a leaf of shape {list(node.shape)} was assigned after it was used "
                    "here, so its gradient would belong to old values; call backward() before "
                    "assigning"
                )
            if leaf is not None:
                found[id(leaf)] = leaf
        return list(found.values())

    def zero_grad(self) -> None:
        """Forget the gradient."""
        self.grad = None

    # --- size and type ----------------------------------------------------------------------------

    def size(self, dim: int | None = None) -> Any:
        """The shape, or one of its sizes."""
        return self.shape if dim is None else self.shape[graph.axis_of("size", dim, self.ndim)]

    def dim(self) -> int:
        """The number of axes."""
        return self.ndim

    def numel(self) -> Dim:
        """The number of elements."""
        return sym.product(self.shape)

    def nelement(self) -> Dim:
        """The number of elements."""
        return self.numel()

    def element_size(self) -> int:
        """Bytes per element."""
        return self.dtype.itemsize

    @property
    def nbytes(self) -> Any:
        """Bytes of all elements."""
        return sym.mul(self.numel(), self.dtype.itemsize)

    # --- Python's protocols -----------------------------------------------------------------------

    def __len__(self) -> int:
        if not self.ndim:
            raise DTypeError("len: a tensor without axes has no length")
        return self.shape[0]  # type: ignore[return-value]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise DTypeError("iter: a tensor without axes cannot be iterated over")
        return iter(self.unbind(0))

    def __bool__(self) -> bool:
        if any(not graph.equal_dims(n, 1) for n in self.shape):
            raise ShapeError(
                f"bool: a tensor of shape {list(self.shape)} is neither true nor false; use "
                ".any() or .all()"
            )
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        if not (self.dtype.is_int or self.dtype is dt.bool_):
            raise DTypeError(f"index: only integers can be an index, got {self.dtype.name}")
        return int(self.item())

    def __contains__(self, value: Any) -> bool:
        return is_operand(value) and bool((self == value).any().item())

    __hash__ = object.__hash__

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array if dtype is None else array.astype(dtype)

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy().__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)  # host memory

    def __repr__(self) -> str:
        from muladd.tensor.printing import text

        return text(self)

    def explain(self) -> str:
        """What computing this tensor takes: nodes, FLOPs, bytes, kernels and their schedules."""
        from muladd.tensor.printing import explain

        return explain(self)

    def graph_text(self) -> str:
        """The graph that gives this tensor, one node a line."""
        from muladd.ir.text import to_text

        return to_text(backend.expand([self._value()], self.device)[0])

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else repr(self)

    def __reduce__(self) -> tuple:
        return (_from_bytes, (self.to_bytes(),))

    def __deepcopy__(self, memo: dict) -> Tensor:
        new = self._of(self._value(), self.device, self._stopped)
        if self._leaf:
            new.requires_grad_()
        memo[id(self)] = new
        return new

    def to_bytes(self) -> bytes:
        """A header of JSON and the values; the inverse is Tensor.from_bytes. Runs."""
        header = json.dumps(
            {"dtype": self.dtype.name, "shape": list(self.numpy().shape), "leaf": self._leaf}
        ).encode()
        return len(header).to_bytes(8, "little") + header + self.data_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, device: Any = None) -> Tensor:
        """The tensor whose to_bytes() gave `data`; FormatError if it is damaged."""
        try:
            size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + size])
            d = dt.dtype(header["dtype"])
            stored = np.frombuffer(data[8 + size :], d.storage).reshape(header["shape"])
            return cls(dt.decode(stored, d), d, device, bool(header["leaf"]))
        except (ValueError, KeyError, TypeError) as error:
            raise FormatError(f"Tensor.from_bytes: damaged bytes: {error}") from None


def _from_bytes(data: bytes) -> Tensor:
    return Tensor.from_bytes(data)


def _node_of(data: Any, wanted: DType | None, device: str) -> Node:
    """The node of what a user hands to Tensor(...)."""
    if isinstance(data, Tensor):
        node = data._value()
        if data.device != device:
            node = storage_node(data.numpy(), data.dtype, device)
        return node if wanted is None else graph.cast(node, wanted)
    if isinstance(data, Node):
        return data if wanted is None else graph.cast(data, wanted)
    if isinstance(data, list | tuple) and any(isinstance(v, Tensor) for v in data):
        node = Movement.stack(*[v if isinstance(v, Tensor) else Tensor(v, device=device)
                                for v in data]).node  # fmt: skip
        return node if wanted is None else graph.cast(node, wanted)
    if not isinstance(data, np.ndarray | np.generic) and hasattr(data, "__array__"):
        data = np.asarray(data)
    array = _array_of(data)
    d = wanted if wanted is not None else _natural_dtype(data, array)
    return storage_node(_converted(array, d), d, device)


def _array_of(data: Any) -> np.ndarray:
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"Tensor: the lists have unequal lengths ({error})") from None
    if array.dtype.kind not in "biuf":
        if array.size == 0 and array.dtype == object:
            return array.astype(np.float32)
        raise DTypeError(
            f"Tensor: cannot hold {type(data).__name__} values of NumPy dtype {array.dtype}; "
            "expected numbers or bool"
        )
    return array


def _natural_dtype(data: Any, array: np.ndarray) -> DType:
    """Arrays keep their dtype; Python floats are float32."""
    if isinstance(data, np.ndarray | np.generic):
        return dt.dtype(array.dtype)
    return dt.float32 if array.dtype.kind == "f" else dt.dtype(array.dtype)


def _converted(array: np.ndarray, d: DType) -> np.ndarray:
    """Values of another dtype by the language's CAST: truncating, saturating; NaN gives 0."""
    if array.dtype == d.numpy or not (array.dtype.kind == "f" and d.is_int):
        with np.errstate(over="ignore"):
            return array if array.dtype == d.numpy else array.astype(d.numpy)
    limits = np.iinfo(d.numpy)
    wide = np.nan_to_num(array.astype(np.float64), nan=0.0)
    low, high = wide <= float(limits.min), wide >= float(limits.max)
    inner = np.where(low | high, 0.0, wide).astype(d.numpy)
    return np.where(low, limits.min, np.where(high, limits.max, inner)).astype(d.numpy)


