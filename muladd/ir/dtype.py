"""Element types: what one number is. Promotion and NumPy's names for them live here too."""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from muladd.errors import DTypeError


@dataclass(frozen=True, eq=False, slots=True)
class DType:
    """One element type. There is exactly one object per type, so `is` compares them.

    kind is 'b' (bool), 'i' (signed), 'u' (unsigned) or 'f' (float); bits is the storage width.
    For floats, exponent and mantissa are field widths in bits.
    """

    name: str
    kind: str
    bits: int
    rank: int  # the order of promotion inside a kind
    exponent: int = 0
    mantissa: int = 0

    @property
    def itemsize(self) -> int:
        """Bytes per element in memory."""
        return self.bits // 8

    @property
    def is_float(self) -> bool:
        return self.kind == "f"

    @property
    def is_int(self) -> bool:
        """Signed or unsigned integer (bool is neither)."""
        return self.kind in "iu"

    @property
    def min(self) -> int | float | bool:
        """The smallest value (for floats: minus infinity, or the lowest finite one for float8)."""
        return _limits(self)[0]

    @property
    def max(self) -> int | float | bool:
        return _limits(self)[1]

    @property
    def numpy(self) -> np.dtype:
        """The NumPy type that holds this type's *values*.

        NumPy has no bfloat16 or float8; their values travel as float32, which holds them exactly.
        """
        return _NUMPY[self.name]

    @property
    def storage(self) -> np.dtype:
        """The NumPy type that holds this type's *bytes*: bfloat16 is uint16, float8 is uint8."""
        if self.name in ("bfloat16", "float8_e4m3", "float8_e5m2"):
            return np.dtype(f"uint{self.bits}")
        return _NUMPY[self.name]

    def __repr__(self) -> str:
        return f"muladd.{self.name}"

    def __reduce__(self) -> tuple:
        return (dtype, (self.name,))


bool_ = DType("bool", "b", 8, 0)
int8 = DType("int8", "i", 8, 1)
int16 = DType("int16", "i", 16, 2)
int32 = DType("int32", "i", 32, 3)
int64 = DType("int64", "i", 64, 4)
uint8 = DType("uint8", "u", 8, 1)
uint16 = DType("uint16", "u", 16, 2)
uint32 = DType("uint32", "u", 32, 3)
uint64 = DType("uint64", "u", 64, 4)
float8_e4m3 = DType("float8_e4m3", "f", 8, 1, 4, 3)
float8_e5m2 = DType("float8_e5m2", "f", 8, 1, 5, 2)
float16 = DType("float16", "f", 16, 2, 5, 10)
bfloat16 = DType("bfloat16", "f", 16, 2, 8, 7)
float32 = DType("float32", "f", 32, 3, 8, 23)
float64 = DType("float64", "f", 64, 4, 11, 52)

ALL: tuple[DType, ...] = (
    bool_, int8, int16, int32, int64, uint8, uint16, uint32, uint64,
    float8_e4m3, float8_e5m2, float16, bfloat16, float32, float64,
)  # fmt: skip
INDEX = int64  # the type of sizes, indices and symbolic variables

_BY_NAME = {d.name: d for d in ALL}
_ALIASES = {"half": float16, "float": float32, "double": float64, "long": int64, "int": int32}
_NUMPY = {
    d.name: np.dtype("float32" if d.name[:6] in ("bfloat", "float8") else d.name) for d in ALL
}


def _limits(d: DType) -> tuple:
    if d is bool_:
        return (False, True)
    if d.is_int:
        signed = d.kind == "i"
        return (-(1 << (d.bits - 1)), (1 << (d.bits - 1)) - 1) if signed else (0, (1 << d.bits) - 1)
    if d is float8_e4m3:
        return (-448.0, 448.0)  # e4m3 has no infinity
    return (float("-inf"), float("inf"))


def dtype(given: object) -> DType:
    """The DType meant by a DType, a name ('float32'), a Python type or a NumPy dtype.

    Raises DTypeError when there is none.
    """
    if isinstance(given, DType):
        return given
    if given is bool:
        return bool_
    if given is int:
        return int64
    if given is float:
        return float32
    if isinstance(given, str) and (given in _BY_NAME or given in _ALIASES):
        return _BY_NAME.get(given) or _ALIASES[given]
    name = getattr(given, "name", None) or str(given).removeprefix("torch.")
    try:
        name = name if name in _BY_NAME else np.dtype(given).name  # type: ignore[call-overload]
    except TypeError:
        pass
    if name in _BY_NAME:
        return _BY_NAME[name]
    names = ", ".join(_BY_NAME)
    raise DTypeError(f"dtype: {given!r} is not an element type; expected one of {names}")


def promote(a: DType, b: DType) -> DType:
    """The type of `a op b` for two tensors; Python scalars are weak and never come here.

    bool < unsigned < signed < float. Two of one kind give the wider; unsigned with signed gives
    the narrowest signed type that holds both (uint64 with any signed gives float32, as in JAX's
    and torch's spirit of never losing sign); an integer with a float gives the float; float16
    with bfloat16 gives float32, the two float8 give float16.
    """
    if a is b:
        return a
    order = "buif"
    if order.index(a.kind) > order.index(b.kind):
        a, b = b, a
    if a.kind == b.kind:
        if a.rank == b.rank:
            return float32 if a.bits == 16 else float16 if a.bits == 8 else a
        return a if a.rank > b.rank else b
    if a.kind == "b" or b.kind == "f":
        return b
    if b.bits > a.bits:  # a is unsigned, b signed
        return b
    return {8: int16, 16: int32, 32: int64, 64: float32}[a.bits]


def round_to(values: np.ndarray, d: DType) -> np.ndarray:
    """values (float32 or float64) rounded to the nearest value of a bfloat16 or float8 type."""
    return decode(encode(values, d), d)


def encode(values: np.ndarray, d: DType) -> np.ndarray:
    """An array of values as an array of d's storage type (round to nearest, ties to even)."""
    if d.storage is d.numpy or d.storage == d.numpy:
        return values.astype(d.numpy, copy=False)
    if d is bfloat16:
        return _round_bfloat16(np.asarray(values, dtype=np.float32))
    return _round_float8(np.asarray(values, dtype=np.float32), d)


def decode(stored: np.ndarray, d: DType) -> np.ndarray:
    """The inverse of `encode`: storage to values."""
    if d.storage == d.numpy:
        return stored
    if d is bfloat16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return _float8_table(d)[stored]


def _round_bfloat16(x: np.ndarray) -> np.ndarray:
    bits = np.ascontiguousarray(x).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    quiet_nan = ((bits >> 16) | 0x40).astype(np.uint16)
    return np.where(np.isnan(x), quiet_nan, rounded).reshape(x.shape)


_FLOAT8: dict[str, np.ndarray] = {}


def _float8_table(d: DType) -> np.ndarray:
    """All 256 values of a float8 type (OCP 8-bit floating point specification, revision 1.0)."""
    if d.name not in _FLOAT8:
        bias = (1 << (d.exponent - 1)) - 1
        table = np.empty(256, np.float32)
        for code in range(256):
            sign = -1.0 if code & 0x80 else 1.0
            e = (code & 0x7F) >> d.mantissa
            m = code & ((1 << d.mantissa) - 1)
            if d is float8_e5m2 and e == 31:
                table[code] = sign * np.inf if m == 0 else np.nan
            elif d is float8_e4m3 and code & 0x7F == 0x7F:
                table[code] = np.nan
            elif e == 0:
                table[code] = sign * m * 2.0 ** (1 - bias - d.mantissa)
            else:
                table[code] = sign * (1 + m / (1 << d.mantissa)) * 2.0 ** (e - bias)
        _FLOAT8[d.name] = table
    return _FLOAT8[d.name]


def _round_float8(x: np.ndarray, d: DType) -> np.ndarray:
    """Nearest-even through the sorted table; beyond the range e5m2 gives infinity, e4m3 NaN."""
    table = _float8_table(d)[:128]
    finite = table[np.isfinite(table)].astype(np.float64)
    magnitude = np.abs(np.nan_to_num(x, nan=0.0, posinf=np.inf, neginf=np.inf)).astype(np.float64)
    above = np.clip(np.searchsorted(finite, magnitude), 1, len(finite) - 1)
    below = above - 1
    gap_low, gap_high = magnitude - finite[below], finite[above] - magnitude
    pick_high = (gap_high < gap_low) | ((gap_high == gap_low) & (above % 2 == 0))
    code = np.where(pick_high, above, below)
    limit = finite[-1] + (finite[-1] - finite[-2]) / 2  # halfway to the next: a tie goes to even
    if d is float8_e5m2:
        code = np.where(magnitude >= limit, 0x7C, code)
    else:
        code = np.where(magnitude > limit, 0x7F, code)
    code = np.where(np.isnan(x), 0x7F, code)
    return (code | np.where(np.signbit(x), 0x80, 0)).astype(np.uint8)
