"""Patterns: Python expressions that look like the graphs they match, compiled to closures.

    x, zero = anything("x"), number(0)
    x + zero                      ADD of anything and the constant 0, in either order
    op(ops.SUM, op(ops.SUM, x, name="inner"), name="outer")

ADD, MUL, MAX, AND and XOR match in both orders. The same name twice means the same node twice.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import copysign
from typing import Any

from muladd.ir import ops
from muladd.ir.node import Node, const, make
from muladd.ir.ops import Op

COMMUTATIVE = frozenset((ops.ADD, ops.MUL, ops.MAX, ops.AND, ops.XOR))
ALL_KINDS = "biuf"


class Match(dict[str, Node]):
    """What a pattern found: names to nodes, also as attributes. `root` is the whole."""

    root: Node
    shared: Callable[[Node], bool]

    def __getattr__(self, name: str) -> Node:
        return self[name]

    def value(self, name: str) -> Any:
        """The number that a constant stands for."""
        return constant_value(self[name])


def constant_value(node: Node) -> Any:
    """The number of a CONST, or of an EXPAND of one; None for any other node."""
    if node.op is ops.EXPAND:
        node = node.srcs[0]
    return node.arg if node.op is ops.CONST else None


Matcher = Callable[[Node, Match], bool]


class Pattern:
    """The root of the three kinds below; + and * make patterns of ADD and MUL."""

    def __add__(self, other: Pattern) -> Operation:
        return op(ops.ADD, self, other)

    def __mul__(self, other: Pattern) -> Operation:
        return op(ops.MUL, self, other)

    def compile(self) -> Matcher:
        """A function that says whether a node matches, and writes down the names."""
        raise NotImplementedError

    def build(self, match: Match) -> Node:
        """The node this pattern describes as the right side of a rule."""
        raise NotImplementedError

    def possible(self) -> tuple[Op, ...] | None:
        """The operations a matching node can have; None: any."""
        return None


@dataclass(frozen=True, eq=False)
class Anything(Pattern):
    name: str
    kinds: str

    def compile(self) -> Matcher:
        name, kinds = self.name, self.kinds

        def match(node: Node, found: Match) -> bool:
            if name in found:
                return found[name] is node
            if node.dtype.kind not in kinds:
                return False
            found[name] = node
            return True

        return match

    def build(self, match: Match) -> Node:
        return match[self.name]


@dataclass(frozen=True, eq=False)
class Number(Pattern):
    name: str | None
    value: Any
    kinds: str

    def compile(self) -> Matcher:
        name, kinds, wanted = self.name, self.kinds, self.value

        def match(node: Node, found: Match) -> bool:
            value = constant_value(node)
            if value is None or node.dtype.kind not in kinds:
                return False
            if wanted is not None and not same_number(value, wanted):
                return False
            if name is not None:
                found[name] = node
            return True

        return match

    def build(self, match: Match) -> Node:
        if self.value is None:
            assert self.name is not None
            return match[self.name]
        return const(self.value, match.root.dtype, match.root.shape)

    def possible(self) -> tuple[Op, ...]:
        return (ops.CONST, ops.EXPAND)


def same_number(a: Any, b: Any) -> bool:
    """Equal, and of one sign where both are a float zero. (NaN equals nothing.)"""
    if a != b:
        return False
    return bool(a) or not isinstance(a, float) or copysign(1.0, a) == copysign(1.0, float(b))


@dataclass(frozen=True, eq=False)
class Operation(Pattern):
    op: Op
    srcs: tuple[Pattern, ...]
    name: str | None
    kinds: str

    def compile(self) -> Matcher:
        wanted, name, kinds = self.op, self.name, self.kinds
        parts = [s.compile() for s in self.srcs]

        def match(node: Node, found: Match) -> bool:
            if node.op is not wanted or node.dtype.kind not in kinds:
                return False
            if name is not None:
                found[name] = node
            return all(part(s, found) for part, s in zip(parts, node.srcs))

        return match

    def build(self, match: Match) -> Node:
        return make(self.op, tuple(s.build(match) for s in self.srcs))

    def possible(self) -> tuple[Op, ...]:
        return (self.op,)

    def orders(self) -> list[Operation]:
        """This pattern with the sources of each commutative operation in either order."""
        choices = [s.orders() if isinstance(s, Operation) else [s] for s in self.srcs]
        sources = list(product(*choices))
        if self.op in COMMUTATIVE and self.srcs[0] is not self.srcs[1]:
            sources += [srcs[::-1] for srcs in sources]
        return [replace(self, srcs=srcs) for srcs in sources]

    def accepts(self, sources: tuple[Op, ...]) -> bool:
        """Whether a node over sources of these operations, in this order, can match at all."""
        wanted = [s.possible() for s in self.srcs]
        return all(w is None or o in w for w, o in zip(wanted, sources))


def anything(name: str, kinds: str = ALL_KINDS) -> Anything:
    """Any node whose dtype's kind ('b', 'i', 'u', 'f') is one of `kinds`."""
    return Anything(name, kinds)


def number(value: Any = None, name: str | None = None, kinds: str = ALL_KINDS) -> Number:
    """A constant, possibly expanded to a shape; on the right of a rule, that constant."""
    return Number(name, value, kinds)


def op(which: Op, *srcs: Pattern, name: str | None = None, kinds: str = ALL_KINDS) -> Operation:
    """An operation over patterns; `name` captures the node itself, `kinds` limits its dtype."""
    return Operation(which, srcs, name, kinds)
