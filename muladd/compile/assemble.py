"""From groups of stages to kernels: names by position, arrays as arguments, and where each lies."""
from __future__ import annotations

from muladd.compile.cut import Cut
from muladd.compile.index import OPAQUE, forward
from muladd.compile.stages import Call, Draft, Group
from muladd.ir import Dim, Node, dtype, make, ops, rebuild, sym, toposort
from muladd.loop.kernel import Argument, Kernel, Stage


def layouts_of(cut: Cut, outputs: set[Node]) -> dict[Node, list[Node]]:
    """For arrays that only the compiler sees: the movements that its one user starts with, or the
    one of several that joins axes which it permutes.

    The array is stored as if they had been applied, so that the user reads it in order.
    """
    users: dict[Node, list[Node]] = {}
    for n in cut.order:
        for s in dict.fromkeys(n.srcs):
            users.setdefault(s, []).append(n)
    found = {}
    for n in (x for x in cut.order if x in cut.chosen and x not in cut.place):
        if n in outputs or any(u.op in OPAQUE for u in users.get(n, ())):
            continue
        chain: list[Node] = []
        nxt = _joining(users.get(n, []), users)
        while nxt is not None and nxt.op in (ops.PERMUTE, ops.RESHAPE) and nxt not in cut.chosen:
            chain.append(nxt)
            nxt = _only(users.get(nxt, [])) if nxt not in outputs else None
        while chain and chain[-1].op is ops.RESHAPE:
            chain.pop()
        if chain and not _interleaves(chain):
            found[n] = chain
    return found


def _only(users: list[Node]) -> Node | None:
    return users[0] if len(users) == 1 else None


def _joining(users: list[Node], all_users: dict[Node, list[Node]]) -> Node | None:
    """The only user; or the one permutation whose axes are joined after it, if the others take
    elements by all axes: they read them in any order alike."""
    if len(users) == 1 or any(u.op is ops.RESHAPE for u in users):
        return _only(users)
    permuted = [u for u in users if u.op is ops.PERMUTE
                and any(v.op is ops.RESHAPE and _axes_of(v) < _axes_of(u)
                        for v in all_users.get(u, ()))]  # fmt: skip
    return _only(permuted)


def _interleaves(chain: list[Node]) -> bool:
    """Whether a part of an axis comes to lie between the elements of another one, as the phases of
    a fractionally strided convolution do: these would be stored one by one."""
    for n in chain:
        if n.op is ops.PERMUTE and n.srcs[0].op is ops.RESHAPE and n.arg[-1] < len(n.arg) - 1:
            parts, whole = n.srcs[0].shape, n.srcs[0].srcs[0].shape
            size = sym.product(parts[n.arg[-1] :])
            if not any(ops.equal_dims(size, sym.product(whole[i:])) for i in range(len(whole))):
                return True
    return False


def _axes_of(n: Node) -> int:
    """How many axes there are to walk along."""
    return sum(not ops.equal_dims(d, 1) for d in n.shape)


def position(
    node: Node, indices: tuple[Dim, ...], layouts: dict[Node, list[Node]], cut: Cut
) -> Dim:
    """Where element `indices` of an array lies in memory; of a JOIN's part, in that of the JOIN."""
    if node in cut.place:
        node, number = cut.place[node]
        axis = node.arg
        start = sym.sum_of(p.shape[axis] for p in node.srcs[:number])
        at = sym.add(indices[axis], start)
        indices = (*indices[:axis], at, *indices[axis + 1 :])
    shape = node.shape
    for step in layouts.get(node, ()):
        indices, shape = forward(step, indices), step.shape
    return sym.flatten(indices, shape)


def assemble(
    group: Group, drafts: dict[Node, Draft], kept: set[Node], cut: Cut, layouts: dict, exact: bool
) -> Call:
    members = {d.node: d for d in group.drafts}
    ordered = [drafts[n] for n in drafts if n in members]
    stored = [d for d in ordered if d.node in kept or d.node in cut.place
              or _read_outside(d, group, members)]  # fmt: skip
    read = dict.fromkeys(p for d in ordered for p, _, _ in d.reads if p not in members)
    arrays = dict.fromkeys(map(cut.array, read))
    written = dict.fromkeys(cut.array(d.node) for d in stored)
    number = {n: i for i, n in enumerate({**arrays, **written})}
    shared, order, axes = _axes(group, ordered)
    home = {d.node: (f"s{i}", d.dims, order[d.node]) for i, d in enumerate(ordered)}
    resolve = _Resolver(home, number, layouts, cut, axes)
    stages = []
    for d in ordered:
        old, dims = d.stage, d.dims
        if d.scatter is not None:
            dims = tuple(d.scatter[1] if x is d.scatter[0] else x for x in dims)
        where: Dim = 0
        if d in stored:
            where = position(d.node, tuple(map(resolve.index, dims)), layouts, cut)
        stages.append(Stage(
            home[d.node][0], tuple(axes[a] for a in order[d.node]), resolve(old.value),
            old.reduction, tuple(axes[a] for a in old.reduced),
            number[cut.array(d.node)] if d in stored else None, where,
            d.scatter is not None, old.contracted, old.lanes,
        ))  # fmt: skip
    arguments = tuple(
        Argument(i, n.dtype, sym.product(n.shape), n in written) for n, i in number.items()
    )
    needs = frozenset(x for p in read for x in cut.behind(p))
    gives = frozenset(d.node for d in stored)
    return Call(Kernel(tuple(stages), shared, arguments, exact), tuple(number), needs, gives)


def _axes(
    group: Group, ordered: list[Draft]
) -> tuple[tuple[Node, ...], dict[Node, list[Node]], dict[Node, Node]]:
    """The shared axes of a kernel, the order of each draft's axes, shared ones first, and what
    every axis of a draft is called there: by position, so that equal work has one name."""
    shared = tuple(sym.axis(f"p{i}", next(iter(s.values())).arg.extent)
                   for i, s in enumerate(group.shared))  # fmt: skip
    axes = {s[d]: a for s, a in zip(group.shared, shared) for d in ordered}
    order: dict[Node, list[Node]] = {}
    count = 0
    for d in ordered:
        own = [a for a in d.axes if d.scatter is None or a is not d.scatter[0]]
        own.sort(key=lambda a: _rank(axes.get(a), shared))
        order[d.node] = own
        for a in (*own, *d.stage.reduced):
            if a not in axes:
                letter = "r" if a in d.stage.reduced else "f"
                axes[a] = sym.axis(f"{letter}{count}", a.arg.extent)
                count += 1
    return shared, order, axes


def _rank(name: Dim | None, shared: tuple[Node, ...]) -> int:
    return shared.index(name) if isinstance(name, Node) and name in shared else len(shared)


def _read_outside(d: Draft, group: Group, members: dict[Node, Draft]) -> bool:
    return any(
        producer is d.node and other not in group.drafts
        for g in group.after
        for other in g.drafts
        for producer, _, _ in other.reads
    )


class _Resolver:
    """Values in terms of one kernel: its names for axes, and READs of nodes as READs of its stages
    (home tells each one's name, dims and order of axes) or as LOADs of its arguments."""

    def __init__(
        self, home: dict[Node, tuple[str, tuple[Dim, ...], list[Node]]],
        number: dict[Node, int], layouts: dict, cut: Cut, axes: dict[Node, Node],
    ) -> None:  # fmt: skip
        self.home, self.number, self.layouts, self.cut = home, number, layouts, cut
        self.done: dict[Node, Node] = dict(axes)

    def index(self, x: Dim) -> Dim:
        return x if isinstance(x, int) else sym.as_dim(self(x))

    def __call__(self, value: Node) -> Node:
        done = self.done
        for n in toposort((value,), into=lambda m: m not in done):
            if n in done:
                continue
            srcs = tuple([done[s] for s in n.srcs])
            if n.op is ops.READ:
                done[n] = self._read(n, srcs)
            elif srcs == n.srcs:
                done[n] = n
            elif n.op in sym.FUNCTIONS and n.dtype is dtype.INDEX and sym.trusted(n):
                done[n] = sym.apply(n.op, srcs)
            else:
                done[n] = rebuild(n, srcs)
        return done[value]

    def _read(self, n: Node, srcs: tuple[Node, ...]) -> Node:
        producer, rank = n.arg
        if producer in self.home:
            name, dims, order = self.home[producer]
            index = dict(zip(dims, srcs))
            at = tuple(index[a] for a in order)
            return make(ops.READ, at, (name, len(at)), n.dtype)
        place = tuple(map(sym.as_dim, srcs[:rank]))
        flat = sym.as_node(position(producer, place, self.layouts, self.cut))
        array = self.number[self.cut.array(producer)]
        return make(ops.LOAD, (flat, *srcs[rank:]), array, n.dtype)
