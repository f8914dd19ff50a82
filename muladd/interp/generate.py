"""Random well-typed graphs over every operation, dtype and kind of shape, with inputs for them.

Each node is evaluated as it is drawn, and kept only where its values are finite and moderate, so a
correct device agrees with the interpreter within rounding. A float that was rounded on its way is
*inexact*: another order of summation may change its last bits. What is discontinuous (LT, NE, casts
to integers, float8, the bits of a float) is applied to exact values only.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from muladd.errors import GraphError
from muladd.interp.evaluate import evaluate
from muladd.ir import dtype as dt
from muladd.ir import ops, sym
from muladd.ir.dtype import DType
from muladd.ir.node import (
    Body,
    CallArg,
    Dim,
    Node,
    ScanArg,
    Shape,
    Storage,
    const,
    iota,
    make,
    param,
    var,
)

FLOAT8 = (dt.float8_e4m3, dt.float8_e5m2)
GREATEST = 200.0  # no float exceeds this, so that no sum overflows float16
SMALLEST = 1e-4  # and none but zero comes closer to zero than this
MOST_ELEMENTS = 3000

_ROUNDING = frozenset((ops.ADD, ops.MUL, ops.DIV, ops.SQRT, ops.EXP2, ops.LOG2, ops.SIN, ops.SUM))


def rounds(node: Node) -> bool:
    """Whether a node's result depends on how its arithmetic was rounded."""
    if not node.dtype.is_float:
        return False
    if node.op is ops.CAST:
        source = node.srcs[0].dtype
        return source.is_float and node.dtype.mantissa < source.mantissa \
            and node.dtype not in FLOAT8  # fmt: skip
    return node.op in _ROUNDING


def generate(
    rng: np.random.Generator,
    size: int = 20,
    *,
    dtypes: Sequence[DType] = dt.ALL,
    symbolic: bool = True,
    structure: bool = True,
) -> tuple[list[Node], dict[Node, np.ndarray], dict[str, int]]:
    """(outputs, inputs, variables) of a random graph of about `size` drawn operations.

    dtypes: those that may occur (bool, int64 and float32 always may). symbolic: with symbolic
    sizes; structure: with CALL and SCAN.
    """
    allowed = [d for d in dt.ALL if d in dtypes or d in (dt.bool_, dt.int64, dt.float32)]
    variables: dict[str, int] = {}
    dims: list[Dim] = [1, 2, 3, int(rng.choice([0, 4, 5, 7, 17]))]
    if symbolic and rng.random() < 0.4:
        low = int(rng.integers(2, 4))
        high = low + int(rng.integers(0, 9))
        n = var(f"n{rng.integers(3)}", low, high)
        variables[n.arg.name] = int(rng.integers(low, high + 1))
        dims += [n, n]
    g = _Generator(rng, allowed, dims, variables, structure)
    for _ in range(int(rng.integers(1, 4))):
        g.input()
    for _ in range(size):
        g.draw()
    return g.outputs(), g.inputs, variables


class _Generator:
    """A growing pool of nodes with their values; one per scope."""

    def __init__(
        self, rng: np.random.Generator, dtypes: list[DType], dims: list[Dim],
        variables: dict[str, int], structure: bool,
    ) -> None:  # fmt: skip
        self.rng, self.dtypes, self.dims, self.variables = rng, dtypes, dims, variables
        self.structure = structure
        self.values: dict[Node, np.ndarray] = {}
        self.inexact: dict[Node, bool] = {}
        self.inputs: dict[Node, np.ndarray] = {}

    # --- choosing ---

    def pick(self, wanted: Callable[[Node], bool] = lambda n: True) -> Node | None:
        """A random node of the pool, the recent ones more often."""
        fitting = [n for n in self.values if wanted(n)]
        if not fitting:
            return None
        return fitting[-1 - min(int(self.rng.exponential(len(fitting) / 2)), len(fitting) - 1)]

    def choice(self, things: Sequence) -> object:
        return things[int(self.rng.integers(len(things)))]

    def numbers(self, shape: Shape) -> tuple[int, ...]:
        return tuple(sym.evaluate(d, self.variables) for d in shape)

    def random_shape(self) -> Shape:
        rank = int(self.rng.choice([0, 1, 2, 2, 3, 4]))
        return tuple(self.choice(self.dims) for _ in range(rank))  # type: ignore[misc]

    def random_values(self, shape: Shape, d: DType) -> np.ndarray:
        rng, numbers = self.rng, self.numbers(shape)
        if d is dt.bool_:
            return rng.random(numbers) < 0.5
        if d.is_float:
            # sixteenths: exact in every dtype, and far enough apart to compare
            return (rng.integers(-48, 49, numbers) / 16).astype(d.numpy)
        if rng.random() < 0.2:
            return rng.integers(int(d.min), int(d.max), numbers, d.numpy, endpoint=True)
        return rng.integers(0 if d.kind == "u" else -6, 7, numbers).astype(d.numpy)

    # --- adding ---

    def keep(self, node: Node) -> Node | None:
        """Adds a node to the pool, if its values are moderate. Its sources must be there."""
        if node in self.values:
            return node
        sources = dict.fromkeys(node.srcs)
        stand_ins = {s: make(ops.INPUT, (), Storage(s.shape, s.dtype)) for s in sources}
        copy = make(node.op, tuple(stand_ins[s] for s in node.srcs), node.arg, _asked(node))
        given = {stand_ins[s]: self.values[s] for s in sources}
        try:
            value = evaluate([copy], given, variables=self.variables)[0]
        except GraphError:  # a symbolic slice that does not fit
            return None
        if value.size > MOST_ELEMENTS or not _moderate(value):
            return None
        self.values[node] = value
        self.inexact[node] = rounds(node) or (
            node.dtype.is_float and any(self.inexact[s] for s in sources)
        )
        if node.op in (ops.CALL, ops.SCAN) and node.dtype.is_float:
            self.inexact[node] = True
        return node

    def build(self, op: ops.Op, *srcs: Node | None, arg: object = None,
              dtype: DType | None = None) -> Node | None:  # fmt: skip
        if any(s is None for s in srcs):
            return None
        return self.keep(make(op, srcs, arg, dtype))  # type: ignore[arg-type]

    def input(self) -> Node:
        shape = self.random_shape()
        d = self.choice([d for d in self.dtypes if d not in FLOAT8])
        return self.add_leaf(make(ops.INPUT, (), Storage(shape, d)))  # type: ignore[arg-type]

    def add_leaf(self, node: Node, inexact: bool = False) -> Node:
        self.inputs[node] = self.values[node] = self.random_values(node.shape, node.dtype)
        self.inexact[node] = inexact
        return node

    def constant(self, d: DType, shape: Shape = ()) -> Node | None:
        node = self.keep(const(self.random_values((), d)[()].item(), d))
        return self.expand(node, shape)

    def expand(self, x: Node | None, shape: Shape) -> Node | None:
        if x is None or ops.equal_shapes(x.shape, shape):
            return x
        return self.build(ops.EXPAND, x, arg=shape)

    def cast(self, x: Node, d: DType) -> Node | None:
        """x as another dtype, where that is not a discontinuous step of an inexact value."""
        if x.dtype is d:
            return x
        if self.inexact[x] and (not d.is_float or d in FLOAT8):
            return self.constant(d, x.shape)
        return self.build(ops.CAST, x, dtype=d)

    def alike(self, x: Node, d: DType, exact: bool = False) -> Node | None:
        """Another node of x's shape and of dtype d."""
        y = self.pick(lambda n: not (exact and self.inexact[n]))
        if y is None or self.rng.random() < 0.15:
            return self.constant(d, x.shape)
        if not ops.equal_shapes(y.shape, x.shape):
            if not _broadcasts(y.shape, x.shape):
                axes = tuple(range(len(y.shape)))
                y = self.build(ops.AMAX, y, arg=axes)
            y = self.expand(y, x.shape)
        return None if y is None else self.cast(y, d)

    # --- drawing ---

    def draw(self) -> None:
        """Tries to add one random operation."""
        kinds: list[tuple[float, Callable[[], Node | None]]] = [
            (6, self.draw_binary), (2, self.draw_integer), (3, self.draw_compare),
            (2, self.draw_where), (4, self.draw_unary), (3, self.draw_cast), (1, self.draw_bitcast),
            (5, self.draw_reduce), (2, self.draw_product_sum), (8, self.draw_movement),
            (1, self.draw_iota), (0.5, self.input), (0.5, self.draw_float8),
        ]  # fmt: skip
        if self.structure:
            kinds += [(0.7, self.draw_call), (0.7, self.draw_scan)]
        weights = np.array([w for w, _ in kinds])
        kinds[int(self.rng.choice(len(kinds), p=weights / weights.sum()))][1]()

    def draw_binary(self) -> Node | None:
        a = self.pick(lambda n: n.dtype not in FLOAT8)
        if a is None:
            return None
        op = self.choice((ops.ADD, ops.MUL, ops.MAX))
        return self.build(op, a, self.alike(a, a.dtype))  # type: ignore[arg-type]

    def draw_integer(self) -> Node | None:
        a = self.pick(lambda n: not n.dtype.is_float)
        choices = [ops.AND, ops.XOR] if a is None or a.dtype is dt.bool_ else [
            ops.AND, ops.XOR, ops.DIV, ops.MOD]  # fmt: skip
        if a is None:
            return None
        return self.build(self.choice(choices), a, self.alike(a, a.dtype))  # type: ignore[arg-type]

    def draw_compare(self) -> Node | None:
        a = self.pick(lambda n: not self.inexact[n])
        if a is None:
            return None
        b = self.alike(a, a.dtype, exact=True)
        if b is None or self.inexact[b]:
            return None
        return self.build(self.choice((ops.LT, ops.NE)), a, b)  # type: ignore[arg-type]

    def draw_where(self) -> Node | None:
        a = self.pick()
        if a is None:
            return None
        condition = self.alike(a, dt.bool_, exact=True)
        return self.build(ops.WHERE, condition, a, self.alike(a, a.dtype))

    def draw_unary(self) -> Node | None:
        x = self.pick(lambda n: n.dtype.is_float and n.dtype not in FLOAT8)
        if x is None:
            return None
        op = self.choice((ops.SQRT, ops.LOG2, ops.EXP2, ops.SIN, ops.DIV))
        if op in (ops.EXP2, ops.SIN):
            if np.abs(self.values[x]).max(initial=0) > 8:
                return None
            return self.build(op, x)  # type: ignore[arg-type]
        positive = self.build(ops.ADD, self.build(ops.MUL, x, x), self.half(x))
        if op is ops.DIV:
            return self.build(op, self.alike(x, x.dtype), positive)
        return self.build(op, positive)  # type: ignore[arg-type]

    def half(self, x: Node) -> Node | None:
        return self.expand(self.keep(const(0.5, x.dtype)), x.shape)

    def draw_cast(self) -> Node | None:
        x = self.pick()
        d = self.choice([d for d in self.dtypes if d not in FLOAT8])
        return None if x is None else self.cast(x, d)  # type: ignore[arg-type]

    def draw_float8(self) -> Node | None:
        kinds = [d for d in self.dtypes if d in FLOAT8]
        x = self.pick(lambda n: n.dtype.is_float and not self.inexact[n])
        if x is None or not kinds:
            return None
        small = self.cast(x, self.choice(kinds))  # type: ignore[arg-type]
        return None if small is None else self.cast(small, dt.float32)

    def draw_bitcast(self) -> Node | None:
        x = self.pick(lambda n: n.dtype is not dt.bool_ and not self.inexact[n])
        if x is None:
            return None
        same = [d for d in self.dtypes
                if d.bits == x.dtype.bits and d is not dt.bool_ and d not in FLOAT8]  # fmt: skip
        return self.build(ops.BITCAST, x, dtype=self.choice(same)) if same else None  # type: ignore

    def draw_axes(self, x: Node) -> tuple[int, ...]:
        return tuple(i for i in range(x.ndim) if self.rng.random() < 0.6)

    def draw_reduce(self) -> Node | None:
        x = self.pick(lambda n: n.ndim > 0)
        if x is None:
            return None
        op = ops.AMAX if x.dtype is dt.bool_ or self.rng.random() < 0.4 else ops.SUM
        if op is ops.AMAX and x.dtype.is_float and not self.values[x].size:
            return None  # would be minus infinity
        return self.build(op, x, arg=self.draw_axes(x))

    def draw_product_sum(self) -> Node | None:
        a = self.pick(lambda n: n.ndim > 0 and n.dtype is not dt.bool_)
        if a is None:
            return None
        product = self.build(ops.MUL, a, self.alike(a, a.dtype))
        return self.build(ops.SUM, product, arg=self.draw_axes(a))

    def draw_iota(self) -> Node | None:
        d = self.choice([d for d in self.dtypes if d is not dt.bool_ and d not in FLOAT8])
        return self.keep(iota(self.choice(self.dims), d))  # type: ignore[arg-type]

    # --- movement ---

    def draw_movement(self) -> Node | None:
        x = self.pick()
        if x is None:
            return None
        draw = (self.reshape, self.permute, self.draw_expand, self.pad, self.slice)
        return self.choice(draw)(x)  # type: ignore[operator]

    def reshape(self, x: Node) -> Node | None:
        shape = list(x.shape)
        for _ in range(2):
            i = int(self.rng.integers(len(shape) + 1))
            kind = int(self.rng.integers(3))
            if kind == 0:
                shape.insert(i, 1)
            elif kind == 1 and i + 1 < len(shape):
                shape[i : i + 2] = [sym.mul(shape[i], shape[i + 1])]
            elif i < len(shape):
                n = shape[i]
                for factor in (2, 3):
                    if isinstance(n, int) and n and n % factor == 0:
                        shape[i : i + 1] = [n // factor, factor]
                        break
        return self.build(ops.RESHAPE, x, arg=tuple(shape))

    def permute(self, x: Node) -> Node | None:
        order = tuple(int(i) for i in self.rng.permutation(x.ndim))
        return self.build(ops.PERMUTE, x, arg=order)

    def draw_expand(self, x: Node) -> Node | None:
        shape: list[Dim] = [
            self.choice(self.dims) if ops.equal_dims(n, 1) else n for n in x.shape  # type: ignore
        ]
        if self.rng.random() < 0.4:
            shape.insert(0, self.choice(self.dims))  # type: ignore[arg-type]
        return self.expand(x, tuple(shape))

    def pad(self, x: Node) -> Node | None:
        pads = []
        for n in x.shape:
            low, high = (int(i) for i in self.rng.integers(0, 3, 2))
            gap = int(self.rng.integers(3)) if isinstance(n, int) else 0
            pads.append((low, high, gap if self.rng.random() < 0.3 else 0))
        fill = const(self.random_values((), x.dtype)[()].item(), x.dtype).arg
        return self.build(ops.PAD, x, arg=(tuple(pads), fill))

    def slice(self, x: Node) -> Node | None:
        slices: list[tuple[Dim, Dim, int]] = []
        for n in x.shape:
            if self.rng.random() < 0.3:
                slices.append((0, n, 1))
            elif not isinstance(n, int):
                flip = self.rng.random() < 0.4
                slices.append((sym.sub(n, 1), n, -1) if flip else (1, sym.sub(n, 1), 1))
            else:
                slices.append(self.part(n))
        return self.build(ops.SLICE, x, arg=tuple(slices))

    def part(self, n: int) -> tuple[int, int, int]:
        """A random slice of an axis of n elements; sometimes backwards, sometimes empty."""
        step = int(self.choice((1, 1, 2, 3, -1, -2)))  # type: ignore[call-overload]
        if n == 0 or self.rng.random() < 0.05:
            return (0, 0, step)
        start = int(self.rng.integers(n))
        room = (n - 1 - start if step > 0 else start) // abs(step) + 1
        return (start, int(self.rng.integers(1, room + 1)), step)

    # --- bodies ---

    def inner(self, params: Sequence[Node], size: int) -> _Generator:
        """A generator for a body with trial values of its parameters."""
        nested = self.structure and self.rng.random() < 0.2
        g = _Generator(self.rng, self.dtypes, self.dims, self.variables, nested)
        for p in params:
            g.add_leaf(p, inexact=p.dtype.is_float)
        for _ in range(size):
            g.draw_inside()
        return g

    def draw_inside(self) -> None:
        """As `draw`, but a body has no inputs of its own."""
        before = dict(self.inputs)
        self.draw()
        for node in [n for n in self.inputs if n not in before]:
            for table in (self.inputs, self.values, self.inexact):
                del table[node]  # type: ignore[attr-defined]

    def arguments(self, count: int) -> list[Node]:
        found = [self.pick(lambda n: n.dtype not in FLOAT8) for _ in range(count)]
        return [n for n in found if n is not None]

    def draw_call(self) -> Node | None:
        srcs = self.arguments(int(self.rng.integers(1, 4)))
        params = [param(i, s.shape, s.dtype) for i, s in enumerate(srcs)]
        g = self.inner(params, int(self.rng.integers(2, 7)))
        made = [n for n in g.values if n not in params]
        if not made or not srcs:
            return None
        outs = tuple(made[-1 - i] for i in range(min(len(made), int(self.rng.integers(1, 3)))))
        body = Body(outs, tuple(params), str(self.choice(("layer", "block", ""))))
        result = None
        for i in range(len(outs)):
            result = self.keep(make(ops.CALL, tuple(srcs), CallArg(body, i)))
        again = self.arguments(len(srcs))
        if all(a.dtype is s.dtype and ops.equal_shapes(a.shape, s.shape)
               for a, s in zip(again, srcs)) and len(again) == len(srcs):  # fmt: skip
            self.keep(make(ops.CALL, tuple(again), CallArg(body, 0)))  # the same body elsewhere
        return result

    def draw_scan(self) -> Node | None:
        carried = self.arguments(int(self.rng.integers(0, 3)))
        stacks = [n for n in self.arguments(int(self.rng.integers(0, 3))) if n.ndim]
        length: Dim = stacks[0].shape[0] if stacks else self.choice(self.dims)  # type: ignore
        stacks = [n for n in stacks if ops.equal_dims(n.shape[0], length)]
        shared = self.arguments(int(self.rng.integers(0, 2)))
        shapes = [*(n.shape for n in carried), *(n.shape[1:] for n in stacks),
                  *(n.shape for n in shared)]  # fmt: skip
        srcs = [*carried, *stacks, *shared]
        params = [param(i, s, n.dtype) for i, (s, n) in enumerate(zip(shapes, srcs))]
        g = self.inner(params, int(self.rng.integers(2, 7)))
        outs: list[Node] = []
        for i in range(len(carried)):
            new = g.step(params[i])
            if new is None:
                return None
            outs.append(new)
        outs += list(g.values)[len(params) :][-2:]
        if not outs:
            return None
        body = Body(tuple(outs), tuple(params), "step")
        reverse = bool(self.rng.random() < 0.4)
        result = None
        for out in range(len(outs)):
            arg = ScanArg(body, length, len(carried), len(stacks), reverse, out)
            result = self.keep(make(ops.SCAN, tuple(srcs), arg))
        return result

    def step(self, old: Node) -> Node | None:
        """A new carried value for an old one, of equal shape and dtype; floats shrink."""
        other = self.alike(old, old.dtype)
        if not old.dtype.is_float:
            return self.build(ops.ADD, old, other)
        return self.build(ops.MUL, self.build(ops.ADD, old, other), self.half(old))

    def outputs(self) -> list[Node]:
        """What nothing else reads, and now and then something in the middle."""
        read = {s for n in self.values for s in n.srcs}
        ends = [n for n in self.values if n not in read and n.op is not ops.INPUT]
        middle = [n for n in self.values if n in read and self.rng.random() < 0.1]
        ends = ends or list(self.values)
        return ends[-8:] + middle[:3]


def _asked(node: Node) -> DType | None:
    asking = (ops.CONST, ops.IOTA, ops.CAST, ops.BITCAST)
    return node.dtype if node.op in asking else None


def _broadcasts(old: Shape, new: Shape) -> bool:
    tail = new[len(new) - len(old) :]
    return len(old) <= len(new) and all(
        ops.equal_dims(o, 1) or ops.equal_dims(o, n) for o, n in zip(old, tail)
    )


def _moderate(value: np.ndarray) -> bool:
    if value.dtype.kind != "f":
        return True
    size = np.abs(value)
    return bool(np.all((size <= GREATEST) & ((size >= SMALLEST) | (size == 0))))


__all__ = ["FLOAT8", "generate", "rounds"]
