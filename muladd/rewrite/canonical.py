"""The standard pass: every rule of the profile, over the graph and over each body once."""
from __future__ import annotations

from collections.abc import Sequence

from muladd.errors import GraphError
from muladd.ir import node as nodes
from muladd.ir.node import Node
from muladd.rewrite.engine import Rule, Rules, Trace, keep_sum_form, rewrite, through_bodies
from muladd.rewrite.rules import algebra, folding, movement, reduction

ALL_RULES: tuple[Rule, ...] = (
    *folding.RULES, *algebra.RULES, *movement.RULES, *reduction.RULES,
)  # fmt: skip
FAST = Rules(ALL_RULES)
EXACT = Rules([rule for rule in ALL_RULES if rule.exact])


def canonicalise(
    outputs: Sequence[Node], profile: str = "fast", trace: Trace | None = None
) -> tuple[Node, ...]:
    """The outputs in the form the compiler's later passes expect, with the same meaning.

    In the exact profile ('exact') only rules that keep every bit are applied, and no SUM comes to
    stand over a product it did not stand over before. The forms SUM(MUL(a, b)) of a contraction
    and SUM(WHERE(NE(NE(index, iota), True), table, 0)) of a gather are kept. Idempotent.
    """
    if profile not in ("fast", "exact"):
        raise GraphError(f"canonicalise: profile {profile!r}; expected 'fast' or 'exact'")
    rules = EXACT if profile == "exact" else FAST
    rebuild = keep_sum_form if profile == "exact" else nodes.rebuild
    return through_bodies(outputs, lambda outs: rewrite(outs, rules, trace, rebuild), rebuild)
