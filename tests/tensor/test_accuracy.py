"""The table of docs/accuracy.md, asserted: the greatest error of each function at samples."""
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

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
