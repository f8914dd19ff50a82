"""Losses as modules: each calls the Tensor method of the same meaning on (input, target)."""
from __future__ import annotations

from typing import Any

from muladd.errors import ArgumentError
from muladd.nn import amp
from muladd.nn.module import Module
from muladd.tensor import Tensor


class _Loss(Module):
    method = ""

    def __init__(self, reduction: str = "mean", **settings: Any) -> None:
        if reduction not in ("none", "mean", "sum"):
            raise ArgumentError(
                f"{type(self).__name__}: reduction is none, mean or sum, got {reduction!r}"
            )
        self._settings = {"reduction": reduction, **settings}

    def forward(self, x: Tensor, target: Tensor) -> Tensor:
        (x,) = amp.raise_(x)
        return getattr(x, self.method)(target, **self._settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self._settings.items())


def _loss(name: str, method: str) -> type[_Loss]:
    doc = f"x.{method}(target, reduction=, ...)"
    return type(name, (_Loss,), {"method": method, "__doc__": doc, "__module__": __name__})


CrossEntropyLoss = _loss("CrossEntropyLoss", "cross_entropy")
NLLLoss = _loss("NLLLoss", "nll_loss")
MSELoss = _loss("MSELoss", "mse_loss")
L1Loss = _loss("L1Loss", "l1_loss")
SmoothL1Loss = _loss("SmoothL1Loss", "smooth_l1_loss")
HuberLoss = _loss("HuberLoss", "huber_loss")
BCELoss = _loss("BCELoss", "binary_cross_entropy")
BCEWithLogitsLoss = _loss("BCEWithLogitsLoss", "binary_cross_entropy_with_logits")
KLDivLoss = _loss("KLDivLoss", "kl_div")
