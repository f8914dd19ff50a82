"""Where a graph is cut: which nodes get a stage, and so may end up in memory.

Reductions and results always do. Between them, an elementwise value is written out again in every
stage that uses it, unless that costs more than keeping it: it is expensive or reads several arrays
and more than one stage uses it, or it is repeated along an axis.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

from muladd.compile.empty import is_empty
from muladd.compile.index import OPAQUE, is_buffer
from muladd.ir import Node, is_const, ops, sym, toposort

_WEIGHT = {ops.EXP2: 10, ops.EXP: 11, ops.LOG2: 10, ops.SIN: 12, ops.COS: 13, ops.DIV: 3,
           ops.SQRT: 3, ops.MOD: 3}  # fmt: skip
_KEEP_COST = 10  # from this cost on (an exponential), a value used by two stages is computed once
# the same for one that is kept in place of its arrays, which nobody else uses, or that is narrower
_ONLY_COST = 3
_REPEAT_COST = 2  # from this cost on, a value repeated along an axis is computed before
_OFTEN = 4  # times that a value which is padded and turned is repeated to be so before
_SHORT = 32  # places of a row, every other of which lie side by side before it is repeated
_UNPACK_COST = 6  # the same for bytes: taking numbers out of a byte again is less than loading
_LOADLESS_COST = 24  # the same for values made of indices and constants only
_WIDE_COST = 1024  # up to this cost, a value of wider numbers than it is made of is not kept
_FORESEEN_COST = 12  # from this cost on, what is made of an array later is kept in its place
_TURNED_COST = 12  # the same for values that are used in two orders of their elements
_FEW_LOADS = 3  # of which two are many
_MOST_REPLACED = 64  # nodes that a value is made of, to be looked at
_DEEP = 400  # operations in a row, before a chain is cut for the compiler's sake
_CAP = 1 << 16
_MOST_MAPS = 24  # arrays, and ways of reading them, in one expression
_MOST_PARTS = 40  # that one kernel computes side by side
_LITTLE = 1 << 12  # elements of all parts together, below which they need not read the same
_MOST_MAPS_SHARED = 64  # the same in parts that are computed side by side


class Cut:
    """The analysis of one graph; `stages` holds its stage nodes, sources before users, and `place`
    the JOIN that each of its parts belongs to, with the part's number there."""

    def __init__(self, outputs: Iterable[Node]) -> None:
        outputs = list(outputs)
        self.order = toposort(outputs)
        self.users: dict[Node, list[Node]] = {n: [] for n in self.order}
        for n in self.order:
            for s in dict.fromkeys(n.srcs):
                self.users[s].append(n)
        self.cost: dict[Node, int] = {}
        self.loads: dict[Node, frozenset] = {}
        self.width: dict[Node, int] = {}
        self.chosen: set[Node] = {n for n in outputs if not is_buffer(n)}
        for n in self.order:
            if n.op in OPAQUE:
                self.chosen.update(s for s in n.srcs if not (is_buffer(s) or is_empty(s)))
            if n.op is ops.JOIN:
                self.chosen.update((n, *n.srcs))
        self.place = {p: (n, i) for n in self.order if n.op is ops.JOIN
                      for i, p in enumerate(n.srcs)}  # fmt: skip
        # whose parts are computed side by side, if none needs another
        self.together = {n for n in self.order if n.op is ops.JOIN and _alike(n.srcs)}
        self.early: dict[Node, Node] = {}  # of what is foreseen, the value that it is made beside
        self._padded()
        self._forward()
        self._repeated()
        self._turned()
        self._trimmed()
        before = set(self.chosen)
        self._shared()
        if found := self._foreseen(set(outputs)):
            self.chosen = before | found
            for n in self.order:
                self._price(n)
            self._shared()
        self._mixed()
        self.stages = [n for n in self.order if n in self.chosen and n.op is not ops.JOIN]
        self.first: dict[tuple[Node, int], Node] = {}  # of so many parts that are computed together
        for n in self.stages:
            if self._user(n) in self.together:
                self.first.setdefault(self._side(n), n)

    def _forward(self) -> None:
        """Costs of writing each value out, and cuts in very long chains."""
        depth: dict[Node, int] = {}
        for n in self.order:
            if n.op.group == "reduce":
                self.chosen.add(n)
            step = int(n.op.elementwise and bool(n.srcs))
            depth[n] = max((depth[s] for s in n.srcs), default=0) + step
            if step and depth[n] >= _DEEP:
                self.chosen.add(n)
            if n in self.chosen or is_buffer(n):
                depth[n] = 0
            self._price(n)

    def _price(self, n: Node) -> None:
        """What writing a value out costs where it is used, the arrays that it then reads (a few of
        them, each with the way it is moved), and how many bits their numbers have at most."""
        cost = width = 0
        loads = frozenset[object]()
        if is_buffer(n) or n in self.chosen:
            loads, width = frozenset((n,)), n.dtype.bits
        elif n.op.elementwise:
            distinct = set(n.srcs)
            cost = _weight(n) + sum(self.cost[s] for s in distinct)
            loads = frozenset(islice(loads.union(*(self.loads[s] for s in distinct)), _FEW_LOADS))
            width = max((self.width[s] for s in distinct), default=0)
        elif n.srcs:
            s = n.srcs[0]
            grows = n.op is ops.EXPAND and _grows(n)
            # what is read is computed before the loop along which it is repeated
            cost = 0 if grows and self.loads[s] else self.cost[s]
            moved = n.op not in (ops.EXPAND, ops.RESHAPE, ops.PERMUTE)
            if not grows:
                loads = frozenset((x, n) for x in self.loads[s]) if moved else self.loads[s]
            width = self.width[s]
        self.cost[n], self.loads[n], self.width[n] = min(cost, _CAP), loads, width

    def array(self, n: Node) -> Node:
        """The node in whose array n is stored: of a JOIN's part the JOIN, of others themselves."""
        return self.place[n][0] if n in self.place else n

    def behind(self, n: Node) -> tuple[Node, ...]:
        """The stages (or arrays) that have to be there before n is read: of a JOIN its parts."""
        return n.srcs if n.op is ops.JOIN else (n,)

    def beside(self, n: Node) -> Node | None:
        """The first of the parts that n is computed beside, if it is another one."""
        if self._user(n) not in self.together:
            return None
        first = self.first[self._side(n)]
        return None if first is n else first

    def _side(self, part: Node) -> tuple[Node, int]:
        join, number = self.place[part]
        return join, number // _MOST_PARTS

    def _padded(self) -> None:
        """What is padded below parts that are computed side by side is computed and padded before:
        each of them would ask, for each of its elements, whether there is one."""
        for join in self.together:
            into = lambda m: m.op is not ops.PAD and not _ends(m)  # noqa: E731
            found = Counter(m for p in join.srcs for m in toposort((p,), into=into)
                            if m.op is ops.PAD)  # fmt: skip
            pads = [m for m, parts in found.items() if parts > 1]
            below = [_below_movement(m.srcs[0]) for m in pads]
            self.chosen.update(pads, (b for b in below if b.op.elementwise))

    def _mixed(self) -> None:
        """Cuts where too many arrays, or ways of reading them, meet in one expression."""
        maps: dict[Node, frozenset[int]] = {}
        parts = {p for join in self.together for p in join.srcs}
        shared = set(toposort(parts, into=lambda m: not _ends(m)))
        for n in self.order:
            maps[n] = self._maps(n, maps)
            most = _MOST_MAPS_SHARED if n in shared else _MOST_MAPS
            if len(maps[n]) > most and n.op.elementwise and n not in self.chosen:
                # what is repeated along an axis (a side of a product) is cut before it is
                sides = [b for s in n.srcs if (b := _below_movement(s)) is not s
                         and b.op.elementwise and elements(b) < elements(n)]  # fmt: skip
                wide = [b for b in sides if len(maps[b]) > 1 and b not in self.chosen]
                self.chosen.update(wide or [n])
                maps[n] = frozenset(hash(b) for b in wide or [n])
            elif n in self.chosen:
                maps[n] = frozenset((hash(n),))

    def _maps(self, n: Node, maps: dict[Node, frozenset[int]]) -> frozenset[int]:
        """Each array below n with each way its indices are changed on the way up, as hashes.

        Values that combine an array with moved copies of itself, again and again (a sorting
        network, say), would double the expression at every step.
        """
        if is_buffer(n):
            return frozenset((hash(n),))
        if n.op.elementwise:
            return frozenset().union(*[maps[s] for s in n.srcs])
        if not n.srcs:
            return frozenset()
        return frozenset([hash((n, m)) for m in maps[n.srcs[0]]])

    def _repeated(self) -> None:
        for n in self.order:
            if n.op is not ops.EXPAND or not _grows(n):
                continue
            s = _below_movement(n.srcs[0])
            if elements(n) >= _OFTEN * elements(n.srcs[0]) and _is_padded(n.srcs[0]):
                self.chosen.add(n.srcs[0])
            apart = _taken_apart(n.srcs[0])
            if apart is not None and elements(n) >= 2 * _OFTEN * elements(apart):
                self.chosen.add(apart)
            while s.op is ops.PAD:  # a padded image is repeated by the windows of a convolution
                s = _below_movement(s.srcs[0])
            if s in self.chosen or not s.op.elementwise:
                continue
            limit = _REPEAT_COST if self._reads(s) else _LOADLESS_COST
            narrow = _narrow(s)  # what is kept is kept as narrow as it is
            if narrow.dtype.bits == 8 and narrow is not s and self.width[narrow] <= 8:
                limit = max(limit, _UNPACK_COST)
            if narrow not in self.chosen and self.cost[narrow] >= limit:
                self.chosen.add(narrow)

    def _turned(self) -> None:
        """Values that meet themselves in another order, as in a sorting network: each such meeting
        would double what is written out."""
        for n in self.order:
            if not n.op.elementwise or len(n.srcs) < 2:
                continue
            found: dict[Node, Node] = {}
            for s in n.srcs:
                b = _below_movement(s)
                if found.setdefault(b, s) is s or b in self.chosen or not b.op.elementwise:
                    continue
                if self.cost[b] >= _TURNED_COST:
                    self.chosen.add(b)

    def _trimmed(self) -> None:
        """Values of several axes of which, as one axis, the end is cut off: written out for that
        axis, each element would have to find its place among theirs."""
        for n in self.order:
            if n.op is ops.SLICE and n.srcs[0].op is ops.RESHAPE:
                s, b = n.srcs[0], n.srcs[0].srcs[0]
                joins = len(b.shape) > len(s.shape) and b.op.elementwise and b not in self.chosen
                if joins and self.cost[b] >= _TURNED_COST and self._reads(b):
                    self.chosen.add(b)

    def _reads(self, node: Node) -> bool:
        """Whether any array is read below (loads are not counted through an EXPAND)."""
        into = lambda m: m not in self.chosen and not is_buffer(m)  # noqa: E731
        return any(is_buffer(m) or (m in self.chosen and m is not node)
                   for m in toposort((node,), into=lambda m: m is node or into(m)))  # fmt: skip

    def _shared(self) -> None:
        """Values that several stages use. `user` is the one stage that uses a node, or many."""
        many = object()
        user: dict[Node, object] = {}
        kept = {}
        for n in reversed(self.order):
            mine = self._user(self.early.get(n, n)) if n in self.chosen else user.get(n)
            copy = _narrow(n) is not n  # then what it is a copy of is kept
            if mine is many and n.op.elementwise and n not in self.chosen and not copy:
                if self._is_dear(n):
                    mine = self._as_used(n)
                    kept[mine] = n
                    self.chosen.add(mine)
            if n.op in OPAQUE or mine is None:
                continue
            for s in n.srcs:
                user[s] = mine if user.get(s, mine) is mine else many
        for n in self.order:  # the costs of these were of writing out the others, too
            if n in kept:
                self.chosen.remove(n)
                self._price(n)
                if self._is_dear(kept[n]):
                    self.chosen.add(n)
            self._price(n)

    def _is_dear(self, n: Node) -> bool:
        """Whether it costs more to write a value out twice than to keep it."""
        if n.dtype.bits > self.width[n] > 0 and self.cost[n] < _WIDE_COST:
            return False  # it is made of less to keep
        if not self.loads[n]:
            return self.cost[n] >= _LOADLESS_COST
        if self.cost[n] >= _KEEP_COST or len(self.loads[n]) >= 2:
            return True
        narrower = n.dtype.bits < self.width[n] and n.dtype.kind != "b"  # bytes made of floats
        return self.cost[n] >= _ONLY_COST and (narrower or self._replaces(n))

    def _replaces(self, n: Node) -> bool:
        """Whether an array goes if n is kept: one that is used to make n, and for nothing else."""
        inside, todo = {n}, [n]
        arrays: list[Node] = []
        while todo and len(inside) <= _MOST_REPLACED:
            for s in todo.pop().srcs:
                if s in inside:
                    continue
                inside.add(s)
                if s not in self.chosen:
                    todo.append(s)
                elif elements(s) >= elements(n):
                    arrays.append(s)
        left, only = inside - {n}, {n}
        while found := {m for m in left if only.issuperset(self.users[m])}:
            only |= found
            left -= found
        return not only.isdisjoint(arrays)

    def _foreseen(self, outputs: set[Node]) -> set[Node]:
        """What a later stage alone makes of an array, at length, is made beside the array and kept
        in its place: the slope of an activation, which has much in common with the activation."""
        array: dict[Node, Node | None] = {}  # the one that an elementwise value is made of
        given: set[Node] = set()  # what is made of inputs alone: a bias, repeated, may be read too
        for n in self.order:
            if n.op is not ops.JOIN and n.op.group != "reduce" and n.op not in OPAQUE:
                given |= {n} if given.issuperset(n.srcs) else set()
            if n.op.elementwise and n.srcs:
                made = {array.get(s, s) for s in n.srcs if s not in given or self.loads[s]}
                array[n] = made.pop() if len(made) == 1 else None
        ends: dict[Node, list[Node]] = {}
        for n, a in array.items():
            if a in self.chosen and any(array.get(u) is not a for u in self.users[n]):
                ends.setdefault(a, []).append(n)
        found = set()
        for a, last in ends.items():
            if a in outputs or any(array.get(u) is not a for u in self.users[a]):
                continue
            late = [n for n in last if n not in self.chosen]
            if len(late) == 1 < len(last) and self.cost[late[0]] >= _FORESEEN_COST:
                if late[0].dtype.bits <= a.dtype.bits:
                    found.add(late[0])
                    self.early[late[0]] = next(n for n in last if n in self.chosen)
        return found

    def _user(self, n: Node) -> Node:
        """Who uses what a stage reads: parts that are computed side by side are one user."""
        array = self.array(n)
        return array if array in self.together else n

    def _as_used(self, n: Node) -> Node:
        """A value in the order of elements that its users see, where windows were put together."""
        top, permuted, joined = n, False, False
        while len(self.users[top]) == 1 and self.users[top][0].op in (ops.PERMUTE, ops.RESHAPE):
            top = self.users[top][0]
            permuted = permuted or top.op is ops.PERMUTE
            joined = joined or permuted and top.op is ops.RESHAPE
        return top if joined and top not in self.chosen else n


def _weight(n: Node) -> int:
    """Operations that a node is: none if it changes a sign, since to subtract is no more than to
    add."""
    if n.op is ops.MUL and any(is_const(s, -1) for s in n.srcs):
        return 0
    return _WEIGHT.get(n.op, 1)


def _ends(n: Node) -> bool:
    """Whether an expression ends here, at an array."""
    return is_buffer(n) or n.op.group == "reduce" or n.op is ops.JOIN


def _alike(parts: tuple[Node, ...]) -> bool:
    """Whether values have one shape, and others read more than half of what they read, or they are
    less work than a launch."""
    if any(not ops.equal_shapes(p.shape, parts[0].shape) for p in parts):
        return False
    if elements(parts[0]) * len(parts) <= _LITTLE:
        return True
    read = [{m for m in toposort((p,), into=lambda m: not _ends(m)) if _ends(m)} for p in parts]
    return 2 * len(set().union(*read)) <= sum(map(len, read))


def _grows(n: Node) -> bool:
    old = n.srcs[0].shape
    new = n.shape
    lead = new[: len(new) - len(old)]
    pairs = zip(old, new[len(new) - len(old) :])
    return any(not ops.equal_dims(d, 1) for d in lead) or any(
        not ops.equal_dims(a, b) for a, b in pairs
    )


def _narrow(n: Node) -> Node:
    """The bytes or words that a value is a wider copy of, or else the value."""
    if n.op is not ops.CAST or n.dtype.is_float:
        return n
    if n.srcs[0].dtype.bits >= min(n.dtype.bits, 32):
        return n
    source = _below_movement(n.srcs[0])
    return source if source.op.elementwise and not source.dtype.is_float else n


def _below_movement(n: Node) -> Node:
    while n.op in (ops.RESHAPE, ops.PERMUTE, ops.EXPAND, ops.SLICE):
        n = n.srcs[0]
    return n


def _is_padded(n: Node) -> bool:
    """Whether a value is padded and then turned, as a weight's taps are, and no windows of an image
    that is."""
    padded = turned = False
    while n.op in ops.MOVEMENT and n.op is not ops.EXPAND:
        padded = padded or turned and n.op is ops.PAD
        turned = turned or n.op is ops.PERMUTE
        n = n.srcs[0]
    return padded and n.op is not ops.EXPAND


def _taken_apart(n: Node) -> Node | None:
    """What windows are made of by movements, if that has every other element of a short row side by
    side, as the phases of an image that strided windows read. Of long rows these are had by vectors
    anyway."""
    found, windows = None, False
    while n.op in ops.MOVEMENT:
        s = n.srcs[0]
        windows = windows or n.op is ops.EXPAND
        short = n.op is ops.PERMUTE and sym.bounds(n.shape[-1])[1] < _SHORT
        if windows and short and s.op is ops.RESHAPE and 0 < n.arg[-1] < len(n.arg) - 1:
            between, whole = sym.product(s.shape[n.arg[-1] + 1 :]), s.srcs[0].shape
            ends = (sym.product(whole[i:]) for i in range(len(whole) + 1))
            if not any(ops.equal_dims(between, end) for end in ends):
                found = n
        n = s
    return found


def elements(n: Node) -> int:
    """How many elements a node has at most."""
    return sym.bounds(sym.product(n.shape))[1]
