"""Calls replaced by the bodies they call, for passes that want to see across the border."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from muladd.ir import ops
from muladd.ir.node import Body, Node, toposort
from muladd.rewrite.engine import keep_sum_form, through_bodies


def inline_calls(
    outputs: Sequence[Node], keep: Callable[[Body], bool] = lambda body: False
) -> tuple[Node, ...]:
    """The outputs with every CALL replaced by its body over the call's sources, nested ones too.

    SCAN bodies are entered. Bodies that ask to be recomputed, and those `keep` names, stay calls.
    In the exact profile the bits stay the same: see `keep_sum_form`.
    """
    return through_bodies(outputs, lambda outs: _inline(outs, keep), keep_sum_form)


def _inline(outputs: tuple[Node, ...], keep: Callable[[Body], bool]) -> tuple[Node, ...]:
    done: dict[Node, Node] = {}
    # one walk per (body, arguments): a call's results share it
    walked: dict[tuple, tuple[Node, ...]] = {}
    for node in toposort(outputs):
        srcs = tuple([done[s] for s in node.srcs])
        if node.op is ops.CALL and not node.arg.body.recompute and not keep(node.arg.body):
            body = node.arg.body
            key = (body, srcs)
            if key not in walked:
                walked[key] = _apply(body, srcs)
            done[node] = walked[key][node.arg.out]
        else:
            done[node] = node if srcs == node.srcs else keep_sum_form(node, srcs)
    return tuple(done[o] for o in outputs)


def _apply(body: Body, srcs: tuple[Node, ...]) -> tuple[Node, ...]:
    """The body's results with its parameters exchanged for sources. Its own calls are inlined."""
    done: dict[Node, Node] = dict(zip(body.params, srcs))
    for node in toposort(body.outs, into=lambda n: n not in done):
        if node not in done:
            new = tuple([done[s] for s in node.srcs])
            done[node] = node if new == node.srcs else keep_sum_form(node, new)
    return tuple(done[o] for o in body.outs)


