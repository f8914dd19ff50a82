"""x[...] and x[...] = v: slices are views; index tensors gather and scatter; masks select."""
from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from muladd import config
from muladd.errors import DTypeError, IndexingError
from muladd.ir import Dim, Node, Shape, Storage, const, iota, ops, sym, toposort
from muladd.ir import dtype as dt
from muladd.tensor import backend
from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.operands import is_number

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Indexing(Handle):
    """Indexing as in NumPy and torch. Whole numbers and slices give views.

    Index tensors broadcast against each other; their axes stand where the first of them stood if
    they are neighbours, else in front. Negative indices count from the end. An element of an index
    tensor that is outside its axis raises where it is known at the call (see `check_index`); where
    it is only computed later, reading gives 0 and writing is left out.
    """

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getitem__(self, index):
            view, tensors, _ = _basic(self, index)
            return view if not tensors else _read(view, tensors)

        def __setitem__(self, index, value):
            scalar = is_number(value) or (isinstance(value, Handle) and value.ndim == 0)
            view, tensors, mask = _basic(self, index, masks=scalar)
            if isinstance(value, Handle) and _is_same_view(view, value) and not tensors:
                return  # t[i] += x has written through the view already
            if mask is not None:
                _write_masked(view, mask, value)
            elif tensors:
                _write_rows(view, tensors, _value_node(value, view), False, "setitem")
            else:
                node = _value_node(value, view)
                view._write(_broadcast(node, view.shape, "setitem"), "setitem")

    def index_put(
        self, indices: Sequence[Any], values: Any, accumulate: bool = False
    ) -> Tensor:
        """A copy with x[indices] = values, or += with repeated indices adding up."""
        copy = self.clone()
        view, tensors, _ = _basic(copy, tuple(indices))
        if not tensors:
            raise IndexingError("index_put: expected index tensors")
        _write_rows(view, tensors, _value_node(values, view), accumulate, "index_put")
        return copy


def _is_same_view(view: Handle, value: Handle) -> bool:
    return (
        value._root is view._root and value._parent is not None
        and value._raw is view._value() and value._seen is view._root._raw
    )  # fmt: skip


# --- reading an index -----------------------------------------------------------------------------


def _entries(index: Any, x: Handle) -> list[Any]:
    """The index as a list of numbers, slices, None, tensors; '...' spelt out."""
    items = list(index) if isinstance(index, tuple) else [index]
    items = [_entry(item, x) for item in items]
    used = sum(_consumed(item) for item in items)
    if used > x.ndim:
        raise IndexingError(f"index: {used} indices for a tensor of shape {list(x.shape)}")
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise IndexingError("index: only one '...' is possible")
    rest = [slice(None)] * (x.ndim - used)
    if dots:
        return [*items[: dots[0]], *rest, *items[dots[0] + 1 :]]
    return items + rest


def _entry(item: Any, x: Handle) -> Any:
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    if isinstance(item, bool | np.bool_ | list | tuple | range) or (
        isinstance(item, np.ndarray) and item.ndim
    ):
        if isinstance(item, list | tuple | range) and not len(item):
            item = np.zeros(0, np.int64)
        item = x._made(np.asarray(item) if isinstance(item, range) else item)
    if isinstance(item, Handle):
        if item.dtype.is_float:
            raise IndexingError(f"index: an index is an integer or bool, got {item.dtype.name}")
        return item
    if isinstance(item, Node):
        return item
    try:
        return item.__index__()
    except (AttributeError, TypeError):
        raise IndexingError(
            f"index: {item!r} is not an index; expected a whole number, a slice, None, '...', or a "
            "tensor or list of integers or bool"
        ) from None


def _consumed(item: Any) -> int:
    if item is None or item is Ellipsis:
        return 0
    if isinstance(item, Handle) and item.dtype is dt.bool_:
        return item.ndim
    return 1


def _basic(
    x: Any, index: Any, masks: bool = False
) -> tuple[Any, dict[int, Any], Any]:  # fmt: skip
    """(the view made by numbers, slices and None; index tensors by axis of it; a lone mask)."""
    entries = _entries(index, x)
    mask = _lone_mask(entries) if masks else None
    if mask is not None:
        entries = [slice(None)] * x.ndim
    spec: list[tuple[Dim, Dim, int]] = []
    shape: list[Dim] = []
    tensors: dict[int, Any] = {}
    axis = 0
    for item in entries:
        if item is None:
            shape.append(1)
            continue
        if isinstance(item, Handle):
            for part in _index_tensors(item, x.shape[axis : axis + _consumed(item)]):
                if part is None:  # a mask without axes is a new axis of 0 or 1
                    tensors[len(shape)] = type(x)(np.arange(int(item.item())), device=x.device)
                    shape.append(1)
                    continue
                tensors[len(shape)] = part
                spec.append((0, x.shape[axis], 1))
                shape.append(x.shape[axis])
                axis += 1
            continue
        if isinstance(item, slice):
            start, size, step = _slice(item, x.shape[axis])
            shape.append(size)
        else:
            start, size, step = _number(item, x.shape[axis], axis), 1, 1
        spec.append((start, size, step))
        axis += 1
    view = x._view((ops.SLICE, tuple(spec))) if not _whole(spec, x.shape) else x
    if tuple(shape) != view.shape or view is x:
        view = view._reshaped(tuple(shape))
    return view, tensors, mask


def _whole(spec: list[tuple[Dim, Dim, int]], shape: Shape) -> bool:
    return all(s == 1 and g.equal_dims(n, m) for (_, n, s), m in zip(spec, shape))


def _lone_mask(entries: list[Any]) -> Any:
    """The mask, if the index is one mask (with whole slices behind it) and nothing else."""
    first, rest = entries[0] if entries else None, entries[1:]
    if isinstance(first, Handle) and first.dtype is dt.bool_ and first.ndim:
        if all(isinstance(e, slice) and e == slice(None) for e in rest):
            return first
    return None


def _slice(item: slice, n: Dim) -> tuple[Dim, Dim, int]:
    step = 1 if item.step is None else item.step.__index__()
    if step == 0:
        raise IndexingError("index: a slice's step cannot be 0")
    parts = (item.start, item.stop)
    if isinstance(n, int) and not any(isinstance(v, Node) for v in parts):
        start, stop, step = item.indices(n)
        count = len(range(start, stop, step))
        return (start if count else 0), count, step if count else 1
    if step != 1:
        raise IndexingError("index: a slice over a symbolic size needs step 1")
    first, last = (_from_end(v, n, default) for v, default in zip(parts, (0, n)))
    return first, sym.sub(last, first), 1


def _from_end(v: Any, n: Dim, default: Dim) -> Dim:
    if v is None:
        return default
    if isinstance(v, int) and v < 0:
        return sym.add(n, v)
    return v


def _number(item: Any, n: Dim, axis: int) -> Dim:
    if isinstance(item, int) and isinstance(n, int):
        if not -n <= item < n:
            raise IndexingError(f"index: {item} is outside axis {axis} of size {n}")
        return item % n
    return sym.add(n, item) if isinstance(item, int) and item < 0 else item


def _index_tensors(item: Any, sizes: Shape) -> list[Any]:
    """An integer index as itself, a mask as one index tensor per axis (this runs)."""
    if item.dtype is not dt.bool_:
        check_index("index", item, sizes[0])
        return [item]
    if not item.ndim:
        return [None]
    if any(not g.equal_dims(n, m) for n, m in zip(item.shape, sizes)):
        raise IndexingError(
            f"index: a mask of shape {list(item.shape)} does not fit axes of {list(sizes)}"
        )
    found = np.nonzero(item.numpy())
    return [type(item)(part, device=item.device) for part in found]


MOST_CHECKED = 4096  # elements of an index tensor that are looked at in every call


def check_index(
    who: str, index: Any, n: Dim, least: int | None = None, ignored: int | None = None
) -> None:
    """IndexingError where an element of an index tensor is outside least (default -n)..n-1.

    Looked at is what lies in the host's memory already, up to 4096 elements; with CHECK=1 every
    index is computed and looked at. While a function is traced there is nothing to look at.
    """
    if not isinstance(n, int):
        return
    values = _known_values(index)
    if values is not None and ignored is not None:
        values = values[values != ignored]
    if values is None or not values.size:
        return
    low, high, first = int(values.min()), int(values.max()), -n if least is None else least
    if low < first or high >= n:
        raise IndexingError(
            f"{who}: an index tensor of shape {list(index.shape)} holds "
            f"{low if low < first else high}, which is outside an axis of size {n}; expected "
            f"{first}..{n - 1}"
        )


def _known_values(index: Any) -> np.ndarray | None:
    if backend.is_tracing():
        return None
    if config.CHECK:
        inputs = [x for x in toposort([index._value()]) if x.op is ops.INPUT]
        return index.numpy() if all(isinstance(x.arg, Storage) for x in inputs) else None
    node = index._raw
    storage = index._kept if index._parent is None else None
    if storage is None and node.op is ops.INPUT and isinstance(node.arg, Storage):
        storage = node.arg
    if storage is None or storage.buffer is None or index.device not in backend.HOSTS:
        return None
    if any(not isinstance(m, int) for m in index.shape) or prod(index.shape) > MOST_CHECKED:
        return None
    return backend.read(storage)


# --- gathering and scattering rows ----------------------------------------------------------------


def from_front(index: Node, n: Dim) -> Node:
    """Indices as int64, negative ones counted from the end."""
    index = g.cast(index, dt.int64)
    return g.where(g.lt(index, 0), g.add(index, g.number(n, dt.int64, index.shape)), index)


class _Rows:
    """A view arranged as a table: the indexed axes joined in front, the others behind."""

    def __init__(self, view: Any, tensors: dict[int, Any]) -> None:
        self.axes = sorted(tensors)
        self.rest = [a for a in range(view.ndim) if a not in self.axes]
        self.shape = view.shape
        self.sizes = [view.shape[a] for a in self.axes]
        self.rows = sym.product(self.sizes)
        self.rest_shape = tuple(view.shape[a] for a in self.rest)
        self.lead = g.broadcast_shapes("index", *[tensors[a].shape for a in self.axes])
        self.index = self._joined([tensors[a] for a in self.axes])
        self.place = self._place([a for a in self.axes if tensors[a].ndim] or self.axes)

    def _place(self, axes: list[int]) -> int:
        """Before how many other axes the index's stand; scalar tensors count as numbers."""
        between = [a for a in self.rest if axes[0] < a < axes[-1]]
        return 0 if between else sum(a < axes[0] for a in self.rest)

    def _joined(self, tensors: list[Any]) -> Node:
        """One index into the joined axes; -1 where any is outside."""
        total: Node | None = None
        inside: Node | None = None
        for t, n, step in zip(tensors, self.sizes, sym.row_major(self.sizes)):
            i = g.expand(from_front(t.node, n), self.lead)
            if len(tensors) == 1:
                return i
            here = g.both(g.ge(i, 0), g.lt(i, g.number(n, dt.int64, i.shape)))
            inside = here if inside is None else g.both(inside, here)
            scaled = g.mul(i, g.number(step, dt.int64, i.shape))
            total = scaled if total is None else g.add(total, scaled)
        assert total is not None and inside is not None
        return g.where(inside, total, -1)

    def table(self, x: Node) -> Node:
        return g.reshape(g.permute(x, [*self.axes, *self.rest]), (self.rows, *self.rest_shape))

    def from_table(self, table: Node) -> Node:
        x = g.reshape(table, (*self.sizes, *self.rest_shape))
        order = [*self.axes, *self.rest]
        return g.permute(x, [order.index(a) for a in range(len(order))])

    def result_order(self) -> list[int]:
        """Axes (lead..., rest...) to the order in which the user sees them."""
        k = len(self.lead)
        rest = list(range(k, k + len(self.rest)))
        return [*rest[: self.place], *range(k), *rest[self.place :]]

    @property
    def result_shape(self) -> Shape:
        shape = (*self.lead, *self.rest_shape)
        return tuple(shape[a] for a in self.result_order())


def _read(view: Any, tensors: dict[int, Any]) -> Any:
    rows = _Rows(view, tensors)
    found = g.select_rows(rows.table(view.node), rows.index)
    return view._result(g.permute(found, rows.result_order()))


def _write_rows(
    view: Any, tensors: dict[int, Any], value: Node, accumulate: bool, who: str
) -> None:
    rows = _Rows(view, tensors)
    value = _broadcast(value, rows.result_shape, who)
    order = rows.result_order()
    value = g.permute(value, [order.index(a) for a in range(len(order))])
    count = sym.product(rows.lead)
    value = g.reshape(value, (count, *rows.rest_shape))
    index = g.reshape(rows.index, (count,))
    table = rows.table(view.node)
    if accumulate:
        table = g.add(table, add_rows(value, index, rows.rows))
    else:
        table = put_rows(table, value, index)
    view._write(rows.from_table(table), who)


def hits(index: Node, rows: Dim) -> Node:
    """(M,) indices to (M, rows): whether entry m goes to row v."""
    shape = (index.shape[0], rows)
    return g.eq(g.along(index, 0, shape), g.along(iota(rows, index.dtype), 1, shape))


def add_rows(value: Node, index: Node, rows: Dim) -> Node:
    """Row v of the result is the sum of value[m] over all m with index[m] == v."""
    m, rest = value.shape[0], value.shape[1:]
    shape = (m, rows, *rest)
    wide_index = g.expand(g.reshape(index, (m, 1, *[1] * len(rest))), shape)
    position = g.along(iota(rows, index.dtype), 1, shape)
    wide = g.expand(g.reshape(value, (m, 1, *rest)), shape)
    return g.selected(g.eq(wide_index, position), wide, 0)


def put_rows(table: Node, value: Node, index: Node) -> Node:
    """table with row index[m] replaced by value[m]; the last m wins."""
    m, rows = value.shape[0], table.shape[0]
    if g.equal_dims(m, 0):
        return table
    if g.equal_dims(rows, 0):
        return table
    shape = (m, rows)
    order = g.along(iota(m), 0, shape)
    last = g.greatest(g.where(hits(index, rows), order, -1), (0,))
    new = g.select_rows(value, last)
    written = g.expand(
        g.reshape(g.ge(last, 0), (rows, *[1] * (table.ndim - 1))), table.shape
    )
    return g.where(written, new, table)


# --- values to be written -------------------------------------------------------------------------


def _value_node(value: Any, view: Any) -> Node:
    if is_number(value):
        return const(value, view.dtype)
    if not isinstance(value, Handle):
        value = type(view)(value, device=view.device)
    if value.device != view.device:
        raise DTypeError(f"setitem: the value lives on {value.device}, expected {view.device}")
    return g.cast(value.node, view.dtype)


def _broadcast(value: Node, shape: Shape, who: str) -> Node:
    # leading axes of size 1 may be dropped, as in NumPy
    while value.ndim > len(shape) and g.equal_dims(value.shape[0], 1):
        value = g.reshape(value, value.shape[1:])
    if value.ndim > len(shape) or g.broadcast_shapes(who, value.shape, shape) != shape:
        raise IndexingError(
            f"{who}: a value of shape {list(value.shape)} does not fit into {list(shape)}"
        )
    return g.expand(value, shape)


def _write_masked(view: Any, mask: Any, value: Any) -> None:
    if any(not g.equal_dims(n, m) for n, m in zip(mask.shape, view.shape)):
        raise IndexingError(
            f"setitem: a mask of shape {list(mask.shape)} does not fit {list(view.shape)}"
        )
    wide = g.expand(g.reshape(mask.node, (*mask.shape, *[1] * (view.ndim - mask.ndim))), view.shape)
    node = g.expand(_value_node(value, view), view.shape)
    view._write(g.where(wide, node, view.node), "setitem")
