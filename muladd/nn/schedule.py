"""Learning-rate schedules: functions from the number of steps done to the rate.

A schedule takes a float32 tensor (or a number) and gives a tensor, so it runs inside `jit` and
inside a graph that trains for many steps. Give one to an optimiser as its `lr`:

    AdamW(model.parameters(), lr=schedule.cosine(3e-4, steps=10_000, warmup=200))
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log2, pi

from muladd.errors import ArgumentError
from muladd.ir import dtype as dt
from muladd.tensor import Tensor

Schedule = Callable[[Tensor], Tensor]


def _tensor(step: Tensor | float) -> Tensor:
    return step.cast(dt.float32) if isinstance(step, Tensor) else Tensor(step, dtype=dt.float32)


def _check(who: str, **sizes: float) -> None:
    for name, value in sizes.items():
        if value <= 0:
            raise ArgumentError(f"schedule.{who}: {name} must be positive, got {value}")


def constant(rate: float) -> Schedule:
    """Always the same rate."""
    return lambda step: _tensor(step) * 0.0 + rate


def linear(start: float, end: float, steps: int) -> Schedule:
    """From start to end in a straight line over `steps` steps, then end."""
    _check("linear", steps=steps)

    def rate(step: Tensor) -> Tensor:
        return start + (end - start) * (_tensor(step) / steps).clip(0.0, 1.0)

    return rate


def warmup(after: float | Schedule, steps: int, start: float = 0.0) -> Schedule:
    """A straight line from `start` up to the rate `after` begins with, then `after` from its own
    step 0. The line is (k + 1) / steps high at step k if it starts at 0: the first step counts.
    """
    _check("warmup", steps=steps)
    follow = after if callable(after) else constant(after)

    def rate(step: Tensor) -> Tensor:
        step = _tensor(step)
        peak = follow(Tensor(0.0, dtype=dt.float32, device=step.device))
        line = start + (peak - start) * ((step + 1.0) / steps).clip(0.0, 1.0)
        return (step < steps).where(line, follow((step - steps).clip(0.0, None)))

    return rate


def cosine(peak: float, steps: int, warmup: int = 0, end: float = 0.0) -> Schedule:
    """Half a cosine from peak to end over `steps` steps in all, after a linear warm-up.
    Loshchilov and Hutter, 2017."""
    _check("cosine", steps=steps, steps_after_warmup=steps - warmup)

    def rate(step: Tensor) -> Tensor:
        done = (_tensor(step) / (steps - warmup)).clip(0.0, 1.0)
        return end + (peak - end) * 0.5 * (1.0 + (done * pi).cos())

    return _warmup(rate, warmup) if warmup else rate


_warmup = warmup  # `cosine` has an argument of this name


def step(rate: float, every: int, factor: float = 0.1) -> Schedule:
    """The rate multiplied by `factor` after each `every` steps."""
    _check("step", every=every, factor=factor)

    def schedule(done: Tensor) -> Tensor:
        return rate * ((_tensor(done) / every).floor() * log2(factor)).exp2()

    return schedule


def piecewise(rates: Sequence[float], boundaries: Sequence[int]) -> Schedule:
    """rates[i] from step boundaries[i - 1] on."""
    if len(rates) != len(boundaries) + 1 or list(boundaries) != sorted(boundaries):
        raise ArgumentError("schedule.piecewise: needs ascending boundaries and one more rate")

    def schedule(done: Tensor) -> Tensor:
        done = _tensor(done)
        out = done * 0.0 + rates[0]
        for boundary, rate in zip(boundaries, rates[1:]):
            out = (done >= boundary).where(rate, out)
        return out

    return schedule


def exponential(rate: float, factor: float) -> Schedule:
    """rate * factor^step."""
    _check("exponential", factor=factor)
    return lambda done: rate * (_tensor(done) * log2(factor)).exp2()


def one_cycle(
    peak: float, steps: int, up: float = 0.3, start_factor: float = 25.0,
    end_factor: float = 1e4,
) -> Schedule:  # fmt: skip
    """From peak / start_factor up to peak, then down to peak / start_factor / end_factor, each
    along half a cosine; the way up takes the part `up`. Smith and Topin, 2018.
    """
    _check("one_cycle", steps=steps - 1, start_factor=start_factor, end_factor=end_factor)
    low, last = peak / start_factor, peak / start_factor / end_factor
    top = up * steps - 1.0

    def rate(done: Tensor) -> Tensor:
        done = _tensor(done)
        rise = low + (peak - low) * 0.5 * (1.0 - (done / max(top, 1e-6) * pi).cos())
        part = ((done - top) / (steps - 1 - top)).clip(0.0, 1.0)
        fall = last + (peak - last) * 0.5 * (1.0 + (part * pi).cos())
        return (done <= top).where(rise, fall)

    return rate
