"""Element types: rounding against torch, promotion as a table, names."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from muladd.errors import DTypeError
from muladd.ir import dtype as dt

TORCH = {
    dt.bfloat16: torch.bfloat16,
    dt.float8_e5m2: torch.float8_e5m2,
    dt.float8_e4m3: torch.float8_e4m3fn,
    dt.float16: torch.float16,
}


def many_floats() -> np.ndarray:
    bits = np.random.default_rng(0).integers(0, 2**32, 200_000, dtype=np.uint32)
    near = np.arange(-500, 500, 0.25, dtype=np.float32)
    small = np.arange(0, 2**14, dtype=np.float32) / 2**17
    special = np.array([0.0, -0.0, np.inf, -np.inf], np.float32)
    x = np.concatenate([bits.view(np.float32), near, small, special])
    return x[~np.isnan(x)]


@pytest.mark.parametrize("d", TORCH, ids=lambda d: d.name)
def test_rounding_agrees_with_torch(d):
    x = many_floats()
    if d is dt.float8_e4m3:
        x = x[np.abs(x) <= 464]  # beyond its range torch saturates, and we give NaN
    with np.errstate(over="ignore"):
        stored = dt.encode(x, d)
    wanted = torch.from_numpy(x).to(TORCH[d])
    bits = torch.uint8 if d.bits == 8 else torch.uint16
    assert np.array_equal(stored.view(f"uint{d.bits}"), wanted.view(bits).numpy())
    assert np.array_equal(dt.decode(stored, d).astype(np.float32), wanted.float().numpy())


def test_beyond_its_range_float8_e4m3_is_nan_and_float8_e5m2_is_infinite():
    x = np.array([464, 465, np.inf, -1e9], np.float32)
    assert np.array_equal(dt.round_to(x, dt.float8_e4m3), [448, np.nan, np.nan, np.nan],
                          equal_nan=True)  # fmt: skip
    y = np.array([57344, 61439, 61440, -np.inf], np.float32)
    assert np.array_equal(dt.round_to(y, dt.float8_e5m2), [57344, 57344, np.inf, -np.inf])


@pytest.mark.parametrize("d", (dt.bfloat16, dt.float8_e4m3, dt.float8_e5m2), ids=lambda d: d.name)
def test_every_value_survives_encoding(d):
    codes = np.arange(1 << d.bits).astype(d.storage)
    values = dt.decode(codes, d)
    known = ~np.isnan(values)
    assert np.array_equal(dt.encode(values, d)[known], codes[known])
    assert np.isnan(dt.round_to(values[~known], d)).all()


def test_promotion_commutes_and_never_loses_a_kind():
    for a, b in itertools.product(dt.ALL, dt.ALL):
        c = dt.promote(a, b)
        assert c is dt.promote(b, a)
        assert "buif".index(c.kind) >= max("buif".index(a.kind), "buif".index(b.kind))
        assert dt.promote(a, a) is a


@pytest.mark.parametrize(("a", "b", "wanted"), [
    (dt.uint8, dt.int8, dt.int16), (dt.uint32, dt.int8, dt.int64), (dt.uint64, dt.int8, dt.float32),
    (dt.uint8, dt.int64, dt.int64), (dt.float16, dt.bfloat16, dt.float32),
    (dt.float8_e4m3, dt.float8_e5m2, dt.float16), (dt.int64, dt.float16, dt.float16),
    (dt.bool_, dt.uint8, dt.uint8),
])  # fmt: skip
def test_promotion(a, b, wanted):
    assert dt.promote(a, b) is wanted


def test_limits_are_those_of_numpy():
    for d in dt.ALL:
        if d.is_int:
            info = np.iinfo(d.numpy)
            assert (d.min, d.max) == (info.min, info.max)


def test_names_are_understood():
    assert dt.dtype("half") is dt.float16
    assert dt.dtype(np.float32) is dt.float32
    assert dt.dtype(np.dtype("uint16")) is dt.uint16
    assert dt.dtype(int) is dt.int64
    assert dt.dtype(torch.bfloat16) is dt.bfloat16
    with pytest.raises(DTypeError, match="complex64"):
        dt.dtype("complex64")
