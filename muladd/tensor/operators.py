"""Python's operators on tensors, and the in-place forms of methods (`add_`, `+=`)."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muladd.tensor import graph
from muladd.tensor.handle import Handle
from muladd.tensor.operands import is_operand, weak_dtype
from muladd.tensor.powers import power

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor

# Methods of which `name_` overwrites the tensor with `name(...)`.
IN_PLACE = (
    "add", "sub", "mul", "div", "floor_divide", "remainder", "fmod", "pow", "neg", "abs", "exp",
    "exp2", "log", "log2", "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "tan", "tanh",
    "sigmoid", "relu", "erf", "floor", "ceil", "round", "trunc", "sign", "clamp", "clip",
    "clamp_min", "clamp_max", "lerp", "addcmul", "addcdiv", "masked_fill", "scatter", "scatter_add",
    "scatter_reduce", "index_add", "index_put", "index_fill", "index_copy", "tril", "triu",
    "nan_to_num", "bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_not", "logical_not",
    "leaky_relu", "elu", "hardtanh", "silu", "addmm", "maximum", "minimum", "cumsum", "cumprod",
)  # fmt: skip


class Operators(Handle):
    """`a + b`, `a < b`, `a += b`, ... each is the method of that name."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __add__(self, other):
            return self.add(other)

        def __radd__(self, other):
            return self.add(other)

        def __sub__(self, other):
            return self.sub(other)

        def __rsub__(self, other):
            return self.rsub(other)

        def __mul__(self, other):
            return self.mul(other)

        def __rmul__(self, other):
            return self.mul(other)

        def __truediv__(self, other):
            return self.div(other)

        def __rtruediv__(self, other):
            return self.rdiv(other)

        def __floordiv__(self, other):
            return self.floor_divide(other)

        def __mod__(self, other):
            return self.remainder(other)

        def __pow__(self, other):
            return self.pow(other)

        def __matmul__(self, other):
            return self.matmul(other)

        def __neg__(self):
            return self.neg()

        def __invert__(self):
            return self.bitwise_not()

        def __lt__(self, other):
            return self.lt(other)

        def __le__(self, other):
            return self.le(other)

        def __gt__(self, other):
            return self.gt(other)

        def __ge__(self, other):
            return self.ge(other)

        def __eq__(self, other):
            return self.eq(other) if is_operand(other) else NotImplemented

        def __ne__(self, other):
            return self.ne(other) if is_operand(other) else NotImplemented

        def __and__(self, other):
            return self.bitwise_and(other)

        def __or__(self, other):
            return self.bitwise_or(other)

        def __xor__(self, other):
            return self.bitwise_xor(other)

        def __rlshift__(self, other):
            return self._made(other, weak_dtype(other, self.dtype)).bitwise_left_shift(self)

        def __rrshift__(self, other):
            return self._made(other, weak_dtype(other, self.dtype)).bitwise_right_shift(self)

        __hash__ = Handle.__hash__

    def __pos__(self) -> Tensor:
        return self._result(self.node)

    def __abs__(self) -> Tensor:
        return self.abs()

    def __round__(self, digits: int = 0) -> Tensor:
        return self.round(digits)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return self.full_like(other, _weak(other, self)).floor_divide(self)

    def __rmod__(self, other: Any) -> Tensor:
        return self.full_like(other, _weak(other, self)).remainder(self)

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self)

    def __rmatmul__(self, other: Any) -> Tensor:
        return self._made(other).matmul(self)

    def __rand__(self, other: Any) -> Tensor:
        return self.bitwise_and(other)

    def __ror__(self, other: Any) -> Tensor:
        return self.bitwise_or(other)

    def __rxor__(self, other: Any) -> Tensor:
        return self.bitwise_xor(other)

    def __lshift__(self, other: Any) -> Tensor:
        return self.bitwise_left_shift(other)

    def __rshift__(self, other: Any) -> Tensor:
        return self.bitwise_right_shift(other)

    def __divmod__(self, other: Any) -> tuple[Tensor, Tensor]:
        return self.floor_divide(other), self.remainder(other)

    def _in_place(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Overwrite with the result of method `name`; shape and dtype stay."""
        result = getattr(self, name)(*arguments, **named)
        node = result.node
        if node.dtype is not self.dtype and node.dtype.is_float == self.dtype.is_float:
            node = graph.cast(node, self.dtype)
        self._write(node, name + "_")
        return self

    def __iadd__(self, other: Any) -> Any:
        return self._in_place("add", other)

    def __isub__(self, other: Any) -> Any:
        return self._in_place("sub", other)

    def __imul__(self, other: Any) -> Any:
        return self._in_place("mul", other)

    def __itruediv__(self, other: Any) -> Any:
        return self._in_place("div", other)

    def __ifloordiv__(self, other: Any) -> Any:
        return self._in_place("floor_divide", other)

    def __imod__(self, other: Any) -> Any:
        return self._in_place("remainder", other)

    def __ipow__(self, other: Any) -> Any:
        return self._in_place("pow", other)

    def __iand__(self, other: Any) -> Any:
        return self._in_place("bitwise_and", other)

    def __ior__(self, other: Any) -> Any:
        return self._in_place("bitwise_or", other)

    def __ixor__(self, other: Any) -> Any:
        return self._in_place("bitwise_xor", other)


def _weak(value: Any, x: Handle) -> Any:
    from muladd.tensor.operands import number_dtype, weak_dtype

    return weak_dtype(value, x.dtype) if isinstance(value, int | float) else number_dtype(value)


def _define(name: str) -> None:
    def method(self: Operators, *arguments: Any, **named: Any) -> Any:
        return self._in_place(name, *arguments, **named)

    method.__name__ = name + "_"
    method.__qualname__ = f"Tensor.{name}_"
    method.__doc__ = f"`{name}` in place: this tensor is overwritten with the result."
    setattr(Operators, name + "_", method)


for _name in IN_PLACE:
    _define(_name)
