"""Functions of functions: derivatives, checkpointing, custom gradients (vmap, scan: repeat.py).

A function is traced on stand-ins: tensors whose nodes are INPUTs of their own. What it returns is a
graph over the stand-ins, which `muladd.transform` turns into another; then the stand-ins are
exchanged for the real arguments. So all of these nest in any order.
"""
from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np

from muladd import transform
from muladd.errors import GradientError
from muladd.ir import Body, CallArg, Node, iota, make, ops, substitute
from muladd.tensor import backend
from muladd.tensor import graph as g
from muladd.tensor.arguments import check_function, device_of, name_of, tensors_of
from muladd.tensor.handle import _leaves, no_grad, set_grad_enabled
from muladd.tensor.repeat import scan, vmap
from muladd.tensor.tensor import Tensor
from muladd.tensor.tree import flatten, tree_leaves, tree_map, unflatten
from muladd.transform.residuals import body_over

__all__ = [
    "checkpoint", "custom_gradient", "flatten", "grad", "hessian", "jacobian", "jvp", "no_grad",
    "scan", "tree_leaves", "tree_map", "unflatten", "value_and_grad", "vjp", "vmap",
]  # fmt: skip


class _StandIns:
    """Stand-ins for the tensors of some arguments, and the way back."""

    def __init__(self, tree: Any) -> None:
        self.tensors, self.structure = flatten(tree)
        self.nodes = [backend.defer(t.node, t.device) for t in self.tensors]
        self.handles = [Tensor._of(n, t.device) for n, t in zip(self.nodes, self.tensors)]
        for node, handle in zip(self.nodes, self.handles):
            # known as leaves, so that asking for a value inside keeps the graph
            _leaves[node.arg] = (weakref.ref(handle), False)

    @property
    def tree(self) -> Any:
        return unflatten(self.structure, self.handles)

    def resolve(self, nodes: Sequence[Node]) -> list[Node]:
        """The nodes over the real arguments."""
        back = {n: t.node for n, t in zip(self.nodes, self.tensors)}
        return list(substitute(tuple(nodes), back))


def _as_tensors(arguments: Sequence[Any]) -> list[Any]:
    """Arguments to differentiate by: a Python float is a tensor."""
    return [Tensor(x) if isinstance(x, float | np.floating) else x for x in arguments]


def _replaced(
    who: str, arguments: Sequence[Any], argnums: int | Sequence[int]
) -> tuple[list[Any], _StandIns]:
    """All arguments, those of `argnums` exchanged for stand-ins; and these."""
    numbers = (argnums,) if isinstance(argnums, int) else tuple(argnums)
    for i in numbers:
        if not -len(arguments) <= i < len(arguments):
            raise GradientError(
                f"{who}: argnums names argument {i}, but {len(arguments)} came by position"
            )
    chosen = _as_tensors([arguments[i] for i in numbers])
    for i, x in zip(numbers, chosen):
        if not any(t.dtype.is_float for t in tree_leaves(x)):
            given = g.describe(x.node) if isinstance(x, Tensor) else type(x).__name__
            raise GradientError(
                f"{who}: argument {i} is {given}; a derivative is by a float, a float tensor, or a "
                "container of such"
            )
    inside = _StandIns(chosen)
    replaced = list(arguments)
    for i, new in zip(numbers, inside.tree):
        replaced[i] = new
    return replaced, inside


def _scalar(who: str, out: Any) -> Tensor:
    if not isinstance(out, Tensor) or any(not g.equal_dims(n, 1) for n in out.shape):
        given = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise GradientError(
            f"{who}: the function must return a tensor of one element, got {given}; use jacobian, "
            "or has_aux=True if it returns (loss, something)"
        )
    if not out.dtype.is_float:
        raise GradientError(f"{who}: the function returned {out.dtype.name}, expected a float")
    return out


def value_and_grad(
    function: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable:
    """(value, gradient) of a function with a scalar result.

    The gradient has the structure of argument `argnums` (a tuple of them for several), a tensor for
    each float tensor in it and None for the others. With has_aux the function returns (loss, aux),
    and the value is that pair.
    """
    check_function("grad", function)

    @wraps(function)
    def with_gradient(*arguments: Any, **named: Any) -> tuple[Any, Any]:
        replaced, inside = _replaced("grad", arguments, argnums)
        with set_grad_enabled(True):
            result = function(*replaced, **named)
            if has_aux and not (isinstance(result, tuple) and len(result) == 2):
                raise GradientError("grad: with has_aux the function must return (loss, aux)")
            loss = _scalar("grad", result[0] if has_aux else result)
            outs, structure = flatten(result)
            grads = _pull(loss, inside)
        real = inside.resolve([t._value() for t in outs])
        value = unflatten(structure, [t._of(n, t.device) for n, t in zip(real, outs)])
        gradient = unflatten(inside.structure, grads)
        return value, gradient[0] if isinstance(argnums, int) else tuple(gradient)

    return with_gradient


def _pull(loss: Tensor, inside: _StandIns) -> list[Tensor | None]:
    wanted = [(i, n) for i, n in enumerate(inside.nodes) if n.dtype.is_float]
    one = g.like(loss.node, 1)
    found = transform.gradient([loss.node], [n for _, n in wanted], [one])
    nodes = [g.like(n, 0) if c is None else c for c, (_, n) in zip(found, wanted)]
    grads: list[Tensor | None] = [None] * len(inside.nodes)
    for (i, _), node in zip(wanted, inside.resolve(nodes)):
        grads[i] = Tensor._of(node, inside.tensors[i].device)
    return grads


def grad(
    function: Callable, argnums: int | Sequence[int] = 0, has_aux: bool = False
) -> Callable:
    """The gradient of a function with a scalar result; with has_aux, (gradient, aux)."""
    both = value_and_grad(function, argnums, has_aux)

    @wraps(function)
    def gradient(*arguments: Any, **named: Any) -> Any:
        value, found = both(*arguments, **named)
        return (found, value[1]) if has_aux else found

    return gradient


def _check_alike(what: str, given: Sequence[Node], wanted: Sequence[Node]) -> None:
    for i, (x, like) in enumerate(zip(given, wanted)):
        if like.dtype.is_float and not (
            g.equal_shapes(x.shape, like.shape) and x.dtype is like.dtype
        ):
            raise GradientError(f"{what} {i} is {g.describe(x)}, expected {g.describe(like)}")


def vjp(function: Callable, *primals: Any) -> tuple[Any, Callable]:
    """(result, f): f takes cotangents in the result's structure, gives a tuple for the primals."""
    check_function("vjp", function)
    inside = _StandIns(tuple(_as_tensors(primals)))
    with set_grad_enabled(True):
        outs, structure = tensors_of(function(*inside.tree))
        out_nodes = [t.node for t in outs]
    real = inside.resolve(out_nodes)
    result = unflatten(structure, [Tensor._of(n, t.device) for n, t in zip(real, outs)])

    def pull(cotangents: Any) -> Any:
        given, _ = tensors_of(cotangents)
        if len(given) != len(outs):
            raise GradientError(f"vjp: got {len(given)} cotangents for {len(outs)} results")
        _check_alike("vjp: cotangent", [c.node for c in given], out_nodes)
        floats = [(o, c.node) for o, c in zip(out_nodes, given) if o.dtype.is_float]
        found = transform.gradient([o for o, _ in floats], inside.nodes, [c for _, c in floats])
        nodes = [g.like(n, 0) if c is None else c for c, n in zip(found, inside.nodes)]
        grads = [Tensor._of(n, t.device) for n, t in zip(inside.resolve(nodes), inside.tensors)]
        return unflatten(inside.structure, grads)

    return result, pull


def jvp(function: Callable, primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    """(result, its tangent) at the primals, moved along the tangents."""
    check_function("jvp", function)
    inside = _StandIns(tuple(_as_tensors(primals)))
    moved = tree_leaves(_as_tensors(tangents))
    if len(moved) != len(inside.tensors):
        raise GradientError(
            f"jvp: got {len(moved)} tangents for {len(inside.tensors)} tensors in the primals"
        )
    _check_alike("jvp: tangent", [t.node for t in moved], inside.nodes)
    with set_grad_enabled(True):
        outs, structure = tensors_of(function(*inside.tree))
        out_nodes = [t.node for t in outs]
    directions = [t.node if t.dtype.is_float else None for t in moved]
    found = transform.jvp(out_nodes, inside.nodes, directions)
    nodes = [g.like(o, 0) if t is None else t for o, t in zip(out_nodes, found)]
    real = inside.resolve([*out_nodes, *nodes])
    handles = [Tensor._of(n, device_of(outs)) for n in real]
    k = len(outs)
    return unflatten(structure, handles[:k]), unflatten(structure, handles[k:])


def jacobian(function: Callable, argnums: int | Sequence[int] = 0) -> Callable:
    """All derivatives of a function of tensors: result shape + argument shape, for each pair.

    One reverse pass, vectorised over the elements of the result.
    """
    check_function("jacobian", function)

    @wraps(function)
    def derivatives(*arguments: Any, **named: Any) -> Any:
        replaced, inside = _replaced("jacobian", arguments, argnums)
        with set_grad_enabled(True):
            outs, structure = tensors_of(function(*replaced, **named))
            rows = [_rows(t.node, inside) for t in outs]
        result = unflatten(
            structure, [unflatten(inside.structure, r) for r in rows]
        )
        if isinstance(argnums, int):
            return _first(result, structure, rows, inside)
        return result

    return derivatives


def _first(result: Any, structure: Any, rows: list, inside: _StandIns) -> Any:
    """One argument: its derivatives without the list around them."""
    return unflatten(structure, [unflatten(inside.structure, r)[0] for r in rows])


def _rows(out: Node, inside: _StandIns) -> list[Tensor]:
    count = g.dims_product(out.shape)
    seed = backend.defer(g.like(out, 1), device_of(inside.tensors))
    found = transform.gradient([out], inside.nodes, [seed])
    nodes = [g.like(n, 0) if c is None else c for c, n in zip(found, inside.nodes)]
    square = (count, count)
    same = g.eq(g.along(iota(count), 0, square), g.along(iota(count), 1, square))
    basis = g.reshape(g.cast(same, out.dtype), (count, *out.shape))
    batched = transform.vectorize(nodes, [seed], [basis], [0])
    shaped = [g.reshape(b, (*out.shape, *n.shape)) for b, n in zip(batched, nodes)]
    return [Tensor._of(n, t.device) for n, t in zip(inside.resolve(shaped), inside.tensors)]


def hessian(function: Callable, argnums: int = 0) -> Callable:
    """All second derivatives of a function with a scalar result."""
    return jacobian(grad(function, argnums), argnums)


def checkpoint(function: Callable) -> Callable:
    """The function, of whose inside nothing is kept for the derivative: it is computed again."""
    check_function("checkpoint", function)

    @wraps(function)
    def checkpointed(*arguments: Any, **named: Any) -> Any:
        inside = _StandIns((arguments, named))
        replaced, replaced_named = inside.tree
        outs, structure = flatten(function(*replaced, **replaced_named))
        name = getattr(function, "__name__", "checkpoint")
        nodes = transform.checkpoint([t.node for t in outs], inside.nodes, name)
        real = inside.resolve(nodes)
        return unflatten(structure, [t._of(n, t.device) for n, t in zip(real, outs)])

    return checkpointed


def custom_gradient(function: Callable) -> Callable:
    """A function with a derivative of its own: it returns (result, backward).

    `backward` takes one cotangent per tensor of the result and returns one per tensor of the
    arguments (None: zero). Values that the function closes over count as constants.
    """
    check_function("custom_gradient", function)

    @wraps(function)
    def call(*arguments: Any) -> Any:
        inside = _StandIns(arguments)
        both = function(*inside.tree)
        if not (isinstance(both, tuple) and len(both) == 2 and callable(both[1])):
            raise GradientError(
                f"custom_gradient of {name_of(function)}: the function must return (result, "
                "backward), backward being a function of cotangents"
            )
        result, backward = both
        outs, structure = flatten(result)
        out_nodes = [t.node for t in outs]
        cotangents = [backend.defer(g.like(n, 1), t.device) for n, t in zip(out_nodes, outs)]
        given = backward(*[Tensor._of(c, t.device) for c, t in zip(cotangents, outs)])
        given = list(given) if isinstance(given, list | tuple) else [given]
        if len(given) != len(inside.nodes):
            raise GradientError(
                f"custom_gradient {function.__name__!r}: backward returned {len(given)} cotangents "
                f"for {len(inside.nodes)} tensors in the arguments"
            )
        grads = [_fitting(c, n, function.__name__) for c, n in zip(given, inside.nodes)]
        body, sources = _with_gradient(
            function.__name__, inside.nodes, out_nodes, cotangents, grads
        )
        nodes = [make(ops.CALL, tuple(sources), CallArg(body, i)) for i in range(len(outs))]
        real = inside.resolve(nodes)
        return unflatten(structure, [t._of(n, t.device) for n, t in zip(real, outs)])

    return call


def _fitting(cotangent: Any, node: Node, who: str) -> Node:
    if cotangent is None:
        return g.like(node, 0)
    if cotangent.shape != node.shape:
        raise GradientError(
            f"custom_gradient {who!r}: a cotangent of shape {list(cotangent.shape)} for an "
            f"argument of shape {list(node.shape)}"
        )
    return g.cast(cotangent.node, node.dtype)


def _with_gradient(
    name: str, inputs: list[Node], outs: list[Node], cotangents: list[Node], grads: list[Node]
) -> tuple[Body, list[Node]]:
    """(the body with its gradient body, the sources it is called with)."""
    _, captured = transform.lift([*outs, *grads], [*inputs, *cotangents])
    sources = [*inputs, *captured]
    body = body_over(sources, outs, name)
    # the gradient reads results where they are distinct nodes, instead of computing them again
    taken = set(sources)
    results = []
    for n in outs:
        results.append(n if n not in taken else backend.defer(n, _where(n)))
        taken.add(n)
    all_grads = [*grads, *[g.like(c, 0) for c in captured]]
    back = body_over([*sources, *results, *cotangents], all_grads, f"{name}_gradient")
    return replace(body, gradient=back, memo={}), sources


def _where(node: Node) -> str:
    return node.arg.device if node.op is ops.INPUT else backend.default_device()
