"""How operands meet: weak Python numbers, promotion, broadcasting and one device, with errors."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from muladd.errors import DeviceError, DTypeError
from muladd.ir import DType, Node, const
from muladd.ir import dtype as dt
from muladd.tensor import graph
from muladd.tensor.handle import Handle

Number = bool | int | float
Method = TypeVar("Method", bound=Callable[..., Any])


def scalar_as_vector(method: Method) -> Method:
    """A method along an axis, for which a scalar counts as a vector of one, as in torch."""

    @wraps(method)
    def call(self: Handle, *arguments: Any, **named: Any) -> Any:
        if self.ndim:
            return method(self, *arguments, **named)
        result = method(
            _vector(self), *map(_vector, arguments), **{k: _vector(v) for k, v in named.items()}
        )
        if isinstance(result, Handle):
            return result.reshape(())
        return type(result)(*[r.reshape(()) for r in result])

    return call  # type: ignore[return-value]


def _vector(value: Any) -> Any:
    return value.reshape((1,)) if isinstance(value, Handle) and not value.ndim else value


def is_number(value: Any) -> bool:
    """A weak operand: a Python or NumPy scalar, which never widens a tensor."""
    return isinstance(value, bool | int | float | np.generic)


def is_operand(value: Any) -> bool:
    """What may stand beside a tensor: a tensor, a number, an array or list, a symbolic size."""
    return is_number(value) or isinstance(value, Handle | np.ndarray | list | tuple | Node)


def number_given(who: str, value: Any) -> Any:
    """A Python number from a number or a tensor of one element; DTypeError for anything else."""
    if isinstance(value, Handle | np.generic):
        return value.item()
    if not is_number(value):
        raise DTypeError(f"{who}: expected a number, got {value!r} ({type(value).__name__})")
    return value


def weak_dtype(value: Any, d: DType) -> DType:
    """The dtype of `tensor of d  op  Python number`."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or d.is_float:
        return d
    if isinstance(value, int):
        return dt.int64 if d is dt.bool_ else d
    return dt.float32


def number_dtype(value: Any) -> DType:
    """The dtype of a Python number that meets no tensor."""
    if isinstance(value, np.generic):
        value = value.item()
    return dt.bool_ if isinstance(value, bool) else dt.int64 if isinstance(value, int) \
        else dt.float32  # fmt: skip


def as_operand(value: Any, device: str, who: str) -> Any:
    """A tensor, or a Python number; arrays and lists become tensors. DTypeError for others."""
    if isinstance(value, Handle):
        return value
    if is_number(value):
        return value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.ndarray | list | tuple):
        from muladd.tensor.tensor import Tensor

        return Tensor(value, device=device)
    if isinstance(value, Node) and value.ndim == 0:  # a symbolic size
        from muladd.tensor.tensor import Tensor

        return Tensor._of(value, device)
    raise DTypeError(
        f"{who}: an operand is {type(value).__name__}; expected a Tensor, a number, a list or a "
        "NumPy array"
    )


def one_device(who: str, tensors: Sequence[Handle]) -> str:
    """The device that all the tensors live on; DeviceError naming two that differ."""
    first = tensors[0].device
    for t in tensors[1:]:
        if t.device != first:
            raise DeviceError(
                f"{who}: operands live on {first} and {t.device}; move one with .to({first!r})"
            )
    return first


def common(who: str, values: Sequence[Any], floating: bool = False) -> list[Node]:
    """Tensors and numbers (at least one tensor) as nodes of one dtype and one shape.

    `floating` turns integers and bool into float32 first, for operations that leave the integers.
    """
    if len(values) == 2:
        found = _alike(values[0], values[1], floating)
        if found is not None:
            return found
    first = next(v for v in values if isinstance(v, Handle))
    values = [as_operand(v, first.device, who) for v in values]
    tensors = [v for v in values if isinstance(v, Handle)]
    one_device(who, tensors)
    d = tensors[0].dtype
    for t in tensors[1:]:
        d = dt.promote(d, t.dtype)
    for v in values:
        if not isinstance(v, Handle):
            d = weak_dtype(v, d)
    if floating and not d.is_float:
        d = dt.float32
    shape = tensors[0].shape
    if any(t.shape != shape for t in tensors):
        shape = graph.broadcast_shapes(who, *[t.shape for t in tensors])
    return [
        graph.expand(graph.cast(v.node, d), shape) if isinstance(v, Handle) else const(v, d, shape)
        for v in values
    ]


def _alike(a: Any, b: Any, floating: bool) -> list[Node] | None:
    """The short way for most pairs: two tensors of one kind, or floats and a Python number."""
    if not isinstance(a, Handle):
        return None
    node = a._raw
    if type(b) is float or type(b) is int:
        if not node.dtype.is_float:
            return None
        x = a.node
        return [x, const(b, x.dtype, x.shape)]
    if not isinstance(b, Handle) or a.device != b.device:
        return None
    other = b._raw
    if node.dtype is not other.dtype or node.shape != other.shape:
        return None
    return None if floating and not node.dtype.is_float else [a.node, b.node]


def floating(x: Handle) -> Node:
    """A tensor's node as floats: integers and bool become float32."""
    node = x.node
    return node if node.dtype.is_float else graph.cast(node, dt.float32)


def widened(x: Node) -> Node:
    """16-bit and 8-bit floats as float32: what functions made of many steps compute in."""
    return graph.cast(x, dt.float32) if x.dtype.is_float and x.dtype.bits < 32 else x


def tensor_like(value: Any, like: Handle, who: str) -> Handle:
    """A tensor operand; a number becomes a scalar tensor of a weak dtype."""
    value = as_operand(value, like.device, who)
    if isinstance(value, Handle):
        return value
    return like._of(const(value, weak_dtype(value, like.dtype)), like.device)


def check_floating(who: str, *tensors: Handle) -> None:
    """DTypeError unless all are floats."""
    for t in tensors:
        if not t.dtype.is_float:
            raise DTypeError(
                f"{who}: defined for floats, got {t.dtype.name}{list(t.shape)}; cast with .float()"
            )


