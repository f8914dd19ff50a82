"""Gather and scatter by index tensors along an axis, and what is written with them."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from muladd.errors import DTypeError, IndexingError, ShapeError
from muladd.ir import Node, iota, sym
from muladd.ir import dtype as dt
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.indexing import add_rows, check_index, from_front, put_rows
from muladd.tensor.operands import is_number, scalar_as_vector
from muladd.tensor.reduce import least, product_along

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Gathering(Handle):
    """torch's gather and scatter families. Indices outside their axis are an error where they are
    known at the call (see `indexing.check_index`); else they read 0 and write nothing."""

    __slots__ = ()

    # --- reading ----------------------------------------------------------------------------------

    @scalar_as_vector
    def gather(self, dim: int, index: Tensor) -> Tensor:
        """out[i][j] = self[index[i][j]][j] for dim 0, and so on; index has as many axes as self."""
        a, x, i = _aligned("gather", self, dim, index)
        return self._result(gather(x, a, from_front(i, self.shape[a])))

    def take_along_dim(self, indices: Tensor, dim: int | None = None) -> Tensor:
        """As gather, with the other axes broadcast; without `dim`, of the flattened tensor."""
        if dim is None:
            return self.flatten().gather(0, indices.flatten())
        a = g.axis_of("take_along_dim", dim, self.ndim)
        shapes = [[*t.shape[:a], 1, *t.shape[a + 1 :]] for t in (self, indices)]
        lead = g.broadcast_shapes("take_along_dim", tuple(shapes[0]), tuple(shapes[1]))
        x = self.expand((*lead[:a], self.shape[a], *lead[a + 1 :]))
        i = indices.expand((*lead[:a], indices.shape[a], *lead[a + 1 :]))
        return x.gather(a, i)

    @scalar_as_vector
    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The entries of an axis that a vector of indices names."""
        a = g.axis_of("index_select", dim, self.ndim)
        _vector("index_select", index)
        check_index("index_select", index, self.shape[a])
        rows = g.permute(self.node, [a, *[i for i in range(self.ndim) if i != a]])
        found = self._result(g.select_rows(rows, from_front(index.node, self.shape[a])))
        return found.reshape((-1, *found.shape[1:])).movedim(0, a)

    def take(self, index: Tensor) -> Tensor:
        """Elements of the flattened tensor, in the shape of the index."""
        flat = self.flatten()
        check_index("take", index, flat.shape[0])
        return self._result(g.select_rows(flat.node, from_front(index.node, flat.shape[0])))

    def masked_select(self, mask: Tensor) -> Tensor:
        """The elements where the mask is true, as a vector. Runs the mask."""
        x, m = self.broadcast_tensors(self, mask)
        return x[m]

    def nonzero(self, as_tuple: bool = False) -> Any:
        """The indices (int64) of elements that are not zero, one row each. Runs."""
        values = self.numpy()
        found = np.nonzero(values) if values.ndim else ()
        if as_tuple:
            return tuple(self._made(i) for i in found)
        if not values.ndim:
            return self._made(np.zeros((int(values != 0), 0), np.int64))
        return self._made(np.stack(found, -1))

    def argwhere(self) -> Tensor:
        """The same as nonzero()."""
        return self.nonzero()

    def embedding(self, weight: Tensor, padding_idx: int | None = None) -> Tensor:
        """Rows of `weight` (V, E) that this index tensor names; padding_idx gets no gradient."""
        if self.dtype.is_float:
            raise DTypeError(f"embedding: indices are integers, got {self.dtype.name}")
        if weight.ndim != 2:
            raise ShapeError(f"embedding: the weight is (V, E), got {list(weight.shape)}")
        check_index("embedding", self, weight.shape[0], 0)
        table = weight.node
        if padding_idx is not None:
            v = g.along(iota(weight.shape[0]), 0, weight.shape)
            table = g.where(g.eq(v, padding_idx % weight.shape[0]), g.stop(table), table)
        return self._result(g.select_rows(table, g.cast(self.node, dt.int64)))

    def one_hot(self, num_classes: int = -1) -> Tensor:
        """1 at the position each index names, along a new last axis (int64)."""
        if num_classes == -1:
            num_classes = int(self.max().item()) + 1
        check_index("one_hot", self, num_classes, 0)
        shape = (*self.shape, num_classes)
        wide = g.expand(g.unsqueeze(g.cast(self.node, dt.int64), self.ndim), shape)
        same = g.eq(wide, g.along(iota(num_classes), self.ndim, shape))
        return self._result(g.cast(same, dt.int64))

    def searchsorted(self, values: Any, right: bool = False) -> Tensor:
        """How many elements of this ascending last axis stand before each value."""
        if is_number(values):
            values = self._made(values)
        line = self.unsqueeze(-2) if self.ndim > 1 else self
        wide = values.unsqueeze(-1)
        before = line <= wide if right else line < wide
        return before.sum(-1)

    def bucketize(self, boundaries: Tensor, right: bool = False) -> Tensor:
        """The index of the bucket between ascending boundaries that each element falls in."""
        return boundaries.searchsorted(self, right)

    def bincount(self, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
        """How often each whole number occurs in a vector (or the sum of its weights). Runs."""
        _vector("bincount", self)
        n = max(minlength, int(self.max().item()) + 1 if self.shape[0] else 0)
        ones = self.ones_like(dt.int64) if weights is None else weights
        return self._result(add_rows(ones.node, g.cast(self.node, dt.int64), n))

    def histc(self, bins: int = 100, min: float = 0, max: float = 0) -> Tensor:
        """How many elements fall into each of `bins` equal parts of min..max."""
        low, high = (min, max) if min != max else (self.min().item(), self.max().item())
        if low == high:
            low, high = low - 1, high + 1
        inside = (self >= low) & (self <= high)
        part = ((self - low) * (bins / (high - low))).floor().clamp(0, bins - 1).long()
        index = inside.where(part, -1).flatten()
        return self._result(add_rows(g.like(g.cast(index.node, self.dtype), 1), index.node, bins))

    # --- writing ----------------------------------------------------------------------------------

    @scalar_as_vector
    def scatter(self, dim: int, index: Tensor, src: Any, reduce: str | None = None) -> Tensor:
        """A copy with out[index[i][j]][j] = src[i][j] (dim 0); the last of equal indices wins."""
        if reduce is not None:
            named = {"add": "sum", "multiply": "prod"}.get(reduce, reduce)
            src = self.full_like(src) if is_number(src) else src
            return self.scatter_reduce(dim, index, src, named)
        a, where, src = _scattered("scatter", self, dim, index, src)
        hit = _hits(self, a, where)
        if is_number(src):
            touched = _over(self, a, g.greatest(hit, (a,)), False)
            return self._result(g.where(touched, g.like(self.node, src), self.node))
        order = g.along(iota(where.shape[a]), a, hit.shape)
        last = g.greatest(g.where(hit, order, -1), (a,))
        new = gather(g.cast(src.node, self.dtype), a, last)
        new, touched = _over(self, a, new, 0), _over(self, a, g.ge(last, 0), False)
        return self._result(g.where(touched, new, self.node))

    def scatter_add(self, dim: int, index: Tensor, src: Tensor) -> Tensor:
        """A copy with out[index[i][j]][j] += src[i][j] (dim 0); equal indices add up."""
        return self.scatter_reduce(dim, index, src, "sum")

    @scalar_as_vector
    def scatter_reduce(
        self, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
    ) -> Tensor:
        """Scattered values joined by 'sum', 'prod', 'mean', 'amax' or 'amin'."""
        if reduce not in ("sum", "prod", "mean", "amax", "amin"):
            raise ShapeError(
                f"scatter_reduce: reduce={reduce!r}; expected sum, prod, mean, amax or amin"
            )
        a, where, src = _scattered("scatter_reduce", self, dim, index, src)
        hit = _hits(self, a, where)
        values = g.expand(g.unsqueeze(g.cast(src.node, self.dtype), a + 1), hit.shape)
        count = _over(self, a, g.total(g.cast(hit, dt.int64), (a,)), 0)
        touched = g.gt(count, 0)
        new = _over(self, a, *_joined(reduce, hit, values, a))
        old = self.node
        if not include_self:
            old = g.where(touched, _neutral(reduce, self.dtype), old)
        result = _combine(reduce, old, new)
        if reduce == "mean":
            number = g.add(count, 1) if include_self else g.where(touched, count, 1)
            number = g.cast(number, self.dtype)
            result = g.div(result, number)
        return self._result(g.where(touched, result, self.node))

    @scalar_as_vector
    def index_add(self, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
        """A copy with the slices of source, times alpha, added at the entries named."""
        a = g.axis_of("index_add", dim, self.ndim)
        _vector("index_add", index)
        check_index("index_add", index, self.shape[a])
        value = (source * alpha if alpha != 1 else source).cast(self.dtype).movedim(a, 0)
        added = add_rows(value.node, from_front(index.node, self.shape[a]), self.shape[a])
        return self + self._result(added).movedim(0, a)

    @scalar_as_vector
    def index_copy(self, dim: int, index: Tensor, source: Tensor) -> Tensor:
        """A copy with the entries named replaced by the slices of source."""
        a = g.axis_of("index_copy", dim, self.ndim)
        _vector("index_copy", index)
        check_index("index_copy", index, self.shape[a])
        table = self.movedim(a, 0).node
        value = source.cast(self.dtype).movedim(a, 0).node
        new = put_rows(table, value, from_front(index.node, self.shape[a]))
        return self._result(new).movedim(0, a)

    @scalar_as_vector
    def index_fill(self, dim: int, index: Tensor, value: Any) -> Tensor:
        """A copy with the entries named filled with one number."""
        a = g.axis_of("index_fill", dim, self.ndim)
        n = self.shape[a]
        _vector("index_fill", index)
        check_index("index_fill", index, n)
        line = g.along(from_front(index.node, n), 0, (index.shape[0], n))
        hit = g.greatest(g.eq(line, g.along(iota(n), 1, line.shape)), (0,))
        return self._result(g.where(g.along(hit, a, self.shape), value, self.node))

    def put(self, index: Tensor, source: Tensor, accumulate: bool = False) -> Tensor:
        """A copy with elements of the flattened tensor replaced (or added to)."""
        flat = self.flatten()
        return flat.index_put((index.flatten(),), source.flatten(), accumulate).reshape(self.shape)

    def masked_scatter(self, mask: Tensor, source: Tensor) -> Tensor:
        """A copy in which the true elements of the mask take the elements of source in order."""
        wide = mask.expand(self.shape)
        order = wide.long().flatten().cumsum(0) - 1
        taken = source.flatten().take(order.clamp(0)).reshape(self.shape)
        return wide.where(taken, self)


# --- on nodes -------------------------------------------------------------------------------------


def gather(x: Node, axis: int, index: Node) -> Node:
    """x and index agree outside `axis`; a sum over the axis of x, selected by equality."""
    n, m = x.shape[axis], index.shape[axis]
    shape = (*x.shape[:axis], m, n, *x.shape[axis + 1 :])
    wide_index = g.expand(g.unsqueeze(index, axis + 1), shape)
    position = g.along(iota(n, index.dtype), axis + 1, shape)
    wide = g.expand(g.unsqueeze(x, axis), shape)
    return g.selected(g.eq(wide_index, position), wide, axis + 1)


def _vector(who: str, index: Any) -> None:
    if not isinstance(index, Handle) or index.ndim > 1 or not index.dtype.is_int:
        raise IndexingError(
            f"{who}: expected a vector of integers, got "
            + (g.describe(index._raw) if isinstance(index, Handle) else type(index).__name__)
        )


def _aligned(who: str, x: Any, dim: int, index: Any) -> tuple[int, Node, Node]:
    """(axis, x cut to the index's sizes outside the axis, index)."""
    if not isinstance(index, Handle) or not index.dtype.is_int:
        raise IndexingError(f"{who}: the index is a tensor of integers")
    if index.ndim != x.ndim:
        raise ShapeError(
            f"{who}: the index has {index.ndim} axes, the tensor {x.ndim}; they must be equal"
        )
    a = g.axis_of(who, dim, x.ndim)
    for i, (m, n) in enumerate(zip(index.shape, x.shape)):
        if i != a and sym.is_less(n, m):
            raise ShapeError(
                f"{who}: the index {list(index.shape)} exceeds {list(x.shape)} in axis {i}"
            )
    check_index(who, index, x.shape[a])
    spec = [(0, n if i == a else m, 1)
            for i, (m, n) in enumerate(zip(index.shape, x.shape))]  # fmt: skip
    return a, g.slice_(x.node, spec), index.node


def _scattered(who: str, x: Any, dim: int, index: Any, src: Any) -> tuple[int, Node, Any]:
    a, _, node = _aligned(who, x, dim, index)
    if isinstance(src, Handle):
        for i, (m, n) in enumerate(zip(index.shape, src.shape)):
            if sym.is_less(n, m):
                raise ShapeError(
                    f"{who}: the index {list(index.shape)} exceeds the source {list(src.shape)} "
                    f"in axis {i}"
                )
        src = src._result(g.slice_(src.node, [(0, m, 1) for m in index.shape]))
    elif not is_number(src):
        raise DTypeError(f"{who}: the source is a tensor or a number, got {type(src).__name__}")
    return a, from_front(node, x.shape[a]), src


def _hits(x: Handle, axis: int, index: Node) -> Node:
    """(..., M, V, ...): whether entry m goes to position v of x's axis."""
    shape = (*index.shape[: axis + 1], x.shape[axis], *index.shape[axis + 1 :])
    wide = g.expand(g.unsqueeze(index, axis + 1), shape)
    return g.eq(wide, g.along(iota(x.shape[axis]), axis + 1, shape))


def _over(x: Handle, axis: int, part: Node, value: Any) -> Node:
    """A result for the index's sizes, padded to x's outside the axis."""
    return g.pad(part, [(0, sym.sub(n, m)) for m, n in zip(part.shape, x.shape)], value)


def _neutral(reduce: str, d: dt.DType) -> Any:
    return {"sum": 0, "mean": 0, "prod": 1, "amax": d.min, "amin": d.max}[reduce]


def _joined(reduce: str, hit: Node, values: Node, axis: int) -> tuple[Node, Any]:
    """The values that hit each position, joined over the axis of entries; and the neutral value."""
    neutral = _neutral(reduce, values.dtype)
    if values.dtype is dt.bool_ and reduce == "sum":
        reduce = "amax"  # bool adds up to `or`
        neutral = False
    chosen = g.where(hit, values, neutral)
    if reduce in ("sum", "mean"):
        return g.total(chosen, (axis,)), neutral
    if reduce == "prod":
        product = product_along(chosen, axis)
        return g.reshape(product, (*product.shape[:axis], *product.shape[axis + 1 :])), neutral
    return (g.greatest if reduce == "amax" else least)(chosen, (axis,)), neutral


def _combine(reduce: str, a: Node, b: Node) -> Node:
    if reduce in ("sum", "mean"):
        return g.add(a, b)
    if reduce == "prod":
        return g.mul(a, b)
    return g.maximum(a, b) if reduce == "amax" else g.minimum(a, b)
