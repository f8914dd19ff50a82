"""Runs a graph node by node on NumPy arrays: no fusion, no cleverness, no recursion over nodes."""
from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from muladd.errors import GraphError
from muladd.interp import exact, meaning
from muladd.ir import dtype as dt
from muladd.ir import ops, sym
from muladd.ir.cost import application
from muladd.ir.dtype import DType
from muladd.ir.named import named
from muladd.ir.node import Body, Dim, Node, ScanArg, Shape, Storage, Var, toposort

Expand = Callable[[Node], Node]
_EXPANDED = (ops.EXP2, ops.EXP, ops.LOG2, ops.SIN, ops.COS)


def evaluate(
    outputs: Sequence[Node],
    inputs: Mapping[Node, np.ndarray] | None = None,
    *,
    variables: Mapping[str, int] | None = None,
    profile: str = "fast",
    count: dict[str, int] | None = None,
    expand: Expand | None = None,
) -> list[np.ndarray]:
    """The values of `outputs`, as new arrays in the dtypes' value representation.

    inputs: for each INPUT node of a Storage or Param its values (bfloat16 and float8 as float32,
    or as their storage bits); a Storage without an entry uses its NumPy `buffer`. variables: the
    numbers that symbolic sizes stand for. profile: 'fast', or 'exact', in which the order of every
    reduction is part of the meaning; there EXP2, LOG2 and SIN (EXP and COS, see ir/named.py) must
    have been expanded, or `expand(node)` gives the graph over node.srcs that defines them. count:
    filled with the FLOPs done, per op name. Raises GraphError where an input or a variable is
    missing or does not fit.
    """
    if profile not in ("fast", "exact"):
        raise GraphError(f"evaluate: profile {profile!r}; expected 'fast' or 'exact'")
    run = _Run(dict(inputs or {}), dict(variables or {}), profile == "exact", count, expand)
    with np.errstate(all="ignore"):
        results = run.scope(_plan(outputs, run.exact), {})
        if run.exact:
            results = [exact.canonical_nan(r) for r in results]
    return [np.array(r, order="C") for r in results]


# --- plans ---------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """One scope in the order it runs: the graph of the outputs, or of a body."""

    outs: tuple[Node, ...]
    order: list[Node]
    uses: dict[Node, int]  # how often a value is read; an output once more
    applications: dict[Node, list[Node]]  # equal calls which differ in `out` only
    fused: set[Node] = field(default_factory=set)  # products that only exact sums read


def _plan(outs: Sequence[Node], exactly: bool, given: frozenset[Node] = frozenset()) -> _Plan:
    outs = outs if given else named(outs)
    order = toposort(outs, into=(lambda n: n not in given) if given else None)
    uses: dict[Node, int] = dict.fromkeys(order, 0)
    by_application: dict[tuple, list[Node]] = {}
    applications: dict[Node, list[Node]] = {}
    readers: dict[Node, list[Node]] = {}
    for node in order:
        if node in given:
            continue
        for s in _reads(node, exactly):
            uses[s] += 1
        if node.op in (ops.CALL, ops.SCAN):
            key = application(node)
            applications[node] = by_application.setdefault(key, [])
            applications[node].append(node)
        if exactly:
            for s in node.srcs:
                if s.op is ops.MUL and s.dtype.is_float:
                    readers.setdefault(s, []).append(node)
    for out in outs:
        uses[out] += 1
    wanted = set(outs)
    fused = {m for m, users in readers.items()
             if m not in wanted and all(u.op is ops.SUM for u in users)}  # fmt: skip
    return _Plan(tuple(outs), order, uses, applications, fused)


def _reads(node: Node, exactly: bool) -> tuple[Node, ...]:
    """The nodes whose values computing `node` needs."""
    if exactly and _is_product_sum(node):
        return node.srcs + node.srcs[0].srcs
    return node.srcs


def _is_product_sum(node: Node) -> bool:
    return node.op is ops.SUM and node.srcs[0].op is ops.MUL and node.dtype.is_float


# --- running -------------------------------------------------------------------------------------


@dataclass
class _Run:
    inputs: dict[Node, np.ndarray]
    variables: dict[str, int]
    exact: bool
    count: dict[str, int] | None
    expand: Expand | None
    sizes: dict[Node, int] = field(default_factory=dict)
    plans: dict[int, _Plan] = field(default_factory=dict)

    def scope(self, plan: _Plan, given: dict[Node, np.ndarray]) -> list[np.ndarray]:
        """The outputs of one plan; `given` are the values of its parameters."""
        values = dict(given)
        left = dict(plan.uses)
        for node in plan.order:
            if node not in values:
                self.visit(node, plan, values)
            if node in given:
                continue
            if self.count is not None:
                self.tally(node, values)
            for s in _reads(node, self.exact):
                left[s] -= 1
                if not left[s]:
                    values.pop(s, None)
        return [values[out] for out in plan.outs]

    def visit(self, node: Node, plan: _Plan, values: dict[Node, np.ndarray]) -> None:
        if node in plan.applications:
            results = self.apply(node, [values[s] for s in node.srcs])
            for same in plan.applications[node]:
                values[same] = results[same.arg.out]
        elif node not in plan.fused:
            values[node] = self.compute(node, values)

    def compute(self, node: Node, values: dict[Node, np.ndarray]) -> np.ndarray:
        """The value of any node but CALL and SCAN."""
        op, dtype, arg = node.op, node.dtype, node.arg
        if op is ops.INPUT:
            return self.leaf(node)
        if op in (ops.SUM, ops.AMAX):
            return self.reduce(node, values)
        args = [values[s] for s in node.srcs]
        if op in _EXPANDED and self.exact:
            return self.expanded(node, args[0])
        if op.numpy is not None:
            return meaning.elementwise(op, dtype, args)
        if op is ops.CONST:
            return np.array(arg, dtype.numpy)
        if op is ops.IOTA:
            return meaning.iota(self.size(arg), dtype)
        if op is ops.CAST:
            return meaning.cast(args[0], node.srcs[0].dtype, dtype)
        if op is ops.BITCAST:
            return meaning.bitcast(args[0], node.srcs[0].dtype, dtype)
        if op is ops.RESHAPE:
            return args[0].reshape(self.shape(arg))
        if op is ops.PERMUTE:
            return args[0].transpose(arg)
        if op is ops.EXPAND:
            return np.broadcast_to(args[0], self.shape(arg))
        if op is ops.PAD:
            fill = meaning.rounded(np.array(arg[1], dtype.numpy), dtype)
            return meaning.pad(args[0], [self.shape(p) for p in arg[0]], fill)  # type: ignore
        if op is ops.SLICE:
            return meaning.take_slice(args[0], [self.shape(s) for s in arg])  # type: ignore
        raise GraphError(f"evaluate: {op.name} is no operation of a graph: {node!r}")

    def reduce(self, node: Node, values: dict[Node, np.ndarray]) -> np.ndarray:
        dtype, axes = node.dtype, node.arg
        if self.exact and dtype.is_float:
            if _is_product_sum(node):
                a, b = node.srcs[0].srcs
                return exact.sum_of_products(values[a], values[b], axes, dtype)
            kind = exact.sum_in_order if node.op is ops.SUM else exact.amax_in_order
            return kind(values[node.srcs[0]], axes, dtype)
        kind = meaning.sum_fast if node.op is ops.SUM else meaning.amax_fast
        return kind(values[node.srcs[0]], axes, dtype)

    def expanded(self, node: Node, x: np.ndarray) -> np.ndarray:
        if self.expand is None:
            raise GraphError(
                f"evaluate: {node.op.name} has no meaning of its own in the exact profile; expand "
                "the graph first, or pass expand="
            )
        result, source = self.expand(node), node.srcs[0]
        counting, self.count = self.count, None  # the row's own FLOPs are what is counted
        try:
            return self.scope(_plan((result,), True, frozenset((source,))), {source: x})[0]
        finally:
            self.count = counting

    # --- bodies ---

    def body(self, body: Body, args: Sequence[np.ndarray]) -> list[np.ndarray]:
        if id(body) not in self.plans:
            self.plans[id(body)] = _plan(body.outs, self.exact)
        return self.scope(self.plans[id(body)], dict(zip(body.params, args)))

    def apply(self, node: Node, args: list[np.ndarray]) -> list[np.ndarray]:
        """All the results of a CALL or SCAN."""
        if node.op is ops.CALL:
            return self.body(node.arg.body, args)
        arg: ScanArg = node.arg
        length, carries = self.size(arg.length), arg.carries
        carried = args[:carries]
        stacked = args[carries : carries + arg.stacked]
        shared = args[carries + arg.stacked :]
        kinds = arg.body.outs[carries:]
        out = [np.empty((length, *self.shape(k.shape)), k.dtype.numpy) for k in kinds]
        for step in reversed(range(length)) if arg.reverse else range(length):
            results = self.body(arg.body, [*carried, *(s[step] for s in stacked), *shared])
            carried = results[:carries]
            for whole, part in zip(out, results[carries:]):
                whole[step] = part
        return [*carried, *out]

    # --- leaves and sizes ---

    def leaf(self, node: Node) -> np.ndarray:
        if isinstance(node.arg, Var):
            return np.array(self.size(node), np.int64)
        value = self.inputs.get(node)
        if value is None and isinstance(node.arg, Storage):
            if isinstance(node.arg.buffer, np.ndarray):
                value = node.arg.buffer
        if value is None:
            raise GraphError(f"evaluate: no value was given for {node!r}")
        return _fitting(np.asarray(value), node.dtype, self.shape(node.shape), node)

    def size(self, dim: Dim) -> int:
        if isinstance(dim, int):
            return dim
        if dim not in self.sizes:
            for n in toposort((dim,)):
                if isinstance(n.arg, Var):
                    self.check_variable(n.arg)
            self.sizes[dim] = sym.evaluate(dim, self.variables)
        return self.sizes[dim]

    def check_variable(self, var: Var) -> None:
        if var.name not in self.variables:
            raise GraphError(f"evaluate: no number was given for the symbolic size {var.name!r}")
        if not var.low <= self.variables[var.name] <= var.high:
            raise GraphError(
                f"evaluate: {var.name}={self.variables[var.name]} lies outside "
                f"{var.low} <= {var.name} <= {var.high}"
            )

    def shape(self, dims: Shape) -> tuple[int, ...]:
        return tuple([d if isinstance(d, int) else self.size(d) for d in dims])

    def tally(self, node: Node, values: dict[Node, np.ndarray]) -> None:
        if not node.op.flops:
            return
        counted = node.srcs[0] if node.op.group == "reduce" else node
        if counted in values:
            elements = values[counted].size
        else:  # a product that is multiplied inside of its sum
            elements = math.prod(self.shape(counted.shape))
        if elements:
            assert self.count is not None
            self.count[node.op.name] = (
                self.count.get(node.op.name, 0) + elements * node.op.flops
            )


def _fitting(value: np.ndarray, dtype: DType, shape: tuple[int, ...], node: Node) -> np.ndarray:
    if value.dtype == dtype.storage and dtype.storage != dtype.numpy:
        value = dt.decode(value, dtype)
    if value.dtype != dtype.numpy or value.shape != shape:
        raise GraphError(
            f"evaluate: {node!r} needs values of NumPy type {dtype.numpy} and shape {shape}, got "
            f"{value.dtype} and {value.shape}"
        )
    return value


__all__ = ["Expand", "evaluate"]
