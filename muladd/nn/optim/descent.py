"""Optimisers that follow a direction: SGD, the sign of a momentum, an orthogonalised momentum."""
from __future__ import annotations

from collections.abc import Iterable
from math import prod, sqrt
from typing import Any

from muladd.errors import ArgumentError, ShapeError
from muladd.nn.module import static_shape
from muladd.nn.optim.base import Group, Optimizer, Schedule, State, zeros
from muladd.tensor import Tensor

Params = Iterable[Tensor] | Iterable[Group]


class SGD(Optimizer):
    """Stochastic gradient descent, as torch writes it:

    g += weight_decay * p;  b = momentum * b + (1 - dampening) * g  (b = g in the first step)
    p -= lr * (g + momentum * b  if nesterov else  b)
    """

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-3, momentum: float = 0.0,
        dampening: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        if nesterov and (momentum <= 0 or dampening):
            raise ArgumentError("SGD: nesterov needs a momentum and no dampening")
        super().__init__(
            params, lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay,
            nesterov=nesterov,
        )  # fmt: skip

    def start(self, parameter: Tensor, group: Group) -> State:
        return {"momentum": zeros(parameter)} if group["momentum"] else {}

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        momentum, dampening = group["momentum"], group["dampening"]
        if group["weight_decay"]:
            gradient = gradient + value * group["weight_decay"]
        if not momentum:
            return value - lr * gradient, {}
        new = gradient if not dampening else gradient * (1 - dampening)
        buffer = state["momentum"] * momentum + new
        if dampening:  # the first step takes the gradient as it is
            buffer = (self.step_count == 0).where(gradient, buffer)
        direction = gradient + buffer * momentum if group["nesterov"] else buffer
        return value - lr * direction, {"momentum": buffer}


class Lion(Optimizer):
    """The sign of an interpolated momentum. Chen et al., 2023, "Symbolic discovery of
    optimization algorithms".

    p -= lr * (sign(b1 m + (1 - b1) g) + weight_decay p);  m = b2 m + (1 - b2) g
    """

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas=betas, weight_decay=weight_decay)

    def start(self, parameter: Tensor, group: Group) -> State:
        return {"momentum": zeros(parameter)}

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        (b1, b2), momentum = group["betas"], state["momentum"]
        direction = (momentum * b1 + gradient * (1 - b1)).sign()
        if group["weight_decay"]:
            direction = direction + value * group["weight_decay"]
        return value - lr * direction, {"momentum": momentum * b2 + gradient * (1 - b2)}


class Muon(Optimizer):
    """Momentum made orthogonal by a few Newton-Schulz steps. Jordan et al., 2024.

    For matrices inside a network (a convolution's weight counts as (out, everything else)); give
    embeddings, heads, biases and norms to AdamW. adjust: "original" scales the rate by
    sqrt(max(1, rows / columns)), "match_rms_adamw" by 0.2 sqrt(max(rows, columns)).
    """

    COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # the quintic that lifts small singular values fastest

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-3, weight_decay: float = 0.1,
        momentum: float = 0.95, nesterov: bool = True, steps: int = 5, eps: float = 1e-7,
        adjust: str = "original",
    ) -> None:  # fmt: skip
        if adjust not in ("original", "match_rms_adamw"):
            raise ArgumentError(f"Muon: adjust is original or match_rms_adamw, got {adjust!r}")
        super().__init__(
            params, lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov,
            steps=steps, eps=eps, adjust=adjust,
        )  # fmt: skip

    def check(self, group: Group) -> None:
        super().check(group)
        flat = [p for p in group["params"] if p.ndim < 2]
        if flat:
            raise ShapeError(
                f"Muon: trains matrices, got a parameter of shape {list(flat[0].shape)}; give it "
                "to another optimiser"
            )

    def start(self, parameter: Tensor, group: Group) -> State:
        return {"momentum": zeros(parameter)}

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        momentum = group["momentum"]
        buffer = state["momentum"] * momentum + gradient * (1 - momentum)
        ahead = gradient * (1 - momentum) + buffer * momentum if group["nesterov"] else buffer
        rows, *rest = static_shape(value)
        columns = prod(rest)
        matrix = ahead.reshape(rows, columns)
        direction = orthogonalise(matrix, group["steps"], group["eps"], self.COEFFICIENTS)
        scale = sqrt(max(1.0, rows / columns))
        if group["adjust"] == "match_rms_adamw":
            scale = 0.2 * sqrt(max(rows, columns))
        decayed = value * (1 - lr * group["weight_decay"])
        step = direction.reshape(*value.shape) * scale
        return decayed - lr * step, {"momentum": buffer}


def orthogonalise(
    matrix: Tensor, steps: int, eps: float, coefficients: tuple[float, float, float]
) -> Tensor:
    """The nearest matrix with all singular values about 1, by Newton-Schulz iteration."""
    a, b, c = coefficients
    rows, columns = static_shape(matrix)
    tall = rows > columns
    x: Any = matrix.transpose(0, 1) if tall else matrix
    x = x / (x * x).sum().sqrt().clip(eps, None)
    for _ in range(steps):
        gram = x @ x.transpose(0, 1)
        x = x * a + (gram * b + (gram @ gram) * c) @ x
    return x.transpose(0, 1) if tall else x
