"""A graph for reading: a numbered listing, and a drawing for Graphviz.

    %0 = INPUT float32[2, 3] storage 0
    %1 = CONST float32[] 2.0
    %2 = EXPAND float32[2, 3] %1
    %3 = MUL float32[2, 3] %0 %2
    return %3

Bodies stand first, each once, under their own name.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.node import Body, CallArg, Dim, Node, Param, ScanArg, Storage, Var, toposort


def to_text(outputs: Sequence[Node]) -> str:
    """The graph of `outputs`, one node a line, sources before users."""
    names = _body_names(outputs)
    storages: dict[Node, int] = {}
    lines: list[str] = []
    for body, name in names.items():
        takes = ", ".join(_type(p) for p in body.params)
        lines.append(f"body {name}({takes}){_properties(body, names)}:")
        lines += ["    " + line for line in _listing(body.outs, names, storages)]
        lines.append("")
    return "\n".join([*lines, *_listing(outputs, names, storages), ""])


def to_dot(outputs: Sequence[Node]) -> str:
    """The graph of `outputs` in Graphviz' DOT language; a CALL's body is drawn once, in a box."""
    names = _body_names(outputs)
    storages: dict[Node, int] = {}
    lines = ["digraph muladd {", '  node [shape=box, fontname="monospace", fontsize=10];']
    for i, (body, name) in enumerate(names.items()):
        lines += [f"  subgraph cluster_{i} {{", f"    label={_quoted(name)};"]
        lines += ["  " + line for line in _drawing(body.outs, f"b{i}_", names, storages)]
        lines.append("  }")
    return "\n".join([*lines, *_drawing(outputs, "n", names, storages), "}", ""])


def size_text(d: Dim) -> str:
    """A size as a person writes it: 3, batch, 2*batch + 1."""
    if isinstance(d, int):
        return str(d)
    done: dict[Node, tuple[str, int]] = {}  # text, and how tightly it binds
    for n in toposort((d,)):
        done[n] = _size(n, [done[s] for s in n.srcs])
    return done[d][0]


_SIGNS = {ops.ADD: (" + ", 1), ops.MUL: ("*", 2), ops.DIV: ("//", 2), ops.MOD: ("%", 2)}


def _size(n: Node, parts: list[tuple[str, int]]) -> tuple[str, int]:
    if n.op is ops.CONST:
        return str(n.arg), 3 if n.arg >= 0 else 0
    if n.op is ops.INPUT or n.op is ops.RANGE:
        return getattr(n.arg, "name", "?"), 3
    if n.op not in _SIGNS:
        return f"{n.op.name}({', '.join(text for text, _ in parts)})", 3
    sign, tightness = _SIGNS[n.op]
    (left, a), (right, b) = parts
    left = left if a >= tightness else f"({left})"
    right = right if b > tightness or (b == tightness and n.op is ops.ADD) else f"({right})"
    return f"{left}{sign}{right}", tightness


def _type(node: Node) -> str:
    return f"{node.dtype.name}[{', '.join(map(size_text, node.shape))}]"


def _properties(body: Body, names: dict[Body, str]) -> str:
    gradient = "" if body.gradient is None else f" gradient {names[body.gradient]}"
    return gradient + (" recompute" if body.recompute else "")


def _body_names(outputs: Sequence[Node]) -> dict[Body, str]:
    """Every body that the graph applies, those inside of others first, with a name of its own."""
    names: dict[Body, str] = {}
    taken: set[str] = set()
    stack: list[Body | tuple[Body]] = [*reversed(list(_applied(outputs)))]
    while stack:
        body = stack.pop()
        if isinstance(body, Body):
            if body not in names:
                inner = list(_applied(body.outs))
                inner += [] if body.gradient is None else [body.gradient]
                stack += [(body,), *reversed(inner)]
        elif body[0] not in names:
            base = name = body[0].name or "body"
            count = 1
            while name in taken:
                count += 1
                name = f"{base}.{count}"
            taken.add(name)
            names[body[0]] = name
    return names


def _applied(outputs: Sequence[Node]) -> Iterator[Body]:
    for node in toposort(outputs):
        if isinstance(node.arg, CallArg | ScanArg):
            yield node.arg.body


def _listing(
    outputs: Sequence[Node], names: dict[Body, str], storages: dict[Node, int]
) -> Iterator[str]:
    number: dict[Node, int] = {}
    for node in toposort(outputs):
        parts = [f"%{len(number)} =", node.op.name, _type(node)]
        parts += [f"%{number[s]}" for s in node.srcs]
        parts += [a for a in (_argument(node, names, storages),) if a]
        number[node] = len(number)
        yield " ".join(parts)
    yield "return " + ", ".join(f"%{number[out]}" for out in outputs)


def _drawing(
    outputs: Sequence[Node], prefix: str, names: dict[Body, str], storages: dict[Node, int]
) -> Iterator[str]:
    number: dict[Node, str] = {}
    wanted = set(outputs)
    for i, node in enumerate(toposort(outputs)):
        number[node] = f"{prefix}{i}"
        label = f"{node.op.name} {_argument(node, names, storages)}\n{_type(node)}"
        style = ", penwidth=2" if node in wanted else ""
        color = _COLORS.get(node.op.group, "white")
        yield (f"  {number[node]} [label={_quoted(label)}, style=filled, "
               f'fillcolor="{color}"{style}];')  # fmt: skip
        for position, s in enumerate(node.srcs):
            which = f" [label={position}]" if len(node.srcs) > 1 else ""
            yield f"  {number[s]} -> {number[node]}{which};"


_COLORS = {
    "leaf": "#e8e8e8", "reduce": "#ffd0c0", "movement": "#d8e8ff", "structure": "#e8d8ff",
}  # fmt: skip


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'


def _argument(node: Node, names: dict[Body, str], storages: dict[Node, int]) -> str:
    """What an operation is given besides its sources, in words."""
    op, arg = node.op, node.arg
    if isinstance(arg, CallArg | ScanArg):
        text = f"{names[arg.body]}.{arg.out}"
        if isinstance(arg, ScanArg):
            text += (f" length={size_text(arg.length)} carries={arg.carries} stacked={arg.stacked}"
                     + (" reverse" if arg.reverse else ""))  # fmt: skip
        return text
    if isinstance(arg, Storage):
        return f"storage {storages.setdefault(node, len(storages))} on {arg.device}"
    if isinstance(arg, Param):
        return f"parameter {arg.index}"
    if isinstance(arg, Var):
        return f"{arg.name} in {arg.low}..{arg.high}"
    if op is ops.CONST:
        return repr(arg)
    if op in (ops.SUM, ops.AMAX):
        return "axes=" + _tuple(arg)
    if op is ops.PERMUTE:
        return "order=" + _tuple(arg)
    if op is ops.PAD:
        pads = " ".join(_tuple(p) if p != (0, 0, 0) else "-" for p in arg[0])
        return f"by {pads} with {arg[1]!r}"
    if op is ops.SLICE:
        return " ".join(
            "-" if start == 0 and step == 1 and ops.equal_dims(size, n)
            else f"{size_text(start)}:+{size_text(size)}:{size_text(step)}"
            for (start, size, step), n in zip(arg, node.srcs[0].shape)
        )  # fmt: skip
    if op is ops.BITCAST or op is ops.CAST:
        return "from " + dt.dtype(node.srcs[0].dtype).name
    if op.group == "kernel" and arg is not None:
        return repr(arg)
    return ""  # the shape says the rest


def _tuple(dims: Any) -> str:
    return f"({', '.join(map(size_text, dims))})"
