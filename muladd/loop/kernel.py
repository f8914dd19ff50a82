"""A kernel is what to compute: a few stages over shared axes, with movement turned into indices.

A stage is `out[i, j, ...] = value` or `out[i, j, ...] (+|max)= value over k, ...`. All stages of a
kernel have the *shared* axes; whenever one reads another, it reads at the same point of those axes
(and anywhere along the others). That one property is why the shared axes may be tiled, reordered
and run in parallel at will, whatever happens inside a point.
"""
from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

from muladd.ir import Dim, DType, Node, Op, Var, dtype, make, ops, substitute, sym, toposort
from muladd.ir.node import variables
from muladd.ir.polynomial import memo_of


@dataclass(frozen=True)
class Argument:
    """An array that a kernel is given: `size` elements, read or written at flat positions."""

    index: int
    dtype: DType
    size: Dim
    written: bool = False

    @property
    def name(self) -> str:
        return f"b{self.index}"


@dataclass(frozen=True)
class Stage:
    """One assignment. `axes` are RANGE nodes, the shared ones among them; value is a scalar node.

    reduction is ops.SUM or ops.AMAX with at least one node in `reduced`, or None. `argument` and
    `position` say where a result that leaves the kernel is stored. A scatter stage accumulates at
    `position` (which depends on the reduced axes) after filling the argument with zeros.
    """

    name: str
    axes: tuple[Node, ...]
    value: Node
    reduction: Op | None = None
    reduced: tuple[Node, ...] = ()
    argument: int | None = None
    position: Dim = 0
    scatter: bool = False
    contracted: bool = False  # value is MUL(a, b) under SUM: accumulate with fma
    lanes: int = 1  # the exact profile's number of partial results

    @property
    def dtype(self) -> DType:
        return self.value.dtype

    @property
    def accumulator(self) -> DType:
        """16-bit and 8-bit floats are summed in float32 and rounded once."""
        narrow = self.dtype.is_float and self.dtype.bits < 32 and self.reduction is ops.SUM
        return dtype.float32 if narrow else self.dtype

    def reads(self) -> list[Node]:
        """The READ nodes of the value, sources first."""
        return self._found(ops.READ)

    def loads(self) -> list[Node]:
        return self._found(ops.LOAD)

    def _found(self, op: Op) -> list[Node]:
        memo = memo_of(self.value)
        if op.name not in memo:
            memo[op.name] = tuple([n for n in toposort((self.value,)) if n.op is op])
        return list(memo[op.name])


@dataclass(frozen=True)
class Kernel:
    """Stages in an order in which they can run, the axes they share, and their arguments."""

    stages: tuple[Stage, ...]
    shared: tuple[Node, ...]
    arguments: tuple[Argument, ...]
    exact: bool = False
    _memo: dict = field(default_factory=dict, compare=False, repr=False, hash=False)

    def stage(self, name: str) -> Stage:
        if "stages" not in self._memo:
            self._memo["stages"] = {s.name: s for s in self.stages}
        return self._memo["stages"][name]

    def side_by_side(self) -> bool:
        """Whether stages are parts of one array: what they load and compute in common is done once
        where they share all loops."""
        stored = [s.argument for s in self.stages if s.argument is not None]
        return len(set(stored)) < len(stored)

    def free_axes(self, stage: Stage) -> tuple[Node, ...]:
        """The axes of a stage that are not shared."""
        return tuple(a for a in stage.axes if a not in self.shared)

    def kept(self) -> frozenset[str]:
        """The stages whose results others read inside the kernel."""
        if "kept" not in self._memo:
            names = frozenset(r.arg[0] for s in self.stages for r in s.reads())
            self._memo["kept"] = names
        return self._memo["kept"]

    def variables(self) -> list[Var]:
        """The symbolic sizes this kernel depends on, sorted by name."""
        if "variables" not in self._memo:
            roots: list[Node] = [s.value for s in self.stages]
            dims: list[Dim] = [a.size for a in self.arguments]
            for s in self.stages:
                dims.append(s.position)
                dims.extend(a.arg.extent for a in (*s.axes, *s.reduced))
            found = variables([*roots, *(d for d in dims if isinstance(d, Node))])
            self._memo["variables"] = sorted((v.arg for v in found), key=lambda v: v.name)
        return self._memo["variables"]

    def text(self) -> str:
        """The algorithm in words: one line per stage."""
        if "text" not in self._memo:
            self._memo["text"] = "\n".join(
                [f"shared {' '.join(_axis_text(a) for a in self.shared) or '-'}"]
                + [_stage_text(s) for s in self.stages]
                + [f"  {a.name}: {a.dtype.name}[{show(a.size)}]{' written' * a.written}"
                   for a in self.arguments]
                + (["exact"] if self.exact else [])
            )  # fmt: skip
        return self._memo["text"]

    def key(self) -> str:
        """Equal for kernels that compute the same; the same in every process."""
        if "key" not in self._memo:
            self._memo["key"] = hashlib.blake2b(self.text().encode(), digest_size=16).hexdigest()
        return self._memo["key"]


def _axis_text(axis: Node) -> str:
    return f"{axis.arg.name}<{show(axis.arg.extent)}"


def _stage_text(s: Stage) -> str:
    axes = ", ".join(_axis_text(a) for a in s.axes)
    over = f" over {', '.join(_axis_text(a) for a in s.reduced)}" if s.reduced else ""
    sign = {None: "=", ops.SUM: "+=", ops.AMAX: "max="}[s.reduction]
    to = f" -> b{s.argument}[{show(s.position)}]" if s.argument is not None else ""
    extra = f" lanes {s.lanes}" * (s.lanes > 1) + " scatter" * s.scatter + " fma" * s.contracted
    return f"{s.name}[{axes}] {s.dtype.name} {sign} {show(s.value)}{over}{to}{extra}"


_INFIX = {ops.ADD: "+", ops.MUL: "*", ops.DIV: "/", ops.MOD: "%", ops.LT: "<", ops.NE: "!=",
          ops.AND: "&", ops.XOR: "^"}  # fmt: skip


def show(x: Dim) -> str:
    """An expression as text. Shared sub-expressions are named once, so it never explodes."""
    if isinstance(x, int):
        return str(x)
    order = toposort((x,))
    uses: dict[Node, int] = {}
    for n in order:
        for s in n.srcs:
            uses[s] = uses.get(s, 0) + 1
    text: dict[Node, str] = {}
    lets: list[str] = []
    for n in order:
        t = _show_one(n, [text[s] for s in n.srcs])
        if uses.get(n, 0) > 1 and n.srcs and len(t) > 12:
            lets.append(f"t{len(lets)}={t}")
            t = f"t{len(lets) - 1}"
        text[n] = t
    return f"{text[x]} where {'; '.join(lets)}" if lets else text[x]


def _show_one(n: Node, args: list[str]) -> str:
    if n.op is ops.CONST:
        return repr(n.arg) if n.dtype is dtype.INDEX else f"{n.arg!r}:{n.dtype.name}"
    if n.op is ops.RANGE:
        return n.arg.name
    if n.op is ops.INPUT:
        return f"${n.arg.name}({n.arg.low},{n.arg.high})"
    if n.op is ops.LOAD:
        return f"b{n.arg}:{n.dtype.name}[{', '.join(args)}]"
    if n.op is ops.READ:
        return f"{n.arg[0]}[{', '.join(args)}]"
    if n.op in _INFIX:
        return f"({args[0]} {_INFIX[n.op]} {args[1]})"
    kind = f".{n.dtype.name}" if n.op in (ops.CAST, ops.BITCAST) else ""
    return f"{n.op.name.lower()}{kind}({', '.join(args)})"


def canonical(kernel: Kernel) -> Kernel:
    """The kernel with axes and stages renamed by position, so that equal work has one name."""
    names: dict[Node, Node] = {}
    for i, a in enumerate(kernel.shared):
        names[a] = sym.axis(f"p{i}", a.arg.extent)
    count = 0
    for s in kernel.stages:
        for a in (*s.axes, *s.reduced):
            if a not in names:
                letter = "r" if a in s.reduced else "f"
                names[a] = sym.axis(f"{letter}{count}", a.arg.extent)
                count += 1
    stage_names = {s.name: f"s{i}" for i, s in enumerate(kernel.stages)}
    stages = []
    for s in kernel.stages:
        value = rename(s.value, names, stage_names)
        stages.append(
            replace(
                s,
                name=stage_names[s.name],
                axes=tuple(names[a] for a in s.axes),
                reduced=tuple(names[a] for a in s.reduced),
                value=value,
                position=reindex(s.position, dict(names)),
            )
        )
    shared = tuple(names[a] for a in kernel.shared)
    return replace(kernel, stages=tuple(stages), shared=shared, _memo={})


def reindex(x: Dim, axes: dict[Node, Dim]) -> Dim:
    """An index with axes exchanged for other indices, in normal form."""
    return x if isinstance(x, int) else sym.replace(x, axes)


def rename(value: Node, axes: dict[Node, Node], stages: dict[str, str] | None = None) -> Node:
    """A value with axes (and stage names) exchanged; indices come out in normal form."""
    return reaxis(value, dict(axes), stages or {})


def reaxis(value: Node, axes: dict[Node, Dim], stages: dict[str, str]) -> Node:
    done: dict[Node, Node] = {k: sym.as_node(v) for k, v in axes.items()}
    for n in toposort((value,), into=lambda m: m not in done):
        if n in done:
            continue
        if n.op in sym.FUNCTIONS and n.dtype is dtype.INDEX and sym.trusted(n):
            done[n] = _index_again(n, done)
            continue
        srcs = tuple(done[s] for s in n.srcs)
        if n.op is ops.READ:
            name, rank = n.arg
            done[n] = make(ops.READ, srcs, (stages.get(name, name), rank), n.dtype)
        elif any(a is not b for a, b in zip(srcs, n.srcs)):
            needs = n.op in (ops.CAST, ops.BITCAST, ops.LOAD)
            done[n] = make(n.op, srcs, n.arg, n.dtype if needs else None)
        else:
            done[n] = n
    return done[value]


def _index_again(n: Node, done: dict[Node, Node]) -> Node:
    """An index operation redone by the index algebra; opaque operands pass through unchanged."""
    a, b = (done[s] for s in n.srcs)
    if a is n.srcs[0] and b is n.srcs[1]:
        return n
    return sym.apply(n.op, (a, b))


__all__ = ["Argument", "Kernel", "Stage", "canonical", "reaxis", "reindex", "rename", "show",
           "substitute"]  # fmt: skip
