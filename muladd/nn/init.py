"""First values of parameters: the usual distributions, and what layers take by default.

Functions with a trailing underscore fill a tensor in place, as in torch; `uniform` and `normal`
make new ones. A weight's fan-in is the number of inputs that one output sums over.
"""
from __future__ import annotations

from math import prod, sqrt
from typing import Any

from muladd.errors import ArgumentError, ShapeError
from muladd.nn.module import static_shape
from muladd.tensor import Tensor, no_grad

Shape = tuple[int, ...]


def uniform(shape: Shape, bound: float, **options: Any) -> Tensor:
    """Numbers spread evenly over [-bound, bound)."""
    return Tensor.uniform(*shape, low=-bound, high=bound, **options)


def normal(shape: Shape, std: float = 1.0, mean: float = 0.0, **options: Any) -> Tensor:
    return Tensor.randn(*shape, **options) * std + mean


def fans(shape: Shape) -> tuple[int, int]:
    """(fan in, fan out) of a weight (out, in, *kernel)."""
    if len(shape) < 2:
        raise ShapeError(f"init: fan-in and fan-out need at least 2 axes, got a shape of {shape}")
    field = prod(shape[2:])
    return shape[1] * field, shape[0] * field


GAINS = {
    "linear": 1.0, "conv": 1.0, "sigmoid": 1.0, "tanh": 5 / 3, "relu": sqrt(2.0), "selu": 3 / 4,
}  # fmt: skip


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor that keeps the variance of activations the same through a nonlinearity."""
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return sqrt(2 / (1 + slope * slope))
    if nonlinearity not in GAINS:
        raise ArgumentError(
            f"init: no gain is known for {nonlinearity!r}; known: {', '.join(GAINS)}"
        )
    return GAINS[nonlinearity]


def _fill(tensor: Tensor, value: Tensor) -> Tensor:
    with no_grad():
        tensor.assign(value.cast(tensor.dtype))
    return tensor


def _like(tensor: Tensor) -> tuple[Shape, dict[str, Any]]:
    wide = {"dtype": tensor.dtype} if tensor.dtype.bits >= 32 else {}
    return static_shape(tensor), {"device": tensor.device, **wide}


def zeros_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    return constant_(tensor, 1.0)


def constant_(tensor: Tensor, value: float) -> Tensor:
    shape, options = _like(tensor)
    return _fill(tensor, Tensor.full(shape, value, **options))


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0) -> Tensor:
    shape, options = _like(tensor)
    return _fill(tensor, Tensor.uniform(*shape, low=a, high=b, **options))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    shape, options = _like(tensor)
    return _fill(tensor, normal(shape, std, mean, **options))


def trunc_normal_(
    tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0
) -> Tensor:
    """Normal numbers cut off at a and b, drawn by inverting the cumulative distribution."""
    from statistics import NormalDist

    shape, options = _like(tensor)
    cumulative = NormalDist(mean, std).cdf
    low, high = 2 * cumulative(a) - 1, 2 * cumulative(b) - 1
    drawn = Tensor.uniform(*shape, low=low, high=high, **options).erfinv()
    return _fill(tensor, (drawn * (std * sqrt(2.0)) + mean).clip(a, b))


def _both_fans(tensor: Tensor) -> int:
    inward, outward = fans(static_shape(tensor))
    return inward + outward


def xavier_uniform_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    """Glorot and Bengio, 2010: variance 2 / (fan in + fan out)."""
    bound = gain * sqrt(6.0 / _both_fans(tensor))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: Tensor, gain: float = 1.0) -> Tensor:
    return normal_(tensor, 0.0, gain * sqrt(2.0 / _both_fans(tensor)))


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"init: mode is fan_in or fan_out, got {mode!r}")
    fan = fans(static_shape(tensor))[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / sqrt(fan)


def kaiming_uniform_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    """He et al., 2015: variance gain^2 / fan."""
    bound = sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: Tensor, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> Tensor:
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity))
