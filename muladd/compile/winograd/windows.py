"""Convolutions, known by what a sum reads.

    sum over c, i, j of w[o, c, i, j] * x[n, c, y + i, x + j]

Whoever wrote it, and however the movement between is spelled: two axes are summed that are added to
places of results, and a third that is not.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from muladd.compile.index import Indexer, Indices
from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort
from muladd.ir.sym import Condition
from muladd.transform.build import reshape, slice_


@dataclass(frozen=True)
class Convolution:
    """image (N, C, height, width), of which windows see rows from start[0] on and columns from
    start[1] (what lies outside is zero); weight (O, C, r, r); and results (N, O, *size). `axes` are
    the axes of the sum's result that these four are, None for one that it lacks."""

    image: Node
    start: tuple[int, int]
    weight: Node
    size: tuple[int, int]
    axes: tuple[int | None, ...]

    @property
    def taps(self) -> int:
        r = self.weight.shape[-1]
        assert isinstance(r, int)
        return r

    def sizes(self) -> tuple[int, int, int]:
        """N, O and C."""
        (n, c), o = self.image.shape[:2], self.weight.shape[0]
        assert isinstance(n, int) and isinstance(c, int) and isinstance(o, int)
        return n, o, c

    def seen(self, h: int, w: int) -> Node:
        """The image from where windows begin, h rows and w columns of it."""
        slices: list[tuple[Dim, Dim, int]] = [(0, d, 1) for d in self.image.shape[:2]]
        pads = [(0, 0, 0), (0, 0, 0)]
        for start, size, n in zip(self.start, (h, w), self.image.shape[2:]):
            assert isinstance(n, int)
            low, high = max(start, 0), min(start + size, n)
            slices.append((low, high - low, 1))
            pads.append((low - start, start + size - high, 0))
        image = slice_(self.image, slices)
        some = any(low or high for low, high, _ in pads)
        return make(ops.PAD, (image,), (tuple(pads), 0.0)) if some else image


def convolution(n: Node) -> Convolution | None:
    """The convolution in float32, of static sizes, that a SUM is; None if it is none."""
    source = n.srcs[0]
    if source.op is not ops.MUL or n.dtype is not dtype.float32 or len(n.arg) < 3:
        return None
    if not all(isinstance(d, int) for d in source.shape):
        return None
    axes = [None if d == 1 else sym.axis(f"a{i}", d) for i, d in enumerate(source.shape)]
    if sum(axes[i] is not None for i in n.arg) != 3:
        return None
    places: Indices = tuple(0 if a is None else a for a in axes)
    for one, other in (source.srcs, source.srcs[::-1]):
        weight = _read(other, places)
        for stops in _bottoms(one) if weight is not None else ():
            image = _read(one, places, stops)
            found = image and weight and _matched(image, weight, other, axes, n.arg)
            if found:
                return found
    return None


def _bottoms(n: Node) -> list[tuple[Node, ...]]:
    """Where movement may be taken to end: at whatever is no movement, or sooner, at an array that
    has zeros around it (it may be part of another), or others' around it."""
    moved = toposort((n,), into=lambda m: m.op in ops.MOVEMENT)
    pads = [m for m in moved if m.op is ops.PAD]
    return [(), *((m if m.arg[1] else m.srcs[0],) for m in pads)]


def _read(n: Node, places: Indices, stops: Collection[Node] = ()) -> Node | None:
    """An element of n, its movement turned into indices: what is below is read, at `stops` or the
    end. None if it is not just that."""

    def reader(m: Node, indices: Indices, guard: Condition) -> Node | None:
        if m.op in ops.MOVEMENT and m not in stops:
            return None
        rest = () if guard is True else (sym.as_condition(guard),)
        return make(ops.READ, (*map(sym.as_node, indices), *rest), (m, len(indices)), m.dtype)

    found = Indexer(reader).at(n, places)
    return found if found.op is ops.READ else None


@dataclass(frozen=True)
class _Index:
    """One index of a read: a constant and axes of the sum, each once."""

    dimension: int
    axes: tuple[Node, ...]
    offset: int


def _indices(read: Node) -> list[_Index] | None:
    found = []
    for i, index in enumerate(read.srcs[: read.arg[1]]):
        terms = dict(sym.poly(sym.as_dim(index)))
        offset = terms.pop((), 0)
        if any(len(mono) != 1 or c != 1 or mono[0].op is not ops.RANGE
               for mono, c in terms.items()):  # fmt: skip
            return None
        found.append(_Index(i, tuple(a for mono in terms for a in mono), int(offset)))
    return found


def _matched(
    image: Node, weight: Node, side: Node, axes: list[Node | None], summed: Sequence[int]
) -> Convolution | None:
    """The convolution of what is read as `image` with `side`, which is read as `weight`."""
    found = _indices(image)
    if found is None or len(weight.srcs) > weight.arg[1]:
        return None
    reduced = {axes[i] for i in summed} - {None}
    of_weight = {*toposort((weight,))} & {a for a in axes if a is not None}
    alone = [x for x in found if len(x.axes) == 1 and not x.offset]
    two = [x for x in found if len(x.axes) == 2 and len(reduced & {*x.axes}) == 1]
    fixed = [x for x in found if not x.axes and not x.offset]
    channels = [x for x in alone if x.axes[0] in reduced]
    images = [x for x in alone if x.axes[0] not in reduced]
    outs = of_weight - reduced
    shape = (len(two), len(channels), len(images) < 2, len(outs))
    used = [a for x in found for a in x.axes] + [*outs]
    if shape != (2, 1, True, 1) or len(alone) + len(two) + len(fixed) != len(found) or \
            sorted(map(id, used)) != sorted(id(a) for a in axes if a is not None):  # fmt: skip
        return None  # an axis that both sides have would be one of groups
    sizes = image.arg[0].shape
    if any(sym.bounds(sizes[x.dimension])[0] < x.axes[0].arg.extent for x in alone):
        return None  # images or channels with zeros after them
    places = [next(a for a in x.axes if a not in reduced) for x in two]
    taps = [next(a for a in x.axes if a in reduced) for x in two]
    if taps[0].arg.extent != taps[1].arg.extent or not of_weight.issuperset(taps):
        return None
    (out,), number = outs, images[0].axes[0] if images else None
    left = [a for i, a in enumerate(axes) if i not in summed]
    made = Convolution(
        _as_image(image.arg[0], [*images, *channels], two), (two[0].offset, two[1].offset),
        _over(side, axes, [out, channels[0].axes[0], *taps]),
        (places[0].arg.extent, places[1].arg.extent),
        tuple(None if a is None else left.index(a) for a in (number, out, *places)),
    )  # fmt: skip
    return made if _reads(made, image, number, channels[0].axes[0], places, taps) else None


def _as_image(source: Node, alone: list[_Index], windows: list[_Index]) -> Node:
    """What is read, as (N, C, height, width): the first images and channels, and of all axes that
    are not among these the first place."""
    order = [x.dimension for x in (*alone, *windows)]
    rest = [i for i in range(source.ndim) if i not in order]
    read = dict.fromkeys(rest, 1) | {x.dimension: x.axes[0].arg.extent for x in alone}
    first = slice_(source, [(0, read.get(i, d), 1) for i, d in enumerate(source.shape)])
    turned = make(ops.PERMUTE, (first,), (*rest, *order))
    return reshape(turned, [*[1] * (4 - len(order)), *(first.shape[i] for i in order)])


def _over(side: Node, axes: list[Node | None], wanted: Sequence[Node]) -> Node:
    """A factor of the sum as an array over some of its axes, which are all that it depends on."""
    number = [axes.index(a) for a in wanted]
    left = [i for i in range(side.ndim) if i not in number]
    first = slice_(side, [(0, 1 if i in left else d, 1) for i, d in enumerate(side.shape)])
    return reshape(make(ops.PERMUTE, (first,), (*left, *number)), [side.shape[i] for i in number])


def _reads(c: Convolution, image: Node, number: Any, channel: Node, places: Any, taps: Any) -> bool:
    """Whether the image with zeros around it, and nothing else, is what the sum reads: the same
    place under the same condition."""
    whole = [size + c.taps - 1 for size in c.size]
    for start, size, n in zip(c.start, whole, c.image.shape[2:]):
        if not isinstance(n, int) or start >= n or start + size <= 0:
            return False  # of unknown size, or windows that see nothing
    at = (0 if number is None else number, channel, *map(sym.add, places, taps))
    return _read(c.seen(*whole), at, (image.arg[0],)) is image
