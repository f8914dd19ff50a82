"""Each operation as LLVM instructions, for scalars and vectors alike.

bfloat16 and float8 have no registers of their own: their values are kept as float32 that is rounded
after every operation, and are packed only in memory.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from muladd.codegen.powers import power_of_two
from muladd.errors import DeviceError
from muladd.ir import DType, Node, dtype, ops, sym

Fresh = Callable[[], str]
Lines = list[str]

_SCALAR = {"bool": "i1", "float16": "half", "float32": "float", "float64": "double",
           "bfloat16": "float", "float8_e4m3": "float", "float8_e5m2": "float"}  # fmt: skip
_MEMORY = {"bool": "i8", "float16": "half", "float32": "float", "float64": "double",
           "bfloat16": "i16", "float8_e4m3": "i8", "float8_e5m2": "i8"}  # fmt: skip


@dataclass(slots=True)
class Typed:
    """An operand with its element type and lane count (0: scalar); `memory`: packed for memory."""

    name: str
    dtype: DType
    lanes: int
    memory: bool = False

    def type(self) -> str:
        kind = memory_type(self.dtype) if self.memory else register_type(self.dtype, 0)
        return f"<{self.lanes} x {kind}>" if self.lanes else kind


def memory_type(d: DType) -> str:
    return _MEMORY.get(d.name) or f"i{d.bits}"


def register_type(d: DType, lanes: int) -> str:
    kind = _SCALAR.get(d.name) or f"i{d.bits}"
    return f"<{lanes} x {kind}>" if lanes else kind


def literal(value: object, d: DType) -> str:
    """A scalar constant."""
    if d is dtype.bool_:
        return "true" if value else "false"
    if not d.is_float:
        whole = int(value)  # type: ignore[call-overload]
        if d is dtype.INDEX:  # coefficients of indices are whole numbers; registers wrap
            whole = (whole + (1 << 63)) % (1 << 64) - (1 << 63)
        return str(whole)
    number = float(value)  # type: ignore[arg-type]
    if d is dtype.float16:
        return "0xH" + struct.pack(">e", number).hex() if abs(number) <= 65504 or number != number \
            else "0xH7C00" if number > 0 else "0xHFC00"  # fmt: skip
    if number != number:
        return "0x7FF8000000000000"
    if d is not dtype.float64 and abs(number) != float("inf"):
        number = struct.unpack("f", struct.pack("f", number))[0]
    return "0x" + struct.pack(">d", number).hex().upper()


def vector_literal(value: object, d: DType, lanes: int) -> str:
    one = f"{register_type(d, 0)} {literal(value, d)}"
    return f"<{', '.join([one] * lanes)}>"


class Emitter:
    """Appends instructions to `lines`; `fast` lets multiply and add contract."""

    def __init__(
        self, lines: Lines, fresh: Fresh, declare: Callable[[str, str], None], fast: bool
    ) -> None:
        self.lines, self.fresh, self.declare, self.fast = lines, fresh, declare, fast

    def put(self, text: str) -> str:
        v = self.fresh()
        self.lines.append(f"{v} = {text}")
        return v

    def call(self, name: str, result: str, args: list[tuple[str, str]], flags: str = "") -> str:
        self.declare(f"@{name}", f"declare {result} @{name}({', '.join(t for t, _ in args)})")
        given = ", ".join(f"{t} {v}" for t, v in args)
        return self.put(f"call {flags}{result} @{name}({given})")


def suffix(d: DType, lanes: int) -> str:
    short = {"float": "f32", "double": "f64", "half": "f16"}
    kind = register_type(d, 0)
    return f"v{lanes}{short.get(kind, kind)}" if lanes else short.get(kind, kind)


def operation(
    n: Node,
    a: list[Typed],
    lines: Lines,
    fresh: Fresh,
    declare: Callable[[str, str], None],
    fast: bool,
) -> str:
    """Instructions for one node over operands; gives the result's operand."""
    e = Emitter(lines, fresh, declare, fast)
    lanes = n.shape[0] if n.shape else 0
    assert isinstance(lanes, int)
    kind = register_type(n.dtype, lanes)
    op = n.op
    if op is ops.EXPAND:
        return _splat(e, a[0], lanes, n)
    if op is ops.IOTA:
        t = register_type(n.dtype, 0)
        return f"<{', '.join(f'{t} {literal(i, n.dtype)}' for i in range(lanes))}>"
    if op in (ops.SUM, ops.AMAX):
        return _across(e, n, a[0])
    if op is ops.CAST:
        return cast(e, a[0], n.dtype, lanes)
    if op is ops.BITCAST:
        return _bitcast(e, a[0], n.dtype, lanes)
    if op is ops.WHERE:
        return e.put(f"select {a[0].type()} {a[0].name}, {kind} {a[1].name}, {kind} {a[2].name}")
    if op in (ops.SQRT, ops.FMA):
        # in the fast profile a machine without fused multiply-adds may round twice
        loose = fast and n.dtype in (dtype.float32, dtype.float64)
        word = "sqrt" if op is ops.SQRT else "fmuladd" if loose else "fma"
        name = f"llvm.{word}.{suffix(n.dtype, lanes)}"
        return _rounded(e, n.dtype, lanes, e.call(name, kind, [(kind, x.name) for x in a]))
    source = n.srcs[0].dtype
    if source.is_float:
        return _float(e, op, n, a, lanes)
    if op in (ops.DIV, ops.MOD) and source is dtype.INDEX and _natural(n):
        return e.put(
            f"{'udiv' if op is ops.DIV else 'urem'} {a[0].type()} {a[0].name}, {a[1].name}"
        )
    power = power_of_two(n)
    if power is not None:  # rounding down is what a shift does
        word, by = ("and", (1 << power) - 1) if op is ops.MOD else \
            ("ashr" if source.kind == "i" else "lshr", power)  # fmt: skip
        other = vector_literal(by, source, lanes) if lanes else literal(by, source)
        return e.put(f"{word} {a[0].type()} {a[0].name}, {other}")
    return _integer(e, op, source, a, lanes)


def _natural(n: Node) -> bool:
    """Whether an index division is of a number >= 0 by a positive constant."""
    return sym.trusted(n) and n.srcs[1].op is ops.CONST and n.srcs[1].arg > 0 \
        and sym.bounds(n.srcs[0])[0] >= 0  # fmt: skip


def _splat(e: Emitter, a: Typed, lanes: int, n: Node) -> str:
    if n.srcs[0].op is ops.CONST:
        return vector_literal(n.srcs[0].arg, n.dtype, lanes)
    one, kind = register_type(n.dtype, 0), register_type(n.dtype, lanes)
    first = e.put(f"insertelement {kind} poison, {one} {a.name}, i64 0")
    return e.put(f"shufflevector {kind} {first}, {kind} poison, <{lanes} x i32> zeroinitializer")


def _across(e: Emitter, n: Node, a: Typed) -> str:
    """All lanes joined: halves pairwise, as the exact profile says."""
    width, value = a.lanes, a.name
    op = ops.ADD if n.op is ops.SUM else ops.MAX
    while width > 1:
        half = width // 2
        kind = register_type(n.dtype, width)
        low, high = (
            e.put(f"shufflevector {kind} {value}, {kind} poison, <{half} x i32> "
                  f"<{', '.join(f'i32 {i + start}' for i in range(half))}>")
            for start in (0, half)
        )  # fmt: skip
        pair = [Typed(low, n.dtype, half), Typed(high, n.dtype, half)]
        value = _binary(e, op, n.dtype, pair, half)
        width = half
    return e.put(f"extractelement {register_type(n.dtype, 1)} {value}, i64 0")


def _binary(e: Emitter, op: ops.Op, d: DType, a: list[Typed], lanes: int) -> str:
    if d.is_float:
        if op is ops.MAX:
            return _float_max(e, a, lanes)
        return _rounded(e, d, lanes, e.put(f"fadd {a[0].type()} {a[0].name}, {a[1].name}"))
    return _integer(e, op, d, a, lanes)


def _float(e: Emitter, op: ops.Op, n: Node, a: list[Typed], lanes: int) -> str:
    kind = a[0].type()
    x, y = a[0].name, a[1].name
    flag = " contract" if e.fast else ""
    if op is ops.ADD or op is ops.MUL or op is ops.DIV:
        word = {ops.ADD: "fadd", ops.MUL: "fmul", ops.DIV: "fdiv"}[op]
        flag = flag if op is not ops.DIV else ""
        return _rounded(e, n.dtype, lanes, e.put(f"{word}{flag} {kind} {x}, {y}"))
    if op is ops.LT:
        return e.put(f"fcmp olt {kind} {x}, {y}")
    if op is ops.NE:
        return e.put(f"fcmp une {kind} {x}, {y}")
    if op is ops.MAX:
        return _float_max(e, a, lanes)
    raise DeviceError(f"{op.name} has no meaning for {n.dtype.name}")


def _float_max(e: Emitter, a: list[Typed], lanes: int) -> str:
    """a if a > b or a is NaN, else b. The fast profile leaves open which zero of two is greater;
    then it is one instruction, and on x86 two more for NaN."""
    kind, flag = a[0].type(), f"<{lanes} x i1>" if lanes else "i1"
    x, y = a[0].name, a[1].name
    if e.fast:
        name = f"llvm.maximum.{suffix(a[0].dtype, lanes)}"
        return e.call(name, kind, [(kind, x), (kind, y)], "nsz ")
    greater = e.put(f"fcmp ogt {kind} {x}, {y}")
    top = e.put(f"select {flag} {greater}, {kind} {x}, {kind} {y}")
    nan = e.put(f"fcmp uno {kind} {x}, {x}")
    return e.put(f"select {flag} {nan}, {kind} {x}, {kind} {top}")


def _integer(e: Emitter, op: ops.Op, d: DType, a: list[Typed], lanes: int) -> str:
    kind, x, y = a[0].type(), a[0].name, a[1].name
    signed = d.kind == "i"
    if d is dtype.bool_:
        word = {
            ops.ADD: "or",
            ops.MUL: "and",
            ops.MAX: "or",
            ops.AND: "and",
            ops.XOR: "xor",
            ops.NE: "xor",
        }
        if op in word:
            return e.put(f"{word[op]} {kind} {x}, {y}")
        if op is ops.LT:
            return e.put(f"icmp ult {kind} {x}, {y}")
    simple = {ops.ADD: "add", ops.MUL: "mul", ops.AND: "and", ops.XOR: "xor"}
    if op in simple:
        return e.put(f"{simple[op]} {kind} {x}, {y}")
    if op is ops.LT:
        return e.put(f"icmp {'s' if signed else 'u'}lt {kind} {x}, {y}")
    if op is ops.NE:
        return e.put(f"icmp ne {kind} {x}, {y}")
    if op is ops.MAX:
        flag = f"<{lanes} x i1>" if lanes else "i1"
        c = e.put(f"icmp {'s' if signed else 'u'}gt {kind} {x}, {y}")
        return e.put(f"select {flag} {c}, {kind} {x}, {kind} {y}")
    quotient, zero = _divide(e, d, a, lanes)
    if op is ops.DIV:
        return quotient
    product = e.put(f"mul {kind} {quotient}, {y}")
    return e.put(f"sub {kind} {x}, {product}")


def _divide(e: Emitter, d: DType, a: list[Typed], lanes: int) -> tuple[str, str]:
    """x / y rounded down; zero where y is zero; nothing traps."""
    kind, x, y = a[0].type(), a[0].name, a[1].name
    flag = f"<{lanes} x i1>" if lanes else "i1"

    def k(v: int) -> str:
        return vector_literal(v, d, lanes) if lanes else str(v)

    constant = y.lstrip("-").isdigit() and y != "0"
    if constant and int(y) > 0 and d.kind == "u":
        return e.put(f"udiv {kind} {x}, {y}"), ""
    zero = e.put(f"icmp eq {kind} {y}, {k(0)}")
    safe = e.put(f"select {flag} {zero}, {kind} {k(1)}, {kind} {y}")
    if d.kind == "u":
        q = e.put(f"udiv {kind} {x}, {safe}")
        return e.put(f"select {flag} {zero}, {kind} {k(0)}, {kind} {q}"), zero
    # INT_MIN / -1 traps on x86: divide by 1 there and negate (which wraps)
    minus = e.put(f"icmp eq {kind} {safe}, {k(-1)}")
    positive = e.put(f"select {flag} {minus}, {kind} {k(1)}, {kind} {safe}")
    q = e.put(f"sdiv {kind} {x}, {positive}")
    back = e.put(f"mul {kind} {q}, {positive}")
    rest = e.put(f"sub {kind} {x}, {back}")
    signs = e.put(f"xor {kind} {rest}, {positive}")
    differ = e.put(f"icmp slt {kind} {signs}, {k(0)}")
    inexact = e.put(f"icmp ne {kind} {rest}, {k(0)}")
    both = e.put(f"and {flag} {differ}, {inexact}")
    less = e.put(f"sub {kind} {q}, {k(1)}")
    down = e.put(f"select {flag} {both}, {kind} {less}, {kind} {q}")
    negated = e.put(f"sub {kind} {k(0)}, {x}")
    down = e.put(f"select {flag} {minus}, {kind} {negated}, {kind} {down}")
    return e.put(f"select {flag} {zero}, {kind} {k(0)}, {kind} {down}"), zero


# --- conversions ---------------------------------------------------------------------------------


def cast(e: Emitter, a: Typed, d: DType, lanes: int) -> str:
    source = a.dtype
    old, new = a.type(), register_type(d, lanes)
    if source is d:
        return a.name
    if d is dtype.bool_:
        zero = vector_literal(0, source, lanes) if lanes else literal(0, source)
        return e.put(f"{'fcmp une' if source.is_float else 'icmp ne'} {old} {a.name}, {zero}")
    if source.is_float and d.is_float:
        return _float_to_float(e, a, d, lanes)
    if source.is_float:
        sign = "s" if d.kind == "i" else "u"
        name = f"llvm.fpto{sign}i.sat.{suffix(d, lanes)}.{suffix(source, lanes)}"
        return e.call(name, new, [(old, a.name)])
    if d.is_float:
        return _int_to_float(e, a, d, lanes)
    if d.bits < source.bits and source is not dtype.bool_:
        return e.put(f"trunc {old} {a.name} to {new}")
    if d.bits == source.bits and source is not dtype.bool_:
        return a.name
    return e.put(f"{'sext' if source.kind == 'i' else 'zext'} {old} {a.name} to {new}")


def _float_to_float(e: Emitter, a: Typed, d: DType, lanes: int) -> str:
    old, new = a.type(), register_type(d, lanes)
    width = {"half": 16, "float": 32, "double": 64}
    x, y = (width[register_type(t, 0)] for t in (a.dtype, d))
    value = a.name
    if x < y:
        value = e.put(f"fpext {old} {value} to {new}")
    elif x > y:
        if x == 64 and d.bits < 32:
            value, old = _to_odd(e, value, lanes), register_type(dtype.float32, lanes)
        if old != new:
            value = e.put(f"fptrunc {old} {value} to {new}")
    return _rounded(e, d, lanes, value)


def _int_to_float(e: Emitter, a: Typed, d: DType, lanes: int) -> str:
    """Rounded once, also where the way to a narrow float is through a wider one."""
    source, value = a.dtype, a.name
    old, new = a.type(), register_type(d, lanes)
    word = "uitofp" if source.kind in "bu" else "sitofp"
    if d.bits >= 32 or source is dtype.bool_ or source.bits <= 16:
        return _rounded(e, d, lanes, e.put(f"{word} {old} {value} to {new}"))
    if source.bits == 64:
        value = _sticky(e, a, lanes)
    double, single = (register_type(t, lanes) for t in (dtype.float64, dtype.float32))
    value = _to_odd(e, e.put(f"{word} {old} {value} to {double}"), lanes)
    if new != single:
        value = e.put(f"fptrunc {single} {value} to {new}")
    return _rounded(e, d, lanes, value)


def _sticky(e: Emitter, a: Typed, lanes: int) -> str:
    """64-bit integers of at most 53 significant bits; what was lost leaves a one behind, so that
    a second rounding, to a narrower float, is the correct one."""
    kind, x = a.type(), a.name
    flag = f"<{lanes} x i1>" if lanes else "i1"

    def k(v: int) -> str:
        return vector_literal(v, a.dtype, lanes) if lanes else str(v)

    high = e.put(f"and {kind} {x}, {k(-2048)}")
    low = e.put(f"and {kind} {x}, {k(2047)}")
    lost = e.put(f"icmp ne {kind} {low}, {k(0)}")
    marked = e.put(f"or {kind} {high}, {k(2048)}")
    short = e.put(f"select {flag} {lost}, {kind} {marked}, {kind} {high}")
    if a.dtype.kind == "i":
        moved = e.put(f"add {kind} {x}, {k(1 << 53)}")
        small = e.put(f"icmp ult {kind} {moved}, {k(1 << 54)}")
    else:
        small = e.put(f"icmp ult {kind} {x}, {k(1 << 53)}")
    return e.put(f"select {flag} {small}, {kind} {x}, {kind} {short}")


def _to_odd(e: Emitter, value: str, lanes: int) -> str:
    """float64 to float32 where inexact results keep an odd last bit (Boldo and Melquiond, 2008):
    rounding that again to a narrower float is rounding once."""
    double, single, word = (register_type(t, lanes)
                            for t in (dtype.float64, dtype.float32, dtype.int32))  # fmt: skip
    flag = f"<{lanes} x i1>" if lanes else "i1"

    def k(v: int) -> str:
        return vector_literal(v, dtype.int32, lanes) if lanes else str(v)

    near = e.put(f"fptrunc {double} {value} to {single}")
    back = e.put(f"fpext {single} {near} to {double}")
    size = e.call(f"llvm.fabs.{suffix(dtype.float64, lanes)}", double, [(double, value)])
    came = e.call(f"llvm.fabs.{suffix(dtype.float64, lanes)}", double, [(double, back)])
    beyond = e.put(f"fcmp ogt {double} {came}, {size}")
    inexact = e.put(f"fcmp one {double} {came}, {size}")
    bits = e.put(f"bitcast {single} {near} to {word}")
    step = e.put(f"zext {flag} {beyond} to {word}")
    toward_zero = e.put(f"sub {word} {bits}, {step}")
    odd = e.put(f"or {word} {toward_zero}, {k(1)}")
    chosen = e.put(f"select {flag} {inexact}, {word} {odd}, {word} {bits}")
    return e.put(f"bitcast {word} {chosen} to {single}")


def _bitcast(e: Emitter, a: Typed, d: DType, lanes: int) -> str:
    if a.dtype is d:
        if d is dtype.INDEX and not lanes and a.name.lstrip("-").isdigit():  # see vector._mask
            return e.put(f'call i64 asm "", "=r,0"(i64 {a.name})')
        return a.name
    packed = element.store(a, e.lines, e.fresh)
    kind = f"<{lanes} x {memory_type(d)}>" if lanes else memory_type(d)
    value = packed.name
    if packed.type() != kind:
        value = e.put(f"bitcast {packed.type()} {value} to {kind}")
    return element.load(value, d, lanes, e.lines, e.fresh)


def _rounded(e: Emitter, d: DType, lanes: int, value: str) -> str:
    """A float32 value brought to the nearest value of a type that lives in float32 registers."""
    if d is dtype.bfloat16:
        return element.unpack_bfloat16(
            element.pack_bfloat16(value, lanes, e.lines, e.fresh), lanes, e.lines, e.fresh
        )
    if d.bits == 8 and d.is_float:
        return element.unpack_float8(
            element.pack_float8(value, d, lanes, e.lines, e.fresh), d, lanes, e.lines, e.fresh
        )
    return value


class element:
    """Values between registers and memory, where the two differ."""

    @staticmethod
    def load(v: str, d: DType, lanes: int, lines: Lines, fresh: Fresh) -> str:
        if d is dtype.bool_:
            kind = f"<{lanes} x i8>" if lanes else "i8"
            out = fresh()
            lines.append(f"{out} = icmp ne {kind} {v}, {'zeroinitializer' if lanes else '0'}")
            return out
        if d is dtype.bfloat16:
            return element.unpack_bfloat16(v, lanes, lines, fresh)
        if d.bits == 8 and d.is_float:
            return element.unpack_float8(v, d, lanes, lines, fresh)
        return v

    @staticmethod
    def store(t: Typed, lines: Lines, fresh: Fresh) -> Typed:
        name = t.name
        if t.dtype is dtype.bool_:
            name = fresh()
            kind = f"<{t.lanes} x i8>" if t.lanes else "i8"
            lines.append(f"{name} = zext {t.type()} {t.name} to {kind}")
        elif t.dtype is dtype.bfloat16:
            name = element.pack_bfloat16(name, t.lanes, lines, fresh)
        elif t.dtype.bits == 8 and t.dtype.is_float:
            name = element.pack_float8(name, t.dtype, t.lanes, lines, fresh)
        return Typed(name, t.dtype, t.lanes, memory=True)

    @staticmethod
    def unpack_bfloat16(v: str, lanes: int, lines: Lines, fresh: Fresh) -> str:
        w = _Words(lanes, lines, fresh)
        return w.floats(w.op("shl", w.widen(v, "i16"), 16))

    @staticmethod
    def pack_bfloat16(v: str, lanes: int, lines: Lines, fresh: Fresh) -> str:
        """Nearest, ties to even: add 0x7fff plus the last kept bit, drop 16 bits; NaN stays NaN."""
        w = _Words(lanes, lines, fresh)
        bits = w.bits(v)
        odd = w.op("and", w.op("lshr", bits, 16), 1)
        near = w.op("lshr", w.add(w.op("add", bits, 0x7FFF), odd), 16)
        quiet = w.op("or", w.op("lshr", bits, 16), 0x40)
        return w.narrow(w.select(w.is_nan(v), quiet, near), "i16")

    @staticmethod
    def unpack_float8(v: str, d: DType, lanes: int, lines: Lines, fresh: Fresh) -> str:
        """Exponent and mantissa moved into place, scaled by a power of two (subnormals too)."""
        w = _Words(lanes, lines, fresh)
        code = w.widen(v, "i8")
        magnitude = w.op("and", code, 0x7F)
        shifted = w.floats(w.op("shl", magnitude, 23 - d.mantissa))
        scaled = w.bits(w.multiply(shifted, 2.0 ** (127 - ((1 << (d.exponent - 1)) - 1))))
        special = w.compare("ugt", magnitude, 0x7E if d is dtype.float8_e4m3 else 0x7B)
        wild = w.number(0x7FC00000)
        if d is dtype.float8_e5m2:
            infinite = w.compare("eq", magnitude, 0x7C)
            wild = w.select(infinite, w.number(0x7F800000), wild)
        sign = w.op("shl", w.op("and", code, 0x80), 24)
        return w.floats(w.either(w.select(special, wild, scaled), sign))

    @staticmethod
    def pack_float8(v: str, d: DType, lanes: int, lines: Lines, fresh: Fresh) -> str:
        """Nearest, ties to even, as bits; subnormals by the float unit's own rounding."""
        w = _Words(lanes, lines, fresh)
        bits = w.bits(v)
        sign = w.op("and", w.op("lshr", bits, 24), 0x80)
        magnitude = w.op("and", bits, 0x7FFFFFFF)
        bias = (1 << (d.exponent - 1)) - 1
        drop = 23 - d.mantissa
        # normal: rebias the exponent and round the mantissa
        odd = w.op("and", w.op("lshr", magnitude, drop), 1)
        rounded = w.op("lshr", w.add(w.op("add", magnitude, (1 << (drop - 1)) - 1), odd), drop)
        normal = w.op("sub", rounded, (127 - bias) << d.mantissa)
        # subnormal: adding a power of two lets the float unit round
        magic = 2.0 ** (1 - bias - d.mantissa + 23)
        small = w.op(
            "sub",
            w.bits(w.plus(w.floats(magnitude), magic)),
            struct.unpack("I", struct.pack("f", magic))[0],
        )
        tiny = w.compare("ult", magnitude, (127 - bias + 1) << 23)
        code = w.select(tiny, small, normal)
        top = 0x7C if d is dtype.float8_e5m2 else 0x7F
        code = w.select(w.compare("ugt", code, top), w.number(top), code)
        code = w.select(w.is_nan(v), w.number(0x7F), code)
        return w.narrow(w.either(code, sign), "i8")


class _Words:
    """32-bit integer arithmetic on lanes, for the conversions above."""

    def __init__(self, lanes: int, lines: Lines, fresh: Fresh) -> None:
        self.lanes, self.lines, self.fresh = lanes, lines, fresh
        self.i32, self.f32 = self.kind("i32"), self.kind("float")

    def kind(self, one: str) -> str:
        return f"<{self.lanes} x {one}>" if self.lanes else one

    def put(self, text: str) -> str:
        v = self.fresh()
        self.lines.append(f"{v} = {text}")
        return v

    def number(self, value: int) -> str:
        return vector_literal(value, dtype.int32, self.lanes) if self.lanes else str(value)

    def op(self, word: str, a: str, k: int) -> str:
        return self.put(f"{word} {self.i32} {a}, {self.number(k)}")

    def add(self, a: str, b: str) -> str:
        return self.put(f"add {self.i32} {a}, {b}")

    def either(self, a: str, b: str) -> str:
        return self.put(f"or {self.i32} {a}, {b}")

    def compare(self, word: str, a: str, k: int) -> str:
        return self.put(f"icmp {word} {self.i32} {a}, {self.number(k)}")

    def is_nan(self, v: str) -> str:
        return self.put(f"fcmp uno {self.f32} {v}, {v}")

    def select(self, c: str, a: str, b: str) -> str:
        return self.put(f"select {self.kind('i1')} {c}, {self.i32} {a}, {self.i32} {b}")

    def bits(self, v: str) -> str:
        return self.put(f"bitcast {self.f32} {v} to {self.i32}")

    def floats(self, v: str) -> str:
        return self.put(f"bitcast {self.i32} {v} to {self.f32}")

    def widen(self, v: str, one: str) -> str:
        return self.put(f"zext {self.kind(one)} {v} to {self.i32}")

    def narrow(self, v: str, one: str) -> str:
        return self.put(f"trunc {self.i32} {v} to {self.kind(one)}")

    def scalar(self, x: float) -> str:
        return (
            vector_literal(x, dtype.float32, self.lanes)
            if self.lanes
            else literal(x, dtype.float32)
        )

    def multiply(self, v: str, x: float) -> str:
        return self.put(f"fmul {self.f32} {v}, {self.scalar(x)}")

    def plus(self, v: str, x: float) -> str:
        return self.put(f"fadd {self.f32} {v}, {self.scalar(x)}")
