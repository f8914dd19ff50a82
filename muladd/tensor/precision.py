"""The dtype in which products are computed here and now: what mixed precision (`nn.amp`) sets.

Under `autocast`, matrix products and convolutions take their float32 operands in 16 bits, and what
needs range or precision (softmax, norms, losses) takes 16-bit operands in float32.
"""
from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from muladd.ir import DType
from muladd.ir import dtype as dt
from muladd.tensor.handle import ambient

product_dtype: ContextVar[DType | None] = ContextVar("muladd.product_dtype", default=None)
ambient.append(product_dtype.get)  # a compiled function is traced for each dtype


def of_products(d: DType) -> DType:
    """The dtype of a product of operands of d; float64 and integers are left alone."""
    wanted = product_dtype.get()
    return d if wanted is None or not d.is_float or d is dt.float64 else wanted


def lowered(t: Any) -> Any:
    """A tensor as an operand of a product."""
    return t.cast(of_products(t.dtype))


def raised(t: Any) -> Any:
    """A tensor as an operand of what needs range."""
    narrow = t.dtype.is_float and t.dtype.bits < 32
    return t.cast(dt.float32) if narrow and product_dtype.get() is not None else t
