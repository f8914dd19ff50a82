"""Products of matrices, vectors and tensors. Each is one MUL directly under one SUM."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError, ShapeError
from muladd.ir import DType, Node, Shape, sym
from muladd.ir import dtype as dt
from muladd.ir.ops import equal_dims
from muladd.tensor import graph as g
from muladd.tensor import precision
from muladd.tensor.handle import Handle
from muladd.tensor.movement import tensors_given
from muladd.tensor.operands import one_device

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Linear(Handle):
    """Matrix products and what is written with them."""

    __slots__ = ()

    def matmul(self, other: Any) -> Tensor:
        """The matrix product over the last two axes; vectors lend a row or a column."""
        if not isinstance(other, Handle):
            other = self._made(other)
        return self._result(_matmul("matmul", self, other))

    def mm(self, other: Tensor) -> Tensor:
        """The product of two matrices."""
        _ranks("mm", (self, 2), (other, 2))
        return self._result(_matmul("mm", self, other))

    def bmm(self, other: Tensor) -> Tensor:
        """The products of two stacks of matrices."""
        _ranks("bmm", (self, 3), (other, 3))
        return self._result(_matmul("bmm", self, other))

    def mv(self, other: Tensor) -> Tensor:
        """A matrix times a vector."""
        _ranks("mv", (self, 2), (other, 1))
        return self._result(_matmul("mv", self, other))

    def dot(self, other: Tensor) -> Tensor:
        """The sum of products of two vectors."""
        _ranks("dot", (self, 1), (other, 1))
        return self._result(_matmul("dot", self, other))

    def inner(self, other: Tensor) -> Tensor:
        """The sum of products over the last axis of both."""
        if not self.ndim or not other.ndim:
            return self * other
        return self.tensordot(other, ([-1], [-1]))

    def outer(self, other: Tensor) -> Tensor:
        """Every element of one vector times every element of another."""
        _ranks("outer", (self, 1), (other, 1))
        return self.unsqueeze(1) * other.unsqueeze(0)

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias; weight is (out, in)."""
        weight = weight.unsqueeze(0) if weight.ndim == 1 else weight
        if not self.ndim or not equal_dims(self.shape[-1], weight.shape[-1]):
            raise ShapeError(
                f"linear: the input {list(self.shape)} has {self.shape[-1:]} features, the weight "
                f"{list(weight.shape)} takes {weight.shape[-1]}"
            )
        result = self.matmul(weight.transpose(-2, -1))
        return result if bias is None else result + precision.lowered(bias)

    def addmm(self, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        """beta * self + alpha * (a @ b), for matrices."""
        return _scaled(self, beta) + _scaled(a.mm(b), alpha)

    def addmv(self, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        """beta * self + alpha * (a @ b), for a matrix and a vector."""
        return _scaled(self, beta) + _scaled(a.mv(b), alpha)

    def addr(self, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        """beta * self + alpha * outer(a, b)."""
        return _scaled(self, beta) + _scaled(a.outer(b), alpha)

    def baddbmm(self, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        """beta * self + alpha * (a @ b), for stacks of matrices."""
        return _scaled(self, beta) + _scaled(a.bmm(b), alpha)

    def addbmm(self, a: Tensor, b: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
        """beta * self + alpha * (the sum of a[i] @ b[i])."""
        return _scaled(self, beta) + _scaled(a.bmm(b).sum(0), alpha)

    def tensordot(self, other: Tensor, dims: Any = 2) -> Tensor:
        """Sum of products over pairs of axes: a count (last of self, first of other) or two lists.
        """
        if isinstance(dims, int):
            mine = list(range(self.ndim - dims, self.ndim))
            theirs = list(range(dims))
        else:
            mine = [g.axis_of("tensordot", a, self.ndim) for a in _listed(dims[0])]
            theirs = [g.axis_of("tensordot", a, other.ndim) for a in _listed(dims[1])]
        if [self.shape[a] for a in mine] != [other.shape[a] for a in theirs]:
            raise ShapeError(
                f"tensordot: axes {mine} of {list(self.shape)} and {theirs} of "
                f"{list(other.shape)} differ in size"
            )
        free = [a for a in range(self.ndim) if a not in mine]
        other_free = [a for a in range(other.ndim) if a not in theirs]
        inner = sym.product(self.shape[a] for a in mine)
        left = self.permute(*free, *mine).reshape((-1 if free else 1, inner))
        right = other.permute(*theirs, *other_free).reshape((inner, -1 if other_free else 1))
        shape = (*[self.shape[a] for a in free], *[other.shape[a] for a in other_free])
        return left.matmul(right).reshape(shape)

    def kron(self, other: Tensor) -> Tensor:
        """The Kronecker product: every element of self times the whole of other."""
        rank = max(self.ndim, other.ndim)
        a = (1,) * (rank - self.ndim) + tuple(self.shape)
        b = (1,) * (rank - other.ndim) + tuple(other.shape)
        left = self.reshape([v for n in a for v in (n, 1)])
        right = other.reshape([v for n in b for v in (1, n)])
        return (left * right).reshape([n * m for n, m in zip(a, b)])

    def chain_matmul(self, *others: Tensor) -> Tensor:
        """The product of several matrices, from left to right."""
        result: Any = self
        for other in others:
            result = result.mm(other)
        return result

    def matrix_power(self, n: int) -> Tensor:
        """A square matrix multiplied with itself n times (n < 0: its inverse)."""
        x: Any = self.inverse() if n < 0 else self
        n = abs(n)
        result = None
        while n:
            if n & 1:
                result = x if result is None else result.matmul(x)
            n >>= 1
            x = x.matmul(x) if n else x
        if result is None:
            return x.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand(x.shape)
        return result

    def trace(self) -> Tensor:
        """The sum of a matrix's diagonal."""
        _ranks("trace", (self, 2))
        return self.diagonal().sum()

    def cross(self, other: Tensor, dim: int = -1) -> Tensor:
        """The cross product of vectors of three numbers along an axis."""
        a = g.axis_of("cross", dim, self.ndim)
        if self.shape[a] != 3 or other.shape[a] != 3:
            raise ShapeError(
                f"cross: axis {dim} of {list(self.shape)} and {list(other.shape)} must have size 3"
            )
        return self.roll(-1, a) * other.roll(-2, a) - self.roll(-2, a) * other.roll(-1, a)

    def cosine_similarity(self, other: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
        """The cosine of the angle between vectors along an axis."""
        product = (self * other).sum(dim)
        return product / (self.norm(2, dim).clamp(eps) * other.norm(2, dim).clamp(eps))

    def pairwise_distance(self, other: Tensor, p: float = 2.0, eps: float = 1e-6) -> Tensor:
        """The p-norm of (self - other + eps) over the last axis."""
        return (self - other + eps).norm(p, -1)

    def cdist(self, other: Tensor, p: float = 2.0) -> Tensor:
        """The p-norm distance of every row of self to every row of other."""
        return (self.unsqueeze(-2) - other.unsqueeze(-3)).norm(p, -1)

    @classmethod
    def einsum(cls, equation: str, *operands: Any) -> Tensor:
        """Sums of products named by letters, such as 'bij,bjk->bik'; '...' stands for any axes."""
        from muladd.tensor.einsum import einsum

        if len(operands) == 1 and isinstance(operands[0], list | tuple):
            operands = tuple(operands[0])
        return einsum(equation, operands)


    def adjoint(self) -> Tensor:
        """The last two axes exchanged."""
        return self.transpose(-2, -1)

    def ger(self, other: Tensor) -> Tensor:
        """The same as outer."""
        return self.outer(other)

    def vdot(self, other: Tensor) -> Tensor:
        """The same as dot."""
        return self.dot(other)

    def vecdot(self, other: Tensor, dim: int = -1) -> Tensor:
        """The sum of products along one axis."""
        return (self * other).sum(dim)

    def multi_dot(self, *others: Any) -> Tensor:
        """The product of a chain of matrices."""
        first, *rest = tensors_given("multi_dot", self, others)
        return first.chain_matmul(*rest) if rest else first

    def vector_norm(self, ord: Any = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The p-norm of the elements."""
        return self.norm(ord, dim, keepdim)

    def matrix_norm(self, ord: Any = "fro", keepdim: bool = False) -> Tensor:
        """A norm of the last two axes: 'fro', 1, -1, inf, -inf, 2, -2 or 'nuc'."""
        if ord == "fro":
            return self.norm(2, (-2, -1), keepdim)
        if ord in (2, -2, "nuc"):
            values = self.svdvals()
            result = values.sum(-1) if ord == "nuc" else \
                values.amax(-1) if ord == 2 else values.amin(-1)  # fmt: skip
        elif ord in (1, -1, math.inf, -math.inf):
            sums = self.abs().sum(-2 if abs(ord) == 1 else -1)
            result = sums.amax(-1) if ord > 0 else sums.amin(-1)
        else:
            raise ShapeError(f"matrix_norm: ord={ord!r}, expected fro, nuc, 1, 2, inf or negative")
        return result.unsqueeze(-1).unsqueeze(-1) if keepdim else result

    def bilinear(self, other: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """x1 weight[k] x2 + bias[k] for each k; weight is (out, in1, in2)."""
        product = self.einsum("...i,kij,...j->...k", self, weight, other)
        return product if bias is None else product + bias


def _scaled(x: Any, factor: Any) -> Any:
    return x if factor == 1 else x * factor


def _listed(axes: Any) -> Sequence[int]:
    return axes if isinstance(axes, list | tuple) else [axes]


def _ranks(who: str, *expected: tuple[Any, int]) -> None:
    for x, rank in expected:
        if not isinstance(x, Handle):
            raise DTypeError(f"{who}: expected a Tensor, got {type(x).__name__}")
        if x.ndim != rank:
            raise ShapeError(f"{who}: expected {rank} axes, got {list(x.shape)}")


def common_dtype(who: str, a: Handle, b: Handle) -> DType:
    """The dtype of a product of two tensors on one device."""
    one_device(who, (a, b))
    d = dt.promote(a.dtype, b.dtype)
    if d is dt.bool_:
        raise DTypeError(f"{who}: bool has no sum of products; cast to an integer or a float first")
    return precision.of_products(d)


def _matmul(who: str, a: Handle, b: Handle) -> Node:
    if not a.ndim or not b.ndim:
        raise ShapeError(f"{who}: needs at least one axis, got {list(a.shape)} and {list(b.shape)}")
    d = common_dtype(who, a, b)
    x = a.node if a.ndim > 1 else g.unsqueeze(a.node, 0)
    w = b.node if b.ndim > 1 else g.unsqueeze(b.node, 1)
    if not equal_dims(x.shape[-1], w.shape[-2]):
        raise ShapeError(
            f"{who}: {list(a.shape)} @ {list(b.shape)}: the inner sizes {x.shape[-1]} and "
            f"{w.shape[-2]} differ"
        )
    product = matrix_product(g.cast(x, d), g.cast(w, d), who)
    shape = list(product.shape)
    if b.ndim == 1:
        del shape[-1]
    if a.ndim == 1:
        del shape[-2 if b.ndim > 1 else -1]
    return g.reshape(product, tuple(shape))


def matrix_product(x: Node, w: Node, who: str = "matmul") -> Node:
    """(..., M, K) times (..., K, N): products laid out (..., M, K, N), summed over K."""
    d = x.dtype
    wide = g.accumulator(d)
    x, w = g.cast(x, wide), g.cast(w, wide)
    lead = g.broadcast_shapes(who, x.shape[:-2], w.shape[:-2])
    m, k, n = x.shape[-2], x.shape[-1], w.shape[-1]
    shape: Shape = (*lead, m, k, n)
    left = g.expand(g.reshape(x, (*x.shape, 1)), shape)
    right = g.expand(g.reshape(w, (*w.shape[:-2], 1, k, n)), shape)
    return g.cast(g.total(g.mul(left, right), (len(shape) - 2,)), d)


