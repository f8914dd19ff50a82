"""Activations and pooling as modules: each calls the Tensor method of the same meaning."""
from __future__ import annotations

from typing import Any

from muladd.nn.module import Module
from muladd.tensor import Tensor


class _Method(Module):
    """A module that is one method call; `names` are its settings in the order of the arguments."""

    method = ""
    defaults: dict[str, Any] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("inplace", None)  # nothing to save: values are never copied for their own sake
        if len(args) > len(self.defaults) or not kwargs.keys() <= self.defaults.keys():
            raise TypeError(
                f"{type(self).__name__}: takes {list(self.defaults)}, got {args} and {kwargs}"
            )
        self._settings = {**self.defaults, **dict(zip(self.defaults, args)), **kwargs}

    def forward(self, x: Tensor) -> Tensor:
        return getattr(x, self.method)(**self._settings)

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in self._settings.items())


def _activation(name: str, method: str, **defaults: Any) -> type[_Method]:
    doc = f"x.{method}({', '.join(f'{k}={v}' for k, v in defaults.items())})"
    return type(name, (_Method,), {"method": method, "defaults": defaults, "__doc__": doc,
                                   "__module__": __name__})  # fmt: skip


ReLU = _activation("ReLU", "relu")
ReLU6 = _activation("ReLU6", "relu6")
LeakyReLU = _activation("LeakyReLU", "leaky_relu", negative_slope=0.01)
ELU = _activation("ELU", "elu", alpha=1.0)
SELU = _activation("SELU", "selu")
CELU = _activation("CELU", "celu", alpha=1.0)
GELU = _activation("GELU", "gelu", approximate="none")
SiLU = _activation("SiLU", "silu")
Mish = _activation("Mish", "mish")
Sigmoid = _activation("Sigmoid", "sigmoid")
LogSigmoid = _activation("LogSigmoid", "logsigmoid")
Hardsigmoid = _activation("Hardsigmoid", "hardsigmoid")
Hardswish = _activation("Hardswish", "hardswish")
Hardtanh = _activation("Hardtanh", "hardtanh", min_val=-1.0, max_val=1.0)
Tanh = _activation("Tanh", "tanh")
Softplus = _activation("Softplus", "softplus", beta=1.0, threshold=20.0)
Softsign = _activation("Softsign", "softsign")
Softmax = _activation("Softmax", "softmax", dim=-1)
LogSoftmax = _activation("LogSoftmax", "log_softmax", dim=-1)
MaxPool1d = _activation("MaxPool1d", "max_pool1d", kernel_size=2, stride=None, padding=0)
MaxPool2d = _activation("MaxPool2d", "max_pool2d", kernel_size=2, stride=None, padding=0)
MaxPool3d = _activation("MaxPool3d", "max_pool3d", kernel_size=2, stride=None, padding=0)
AvgPool1d = _activation("AvgPool1d", "avg_pool1d", kernel_size=2, stride=None, padding=0)
AvgPool2d = _activation("AvgPool2d", "avg_pool2d", kernel_size=2, stride=None, padding=0)
AvgPool3d = _activation("AvgPool3d", "avg_pool3d", kernel_size=2, stride=None, padding=0)
AdaptiveAvgPool1d = _activation("AdaptiveAvgPool1d", "adaptive_avg_pool1d", output_size=1)
AdaptiveAvgPool2d = _activation("AdaptiveAvgPool2d", "adaptive_avg_pool2d", output_size=1)
AdaptiveMaxPool2d = _activation("AdaptiveMaxPool2d", "adaptive_max_pool2d", output_size=1)


class PReLU(Module):
    """x where x > 0, else weight * x: one slope for all channels, or one each."""

    def __init__(self, num_parameters: int = 1, init: float = 0.25) -> None:
        from muladd.nn.module import Parameter

        self.weight = Parameter(Tensor.full((num_parameters,), init))

    def forward(self, x: Tensor) -> Tensor:
        slope = self.weight
        if slope.shape[0] != 1:
            slope = slope.reshape(-1, *[1] * (x.ndim - 2))
        return (x > 0).where(x, x * slope)
