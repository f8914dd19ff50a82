"""From values to stages: what is computed for each node that gets one, before kernels are made."""
from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from muladd.compile.cut import Cut
from muladd.compile.gather import gather, scatter
from muladd.compile.index import Indexer, is_buffer
from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort
from muladd.loop.dots import factors
from muladd.loop.kernel import Kernel, Stage


@dataclass(eq=False)
class Draft:
    """A stage before it belongs to a kernel. dims has a RANGE or 0 for each axis of the node."""

    node: Node
    dims: tuple[Dim, ...]
    stage: Stage
    reads: list[tuple[Node, tuple[Node, ...], bool]]  # node, indices, guarded
    scatter: tuple[Node, Dim] | None = None  # the axis that is not a loop, and its index
    indexer: Indexer | None = None  # of a part of a JOIN, what wrote it out

    @property
    def axes(self) -> tuple[Node, ...]:
        return self.stage.axes

    @cached_property
    def work(self) -> int:
        """Iterations, at most."""
        dims = [a.arg.extent for a in (*self.stage.axes, *self.stage.reduced)]
        return sym.bounds(sym.product(dims))[1]

    @cached_property
    def reuses(self) -> bool:
        """Whether it reads its operands several times each, as a matrix product does."""
        if not self.stage.reduced:
            return False
        sources = dict.fromkeys(r for r, _, _ in self.reads)
        seen = sum(sym.bounds(sym.product(n.shape))[1] for n in sources)
        return self.work > 4 * max(seen, 1)

    @cached_property
    def by_bytes(self) -> bool:
        """Whether it adds up products of bytes, for which machines have instructions."""
        return factors(self.stage) is not None

    @cached_property
    def is_window(self) -> bool:
        """Whether neighbouring results share what they read, as those of a convolution do. Its
        loops go along the neighbours, and a product of channels at each would be in the way."""
        return any(self._overlaps(i) for _, indices, _ in self.reads for i in indices)

    def _overlaps(self, index: Node) -> bool:
        """Whether an index is the same for several pairs of a result's place and a reduced one."""
        if index.op is ops.RANGE:
            return False
        own, reduced = set(self.axes), set(self.stage.reduced)
        inside, pairs = set(toposort((index,))), 1
        if not inside & own or not inside & reduced:
            return False
        for atom in dict.fromkeys(atom for term in sym.poly(index) for atom in term):
            axes = (own | reduced) & set(toposort((atom,)))
            values = sym.bounds(sym.product(a.arg.extent for a in axes))[1]
            if not (axes & own and axes & reduced):  # one of p % 2 has two, however many p are
                low, high = sym.bounds(atom)
                values = min(values, high - low + 1)
            pairs *= values
        low, high = sym.bounds(index)
        return high - low + 1 < pairs


@dataclass(eq=False)
class Group:
    """A kernel in the making. shared[i] lists, per draft, the axis that is shared axis number i."""

    drafts: list[Draft]
    shared: list[dict[Draft, Node]]
    before: set[Group] = field(default_factory=set)  # groups this one reads from
    after: set[Group] = field(default_factory=set)
    order: int = 0  # the last of its nodes' places in the graph's order
    first: int = 0  # the first of them
    joined: bool = False  # parts of an array are computed side by side here
    wide: set[Group] = field(default_factory=set)  # all groups in which they are

    def points(self) -> int:
        """How many points the shared axes have, at most."""
        return sym.bounds(sym.product(next(iter(s.values())).arg.extent for s in self.shared))[1]


@dataclass(frozen=True)
class Call:
    """A kernel, the graph node (array) that each of its arguments is, and the nodes that must be
    there before it runs and are afterwards. (Of a JOIN's array, kernels make a part each.)"""

    kernel: Kernel
    arguments: tuple[Node, ...]
    needs: frozenset[Node]
    gives: frozenset[Node]


def draft(node: Node, cut: Cut, number: int, exact: bool, like: Draft | None = None) -> Draft:
    """The draft of a node; `like` is that of a part which it is computed beside, over whose axes
    it is written, so that what they have in common is one expression."""
    if like is not None and like.indexer is not None:
        dims, axes, indexer = like.dims, like.axes, like.indexer
    else:
        dims = tuple(0 if ops.equal_dims(n, 1) else sym.axis(f"x{number}_{i}", n)
                     for i, n in enumerate(node.shape))  # fmt: skip
        axes = tuple(d for d in dims if isinstance(d, Node))
        indexer = _indexer(node, cut, exact)
    stage = _stage(node, dims, axes, indexer, f"n{number}", exact)
    scattered = scatter(stage) if stage.reduced else None
    if scattered is not None:
        stage = scattered[0]
    reads = []
    found = stage.reads()
    if scattered is not None and isinstance(scattered[2], Node):
        found += [n for n in toposort((scattered[2],)) if n.op is ops.READ and n not in found]
    for r in found:
        producer, rank = r.arg
        reads.append((producer, r.srcs[:rank], len(r.srcs) > rank))
    beside = indexer if node in cut.place else None
    return Draft(node, dims, stage, reads, scattered[1:] if scattered else None, beside)


def _indexer(node: Node, cut: Cut, exact: bool) -> Indexer:
    """What writes a node out: other stages and arrays are read."""
    # exact: a sum multiplies and adds with one rounding, whoever else wants the product
    inlined = node.srcs[0] if exact and _contracted(node) else None
    written = {node}
    if node in cut.place and cut.place[node][0] in cut.together:
        written.update(cut.place[node][0].srcs)

    def reader(n: Node, idx: tuple[Dim, ...], guard: object) -> Node | None:
        if n in written or n is inlined or not (n in cut.chosen or is_buffer(n)):
            return None
        srcs = tuple(map(sym.as_node, idx))
        if guard is not True:
            srcs += (guard if isinstance(guard, Node) else make(ops.CONST, (), guard, dtype.bool_),)
        return make(ops.READ, srcs, (n, len(idx)), n.dtype)

    return Indexer(reader)


def _stage(node: Node, dims: tuple, axes: tuple, indexer: Indexer, name: str, exact: bool) -> Stage:
    if node.op.group != "reduce":
        return Stage(name, axes, indexer.at(node, dims))
    source = node.srcs[0]
    full: list[Dim] = []
    reduced: list[Node] = []
    it = iter(dims)
    for i, n in enumerate(source.shape):
        if i not in node.arg:
            full.append(next(it))
        elif ops.equal_dims(n, 1):
            full.append(0)
        else:
            r = sym.axis(f"{name}r{i}", n)
            reduced.append(r)
            full.append(r)
    value = indexer.at(source, tuple(full))
    contracted = _contracted(node)
    if not reduced:
        return Stage(name, axes, _of_one(node, value) if exact else value)
    lanes = 1
    if exact and node.dtype.is_float:
        innermost = max(i for i, n in enumerate(source.shape) if not ops.equal_dims(n, 1))
        lanes = 64 if innermost in node.arg else 1
    stage = Stage(name, axes, value, node.op, tuple(reduced), contracted=contracted, lanes=lanes)
    return gather(stage, exact)


def _contracted(node: Node) -> bool:
    """Whether a reduction is a sum directly over a product of floats."""
    return node.op is ops.SUM and node.dtype.is_float and node.srcs[0].op is ops.MUL


def _of_one(node: Node, value: Node) -> Node:
    """A reduction over axes of one element, begun as the exact profile says: at +0 or the least."""
    d = node.dtype
    if not d.is_float:
        return value
    if node.op is ops.AMAX:
        return make(ops.MAX, (make(ops.CONST, (), d.min, d), value))
    wide = d if d.bits >= 32 else dtype.float32
    zero = make(ops.CONST, (), 0.0, wide)
    cast = lambda x, to: x if x.dtype is to else make(ops.CAST, (x,), None, to)  # noqa: E731
    if _contracted(node):
        a, b = (cast(x, wide) for x in value.srcs)
        return cast(make(ops.FMA, (a, b, zero)), d)
    return cast(make(ops.ADD, (zero, cast(value, wide))), d)
