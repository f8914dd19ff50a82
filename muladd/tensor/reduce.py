"""Reductions: sums, means, extremes and where they stand, norms, quantified truth."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from muladd.errors import DTypeError, ShapeError
from muladd.ir import Dim, DType, Node, iota, make, ops, sym
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.operands import check_floating, floating, scalar_as_vector, widened

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class ValuesIndices(NamedTuple):
    """What max(dim), sort, topk, cummax and their like return."""

    values: Tensor
    indices: Tensor


class MinimumMaximum(NamedTuple):
    """What aminmax returns."""

    min: Tensor
    max: Tensor


class _Unset:
    def __repr__(self) -> str:
        return "unset"


UNSET: Any = _Unset()


def chosen(who: str, axis: Any, dim: Any, default: Any = None) -> Any:
    """The axis given as `axis=` or as `dim=`; ShapeError when both are given."""
    if axis is not UNSET and dim is not UNSET:
        raise ShapeError(f"{who}: axis={axis!r} and dim={dim!r} mean the same; give one of them")
    return axis if axis is not UNSET else dim if dim is not UNSET else default


class Reduce(Handle):
    """Reductions over one axis, several, or all. `axis=` and `dim=` are the same word."""

    __slots__ = ()

    def _axes(self, who: str, axis: Any, dim: Any) -> tuple[int, ...]:
        axes = chosen(who, axis, dim)
        return g.axes_of(who, None if axes == () else axes, self.ndim)

    def _reduced(self, node: Node, axes: tuple[int, ...], keepdim: bool) -> Tensor:
        return self._result(g.keep(node, self.shape, axes) if keepdim else node)

    # --- sums -------------------------------------------------------------------------------------

    def sum(
        self, dim: Any = UNSET, keepdim: bool = False, *, dtype: Any = None, axis: Any = UNSET
    ) -> Tensor:
        """The sum. Integers and bool are summed in int64 unless `dtype` says otherwise."""
        axes = self._axes("sum", axis, dim)
        x = g.cast(self.node, _sum_dtype(self.dtype, dtype))
        return self._reduced(g.total(x, axes), axes, keepdim)

    def mean(
        self, dim: Any = UNSET, keepdim: bool = False, *, dtype: Any = None, axis: Any = UNSET
    ) -> Tensor:
        """The sum divided by the count."""
        axes = self._axes("mean", axis, dim)
        if dtype is None:
            check_floating("mean", self)
        x = g.cast(self.node, dt.dtype(dtype) if dtype is not None else self.dtype)
        return self._reduced(mean(x, axes), axes, keepdim)

    def var(
        self, dim: Any = UNSET, unbiased: bool = True, keepdim: bool = False, *,
        correction: Any = None, axis: Any = UNSET,
    ) -> Tensor:  # fmt: skip
        """The mean squared distance from the mean, over count - correction (default 1)."""
        return self.var_mean(dim, unbiased, keepdim, correction=correction, axis=axis)[0]

    def std(
        self, dim: Any = UNSET, unbiased: bool = True, keepdim: bool = False, *,
        correction: Any = None, axis: Any = UNSET,
    ) -> Tensor:  # fmt: skip
        """The square root of var."""
        return root(self.var(dim, unbiased, keepdim, correction=correction, axis=axis))

    def var_mean(
        self, dim: Any = UNSET, unbiased: bool = True, keepdim: bool = False, *,
        correction: Any = None, axis: Any = UNSET,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(variance, mean), in two passes: first the mean, then the distances from it."""
        if isinstance(unbiased, int) and not isinstance(unbiased, bool):
            raise DTypeError(f"var: unbiased is a bool, got {unbiased!r}; write correction=")
        check_floating("var", self)
        axes = self._axes("var", axis, dim)
        spread, centre = moments(self.node, axes, int(unbiased) if correction is None
                                 else correction)  # fmt: skip
        return self._reduced(spread, axes, keepdim), self._reduced(centre, axes, keepdim)

    def std_mean(
        self, dim: Any = UNSET, unbiased: bool = True, keepdim: bool = False, *,
        correction: Any = None, axis: Any = UNSET,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(standard deviation, mean)."""
        spread, centre = self.var_mean(dim, unbiased, keepdim, correction=correction, axis=axis)
        return root(spread), centre

    def nansum(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """The sum, NaN counting as 0."""
        return self.isnan().where(0, self).sum(dim, keepdim, axis=axis)

    def nanmean(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """The mean of what is not NaN."""
        count = (~self.isnan()).sum(dim, keepdim, axis=axis)
        return self.nansum(dim, keepdim, axis=axis) / count.cast(self.dtype)

    def prod(
        self, dim: Any = UNSET, keepdim: bool = False, *, dtype: Any = None, axis: Any = UNSET
    ) -> Tensor:
        """The product, by halving: the first half times the second until one is left."""
        axes = self._axes("prod", axis, dim)
        x = g.cast(self.node, _sum_dtype(self.dtype, dtype))
        for a in axes:
            x = product_along(x, a)
        return self._result(x if keepdim else g.reshape(
            x, tuple(n for i, n in enumerate(self.shape) if i not in axes)))  # fmt: skip

    def count_nonzero(self, dim: Any = UNSET, *, axis: Any = UNSET) -> Tensor:
        """How many elements are not zero."""
        return self.bool().sum(dim, axis=axis)

    # --- extremes ---------------------------------------------------------------------------------

    def amax(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """The greatest element; the gradient is shared among equals."""
        axes = self._axes("amax", axis, dim)
        _not_empty("amax", self, axes)
        return self._reduced(g.greatest(self.node, axes), axes, keepdim)

    def amin(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """The least element; the gradient is shared among equals."""
        axes = self._axes("amin", axis, dim)
        _not_empty("amin", self, axes)
        return self._reduced(least(self.node, axes), axes, keepdim)

    def aminmax(
        self, *, dim: Any = UNSET, keepdim: bool = False, axis: Any = UNSET
    ) -> MinimumMaximum:
        """(least, greatest)."""
        return MinimumMaximum(
            self.amin(dim, keepdim, axis=axis), self.amax(dim, keepdim, axis=axis)
        )

    def max(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Any:
        """The greatest element; a second tensor instead of an axis gives `maximum`.

        `max()`, `max(axis=1)` and `max((0, 1))` return the values, as NumPy does; with one axis
        given by position or as `dim=`, (values, indices) come back, as in torch.
        """
        if isinstance(dim, Handle):
            return self.maximum(dim)
        if dim is UNSET or isinstance(dim, tuple | list) or dim is None:
            return self.amax(dim, keepdim, axis=axis)
        return self._extreme(dim, keepdim, self.argmax(dim, True))

    def min(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Any:
        """The least element; see max for what comes back."""
        if isinstance(dim, Handle):
            return self.minimum(dim)
        if dim is UNSET or isinstance(dim, tuple | list) or dim is None:
            return self.amin(dim, keepdim, axis=axis)
        return self._extreme(dim, keepdim, self.argmin(dim, True))

    @scalar_as_vector
    def _extreme(self, dim: int, keepdim: bool, indices: Tensor) -> ValuesIndices:
        """The elements at the indices: the gradient goes to each of them alone."""
        values = self.gather(dim, indices)
        if keepdim:
            return ValuesIndices(values, indices)
        return ValuesIndices(values.squeeze(dim), indices.squeeze(dim))

    def argmax(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """The index (int64) of the first greatest element, along one axis or of all, flattened."""
        return self._arg("argmax", axis, dim, keepdim, g.greatest)

    def argmin(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """The index (int64) of the first least element, along one axis or of all, flattened."""
        return self._arg("argmin", axis, dim, keepdim, least)

    @scalar_as_vector
    def _arg(self, who: str, axis: Any, dim: Any, keepdim: bool, extreme: Any) -> Tensor:
        wanted = chosen(who, axis, dim)
        if wanted is None:
            flat = self.reshape(-1)._arg(who, UNSET, 0, False, extreme)
            return flat.reshape([1] * self.ndim) if keepdim else flat
        a = g.axis_of(who, wanted, self.ndim)
        _not_empty(who, self, (a,))
        x = g.stop(self.node)
        return self._reduced(first_index(x, a, extreme(x, (a,))), (a,), keepdim)

    # --- truth ------------------------------------------------------------------------------------

    def any(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """Whether any element is not zero."""
        axes = self._axes("any", axis, dim)
        return self._reduced(g.greatest(g.cast(self.node, dt.bool_), axes), axes, keepdim)

    def all(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """Whether all elements are not zero."""
        axes = self._axes("all", axis, dim)
        some_not = g.greatest(g.invert(g.cast(self.node, dt.bool_)), axes)
        return self._reduced(g.invert(some_not), axes, keepdim)

    # --- norms ------------------------------------------------------------------------------------

    def logsumexp(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Tensor:
        """log(sum(exp(x))) without overflow."""
        axes = self._axes("logsumexp", axis, dim)
        x = widened(floating(self))
        top = g.stop(g.greatest(x, axes))
        top = g.where(g.lt(g.maximum(top, g.neg(top)), float("inf")), top, 0.0)
        shifted = g.sub(x, g.expand(g.keep(top, x.shape, axes), x.shape))
        result = g.add(g.log(g.total(g.exp(shifted), axes)), top)
        return self._reduced(g.cast(result, floating(self).dtype), axes, keepdim)

    def norm(
        self, p: Any = 2, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET
    ) -> Tensor:
        """The p-norm of the elements: (sum |x|^p)^(1/p); p may be inf, -inf, 0, 'fro'."""
        check_floating("norm", self)
        x: Any = self
        if p == "fro" or p == 2:
            return root((x * x).sum(dim, keepdim, axis=axis))
        if p == float("inf"):
            return x.abs().amax(dim, keepdim, axis=axis)
        if p == -float("inf"):
            return x.abs().amin(dim, keepdim, axis=axis)
        if p == 0:
            counted = self._result(g.level(g.cast(g.ne(self.node, 0), x.dtype), self.node))
            return counted.sum(dim, keepdim, axis=axis)
        if p == 1:
            return x.abs().sum(dim, keepdim, axis=axis)
        return (x.abs() ** p).sum(dim, keepdim, axis=axis) ** (1.0 / p)


def root(squares: Any) -> Any:
    """The square root of a sum of squares; at 0, where it has no derivative, 0 is taken."""
    zero = squares == 0
    return zero.where(squares * 0, zero.where(1.0, squares).sqrt())


def _sum_dtype(d: DType, wanted: Any) -> DType:
    if wanted is not None:
        return dt.dtype(wanted)
    return d if d.is_float or d is dt.uint64 else dt.int64


def _not_empty(who: str, x: Handle, axes: tuple[int, ...]) -> None:
    if any(isinstance(x.shape[a], int) and x.shape[a] == 0 for a in axes):
        raise ShapeError(f"{who}: axis of size 0 in {list(x.shape)}; there is no such element")


def count_of(x: Node, axes: tuple[int, ...]) -> Dim:
    """The number of elements that one result reduces."""
    return sym.product(x.shape[a] for a in axes)


def mean(x: Node, axes: tuple[int, ...]) -> Node:
    """The sum times 1/n (16-bit floats in float32)."""
    wide = widened(x)
    summed = g.total(wide, axes)
    count = count_of(x, axes)
    if isinstance(count, int):
        inverse = g.like(summed, 1.0 / count if count else float("nan"))
    else:
        inverse = g.div(1.0, g.number(count, wide.dtype, summed.shape))
    return g.cast(g.mul(summed, inverse), x.dtype)


def moments(x: Node, axes: tuple[int, ...], correction: Any) -> tuple[Node, Node]:
    """(variance, mean) over axes, without them."""
    wide = widened(x)
    centre = mean(wide, axes)
    distance = g.sub(wide, g.expand(g.keep(centre, x.shape, axes), x.shape))
    squares = g.total(g.mul(distance, distance), axes)
    count = count_of(x, axes)
    if isinstance(count, int):
        rest = max(count - correction, 0)
        spread = g.mul(squares, 1.0 / rest) if rest else g.div(squares, 0.0)
    else:
        spread = g.div(squares, g.sub(g.number(count, wide.dtype, squares.shape), correction))
    return g.cast(spread, x.dtype), g.cast(centre, x.dtype)


def least(x: Node, axes: tuple[int, ...]) -> Node:
    """The minimum over axes, through the maximum of what is turned round."""
    if not axes:
        return x
    return turned(g.greatest(turned(x), axes))


def turned(x: Node) -> Node:
    """x in reverse order: -x for floats, ~x for integers (no overflow), not x for bool."""
    if x.dtype.is_float:
        return g.neg(x)
    if x.dtype is dt.bool_:
        return g.invert(x)
    return make(ops.XOR, (x, g.like(x, -1)))


def first_index(x: Node, axis: int, extreme: Node) -> Node:
    """The least index along `axis` at which x is `extreme` (NaN is found by being NaN)."""
    n = x.shape[axis]
    wide = g.expand(g.keep(extreme, x.shape, (axis,)), x.shape)
    here = g.eq(x, wide)
    if x.dtype.is_float:
        here = g.either(here, g.both(g.ne(x, x), g.ne(wide, wide)))
    backwards = g.sub(g.number(sym.sub(n, 1), dt.int64, (n,)), iota(n))
    from_end = g.greatest(g.where(here, g.along(backwards, axis, x.shape), -1), (axis,))
    return g.sub(g.number(sym.sub(n, 1), dt.int64, from_end.shape), from_end)


def product_along(x: Node, axis: int) -> Node:
    """The product along one axis, which stays with size 1."""
    n = g.static("prod", x.shape[axis])
    if n == 0:
        nothing = g.keep(g.total(x, (axis,)), x.shape, (axis,))
        return g.add(nothing, 1)
    while n > 1:
        half = n // 2
        rest = g.cut(x, axis, 2 * half, 1) if n % 2 else None
        joined = g.mul(g.cut(x, axis, 0, half), g.cut(x, axis, half, half))
        x = joined if rest is None else g.concatenate([joined, rest], axis)
        n = half + n % 2
    return x
