"""vmap and scan: a function that runs once, on stand-ins, and means many runs.

A tensor that differs from example to example (step to step) has no one value, so none can be asked
for; a write to a tensor from outside would happen once, so it is refused; and random numbers are
drawn for all runs at once, of which each takes its part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

from muladd import transform
from muladd.errors import ArgumentError, ShapeError, TraceError
from muladd.ir import Dim, DType, Node, ScanArg, Shape, iota, make, ops, substitute, sym
from muladd.ir import dtype as dt
from muladd.tensor import backend
from muladd.tensor import graph as g
from muladd.tensor.arguments import check_function, device_of, name_of, tensors_of
from muladd.tensor.creation import size_of
from muladd.tensor.handle import Handle, grad_enabled
from muladd.tensor.random import Generator, advanced
from muladd.tensor.tensor import Tensor
from muladd.tensor.tree import flatten, unflatten
from muladd.transform.build import move_axis

_RANDOMNESS = ("error", "different", "same")


class _Repeated(backend.Frame):
    """The one run of a function that means `count` runs, and the stand-ins in it."""

    def __init__(
        self, who: str, unit: str, count: Dim, remedy: str, randomness: str = "different"
    ) -> None:
        super().__init__(who)
        self.computes = not backend.is_tracing() or self.outer is not None and self.outer.computes
        self.unit, self.count, self.remedy, self.randomness = unit, count, remedy, randomness
        self.stacked: dict[Node, Node] = {}  # stand-ins: what they are in all runs, in front
        self.given: list[Tensor] = []  # the tensors among the function's arguments
        self.written: list[Handle] = []  # those among them that it writes to
        self.opened: dict[Node, Node] = {}  # what tensors made inside stand on: their graphs

    def stand_in(self, shape: Shape, d: DType, device: str) -> Node:
        what = f"{self.who}: a tensor that differs from {self.unit} to {self.unit}"
        return backend.placeholder(shape, d, device, what)

    def each(self, stacked: Node, device: str) -> Node:
        """A stand-in for the entries along the first axis, one for each run."""
        node = self.stand_in(stacked.shape[1:], stacked.dtype, device)
        self.stacked[node] = stacked
        return node

    def give(self, node: Node, device: str) -> Tensor:
        """A tensor for the function's arguments."""
        with backend.inside(self):
            self.given.append(Tensor._of(node, device))
        return self.given[-1]

    def graphs(self, results: Sequence[Tensor]) -> list[Node]:
        """The results of the run, over stand-ins and what was there before it."""
        returned = set(map(id, results))
        if any(id(t) not in returned for t in self.written):
            raise TraceError(
                f"{self.who}: it writes to an argument, which is a copy in here; return it too"
            )
        return list(substitute(tuple([t.node for t in results]), self.opened))

    # --- told while the function runs ---

    def made(self, handle: Handle) -> None:
        super().made(handle)
        if self.outer is not None:
            self.outer.made(handle)

    def note(self, root: Handle) -> None:
        if self.outer is not None:
            self.outer.note(root)

    def write(self, root: Handle) -> None:
        if not self.is_born(root):
            raise TraceError(
                f"{self.who}: it writes to a tensor of shape {list(root.shape)} from outside (a "
                f"running statistic, say), which would happen once and not for each {self.unit}; "
                f"{self.remedy}"
            )
        if any(root is t for t in self.given):
            self.written.append(root)

    def deferred(self, x: Node, definition: Node) -> None:
        self.opened[x] = g.stop(substitute((definition,), self.opened)[0])
        if self.outer is not None:
            self.outer.deferred(x, definition)

    def draw(self, generator: Generator, count: Dim, device: str) -> Node:
        if self.randomness == "error":
            raise TraceError(
                f"{self.who}: random numbers are drawn inside; give randomness='different' for "
                f"other numbers in each {self.unit}, or randomness='same'"
            )
        with backend.inside(self.outer):
            if self.randomness == "same":
                return generator.take(count, device)
            state = generator.take(sym.mul(count, self.count), device)
        steps = g.mul(iota(self.count), g.number(count, dt.int64, (self.count,)))
        return self.each(advanced(state, steps), device)


# --- vmap -----------------------------------------------------------------------------------------


def vmap(
    function: Callable, in_axes: Any = 0, out_axes: int = 0, randomness: str = "error"
) -> Callable:
    """The function over a new batch axis: written for one example, applied to many at once.

    in_axes: the batch axis of every tensor in an argument, or None where an argument is shared;
    one entry for all arguments, or one each. randomness: what drawing random numbers inside gives,
    'different' numbers in each example, the 'same', or an 'error'. The function runs once. Raises
    TraceError where it asks for a value that differs among examples (.item(), bool), or writes to
    a tensor from outside.
    """
    check_function("vmap", function)
    if randomness not in ("error", "different", "same"):
        raise ArgumentError(
            f"vmap: randomness is {randomness!r}, expected 'error', 'different' or 'same'"
        )

    @wraps(function)
    def mapped(*arguments: Any) -> Any:
        trees = [flatten(argument) for argument in arguments]
        batches = _batches(trees, in_axes)
        count = _batch_size(batches)
        remedy = "return the new value, and write it outside"
        run = _Repeated(f"vmap of {name_of(function)}", "example", count, remedy, randomness)
        inner = []
        for (leaves, structure), batch in zip(trees, batches):
            nodes = [t.node if x is None else run.each(x, t.device) for t, x in zip(leaves, batch)]
            handles = [run.give(n, t.device) for n, t in zip(nodes, leaves)]
            inner.append(unflatten(structure, handles))
        with backend.inside(run):
            outs, structure = tensors_of(function(*inner))
        inputs, values = list(run.stacked), list(run.stacked.values())
        nodes = transform.vectorize(run.graphs(outs), inputs, values, [0] * len(inputs), count)
        made = []
        for n, t in zip(nodes, outs):
            moved = move_axis(n, 0, g.axis_of("vmap: out_axes", out_axes, n.ndim))
            made.append(Tensor._of(moved, t.device, not grad_enabled()))
        return unflatten(structure, made)

    return mapped


def _batches(trees: Sequence[tuple[list[Any], Any]], in_axes: Any) -> list[list[Node | None]]:
    """Every argument's tensors with the batch axis in front; None for those without one."""
    axes = list(in_axes) if isinstance(in_axes, list | tuple) else [in_axes] * len(trees)
    if len(axes) != len(trees):
        raise ShapeError(f"vmap: in_axes has {len(axes)} entries for {len(trees)} arguments")
    batches: list[list[Node | None]] = []
    for i, ((leaves, _), axis) in enumerate(zip(trees, axes)):
        who = f"vmap: argument {i}"
        batches.append([
            None if axis is None else move_axis(t.node, g.axis_of(who, axis, t.ndim), 0)
            for t in leaves
        ])  # fmt: skip
    return batches


def _batch_size(batches: Sequence[Sequence[Node | None]]) -> Dim:
    sizes = [(i, x.shape[0]) for i, batch in enumerate(batches) for x in batch if x is not None]
    if not sizes:
        raise ShapeError(
            "vmap: no argument has a tensor with a batch axis; pass one, or call the function"
        )
    first, size = sizes[0]
    for i, n in sizes:
        if not g.equal_dims(n, size):
            raise ShapeError(
                f"vmap: argument {i} has {n} examples, argument {first} has {size}; give equal "
                "numbers of them (or None in in_axes for what all examples share)"
            )
    return size


# --- scan -----------------------------------------------------------------------------------------


def scan(
    function: Callable, init: Any, xs: Any = None, length: Dim | None = None, reverse: bool = False,
    checkpoint: bool | int = False,
) -> tuple[Any, Any]:  # fmt: skip
    """function(carry, x) -> (carry, y), repeated over the leading axis of xs, as one SCAN.

    Returns (the last carry, the ys stacked). The carry keeps its structure, shapes and dtypes.
    `length` is needed only without xs. The function runs once: TraceError where it asks for a value
    that differs from step to step (.item(), bool), or writes to a tensor from outside, which
    belongs into the carry. Random numbers are drawn anew in each step. A gradient keeps what each
    step computed; with `checkpoint` it keeps the carry of every k-th step alone (k about the square
    root of the length, or that number) and computes the steps between once more, one segment after
    the other.
    """
    check_function("scan", function)
    carries, carry_structure = tensors_of(init)
    slices, xs_structure = flatten(xs)
    steps = _steps(slices, length)
    device = device_of([*carries, *slices])
    run = _Repeated(f"scan of {name_of(function)}", "step", steps, "put it into the carry")
    starts = [run.stand_in(t.shape, t.dtype, device) for t in carries]
    carry = unflatten(carry_structure, [run.give(n, device) for n in starts])
    x = unflatten(xs_structure, [run.give(run.each(t.node, device), device) for t in slices])
    with backend.inside(run):
        result = function(carry, x)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ShapeError("scan: the function must return (carry, y); y may be None")
    new_carries, new_structure = flatten(result[0])
    ys, ys_structure = flatten(result[1])
    _check_carries(carries, new_carries)
    outs = run.graphs([*new_carries, *ys])
    stand_ins = [*starts, *run.stacked]
    body, captured = transform.lift(outs, stand_ins, getattr(function, "__name__", "step"))
    sources = (*[t.node for t in carries], *run.stacked.values(), *captured)
    arg = ScanArg(body, steps, len(carries), len(run.stacked), reverse)
    if checkpoint:
        segment = None if checkpoint is True else checkpoint
        nodes = transform.scan_checkpointed(arg, sources, segment)
    else:
        nodes = [make(ops.SCAN, sources, replace(arg, out=i)) for i in range(len(outs))]
    final = [Tensor._of(node, device) for node in nodes]
    k = len(carries)
    return unflatten(new_structure, final[:k]), unflatten(ys_structure, final[k:])


def _steps(slices: Sequence[Tensor], length: Dim | None) -> Dim:
    if slices and length is None and slices[0].ndim:
        length = slices[0].shape[0]
    if length is None:
        raise ShapeError("scan: without xs that have a leading axis, give length=")
    length = size_of(length, "scan: length")
    for t in slices:
        if not t.ndim or not g.equal_dims(t.shape[0], length):
            raise ShapeError(
                f"scan: a stacked input of shape {list(t.shape)} has no leading axis of {length}"
            )
    return length


def _check_carries(before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
    if len(before) != len(after):
        raise ShapeError(
            f"scan: the carry has {len(before)} tensors going in, {len(after)} coming out"
        )
    for i, (a, b) in enumerate(zip(before, after)):
        if not g.equal_shapes(a.shape, b.shape) or a.dtype is not b.dtype:
            raise ShapeError(
                f"scan: tensor {i} of the carry goes in as {g.describe(a.node)} and comes out as "
                f"{g.describe(b.node)}; a step keeps shapes and dtypes"
            )


__all__ = ["scan", "vmap"]
