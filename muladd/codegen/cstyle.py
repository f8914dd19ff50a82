"""Loops to C-like source: one work item, or one group of them, for each chunk of the grid.

The words are OpenCL C's; a language that lacks some of them defines them in its prelude. Each value
is a constant of its own in the innermost block that needs it; the driver's compiler hoists and
allocates registers. float16, bfloat16 and float8 are float32 values rounded after every operation,
packed only in memory.
"""
from __future__ import annotations

import struct
from math import isfinite

from muladd.codegen import Rendered, c_prelude
from muladd.codegen.powers import power_of_two
from muladd.errors import DeviceError
from muladd.ir import Dim, DType, Node, Var, dtype, ops, sym, toposort
from muladd.loop.statements import Array, Barrier, For, Grid, If, Lowered, Statement, Store, Threads

PRIVATE_BYTES = 1024  # a work item's own arrays up to this size are the compiler's to place
_INT = {8: "char", 16: "short", 32: "int", 64: "long"}
_NARROW = {"float16": "5, 10", "bfloat16": "8, 7", "float8_e4m3": "4, 3", "float8_e5m2": "5, 2"}
Names = dict[Node, str]


def register(d: DType) -> str:
    """The type of a value."""
    if d is dtype.bool_ or d.is_float:
        return "bool" if d is dtype.bool_ else "double" if d is dtype.float64 else "float"
    return ("u" if d.kind == "u" else "") + _INT[d.bits]


def memory(d: DType) -> str:
    """The type of an element in memory."""
    return "u" + _INT[d.bits] if d.name in _NARROW or d is dtype.bool_ else register(d)


def packed(x: str, d: DType) -> str:
    """A value as its element in memory."""
    return f"({memory(d)})pack({x}, {_NARROW[d.name]})" if d.name in _NARROW else x


def unpacked(x: str, d: DType) -> str:
    if d is dtype.bool_:
        return f"{x} != 0"
    return f"unpack({x}, {_NARROW[d.name]})" if d.name in _NARROW else x


def rounded(x: str, d: DType) -> str:
    return f"unpack(pack({x}, {_NARROW[d.name]}), {_NARROW[d.name]})" if d.name in _NARROW else x


def literal(value: object, d: DType) -> str:
    if d is dtype.bool_:
        return "true" if value else "false"
    if d is dtype.float64:
        return f"as_double(0x{struct.pack('>d', value).hex()}UL)"
    if d.is_float:
        bits = struct.pack(">f", value)
        near = struct.unpack(">f", bits)[0]
        return f"({near}f)" if isfinite(near) else f"as_float(0x{bits.hex()}u)"
    whole = int(value) % (1 << d.bits)  # type: ignore[call-overload]
    return f"(({register(d)})0x{whole:x}UL)" if d is not dtype.INDEX or whole >> 63 else f"{whole}L"


def render(lowered: Lowered, variables: dict[str, int], local_bytes: int = 1 << 15,
           prelude: str = c_prelude.OPENCL) -> Rendered:  # fmt: skip
    """Source of a kernel. variables: indices of symbolic sizes; local_bytes: a group's memory."""
    return _Renderer(lowered, variables, local_bytes).run(prelude)


class _Renderer:
    def __init__(self, lowered: Lowered, variables: dict[str, int], local_bytes: int) -> None:
        self.lowered, self.variables = lowered, variables
        self.room = {True: local_bytes, False: PRIVATE_BYTES}  # by whether a group shares it
        self.lines: list[str] = []
        self.scopes: list[Names] = [{}]
        self.names: dict[str | int, str] = {}
        self.count = self.scratch = self.group = 0
        self.fixed = {a.index for a in lowered.kernel.arguments if not a.written}

    def run(self, prelude: str) -> Rendered:
        arguments = self.lowered.kernel.arguments
        (grid,) = self.lowered.body
        assert isinstance(grid, Grid)
        if grid.body and isinstance(grid.body[0], Threads):
            self.group = int(grid.body[0].stop)  # type: ignore[arg-type]
        for a in arguments:
            self.names[a.index] = f"b{a.index}"
            self.pointer(f"b{a.index}", a.dtype, f"slot{a.index} + offset{a.index}")
        for array in self.lowered.arrays.values():
            self.array(array)
        who = "group" if self.group else "global"
        if self.scratch:
            self.lines.insert(0, f"scratch += get_{who}_id(0) * {self.scratch}L;")
        self.grid(grid, who)
        parameters = ["global char *scratch, long first"] * bool(self.scratch)
        parameters += [f"global char *slot{a.index}, long offset{a.index}" for a in arguments]
        parameters += [f"long n{i}" for i in range(len(self.variables))]
        group = f"GROUP_OF({self.group}) " if self.group else ""
        head = f"kernel {group}void f({', '.join(parameters)}) {{"
        return Rendered("\n".join([prelude + head, *self.lines, "}"]), "f", self.scratch)

    def pointer(self, name: str, d: DType, place: str) -> None:
        kind = f"global {memory(d)} *"
        self.lines.append(f"{kind}{name} = ({kind})({place});")

    def array(self, a: Array) -> None:
        """A place for one of the kernel's arrays: registers, near memory, or a slice of scratch."""
        name = self.names[a.name] = f"m{len(self.names)}"
        size = a.count * a.dtype.itemsize
        if a.lanes:
            self.lines.append(f"{register(a.dtype)} {name}[{a.count}];")
        elif size <= self.room[a.group]:
            self.room[a.group] -= size
            self.lines.append(f"{'local ' * a.group}{memory(a.dtype)} {name}[{a.count}];")
        elif self.group and not a.group:
            raise DeviceError(f"codegen: {a.name} has {size} bytes, too many for one thread")
        else:
            self.pointer(name, a.dtype, f"scratch + {self.scratch}")
            self.scratch += size + -size % 64

    # --- statements ---

    def grid(self, s: Grid, who: str) -> None:
        """The chunk of this item or group. Where each needs scratch, launches come in parts."""
        chunk = sym.axis("chunk", self.lowered.grid)
        stop = self.value(self.lowered.grid)
        first = "first + " if self.scratch else ""
        self.lines.append(f"const long chunk = {first}get_{who}_id(0);")
        # as many groups as chunks, so that barriers stand in no condition
        head = "" if self.group else f"if (chunk < {stop})"
        self.scopes.append({chunk: "chunk"})
        at = len(self.lines)
        rest: Dim = chunk
        for x in reversed(s.loops):
            here = rest if x is s.loops[0] else sym.mod(rest, x.arg.extent)
            self.scopes[-1][x] = self.value(here)
            rest = sym.div(rest, x.arg.extent) if x is not s.loops[0] else rest
        self.statements(s.body)
        self.lines[at:] = [head + " {", *self.lines[at:], "}"]

    def statements(self, body: list[Statement]) -> None:
        for s in body:
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, Barrier):
                self.lines.append("MEET;")
            elif isinstance(s, Threads):
                self.scopes[-1][s.loop] = "(long)get_local_id(0)"
                self.statements(s.body)
            elif isinstance(s, For):
                self.count += 1
                i, start, stop = f"i{self.count}", *map(self.value, (s.start, s.stop))
                self.block(f"for (long {i} = {start}; {i} < {stop}; {i}++)", s.body, {s.loop: i})
            elif isinstance(s, If):
                self.block(f"if ({self.value(s.condition)})", s.body, {})
                if s.orelse:
                    self.block("else", s.orelse, {})

    def block(self, head: str, body: list[Statement], known: Names) -> None:
        self.lines.append(f"{head} {{")
        self.scopes.append(known)
        self.statements(body)
        self.lines.append("}")
        self.scopes.pop()

    def store(self, s: Store) -> None:
        fresh: Names = {}
        value = self.value(s.value, fresh)
        array = self.lowered.arrays.get(s.place) if isinstance(s.place, str) else None
        guard = f"if ({self.value(s.guard, fresh)}) " if s.guard is not None else ""
        stored = value if array is not None and array.lanes else packed(value, s.value.dtype)
        self.lines.append(f"{guard}{self.names[s.place]}[{self.value(s.index, fresh)}] = {stored};")

    # --- expressions ---

    def value(self, size: Dim, fresh: Names | None = None) -> str:
        """The name of a node's value. What depends on memory that changes is good for one statement
        (and is kept in `fresh`); all else for as long as its block lasts."""
        root, fresh = sym.as_node(size), {} if fresh is None else fresh
        for n in toposort((root,), into=lambda m: self.find(m, fresh) is None):
            if self.find(n, fresh) is not None:
                continue
            if n.shape:
                raise DeviceError(f"codegen: a C-like dialect got {n.op.name} of shape {n.shape}, "
                                  "expected a plan without vectors")  # fmt: skip
            text = self.expression(n, [self.find(x, fresh) or "" for x in n.srcs])
            self.count += 1
            self.lines.append(f"const {register(n.dtype)} v{self.count} = {text};")
            mutable = n.op is ops.LOAD and n.arg not in self.fixed
            changes = mutable or any(x in fresh for x in n.srcs)
            (fresh if changes else self.scopes[-1])[n] = f"v{self.count}"
        return self.find(root, fresh) or ""

    def find(self, n: Node, fresh: Names) -> str | None:
        if n.op is ops.CONST:
            return literal(n.arg, n.dtype)
        return fresh.get(n) or next((s[n] for s in reversed(self.scopes) if n in s), None)

    def expression(self, n: Node, a: list[str]) -> str:
        if n.op is ops.LOAD:
            if isinstance(n.arg, tuple):
                return f"{self.names[n.arg[0]]}[{a[0]}]"
            loaded = unpacked(f"{self.names[n.arg]}[{a[0]}]", n.dtype)
            return f"{a[1]} ? {loaded} : {literal(0, n.dtype)}" if len(a) > 1 else loaded
        if n.op is ops.INPUT and isinstance(n.arg, Var):
            return f"n{self.variables[n.arg.name]}"
        if n.op is ops.FMA and not self.lowered.kernel.exact:
            return f"multiply_add({', '.join(a)})"
        return operation(n, a)


# --- operations: {t} is the type, {u} one without a sign in which it wraps, {s} s or u ------------

_ANY = {ops.LT: "{0} < {1}", ops.NE: "{0} != {1}"}
_FLOAT = {ops.ADD: "{0} + {1}", ops.MUL: "{0} * {1}", ops.DIV: "{0} / {1}", ops.SQRT: "sqrt({0})",
          ops.MAX: "{0} > {1} || {0} != {0} ? {0} : {1}", ops.FMA: "fma({0}, {1}, {2})"}
_BOOL = {ops.ADD: "{0} || {1}", ops.MAX: "{0} || {1}", ops.MUL: "{0} && {1}", ops.AND: "{0} && {1}",
         ops.XOR: "{0} != {1}", ops.LT: "!{0} && {1}", ops.WHERE: "{0} ? {1} : {2}"}  # fmt: skip
_INTEGER = {ops.AND: "{0} & {1}", ops.XOR: "{0} ^ {1}", ops.MAX: "{0} > {1} ? {0} : {1}",
            ops.ADD: "({t})(({u}){0} + ({u}){1})", ops.MUL: "({t})(({u}){0} * ({u}){1})",
            ops.DIV: "({t})divide_{s}({0}, {1})", ops.MOD: "({t})modulo_{s}({0}, {1})"}  # fmt: skip
_NATURAL = {ops.DIV: "{0} / {1}", ops.MOD: "{0} % {1}"}  # of an index, known not to be negative


def operation(n: Node, a: list[str]) -> str:
    """The expression of one node over the names of its operands."""
    op, d = n.op, n.srcs[0].dtype
    if op is ops.CAST:
        return cast(a[0], d, n.dtype)
    if op is ops.BITCAST:
        kind, bits = memory(n.dtype), packed(a[0], d)
        return unpacked(bits if memory(d) == kind else f"as_{kind}({bits})", n.dtype)
    table = _FLOAT if d.is_float else _BOOL if d is dtype.bool_ else _INTEGER
    if op in _NATURAL and sym.trusted(n) and n.srcs[1].op is ops.CONST and n.srcs[1].arg > 0 \
            and sym.bounds(n.srcs[0])[0] >= 0:  # fmt: skip
        table = _NATURAL
    power = power_of_two(n)
    if power is not None:
        return f"{a[0]} >> {power}" if op is ops.DIV else f"{a[0]} & {(1 << power) - 1}"
    # C computes products narrower than int as int, which must not overflow
    unsigned = "ulong" if d.bits == 64 else "uint"
    signed = "u" if d.kind == "u" else "s"
    text = (table.get(op) or _ANY[op]).format(*a, t=register(d), u=unsigned, s=signed)
    return text if op is ops.MAX or n.dtype is not d else rounded(text, d)


def cast(x: str, source: DType, d: DType) -> str:
    """Truncating, saturating and total to integers; rounded once to floats."""
    if d is dtype.bool_:
        return f"{x} != 0"
    if source.is_float and not d.is_float:
        return f"{x} != {x} ? 0 : convert_{register(d)}_sat({x})"
    if d.name not in _NARROW:
        return f"({register(d)}){x}"
    if source is dtype.float64 or source.is_int and source.bits > 16:
        sign = "u" if source.kind == "u" else ""
        return rounded(f"odd_{'double' if source.is_float else sign + 'long'}({x})", d)
    return rounded(f"(float){x}", d)
