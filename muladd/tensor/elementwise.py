"""Arithmetic, comparison, bits and selection: operators and their method names."""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError
from muladd.ir import DType, Node, const, make, ops
from muladd.ir import dtype as dt
from muladd.tensor import graph
from muladd.tensor.handle import Handle
from muladd.tensor.operands import as_operand, common, is_number, number_dtype, widened

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Elementwise(Handle):
    """Operations on elements that stand at the same place."""

    __slots__ = ()

    # --- arithmetic -------------------------------------------------------------------------------

    def add(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self + alpha * other."""
        if alpha != 1:
            other = other * alpha
        a, b = common("add", (self, other))
        return self._result(graph.add(a, b))

    def sub(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """self - alpha * other."""
        if alpha != 1:
            other = other * alpha
        return self._result(_subtract(*common("sub", (self, other))))

    def rsub(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """other - alpha * self."""
        scaled = self if alpha == 1 else self * alpha
        return self._result(_subtract(*common("rsub", (other, scaled))))

    def mul(self, other: Any) -> Tensor:
        """self * other."""
        a, b = common("mul", (self, other))
        return self._result(graph.mul(a, b))

    def div(self, other: Any, *, rounding_mode: str | None = None) -> Tensor:
        """self / other as floats; rounding_mode 'floor' or 'trunc' rounds the quotient."""
        return self._result(_divide(self, other, rounding_mode))

    def true_divide(self, other: Any) -> Tensor:
        """The same as div."""
        return self / other

    def rdiv(self, other: Any) -> Tensor:
        """other / self."""
        return self._result(_divide(other, self, None))

    def floor_divide(self, other: Any) -> Tensor:
        """The quotient rounded down (integer division by zero gives zero)."""
        return self._result(_divide(self, other, "floor"))

    def remainder(self, other: Any) -> Tensor:
        """self - other * floor(self / other): the sign of `other`, as Python's %."""
        return self._result(_remainder(*common("remainder", (self, other))))

    def fmod(self, other: Any) -> Tensor:
        """self - other * trunc(self / other): the sign of `self`, as C's fmod."""
        return self._result(_fmod(*common("fmod", (self, other))))

    def neg(self) -> Tensor:
        """-self."""
        if self.dtype is dt.bool_:
            raise DTypeError("neg: bool has no negative; use ~x (logical_not) or cast first")
        return self._result(graph.neg(self.node))

    def positive(self) -> Tensor:
        """+x."""
        if self.dtype is dt.bool_:
            raise DTypeError("positive: bool has no sign; cast first")
        return self.clone()

    def maximum(self, other: Any) -> Tensor:
        """The greater of each pair; NaN if either is NaN."""
        a, b = common("maximum", (self, other))
        return self._result(graph.maximum(a, b))

    def minimum(self, other: Any) -> Tensor:
        """The lesser of each pair; NaN if either is NaN."""
        a, b = common("minimum", (self, other))
        return self._result(graph.minimum(a, b))

    def fmax(self, other: Any) -> Tensor:
        """The greater of each pair; a number wins over NaN."""
        a, b = common("fmax", (self, other))
        return self._result(_unless_nan(a, b, graph.maximum(a, b)))

    def fmin(self, other: Any) -> Tensor:
        """The lesser of each pair; a number wins over NaN."""
        a, b = common("fmin", (self, other))
        return self._result(_unless_nan(a, b, graph.minimum(a, b)))

    def addcmul(self, a: Any, b: Any, *, value: Any = 1) -> Tensor:
        """self + value * a * b."""
        return self + a * b * value

    def addcdiv(self, a: Any, b: Any, *, value: Any = 1) -> Tensor:
        """self + value * a / b."""
        return self + a / b * value

    def lerp(self, end: Any, weight: Any) -> Tensor:
        """self + weight * (end - self)."""
        return self + (end - self) * weight

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        """Between min and max (each a number, a tensor, or None); NaN stays NaN."""
        if min is None and max is None:
            raise DTypeError("clamp: needs min, max or both, got neither")
        result: Any = self
        if min is not None:
            a, b = common("clamp", (result, min))
            result = self._result(graph.where(_beyond(a, b), b, a))
        if max is not None:
            a, b = common("clamp", (result, max))
            result = self._result(graph.where(_beyond(b, a, b), b, a))
        return result

    def clip(self, min: Any = None, max: Any = None) -> Tensor:
        """The same as clamp."""
        return self.clamp(min, max)

    def clamp_min(self, min: Any) -> Tensor:
        """At least `min`."""
        return self.clamp(min=min)

    def clamp_max(self, max: Any) -> Tensor:
        """At most `max`."""
        return self.clamp(max=max)

    # --- comparison -------------------------------------------------------------------------------

    def lt(self, other: Any) -> Tensor:
        """self < other."""
        return self._result(graph.lt(*common("lt", (self, other))))

    def gt(self, other: Any) -> Tensor:
        """self > other."""
        return self._result(graph.gt(*common("gt", (self, other))))

    def le(self, other: Any) -> Tensor:
        """self <= other."""
        return self._result(graph.le(*common("le", (self, other))))

    def ge(self, other: Any) -> Tensor:
        """self >= other."""
        return self._result(graph.ge(*common("ge", (self, other))))

    def eq(self, other: Any) -> Tensor:
        """self == other."""
        return self._result(graph.eq(*common("eq", (self, other))))

    def ne(self, other: Any) -> Tensor:
        """self != other."""
        return self._result(graph.ne(*common("ne", (self, other))))

    def isclose(
        self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
    ) -> Tensor:
        """|self - other| <= atol + rtol * |other|; infinities are close only to themselves."""
        a, b = (self._result(n) for n in common("isclose", (self, other)))
        close = (a == b) | (((a - b).abs() <= b.abs() * rtol + atol) & b.isfinite())
        return close | (a.isnan() & b.isnan()) if equal_nan else close

    def allclose(
        self, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False
    ) -> bool:
        """Whether all elements are close (see isclose). Runs."""
        return bool(self.isclose(other, rtol, atol, equal_nan).all().item())

    def equal(self, other: Tensor) -> bool:
        """Whether shape and all elements are equal. Runs."""
        return self.shape == other.shape and bool((self == other).all().item())

    # --- logic and bits ---------------------------------------------------------------------------

    def logical_not(self) -> Tensor:
        """True where zero."""
        return self._result(graph.invert(graph.cast(self.node, dt.bool_)))

    def logical_and(self, other: Any) -> Tensor:
        """True where both are not zero."""
        return self.bool() & as_operand_bool(other, self, "logical_and")

    def logical_or(self, other: Any) -> Tensor:
        """True where either is not zero."""
        return self.bool() | as_operand_bool(other, self, "logical_or")

    def logical_xor(self, other: Any) -> Tensor:
        """True where just one is not zero."""
        return self.bool() ^ as_operand_bool(other, self, "logical_xor")

    def bitwise_and(self, other: Any) -> Tensor:
        """self & other, for integers and bool."""
        a, b = _bits("bitwise_and", self, other)
        return self._result(graph.both(a, b) if a.dtype is dt.bool_ else _and(a, b))

    def bitwise_or(self, other: Any) -> Tensor:
        """self | other, for integers and bool."""
        a, b = _bits("bitwise_or", self, other)
        if a.dtype is dt.bool_:
            return self._result(graph.either(a, b))
        return self._result(_xor(_xor(a, b), _and(a, b)))

    def bitwise_xor(self, other: Any) -> Tensor:
        """self ^ other, for integers and bool."""
        a, b = _bits("bitwise_xor", self, other)
        return self._result(graph.ne(a, b) if a.dtype is dt.bool_ else _xor(a, b))

    def bitwise_not(self) -> Tensor:
        """~self: every bit turned; for bool, not."""
        (a,) = _bits("bitwise_not", self)
        if a.dtype is dt.bool_:
            return self._result(graph.invert(a))
        return self._result(_xor(a, graph.like(a, -1)))

    def bitwise_left_shift(self, other: Any) -> Tensor:
        """self * 2**other, wrapping; other >= 0."""
        a, n = _numbers(*_bits("bitwise_left_shift", self, other))
        for k in range(7):
            factor = graph.like(a, 1 << (1 << k)) if 1 << k < a.dtype.bits else graph.like(a, 0)
            a = graph.where(bit(n, k), graph.mul(a, factor), a)
        return self._result(a)

    def bitwise_right_shift(self, other: Any) -> Tensor:
        """self / 2**other rounded down (so the sign is kept); other >= 0."""
        if self.dtype is not dt.bool_ and isinstance(other, int) \
                and 0 <= other < self.dtype.bits - 1:  # fmt: skip
            (a,) = _bits("bitwise_right_shift", self)
            return self._result(graph.div(a, 1 << other))
        a, n = _numbers(*_bits("bitwise_right_shift", self, other))
        for k in range(7):
            step = min(1 << k, a.dtype.bits - 2)  # a divisor that fits; shifts of more do the rest
            shifted = graph.div(a, 1 << step)
            if step < 1 << k:
                shifted = graph.div(graph.div(shifted, 2), 2)
            a = graph.where(bit(n, k), shifted, a)
        return self._result(a)

    # --- selection --------------------------------------------------------------------------------

    def where(self, a: Any, b: Any) -> Tensor:
        """a where this condition holds, else b. `Tensor.where(condition, a, b)` is the same."""
        if self.dtype is not dt.bool_:
            raise DTypeError(
                f"where: the condition comes first and is bool, got {self.dtype.name}"
                f"{list(self.shape)}; write (x != 0).where(a, b)"
            )
        if is_number(a) and is_number(b):
            d = dt.promote(number_dtype(a), number_dtype(b))
            return self._result(
                graph.where(self.node, const(a, d, self.shape), const(b, d, self.shape))
            )
        a, b = (as_operand(v, self.device, "where") for v in (a, b))
        a, b = common("where", (a, b))
        shape = graph.broadcast_shapes("where", self.shape, a.shape)
        a, b = graph.expand(a, shape), graph.expand(b, shape)
        return self._result(graph.where(graph.expand(self.node, shape), a, b))

    def masked_fill(self, mask: Any, value: Any) -> Tensor:
        """`value` where the mask is true, else self; the dtype stays."""
        mask = as_operand(mask, self.device, "masked_fill")
        if mask.dtype is not dt.bool_:
            raise DTypeError(f"masked_fill: the mask is bool, got {mask.dtype.name}")
        value = as_operand(value, self.device, "masked_fill")
        if isinstance(value, Handle):
            value = value.cast(self.dtype)
        return mask.where(value, self).cast(self.dtype)


def as_operand_bool(value: Any, like: Handle, who: str) -> Any:
    """An operand of a logical operation, true where not zero."""
    value = as_operand(value, like.device, who)
    return value.bool() if isinstance(value, Handle) else bool(value)


def _beyond(a: Node, b: Node, bound: Node | None = None) -> Node:
    """Whether the bound (b unless given) replaces: a < b, or the bound is NaN."""
    bound = b if bound is None else bound
    less = graph.lt(a, b)
    if not bound.dtype.is_float or is_plain_number(bound):
        return less
    return graph.either(less, graph.ne(bound, bound))


def is_plain_number(x: Node) -> bool:
    """Whether x is one constant that is not NaN, repeated."""
    while x.op is ops.EXPAND:
        x = x.srcs[0]
    return x.op is ops.CONST and x.arg == x.arg


def _subtract(a: Node, b: Node) -> Node:
    if a.dtype is dt.bool_:
        raise DTypeError("sub: bool minus bool is not defined; use ^ (differ) or cast first")
    return graph.sub(a, b)


def _divide(a: Any, b: Any, rounding: str | None) -> Node:
    if rounding not in (None, "floor", "trunc"):
        raise DTypeError(f"div: rounding_mode={rounding!r}, expected None, 'floor' or 'trunc'")
    x, y = common("div", (a, b), floating=rounding is None)
    if x.dtype is dt.bool_:
        raise DTypeError("div: bool has no floor division; cast first")
    if rounding is None:
        return graph.div(x, y)
    if x.dtype.is_float:
        quotient = graph.div(x, y)
        if rounding == "trunc":
            return graph.level(trunc(quotient), quotient)
        far = graph.both(graph.eq(absolute(y), float("inf")), graph.lt(absolute(x), float("inf")))
        apart = graph.both(graph.ne(x, 0.0), graph.ne(graph.lt(x, 0.0), graph.lt(y, 0.0)))
        down = graph.where(far, graph.where(apart, -1.0, graph.like(x, 0.0)), floor(quotient))
        down = graph.where(graph.eq(absolute(x), float("inf")), float("nan"), down)
        return graph.level(down, quotient)
    down = graph.div(x, y)
    if rounding == "floor" or x.dtype.kind == "u":
        return down
    inexact = graph.ne(graph.mul(down, y), x)
    negative = graph.ne(graph.lt(x, 0), graph.lt(y, 0))
    return graph.add(down, graph.cast(graph.both(inexact, negative), x.dtype))


def _remainder(a: Node, b: Node) -> Node:
    if not a.dtype.is_float:
        return graph.mod(a, b)
    r = _fmod(a, b)
    wrong_sign = graph.both(graph.ne(r, 0), graph.ne(graph.lt(r, 0), graph.lt(b, 0)))
    return graph.where(wrong_sign, graph.add(r, b), r)


def _fmod(a: Node, b: Node) -> Node:
    if a.dtype.is_float:
        rest = graph.sub(a, graph.mul(b, trunc(graph.div(a, b))))
        far = graph.both(graph.eq(absolute(b), float("inf")), graph.lt(absolute(a), float("inf")))
        return graph.where(far, a, rest)
    r = graph.mod(a, b)  # the sign of b
    wrong_sign = graph.both(graph.ne(r, 0), graph.ne(graph.lt(r, 0), graph.lt(a, 0)))
    return graph.where(wrong_sign, graph.sub(r, b), r)


def _unless_nan(a: Node, b: Node, both: Node) -> Node:
    if not a.dtype.is_float:
        return both
    return graph.where(graph.ne(a, a), b, graph.where(graph.ne(b, b), a, both))


def _bits(who: str, *values: Any) -> list[Node]:
    nodes = common(who, values)
    if nodes[0].dtype.is_float:
        raise DTypeError(f"{who}: defined for integers and bool, got {nodes[0].dtype.name}")
    return nodes


def _numbers(*nodes: Node) -> list[Node]:
    """Bool as int64."""
    return [graph.cast(n, dt.int64) if n.dtype is dt.bool_ else n for n in nodes]


def _and(a: Node, b: Node) -> Node:
    return make(ops.AND, (a, b))


def _xor(a: Node, b: Node) -> Node:
    return make(ops.XOR, (a, b))


def bit(n: Node, k: int) -> Node:
    """Whether bit k of n is set."""
    if 1 << k > n.dtype.max:
        return graph.like(graph.cast(n, dt.bool_), False)
    return graph.ne(_and(n, graph.like(n, 1 << k)), 0)


# --- rounding, on nodes ---------------------------------------------------------------------------


def trunc(x: Node) -> Node:
    """Towards zero. Floats from 2**mantissa on are whole already."""
    if not x.dtype.is_float:
        return x
    wide = graph.stop(widened(x))
    whole: DType = dt.int32 if wide.dtype is dt.float32 else dt.int64
    small = graph.lt(absolute(wide), float(1 << wide.dtype.mantissa))
    rounded = graph.cast(graph.cast(wide, whole), wide.dtype)
    return graph.cast(graph.where(small, rounded, wide), x.dtype)


def floor(x: Node) -> Node:
    """Towards minus infinity."""
    if not x.dtype.is_float:
        return x
    t = trunc(x)
    return graph.sub(t, graph.cast(graph.lt(x, t), x.dtype))


def absolute(x: Node) -> Node:
    """|x|; its derivative at 0 is 0."""
    if x.dtype.kind in "bu":
        return x
    return graph.maximum(graph.neg(x), x)


def sign_bit(x: Node) -> Node:
    """Whether the sign bit of a float is set: true of -0.0 too."""
    whole = {8: dt.int8, 16: dt.int16, 32: dt.int32, 64: dt.int64}[x.dtype.bits]
    return graph.lt(graph.bitcast(x, whole), 0)
