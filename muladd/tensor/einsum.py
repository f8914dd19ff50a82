"""Einstein summation: pairs of operands become one matrix product each, from left to right."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muladd.errors import ShapeError
from muladd.ir import Dim, sym
from muladd.ir.ops import equal_dims
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.linear import common_dtype, matrix_product
from muladd.tensor.operands import as_operand

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


def einsum(equation: str, operands: Sequence[Any]) -> Tensor:
    """See Tensor.einsum."""
    if not operands or not any(isinstance(t, Handle) for t in operands):
        raise ShapeError("einsum: expected at least one tensor after the equation")
    device = next(t.device for t in operands if isinstance(t, Handle))
    tensors = [as_operand(t, device, "einsum") for t in operands]
    inputs, output = _parse(equation, [t.ndim for t in tensors])
    terms = [_diagonals(t, names) for t, names in zip(tensors, inputs)]
    sizes: dict[str, Dim] = {}
    for t, names in terms:
        for n, name in zip(t.shape, names):
            if name in sizes and not equal_dims(sizes[name], 1) and not equal_dims(n, 1) \
                    and not equal_dims(sizes[name], n):  # fmt: skip
                raise ShapeError(
                    f"einsum {equation!r}: {name!r} is {sizes[name]} in one operand and {n} in "
                    "another"
                )
            if name not in sizes or equal_dims(sizes[name], 1):
                sizes[name] = n
    result, names = terms[0]
    for i, (t, other) in enumerate(terms[1:], 1):
        later = set(output).union(*[n for _, n in terms[i + 1 :]])
        result, names = _pair(result, names, t, other, later)
    gone = [i for i, name in enumerate(names) if name not in output]
    if gone:
        result = result.sum(tuple(gone), dtype=result.dtype)
        names = [name for name in names if name in output]
    result = result.permute([names.index(name) for name in output if name in names])
    return result.expand([sizes[name] for name in output])


def _parse(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise ShapeError(
            f"einsum {equation!r}: names {len(terms)} operands, {len(ranks)} were given"
        )
    inputs = []
    widest = 0
    for term, rank in zip(terms, ranks):
        letters = term.replace("...", "", 1)
        if not all(c.isalpha() for c in letters):
            raise ShapeError(f"einsum {equation!r}: {term!r} is not made of letters and one '...'")
        extra = rank - len(letters)
        if extra < 0 or (extra and "..." not in term):
            raise ShapeError(f"einsum {equation!r}: {term!r} does not name {rank} axes")
        head, _, tail = term.partition("...")
        dots = [f".{k}" for k in range(extra, 0, -1)] if "..." in term else []
        widest = max(widest, len(dots))
        inputs.append([*head, *dots, *tail])
    ellipsis = [f".{k}" for k in range(widest, 0, -1)]
    if arrow:
        head, _, tail = right.partition("...")
        output = [*head, *(ellipsis if "..." in right else []), *tail]
    else:
        counted = [c for term in terms for c in term.replace("...", "")]
        output = ellipsis + sorted(c for c in set(counted) if counted.count(c) == 1)
    known = {name for names in inputs for name in names}
    if len(set(output)) != len(output) or not set(output) <= known:
        raise ShapeError(f"einsum {equation!r}: the result names an axis twice, or an unknown one")
    return inputs, output


def _diagonals(t: Any, names: list[str]) -> tuple[Any, list[str]]:
    """A name that occurs twice in one operand is its diagonal."""
    names = list(names)
    while len(set(names)) < len(names):
        name = next(n for n in names if names.count(n) > 1)
        first = names.index(name)
        second = names.index(name, first + 1)
        t = t.diagonal(0, first, second)
        names = [n for i, n in enumerate(names) if i not in (first, second)] + [name]
    return t, names


def _pair(
    a: Any, a_names: list[str], b: Any, b_names: list[str], later: set[str]
) -> tuple[Any, list[str]]:
    """The product of two operands, summed over the names that nobody needs later."""
    d = common_dtype("einsum", a, b)
    a, a_names = _drop(a, a_names, later | set(b_names))
    b, b_names = _drop(b, b_names, later | set(a_names))
    shared = [n for n in a_names if n in b_names]
    summed = [n for n in shared if n not in later]
    batch = [n for n in shared if n in later]
    rows = [n for n in a_names if n not in shared]
    columns = [n for n in b_names if n not in shared]
    if any(not equal_dims(a.shape[a_names.index(n)], b.shape[b_names.index(n)]) for n in summed):
        # one side has size 1: repeat it, so that both can be joined into one axis
        a, b = _matched(a, a_names, b, b_names, summed)
    left = a.permute([a_names.index(n) for n in (*batch, *rows, *summed)])
    right = b.permute([b_names.index(n) for n in (*batch, *summed, *columns)])
    k, r = len(batch), len(rows)
    m = left.shape[k : k + r]
    n = right.shape[k + len(summed) :]
    inner = sym.product(left.shape[k + r :])
    x = left.reshape((*left.shape[:k], sym.product(m), inner)).node
    w = right.reshape((*right.shape[:k], inner, sym.product(n))).node
    product = matrix_product(g.cast(x, d), g.cast(w, d), "einsum")
    lead = product.shape[:k]
    return a._result(g.reshape(product, (*lead, *m, *n))), [*batch, *rows, *columns]


def _drop(t: Any, names: list[str], needed: set[str]) -> tuple[Any, list[str]]:
    gone = tuple(i for i, n in enumerate(names) if n not in needed)
    if not gone:
        return t, names
    return t.sum(gone, dtype=t.dtype), [n for n in names if n in needed]


def _matched(a: Any, a_names: list[str], b: Any, b_names: list[str], summed: list[str]) -> Any:
    a_shape, b_shape = list(a.shape), list(b.shape)
    for n in summed:
        i, j = a_names.index(n), b_names.index(n)
        a_shape[i] = b_shape[j] = b_shape[j] if equal_dims(a_shape[i], 1) else a_shape[i]
    return a.expand(a_shape), b.expand(b_shape)
