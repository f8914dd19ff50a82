"""Mixed precision: products in 16 bits with sums in 32, and loss scaling that finds its own factor.

    scaler = amp.GradScaler()
    with amp.autocast("float16"):
        loss = model(x).cross_entropy(y)          # products in 16 bits, the loss in 32
    scaler.scale(loss).backward()
    scaler.step(optimizer)                        # skipped, inside the graph, where a gradient
    scaler.update()                               # overflowed; the factor adapts

bfloat16 has float32's range and needs no scaler. Micikevicius et al., 2018, "Mixed precision
training".
"""
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from muladd.ir import dtype as dt
from muladd.ir.dtype import DType
from muladd.tensor import Tensor, no_grad, precision
from muladd.tensor.backend import is_tracing

if TYPE_CHECKING:
    from muladd.nn.optim import Optimizer


@contextmanager
def autocast(dtype: str | DType = "bfloat16", enabled: bool = True) -> Iterator[None]:
    """Inside, matrix products and convolutions are fed this dtype, those of layers and bare ones
    (`x @ w`); softmax, norms and losses are fed float32."""
    kind = dt.dtype(dtype)
    if not kind.is_float:
        raise dt.DTypeError(f"autocast: takes a floating-point dtype, got {kind.name}")
    token = precision.product_dtype.set(kind if enabled else None)
    try:
        yield
    finally:
        precision.product_dtype.reset(token)


def compute_dtype() -> DType | None:
    """The dtype that `autocast` asks for here and now, or None."""
    return precision.product_dtype.get()


def lower(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The operands of a product as `autocast` wants them; float64 and integers are left alone."""
    return tuple(precision.lowered(t) for t in tensors)


def raise_(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The inputs of what needs range (norms, softmax, losses) as float32 under `autocast`."""
    return tuple(precision.raised(t) for t in tensors)


class GradScaler:
    """Multiplies the loss by a factor that is as great as float16 gradients allow.

    Every `growth_interval` good steps the factor grows by `growth_factor`; a step in which any
    gradient is infinite or NaN changes no parameter and multiplies it by `backoff_factor`. It is
    all tensors, so it works inside `jit`.
    """

    def __init__(
        self, init_scale: float = 65536.0, growth_factor: float = 2.0,
        backoff_factor: float = 0.5, growth_interval: int = 2000, enabled: bool = True,
    ) -> None:  # fmt: skip
        self.scale_factor = Tensor(init_scale, dtype="float32")
        self.good_steps = Tensor(0, dtype="int32")
        self.growth_factor, self.backoff_factor = growth_factor, backoff_factor
        self.growth_interval, self.enabled = growth_interval, enabled
        self._overflow: Tensor | None = None
        self._unscaled: set[int] = set()

    def scale(self, loss: Tensor) -> Tensor:
        if not self.enabled:
            return loss
        return loss.cast(dt.float32) * self.scale_factor if loss.dtype.bits < 32 else (
            loss * self.scale_factor.cast(loss.dtype)
        )

    def unscale_(self, optimizer: Optimizer) -> None:
        """Divide the gradients by the factor, for instance before clipping them."""
        if not self.enabled or id(optimizer) in self._unscaled:
            return
        self._unscaled.add(id(optimizer))
        with no_grad():
            inverse = 1.0 / self.scale_factor
            for parameter in optimizer.parameters():
                if parameter.grad is None:
                    continue
                gradient = parameter.grad * inverse.cast(parameter.grad.dtype)
                parameter.grad = gradient
                bad = (gradient.isfinite() == False).any()  # noqa: E712
                self._overflow = bad if self._overflow is None else self._overflow | bad

    def step(self, optimizer: Optimizer) -> None:
        """`optimizer.step()`, without effect if any gradient is infinite or NaN."""
        self.unscale_(optimizer)
        optimizer.step(skip=self._overflow)

    def update(self) -> None:
        """Adapt the factor to how the last step went."""
        self._unscaled.clear()
        overflow, self._overflow = self._overflow, None
        if overflow is None:
            return
        with no_grad():
            good = self.good_steps + 1
            grown = good == self.growth_interval
            factor = overflow.where(
                self.scale_factor * self.backoff_factor,
                grown.where(self.scale_factor * self.growth_factor, self.scale_factor),
            )
            self.scale_factor.assign(factor)
            self.good_steps.assign((overflow | grown).where(0, good).cast(dt.int32))
            if not is_tracing():
                self.scale_factor.realize(self.good_steps)

    def get_scale(self) -> float:
        return self.scale_factor.item() if self.enabled else 1.0

    def state_dict(self) -> dict[str, Tensor]:
        return {"scale": self.scale_factor, "good_steps": self.good_steps}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.scale_factor.assign(state["scale"])
        self.good_steps.assign(state["good_steps"])
