"""The table of docs/accuracy.md, asserted: the greatest error of each function at samples."""
from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest

from muladd import config
from muladd.tensor import Tensor

mpmath = pytest.importorskip("mpmath")
mp = mpmath.mp
PAGE = Path(__file__).parent.parent.parent / "docs/accuracy.md"
ROW = re.compile(r"^\| `(\w+)` \| (\S+) to (\S+) \| (\S+) \| (\S+) \|", re.M)
TABLE = [(m[1], (float(m[2]), float(m[3])), (float(m[4]), float(m[5])))
         for m in ROW.finditer(PAGE.read_text())]  # fmt: skip


def gelu_tanh(x):
    return x / (1 + mp.exp(-2 * mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)))


REFERENCES = {
    "exp2": lambda x: mp.mpf(2) ** x,
    "log2": lambda x: mp.log(x, 2),
    "log10": mp.log10,
    "rsqrt": lambda x: 1 / mp.sqrt(x),
    "cbrt": lambda x: mp.sign(x) * mp.cbrt(abs(x)),
    "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
    "silu": lambda x: x / (1 + mp.exp(-x)),
    "softplus": lambda x: mp.log1p(mp.exp(x)),
    "gelu": lambda x: x * mp.erfc(-x / mp.sqrt(2)) / 2,
    "gelu_tanh": gelu_tanh,
    "lgamma": lambda x: mp.re(mp.loggamma(x)),
}
FUNCTIONS = {
    "gelu_tanh": lambda x: x.gelu("tanh"),
    "softplus": lambda x: x.softplus(1.0, 1000.0),
}


def samples(low: float, high: float, dtype: type, count: int, seed: int = 0) -> np.ndarray:
    """Half evenly spread, half over all sizes down to 2^-30, with every sign the range has."""
    rng = np.random.default_rng(seed)
    sizes = 2.0 ** rng.uniform(-30, np.log2(max(-low, high)), count) * rng.choice([-1, 1], count)
    x = np.concatenate([rng.uniform(low, high, count), sizes]).astype(dtype)
    return x[(x >= low) & (x <= high)]


def worst(name: str, low: float, high: float, dtype: type, count: int, seed: int = 0) -> float:
    """The greatest distance to the exact value, in units in the last place of the exact value."""
    x = samples(low, high, dtype, count, seed)
    got = FUNCTIONS.get(name, lambda t: getattr(t, name)())(Tensor(x)).numpy()
    exact = REFERENCES.get(name) or getattr(mp, name)
    info = np.finfo(dtype)
    off = []
    with mpmath.workprec(120):
        for value, found in zip(x.tolist(), got.tolist()):
            right = exact(mp.mpf(value))
            exponent = max(mp.frexp(right)[1] - 1 if right else info.minexp, info.minexp)
            off.append(float(abs(found - right) / mp.mpf(2) ** (exponent - info.nmant)))
    return float(np.max(off))  # NaN where any is


@pytest.mark.parametrize("name, limits, bounds", TABLE, ids=[row[0] for row in TABLE])
def test_the_greatest_error_is_as_documented(name, limits, bounds):
    for dtype, bound in zip((np.float32, np.float64), bounds):
        assert worst(name, *limits, dtype, 1000) <= bound, dtype.__name__


def logistic(x):
    return 1 / (1 + np.exp(-x))


# in float64: float32 arguments down to where results are 0
WIDE = {
    "exp": (-103.9, 88.7, np.exp),
    "tanh": (-20, 20, np.tanh),
    "log": (1e-38, 100, np.log),
    "sigmoid": (-103.9, 90, logistic),
    "silu": (-108, 90, lambda x: x * logistic(x)),
    "gelu": (-14.6, 14, lambda x: x * np.vectorize(math.erfc)(-x / math.sqrt(2)) / 2),
    "gelu_tanh": (-10.6, 14,
                  lambda x: x * logistic(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3))),
}  # fmt: skip


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("name", WIDE)
def test_float32_is_within_two_units_over_many_points(name, profile):
    low, high, exact = WIDE[name]
    x = samples(low, high, np.float32, 100_000, seed=1)
    with config.context(PROFILE=profile):
        got = FUNCTIONS.get(name, lambda t: getattr(t, name)())(Tensor(x)).numpy()
    right = exact(x.astype(np.float64))
    unit = np.spacing(np.abs(right).astype(np.float32)).astype(np.float64)
    bound = next(bounds[0] for row, _, bounds in TABLE if row == name)
    assert bound <= 2
    assert np.max(np.abs(got - right) / unit) <= bound
