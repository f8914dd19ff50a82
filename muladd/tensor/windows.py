"""Overlapping windows out of movement operations only: what convolution and pooling are made of.

A window along an axis of size n, with k taps `dilation` apart and one window every `step`: repeat
the axis k times, lay the copies end to end, and cut the line into rows of n + dilation. Row i then
starts i * dilation further into its copy, so column j * step of row i is x[i*dilation + j*step].
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muladd.errors import ShapeError
from muladd.ir import Node
from muladd.tensor import graph as g

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


def window_count(n: int, taps: int, step: int, dilation: int) -> int:
    """How many windows fit along an axis of size n."""
    return max((n - dilation * (taps - 1) - 1) // step + 1, 0)


def windows(
    x: Node, axes: Sequence[int], taps: Sequence[Any], steps: Sequence[int],
    dilations: Sequence[int], who: str = "unfold",
) -> Node:  # fmt: skip
    """(..., n, ...) to (taps..., ..., windows, ...): tap axes in front, in order of `axes`."""
    for a, k, step, dilation in zip(axes, taps, steps, dilations):
        if k < 1 or step < 1 or dilation < 1:
            raise ShapeError(
                f"{who}: size {k}, step {step} and dilation {dilation} must be at least 1"
            )
        n = x.shape[a]
        if isinstance(n, int) and window_count(n, k, step, dilation) < 1:
            raise ShapeError(
                f"{who}: a window of {dilation * (k - 1) + 1} does not fit into an axis of "
                f"{x.shape[a]}"
            )
    for place, (a, k, step, dilation) in enumerate(zip(axes, taps, steps, dilations)):
        x = _windows(x, a + place, place, k, step, dilation)
    return x


def _windows(x: Node, axis: int, place: int, taps: int, step: int, dilation: int) -> Node:
    """One axis: the taps become a new axis at `place` (before `axis`)."""
    n = x.shape[axis]
    lead, tail = x.shape[:axis], x.shape[axis + 1 :]
    if taps == 1:
        count = (n - 1) // step + 1  # type: ignore[operator]
        rows = g.reshape(g.cut(x, axis, 0, count, step), (*lead, 1, count, *tail))
    elif step == taps and dilation == 1:  # windows side by side: rows of a matrix
        count = window_count(n, taps, step, dilation)  # type: ignore[arg-type]
        rows = g.reshape(g.cut(x, axis, 0, count * taps), (*lead, count, taps, *tail))
        rows = g.permute(rows, _moved(rows.ndim, axis + 1, axis))
    else:
        count = window_count(n, taps, step, dilation)  # type: ignore[arg-type]
        copies = g.expand(g.reshape(x, (*lead, 1, n, *tail)), (*lead, taps, n, *tail))
        flat = g.reshape(copies, (*lead, taps * n, *tail))  # type: ignore[operator]
        still, ends = [(0, 0)] * len(lead), [(0, 0)] * len(tail)
        padded = g.pad(flat, [*still, (0, taps * dilation), *ends])
        rows = g.reshape(padded, (*lead, taps, n + dilation, *tail))  # type: ignore[operator]
        rows = g.cut(rows, axis + 1, 0, count, step)
    return g.permute(rows, _moved(rows.ndim, axis, place))  # from (lead, taps, windows, tail)


def _moved(rank: int, old: int, new: int) -> list[int]:
    """The order of axes in which the one at `old` is at `new`."""
    order = list(range(rank))
    order.insert(new, order.pop(old))
    return order


def pad_or_cut(x: Node, pads: Sequence[tuple[int, int]], value: Any = 0) -> Node:
    """Pads; a negative amount cuts off instead."""
    if any(low < 0 or high < 0 for low, high in pads):
        spec = []
        for n, (low, high) in zip(x.shape, pads):
            start, end = max(-low, 0), max(-high, 0)
            spec.append((start, n - start - end, 1))  # type: ignore[operator]
        x = g.slice_(x, spec)
    return g.pad(x, [(max(low, 0), max(high, 0)) for low, high in pads], value)


def columns(
    x: Tensor, kernel_size: Any, dilation: Any = 1, padding: Any = 0, stride: Any = 1
) -> Tensor:
    """(N, C, H, W) to (N, C * kh * kw, windows)."""
    if x.ndim not in (3, 4):
        raise ShapeError(f"unfold: expected (N, C, H, W) or (C, H, W), got {list(x.shape)}")
    if x.ndim == 3:
        return columns(x.unsqueeze(0), kernel_size, dilation, padding, stride).squeeze(0)
    k, d, p, s = (
        g.pair(v, 2, "unfold", name)
        for v, name in ((kernel_size, "kernel_size"), (dilation, "dilation"),
                        (padding, "padding"), (stride, "stride"))
    )  # fmt: skip
    padded = g.pad(x.node, [(0, 0), (0, 0), (p[0], p[0]), (p[1], p[1])])
    w = windows(padded, (2, 3), k, s, d)  # (kh, kw, N, C, oh, ow)
    kh, kw, n, c, oh, ow = w.shape
    rows = g.reshape(g.permute(w, (2, 3, 0, 1, 4, 5)), (n, c * kh * kw, oh * ow))  # type: ignore
    return x._result(rows)


def from_columns(
    x: Tensor, output_size: Any, kernel_size: Any, dilation: Any = 1, padding: Any = 0,
    stride: Any = 1,
) -> Tensor:  # fmt: skip
    """(N, C * kh * kw, windows) added up into (N, C, H, W)."""
    if x.ndim == 2:
        return from_columns(
            x.unsqueeze(0), output_size, kernel_size, dilation, padding, stride
        ).squeeze(0)
    (h, w), k, d, p, s = (
        g.pair(v, 2, "fold", name)
        for v, name in ((output_size, "output_size"), (kernel_size, "kernel_size"),
                        (dilation, "dilation"), (padding, "padding"), (stride, "stride"))
    )  # fmt: skip
    counts = [
        window_count(n + 2 * p[i], k[i], s[i], d[i]) for i, n in enumerate((h, w))
    ]
    if x.ndim != 3 or x.shape[1] % (k[0] * k[1]) or x.shape[2] != counts[0] * counts[1]:
        raise ShapeError(
            f"fold: {list(x.shape)} is not (N, C * {k[0]} * {k[1]}, {counts[0]} * {counts[1]}), "
            f"the columns of an image of {h} x {w}"
        )
    channels = x.shape[1] // (k[0] * k[1])
    y = g.reshape(x.node, (x.shape[0], channels, k[0], k[1], *counts))
    y = g.permute(y, (0, 1, 2, 4, 3, 5))
    y = _add_up(y, 2, h + 2 * p[0], s[0], d[0])  # (N, C, H, kw, ow)
    y = _add_up(y, 3, w + 2 * p[1], s[1], d[1])
    return x._result(pad_or_cut(y, [(0, 0), (0, 0), (-p[0], -p[0]), (-p[1], -p[1])]))


def _add_up(x: Node, axis: int, n: int, step: int, dilation: int) -> Node:
    """The transpose of `_windows`: axes (taps, windows) at `axis` become one of size n."""
    taps, count = x.shape[axis], x.shape[axis + 1]
    lead, tail = x.shape[:axis], x.shape[axis + 2 :]
    still: list[tuple[int, ...]] = [(0, 0)] * len(lead)
    ends: list[tuple[int, ...]] = [(0, 0)] * len(tail)
    width = n + dilation
    covered = (count - 1) * step + 1  # type: ignore[operator]
    spread = g.pad(x, [*still, (0, 0), (0, width - covered, step - 1), *ends])
    flat = g.reshape(spread, (*lead, taps * width, *tail))  # type: ignore[operator]
    flat = g.cut(flat, axis, 0, taps * n)  # type: ignore[operator]
    return g.total(g.reshape(flat, (*lead, taps, n, *tail)), (axis,))
