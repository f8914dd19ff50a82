"""From graph to kernels: a stage per cut node, then producers merged into their users' kernels.

A merge is legal when every read between the two kernels happens at equal points of the axes they
will share, and no third kernel lies between them. It is worth it by the few rules at the end of
this file. What is left of a kernel's results that nobody else reads never reaches memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from muladd.compile.cut import Cut, elements
from muladd.compile.gather import gather, scatter
from muladd.compile.index import OPAQUE, Indexer, forward, is_buffer
from muladd.ir import Dim, Node, dtype, make, ops, sym, toposort
from muladd.loop.kernel import Argument, Kernel, Stage, canonical, reaxis


@dataclass(eq=False)
class Draft:
    """A stage before it belongs to a kernel. dims has a RANGE or 0 for each axis of the node."""

    node: Node
    dims: tuple[Dim, ...]
    stage: Stage
    reads: list[tuple[Node, tuple[Node, ...], bool]]  # node, indices, guarded
    scatter: tuple[Node, Dim] | None = None  # the axis that is not a loop, and its index

    @property
    def axes(self) -> tuple[Node, ...]:
        return self.stage.axes

    def work(self) -> int:
        """Iterations, at most."""
        dims = [a.arg.extent for a in (*self.stage.axes, *self.stage.reduced)]
        return sym.bounds(sym.product(dims))[1]


@dataclass(eq=False)
class Group:
    """A kernel in the making. shared[i] lists, per draft, the axis that is shared axis number i."""

    drafts: list[Draft]
    shared: list[dict[Draft, Node]]
    before: set[Group] = field(default_factory=set)  # groups this one reads from
    after: set[Group] = field(default_factory=set)
    order: int = 0  # the last of its nodes' places in the graph's order
    first: int = 0  # the first of them

    def points(self) -> int:
        """How many points the shared axes have, at most."""
        return sym.bounds(sym.product(next(iter(s.values())).arg.extent for s in self.shared))[1]


@dataclass(frozen=True)
class Call:
    """A kernel and the graph node (array) that each of its arguments is."""

    kernel: Kernel
    arguments: tuple[Node, ...]


def fuse(outputs: Iterable[Node], exact: bool = False) -> list[Call]:
    """The kernels of a graph, in an order in which they can run."""
    outputs = list(outputs)
    cut = Cut(outputs)
    layouts = _layouts(cut, set(outputs))
    drafts = {n: _draft(n, cut, i, exact) for i, n in enumerate(cut.stages)}
    groups = _merge(drafts, cut.order)
    kept = set(outputs)
    for n in cut.order:
        if n.op in OPAQUE:
            kept.update(n.srcs)
    return [_assemble(g, drafts, kept, layouts, exact) for g in groups]


# --- stages --------------------------------------------------------------------------------------


def _draft(node: Node, cut: Cut, number: int, exact: bool) -> Draft:
    dims = tuple(0 if ops.equal_dims(n, 1) else sym.axis(f"x{number}_{i}", n)
                 for i, n in enumerate(node.shape))  # fmt: skip
    axes = tuple(d for d in dims if isinstance(d, Node))
    # exact: a sum multiplies and adds with one rounding, whoever else wants the product
    inlined = node.srcs[0] if exact and _contracted(node) else None

    def reader(n: Node, idx: tuple[Dim, ...], guard: object) -> Node | None:
        if n is node or n is inlined or not (n in cut.chosen or is_buffer(n)):
            return None
        srcs = tuple(map(sym.as_node, idx))
        if guard is not True:
            srcs += (guard if isinstance(guard, Node) else make(ops.CONST, (), guard, dtype.bool_),)
        return make(ops.READ, srcs, (n, len(idx)), n.dtype)

    indexer = Indexer(reader)
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
    return Draft(node, dims, stage, reads, scattered[1:] if scattered else None)


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


# --- merging -------------------------------------------------------------------------------------


def _merge(drafts: dict[Node, Draft], order: list[Node]) -> list[Group]:
    home: dict[Node, Group] = {}
    scans: dict[tuple, Group] = {}
    for number, n in enumerate(order):
        if n in drafts:
            d = drafts[n]
            g = Group([d], [{d: a} for a in d.axes], order=number, first=number)
            if d.scatter is not None:  # the compared axis is no loop
                g.shared = [s for s in g.shared if s[d] is not d.scatter[0]]
            reads = [producer for producer, _, _ in d.reads]
        elif n.op in OPAQUE:  # runs between kernels, so it takes part in their order
            g = scans.setdefault((n.op, n.srcs, replace(n.arg, out=0)), Group([], [], order=number,
                                                                          first=number))
            reads = list(n.srcs)
        else:
            continue
        home[n] = g
        for producer in reads:
            if producer in home:
                g.before.add(home[producer])
                home[producer].after.add(g)
    edges = [(p, n) for n, d in drafts.items() for p in dict.fromkeys(p for p, _, _ in d.reads)]
    # the largest arrays first: what a merge makes of the axes may rule out another
    for producer, n in sorted(edges, key=lambda e: -elements(e[0])):
        if producer in drafts and home[producer] is not home[n]:
            _try(home[producer], home[n], home, drafts)
    return [g for g in _in_order(set(home.values())) if g.drafts]


def _try(p: Group, c: Group, home: dict[Node, Group], drafts: dict[Node, Draft]) -> None:
    shared = _common_axes(p, c, home)
    if shared is None or not _worth(p, c, shared) or _between(p, c):
        return
    merged = Group(p.drafts + c.drafts, shared, (p.before | c.before) - {p, c},
                   (p.after | c.after) - {p, c}, max(p.order, c.order),
                   min(p.first, c.first))  # fmt: skip
    for d in merged.drafts:
        home[d.node] = merged
    for other in merged.before:
        other.after -= {p, c}
        other.after.add(merged)
    for other in merged.after:
        other.before -= {p, c}
        other.before.add(merged)


def _common_axes(p: Group, c: Group, home: dict[Node, Group]) -> list[dict[Draft, Node]] | None:
    """The axes that all reads of p by c agree on; None if a read cannot stay inside a kernel."""
    links: set[tuple[int, int]] | None = None
    for d in c.drafts:
        for producer, indices, guarded in d.reads:
            if home.get(producer) is not p:
                continue
            source = next(x for x in p.drafts if x.node is producer)
            if guarded or source.scatter is not None or d.scatter is not None:
                return None
            here: set[tuple[int, int]] = set()
            for dim, index in zip(source.dims, indices):
                for i, s in enumerate(p.shared):
                    if s[source] is not dim:
                        continue
                    for j, t in enumerate(c.shared):
                        same = isinstance(dim, Node) and ops.equal_dims(
                            dim.arg.extent, t[d].arg.extent
                        )
                        if t[d] is index and same:
                            here.add((i, j))
            links = here if links is None else links & here
    if links is None:
        return None
    return [p.shared[i] | c.shared[j] for i, j in sorted(links, key=lambda x: x[1])]


def _between(p: Group, c: Group) -> bool:
    """Whether some other group must run after p and before c."""
    todo = [g for g in p.after if g is not c]
    seen: set[Group] = set(todo)
    while todo:
        g = todo.pop()
        if c in g.after:
            return True
        for n in g.after:
            if n not in seen and n.first <= c.order:
                seen.add(n)
                todo.append(n)
    return False


def _in_order(groups: set[Group]) -> list[Group]:
    waiting = {g: len(g.before) for g in groups}
    ready = sorted((g for g, n in waiting.items() if n == 0), key=lambda g: -g.order)
    out = []
    while ready:
        g = ready.pop()
        out.append(g)
        for n in sorted(g.after, key=lambda g: -g.order):
            waiting[n] -= 1
            if waiting[n] == 0:
                ready.append(n)
    return out


# --- when a merge is worth it --------------------------------------------------------------------

_SMALL_WORK = 1 << 14  # iterations: below this, saving a launch beats using all cores
_ROW = 1 << 17  # elements of a row buffer, at most
_PANEL = 1 << 17  # elements of a matrix that every point of a kernel may read again
_ENOUGH_POINTS = 8
_MOST_STAGES = 48
_MOST_ARGUMENTS = 48


def _worth(p: Group, c: Group, shared: list[dict[Draft, Node]]) -> bool:
    drafts = p.drafts + c.drafts
    if (
        len(drafts) > _MOST_STAGES
        or len({r for d in drafts for r, _, _ in d.reads}) > _MOST_ARGUMENTS
    ):
        return False
    group = Group(drafts, shared)
    points = group.points()
    work = max(d.work() for d in drafts)
    if work <= _SMALL_WORK:
        return True
    lost = min(p.points(), c.points()) > points
    if lost and points < _ENOUGH_POINTS:
        return False
    if points < _ENOUGH_POINTS <= p.points() and _is_sum(p):  # a sum's parts, and their sum
        return False
    for d in drafts:
        inside = [s[d] for s in shared]
        free = [a for a in d.axes if a not in inside]
        row = sym.bounds(sym.product(a.arg.extent for a in free))[1]
        if row > _ROW:
            return False
        if _reuses(d) and free:
            depth = sym.bounds(sym.product(a.arg.extent for a in d.stage.reduced))[1]
            if depth * row > _PANEL:
                return False
    return True


def _is_sum(p: Group) -> bool:
    """Whether most of a kernel's work is a reduction, whose results are few."""
    return max(p.drafts, key=lambda d: d.work()).stage.reduction is not None


def _reuses(d: Draft) -> bool:
    """Whether a stage reads its operands several times each, as a matrix product does."""
    if not d.stage.reduced:
        return False
    total = sym.bounds(sym.product(a.arg.extent for a in (*d.axes, *d.stage.reduced)))[1]
    seen = sum(sym.bounds(sym.product(n.shape))[1] for n in dict.fromkeys(r for r, _, _ in d.reads))
    return total > 4 * max(seen, 1)


# --- layouts and assembly ------------------------------------------------------------------------


def _layouts(cut: Cut, outputs: set[Node]) -> dict[Node, list[Node]]:
    """For arrays that only the compiler sees: the movements that its one user starts with.

    The array is stored as if they had been applied, so that the user reads it in order.
    """
    users: dict[Node, list[Node]] = {}
    for n in cut.order:
        for s in dict.fromkeys(n.srcs):
            users.setdefault(s, []).append(n)
    found = {}
    for n in cut.stages:
        chain: list[Node] = []
        at = n
        while at not in outputs and len(users.get(at, ())) == 1:
            nxt = users[at][0]
            if nxt.op not in (ops.PERMUTE, ops.RESHAPE) or nxt in cut.chosen:
                break
            chain.append(nxt)
            at = nxt
        while chain and chain[-1].op is ops.RESHAPE:
            chain.pop()
        if chain and n not in outputs and not any(u.op in OPAQUE for u in users.get(n, ())):
            found[n] = chain
    return found


def position(node: Node, indices: tuple[Dim, ...], layouts: dict[Node, list[Node]]) -> Dim:
    """Where element `indices` of an array lies in memory."""
    shape = node.shape
    for step in layouts.get(node, ()):
        indices, shape = forward(step, indices), step.shape
    return sym.flatten(indices, shape)


def _assemble(
    group: Group, drafts: dict[Node, Draft], kept: set[Node], layouts: dict, exact: bool
) -> Call:
    members = {d.node: d for d in group.drafts}
    ordered = [drafts[n] for n in drafts if n in members]
    stored = [d for d in ordered if d.node in kept or _read_outside(d, group, members)]
    arrays: list[Node] = []
    written: set[Node] = set()
    for d in ordered:
        for producer, _, _ in d.reads:
            if producer not in members and producer not in arrays:
                arrays.append(producer)
    for d in stored:
        arrays.append(d.node)
        written.add(d.node)
    number = {n: i for i, n in enumerate(arrays)}
    shared = tuple(sym.axis(f"p{i}", next(iter(s.values())).arg.extent)
                   for i, s in enumerate(group.shared))  # fmt: skip
    stages = []
    named = {d: {s[d]: a for s, a in zip(group.shared, shared)} for d in ordered}
    order = {d.node: sorted((a for a in d.axes if d.scatter is None or a is not d.scatter[0]),
                            key=lambda a: _rank(named[d].get(a), shared))
             for d in ordered}  # fmt: skip
    for d in ordered:
        names: dict[Node, Dim] = dict(named[d])
        value = _resolve(d.stage.value, members, order, number, layouts)
        dims: tuple[Dim, ...] = d.dims
        axes = tuple(order[d.node])
        if d.scatter is not None:
            at = d.scatter[1]
            at = _resolve(at, members, order, number, layouts) if isinstance(at, Node) else at
            dims = tuple(at if x is d.scatter[0] else x for x in dims)
        where = position(d.node, dims, layouts) if d in stored else 0
        stage = Stage(
            d.stage.name, tuple(named[d].get(a, a) for a in axes),
            reaxis(value, names, {}), d.stage.reduction, d.stage.reduced,
            number[d.node] if d in stored else None,
            where if isinstance(where, int) else _dim(reaxis(where, names, {})),
            d.scatter is not None, d.stage.contracted, d.stage.lanes,
        )  # fmt: skip
        stages.append(stage)
    arguments = tuple(
        Argument(i, n.dtype, sym.product(n.shape), n in written) for n, i in number.items()
    )
    stages = [s if s.argument is not None or not s.scatter else s for s in stages]
    return Call(canonical(Kernel(tuple(stages), shared, arguments, exact)), tuple(arrays))


def _rank(name: Dim | None, shared: tuple[Node, ...]) -> int:
    return shared.index(name) if isinstance(name, Node) and name in shared else len(shared)


def _read_outside(d: Draft, group: Group, members: dict[Node, Draft]) -> bool:
    return any(
        producer is d.node and other not in group.drafts
        for g in group.after
        for other in g.drafts
        for producer, _, _ in other.reads
    )


def _dim(n: Node) -> Dim:
    return n.arg if n.op is ops.CONST else n


def _resolve(
    value: Node,
    members: dict,
    order: dict[Node, list[Node]],
    number: dict[Node, int],
    layouts: dict,
) -> Node:
    """READs of nodes become READs of stages in this kernel, or LOADs of its arguments."""
    done: dict[Node, Node] = {}
    for n in toposort((value,)):
        srcs = tuple(done[s] for s in n.srcs)
        if n.op is ops.READ:
            producer, rank = n.arg
            if producer in members:
                name = members[producer].stage.name
                index = dict(zip(members[producer].dims, srcs))
                at = [index[a] for a in order[producer]]
                done[n] = make(ops.READ, tuple(at), (name, len(at)), n.dtype)
            else:
                flat = position(producer, tuple(map(_dim, srcs[:rank])), layouts)
                done[n] = make(
                    ops.LOAD, (sym.as_node(flat), *srcs[rank:]), number[producer], n.dtype
                )
        elif n.op in (ops.ADD, ops.MUL, ops.DIV, ops.MOD) and sym.trusted(n) \
                and any(a is not b for a, b in zip(srcs, n.srcs)):  # fmt: skip
            f = {ops.ADD: sym.add, ops.MUL: sym.mul, ops.DIV: sym.div, ops.MOD: sym.mod}[n.op]
            done[n] = sym.as_node(f(*map(_dim, srcs)))
        elif any(a is not b for a, b in zip(srcs, n.srcs)):
            needs = n.op in (ops.CAST, ops.BITCAST)
            done[n] = make(n.op, srcs, n.arg, n.dtype if needs else None)
        else:
            done[n] = n
    return done[value]
