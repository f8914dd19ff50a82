"""Fractionally strided convolutions: of an image with zeros between its elements.

    y[p] = sum over r of w[r] * (x[m] where s * m = p + r - low, else zero)

Transposed convolutions are these, and derivatives of strided ones. Of s neighbouring results each
meets every s-th tap only, and each other ones. So they are s results of one convolution of x itself
with 1/s of the taps, and come to stand side by side at the end: with p = s * i + phase - start and
r = s * j + s - 1 - phase, m = i + j + first has no phase in it. Shi et al., 2016, section 3.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from muladd.ir import Node
from muladd.tensor import graph as g
from muladd.tensor.windows import pad_or_cut

_WASTE, _MANY = 1.25, 32  # taps computed by those there are, and channels, from which phases part

Convolve = Callable[[Node, Node], Node]


@dataclass(frozen=True)
class _Axis:
    """One axis of the image: p runs over `size` results, r over `taps`."""

    step: int
    low: int
    size: int
    taps: int
    spread: int  # between the taps; not 1 only where step is

    @property
    def start(self) -> int:
        """Results before the first, for the phases' taps to be s - 1 - phase."""
        return (-self.low - 1) % self.step

    @property
    def first(self) -> int:
        return (self.step - 1 - self.low - self.start) // self.step

    @property
    def count(self) -> int:
        """Results of each phase."""
        return -(-(self.size + self.start) // self.step)

    @property
    def met(self) -> int:
        """Taps that a phase meets at most."""
        return -(-self.taps // self.step)


def fractional(
    x: Node, w: Node, steps: Sequence[int], dilations: Sequence[int], lows: Sequence[int],
    sizes: Sequence[int], convolve: Convolve,
) -> Node:  # fmt: skip
    """x (N, C, *S) with s - 1 zeros between its elements and w (O, C/groups, *taps) to
    (N, O, *sizes); `convolve` (N, C, *) and (O', C/groups, *) without steps.

    An axis with a step has no dilation.
    """
    taps: Sequence[Any] = w.shape[2:]
    axes = [_Axis(*a) for a in zip(steps, lows, sizes, taps, dilations)]
    d, n, out = len(axes), x.shape[0], w.shape[0]
    wasted = prod(a.met * a.step for a in axes) > _WASTE * prod(taps)
    idle = any(a.taps < a.step for a in axes)  # phases without a tap
    if wasted and (idle or w.shape[1] >= _MANY):  # type: ignore[operator]
        y = _one_by_one(x, w, axes, convolve)
    else:
        y = convolve(_reached(x, axes, [a.met for a in axes]), _of_phases(w, axes))
    y = g.reshape(y, (n, out, *steps, *(a.count for a in axes)))
    y = g.permute(y, (0, 1, *(j for i in range(d) for j in (2 + d + i, 2 + i))))
    y = g.reshape(y, (n, out, *(a.step * a.count for a in axes)))
    return g.slice_(y, [(0, n, 1), (0, out, 1), *((a.start, a.size, 1) for a in axes)])


def _reached(x: Node, axes: list[_Axis], met: Sequence[int]) -> Node:
    """What the results of phases that meet so many taps of each axis are made of."""
    pads = [(0, 0), (0, 0)]
    for a, m, size in zip(axes, met, x.shape[2:]):
        end = a.first + a.count + a.spread * (m - 1)
        pads.append((-a.first, end - size))  # type: ignore[arg-type,operator]
    return pad_or_cut(x, pads)


def _one_by_one(x: Node, w: Node, axes: list[_Axis], convolve: Convolve) -> Node:
    """(N, O, phases, *counts) of convolutions that have the taps of their phases alone."""
    found = []
    for phases in product(*(range(a.step) for a in axes)):
        taps = [range(a.step - 1 - phase, a.taps, a.step) for a, phase in zip(axes, phases)]
        if all(taps):
            spec = [(t.start, len(t), t.step) for t in taps]
            own = g.slice_(w, [*((0, size, 1) for size in w.shape[:2]), *spec])
            y = convolve(_reached(x, axes, list(map(len, taps))), own)
        else:
            shape = (x.shape[0], w.shape[0], *(a.count for a in axes))
            y = g.expand(g.number(0, w.dtype), shape)
        found.append(g.unsqueeze(y, 2))
    return g.concatenate(found, 2)


def _of_phases(w: Node, axes: list[_Axis]) -> Node:
    """(O * phases, C/groups, *met): the taps that each phase meets, and a zero where one has
    fewer."""
    d, (out, channels) = len(axes), w.shape[:2]
    w = g.pad(w, [(0, 0), (0, 0), *((0, a.met * a.step - a.taps) for a in axes)])
    w = g.reshape(w, (out, channels, *(k for a in axes for k in (a.met, a.step))))
    for i in range(d):
        w = g.flip(w, 3 + 2 * i)
    w = g.permute(w, (0, *range(3, 3 + 2 * d, 2), 1, *range(2, 2 + 2 * d, 2)))
    phases = prod(a.step for a in axes)
    return g.reshape(w, (out * phases, channels, *(a.met for a in axes)))  # type: ignore[operator]


__all__ = ["fractional"]
