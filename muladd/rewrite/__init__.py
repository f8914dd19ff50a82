"""Graph to graph by named rules: the engine, the tables of rules, and the expansions."""
from muladd.rewrite.canonical import canonicalise
from muladd.rewrite.engine import Rule, Rules, keep_sum_form, rewrite, through_bodies
from muladd.rewrite.pattern import Match, anything, number, op
from muladd.rewrite.rules.inline import inline_calls
from muladd.rewrite.transcendental import cos, exp, exp2, expand, expand_all, log2, sin

__all__ = [
    "Match", "Rule", "Rules", "anything", "canonicalise", "cos", "exp", "exp2", "expand",
    "expand_all", "inline_calls", "keep_sum_form", "log2", "number", "op", "rewrite", "sin",
    "through_bodies",
]  # fmt: skip
