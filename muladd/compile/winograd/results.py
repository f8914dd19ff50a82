"""Results of a convolution in tiles, and what is done with each of them before it is stored."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from muladd.compile.winograd.points import Grid, stacked
from muladd.ir import Dim, Node, make, ops, rebuild, toposort
from muladd.transform.build import reshape, slice_

_DEEP = 8  # operations in a row that make a number for a channel
_MOST = 24  # operations on results that are done in place


@dataclass(frozen=True)
class Results:
    """parts[p][q] (O, N, down, along) is every m-th result from row p and column q on. `shape` is
    that of the node which they take the place of, and `axes` those of its axes that are N, O,
    height and width (None: it lacks one, of one element)."""

    parts: Grid
    shape: tuple[Dim, ...]
    axes: tuple[int | None, ...]

    def node(self) -> Node:
        """The results in the place that they have."""
        m = len(self.parts)
        o, n, down, along = self.parts[0][0].shape
        assert isinstance(down, int) and isinstance(along, int)
        y = reshape(stacked(self.parts), [m, m, o, n, down, along])
        y = make(ops.PERMUTE, (y,), (3, 2, 4, 0, 5, 1))
        y = reshape(y, [n, o, down * m, along * m])
        h, w = (1 if a is None else self.shape[a] for a in self.axes[2:])
        y = slice_(y, [(0, n, 1), (0, o, 1), (0, h, 1), (0, w, 1)])
        order = sorted(range(4), key=self._rank)
        return reshape(make(ops.PERMUTE, (y,), tuple(order)), self.shape)

    def _rank(self, i: int) -> int:
        a = self.axes[i]
        return -1 if a is None else a

    def reshaped(self, shape: tuple[Dim, ...]) -> Results | None:
        """The same where axes of one element come or go; None if others do."""
        before = [i for i, d in enumerate(self.shape) if d != 1]
        after = [i for i, d in enumerate(shape) if d != 1]
        if [self.shape[i] for i in before] != [shape[i] for i in after]:
            return None
        now = dict(zip(before, after))
        axes = tuple(None if a is None else now.get(a) for a in self.axes)
        return replace(self, shape=shape, axes=axes)

    def whole(self, x: Node, depth: int = _DEEP) -> Node | None:
        """A value of this shape that is one number for each image and channel, as (O, N, 1, 1);
        None for another."""
        o, n = self.parts[0][0].shape[:2]
        if x.op.elementwise and depth:
            srcs = [w for s in x.srcs if (w := self.whole(s, depth - 1)) is not None]
            return rebuild(x, tuple(srcs)) if len(srcs) == len(x.srcs) else None
        if x.op is not ops.EXPAND:
            return None
        source = reshape(x.srcs[0], [*[1] * (x.ndim - x.srcs[0].ndim), *x.srcs[0].shape])
        images, channels, *places = (1 if a is None else source.shape[a] for a in self.axes)
        if places != [1, 1]:
            return None
        if self._rank(0) < self._rank(1):
            source = make(ops.PERMUTE, (reshape(source, [images, channels]),), (1, 0))
        return make(ops.EXPAND, (reshape(source, [channels, images, 1, 1]),), (o, n, 1, 1))


@dataclass
class Graph:
    """A graph that is made anew: `done` tells what nodes have become, `passed` which nobody asks
    for any more."""

    outputs: Collection[Node]
    users: dict[Node, list[Node]]
    done: dict[Node, Node]
    passed: set[Node]

    @classmethod
    def over(cls, order: list[Node], outputs: Collection[Node]) -> Graph:
        users: dict[Node, list[Node]] = {n: [] for n in order}
        for n in order:
            for s in dict.fromkeys(n.srcs):
                users[s].append(n)
        return cls(outputs, users, {}, set())

    def again(self, n: Node) -> Node:
        """n over what its sources have become."""
        srcs = tuple(self.done[s] for s in n.srcs)
        return n if all(a is b for a, b in zip(srcs, n.srcs)) else rebuild(n, srcs)

    def followed(self, n: Node, results: Results) -> tuple[Node, Results]:
        """What is done with the results of n is done where they are: a bias, a norm's factors, an
        activation. The last such node, if nobody looks at what lies between, and its results."""
        region: dict[Node, Results] = {n: results}
        last, between = n, set[Node]()
        while len(region) < _MOST:
            live = [x for x in region if x in self.outputs
                    or any(u not in region for u in self.users[x])]  # fmt: skip
            if len(live) == 1:
                last, between = live[0], {x for x in region if x is not live[0]}
            users = dict.fromkeys(u for x in region for u in self.users[x] if u not in region)
            more = next(((u, r) for u in users if (r := self._in_place(u, region))), None)
            if more is None:
                break
            region[more[0]] = more[1]
        self.passed |= between
        return last, region[last]

    def _in_place(self, u: Node, region: dict[Node, Results]) -> Results | None:
        """An operation on results that are in place, and numbers for a whole image each."""
        inside = [region[s] for s in u.srcs if s in region]
        like = inside[0]
        if u.op is ops.RESHAPE:
            return like.reshaped(u.shape)
        if not u.op.elementwise or any(r.shape != u.shape for r in inside):
            return None
        others = [s for s in u.srcs if s not in region]
        flat = {s: w for s in others if (w := like.whole(s)) is not None}
        below = toposort(flat.values(), into=lambda m: m not in self.done)
        if len(flat) < len({*others}) or any(m in region for m in below):
            return None
        for m in below:
            if m not in self.done:
                self.done[m] = self.again(m)
        parts: Grid = [[] for _ in like.parts]
        for i, row in enumerate(like.parts):
            for j, x in enumerate(row):
                srcs = tuple(region[s].parts[i][j] if s in region
                             else make(ops.EXPAND, (self.done[flat[s]],), x.shape)
                             for s in u.srcs)  # fmt: skip
                parts[i].append(rebuild(u, srcs))
        return replace(like, parts=parts)
