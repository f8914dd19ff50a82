"""Less common functions, each written in terms of other methods of tensors."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from muladd.errors import DTypeError, ShapeError
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.mathematics import logaddexp
from muladd.tensor.movement import Movement, tensors_given
from muladd.tensor.operands import check_floating, is_number, scalar_as_vector
from muladd.tensor.reduce import UNSET, ValuesIndices, chosen

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Composed(Handle):
    """Names of torch and NumPy that need no more than the methods there are."""

    __slots__ = ()

    # --- numbers ----------------------------------------------------------------------------------

    def true_divide(self, other: Any) -> Tensor:
        """The same as div."""
        return self / other

    def positive(self) -> Tensor:
        """+x."""
        if self.dtype is dt.bool_:
            raise DTypeError("positive: bool has no sign; cast first")
        return self.clone()

    def float_power(self, exponent: Any) -> Tensor:
        """self ** exponent, computed in float64."""
        exponent = exponent if is_number(exponent) else exponent.double()
        return self.double() ** exponent

    def ldexp(self, other: Any) -> Tensor:
        """self * 2**other."""
        if is_number(other):
            return self * 2.0**other
        return self * (other if other.dtype.is_float else other.float()).exp2()

    def logaddexp2(self, other: Any) -> Tensor:
        """log2(2**a + 2**b) without overflow."""
        return self._real2("logaddexp2", other, lambda a, b: g.mul(
            logaddexp(g.mul(a, g.LN_2), g.mul(b, g.LN_2)), g.LOG2_E))  # fmt: skip

    def entr(self) -> Tensor:
        """-x log(x); 0 at 0, -inf below."""
        return (self < 0).where(-math.inf, -self.xlogy((self < 0).where(1.0, self)))

    def ndtr(self) -> Tensor:
        """The normal distribution function: the share of a standard normal below x."""
        return (self * -math.sqrt(0.5)).erfc() * 0.5

    def mvlgamma(self, p: int) -> Tensor:
        """The logarithm of the multivariate gamma function of dimension p."""
        total: Any = p * (p - 1) / 4 * math.log(math.pi)
        for j in range(p):
            total = (self - j / 2).lgamma() + total
        return total

    def dist(self, other: Tensor, p: float = 2.0) -> Tensor:
        """The p-norm of the difference."""
        return (self - other).norm(p)

    def renorm(self, p: float, dim: int, maxnorm: float) -> Tensor:
        """Each entry of an axis scaled down to a p-norm of at most maxnorm."""
        a = g.axis_of("renorm", dim, self.ndim)
        others = tuple(i for i in range(self.ndim) if i != a)
        norms = self.norm(p, others, keepdim=True)
        return self * (norms > maxnorm).where(maxnorm / (norms + 1e-7), 1.0)

    @scalar_as_vector
    def nanmedian(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Any:
        """The middle of what is not NaN (the lower of two), as median."""
        wanted = chosen("nanmedian", axis, dim)
        if wanted is None:
            if self.numel() == 0:
                return self.median()
            return self.flatten().nanmedian(0).values
        if not self.dtype.is_float or self.shape[wanted] == 0:
            return self.median(wanted, keepdim)
        a = g.axis_of("nanmedian", wanted, self.ndim)
        ordered, places = self.sort(a)  # NaN stands last
        count = (~self.isnan()).sum(a, True)
        middle = ((count - 1) // 2).clamp(min=0)
        values, indices = ordered.gather(a, middle), places.gather(a, middle)
        if keepdim:
            return ValuesIndices(values, indices)
        return ValuesIndices(values.squeeze(a), indices.squeeze(a))

    def isin(self, elements: Any) -> Tensor:
        """Whether each element is among `elements`."""
        elements = elements if isinstance(elements, Handle) else self._made(elements)
        return (self.unsqueeze(-1) == elements.flatten()).any(-1)

    def unique_consecutive(
        self, return_inverse: bool = False, return_counts: bool = False
    ) -> Any:
        """The elements without those equal to the one before. Runs, because their number is data.
        """
        values = self.numpy().reshape(-1)
        new = np.ones(values.shape, bool)
        new[1:] = values[1:] != values[:-1]
        starts = np.flatnonzero(new)
        result = [self.flatten()[self._made(starts)]]
        if return_inverse:
            result.append(self._made(np.cumsum(new) - 1).reshape(self.shape))
        if return_counts:
            result.append(self._made(np.diff([*starts.tolist(), values.size])))
        return result[0] if len(result) == 1 else tuple(result)

    # --- statistics and integrals -----------------------------------------------------------------

    def cov(self, *, correction: int = 1) -> Tensor:
        """Covariances of the rows, each a variable."""
        x = self.unsqueeze(0) if self.ndim < 2 else self
        check_floating("cov", x)
        centred = x - x.mean(1, True)
        result = centred @ centred.transpose(0, 1) / (x.shape[1] - correction)  # type: ignore
        return result if self.ndim == 2 else result.reshape(())

    def corrcoef(self) -> Tensor:
        """Correlations of the rows, each a variable."""
        c = self.cov()
        if not c.ndim:
            return c / c
        deviation = c.diagonal().sqrt()
        return (c / deviation.unsqueeze(1) / deviation.unsqueeze(0)).clamp(-1, 1)

    def trapezoid(self, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Tensor:
        """The integral over an axis by the trapezoidal rule."""
        return _trapezoids(self, x, dx, dim).sum(dim)

    def cumulative_trapezoid(self, x: Any = None, *, dx: float = 1.0, dim: int = -1) -> Tensor:
        """The integral from the start up to each place, by the trapezoidal rule."""
        return _trapezoids(self, x, dx, dim).cumsum(dim)

    def pdist(self, p: float = 2.0) -> Tensor:
        """The distances of all pairs of rows, as a vector."""
        rows, columns = np.triu_indices(self.shape[0], 1)  # type: ignore[arg-type]
        return (self[self._made(rows)] - self[self._made(columns)]).norm(p, -1)

    def vander(self, N: int | None = None, increasing: bool = False) -> Tensor:
        """Rows of falling (or rising) powers of each element."""
        count = self.shape[0] if N is None else N
        powers = [self**k for k in range(count)]  # type: ignore[arg-type]
        return Movement.stack(*(powers if increasing else powers[::-1]), dim=1)

    # --- joining and splitting --------------------------------------------------------------------

    def atleast_1d(self) -> Any:
        """At least one axis."""
        return self if self.ndim else self.reshape(1)

    def atleast_2d(self) -> Any:
        """At least two axes; new ones in front."""
        return self if self.ndim > 1 else self.reshape((1, -1))

    def atleast_3d(self) -> Any:
        """At least three axes; a matrix gets one behind."""
        if self.ndim > 2:
            return self
        return self.unsqueeze(-1) if self.ndim == 2 else self.reshape((1, -1, 1))

    def column_stack(self, *others: Any) -> Tensor:
        """Joined along axis 1, vectors as columns."""
        tensors = tensors_given("column_stack", self, others)
        return Movement.cat(*[t.reshape((-1, 1)) if t.ndim < 2 else t for t in tensors], dim=1)

    def row_stack(self, *others: Any) -> Tensor:
        """The same as vstack."""
        first, *rest = tensors_given("row_stack", self, others)
        return first.vstack(*rest)

    def dstack(self, *others: Any) -> Tensor:
        """Joined along axis 2."""
        tensors = tensors_given("dstack", self, others)
        return Movement.cat(*[t.atleast_3d() for t in tensors], dim=2)

    def hsplit(self, indices_or_sections: Any) -> tuple[Tensor, ...]:
        """tensor_split along axis 1 (of a vector: its only axis)."""
        return self.tensor_split(indices_or_sections, 0 if self.ndim == 1 else 1)

    def vsplit(self, indices_or_sections: Any) -> tuple[Tensor, ...]:
        """tensor_split along axis 0."""
        return self.tensor_split(indices_or_sections, 0)

    def dsplit(self, indices_or_sections: Any) -> tuple[Tensor, ...]:
        """tensor_split along axis 2."""
        return self.tensor_split(indices_or_sections, 2)

    def block_diag(self, *others: Any) -> Tensor:
        """Matrices along the diagonal of a greater one."""
        tensors = [t.atleast_2d() for t in tensors_given("block_diag", self, others)]
        width, done, rows = sum(t.shape[1] for t in tensors), 0, []
        for t in tensors:
            rows.append(t.pad((done, width - done - t.shape[1])))
            done += t.shape[1]
        return Movement.cat(*rows, dim=0)

    def cartesian_prod(self, *others: Any) -> Tensor:
        """All combinations of the elements of vectors, one a row."""
        tensors = tensors_given("cartesian_prod", self, others)
        if len(tensors) == 1:
            return tensors[0]
        return Movement.stack(*[t.flatten() for t in Movement.meshgrid(*tensors)], dim=1)

    @classmethod
    def tril_indices(cls, row: int, col: int, offset: int = 0, device: Any = None) -> Tensor:
        """The row and column numbers (2, n) of the elements that tril keeps."""
        return cls._array(np.stack(np.tril_indices(row, offset, col)), device)

    @classmethod
    def triu_indices(cls, row: int, col: int, offset: int = 0, device: Any = None) -> Tensor:
        """The row and column numbers (2, n) of the elements that triu keeps."""
        return cls._array(np.stack(np.triu_indices(row, offset, col)), device)

    @classmethod
    def _array(cls, values: np.ndarray, device: Any) -> Any:
        return cls(values, device=device)  # type: ignore[call-arg]

    def new_empty(self, *shape: Any, dtype: Any = None) -> Tensor:
        """The same as new_zeros."""
        return self.new_zeros(*shape, dtype=dtype)

    # --- products ---------------------------------------------------------------------------------

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

    # --- copies with a part replaced --------------------------------------------------------------

    def select_scatter(self, src: Tensor, dim: int, index: int) -> Tensor:
        """A copy with one entry of an axis replaced."""
        copy = self.clone()
        copy.select(dim, index).copy_(src)
        return copy

    def slice_scatter(
        self, src: Tensor, dim: int = 0, start: int | None = None, end: int | None = None,
        step: int = 1,
    ) -> Tensor:  # fmt: skip
        """A copy with a slice of an axis replaced."""
        a = g.axis_of("slice_scatter", dim, self.ndim)
        copy = self.clone()
        index = [slice(None)] * a + [slice(start, end, step)]
        copy[tuple(index)].copy_(src)
        return copy

    def diagonal_scatter(
        self, src: Tensor, offset: int = 0, dim1: int = 0, dim2: int = 1
    ) -> Tensor:
        """A copy with a diagonal replaced."""
        copy = self.clone()
        copy.diagonal(offset, dim1, dim2).copy_(src)
        return copy

    # --- windows ----------------------------------------------------------------------------------

    @classmethod
    def hann_window(cls, n: int, periodic: bool = True, device: Any = None) -> Tensor:
        """Hann's window: half a cosine."""
        return cls._window(n, periodic, (0.5, 0.5), device)

    @classmethod
    def hamming_window(cls, n: int, periodic: bool = True, device: Any = None) -> Tensor:
        """Hamming's window."""
        return cls._window(n, periodic, (0.54, 0.46), device)

    @classmethod
    def blackman_window(cls, n: int, periodic: bool = True, device: Any = None) -> Tensor:
        """Blackman's window."""
        return cls._window(n, periodic, (0.42, 0.5, 0.08), device)

    @classmethod
    def _window(cls, n: int, periodic: bool, terms: Sequence[float], device: Any) -> Tensor:
        place = np.arange(n) * (2 * math.pi / max(n if periodic else n - 1, 1))
        values = sum((-1) ** k * c * np.cos(k * place) for k, c in enumerate(terms))
        values = np.ones(n) if n == 1 else np.asarray(values)
        return cls._array(values.astype(np.float32), device)

    # --- a loss -----------------------------------------------------------------------------------

    def multilabel_margin_loss(self, target: Tensor, reduction: str = "mean") -> Tensor:
        """max(0, 1 - (x[t] - x[c])) over right classes t and wrong c; targets end at the first -1.
        """
        from muladd.tensor.loss import reduced

        count: Any = self.shape[-1]
        named = (target < 0).long().cumsum(-1) == 0
        hits = (named & (target >= 0)).unsqueeze(-1) & (
            target.unsqueeze(-1) == self.arange(count, device=self.device))  # fmt: skip
        right = hits.any(-2)
        scores = (hits.where(self.unsqueeze(-2), 0.0)).sum(-1)
        each = (1 - scores.unsqueeze(-1) + self.unsqueeze(-2)).relu()
        counted = named.unsqueeze(-1) & ~right.unsqueeze(-2)
        losses = counted.where(each, 0.0).sum((-2, -1)) / count
        return reduced("multilabel_margin_loss", losses, reduction)


def _trapezoids(y: Any, x: Any, dx: float, dim: int) -> Any:
    a = g.axis_of("trapezoid", dim, y.ndim)
    n = y.shape[a]
    means = (y.narrow(a, 1, n - 1) + y.narrow(a, 0, n - 1)) * 0.5
    if x is None:
        return means * dx
    widths = x.diff()
    return means * widths.reshape([-1 if i == a else 1 for i in range(y.ndim)])
