"""Changing the element type: cast, bitcast and one short name per dtype."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError
from muladd.ir import dtype as dt
from muladd.tensor import graph
from muladd.tensor.handle import Handle

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Casting(Handle):
    """Casts. (Their names hide the built-in types, so they have a class of their own.)"""

    __slots__ = ()

    def cast(self, dtype: Any) -> Tensor:
        """The nearest value of another dtype; floats become integers by truncation."""
        return self._result(graph.cast(self.node, dt.dtype(dtype)))

    def type(self, dtype: Any = None) -> Any:
        """cast(dtype), or the dtype when none is given."""
        return self.dtype if dtype is None else self.cast(dtype)

    def bitcast(self, dtype: Any) -> Tensor:
        """The same bits read as another dtype of equal width; no gradient passes."""
        wanted = dt.dtype(dtype)
        if wanted.bits != self.dtype.bits:
            raise DTypeError(
                f"bitcast: {self.dtype.name} has {self.dtype.bits} bits, {wanted.name} "
                f"{wanted.bits}; expected a dtype of equal width"
            )
        return self._result(graph.bitcast(self.node, wanted))

    def float(self) -> Tensor:
        """Cast to float32."""
        return self.cast(dt.float32)

    def double(self) -> Tensor:
        """Cast to float64."""
        return self.cast(dt.float64)

    def half(self) -> Tensor:
        """Cast to float16."""
        return self.cast(dt.float16)

    def bfloat16(self) -> Tensor:
        """Cast to bfloat16."""
        return self.cast(dt.bfloat16)

    def int(self) -> Tensor:
        """Cast to int32."""
        return self.cast(dt.int32)

    def long(self) -> Tensor:
        """Cast to int64."""
        return self.cast(dt.int64)

    def short(self) -> Tensor:
        """Cast to int16."""
        return self.cast(dt.int16)

    def char(self) -> Tensor:
        """Cast to int8."""
        return self.cast(dt.int8)

    def byte(self) -> Tensor:
        """Cast to uint8."""
        return self.cast(dt.uint8)

    def bool(self) -> Tensor:
        """Cast to bool: true where not zero."""
        return self.cast(dt.bool_)

    def is_floating_point(self) -> Any:
        """Whether the dtype is a float."""
        return self.dtype.is_float
