"""Gradient clipping: by the norm of all gradients together, or element by element."""
from __future__ import annotations

from collections.abc import Iterable

from muladd.errors import ArgumentError
from muladd.tensor import Tensor, no_grad


def _with_gradient(parameters: Tensor | Iterable[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """(parameter, gradient) of those that have one."""
    tensors = [parameters] if isinstance(parameters, Tensor) else list(parameters)
    return [(p, p.grad) for p in tensors if p.grad is not None]


def clip_grad_norm_(
    parameters: Tensor | Iterable[Tensor], max_norm: float, norm_type: float = 2.0
) -> Tensor:
    """Scale all gradients so that their common norm is at most max_norm; returns the norm before.

    norm_type: 2, 1, or float("inf"). Gradients of no parameter give 0.
    """
    pairs = _with_gradient(parameters)
    if norm_type not in (1.0, 2.0, float("inf")):
        raise ArgumentError(f"clip_grad_norm_: norm_type is 1, 2 or inf, got {norm_type}")
    with no_grad():
        total: Tensor | None = None
        for _, gradient in pairs:
            if norm_type == 2.0:
                part = (gradient * gradient).sum()
            else:
                part = gradient.abs().sum() if norm_type == 1.0 else gradient.abs().max()
            if total is None:
                total = part
            else:
                total = total.maximum(part) if norm_type == float("inf") else total + part
        if total is None:
            return Tensor(0.0)
        norm = total.sqrt() if norm_type == 2.0 else total
        factor = (max_norm / (norm + 1e-6)).clip(None, 1.0)
        for p, gradient in pairs:
            p.grad = gradient * factor.cast(gradient.dtype)
    return norm


def clip_grad_value_(parameters: Tensor | Iterable[Tensor], clip_value: float) -> None:
    """Put every element of every gradient into [-clip_value, clip_value]."""
    with no_grad():
        for p, gradient in _with_gradient(parameters):
            p.grad = gradient.clip(-clip_value, clip_value)
