"""Joining along fixed axes, splitting, and copies with a part replaced."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muladd.tensor import graph as g
from muladd.tensor.handle import Handle
from muladd.tensor.movement import Movement, tensors_given

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Parts(Handle):
    """In terms of the movements: cat, stack, tensor_split, views."""

    __slots__ = ()

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
