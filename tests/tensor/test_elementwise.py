"""Arithmetic, mathematics, comparisons, bits: each against torch, forward and gradient."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import compare

from muladd import Tensor

R = np.random.default_rng(11)
MIXED = np.concatenate([R.normal(0, 2, 40), [0.25, -0.25, 1.5, -2.5, 3.0]]).astype(np.float32)
POSITIVE = np.abs(MIXED) + np.float32(0.1)
UNIT = (R.uniform(-0.95, 0.95, 30)).astype(np.float32)
ABOVE = (R.uniform(1.05, 9, 30)).astype(np.float32)

UNARY = {
    "exp": MIXED, "exp2": MIXED, "expm1": MIXED * np.float32(0.3), "log": POSITIVE,
    "log2": POSITIVE, "log10": POSITIVE, "log1p": POSITIVE, "sqrt": POSITIVE, "rsqrt": POSITIVE,
    "square": MIXED, "reciprocal": POSITIVE, "sin": MIXED, "cos": MIXED, "tan": UNIT,
    "asin": UNIT, "acos": UNIT, "atan": MIXED * 3, "sinh": MIXED, "cosh": MIXED, "tanh": MIXED,
    "asinh": MIXED, "acosh": ABOVE, "atanh": UNIT, "erf": MIXED, "erfc": MIXED, "erfinv": UNIT,
    "lgamma": POSITIVE, "digamma": ABOVE, "floor": MIXED, "ceil": MIXED, "trunc": MIXED,
    "round": MIXED, "frac": MIXED, "abs": MIXED, "neg": MIXED, "sign": MIXED, "sinc": MIXED,
    "deg2rad": MIXED, "rad2deg": MIXED, "sigmoid": MIXED, "relu": MIXED, "isnan": MIXED,
    "isinf": MIXED, "isfinite": MIXED, "signbit": MIXED, "logical_not": MIXED, "logit":
    np.abs(UNIT), "nan_to_num": MIXED, "positive": MIXED, "softmax": MIXED,
}  # fmt: skip
UNARY.pop("positive")


@pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])
@pytest.mark.parametrize("name", [n for n in UNARY if n != "softmax"])
def test_unary(name, double, device):
    compare(lambda x: getattr(x, name)(), UNARY[name], double=double,
            rtol=2e-5 if not double else 1e-10, atol=2e-6 if not double else 1e-11)  # fmt: skip


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b,
    "fmod": lambda a, b: a.fmod(b),
    "maximum": lambda a, b: a.maximum(b),
    "minimum": lambda a, b: a.minimum(b),
    "fmax": lambda a, b: a.fmax(b),
    "atan2": lambda a, b: a.atan2(b),
    "hypot": lambda a, b: a.hypot(b),
    "copysign": lambda a, b: a.copysign(b),
    "logaddexp": lambda a, b: a.logaddexp(b),
    "lerp": lambda a, b: a.lerp(b, 0.3),
    "addcmul": lambda a, b: a.addcmul(a, b, value=0.5),
    "addcdiv": lambda a, b: a.addcdiv(a, b, value=0.5),
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "pow": lambda a, b: a.abs() ** b,
    "xlogy": lambda a, b: a.xlogy(b.abs()),
    "isclose": lambda a, b: a.isclose(b),
}


@pytest.mark.parametrize("shapes", [((3, 4), (3, 4)), ((3, 4), (4,)), ((2, 1, 4), (3, 1))],
                         ids=["same", "row", "both"])  # fmt: skip
@pytest.mark.parametrize("name", BINARY)
def test_binary(name, shapes, device, rng):
    a, b = (rng.normal(0, 2, s).astype(np.float32) for s in shapes)
    compare(BINARY[name], a, b, rtol=3e-5, gradient=name != "floordiv")


SCALAR = {
    "x+2": lambda x: x + 2, "2-x": lambda x: 2 - x, "x*1.5": lambda x: x * 1.5,
    "2/x": lambda x: 2 / x, "x/3": lambda x: x / 3, "x//2": lambda x: x // 2,
    "x%3": lambda x: x % 3, "x%-3": lambda x: x % -3, "x**2": lambda x: x**2,
    "x**3": lambda x: x**3, "x**-2": lambda x: x**-2, "x**7": lambda x: x**7,
    "2**x": lambda x: 2**x, "3**x": lambda x: 3**x, "clamp": lambda x: x.clamp(-1, 1),
    "clamp_min": lambda x: x.clamp(min=0.5), "x>0": lambda x: x > 0, "-x": lambda x: -x,
    "fmod": lambda x: x.fmod(1.5), "rsub": lambda x: 1 - x, "abs": lambda x: abs(x),
}  # fmt: skip


@pytest.mark.parametrize("name", SCALAR)
def test_scalars_are_weak(name, device):
    compare(SCALAR[name], MIXED, rtol=3e-5, gradient=name != "x//2")
    half = Tensor(MIXED).half()
    assert SCALAR[name](half).dtype.name in ("float16", "bool")


def test_powers(device, rng):
    x = rng.uniform(0.1, 3, 12).astype(np.float32)
    for p in (0.5, 1.5, -0.5, 2.5, 0, 1):
        compare(lambda t, p=p: t**p, x)
    base = np.array([-2.0, -1.5, 0.0, 2.0, -3.0, 0.0], np.float32)
    power = np.array([3.0, 2.0, 2.0, -1.0, 0.5, -1.0], np.float32)
    compare(lambda a, b: a**b, base, power, gradient=False)


INTEGER = {
    "add": lambda a, b: a + b, "mul": lambda a, b: a * b, "floordiv": lambda a, b: a // b,
    "mod": lambda a, b: a % b, "fmod": lambda a, b: a.fmod(b), "and": lambda a, b: a & b,
    "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b, "not": lambda a, b: ~a,
    "shl": lambda a, b: a << (b.abs() % 5), "shr": lambda a, b: a >> (b.abs() % 5),
    "truediv": lambda a, b: a / b, "div_trunc": lambda a, b: a.div(b, rounding_mode="trunc"),
    "max": lambda a, b: a.maximum(b), "min": lambda a, b: a.minimum(b),
    "pow": lambda a, b: a ** (b.abs() % 4), "lt": lambda a, b: a < b, "neg": lambda a, b: -a,
    "sign": lambda a, b: a.sign(), "sum": lambda a, b: a.sum(), "prod": lambda a, b: a[:4].prod(),
    "shr3": lambda a, b: a >> 3, "shl3": lambda a, b: a << 3,
}  # fmt: skip


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.int8])
@pytest.mark.parametrize("name", INTEGER)
def test_integers(name, dtype, device, rng):
    a = rng.integers(-50, 50, 24).astype(dtype)
    b = rng.integers(1, 9, 24).astype(dtype) * rng.choice([-1, 1], 24).astype(dtype)
    compare(INTEGER[name], a, b)


@pytest.mark.parametrize("name", ["and", "or", "xor", "not"])
def test_bool(name, device, rng):
    a, b = (rng.integers(0, 2, 16).astype(bool) for _ in range(2))
    compare(INTEGER[name], a, b)


def test_nan_and_infinity_propagate(device):
    x = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0], np.float32)
    for f in (
        lambda t: t.relu(), lambda t: t.exp(), lambda t: t.isnan(), lambda t: t.isinf(),
        lambda t: t.nan_to_num(), lambda t: t.maximum(t.flip(0)), lambda t: t.minimum(t.flip(0)),
        lambda t: t.clamp(-1, 1), lambda t: t.signbit(), lambda t: t.floor(), lambda t: t.tanh(),
        lambda t: t.sigmoid(), lambda t: t.erf(), lambda t: t.atan(), lambda t: t.sign(),
        lambda t: t.expm1(), lambda t: t.log1p(), lambda t: t.round(), lambda t: t.sqrt(),
    ):  # fmt: skip
        compare(f, x, gradient=False)


@pytest.mark.parametrize("source", ["float32", "float64", "int32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16", "int32", "int64", "bool"])
def test_casts(source, target, device):
    x = np.array([0, 1, 2, 3, 100, 7]).astype(source)
    compare(lambda t: t.to(getattr(torch, target)) if isinstance(t, torch.Tensor)
            else t.cast(target), x, gradient=False)  # fmt: skip


def test_promotion(device):
    a, b = Tensor([1], dtype="int32"), Tensor([1.0], dtype="float16")
    assert (a + b).dtype.name == "float16"
    assert (a + 1.5).dtype.name == "float32"
    assert (a + True).dtype.name == "int32"
    assert (Tensor([True]) + 1).dtype.name == "int64"
    assert (a / a).dtype.name == "float32"
    assert (b + Tensor([1.0], dtype="bfloat16")).dtype.name == "float32"
    assert (Tensor([1], dtype="uint8") + Tensor([1], dtype="int8")).dtype.name == "int16"


SMOOTH = {
    "tanh": torch.tanh, "sigmoid": torch.sigmoid, "silu": F.silu, "softplus": F.softplus,
    "logsigmoid": F.logsigmoid, "gelu": F.gelu, "mish": F.mish, "erf": torch.erf,
    "sinh": torch.sinh, "expm1": torch.expm1, "log1p": torch.log1p, "atan": torch.atan,
    "asinh": torch.asinh, "hypot": lambda t: t.hypot(t + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_all_orders_where_two_forms_meet(name):
    """At 0 most of these change from one expression to another: four derivatives are one function's
    still."""
    where = np.array([0.0, 0.4, -0.6])
    found = []
    ours = SMOOTH[name] if name == "hypot" else lambda t: getattr(t, name)()
    for kind, function in ((Tensor, ours), (torch.tensor, SMOOTH[name])):
        x = kind(where, requires_grad=True)
        value, orders = function(x), []
        for _ in range(4):
            x.grad = None
            value.sum().backward(create_graph=True)
            value = x.grad
            orders.append(value.detach().numpy())
        found.append(orders)
    np.testing.assert_allclose(*found, rtol=1e-9, atol=1e-9)
