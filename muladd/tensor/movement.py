"""Rearranging: views (reshape, permute, expand, ...) and what joins, repeats, pads or shifts."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError, ShapeError
from muladd.ir import Dim, Node, Shape, const, iota, ops, sym
from muladd.ir import dtype as dt
from muladd.ir.ops import equal_dims
from muladd.tensor import graph as g
from muladd.tensor.creation import shape_of, size_of
from muladd.tensor.handle import Handle
from muladd.tensor.operands import as_operand, one_device, scalar_as_vector

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Movement(Handle):
    """Views share their elements with the tensor they were made from, as in NumPy and torch."""

    __slots__ = ()

    def _reshaped(self, shape: Shape) -> Tensor:
        return self._view((ops.RESHAPE, tuple(shape)), g.reshape(self._value(), tuple(shape)))

    def _permuted(self, order: Sequence[int]) -> Tensor:
        return self._view((ops.PERMUTE, tuple(order)))

    # --- shapes -----------------------------------------------------------------------------------

    def reshape(self, *shape: Any) -> Tensor:
        """The same elements in row-major order; one size may be -1 and is worked out."""
        return self._reshaped(full_shape("reshape", shape_given(shape), self.shape))

    def view(self, *shape: Any) -> Tensor:
        """The same as reshape (or as bitcast, given a dtype)."""
        if len(shape) == 1 and isinstance(shape[0], dt.DType):
            return self.bitcast(shape[0])
        return self.reshape(*shape)

    def view_as(self, other: Tensor) -> Tensor:
        """reshape to the other tensor's shape."""
        return self.reshape(other.shape)

    def reshape_as(self, other: Tensor) -> Tensor:
        """reshape to the other tensor's shape."""
        return self.reshape(other.shape)

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Tensor:
        """The axes start_dim..end_dim joined into one."""
        if not self.ndim:
            return self._reshaped((1,))
        first = g.axis_of("flatten", start_dim, self.ndim)
        last = g.axis_of("flatten", end_dim, self.ndim)
        if last < first:
            raise ShapeError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
        joined = sym.product(self.shape[first : last + 1])
        return self._reshaped((*self.shape[:first], joined, *self.shape[last + 1 :]))

    def ravel(self) -> Tensor:
        """All axes joined into one."""
        return self.flatten()

    def unflatten(self, dim: int, sizes: Sequence[int]) -> Tensor:
        """One axis cut into several; one of the sizes may be -1."""
        a = g.axis_of("unflatten", dim, self.ndim)
        inner = full_shape("unflatten", tuple(sizes), (self.shape[a],))
        return self._reshaped((*self.shape[:a], *inner, *self.shape[a + 1 :]))

    def squeeze(self, dim: Any = None, *, axis: Any = None) -> Tensor:
        """Axes of size 1 removed: all, or those named (others that are named stay)."""
        dim = axis if axis is not None else dim
        chosen = g.axes_of("squeeze", dim, self.ndim)
        return self._reshaped(
            tuple(n for i, n in enumerate(self.shape) if i not in chosen or not equal_dims(n, 1))
        )

    def unsqueeze(self, dim: int | None = None, *, axis: int | None = None) -> Tensor:
        """A new axis of size 1, which becomes axis `dim`."""
        a = g.axis_of("unsqueeze", axis if dim is None else dim, self.ndim + 1)
        return self._reshaped((*self.shape[:a], 1, *self.shape[a:]))

    def expand(self, *shape: Any) -> Tensor:
        """Axes of size 1 repeated, new axes in front; -1 keeps a size. A view; not writable."""
        sizes = shape_given(shape)
        lead = len(sizes) - self.ndim
        if lead < 0:
            raise ShapeError(f"expand: {list(self.shape)} has more axes than {list(sizes)}")
        old: Shape = (*[-1] * lead, *self.shape)
        target = tuple(o if _is(n, -1) else n for n, o in zip(sizes, old))
        if any(_is(n, -1) for n in target[:lead]):
            raise ShapeError(f"expand: a new axis in {list(sizes)} needs a size, not -1")
        return self._broadcast("expand", target)

    def expand_as(self, other: Tensor) -> Tensor:
        """expand to the other tensor's shape."""
        return self.expand(other.shape)

    def broadcast_to(self, *shape: Any) -> Tensor:
        """The same elements repeated to a shape by NumPy's rule."""
        return self._broadcast("broadcast_to", shape_given(shape))

    def _broadcast(self, who: str, target: Shape) -> Tensor:
        if g.broadcast_shapes(who, self.shape, target) != target:
            raise ShapeError(f"{who}: {list(self.shape)} does not broadcast to {list(target)}")
        return self if target == self.shape else self._view((ops.EXPAND, target))  # type: ignore

    @classmethod
    def broadcast_tensors(cls, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Tensors expanded to the shape they broadcast to together."""
        shape = g.broadcast_shapes("broadcast_tensors", *[t.shape for t in tensors])
        return tuple(t.broadcast_to(shape) for t in tensors)

    # --- order of axes ----------------------------------------------------------------------------

    def permute(self, *order: Any) -> Tensor:
        """Axis i of the result is axis order[i]."""
        axes = order[0] if len(order) == 1 and isinstance(order[0], list | tuple) else order
        found = [g.axis_of("permute", a, self.ndim) for a in axes]
        if sorted(found) != list(range(self.ndim)):
            raise ShapeError(
                f"permute: {tuple(axes)} must name each of the {self.ndim} axes of "
                f"{list(self.shape)} once"
            )
        return self._permuted(found)

    @scalar_as_vector
    def transpose(self, dim0: int = 1, dim1: int = 0) -> Tensor:
        """Two axes exchanged."""
        a = g.axis_of("transpose", dim0, self.ndim)
        b = g.axis_of("transpose", dim1, self.ndim)
        order = list(range(self.ndim))
        order[a], order[b] = b, a
        return self._permuted(order)

    def swapaxes(self, axis0: int, axis1: int) -> Tensor:
        """The same as transpose."""
        return self.transpose(axis0, axis1)

    def swapdims(self, dim0: int, dim1: int) -> Tensor:
        """The same as transpose."""
        return self.transpose(dim0, dim1)

    def t(self) -> Tensor:
        """The transpose of a matrix (fewer axes: unchanged)."""
        if self.ndim > 2:
            raise ShapeError(f"t: expected at most 2 axes, got {list(self.shape)}; use mT")
        return self._permuted(range(self.ndim)[::-1])

    @property
    def T(self) -> Tensor:
        """All axes in reverse order."""
        return self._permuted(range(self.ndim)[::-1])

    @property
    def mT(self) -> Tensor:
        """The last two axes exchanged."""
        if self.ndim < 2:
            raise ShapeError(f"mT: expected at least 2 axes, got {list(self.shape)}")
        return self.transpose(-2, -1)

    @scalar_as_vector
    def movedim(self, source: Any, destination: Any) -> Tensor:
        """Axes moved to new places; the others keep their order."""
        sources = source if isinstance(source, list | tuple) else (source,)
        targets = destination if isinstance(destination, list | tuple) else (destination,)
        if len(sources) != len(targets):
            raise ShapeError(f"movedim: {source} and {destination} differ in length")
        from_ = [g.axis_of("movedim", a, self.ndim) for a in sources]
        to = [g.axis_of("movedim", a, self.ndim) for a in targets]
        rest = iter(a for a in range(self.ndim) if a not in from_)
        placed = dict(zip(to, from_))
        return self._permuted([placed[i] if i in placed else next(rest) for i in range(self.ndim)])

    def moveaxis(self, source: Any, destination: Any) -> Tensor:
        """The same as movedim."""
        return self.movedim(source, destination)

    # --- parts ------------------------------------------------------------------------------------

    def _cut(self, axis: int, start: Dim, size: Dim, step: int = 1) -> Tensor:
        spec: list[tuple[Dim, Dim, int]] = [(0, n, 1) for n in self.shape]
        spec[axis] = (start, size, step)
        return self._view((ops.SLICE, tuple(spec)))

    def narrow(self, dim: int, start: int, length: int) -> Tensor:
        """`length` entries along an axis from `start` on (negative: from the end). A view."""
        a = g.axis_of("narrow", dim, self.ndim)
        size = self.shape[a]
        if isinstance(start, int) and start < 0:
            start = sym.add(start, size)  # type: ignore[assignment]
        if all(isinstance(v, int) for v in (start, length, size)):
            if not 0 <= start <= start + length <= size:  # type: ignore[operator]
                raise ShapeError(
                    f"narrow: start {start} and length {length} leave an axis of size {size}"
                )
        return self._cut(a, start, length)

    def split(self, split_size: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """Parts of one size along an axis (the last may be smaller), or of the sizes listed."""
        a = g.axis_of("split", dim, self.ndim)
        n = g.static("split", self.shape[a])
        if isinstance(split_size, int):
            if split_size <= 0:
                raise ShapeError(f"split: a part's size is at least 1, got {split_size}")
            sizes = [min(split_size, n - i) for i in range(0, n, split_size)] or [0]
        else:
            sizes = list(split_size)
            if sum(sizes) != n:
                raise ShapeError(f"split: {sizes} add up to {sum(sizes)}, the axis has {n}")
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return tuple(self._cut(a, s, n) for s, n in zip(starts, sizes))

    def chunk(self, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
        """At most `chunks` parts of equal size (the last may be smaller)."""
        n = g.static("chunk", self.shape[g.axis_of("chunk", dim, self.ndim)])
        if chunks < 1:
            raise ShapeError(f"chunk: at least 1 part, got {chunks}")
        return self.split(max(1, -(-n // chunks)), dim)

    def tensor_split(self, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
        """That many parts, as equal as can be, or parts that end at the indices given."""
        a = g.axis_of("tensor_split", dim, self.ndim)
        n = g.static("tensor_split", self.shape[a])
        if isinstance(indices_or_sections, int):
            k = indices_or_sections
            return self.split([n // k + (i < n % k) for i in range(k)], a)
        ends = [slice(None, e).indices(n)[1] for e in indices_or_sections] + [n]
        starts = [0, *ends[:-1]]
        return tuple(self._cut(a, s, max(e - s, 0)) for s, e in zip(starts, ends))

    def unbind(self, dim: int = 0) -> tuple[Tensor, ...]:
        """The slices along an axis, without it."""
        a = g.axis_of("unbind", dim, self.ndim)
        return tuple(self.select(a, i) for i in range(g.static("unbind", self.shape[a])))

    def select(self, dim: int, index: int) -> Tensor:
        """One slice along an axis, without it. A view."""
        a = g.axis_of("select", dim, self.ndim)
        return self[(*[slice(None)] * a, index)]

    def diagonal(self, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Tensor:
        """The elements where index dim2 - index dim1 = offset, as a new last axis."""
        a, b = (g.axis_of("diagonal", d, self.ndim) for d in (dim1, dim2))
        if a == b:
            raise ShapeError(f"diagonal: dim1 and dim2 are both axis {a}")
        x = self.movedim((a, b), (-2, -1))
        rows, columns = (g.static("diagonal", n) for n in x.shape[-2:])
        top, left = max(-offset, 0), max(offset, 0)
        n = max(min(rows - top, columns - left), 0)
        if n == 0:
            return x[..., 0:0, :].flatten(-2) if columns == 0 else x[..., 0:0, 0]
        # in a flat row, the diagonal's neighbours are a row and one element apart: a view
        flat = x._reshaped((*x.shape[:-2], rows * columns))
        return flat._cut(x.ndim - 2, top * columns + left, n, columns + 1)

    def diag(self, diagonal: int = 0) -> Tensor:
        """A vector as the diagonal of a matrix; the diagonal of a matrix as a vector."""
        if self.ndim == 1:
            return self.diag_embed(diagonal)
        if self.ndim != 2:
            raise ShapeError(f"diag: expected 1 or 2 axes, got {list(self.shape)}")
        return self.diagonal(diagonal)

    def diag_embed(self, offset: int = 0) -> Tensor:
        """The last axis as the diagonal of new matrices, zero elsewhere."""
        n = sym.add(self.shape[-1], abs(offset))
        x = self.node
        lead = [(0, 0)] * (self.ndim - 1)
        rows = g.unsqueeze(g.pad(x, [*lead, (max(-offset, 0), max(offset, 0))]), self.ndim)
        shape = (*self.shape[:-1], n, n)
        r, c = (g.along(iota(n), a, shape) for a in (self.ndim - 1, self.ndim))
        on = g.eq(g.sub(c, r), offset)
        return self._result(g.where(on, g.expand(rows, shape), 0))

    def tril(self, diagonal: int = 0) -> Tensor:
        """Zero above the diagonal."""
        return self._result(g.where(g.invert(_above(self, diagonal)), self.node, 0))

    def triu(self, diagonal: int = 0) -> Tensor:
        """Zero below the diagonal."""
        return self._result(g.where(_above(self, diagonal - 1), self.node, 0))

    # --- joining and repeating --------------------------------------------------------------------

    def cat(self, *others: Any, dim: int = 0, axis: int | None = None) -> Tensor:
        """Tensors joined along an axis: `Tensor.cat(a, b, dim=1)`, also with one list of them."""
        others, dim = _without_axis(others, dim)
        tensors = tensors_given("cat", self, others)
        first = tensors[0]
        one_device("cat", tensors)
        a = g.axis_of("cat", dim if axis is None else axis, first.ndim)
        d = first.dtype
        for t in tensors[1:]:
            d = dt.promote(d, t.dtype)
            same = t.ndim == first.ndim and all(
                i == a or equal_dims(n, m) for i, (n, m) in enumerate(zip(t.shape, first.shape))
            )
            if not same:
                raise ShapeError(
                    f"cat: shapes {[list(s.shape) for s in tensors]} differ outside axis {a}"
                )
        return first._result(g.concatenate([g.cast(t.node, d) for t in tensors], a))

    def concat(self, *others: Any, dim: int = 0, axis: int | None = None) -> Tensor:
        """The same as cat."""
        return Movement.cat(self, *others, dim=dim, axis=axis)

    def stack(self, *others: Any, dim: int = 0, axis: int | None = None) -> Tensor:
        """Tensors of one shape joined along a new axis."""
        others, dim = _without_axis(others, dim)
        tensors = tensors_given("stack", self, others)
        if any(t.shape != tensors[0].shape for t in tensors):
            raise ShapeError(
                f"stack: expected equal shapes, got {[list(t.shape) for t in tensors]}"
            )
        a = dim if axis is None else axis
        return Movement.cat(*[t.unsqueeze(a) for t in tensors], dim=a)

    def hstack(self, *others: Any) -> Tensor:
        """Tensors joined along axis 1 (vectors: along their only axis)."""
        tensors = [t.reshape(1) if t.ndim == 0 else t
                   for t in tensors_given("hstack", self, others)]  # fmt: skip
        return Movement.cat(*tensors, dim=0 if tensors[0].ndim == 1 else 1)

    def vstack(self, *others: Any) -> Tensor:
        """Tensors joined along axis 0, vectors as rows."""
        tensors = tensors_given("vstack", self, others)
        rows = [t.reshape(1, -1) if t.ndim < 2 else t for t in tensors]
        return Movement.cat(*rows, dim=0)

    def repeat(self, *repeats: Any) -> Tensor:
        """The whole tensor side by side, repeats[i] times along axis i (new axes in front)."""
        counts = shape_of(repeats, "repeat")
        if len(counts) < self.ndim:
            raise ShapeError(
                f"repeat: {list(counts)} has fewer entries than {list(self.shape)} has axes"
            )
        return self._result(tiled(self.node, counts))

    def tile(self, *repeats: Any) -> Tensor:
        """As repeat; missing counts in front are 1."""
        counts = shape_of(repeats, "tile")
        return self.repeat((1,) * (self.ndim - len(counts)) + counts)

    def repeat_interleave(self, repeats: Any, dim: int | None = None) -> Tensor:
        """Each element `repeats` times in a row (a list or tensor: each its own count; runs)."""
        x = self.flatten() if dim is None else self
        a = 0 if dim is None else g.axis_of("repeat_interleave", dim, self.ndim)
        if isinstance(repeats, int):
            repeats = size_of(repeats, "repeat_interleave")
            shape = (*x.shape[: a + 1], repeats, *x.shape[a + 1 :])
            wide = g.expand(g.unsqueeze(x.node, a + 1), shape)
            total = sym.mul(x.shape[a], repeats)
            return self._result(g.reshape(wide, (*x.shape[:a], total, *x.shape[a + 1 :])))
        counts = repeats.tolist() if isinstance(repeats, Handle) else list(repeats)
        index = [i for i, count in enumerate(counts) for _ in range(count)]
        return x.index_select(a, self._made(index, dt.int64))

    # --- order of elements ------------------------------------------------------------------------

    def flip(self, *dims: Any) -> Tensor:
        """The order of elements reversed along the axes given. A view."""
        given = dims[0] if len(dims) == 1 and isinstance(dims[0], list | tuple) else dims
        axes = g.axes_of("flip", tuple(given) or None, self.ndim)
        spec = tuple(
            (sym.sub(n, 1), n, -1) if i in axes else (0, n, 1) for i, n in enumerate(self.shape)
        )
        if any(equal_dims(n, 0) for n in self.shape):
            return self._view(None)
        return self._view((ops.SLICE, spec))

    def fliplr(self) -> Tensor:
        """flip along axis 1."""
        return self.flip(1)

    def flipud(self) -> Tensor:
        """flip along axis 0."""
        return self.flip(0)

    def roll(self, shifts: Any, dims: Any = None) -> Tensor:
        """Elements moved on by `shifts` places; what leaves at the end comes in at the front."""
        if dims is None:
            return self.flatten().roll(shifts, 0).reshape(self.shape)
        moves = shifts if isinstance(shifts, list | tuple) else (shifts,)
        axes = dims if isinstance(dims, list | tuple) else (dims,)
        if len(moves) != len(axes):
            raise ShapeError(f"roll: {len(moves)} shifts for {len(axes)} axes")
        x = self.node
        for move, axis in zip(moves, axes):
            a = g.axis_of("roll", axis, self.ndim)
            n = g.static("roll", x.shape[a])
            k = move % n if n else 0
            if k:
                x = g.concatenate([g.cut(x, a, n - k, k), g.cut(x, a, 0, n - k)], a)
        return self._result(x)

    def rot90(self, k: int = 1, dims: Sequence[int] = (0, 1)) -> Tensor:
        """Turned by k quarters in the plane of two axes, from the first towards the second."""
        a, b = dims
        if k % 4 == 0:
            return self._view(None)
        if k % 4 == 2:
            return self.flip(a, b)
        turned = self.flip(b) if k % 4 == 1 else self.flip(a)
        return turned.transpose(a, b)

    @classmethod
    def meshgrid(cls, *tensors: Any, indexing: str = "ij") -> tuple[Tensor, ...]:
        """Vectors laid along one axis each, repeated over the others ('xy' swaps the first two)."""
        vectors = list(tensors[0]) if isinstance(tensors[0], list | tuple) else list(tensors)
        if indexing not in ("ij", "xy"):
            raise ShapeError(f"meshgrid: indexing={indexing!r}, expected 'ij' or 'xy'")
        swap = indexing == "xy" and len(vectors) > 1
        order = [1, 0, *range(2, len(vectors))] if swap else list(range(len(vectors)))
        shape = tuple(vectors[i].numel() for i in order)
        return tuple(
            v.reshape([-1 if order[a] == i else 1 for a in range(len(vectors))]).expand(shape)
            for i, v in enumerate(vectors)
        )

    # --- windows ----------------------------------------------------------------------------------

    def unfold(self, *arguments: Any, **named: Any) -> Tensor:
        """unfold(dim, size, step): overlapping windows along an axis, as a new last axis.

        unfold(kernel_size, dilation=, padding=, stride=) on (N, C, H, W) gives the columns of
        torch.nn.functional.unfold, (N, C * kh * kw, windows).
        """
        from muladd.tensor.windows import columns, windows

        if len(arguments) + len({"dimension", "dim", "size", "step"} & named.keys()) == 3:
            names = dict(zip(("dim", "size", "step"), arguments)) | named
            a = g.axis_of("unfold", names.get("dim", names.get("dimension")), self.ndim)
            x = windows(self.node, (a,), (names["size"],), (names["step"],), (1,))
            return self._result(x).movedim(0, -1)
        return columns(self._view(None), *arguments, **named)

    def fold(self, output_size: Any, kernel_size: Any, **named: Any) -> Tensor:
        """The inverse of unfold: columns (N, C*kh*kw, windows) added up into (N, C, H, W)."""
        from muladd.tensor.windows import from_columns

        return from_columns(self._view(None), output_size, kernel_size, **named)


# --- helpers --------------------------------------------------------------------------------------


def shape_given(sizes: tuple) -> Shape:
    """reshape(2, 3) and reshape((2, 3)) alike; -1 is allowed."""
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    try:
        return tuple(n if isinstance(n, Node) else n.__index__() for n in sizes)
    except AttributeError:
        raise DTypeError(f"a shape consists of whole numbers, got {sizes!r}") from None


def _is(n: Dim, value: int) -> bool:
    return isinstance(n, int) and n == value


def full_shape(who: str, wanted: Shape, old: Shape) -> Shape:
    """`wanted` with its one -1 replaced by what makes the element counts equal."""
    count = sym.product(old)
    holes = [i for i, n in enumerate(wanted) if _is(n, -1)]
    if len(holes) > 1:
        raise ShapeError(f"{who}: {list(wanted)} has more than one -1")
    if any(isinstance(n, int) and n < -1 for n in wanted):
        raise ShapeError(f"{who}: {list(wanted)} has a negative size")
    fits = True
    given = wanted
    if holes:
        rest = sym.product(n for n in wanted if not _is(n, -1))
        fits = not _is(rest, 0)  # else any size would do
        i = holes[0]
        wanted = (*wanted[:i], sym.div(count, rest) if fits else 0, *wanted[i + 1 :])
    if not fits or not equal_dims(sym.product(wanted), count):
        raise ShapeError(
            f"{who}: {count} elements of shape {list(old)} cannot be arranged as {list(given)}"
        )
    return wanted


def _without_axis(others: tuple, dim: int) -> tuple[tuple, int]:
    """cat(a, b, 1) is cat(a, b, dim=1)."""
    return (others[:-1], others[-1]) if others and isinstance(others[-1], int) else (others, dim)


def tensors_given(who: str, first: Any, others: Sequence[Any]) -> list[Any]:
    """cat(a, b), cat([a, b]) and a.cat(b) alike."""
    items = list(first) if isinstance(first, list | tuple) else [first]
    for other in others:
        items += list(other) if isinstance(other, list | tuple) else [other]
    if not items:
        raise ShapeError(f"{who}: expected at least one tensor, got none")
    handle = next((t for t in items if isinstance(t, Handle)), None)
    if handle is None:
        raise DTypeError(f"{who}: expected tensors, got {[type(t).__name__ for t in items]}")
    tensors = [as_operand(t, handle.device, who) for t in items]
    for i, t in enumerate(tensors):
        if not isinstance(t, Handle):
            raise DTypeError(f"{who}: expected tensors, got the number {t!r} at place {i}")
    return tensors


def tiled(x: Node, counts: Shape) -> Node:
    """x side by side, counts[i] times along axis i."""
    lead = len(counts) - x.ndim
    sizes: Shape = (*[1] * lead, *x.shape)
    split = tuple(v for n in sizes for v in (1, n))
    wide = tuple(v for c, n in zip(counts, sizes) for v in (c, n))
    joined = tuple(sym.mul(c, n) for c, n in zip(counts, sizes))
    return g.reshape(g.expand(g.reshape(x, split), wide), joined)


def _above(x: Handle, diagonal: int) -> Node:
    """Where column - row > diagonal, over the last two axes."""
    if x.ndim < 2:
        raise ShapeError(f"tril, triu: expected at least 2 axes, got {list(x.shape)}")
    r = g.along(iota(x.shape[-2]), x.ndim - 2, x.shape)
    c = g.along(iota(x.shape[-1]), x.ndim - 1, x.shape)
    return g.gt(c, g.add(r, const(diagonal, dt.int64, x.shape)))
