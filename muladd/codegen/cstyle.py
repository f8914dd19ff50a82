"""Loops to C-like source: one work item, or one group of them, for each chunk of the grid.

What differs between OpenCL, CUDA, HIP and Metal is a `Dialect`. Each value is a constant of its own
in the innermost block that needs it; the driver's compiler hoists and allocates registers. float16,
bfloat16 and float8 are float32 values rounded after every operation, packed only in memory.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from muladd.codegen.c_prelude import FUSED, PRELUDE
from muladd.errors import DeviceError
from muladd.ir import Dim, DType, Node, Var, dtype, ops, sym, toposort
from muladd.loop.statements import Array, Barrier, For, Grid, If, Lowered, Statement, Store, Threads

PRIVATE_BYTES = 1024  # a work item's own arrays up to this size are the compiler's to place


@dataclass(frozen=True)
class Dialect:
    """How a C-like language says what a kernel needs."""

    head: str  # before the kernel: settings, names for the prelude
    kernel: str  # before its name; {group} is the number of threads where they work together
    pointer: str  # the type of a pointer to memory of the device
    local: str  # before an array of the group's
    barrier: str
    item: str  # the number of this work item in the launch, how many there are, and so on
    items: str
    group: str
    groups: str
    thread: str


OPENCL = Dialect(
    "#pragma OPENCL FP_CONTRACT OFF\n" + FUSED, "kernel {group}void", "global char *", "local",
    "barrier(CLK_LOCAL_MEM_FENCE | CLK_GLOBAL_MEM_FENCE);", "get_global_id(0)",
    "get_global_size(0)",
    "get_group_id(0)", "get_num_groups(0)", "get_local_id(0)",
)  # fmt: skip
_REQUIRED = "__attribute__((reqd_work_group_size({0}, 1, 1))) "

_INT = {8: "char", 16: "short", 32: "int", 64: "long"}
_NARROW = {"float16": "5, 10", "bfloat16": "8, 7", "float8_e4m3": "4, 3", "float8_e5m2": "5, 2"}


@dataclass(slots=True)
class Rendered:
    source: str
    name: str
    scratch: int  # bytes of device memory for each work item (or group) at work


def register(d: DType) -> str:
    """The type of a value."""
    if d is dtype.bool_:
        return "bool"
    if d.is_float:
        return "double" if d is dtype.float64 else "float"
    return ("u" if d.kind == "u" else "") + _INT[d.bits]


def memory(d: DType) -> str:
    """The type of an element in memory."""
    return "u" + _INT[d.bits] if d.name in _NARROW or d is dtype.bool_ else register(d)


def literal(value: object, d: DType) -> str:
    if d is dtype.bool_:
        return "true" if value else "false"
    if d.is_float:
        number = float(value)  # type: ignore[arg-type]
        if d is dtype.float64:
            return f"as_double(0x{struct.pack('>d', number).hex()}UL)"
        if abs(number) != float("inf") and number == number:
            number = struct.unpack("f", struct.pack("f", number))[0]
            return (
                f"{number.hex()}f"
                if number >= 0 and str(number)[0] != "-"
                else f"({number.hex()}f)"
            )
        return "NAN" if number != number else "INFINITY" if number > 0 else "(-INFINITY)"
    whole = int(value) % (1 << d.bits)  # type: ignore[call-overload]
    return f"(({register(d)})0x{whole:x}UL)" if d is not dtype.INDEX or whole >> 63 else f"{whole}L"


def render(lowered: Lowered, variables: dict[str, int], dialect: Dialect = OPENCL,
           local_bytes: int = 1 << 15) -> Rendered:  # fmt: skip
    """Source of a kernel. variables: indices of symbolic sizes; local_bytes: a group's memory."""
    return _Renderer(lowered, variables, dialect, local_bytes).run()


class _Renderer:
    def __init__(self, lowered: Lowered, variables: dict[str, int], dialect: Dialect,
                 local_bytes: int) -> None:  # fmt: skip
        self.lowered, self.variables, self.dialect = lowered, variables, dialect
        self.room = {True: local_bytes, False: PRIVATE_BYTES}  # by whether a group shares it
        self.lines: list[str] = []
        self.scopes: list[dict[Node, str]] = [{}]
        self.names: dict[str | int, str] = {}
        self.count = self.scratch = self.group = 0
        self.written = {a.index for a in lowered.kernel.arguments if a.written}

    def run(self) -> Rendered:
        arguments = self.lowered.kernel.arguments
        grid = self.lowered.body[0]
        assert isinstance(grid, Grid)
        if grid.body and isinstance(grid.body[0], Threads):
            self.group = int(grid.body[0].stop)  # type: ignore[arg-type]
        for a in arguments:
            kind = self.dialect.pointer.replace("char", memory(a.dtype))
            self.names[a.index] = f"b{a.index}"
            self.lines.append(f"{kind}b{a.index} = ({kind})(slot{a.index} + offset{a.index});")
        for number, array in enumerate(self.lowered.arrays.values()):
            self.array(array, number)
        self.grid(grid)
        pointer, d = self.dialect.pointer, self.dialect
        parameters = [f"{pointer}scratch"] * bool(self.scratch)
        parameters += [f"{pointer}slot{a.index}, long offset{a.index}" for a in arguments]
        parameters += [f"long n{i}" for i in range(len(self.variables))]
        group = _REQUIRED.format(self.group) if self.group else ""
        head = f"{d.kernel.format(group=group)} f({', '.join(parameters)}) {{"
        source = "\n".join([d.head + PRELUDE, head, *self.lines, "}"])
        return Rendered(source, "f", self.scratch)

    def array(self, a: Array, number: int) -> None:
        """A place for one of the kernel's arrays: registers, near memory, or a slice of scratch."""
        name = self.names[a.name] = f"m{number}"
        kind, size = memory(a.dtype), a.count * a.dtype.itemsize
        if a.lanes:
            self.lines.append(f"{register(a.dtype)} {name}[{a.count}];")
        elif size <= self.room[a.group]:
            self.room[a.group] -= size
            self.lines.append(
                f"{self.dialect.local + ' ' if a.group else ''}{kind} {name}[{a.count}];"
            )
        else:
            mine = self.dialect.group if self.group else self.dialect.item
            if self.group and not a.group:
                raise DeviceError(f"codegen: {a.name} has {size} bytes, too many for one thread")
            pointer = self.dialect.pointer.replace("char", kind)
            self.lines.append(
                f"{pointer}{name} = ({pointer})(scratch + {mine} * SCRATCH + {self.scratch});"
            )
            self.scratch += size + -size % 64

    # --- statements ---

    def grid(self, s: Grid) -> None:
        d = self.dialect
        first, step = (d.group, d.groups) if self.group else (d.item, d.items)
        chunk = sym.axis("chunk", self.lowered.grid)
        stop = self.value(sym.as_node(self.lowered.grid))
        at = len(self.lines)
        self.open(f"for (long chunk = {first}; chunk < {stop}; chunk += {step})", {chunk: "chunk"})
        rest: Dim = chunk
        for x in reversed(s.loops):
            here = rest if x is s.loops[0] else sym.mod(rest, x.arg.extent)
            self.scopes[-1][x] = self.value(sym.as_node(here))
            rest = sym.div(rest, x.arg.extent) if x is not s.loops[0] else rest
        self.statements(s.body)
        self.lines.append("}")
        self.scopes.pop()
        if not self.scratch:  # no loop, so that drivers may run items as lanes
            guard = "" if self.group else f"if (chunk < {stop}) "  # barriers stand in no condition
            self.lines[at] = f"const long chunk = {first}; {guard}{{"
        self.lines = [x.replace("SCRATCH", f"{self.scratch}L") for x in self.lines]

    def open(self, head: str, known: dict[Node, str]) -> None:
        self.lines.append(f"{head} {{")
        self.scopes.append(known)

    def statements(self, body: list[Statement]) -> None:
        for s in body:
            if isinstance(s, Store):
                self.store(s)
            elif isinstance(s, Barrier):
                self.lines.append(self.dialect.barrier)
            elif isinstance(s, Threads):
                self.scopes[-1][s.loop] = f"(long){self.dialect.thread}"
                self.statements(s.body)
            elif isinstance(s, For):
                self.count += 1
                i, start, stop = (
                    f"i{self.count}",
                    *(self.value(sym.as_node(x)) for x in (s.start, s.stop)),
                )
                self.block(f"for (long {i} = {start}; {i} < {stop}; {i}++)", s.body, {s.loop: i})
            elif isinstance(s, If):
                test = self.value(s.condition)
                self.block(f"if ({test})", s.body, {})
                if s.orelse:
                    self.block("else", s.orelse, {})

    def block(self, head: str, body: list[Statement], known: dict[Node, str]) -> None:
        self.open(head, known)
        self.statements(body)
        self.lines.append("}")
        self.scopes.pop()

    def store(self, s: Store) -> None:
        fresh: dict[Node, str] = {}
        value, d = self.value(s.value, fresh), s.value.dtype
        array = self.lowered.arrays.get(s.place) if isinstance(s.place, str) else None
        guard = f"if ({self.value(s.guard, fresh)}) " if s.guard is not None else ""
        stored = value if array is not None and array.lanes else packed(value, d)
        self.lines.append(f"{guard}{self.names[s.place]}[{self.value(s.index, fresh)}] = {stored};")

    # --- expressions ---

    def value(self, root: Node, fresh: dict[Node, str] | None = None) -> str:
        """The name of a node's value. What depends on memory that changes is good for one statement
        (and is kept in `fresh`); all else for as long as its block lasts."""
        fresh = {} if fresh is None else fresh
        for n in toposort((root,), into=lambda m: self.find(m, fresh) is None):
            if self.find(n, fresh) is not None:
                continue
            if n.shape:
                raise DeviceError(f"codegen: a C-like dialect got {n.op.name} of shape {n.shape}, "
                                  "expected a plan without vectors")  # fmt: skip
            text = self.expression(n, [self.find(x, fresh) or "" for x in n.srcs])
            self.count += 1
            self.lines.append(f"const {register(n.dtype)} v{self.count} = {text};")
            changes = any(x in fresh for x in n.srcs) or (n.op is ops.LOAD and self.mutable(n.arg))
            (fresh if changes else self.scopes[-1])[n] = f"v{self.count}"
        return self.find(root, fresh) or ""

    def find(self, n: Node, fresh: dict[Node, str]) -> str | None:
        if n.op is ops.CONST:
            return literal(n.arg, n.dtype)
        return fresh.get(n) or next((s[n] for s in reversed(self.scopes) if n in s), None)

    def mutable(self, place: object) -> bool:
        return not isinstance(place, int) or place in self.written

    def expression(self, n: Node, a: list[str]) -> str:
        if n.op is ops.LOAD:
            name = self.names[n.arg[0] if isinstance(n.arg, tuple) else n.arg]
            if isinstance(n.arg, tuple):
                return f"{name}[{a[0]}]"
            zero = literal(0, n.dtype)
            loaded = unpacked(f"{name}[{a[0]}]", n.dtype)
            return f"{a[1]} ? {loaded} : {zero}" if len(a) > 1 else loaded
        if n.op is ops.INPUT and isinstance(n.arg, Var):
            return f"n{self.variables[n.arg.name]}"
        if n.op is ops.FMA and not self.lowered.kernel.exact:
            return f"multiply_add({', '.join(a)})"
        return operation(n, a)


def packed(x: str, d: DType) -> str:
    """A value as its element in memory."""
    return f"({memory(d)})pack({x}, {_NARROW[d.name]})" if d.name in _NARROW else x


def unpacked(x: str, d: DType) -> str:
    if d is dtype.bool_:
        return f"{x} != 0"
    return f"unpack({x}, {_NARROW[d.name]})" if d.name in _NARROW else x


def rounded(x: str, d: DType) -> str:
    return f"unpack(pack({x}, {_NARROW[d.name]}), {_NARROW[d.name]})" if d.name in _NARROW else x


# --- operations ----------------------------------------------------------------------------------

_FLOAT = {ops.ADD: "{0} + {1}", ops.MUL: "{0} * {1}", ops.DIV: "{0} / {1}", ops.SQRT: "sqrt({0})",
          ops.FMA: "fma({0}, {1}, {2})", ops.MAX: "{0} > {1} || {0} != {0} ? {0} : {1}",
          ops.LT: "{0} < {1}", ops.NE: "{0} != {1}"}  # fmt: skip
_BOOL = {ops.ADD: "{0} || {1}", ops.MAX: "{0} || {1}", ops.MUL: "{0} && {1}", ops.AND: "{0} && {1}",
         ops.XOR: "{0} != {1}", ops.NE: "{0} != {1}", ops.LT: "!{0} && {1}"}  # fmt: skip
_INTEGER = {ops.AND: "{0} & {1}", ops.XOR: "{0} ^ {1}", ops.MAX: "{0} > {1} ? {0} : {1}",
            ops.LT: "{0} < {1}", ops.NE: "{0} != {1}"}  # fmt: skip
_WRAPPING = {ops.ADD: "({t})(({u}){0} + ({u}){1})", ops.MUL: "({t})(({u}){0} * ({u}){1})"}


def operation(n: Node, a: list[str]) -> str:
    """The expression of one node over the names of its operands."""
    op, d = n.op, n.srcs[0].dtype
    if op is ops.WHERE:
        return f"{a[0]} ? {a[1]} : {a[2]}"
    if op is ops.CAST:
        return cast(a[0], d, n.dtype)
    if op is ops.BITCAST:
        kind = memory(n.dtype)
        bits = packed(a[0], d)
        return unpacked(bits if memory(d) == kind else f"as_{kind}({bits})", n.dtype)
    if d.is_float:
        text = _FLOAT[op].format(*a)
        return text if op is ops.MAX else rounded(text, n.dtype)
    if d is dtype.bool_:
        return _BOOL[op].format(*a)
    if op in _WRAPPING:
        # in 32 bits or more: C computes narrower products as int, which must not overflow
        word = "ulong" if d.bits == 64 else "uint"
        return _WRAPPING[op].format(*a, t=register(d), u=word)
    if op in _INTEGER:
        return _INTEGER[op].format(*a)
    if sym.trusted(n) and n.srcs[1].op is ops.CONST and n.srcs[1].arg > 0 \
            and sym.bounds(n.srcs[0])[0] >= 0:  # fmt: skip
        return f"{a[0]} {'/' if op is ops.DIV else '%'} {a[1]}"
    divided = f"divide_{'u' if d.kind == 'u' else 's'}({a[0]}, {a[1]})"
    if op is ops.DIV:
        return f"({register(d)}){divided}"
    return f"({register(d)})((ulong){a[0]} - (ulong){divided} * (ulong){a[1]})"


def cast(x: str, source: DType, d: DType) -> str:
    if source is d:
        return x
    if d is dtype.bool_:
        return f"{x} != 0"
    if not d.is_float:
        return f"{x} != {x} ? 0 : convert_{register(d)}_sat({x})" if source.is_float \
            else f"({register(d)}){x}"  # fmt: skip
    if d.bits >= 32:
        return f"({register(d)}){x}"
    if source is dtype.float64:
        return rounded(f"odd_double({x})", d)
    if source.is_float or source.bits <= 16:
        return rounded(f"(float){x}", d)
    return rounded(f"odd_{'u' if source.kind == 'u' else ''}long({x})", d)


__all__ = ["OPENCL", "Dialect", "Rendered", "render"]
