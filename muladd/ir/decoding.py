"""The strict reader of a graph's canonical bytes: what is not exactly canonical is refused.

Bytes come from strangers. Nothing is allocated before the bytes that pay for it were seen, nothing
recurses, symbolic sizes are bounded before index algebra touches them, and at the end the graph is
encoded again: it must give the same bytes. The format is described in codec.py.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from muladd.errors import FormatError, MuladdError
from muladd.ir import dtype as dt
from muladd.ir import ops, sym
from muladd.ir.dtype import DType
from muladd.ir.node import (
    Body,
    CallArg,
    Dim,
    Node,
    Param,
    ScanArg,
    Shape,
    Storage,
    Var,
    make,
)

MAGIC = b"muladd"
VERSION = 1

MAX_RANK = 64  # as NumPy's
MAX_ELEMENTS = 1 << 58  # of one array; its bytes fit 62 bits
MAX_NUMBER = 1 << 62
MAX_NESTING = 32  # bodies inside of bodies
MAX_TEXT = 1 << 12  # bytes in one name
MAX_PARAMETER_BITS = 1 << 31  # memory spent on knowing which node depends on which parameter
# what one symbolic size may be: terms as a polynomial, nesting, and nodes when written out
MAX_TERMS, MAX_LEVEL, MAX_WEIGHT = 256, 64, 4096
MAX_PRODUCT_TERMS = 4096  # of the number of elements of one array
MAX_SYMBOLIC_WORK = 1 << 22  # terms multiplied out over all the symbolic reshapes


class _Facts(NamedTuple):
    """What the reader remembers of a node. terms is 0 where it cannot be a symbolic size."""

    parameters: int  # bit set: the parameters it depends on, numbered as they came
    nesting: int  # of the bodies it applies
    terms: int
    level: int
    weight: int


_PLAIN = _Facts(0, 0, 0, 0, 0)
_SIZE = _Facts(0, 0, 1, 1, 1)
_SIZE_OPS = frozenset(
    (ops.ADD, ops.MUL, ops.DIV, ops.MOD, ops.MAX, ops.LT, ops.NE, ops.WHERE)
)  # fmt: skip
_WITHOUT_ARGUMENT = frozenset(
    o for o in ops.OPS if o.elementwise and o not in (ops.CAST, ops.BITCAST)
)


def decode(data: bytes, storages: Sequence[Storage] | None = None) -> tuple[Node, ...]:
    """The outputs of the graph that `data` encodes.

    Its storages are fresh ones without a buffer, or those of `storages`, in order of first use.
    Raises FormatError, saying what is wrong and at which byte, for anything but canonical bytes.
    """
    reader = _Reader(bytes(data), storages)
    outputs = reader.file()
    from muladd.ir.codec import encode

    if encode(outputs) != reader.data:
        raise FormatError("graph: not canonical: encoded again, this graph gives other bytes")
    return outputs


class _Reader:
    def __init__(self, data: bytes, storages: Sequence[Storage] | None) -> None:
        self.data, self.position = data, 0
        self.given = None if storages is None else list(storages)
        self.used_storages = 0
        self.nodes: list[Node] = []
        self.facts: list[_Facts] = []
        self.bodies: list[Body] = []
        self.nestings: list[int] = []
        self.shapes: list[Shape] = []
        self.ops: list[ops.Op] = []
        self.dtypes: list[DType] = []
        self.texts: list[str] = []
        self.parameters: dict[Node, int] = {}  # its bit
        self.parameter_bits = self.symbolic_work = 0
        self.variables: dict[str, Var] = {}

    # --- bytes and numbers ---

    def wrong(self, what: str) -> FormatError:
        return FormatError(f"graph: at byte {self.position}: {what}")

    def take(self, n: int) -> bytes:
        if n > len(self.data) - self.position:
            raise self.wrong(f"{n} bytes are announced and {len(self.data) - self.position} left")
        start = self.position
        self.position += n
        return self.data[start : self.position]

    def varint(self) -> int:
        data, position = self.data, self.position
        try:
            byte = data[position]
            if byte < 0x80:
                self.position = position + 1
                return byte
            value, shift = byte & 0x7F, 7
            while True:
                position += 1
                byte = data[position]
                value |= (byte & 0x7F) << shift
                if byte < 0x80:
                    break
                shift += 7
                if shift > 63:
                    raise self.wrong("a number has more than ten bytes")
        except IndexError:
            raise self.wrong("truncated: a number is missing") from None
        if byte == 0:
            raise self.wrong("a number is longer than it needs to be")
        self.position = position + 1
        return value

    def count(self, what: str) -> int:
        """How many things follow; each takes at least one byte."""
        n = self.varint()
        if n > len(self.data) - self.position:
            raise self.wrong(f"{n} {what} are announced, and too few bytes are left for them")
        return n

    def below(self, limit: int, what: str) -> int:
        n = self.varint()
        if n >= limit:
            raise self.wrong(f"{what} {n} is not below {limit}")
        return n

    def flag(self, what: str) -> bool:
        return bool(self.below(2, what))

    def name(self) -> str:
        n = self.varint()
        if n > MAX_TEXT:
            raise self.wrong(f"a name of {n} bytes; the most is {MAX_TEXT}")
        try:
            return self.take(n).decode()
        except UnicodeDecodeError:
            raise self.wrong("a name is not UTF-8") from None

    # --- the file ---

    def file(self) -> tuple[Node, ...]:
        if self.take(min(len(MAGIC), len(self.data))) != MAGIC:
            raise FormatError("graph: does not begin with 'muladd'; these are no graph's bytes")
        version = self.varint()
        if version != VERSION:
            raise self.wrong(f"version {version}; this reader knows version {VERSION}")
        for _ in range(self.count("op names")):
            self.ops.append(self.row(self.name()))
        for _ in range(self.count("dtype names")):
            self.dtypes.append(self.known_dtype(self.name()))
        self.texts = [self.name() for _ in range(self.count("names"))]
        for _ in range(self.count("items")):
            self.item()
        outputs = tuple([self.reference() for _ in range(self.count("outputs"))])
        if self.position != len(self.data):
            raise self.wrong(f"{len(self.data) - self.position} bytes follow the end")
        if self.given is not None and self.used_storages != len(self.given):
            raise FormatError(
                f"graph: reads {self.used_storages} storages, and {len(self.given)} were given"
            )
        return outputs

    def row(self, name: str) -> ops.Op:
        try:
            row = ops.by_name(name)
        except KeyError:
            raise self.wrong(f"there is no operation {name!r}") from None
        if row.group == "kernel":
            raise self.wrong(f"{name} belongs inside of kernels; a graph has none")
        return row

    def known_dtype(self, name: str) -> DType:
        for d in dt.ALL:
            if d.name == name:
                return d
        raise self.wrong(f"there is no dtype {name!r}")

    # --- parts of items ---

    def back(self) -> int:
        """The number of a node that came before."""
        n, here = self.varint(), len(self.nodes)
        if not 1 <= n <= here:
            raise self.wrong(f"a reference {n} back, where {here} nodes came before")
        return here - n

    def reference(self) -> Node:
        return self.nodes[self.back()]

    def dtype(self) -> DType:
        return self.dtypes[self.below(len(self.dtypes), "dtype")]

    def dim(self) -> Dim:
        n = self.varint()
        if n & 1:
            here = len(self.nodes)
            if not 1 <= n >> 1 <= here:
                raise self.wrong(f"a size {n >> 1} back, where {here} nodes came before")
            if not self.facts[here - (n >> 1)].terms:
                raise self.wrong("a size is no (or too long an) expression over symbolic sizes")
            node = self.nodes[here - (n >> 1)]
            if node.dtype is not dt.INDEX or node.op is ops.CONST:
                raise self.wrong(f"a symbolic size is int64 and no constant, got {node!r}")
            return node
        return self.signed(n >> 1)

    def signed(self, n: int) -> int:
        value = n >> 1 if not n & 1 else -(n >> 1) - 1
        if not -MAX_NUMBER < value < MAX_NUMBER:
            raise self.wrong(f"a size of {value}")
        return value

    def shape(self) -> Shape:
        n = self.varint()
        if n > len(self.shapes):
            raise self.wrong(f"shape {n}, where {len(self.shapes)} came before")
        if n:
            return self.shapes[n - 1]
        shape = tuple([self.dim() for _ in range(self.below(MAX_RANK + 1, "rank"))])
        self.check_shape(shape)
        self.shapes.append(shape)
        return shape

    def check_shape(self, shape: Shape) -> None:
        numbers = [d for d in shape if isinstance(d, int)]
        if len(shape) > MAX_RANK or any(n < 0 for n in numbers) or prod(numbers) > MAX_ELEMENTS:
            raise self.wrong(f"an array of shape {list(shape)}")
        if len(numbers) < len(shape):
            terms = _terms(shape)
            if max(terms) > MAX_TERMS or prod(terms) > MAX_PRODUCT_TERMS:
                raise self.wrong(f"the symbolic shape {list(shape)} has too many terms")

    def value(self, d: DType) -> Any:
        if d.is_float:
            stored = np.frombuffer(self.take(d.itemsize), d.storage.newbyteorder("<"))
            return float(dt.decode(stored.astype(d.storage), d)[0])
        n = self.varint()
        value = n >> 1 if not n & 1 else -(n >> 1) - 1
        if not d.min <= value <= d.max:
            raise self.wrong(f"{value} is no value of {d.name}")
        return bool(value) if d is dt.bool_ else value

    # --- items ---

    def item(self) -> None:
        tag = self.varint()
        if tag == 0:
            self.body()
            return
        if tag > len(self.ops):
            raise self.wrong(f"operation {tag}, where the table has {len(self.ops)}")
        op = self.ops[tag - 1]
        if op in _WITHOUT_ARGUMENT:
            sources = [self.back() for _ in range(op.arity)]
            self.add(op, sources, None, None)
        else:
            _READ[op](self, op)

    def add(self, op: ops.Op, sources: list[int], arg: Any, dtype: DType | None) -> Node:
        nodes, facts = self.nodes, self.facts
        try:
            node = make(op, tuple([nodes[s] for s in sources]), arg, dtype)
        except MuladdError as error:
            raise self.wrong(str(error)) from None
        for s in sources:
            if facts[s] is not _PLAIN:
                merged = self.merge(node, [facts[s] for s in sources])
                break
        else:
            merged = _PLAIN
        nodes.append(node)
        facts.append(merged)
        return node

    def merge(self, node: Node, facts: list[_Facts]) -> _Facts:
        """The facts of a node from its sources'."""
        bits = 0
        for f in facts:
            bits |= f.parameters
        if bits:
            shared = next((f.parameters for f in facts if f.parameters == bits), None)
            if shared is None:
                self.parameter_bits += bits.bit_length()
                if self.parameter_bits > MAX_PARAMETER_BITS:
                    raise self.wrong("too many parameters of bodies meet in too many nodes")
            bits = bits if shared is None else shared
        nesting = max(f.nesting for f in facts)
        if node.op in _SIZE_OPS and not node.shape and all(f.terms for f in facts):
            terms = [f.terms for f in facts]
            count = sum(terms) if node.op is ops.ADD else prod(terms) if node.op is ops.MUL else 1
            level = 1 + max(f.level for f in facts)
            weight = 1 + sum(f.weight for f in facts)
            if count <= MAX_TERMS and level <= MAX_LEVEL and weight <= MAX_WEIGHT:
                return _Facts(bits, nesting, count, level, weight)
        return _Facts(bits, nesting, 0, 0, 0) if bits or nesting else _PLAIN

    def leaf(self, op: ops.Op) -> None:
        kind = self.below(3, "kind of input")
        if kind == 2:
            self.variable()
            return
        index = self.below(MAX_NUMBER, "parameter") if kind == 1 else 0
        dtype, shape = self.dtype(), self.shape()
        if kind == 0:
            self.add(op, [], self.storage(dtype, shape), None)
            return
        node = self.add(op, [], Param(index, shape, dtype), None)
        bit = self.parameters.setdefault(node, len(self.parameters))
        self.parameter_bits += bit
        if self.parameter_bits > MAX_PARAMETER_BITS:
            raise self.wrong("too many parameters of bodies")
        self.facts[-1] = _Facts(1 << bit, 0, 0, 0, 0)

    def variable(self) -> None:
        name = self.texts[self.below(len(self.texts), "name")]
        low, high = self.below(MAX_NUMBER, "bound"), self.below(MAX_NUMBER, "bound")
        var = Var(name, low, high)
        if low > high or self.variables.setdefault(name, var) != var:
            raise self.wrong(f"symbolic size {name!r} has impossible or two different bounds")
        self.add(ops.INPUT, [], var, None)
        self.facts[-1] = _SIZE

    def storage(self, dtype: DType, shape: Shape) -> Storage:
        self.used_storages += 1
        if self.given is None:
            return Storage(shape, dtype)
        if self.used_storages > len(self.given):
            raise self.wrong(f"reads more than the {len(self.given)} storages given")
        given = self.given[self.used_storages - 1]
        if given.dtype is not dtype or not ops.equal_shapes(given.shape, shape):
            raise self.wrong(
                f"storage {self.used_storages - 1} is {dtype.name}{list(shape)}, given was {given}"
            )
        return given

    def constant(self, op: ops.Op) -> None:
        dtype = self.dtype()
        self.add(op, [], self.value(dtype), dtype)
        if dtype is dt.INDEX or dtype is dt.bool_:
            self.facts[-1] = _SIZE

    def iota(self, op: ops.Op) -> None:
        dtype, n = self.dtype(), self.dim()
        self.check_shape((n,))
        self.add(op, [], n, dtype)

    def cast(self, op: ops.Op) -> None:
        self.add(op, [self.back()], None, self.dtype())

    def reduce(self, op: ops.Op) -> None:
        source, bits = self.back(), self.below(1 << MAX_RANK, "axes")
        self.add(op, [source], tuple([a for a in range(bits.bit_length()) if bits >> a & 1]), None)

    def permute(self, op: ops.Op) -> None:
        source = self.back()
        axes = [self.below(MAX_RANK, "axis") for _ in self.nodes[source].shape]
        self.add(op, [source], tuple(axes), None)

    def reshape(self, op: ops.Op) -> None:
        source, shape = self.back(), self.shape()
        old = self.nodes[source].shape
        if op is ops.RESHAPE and not all(isinstance(d, int) for d in (*old, *shape)):
            self.symbolic_work += prod(_terms(old)) + prod(_terms(shape))
            if self.symbolic_work > MAX_SYMBOLIC_WORK:
                raise self.wrong("the symbolic shapes have too many terms together")
        self.add(op, [source], shape, None)

    def triples(self, source: int) -> tuple[tuple[Dim, Dim, Dim], ...]:
        return tuple([(self.dim(), self.dim(), self.dim()) for _ in self.nodes[source].shape])

    def pad(self, op: ops.Op) -> None:
        source = self.back()
        pads = self.triples(source)
        if any(not isinstance(gap, int) or gap < 0 for _, _, gap in pads):
            raise self.wrong(f"PAD: interior padding is a number, at least 0: {pads}")
        node = self.add(op, [source], (pads, self.value(self.nodes[source].dtype)), None)
        self.check_shape(node.shape)

    def slice(self, op: ops.Op) -> None:
        source = self.back()
        arg = self.triples(source)
        if any(not isinstance(step, int) or step == 0 for _, _, step in arg):
            raise self.wrong(f"SLICE: a step is a number other than 0: {arg}")
        self.check_shape(tuple([size for _, size, _ in arg]))
        self.add(op, [source], arg, None)

    def apply(self, op: ops.Op) -> None:
        n, here = self.varint(), len(self.bodies)
        if not 1 <= n <= here:
            raise self.wrong(f"a body {n} back, where {here} came before")
        body = self.bodies[here - n]
        arg: CallArg | ScanArg
        if op is ops.CALL:
            arg = CallArg(body, self.below(len(body.outs), "result"))
        else:
            arg = self.scan(body)
        sources = [self.back() for _ in body.params]
        node = self.add(op, sources, arg, None)
        self.check_shape(node.shape)
        facts = self.facts[-1]
        nesting = max(facts.nesting, self.nestings[here - n])
        self.facts[-1] = _Facts(facts.parameters, nesting, 0, 0, 0)

    def scan(self, body: Body) -> ScanArg:
        length = self.dim()
        self.check_shape((length,))
        carries = self.below(min(len(body.params), len(body.outs)) + 1, "carried values")
        stacked = self.below(len(body.params) - carries + 1, "stacked inputs")
        reverse = self.flag("reverse")
        out = self.below(len(body.outs), "result")
        return ScanArg(body, length, carries, stacked, reverse, out)

    def body(self) -> None:
        name = self.texts[self.below(len(self.texts), "name")]
        params = tuple([self.reference() for _ in range(self.count("parameters"))])
        outs = [self.back() for _ in range(self.count("results"))]
        own, inside, nesting = 0, 0, 0
        for i, p in enumerate(params):
            if not isinstance(p.arg, Param) or p.arg.index != i:
                raise self.wrong(f"body {name!r}: {p!r} stands where parameter {i} is expected")
            own |= 1 << self.parameters[p]
        for out in outs:
            inside |= self.facts[out].parameters
            nesting = max(nesting, self.facts[out].nesting)
        if inside & ~own:
            raise self.wrong(f"body {name!r} reads a parameter that is not its own")
        n, here = self.varint(), len(self.bodies)
        if n > here:
            raise self.wrong(f"a gradient {n} bodies back, where {here} came before")
        gradient = self.bodies[here - n] if n else None
        nesting = 1 + max(nesting, self.nestings[here - n] if n else 0)
        if nesting > MAX_NESTING or not outs:
            raise self.wrong(f"body {name!r} has no results, or is nested too deeply")
        results = tuple([self.nodes[out] for out in outs])
        self.bodies.append(Body(results, params, name, gradient, self.flag("recompute")))
        self.nestings.append(nesting)


def _terms(shape: Shape) -> list[int]:
    """How many terms each symbolic size of a shape has."""
    return [len(sym.poly(d)) or 1 for d in shape if isinstance(d, Node)]


_READ: dict[ops.Op, Callable[[_Reader, ops.Op], None]] = {
    ops.CONST: _Reader.constant,
    ops.INPUT: _Reader.leaf,
    ops.IOTA: _Reader.iota,
    ops.CAST: _Reader.cast,
    ops.BITCAST: _Reader.cast,
    ops.SUM: _Reader.reduce,
    ops.AMAX: _Reader.reduce,
    ops.RESHAPE: _Reader.reshape,
    ops.EXPAND: _Reader.reshape,
    ops.PERMUTE: _Reader.permute,
    ops.PAD: _Reader.pad,
    ops.SLICE: _Reader.slice,
    ops.CALL: _Reader.apply,
    ops.SCAN: _Reader.apply,
}
