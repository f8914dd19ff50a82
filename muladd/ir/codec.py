"""Canonical bytes of a graph: the same structure gives the same bytes in every process, for ever.

    encode(outputs) -> bytes      decode(bytes) -> outputs      hash_graph(outputs) -> hex text

**The format, version 1.** All numbers are unsigned LEB128 varints; a signed number is zigzag.

    file    = "muladd" 1  ops  dtypes  texts  count item*  count reference*
    ops     = count text*                     names, in order of first use; so are the next two
    dtypes  = count text*
    texts   = count text*                     names of bodies and symbolic sizes
    text    = byte-count, UTF-8 bytes
    item    = 0 body | 1+op node              sources before users; what is inside, before
    body    = name  count reference*  count reference*  gradient  recompute
                                              parameters, results; gradient: 0, or bodies back
    node    = source references, then, by op:
        CONST          dtype value
        INPUT          0 dtype shape | 1 index dtype shape | 2 name low high   (storage, param, var)
        IOTA           dtype dim
        CAST BITCAST   dtype
        SUM AMAX       a bit per axis
        PERMUTE        axis*
        RESHAPE EXPAND shape
        PAD            (low high interior)* value
        SLICE          (start size step)*
        CALL           bodies-back out                        (before the sources)
        SCAN           bodies-back length carries stacked reverse out      (before the sources)
    reference = how many nodes back (at least 1)
    shape   = 0 rank dim* | 1+number of an earlier shape, in order of first use
    dim     = 2*zigzag(number) | 2*reference+1
    value   = zigzag integer, or a float's bytes in little-endian order

Items stand in depth-first post-order from the outputs: of a node its sources, then the sizes and
the body in its argument; of a body its parameters, results and gradient. A storage is its dtype
and shape; which storage is told by the order of first use, so two graphs that differ only in which
buffers they read have equal bytes. A device is not part of a graph.
"""
from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from muladd.errors import GraphError
from muladd.ir import dtype as dt
from muladd.ir import ops
from muladd.ir.decoding import MAGIC, VERSION, decode
from muladd.ir.dtype import DType
from muladd.ir.node import Body, Dim, Node, Param, Shape, Storage, Var

__all__ = ["VERSION", "decode", "encode", "hash_graph", "storages"]


def encode(outputs: Sequence[Node]) -> bytes:
    """The canonical bytes of a graph. Raises GraphError if it holds an op of kernels."""
    writer = _Writer()
    writer.walk(outputs)
    return writer.file(outputs)


def hash_graph(outputs: Sequence[Node]) -> str:
    """The name of a graph: BLAKE2b-256 of its canonical bytes, as 64 hexadecimal digits."""
    return hashlib.blake2b(encode(outputs), digest_size=32).hexdigest()


def storages(outputs: Sequence[Node]) -> list[Storage]:
    """The storages of a graph in the order in which its bytes number them."""
    writer = _Writer()
    writer.walk(outputs)
    return [n.arg for n in writer.number if isinstance(n.arg, Storage)]


def _varint(out: bytearray, n: int) -> None:
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)


def _zigzag(n: int) -> int:
    return n << 1 if n >= 0 else (-n << 1) - 1


def _text(out: bytearray, text: str) -> None:
    raw = text.encode()
    _varint(out, len(raw))
    out += raw


def _dims_of(arg: Any) -> list[Node]:
    """The symbolic sizes in an argument, from left to right."""
    if isinstance(arg, Node):
        return [arg]
    found: list[Node] = []
    for item in arg if isinstance(arg, tuple) else ():
        if isinstance(item, Node):
            found.append(item)
        elif isinstance(item, tuple):
            found += _dims_of(item)
    return found


def _inside(item: Node | Body) -> Sequence[Node | Body]:
    """What must stand before an item, in canonical order."""
    if isinstance(item, Body):
        inside: list[Node | Body] = [*item.params, *item.outs]
        return inside if item.gradient is None else [*inside, item.gradient]
    op, arg = item.op, item.arg
    if op in _PLAIN or isinstance(arg, int):
        return item.srcs
    if op is ops.INPUT:
        return _dims_of(arg.shape)
    if op is ops.CALL:
        return [*item.srcs, arg.body]
    if op is ops.SCAN:
        return [*item.srcs, *_dims_of((arg.length,)), arg.body]
    return [*item.srcs, *_dims_of(arg)]


_PLAIN = frozenset(
    o for o in ops.OPS
    if o.elementwise or o in (ops.CONST, ops.SUM, ops.AMAX, ops.PERMUTE)
)  # fmt: skip


class _Writer:
    def __init__(self) -> None:
        self.out = bytearray()
        self.items = 0
        self.number: dict[Node, int] = {}
        self.bodies: dict[Body, int] = {}
        self.shapes: dict[Shape, int] = {}
        self.ops: dict[ops.Op, int] = {}
        self.dtypes: dict[DType, int] = {}
        self.texts: dict[str, int] = {}

    def walk(self, outputs: Sequence[Node]) -> None:
        """Writes every item, what is inside it first, without recursion."""
        number, bodies = self.number, self.bodies
        stack: list[Node | Body] = list(reversed(outputs))
        while stack:
            item = stack[-1]
            if item in number or item in bodies:
                stack.pop()
                continue
            waiting = [i for i in _inside(item) if i not in number and i not in bodies]
            if waiting:
                waiting.reverse()
                stack += waiting
                continue
            stack.pop()
            self.items += 1
            if isinstance(item, Body):
                self.body(item)
            else:
                self.node(item)

    def file(self, outputs: Sequence[Node]) -> bytes:
        head = bytearray(MAGIC)
        _varint(head, VERSION)
        for names in (
            [o.name for o in self.ops], [d.name for d in self.dtypes], list(self.texts)
        ):  # fmt: skip
            _varint(head, len(names))
            for name in names:
                _text(head, name)
        _varint(head, self.items)
        tail = bytearray()
        _varint(tail, len(outputs))
        for node in outputs:
            _varint(tail, len(self.number) - self.number[node])
        return bytes(head + self.out + tail)

    # --- parts; each appends to self.out ---

    def varint(self, n: int) -> None:
        if n < 0x80:
            self.out.append(n)
        else:
            _varint(self.out, n)

    def reference(self, node: Node) -> None:
        self.varint(len(self.number) - self.number[node])

    def dtype(self, d: DType) -> None:
        self.varint(self.dtypes.setdefault(d, len(self.dtypes)))

    def text(self, text: str) -> None:
        self.varint(self.texts.setdefault(text, len(self.texts)))

    def dim(self, d: Dim) -> None:
        if isinstance(d, int):
            self.varint(_zigzag(int(d)) << 1)
        else:
            self.varint((len(self.number) - self.number[d]) << 1 | 1)

    def shape(self, shape: Shape) -> None:
        seen = self.shapes.get(shape)
        if seen is not None:
            self.varint(seen + 1)
            return
        self.shapes[shape] = len(self.shapes)
        self.varint(0)
        self.varint(len(shape))
        for d in shape:
            self.dim(d)

    def value(self, value: Any, d: DType) -> None:
        if d.is_float:
            with np.errstate(over="ignore"):
                stored = dt.encode(np.array([value], d.numpy), d)
            self.out += stored.astype(stored.dtype.newbyteorder("<")).tobytes()
        else:
            self.varint(_zigzag(int(value)))

    # --- items ---

    def body(self, body: Body) -> None:
        self.varint(0)
        self.text(body.name)
        for part in (body.params, body.outs):
            self.varint(len(part))
            for node in part:
                self.reference(node)
        self.varint(0 if body.gradient is None else len(self.bodies) - self.bodies[body.gradient])
        self.varint(int(body.recompute))
        self.bodies[body] = len(self.bodies)

    def node(self, node: Node) -> None:
        op = node.op
        code = self.ops.get(op)
        if code is None:
            if op.group == "kernel":
                raise GraphError(f"encode: {op.name} belongs inside of kernels; a graph has none")
            code = self.ops[op] = len(self.ops)
        number = self.number
        here = len(number)
        self.varint(code + 1)
        if op.arity < 0:
            self.application(node)
        for s in node.srcs:
            back = here - number[s]
            if back < 0x80:
                self.out.append(back)
            else:
                _varint(self.out, back)
        write = _ARGUMENTS.get(op)
        if write is not None:
            write(self, node)
        number[node] = here

    def application(self, node: Node) -> None:
        arg = node.arg
        self.varint(len(self.bodies) - self.bodies[arg.body])
        if node.op is ops.SCAN:
            self.dim(arg.length)
            self.varint(arg.carries)
            self.varint(arg.stacked)
            self.varint(int(arg.reverse))
        self.varint(arg.out)

    def leaf(self, node: Node) -> None:
        arg = node.arg
        if isinstance(arg, Var):
            self.varint(2)
            self.text(arg.name)
            self.varint(arg.low)
            self.varint(arg.high)
            return
        if isinstance(arg, Param):
            self.varint(1)
            self.varint(arg.index)
        else:
            self.varint(0)
        self.dtype(arg.dtype)
        self.shape(arg.shape)

    def constant(self, node: Node) -> None:
        self.dtype(node.dtype)
        self.value(node.arg, node.dtype)

    def iota(self, node: Node) -> None:
        self.dtype(node.dtype)
        self.dim(node.arg)

    def pad(self, node: Node) -> None:
        pads, fill = node.arg
        self.triples(pads)
        self.value(fill, node.dtype)

    def triples(self, triples: tuple) -> None:
        for triple in triples:
            for d in triple:
                self.dim(d)

    def permutation(self, node: Node) -> None:
        for axis in node.arg:
            self.varint(axis)


_ARGUMENTS: dict[ops.Op, Callable[[_Writer, Node], None]] = {
    ops.CONST: _Writer.constant,
    ops.INPUT: _Writer.leaf,
    ops.IOTA: _Writer.iota,
    ops.CAST: lambda w, n: w.dtype(n.dtype),
    ops.BITCAST: lambda w, n: w.dtype(n.dtype),
    ops.SUM: lambda w, n: w.varint(sum(1 << axis for axis in n.arg)),
    ops.AMAX: lambda w, n: w.varint(sum(1 << axis for axis in n.arg)),
    ops.PERMUTE: _Writer.permutation,
    ops.RESHAPE: lambda w, n: w.shape(n.arg),
    ops.EXPAND: lambda w, n: w.shape(n.arg),
    ops.PAD: _Writer.pad,
    ops.SLICE: lambda w, n: w.triples(n.arg),
}
