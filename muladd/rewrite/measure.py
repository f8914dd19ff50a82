"""Why rewriting ends: every rule makes this measure of the tree it stands at the root of smaller.

The measure is a pair, compared left to right: the sum of the weights below over all nodes (as a
tree, so that what is shared counts as often as it is read; what a reduction reads counts twice, for
there is more of it), then how many constants stand on the
left of a commutative operation. Replacing a part of a tree by something smaller makes the whole
smaller, and pairs of natural numbers do not fall for ever.
"""
from __future__ import annotations

from muladd.ir import ops
from muladd.ir.node import Node, toposort
from muladd.rewrite.pattern import COMMUTATIVE, constant_value

_WEIGHTS = {ops.CONST: 1, ops.INPUT: 1, ops.IOTA: 1, ops.EXPAND: 3, ops.DIV: 12, ops.MOD: 12,
            ops.SUM: 50, ops.AMAX: 50, ops.CALL: 50, ops.SCAN: 50}  # fmt: skip
_BY_GROUP = {"movement": 4}


def weight(op: ops.Op) -> int:
    return _WEIGHTS.get(op, _BY_GROUP.get(op.group, 5))


def measure(root: Node) -> tuple[int, int]:
    done: dict[Node, tuple[int, int]] = {}
    for node in toposort((root,)):
        total = weight(node.op)
        lefts = int(node.op in COMMUTATIVE and constant_value(node.srcs[0]) is not None)
        for s in node.srcs:
            times = 2 if node.op in (ops.SUM, ops.AMAX) else 1
            total, lefts = total + times * done[s][0], lefts + done[s][1]
        done[node] = (total, lefts)
    return done[root]
