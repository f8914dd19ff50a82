"""Order and running totals: sort, topk, median, unique; cumulative sum, product, maximum.

Sorting is a bitonic network over a power of two of keys, each key joined with its position, so
that equal keys keep their order (a stable sort) and the network is exchanges of integers only.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from muladd.errors import ShapeError
from muladd.ir import Node, const, iota, make, ops, sym
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor import selection
from muladd.tensor.gathering import gather
from muladd.tensor.handle import Handle
from muladd.tensor.mathematics import logaddexp
from muladd.tensor.network import ascending
from muladd.tensor.operands import check_floating, scalar_as_vector, widened
from muladd.tensor.reduce import UNSET, ValuesIndices, chosen
from muladd.tensor.running import doubling, later_greater, later_less, running_sum, shifted

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


# Keys are sorted by counting (one pass over all pairs) while there are few of them, or few pairs.
FEW, SOME, FEW_PAIRS = 256, 4096, 1 << 26


class Sorting(Handle):
    """Sorting puts NaN last (first when descending), as torch does."""

    __slots__ = ()

    def _static_axis(self, who: str, dim: Any) -> int:
        """An axis of this tensor whose size is a number."""
        a = g.axis_of(who, dim, self.ndim)
        g.static(who, self.shape[a])
        return a

    # --- order ------------------------------------------------------------------------------------

    @scalar_as_vector
    def sort(
        self, dim: Any = UNSET, descending: bool = False, stable: bool = True, *,
        axis: Any = UNSET,
    ) -> ValuesIndices:  # fmt: skip
        """(sorted values, their indices) along an axis (default the last). Always stable."""
        a = self._static_axis("sort", chosen("sort", axis, dim, -1))
        index = order(self.node, a, descending)
        return ValuesIndices(self._result(gather(self.node, a, index)), self._result(index))

    def argsort(
        self, dim: Any = UNSET, descending: bool = False, stable: bool = True, *,
        axis: Any = UNSET,
    ) -> Tensor:  # fmt: skip
        """The indices that sort along an axis (default the last)."""
        return self.sort(dim, descending, stable, axis=axis).indices

    def msort(self) -> Tensor:
        """Sorted along axis 0."""
        return self.sort(0).values

    @scalar_as_vector
    def topk(
        self, k: int, dim: Any = UNSET, largest: bool = True, sorted: bool = True, *,
        axis: Any = UNSET,
    ) -> ValuesIndices:  # fmt: skip
        """The k greatest (or least) along an axis (default the last), in order."""
        a = self._static_axis("topk", chosen("topk", axis, dim, -1))
        if not 0 <= k <= self.shape[a]:  # type: ignore[operator]
            raise ShapeError(f"topk: k={k} of an axis of size {self.shape[a]}")
        index = best(self.node, a, k, largest)
        return ValuesIndices(self._result(gather(self.node, a, index)), self._result(index))

    @scalar_as_vector
    def kthvalue(self, k: int, dim: int = -1, keepdim: bool = False) -> ValuesIndices:
        """The k-th least (from 1) along an axis."""
        a = self._static_axis("kthvalue", dim)
        if not 1 <= k <= self.shape[a]:  # type: ignore[operator]
            raise ShapeError(f"kthvalue: k={k} of an axis of size {self.shape[a]}")
        index = g.cut(order(self.node, a, False), a, k - 1, 1)
        values, indices = self._result(gather(self.node, a, index)), self._result(index)
        if not keepdim:
            values, indices = values.squeeze(a), indices.squeeze(a)
        return ValuesIndices(values, indices)

    @scalar_as_vector
    def median(self, dim: Any = UNSET, keepdim: bool = False, *, axis: Any = UNSET) -> Any:
        """The middle value (the lower of two); with an axis, (values, indices). NaN if any is."""
        wanted = chosen("median", axis, dim)
        if wanted is None:
            flat = self.flatten()
            if flat.shape[0] == 0 and self.dtype.is_float:
                return self._made(float("nan"), self.dtype)
            return flat.median(0).values
        a = self._static_axis("median", wanted)
        n: Any = self.shape[a]
        if n == 0:
            raise ShapeError(f"median: axis {a} of {list(self.shape)} has no elements")
        found = self.kthvalue((n + 1) // 2, a, keepdim)
        if not self.dtype.is_float:
            return found
        last = self.kthvalue(n, a, keepdim)
        nan = last.values.isnan()
        first = self.isnan().cast(dt.int32).argmax(a, keepdim)
        return ValuesIndices(
            nan.where(last.values, found.values), nan.where(first, found.indices)
        )

    def quantile(self, q: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
        """The value below which the share q lies, linear between neighbours."""
        x: Any = self if self.ndim and dim is not None else self.flatten()
        a = x._static_axis("quantile", 0 if dim is None else dim)
        values = x.sort(a).values
        place = q * (x.shape[a] - 1)
        if isinstance(q, Handle):
            low = place.floor().long()
            weight = (place - low.cast(x.dtype)).cast(x.dtype)
            line = values.movedim(a, -1)
            lower = line[..., low]
            upper = line[..., (low + 1).clamp(max=x.shape[a] - 1)]
            return (lower + (upper - lower) * weight).movedim(-1, 0)
        low = int(place)
        lower = values.narrow(a, low, 1)
        upper = values.narrow(a, min(low + 1, x.shape[a] - 1), 1)
        result = lower + (upper - lower) * (place - low)
        return result if keepdim else result.squeeze(a)

    @scalar_as_vector
    def mode(self, dim: int = -1, keepdim: bool = False) -> ValuesIndices:
        """The most frequent value along an axis (the least of several) and its last index."""
        a = g.axis_of("mode", dim, self.ndim)
        counts = (self.unsqueeze(a + 1) == self.unsqueeze(a)).sum(a)
        most = counts == counts.amax(a, keepdim=True)
        top = self.dtype.max
        value = most.where(self, top).amin(a, keepdim=True)
        place = self._result(g.along(iota(self.shape[a]), a, self.shape))
        index = (self == value).where(place, -1).amax(a, keepdim=True)
        if not keepdim:
            value, index = value.squeeze(a), index.squeeze(a)
        return ValuesIndices(value, index)

    def unique(
        self, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False
    ) -> Any:
        """The distinct values in ascending order. Runs, because their number is data."""
        line = self.flatten()
        ordered, index = line.sort(0)
        count: Any = line.shape[0]
        changes = [0, *(np.flatnonzero((ordered[1:] != ordered[:-1]).numpy()) + 1)] if count else []
        starts = self._made(np.array(changes, np.int64))
        result: list[Any] = [ordered.detach()[starts]]
        if return_inverse:
            group = starts.searchsorted(self.arange(count, device=self.device), right=True) - 1
            result.append(group.zeros_like().scatter(0, index, group).reshape(self.shape))
        if return_counts:
            ends = np.array([*changes[1:], count][: len(changes)], np.int64)
            result.append(self._made(ends) - starts)
        return result[0] if len(result) == 1 else tuple(result)

    # --- running totals ---------------------------------------------------------------------------

    @scalar_as_vector
    def cumsum(self, dim: Any = UNSET, *, dtype: Any = None, axis: Any = UNSET) -> Tensor:
        """Sums of everything up to each element along an axis."""
        from muladd.tensor.reduce import _sum_dtype

        a = self._static_axis("cumsum", chosen("cumsum", axis, dim, 0))
        x = g.cast(self.node, _sum_dtype(self.dtype, dtype))
        return self._result(g.cast(running_sum(widened(x), a), x.dtype))

    @scalar_as_vector
    def cumprod(self, dim: Any = UNSET, *, dtype: Any = None, axis: Any = UNSET) -> Tensor:
        """Products of everything up to each element along an axis."""
        from muladd.tensor.reduce import _sum_dtype

        a = self._static_axis("cumprod", chosen("cumprod", axis, dim, 0))
        x = g.cast(self.node, _sum_dtype(self.dtype, dtype))
        return self._result(doubling(x, a, g.mul, 1))

    def cummax(self, dim: Any = UNSET, *, axis: Any = UNSET) -> ValuesIndices:
        """(the greatest up to each element, its last index)."""
        return self._running("cummax", chosen("cummax", axis, dim, 0), later_greater)

    def cummin(self, dim: Any = UNSET, *, axis: Any = UNSET) -> ValuesIndices:
        """(the least up to each element, its last index)."""
        return self._running("cummin", chosen("cummin", axis, dim, 0), later_less)

    @scalar_as_vector
    def _running(self, who: str, dim: int, later_wins: Any) -> ValuesIndices:
        a = self._static_axis(who, dim)
        value = g.stop(self.node)
        n: Any = self.shape[a]
        index = g.along(iota(n), a, self.shape)
        shift = 1
        while shift < n:
            before, before_index = (shifted(v, a, shift) for v in (value, index))
            new = g.lt(g.along(iota(n), a, self.shape), shift)
            kept = g.either(new, later_wins(before, value))
            value = g.where(kept, value, before)
            index = g.where(kept, index, before_index)
            shift *= 2
        return ValuesIndices(self._result(gather(self.node, a, index)), self._result(index))

    @scalar_as_vector
    def logcumsumexp(self, dim: Any = UNSET, *, axis: Any = UNSET) -> Tensor:
        """log of the sum of exp of everything up to each element."""
        check_floating("logcumsumexp", self)
        a = self._static_axis("logcumsumexp", chosen("logcumsumexp", axis, dim, 0))
        return self._result(doubling(self.node, a, logaddexp, -float("inf")))

    def diff(self, n: int = 1, dim: int = -1) -> Tensor:
        """Each element minus the one before it, n times."""
        result: Any = self
        for _ in range(n):
            a = g.axis_of("diff", dim, result.ndim)
            size = result.shape[a]
            if size == 0:
                return result
            result = result.narrow(a, 1, size - 1) - result.narrow(a, 0, size - 1)
        return result


# --- the sorting network --------------------------------------------------------------------------


def sortable(x: Node) -> Node:
    """Integers in the order of x: a float's bits, turned round where negative; NaN is greatest."""
    if x.dtype is dt.bool_:
        return g.cast(x, dt.int64)
    if not x.dtype.is_float:
        if x.dtype is dt.uint64:
            return make(ops.XOR, (g.bitcast(x, dt.int64), const(-(1 << 63), dt.int64, x.shape)))
        wide = g.cast(x, dt.int64)
        return g.sub(wide, 1 << 31) if x.dtype is dt.uint32 else wide
    wide = widened(x)
    wide = g.where(g.eq(wide, 0.0), 0.0, wide)  # -0.0 and 0.0 are equal
    whole = dt.int32 if wide.dtype is dt.float32 else dt.int64
    wide = g.where(g.ne(wide, wide), float("nan"), wide)
    bits = g.bitcast(wide, whole)
    return g.where(g.lt(bits, 0), make(ops.XOR, (bits, g.like(bits, whole.max))), bits)


def order(x: Node, axis: int, descending: bool) -> Node:
    """The indices (int64) that sort x along an axis, stably."""
    x = g.stop(x)
    n: Any = x.shape[axis]
    places = [i for i in range(x.ndim) if i != axis] + [axis]
    keys = g.permute(sortable(x), places)
    if descending:
        keys = make(ops.XOR, (keys, g.like(keys, -1)))
    pairs = sym.mul(sym.product(x.shape), n)
    if n <= FEW or (n <= SOME and sym.is_less(pairs, FEW_PAIRS)):
        return g.permute(_ranked(keys), [places.index(i) for i in range(x.ndim)])
    if keys.dtype.bits > 32 and x.dtype.bits > 32:
        # by the lower half of the bits, then stably by the upper one
        low = g.sub(make(ops.AND, (keys, g.like(keys, (1 << 32) - 1))), 1 << 31)
        first = _places(low)
        second = _places(gather(g.div(keys, 1 << 32), x.ndim - 1, first))
        result = gather(first, x.ndim - 1, second)
    else:
        result = _places(g.cast(keys, dt.int64))
    return g.permute(result, [places.index(i) for i in range(x.ndim)])


def _places(keys: Node) -> Node:
    """The indices (int64) that sort keys of 32 bits, in int64, along the last axis, stably.

    Key and position are joined in one number: comparing numbers compares keys, then positions.
    """
    n: Any = keys.shape[-1]
    last = keys.ndim - 1
    size = 1 << max(n - 1, 0).bit_length()
    joined = g.add(g.mul(keys, 1 << 31), g.along(iota(n), last, keys.shape))
    line = g.pad(joined, [*[(0, 0)] * last, (0, size - n)], (1 << 62) - 1)
    found = g.cut(ascending(line), last, 0, n)
    return make(ops.AND, (found, g.like(found, (1 << 31) - 1)))


def best(x: Node, axis: int, k: int, greatest: bool) -> Node:
    """The indices of the k least or greatest along an axis, in order."""
    if not selection.pays(x.shape[axis], k):  # type: ignore[arg-type]
        return g.cut(order(x, axis, greatest), axis, 0, k)
    x, last = g.stop(x), x.ndim - 1
    places = [i for i in range(x.ndim) if i != axis] + [axis]
    x = g.permute(x, places)
    keys = sortable(x)
    index = selection.least(make(ops.XOR, (keys, g.like(keys, -1))) if greatest else keys, k)
    sorted_again = order(gather(x, last, index), last, greatest)
    return g.permute(gather(index, last, sorted_again), [places.index(i) for i in range(x.ndim)])


def _ranked(keys: Node) -> Node:
    """The sorting indices of the last axis by counting: an element's place is the number of those
    before it. Quadratic, in two reductions."""
    n = keys.shape[-1]
    k = keys.ndim - 1
    shape = (*keys.shape[:-1], n, n)  # (others, element)
    other = g.expand(g.unsqueeze(keys, k + 1), shape)
    mine = g.expand(g.unsqueeze(keys, k), shape)
    earlier = g.lt(g.along(iota(n), k, shape), g.along(iota(n), k + 1, shape))
    before = g.either(g.lt(other, mine), g.both(g.eq(other, mine), earlier))
    place = g.total(g.cast(before, dt.int64), (k,))
    # the inverse of the permutation: which element has this place
    wide = g.expand(g.unsqueeze(place, k + 1), shape)
    element = g.along(iota(n), k, shape)
    return g.selected(g.eq(wide, g.along(iota(n), k + 1, shape)), element, k)
