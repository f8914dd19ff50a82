"""Making tensors from nothing: constants, ranges, identity, and copies of another's shape."""
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from muladd.errors import DTypeError, ShapeError
from muladd.ir import Dim, Node, Shape, const, iota, make, ops, sym
from muladd.ir import dtype as dt
from muladd.tensor import backend, graph
from muladd.tensor.handle import Handle
from muladd.tensor.operands import number_dtype, number_given

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


def shape_of(sizes: tuple, who: str) -> Shape:
    """f(2, 3), f((2, 3)) and f([2, 3]) all mean the shape (2, 3)."""
    if len(sizes) == 1 and isinstance(sizes[0], list | tuple):
        sizes = tuple(sizes[0])
    return tuple(size_of(n, who) for n in sizes)


def size_of(n: Any, who: str) -> Dim:
    """One size: a whole number >= 0, or a symbolic size."""
    if isinstance(n, Node):
        return n
    try:
        n = n.__index__()
    except AttributeError:
        raise DTypeError(f"{who}: a size is a whole number, got {n!r}") from None
    if n < 0:
        raise ShapeError(f"{who}: a size is at least 0, got {n}")
    return n


class Creation(Handle):
    """Class methods that make new tensors, and `new_*` / `*_like` after an existing one."""

    __slots__ = ()

    @classmethod
    def _new(cls, node: Node, device: Any, requires_grad: bool) -> Tensor:
        made = cls._of(node, backend.device_name(device))
        return made.requires_grad_() if requires_grad else made

    @classmethod
    def full(
        cls, shape: Any, fill_value: Any, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """Every element is `fill_value`; the dtype defaults to the number's own."""
        sizes = shape_of((shape,), "full")
        fill_value = number_given("full", fill_value)
        d = number_dtype(fill_value) if dtype is None else dt.dtype(dtype)
        return cls._new(const(fill_value, d, sizes), device, requires_grad)

    @classmethod
    def zeros(
        cls, *shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        """All 0, float32 unless told otherwise."""
        d = dt.dtype(dtype or dt.float32)
        return cls._new(const(0, d, shape_of(shape, "zeros")), device, requires_grad)

    @classmethod
    def ones(
        cls, *shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        """All 1, float32 unless told otherwise."""
        d = dt.dtype(dtype or dt.float32)
        return cls._new(const(1, d, shape_of(shape, "ones")), device, requires_grad)

    @classmethod
    def empty(
        cls, *shape: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False
    ) -> Tensor:
        """The same as zeros: nothing here is ever undefined."""
        return cls.zeros(*shape, dtype=dtype, device=device, requires_grad=requires_grad)

    @classmethod
    def arange(
        cls, start: Any, end: Any = None, step: Any = 1, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """start, start + step, ... below end. Integers give int64, floats float32."""
        if end is None:
            start, end = 0, start
        if step == 0:
            raise ShapeError("arange: step is 0; expected another number")
        whole = all(isinstance(v, int | Node) for v in (start, end, step))
        d = dt.dtype(dtype) if dtype is not None else dt.int64 if whole else dt.float32
        if isinstance(start, Node) or isinstance(end, Node):
            count: Dim = sym.div(sym.add(sym.sub(end, start), step - 1), step)
            line = iota(count, dt.int64)
            begin = graph.number(start, dt.int64, (count,))
            node = graph.cast(graph.add(graph.mul(line, step), begin), d)
            return cls._new(node, device, requires_grad)
        count = max(0, math.ceil((end - start) / step))
        if d.is_float and not whole:
            line = graph.cast(iota(count, dt.int64), dt.float64)
            node = graph.cast(graph.add(graph.mul(line, step), start), d)
        else:
            line = iota(count, dt.int64)
            line = line if step == 1 else graph.mul(line, int(step))
            line = line if start == 0 else graph.add(line, int(start))
            node = graph.cast(line, d)
        return cls._new(node, device, requires_grad)

    @classmethod
    def linspace(
        cls, start: float, end: float, steps: int, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """`steps` numbers from start to end, both included, evenly apart."""
        d = dt.dtype(dtype or dt.float32)
        line = graph.cast(iota(size_of(steps, "linspace"), dt.int64), dt.float64)
        step = (end - start) / (steps - 1) if steps > 1 else 0.0
        first = graph.add(graph.mul(line, step), start)
        last = graph.sub(end, graph.mul(graph.sub(float(steps - 1), line), step))
        half = graph.lt(line, steps / 2)
        return cls._new(graph.cast(graph.where(half, first, last), d), device, requires_grad)

    @classmethod
    def logspace(
        cls, start: float, end: float, steps: int, base: float = 10.0, dtype: Any = None,
        device: Any = None,
    ) -> Tensor:  # fmt: skip
        """base ** linspace(start, end, steps)."""
        d = dt.dtype(dtype or dt.float32)
        line = cls.linspace(start, end, steps, dtype=dt.float64, device=device)
        return (line * math.log2(base)).exp2().cast(d)

    @classmethod
    def eye(
        cls, n: int, m: int | None = None, dtype: Any = None, device: Any = None,
        requires_grad: bool = False,
    ) -> Tensor:  # fmt: skip
        """The identity matrix of n rows and m (default n) columns."""
        rows, columns = size_of(n, "eye"), size_of(n if m is None else m, "eye")
        shape = (rows, columns)
        same = graph.eq(graph.along(iota(rows), 0, shape), graph.along(iota(columns), 1, shape))
        return cls._new(graph.cast(same, dt.dtype(dtype or dt.float32)), device, requires_grad)

    @classmethod
    def from_numpy(cls, array: np.ndarray, device: Any = None) -> Tensor:
        """A tensor with an array's values and dtype."""
        if not isinstance(array, np.ndarray):
            raise DTypeError(f"from_numpy: expected a numpy.ndarray, got {type(array).__name__}")
        return cls(array, device=device)  # type: ignore[call-arg, return-value]

    @classmethod
    def from_dlpack(cls, array: Any, device: Any = None) -> Tensor:
        """A tensor with the values of anything that offers __dlpack__ from the host."""
        return cls(np.from_dlpack(array), device=device)  # type: ignore[call-arg, return-value]

    @classmethod
    def from_node(cls, node: Node, device: Any = None) -> Tensor:
        """A tensor on a graph that was built by hand."""
        return cls._new(node, device, False)

    # --- after an existing tensor -----------------------------------------------------------------

    def full_like(self, fill_value: Any, dtype: Any = None, requires_grad: bool = False) -> Tensor:
        """Every element is `fill_value`; shape, dtype and device are this tensor's."""
        fill_value = number_given("full_like", fill_value)
        return self._new(const(fill_value, dt.dtype(dtype or self.dtype), self.shape), self.device,
                         requires_grad)  # fmt: skip

    def zeros_like(self, dtype: Any = None, requires_grad: bool = False) -> Tensor:
        """Zeros in this tensor's shape."""
        return self.full_like(0, dtype, requires_grad)

    def ones_like(self, dtype: Any = None, requires_grad: bool = False) -> Tensor:
        """Ones in this tensor's shape."""
        return self.full_like(1, dtype, requires_grad)

    def empty_like(self, dtype: Any = None, requires_grad: bool = False) -> Tensor:
        """The same as zeros_like."""
        return self.full_like(0, dtype, requires_grad)

    def new_full(self, shape: Sequence[int], fill_value: Any, dtype: Any = None) -> Tensor:
        """Every element is `fill_value`; dtype and device are this tensor's."""
        return self.full(shape, fill_value, dtype or self.dtype, self.device)

    def new_zeros(self, *shape: Any, dtype: Any = None) -> Tensor:
        """Zeros with this tensor's dtype and device."""
        return self.zeros(*shape, dtype=dtype or self.dtype, device=self.device)

    def new_ones(self, *shape: Any, dtype: Any = None) -> Tensor:
        """Ones with this tensor's dtype and device."""
        return self.ones(*shape, dtype=dtype or self.dtype, device=self.device)

    def new_tensor(self, data: Any, dtype: Any = None) -> Tensor:
        """A tensor of data with this tensor's dtype and device."""
        return type(self)(data, dtype=dtype or self.dtype, device=self.device)  # type: ignore


    def new_empty(self, *shape: Any, dtype: Any = None) -> Tensor:
        """The same as new_zeros."""
        return self.new_zeros(*shape, dtype=dtype)

    def vander(self, N: int | None = None, increasing: bool = False) -> Tensor:
        """Rows of falling (or rising) powers of each element."""
        count = self.shape[0] if N is None else N
        powers = [self**k for k in range(count)]  # type: ignore[arg-type]
        first, *rest = powers if increasing else powers[::-1]
        return first.stack(*rest, dim=1)

    @classmethod
    def tril_indices(cls, row: int, col: int, offset: int = 0, device: Any = None) -> Tensor:
        """The row and column numbers (2, n) of the elements that tril keeps."""
        return cls._array(np.stack(np.tril_indices(row, offset, col)), device)

    @classmethod
    def triu_indices(cls, row: int, col: int, offset: int = 0, device: Any = None) -> Tensor:
        """The row and column numbers (2, n) of the elements that triu keeps."""
        return cls._array(np.stack(np.triu_indices(row, offset, col)), device)

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

    @classmethod
    def _array(cls, values: np.ndarray, device: Any) -> Any:
        return cls(values, device=device)  # type: ignore[call-arg]


def storage_node(array: np.ndarray, d: dt.DType, device: str) -> Node:
    """An INPUT holding a NumPy array's values."""
    return make(ops.INPUT, (), backend.write(array, d, device))
