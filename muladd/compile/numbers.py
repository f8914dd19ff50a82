"""Numbers that change from one realisation to the next become inputs of one program.

`x * 1.0001` and then `x * 1.0002` are two graphs, and each would be compiled. So where a graph was
not met before, but was with other numbers, those that differ are given to its program as inputs.
The others stay constants, of which kernels can make more.

Only floats are exchanged which are added, multiplied, compared or chosen: no index or size is one,
and no divisor, since dividing by a constant is a matter of rules. Nor are numbers that a rule, an
analysis or a name (ir/named.py) looks at.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite

from muladd.ir import Node, const, ops, param, substitute, toposort
from muladd.ir.named import HALF_PI, LOG2_E

_USERS = frozenset((ops.ADD, ops.MUL, ops.MAX, ops.LT, ops.NE, ops.WHERE))
_MOST_FORMS = 4096


@dataclass
class _Form:
    """A graph with parameters for its numbers: what these were at first, and which have differed
    since."""

    first: list[float]
    differing: set[int] = field(default_factory=set)


_forms: dict[tuple[Node, ...], _Form] = {}


def lifted(graph: tuple[Node, ...], inputs: int) -> tuple[tuple[Node, ...], list[Node]]:
    """(the graph, over Params from number `inputs` on, the constants these stand for)."""
    numbers = _numbers(graph)
    if not numbers:
        return graph, []
    places = [param(inputs + i, (), n.dtype) for i, n in enumerate(numbers)]
    form = tuple(substitute(graph, dict(zip(numbers, places))))
    known = _forms.get(form)
    if known is None:
        if len(_forms) >= _MOST_FORMS:
            _forms.pop(next(iter(_forms)), None)
        _forms[form] = _Form([n.arg for n in numbers])
        return graph, []
    known.differing.update(i for i, n in enumerate(numbers) if n.arg != known.first[i])
    chosen = [numbers[i] for i in sorted(known.differing)]
    exchanged = {n: param(inputs + i, (), n.dtype) for i, n in enumerate(chosen)}
    return tuple(substitute(graph, exchanged)), chosen


def _numbers(graph: Sequence[Node]) -> list[Node]:
    """The constants that may be exchanged, in the graph's order."""
    uses: dict[Node, bool] = {}  # whether all uses of a constant are of the right kind
    for n in toposort(graph):
        for s in n.srcs if n.op is not ops.EXPAND else ():
            number = s.srcs[0] if s.op is ops.EXPAND else s
            if number.op is ops.CONST:
                uses[number] = uses.get(number, True) and n.op in _USERS
    return [n for n, right in uses.items() if right and _is_plain(n)]


def _is_plain(number: Node) -> bool:
    d, value = number.dtype, number.arg
    if not d.is_float or not isfinite(value) or abs(value) in (0.0, 0.5, 1.0, 2.0):
        return False
    return value not in (d.min, const(LOG2_E, d).arg, const(HALF_PI, d).arg)
