"""The front end: lazily evaluated tensors over graphs, and function transformations over them."""
from muladd.tensor.handle import grad_enabled, no_grad, set_grad_enabled
from muladd.tensor.tensor import Tensor

__all__ = ["Tensor", "grad_enabled", "no_grad", "set_grad_enabled"]
