"""From graph to kernels: a stage per cut node, then producers merged into their users' kernels.

A merged kernel has the axes that its stages *share*: a stage reads another one's results only
where these axes have the values that they have for itself. Of a softmax

    top[i] = max over j of x[i, j]
    raised[i, j] = exp(x[i, j] - top[i])
    total[i] = sum over j of raised[i, j]

raised reads top at its own row i, and total reads raised at its own row i, but at all columns. So
they share i, and the merged kernel does a row at a time. Had total been over i, of raised[i, j] for
each j, it would share j with raised, but raised shares only i with top: no axis is left for all
three, and total stays a kernel of its own.

A merge is legal if no third kernel lies between the two, and it is worth it by the few rules at the
end of this file. Results that nobody outside of their kernel reads never reach memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from muladd.compile.assemble import assemble, layouts_of
from muladd.compile.cut import Cut, elements
from muladd.compile.index import OPAQUE
from muladd.compile.partial import is_product
from muladd.compile.stages import Call, Draft, Group, draft
from muladd.errors import GraphError
from muladd.ir import Node, ops, sym, toposort


def fuse(outputs: Iterable[Node], exact: bool = False) -> list[Call]:
    """The kernels of a graph, in an order in which they can run."""
    outputs = list(outputs)
    cut = Cut(outputs)
    layouts = layouts_of(cut, set(outputs))
    drafts: dict[Node, Draft] = {}
    for i, n in enumerate(cut.stages):
        first = cut.beside(n)
        drafts[n] = draft(n, cut, i, exact, drafts[first] if first is not None else None)
    apart: set[Draft] = set()
    groups = _merge(drafts, cut, apart)
    while found := {d for g in groups for d in _tiles(g)} - apart:
        apart |= found
        groups = _merge(drafts, cut, apart)
    kept = set(outputs)
    for n in cut.order:
        if n.op in OPAQUE:
            kept.update(n.srcs)
    calls = [assemble(g, drafts, kept, cut, layouts, exact) for g in groups]
    _freed({*groups, *(n for g in groups for n in g.before | g.after)})
    return calls


def _freed(groups: Iterable[Group]) -> None:
    """Groups that refer to each other would stay, with all they refer to."""
    for g in groups:
        g.before.clear()
        g.after.clear()


# --- merging -------------------------------------------------------------------------------------


def _merge(drafts: dict[Node, Draft], cut: Cut, apart: set[Draft]) -> list[Group]:
    """The groups that drafts become. Products that are to be apart are not merged as tiles."""
    home: dict[Node, Group] = {}
    scans: dict[tuple, Group] = {}
    wide: set[Group] = set()
    for number, n in enumerate(cut.order):
        if n in drafts:
            d = drafts[n]
            g = Group([d], [{d: a} for a in d.axes], order=number, first=number, wide=wide)
            if d.scatter is not None:  # the compared axis is no loop
                g.shared = [s for s in g.shared if s[d] is not d.scatter[0]]
            reads = [producer for producer, _, _ in d.reads]
        elif n.op in OPAQUE:  # runs between kernels, so it takes part in their order
            g = Group([], [], order=number, first=number, wide=wide)
            g = scans.setdefault((n.op, n.srcs, replace(n.arg, out=0)), g)
            reads = list(n.srcs)
        else:
            continue
        home[n] = g
        for producer in (x for r in reads for x in cut.behind(r)):
            if producer in home:
                g.before.add(home[producer])
                home[producer].after.add(g)
    for n, d in drafts.items():
        first = cut.beside(n)
        if first is not None:
            _beside(home[first], d, home)
    edges = [(p, n) for n, d in drafts.items() for p in dict.fromkeys(p for p, _, _ in d.reads)]
    # the largest arrays first: what a merge makes of the axes may rule out another
    tried: set[tuple[Group, Group]] = set()
    for producer, n in sorted(edges, key=lambda e: -elements(e[0])):
        if producer in drafts and (pair := (home[producer], home[n])) not in tried:
            tried.add(pair)
            if pair[0] is not pair[1]:
                _try(*pair, home, apart)
    return [g for g in _in_order(set(home.values())) if g.drafts]


def _beside(g: Group, d: Draft, home: dict[Node, Group]) -> None:
    """One more part of a JOIN in a group of such, whose axes it shares, unless one needs another
    (or something that needs it)."""
    own, first = home[d.node], g.drafts[0]
    if _leads([g], own) or _leads([own], g):
        return
    shared = [{**s, d: d.axes[first.axes.index(s[first])]} for s in g.shared]
    g.joined = True
    _merged(g, own, shared, home)


def _try(p: Group, c: Group, home: dict[Node, Group], apart: set[Draft]) -> None:
    shared = _common_axes(p, c, home)
    if shared is None or not _worth(p, c, shared, home) or _between(p, c):
        return
    if len(apart.intersection(_tiles(Group(p.drafts + c.drafts, shared)))) > 1:
        return
    _merged(p, c, shared, home)


def _merged(
    p: Group, c: Group, shared: list[dict[Draft, Node]], home: dict[Node, Group]
) -> Group:
    """The group that two become."""
    merged = Group(p.drafts + c.drafts, shared, (p.before | c.before) - {p, c},
                   (p.after | c.after) - {p, c}, max(p.order, c.order),
                   min(p.first, c.first), p.joined or c.joined, p.wide)  # fmt: skip
    p.wide -= {p, c}
    p.wide |= {merged} if merged.joined else set()
    for d in merged.drafts:
        home[d.node] = merged
    for other in merged.before:
        other.after -= {p, c}
        other.after.add(merged)
    for other in merged.after:
        other.before -= {p, c}
        other.before.add(merged)
    _freed((p, c))
    return merged


def _common_axes(p: Group, c: Group, home: dict[Node, Group]) -> list[dict[Draft, Node]] | None:
    """The axes that p and c would share: along which every stage of c reads p at its own point.

    Each is a dictionary from stage to its own axis. None if a read cannot stay inside a kernel.
    """
    links: set[tuple[int, int]] | None = None
    for d in c.drafts:
        for producer, indices, guarded in d.reads:
            if producer.op is ops.JOIN and any(home.get(x) is p for x in producer.srcs):
                return None
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
    used: set[int] = set()  # c[i] = p[i, i] has one axis for two of p: it walks along one of them
    pairs: dict[int, int] = {}
    for i, j in sorted(links):
        if j not in pairs and i not in used:
            pairs[j] = i
            used.add(i)
    return [p.shared[i] | c.shared[j] for j, i in sorted(pairs.items())]


def _between(p: Group, c: Group) -> bool:
    """Whether some other group must run after p and before c."""
    return _leads(p.after - {c}, c)


def _leads(some: Iterable[Group], c: Group) -> bool:
    """Whether c must run after one of these groups."""
    last = _last(c)
    todo = list(some)
    seen: set[Group] = set(todo)
    while todo:
        g = todo.pop()
        if c in g.after:
            return True
        for n in g.after:
            if n not in seen and n.first <= last:
                seen.add(n)
                todo.append(n)
    return False


def _last(c: Group) -> int:
    """The place in the graph's order after which no group begins that leads to c. One whose parts
    come from here and there may be entered late, and left early."""
    last, wide = c.order, list(c.wide)
    while beyond := [g for g in wide if g.first <= last < g.order]:
        last = max(g.order for g in beyond)
    return last


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
    if len(out) < len(groups):
        raise GraphError("fuse: kernels wait for each other")
    return out


# --- when a merge is worth it --------------------------------------------------------------------

_LARGE_WORK = 1 << 18  # terms of a product that is best alone, if no row of it goes on
_SMALL_WORK = 1 << 14  # iterations: below this, saving a launch beats using all cores
_ROW = 1 << 17  # elements of a row buffer, at most
_PANEL = 1 << 17  # elements of a matrix that every point of a kernel may read again
_SHORT = 256  # terms of a sum, such as a head's, whose results a next sum takes as they come
_ENOUGH_POINTS = 8
_MANY = 1 << 18  # elements from which the order in which they are written counts
_HELD = 1 << 22  # results that need not be written to memory proper
_PLACES = 1 << 10  # columns from which on a product is not made column by column
_FAR = 64  # times as much work: what two kernels have in common is nothing beside it
_MOST_STAGES = 48
_MOST_ARGUMENTS = 48


def _worth(
    p: Group, c: Group, shared: list[dict[Draft, Node]], home: dict[Node, Group]
) -> bool:
    drafts = p.drafts + c.drafts
    if (
        len(drafts) > _MOST_STAGES
        or len({r for d in drafts for r, _, _ in d.reads}) > _MOST_ARGUMENTS
    ):
        return False
    group = Group(drafts, shared)
    points = group.points()
    if (p.joined or c.joined) and max(p.points(), c.points()) > points:
        return False  # parts that are computed side by side keep their axes
    work = max(d.work for d in drafts)
    if work <= _SMALL_WORK:
        return True
    lost = min(p.points(), c.points()) > points
    if lost and points < _ENOUGH_POINTS:
        return False
    if points < _ENOUGH_POINTS <= p.points() and _is_sum(p):  # a sum's parts, and their sum
        return False
    if p.points() > points and any(map(_is_down_columns, p.drafts)) and _is_sum(c):
        return False  # the same, of blocks of a matrix' rows
    own = {d: [a for a in d.axes if all(s[d] is not a for s in shared)] for d in drafts}
    if _is_sum(c) and any(_is_part(d, a) for d in p.drafts for a in own[d]):
        return False  # the same, of products
    if points < _ENOUGH_POINTS <= c.points() and _is_light(p, c):  # a number, and what all need it
        return False
    if any(g.points() > points and any(map(_is_convolution, g.drafts)) for g in (p, c)):
        return False
    if p.points() > points and p.after - {c} and any(map(_is_down_columns, c.drafts)):
        return False  # what is written anyway is written row by row
    if lost and any(d.reuses for d in c.drafts) and (
        any(d.is_window or _is_lookup(d) and d.work * _FAR <= work for d in p.drafts)
        or _kept(p, c, shared, home)
    ):
        return False
    products = [c] if len(p.drafts) == 1 else [p, c]  # blocks' sums alone wait to be scaled
    if any(g.points() > points and any(d.by_bytes for d in g.drafts) for g in products):
        return False  # bytes are multiplied as they lie: rows and columns both are shared axes
    if _is_chance(p, c):
        return False
    if all(_goes_down(g, shared) for g in (p, c)):
        return False
    if c.points() > points and any(d.reuses for d in c.drafts) and _is_light(p, c):
        return False  # a product keeps its axes rather than compute a few numbers on the way
    rows = {d: _extent(axes) for d, axes in own.items()}
    looked_up = any(map(_is_lookup, drafts))
    for d, row in rows.items():
        if row > _ROW:
            return False
        panel = _matrix(d, own[d]) if looked_up else _extent(d.stage.reduced) * row
        if row > 1 and panel > _PANEL and d.reuses and not _is_chained(d, rows):
            return False
    return True


def _extent(axes: Iterable[Node]) -> int:
    return sym.bounds(sym.product(a.arg.extent for a in axes))[1]


def _matrix(d: Draft, own: list[Node]) -> int:
    """Elements of the largest matrix that a product reads at each point of its kernel: what is
    looked up for each point (a page) is read for all rows of that point."""
    inner = {*own, *d.stage.reduced}
    return max(_extent(inner.intersection(toposort(at))) for _, at, _ in d.reads)


def _is_chained(d: Draft, rows: dict[Draft, int]) -> bool:
    """Whether a product makes, from few terms, a long row that another stage reduces, or reduces
    such a row to few results: a long row is made and reduced a block at a time (`abreast`)."""
    depth = _extent(d.stage.reduced)
    others = [e for e in rows if e is not d]
    if depth <= _SHORT:
        return any(e.stage.reduced and _extent(e.stage.reduced) == rows[d] for e in others)
    return rows[d] <= _SHORT and any(
        rows[e] == depth and e.reuses and _extent(e.stage.reduced) <= _SHORT for e in others
    )


def _is_lookup(d: Draft) -> bool:
    """Whether a stage takes rows (of an embedding, pages) by their numbers."""
    return d.node.op.group == "reduce" and not d.stage.reduced


def _is_sum(p: Group) -> bool:
    """Whether most of a kernel's work is a reduction, whose results are few."""
    return max(p.drafts, key=lambda d: d.work).stage.reduction is not None


def _is_part(d: Draft, a: Node) -> bool:
    """Whether a stage is a large product for each point of an axis."""
    large = d.work > _LARGE_WORK and _is_product(d) and d.stage.value.op is ops.MUL
    return large and all(a in toposort((x,)) for x in d.stage.value.srcs)


def _is_light(p: Group, c: Group) -> bool:
    """Whether a producer's work is nothing beside its user's."""
    return max(d.work for d in p.drafts) * _SMALL_WORK <= max(d.work for d in c.drafts)


def _is_chance(p: Group, c: Group) -> bool:
    """Whether all that two kernels have in common is a few numbers, as the places that the lookups
    of all layers share: their results would have to be there at once, and nothing is gained."""
    made = {d.node: d for d in p.drafts}
    needed: set[Draft] = set()
    todo = list(c.drafts)
    while todo:
        found = {made[r] for r, _, _ in todo.pop().reads if r in made} - needed
        needed |= found
        todo.extend(found)
    rest = [d for d in p.drafts if d not in needed]
    if not rest:
        return False
    least = min(max(d.work for d in rest), max(d.work for d in c.drafts)) // _FAR
    seen = {r for d in rest for r, _, _ in d.reads} & {r for d in c.drafts for r, _, _ in d.reads}
    return all(d.work <= least for d in needed) and all(elements(r) <= least for r in seen)


def _tiles(g: Group) -> list[Draft]:
    """The large products of a kernel, if there are several, all of them at all of its points: a
    tile of one does not make another faster, and each is best with loops and copies of its own.
    (Along a row, as in attention, one goes on with what the others have made.)"""
    found = [d for d in g.drafts if _is_product(d) and d.work > _LARGE_WORK
             and all(any(s[d] is a for s in g.shared) for a in d.axes)]  # fmt: skip
    return found if len(found) > 1 else []


def _goes_down(g: Group, shared: list[dict[Draft, Node]]) -> bool:
    """Whether a product would be made and stored column by column, as those of two 1x1 convolutions
    at the same, many places. Its results may as well be written, if the caches hold them."""
    d = g.drafts[-1]
    if not d.axes or not any(_is_product(x) and x.work > _LARGE_WORK for x in g.drafts):
        return False
    among = [any(s[d] is a for s in shared) for a in d.axes]
    if among[0] or not among[-1] or Group([d], shared).points() < _PLACES:
        return False
    return elements(d.node) <= _HELD


def _is_product(d: Draft) -> bool:
    """Whether a stage is a matrix product of floats."""
    return bool(d.stage.reduced) and is_product(d.node) and not d.by_bytes


def _is_down_columns(d: Draft) -> bool:
    """Whether a stage reduces many rows to one. (Products of few rows, as of a page's keys and
    the queries that look at it, have a matrix of their own at each point.)"""
    n = d.node
    if n.op.group != "reduce" or n.srcs[0].ndim - 1 in n.arg or d.reuses:
        return False
    if _is_lookup(d) or is_product(n):
        return False
    return elements(n.srcs[0]) >= _MANY


def _is_convolution(d: Draft) -> bool:
    """Whether a stage is a product over windows. Its loops go along the windows' places, and those
    are copied and tiled only where they are axes of the kernel."""
    return d.work > _ROW and d.reuses and d.is_window


def _kept(
    p: Group, c: Group, shared: list[dict[Draft, Node]], home: dict[Node, Group]
) -> bool:
    """Whether a product's results that another one reads must be written anyway: somebody reads
    them who could not be in the same kernel, along the same axes."""
    if not any(d.reuses for d in p.drafts):
        return False
    made = {d.node for d in p.drafts}
    between = {r for d in c.drafts for r, _, _ in d.reads if r in made}
    readers = [g for g in p.after - {c}
               if any(r in between for d in g.drafts for r, _, _ in d.reads)]  # fmt: skip
    first = p.drafts[0]
    along = {s[first] for s in shared}
    points = Group(p.drafts, shared).points()
    alike = {g: [s for s in _common_axes(p, g, home) or [] if s[first] in along] for g in readers}
    return any(not g.drafts or _leads((p.after | c.after) - {p, c, g}, g)
               or Group(g.drafts, alike[g]).points() < points for g in readers)  # fmt: skip


__all__ = ["Call", "fuse"]
