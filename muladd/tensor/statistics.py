"""Distances, medians, covariances, integrals, and which values occur."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.operands import check_floating, scalar_as_vector
from muladd.tensor.reduce import UNSET, ValuesIndices, chosen

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Statistics(Handle):
    """What is said of many elements together, in terms of reductions and sorting."""

    __slots__ = ()

    def dist(self, other: Tensor, p: float = 2.0) -> Tensor:
        """The p-norm of the difference."""
        return (self - other).norm(p)

    def renorm(self, p: float, dim: int, maxnorm: float) -> Tensor:
        """Each entry of an axis scaled down to a p-norm of at most maxnorm."""
        a = g.axis_of("renorm", dim, self.ndim)
        others = tuple(i for i in range(self.ndim) if i != a)
        norms = self.norm(p, others, keepdim=True)
        return self * (norms > maxnorm).where(maxnorm / (norms + 1e-7), 1.0)

    def pdist(self, p: float = 2.0) -> Tensor:
        """The distances of all pairs of rows, as a vector."""
        rows, columns = np.triu_indices(self.shape[0], 1)  # type: ignore[arg-type]
        return (self[self._made(rows)] - self[self._made(columns)]).norm(p, -1)

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


def _trapezoids(y: Any, x: Any, dx: float, dim: int) -> Any:
    a = g.axis_of("trapezoid", dim, y.ndim)
    n = y.shape[a]
    means = (y.narrow(a, 1, n - 1) + y.narrow(a, 0, n - 1)) * 0.5
    if x is None:
        return means * dx
    widths = x.diff()
    return means * widths.reshape([-1 if i == a else 1 for i in range(y.ndim)])
