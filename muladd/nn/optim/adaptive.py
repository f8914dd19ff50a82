"""Optimisers with a rate per element, from running averages of squared gradients.

Bias corrections 1 - b^t are kept as running values d <- b d + (1 - b): exact to the last bits in
float32, where 1 - b^t itself would cancel. A group has one pair of them: it counts the steps in
which any of its parameters had a gradient.
"""
from __future__ import annotations

from collections.abc import Iterable

from muladd.errors import ArgumentError
from muladd.nn.optim.base import Group, Optimizer, Schedule, State, scalar, zeros
from muladd.tensor import Tensor

Params = Iterable[Tensor] | Iterable[Group]


class _Corrected(Optimizer):
    """What Adam and LAMB share: two running averages per element, two corrections per group."""

    def check(self, group: Group) -> None:
        super().check(group)
        if not all(0 <= b < 1 for b in group["betas"]):
            raise ArgumentError(
                f"{type(self).__name__}: betas must lie in [0, 1), got {group['betas']}"
            )

    def start(self, parameter: Tensor, group: Group) -> State:
        return {"first": zeros(parameter), "second": zeros(parameter)}

    def start_shared(self, group: Group) -> State:
        return {
            "first_correction": scalar(0.0, group), "second_correction": scalar(0.0, group),
        }  # fmt: skip

    def advance(self, shared: State, group: Group) -> State:
        b1, b2 = group["betas"]
        return {
            "first_correction": shared["first_correction"] * b1 + (1 - b1),
            "second_correction": shared["second_correction"] * b2 + (1 - b2),
        }

    def averages(self, gradient: Tensor, state: State, group: Group) -> State:
        """The running averages of g and g^2, one step on."""
        b1, b2 = group["betas"]
        return {
            "first": state["first"] + (gradient - state["first"]) * (1 - b1),
            "second": state["second"] * b2 + gradient * gradient * (1 - b2),
        }


class Adam(_Corrected):
    """Kingma and Ba, 2015. weight_decay is added to the gradient; AdamW takes it from the value."""

    decoupled = False

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0,
        amsgrad: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad
        )

    def start(self, parameter: Tensor, group: Group) -> State:
        state = super().start(parameter, group)
        if group["amsgrad"]:
            state["greatest"] = zeros(parameter)
        return state

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        decay = group["weight_decay"]
        if decay and not self.decoupled:
            gradient = gradient + value * decay
        new = self.averages(gradient, state, group)
        second = new["second"]
        if group["amsgrad"]:
            new["greatest"] = second = state["greatest"].maximum(second)
        spread = second.sqrt() / group["second_correction"].sqrt() + group["eps"]
        if decay and self.decoupled:
            value = value * (1 - lr * decay)
        return value - (lr / group["first_correction"]) * (new["first"] / spread), new


class AdamW(Adam):
    """Adam with decoupled weight decay. Loshchilov and Hutter, 2019."""

    decoupled = True

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2,
        amsgrad: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad)


class LAMB(_Corrected):
    """Adam whose step has, per parameter, the norm of the value. You et al., 2020."""

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        new = self.averages(gradient, state, group)
        first = new["first"] / group["first_correction"]
        second = new["second"] / group["second_correction"]
        step = first / (second.sqrt() + group["eps"])
        if group["weight_decay"]:
            step = step + value * group["weight_decay"]
        size, length = (value * value).sum().sqrt(), (step * step).sum().sqrt()
        trusted = (size > 0) & (length > 0)
        ratio = trusted.where(size / trusted.where(length, 1.0), 1.0)
        return value - (lr * ratio) * step, new


class RMSprop(Optimizer):
    """The gradient over a running root mean square. Hinton, 2012 (lecture 6e)."""

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum,
            centered=centered,
        )  # fmt: skip

    def start(self, parameter: Tensor, group: Group) -> State:
        state = {"square": zeros(parameter)}
        if group["centered"]:
            state["average"] = zeros(parameter)
        if group["momentum"]:
            state["momentum"] = zeros(parameter)
        return state

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        alpha = group["alpha"]
        if group["weight_decay"]:
            gradient = gradient + value * group["weight_decay"]
        new = {"square": state["square"] * alpha + gradient * gradient * (1 - alpha)}
        spread = new["square"]
        if group["centered"]:
            average = state["average"] + (gradient - state["average"]) * (1 - alpha)
            new["average"] = average
            spread = spread - average * average
        step = gradient / (spread.sqrt() + group["eps"])
        if group["momentum"]:
            step = new["momentum"] = state["momentum"] * group["momentum"] + step
        return value - lr * step, new


class Adagrad(Optimizer):
    """The gradient over the root of all squares so far. Duchi et al., 2011."""

    def __init__(
        self, params: Params, lr: float | Schedule = 1e-2, lr_decay: float = 0.0,
        weight_decay: float = 0.0, initial_accumulator_value: float = 0.0, eps: float = 1e-10,
    ) -> None:  # fmt: skip
        super().__init__(
            params, lr, lr_decay=lr_decay, weight_decay=weight_decay,
            initial=initial_accumulator_value, eps=eps,
        )  # fmt: skip

    def start(self, parameter: Tensor, group: Group) -> State:
        return {"sum": zeros(parameter) + group["initial"]}

    def update(
        self, value: Tensor, gradient: Tensor, state: State, lr: Tensor, group: Group
    ) -> tuple[Tensor, State]:
        if group["weight_decay"]:
            gradient = gradient + value * group["weight_decay"]
        total = state["sum"] + gradient * gradient
        rate = lr
        if group["lr_decay"]:
            rate = lr / (1 + self.step_count.cast(value.dtype) * group["lr_decay"])
        return value - rate * (gradient / (total.sqrt() + group["eps"])), {"sum": total}
