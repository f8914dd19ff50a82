"""Windows of strided convolutions, over an image whose places are sorted by their phase.

Of a stride s, a window's tap r reads s * p + r - low for the result p. With the image as rows of s
places, turned into s images of every s-th place each, that is place p + (r - low) div s of image
(r - low) mod s: results side by side read places side by side.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from muladd.ir import Dim, Node
from muladd.tensor import graph as g
from muladd.tensor import windows as overlapping
from muladd.tensor.windows import pad_or_cut, window_count


def serves(
    sizes: Sequence[Dim], taps: Sequence[Any], pads: Sequence[tuple[int, int]],
    steps: Sequence[int], dilations: Sequence[int],
) -> bool:  # fmt: skip
    """Whether such windows can be had and overlap: of known sizes, a stride along the last axis."""
    plain = steps[-1] == 1 or min(steps) < 1 or set(dilations) != {1}
    if plain or not all(isinstance(n, int) for n in (*sizes, *taps)):
        return False
    whole = [n + sum(p) for n, p in zip(sizes, pads)]  # type: ignore[operator]
    fit = all(n >= k for n, k in zip(whole, taps))
    return fit and any(k > s for k, s in zip(taps, steps))


def windows(
    x: Node, taps: Sequence[Any], pads: Sequence[tuple[int, int]], steps: Sequence[int]
) -> Node:
    """(N, C, *S) to (*taps, N, C, *pixels)."""
    d, (n, channels) = len(steps), x.shape[:2]
    sizes: Sequence[Any] = x.shape[2:]
    counts = [window_count(m + sum(p), k, s, 1) for m, k, p, s in zip(sizes, taps, pads, steps)]
    whole = [-(-m // s) for m, s in zip(sizes, steps)]
    first = [-low % s for (low, _), s in zip(pads, steps)]  # the phase of tap 0
    met = [-(-(f + k) // s) for f, k, s in zip(first, taps, steps)]  # taps along each image
    x = g.pad(x, [(0, 0), (0, 0), *((0, w * s - m) for w, s, m in zip(whole, steps, sizes))])
    x = g.reshape(x, (n, channels, *(k for pair in zip(whole, steps) for k in pair)))
    x = g.permute(x, (0, 1, *range(3, 3 + 2 * d, 2), *range(2, 2 + 2 * d, 2)))
    edges = []
    for (low, _), f, s, m, w, count in zip(pads, first, steps, met, whole, counts):
        before = (low + f) // s
        edges.append((before, count + m - 1 - w - before))
    x = pad_or_cut(x, [(0, 0)] * (2 + d) + edges)
    x = overlapping.windows(x, range(2 + d, 2 + 2 * d), met, (1,) * d, (1,) * d)
    # (*met, N, C, *steps, *pixels), whose met and steps make taps
    order = [j for i in range(d) for j in (i, d + 2 + i)]
    x = g.permute(x, (*order, d, d + 1, *range(2 * d + 2, 3 * d + 2)))
    x = g.reshape(x, (*(m * s for m, s in zip(met, steps)), n, channels, *counts))
    spec = [(f, k, 1) for f, k in zip(first, taps)]
    return g.slice_(x, [*spec, *((0, m, 1) for m in x.shape[d:])])
