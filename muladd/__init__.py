"""muladd: machine-learning jobs as values.

    from muladd import Tensor, jit, grad, nn

Names are looked up at their first use, so that importing the package costs next to nothing and a
compiler is loaded only when something is compiled.
"""
from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from muladd.ir.dtype import DType as DType
    from muladd.ir.node import Node as Node
    from muladd.tensor.functional import (
        checkpoint as checkpoint,
    )
    from muladd.tensor.functional import custom_gradient as custom_gradient
    from muladd.tensor.functional import grad as grad
    from muladd.tensor.functional import hessian as hessian
    from muladd.tensor.functional import jacobian as jacobian
    from muladd.tensor.functional import jvp as jvp
    from muladd.tensor.functional import scan as scan
    from muladd.tensor.functional import value_and_grad as value_and_grad
    from muladd.tensor.functional import vjp as vjp
    from muladd.tensor.functional import vmap as vmap
    from muladd.tensor.handle import no_grad as no_grad
    from muladd.tensor.tensor import Tensor as Tensor

__version__ = "0.1.0"

_FUNCTIONAL = (
    "grad", "value_and_grad", "jvp", "vjp", "vmap", "jacobian", "hessian", "checkpoint",
    "custom_gradient", "scan",
)  # fmt: skip
_DTYPES = (
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float8_e4m3",
    "float8_e5m2", "float16", "bfloat16", "float32", "float64",
)  # fmt: skip

# name -> (module, attribute); no attribute: the module itself
_NAMES: dict[str, tuple[str, str | None]] = {
    "Tensor": ("muladd.tensor.tensor", "Tensor"),
    "no_grad": ("muladd.tensor.handle", "no_grad"),
    "set_grad_enabled": ("muladd.tensor.handle", "set_grad_enabled"),
    "grad_enabled": ("muladd.tensor.handle", "grad_enabled"),
    "jit": ("muladd.tensor.jit", "jit"),
    "DType": ("muladd.ir.dtype", "DType"),
    "Node": ("muladd.ir.node", "Node"),
    "bool_": ("muladd.ir.dtype", "bool_"),
    "var": ("muladd.ir.node", "var"),
    "errors": ("muladd.errors", None),
    "config": ("muladd.config", None),
    **{name: ("muladd.tensor.functional", name) for name in _FUNCTIONAL},
    **{name: ("muladd.ir.dtype", name) for name in _DTYPES},
    **{
        name: (f"muladd.{name}", None)
        for name in ("tensor", "nn", "formats", "data", "ir")
    },
}

__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'muladd' has no attribute {name!r}")
    module, attribute = _NAMES[name]
    found = importlib.import_module(module)
    value = found if attribute is None else getattr(found, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_NAMES})
