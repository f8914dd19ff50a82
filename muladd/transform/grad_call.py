"""The reverse derivative of CALL: a call of the body's gradient body, built once per body.

The forward body is extended by the residuals the gradient needs, and the gradient body takes those
and the cotangents. A body marked `recompute` hands over its parameters only. A body with a
gradient of its own is asked for nothing else.
"""
from __future__ import annotations

from dataclasses import dataclass

from muladd.errors import GradientError
from muladd.ir.node import Body, Node
from muladd.transform import build as b
from muladd.transform import grad
from muladd.transform.residuals import body_over, residuals


@dataclass(frozen=True)
class Plan:
    """The two bodies of one derivative.

    residuals: per residual, ("param", number) or ("out", number of a result of `forward`).
    sources: which parameter of the original each result of `backward` belongs to.
    """

    forward: Body
    backward: Body
    residuals: tuple[tuple[str, int], ...]
    sources: tuple[int, ...]


def call_cotangents(n: Node, results: dict[int, Node], wanted: list[int]) -> dict[int, Node]:
    """The wanted sources' cotangents, given those of some results of the same call."""
    body: Body = n.arg.body
    if body.gradient is not None:
        return _custom(body, body.gradient, n.srcs, results, wanted)
    plan = call_plan(body, tuple(wanted), tuple(sorted(results)))
    kept = [
        n.srcs[i] if kind == "param" else b.call(plan.forward, n.srcs, i)
        for kind, i in plan.residuals
    ]
    cotangents = b.calls(plan.backward, [*kept, *(results[i] for i in sorted(results))])
    return dict(zip(plan.sources, cotangents))


def call_plan(body: Body, wanted: tuple[int, ...], given: tuple[int, ...]) -> Plan:
    """The derivative of results `given` by parameters `wanted`, remembered on the body."""
    key = ("gradient", wanted, given)
    if key not in body.memo:
        body.memo[key] = _make_plan(body, wanted, given)
    return body.memo[key]


def _make_plan(body: Body, wanted: tuple[int, ...], given: tuple[int, ...]) -> Plan:
    outs = [body.outs[i] for i in given]
    cotangents = b.params(outs, start=len(body.params))
    found = grad.gradient(outs, [body.params[i] for i in wanted], cotangents)
    sources = tuple(i for i, g in zip(wanted, found) if g is not None)
    derivative = [g for g in found if g is not None]
    handed = residuals(derivative, body.params, cotangents, body.recompute)
    backward = body_over(
        (*handed, *cotangents), derivative, f"{body.name}.gradient", body.recompute
    )
    number = {p: i for i, p in enumerate(body.params)}
    extra = [r for r in handed if r not in number]
    place = {r: len(body.outs) + k for k, r in enumerate(extra)}
    reads = tuple(("param", number[r]) if r in number else ("out", place[r]) for r in handed)
    return Plan(extended(body, extra), backward, reads, sources)


def extended(body: Body, extra: list[Node]) -> Body:
    """The body with more results."""
    if not extra:
        return body
    return Body((*body.outs, *extra), body.params, body.name, recompute=body.recompute)


def wrapped(body: Body) -> Body:
    """A body that calls `body`, so that CALL's rules (a custom gradient) apply to each step."""
    if "wrapped" not in body.memo:
        body.memo["wrapped"] = Body(tuple(b.calls(body, body.params)), body.params, body.name)
    return body.memo["wrapped"]


def _custom(
    body: Body, gradient: Body, srcs: tuple[Node, ...], results: dict[int, Node], wanted: list[int]
) -> dict[int, Node]:
    check_custom(body, gradient)
    outs = b.calls(body, srcs)
    cotangents = [results[i] if i in results else b.zeros(out) for i, out in enumerate(outs)]
    given = (*srcs, *outs, *cotangents)
    return {i: b.call(gradient, given, i) for i in wanted}


def check_custom(body: Body, gradient: Body) -> None:
    """A custom gradient takes parameters, results and cotangents, and gives the parameters'."""
    takes = len(body.params) + 2 * len(body.outs)
    if len(gradient.params) != takes or len(gradient.outs) != len(body.params):
        raise GradientError(
            f"gradient of body {body.name!r}: it takes {len(gradient.params)} values and gives "
            f"{len(gradient.outs)}; expected {takes} ({len(body.params)} parameters, "
            f"{len(body.outs)} results, {len(body.outs)} cotangents) and {len(body.params)}"
        )
