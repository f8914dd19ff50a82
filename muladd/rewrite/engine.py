"""The rewriter: rules are applied bottom-up until none fits, in time linear in the graph.

Sources are brought to their final form before their users, so one pass reaches the fixed point:
patterns only look down. A rule is found by the operations of a node and of its sources (one
dictionary look-up), so that a node which no rule can match costs a microsecond or two.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from muladd.errors import GraphError
from muladd.ir import node as nodes
from muladd.ir import ops
from muladd.ir.node import Body, CallArg, Node, ScanArg, toposort
from muladd.ir.ops import Op
from muladd.rewrite.pattern import Match, Matcher, Operation, Pattern

Right = Pattern | Callable[[Match], Node | None]
Trace = Callable[[str, Node, Node], None]
Rebuild = Callable[[Node, tuple[Node, ...]], Node]


@dataclass(frozen=True, eq=False)
class Rule:
    """One line of algebra: what matches `left` (and `guard`) becomes `right`.

    right is a pattern over left's names, or a function of the match which gives the new node, or
    None to decline. exact: the bits are the same for all inputs, so the rule is allowed in the
    exact profile.
    """

    name: str
    left: Operation
    right: Right
    guard: Callable[[Match], bool] | None = None
    exact: bool = False
    orders: tuple[Operation, ...] = field(init=False, repr=False)
    matchers: tuple[Matcher, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "orders", tuple(self.left.orders()))
        object.__setattr__(self, "matchers", tuple(o.compile() for o in self.orders))

    def accepts(self, sources: tuple[Op, ...]) -> bool:
        """Whether a node over sources of these operations can match at all."""
        return any(order.accepts(sources) for order in self.orders)

    def apply(self, node: Node, shared: Callable[[Node], bool] = lambda n: False) -> Node | None:
        """What the node becomes, or None where the rule does not fit."""
        for matches in self.matchers:
            found = Match()
            if not matches(node, found):
                continue
            found.__dict__["root"], found.__dict__["shared"] = node, shared
            if self.guard is not None and not self.guard(found):
                continue
            right = self.right
            result = right.build(found) if isinstance(right, Pattern) else right(found)
            if result is not None and result is not node:
                return result
        return None


class Rules:
    """A compiled set of rules. Earlier rules are tried first."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        self._by_root: dict[Op, list[Rule]] = {}
        for rule in self.rules:
            self._by_root.setdefault(rule.left.op, []).append(rule)
        self.found: dict[tuple[Op, ...], tuple[Rule, ...]] = {}

    def candidates(self, key: tuple[Op, ...]) -> tuple[Rule, ...]:
        """The rules that can match a node given its operation and those of its sources."""
        fitting = [r for r in self._by_root.get(key[0], ()) if r.accepts(key[1:])]
        self.found[key] = tuple(fitting)
        return self.found[key]


def rewrite(
    outputs: Sequence[Node],
    rules: Rules | Sequence[Rule],
    trace: Trace | None = None,
    rebuild: Rebuild = nodes.rebuild,
) -> tuple[Node, ...]:
    """The outputs after every rule has been applied wherever it fits. Bodies are not entered.

    trace(rule's name, before, after) is called at each application. `rebuild` makes the user of
    changed sources. Raises GraphError where a rule changes a shape or dtype, and where rules feed
    one another without end.
    """
    compiled = rules if isinstance(rules, Rules) else Rules(rules)
    return _Rewriter(compiled, trace, rebuild).run(tuple(outputs))


class _Rewriter:
    def __init__(self, rules: Rules, trace: Trace | None, rebuild: Rebuild) -> None:
        self.rules, self.trace, self.rebuild = rules, trace, rebuild
        self.done: dict[Node, Node] = {}
        self.shared: set[Node] = set()
        self.last = ""

    def run(self, outputs: tuple[Node, ...]) -> tuple[Node, ...]:
        order = toposort(outputs)
        self.shared = _read_twice(order, outputs)
        self.patience = 10_000 + 100 * len(order)
        done, found, candidates = self.done, self.rules.found, self.rules.candidates
        for node in order:
            if node in done:
                continue
            srcs = node.srcs
            if not srcs:
                done[node] = node
                continue
            # a plain node whose sources did not change and which no rule can match: most of them
            if len(srcs) == 1:
                key: tuple[Op, ...] = (node.op, srcs[0].op)
            else:
                key = (node.op, *[s.op for s in srcs]) if node.op.arity > 0 else (node.op,)
            fitting = found.get(key)
            if fitting is None:
                fitting = candidates(key)
            if not fitting and tuple([done[s] for s in srcs]) == srcs:
                done[node] = node
            else:
                self.settle(node)
        return tuple(done[o] for o in outputs)

    def settle(self, start: Node) -> None:
        """Bring one node, and whatever rules make of it, to its final form."""
        done, stack = self.done, [start]
        becomes: dict[Node, Node] = {}
        while stack:
            node = stack[-1]
            self.patience -= 1
            if self.patience < 0:
                raise GraphError(f"rewrite: no end in sight; the last rule applied: {self.last!r}")
            if node in done:
                stack.pop()
            elif node in becomes:
                target = becomes[node]
                if target in done:
                    done[node] = done[target]
                    stack.pop()
                    if node in self.shared:
                        self.shared.add(done[node])
                else:
                    stack.append(target)
            elif missing := [s for s in node.srcs if s not in done]:
                stack.extend(missing)
            else:
                after = self.step(node)
                if after is node:
                    done[node] = node
                else:
                    becomes[node] = after

    def step(self, node: Node) -> Node:
        """The node over its sources' final forms; if they are that already, one rule applied."""
        srcs = tuple([self.done[s] for s in node.srcs])
        if srcs != node.srcs:
            return self.rebuild(node, srcs)
        key = (node.op, *[s.op for s in srcs]) if node.op.arity > 0 else (node.op,)
        fitting = self.rules.found.get(key)
        for rule in self.rules.candidates(key) if fitting is None else fitting:
            after = rule.apply(node, self.shared.__contains__)
            if after is not None:
                self.last = rule.name
                if after.dtype is not node.dtype or not ops.equal_shapes(after.shape, node.shape):
                    raise GraphError(f"rule {rule.name!r} turned {node!r} into {after!r}")
                if self.trace is not None:
                    self.trace(rule.name, node, after)
                return after
        return node


def _read_twice(order: Sequence[Node], outputs: Sequence[Node]) -> set[Node]:
    """The nodes with more than one reader (a result counts as read)."""
    once: set[Node] = set()
    twice: set[Node] = set()
    for node in order:
        for s in node.srcs:
            if s in once:
                twice.add(s)
            else:
                once.add(s)
    twice.update(o for o in outputs if o in once)
    return twice


# --- bodies ------------------------------------------------------------------------------------


def through_bodies(
    outputs: Sequence[Node],
    change: Callable[[tuple[Node, ...]], tuple[Node, ...]],
    rebuild: Callable[..., Node] = nodes.rebuild,
) -> tuple[Node, ...]:
    """`change` applied to the graph of the outputs and to every body it uses, each body once.

    A body is changed before the graphs that call it. Bodies left as they are stay the same object.
    """
    return _through(tuple(outputs), change, rebuild, {})


def _through(
    outputs: tuple[Node, ...],
    change: Callable[[tuple[Node, ...]], tuple[Node, ...]],
    rebuild: Callable[..., Node],
    bodies: dict[Body, Body],
) -> tuple[Node, ...]:
    order = toposort(outputs)
    for node in order:
        body = node.arg.body if isinstance(node.arg, CallArg | ScanArg) else None
        if body is not None and body not in bodies:
            outs = _through(body.outs, change, rebuild, bodies)
            same = all(a is b for a, b in zip(outs, body.outs))
            bodies[body] = body if same else replace(body, outs=outs, memo={})
    if any(k is not v for k, v in bodies.items()):
        outputs = _exchange_bodies(order, outputs, bodies, rebuild)
    return change(outputs)


def _exchange_bodies(
    order: Sequence[Node],
    outputs: tuple[Node, ...],
    bodies: dict[Body, Body],
    rebuild: Callable[..., Node],
) -> tuple[Node, ...]:
    done: dict[Node, Node] = {}
    for node in order:
        arg = node.arg
        if isinstance(arg, CallArg | ScanArg) and bodies[arg.body] is not arg.body:
            arg = replace(arg, body=bodies[arg.body])
        srcs = tuple([done[s] for s in node.srcs])
        same = arg is node.arg and srcs == node.srcs
        done[node] = node if same else rebuild(node, srcs, arg)
    return tuple(done[o] for o in outputs)


# --- products under sums -----------------------------------------------------------------------


def keep_sum_form(node: Node, srcs: tuple[Node, ...], arg: object = ...) -> Node:
    """`rebuild`, except that no SUM comes to stand directly over a product it did not stand over.

    In the exact profile SUM(MUL(a, b)) means multiply-add with one rounding, so a SUM over some
    other node that turns out to be a product has to keep its distance: product + (-0.0), which is
    the product to the last bit.
    """
    if node.op is ops.SUM and node.dtype.is_float:
        if srcs[0].op is ops.MUL and node.srcs[0].op is not ops.MUL:
            zero = nodes.const(-0.0, node.dtype, srcs[0].shape)
            srcs = (nodes.make(ops.ADD, (srcs[0], zero)),)
    return nodes.rebuild(node, srcs, arg)
