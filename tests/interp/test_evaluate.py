"""Every operation of the interpreter against torch or NumPy, and the rules of running a graph."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from muladd.errors import GraphError
from muladd.interp import evaluate
from muladd.ir import Body, CallArg, ScanArg, Storage, const, iota, make, ops, param, var
from muladd.ir import dtype as dt

FLOATS = [dt.float16, dt.bfloat16, dt.float32, dt.float64]
INTS = [d for d in dt.ALL if d.is_int]


def array(values, d):
    """An INPUT whose storage holds `values`."""
    x = np.asarray(values)
    x = dt.round_to(x.astype(np.float32), d) if d is dt.bfloat16 else x.astype(d.numpy)
    return make(ops.INPUT, (), Storage(x.shape, d, buffer=x))


def run(node, **options):
    return evaluate([node], **options)[0]


def torch_of(node):
    x = torch.from_numpy(np.array(node.arg.buffer))
    return x.to(torch.bfloat16) if node.dtype is dt.bfloat16 else x


def numpy_of(x):
    return (x.float() if x.dtype is torch.bfloat16 else x).numpy()


def floats(d, shape=(5, 7), low=-3.0, high=3.0):
    return array(np.random.default_rng(1).uniform(low, high, shape), d)


def ints(d, shape=(5, 7)):
    rng = np.random.default_rng(2)
    x = rng.integers(int(d.min), int(d.max), shape, d.numpy, endpoint=True)
    x.flat[:4] = [0, 1, d.min, d.max]
    return array(x, d)


# --- elementwise -------------------------------------------------------------------------------


@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize(("op", "name"), [
    (ops.ADD, "add"), (ops.MUL, "mul"), (ops.DIV, "div"), (ops.MAX, "maximum"), (ops.LT, "lt"),
    (ops.NE, "ne"),
])  # fmt: skip
def test_binary_on_floats(op, name, d):
    a, b = floats(d), floats(d, low=-1, high=9)
    wanted = getattr(torch, name)(torch_of(a), torch_of(b))
    assert np.array_equal(run(make(op, (a, b))), numpy_of(wanted))


@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize(("op", "name"), [
    (ops.SQRT, "sqrt"), (ops.EXP2, "exp2"), (ops.LOG2, "log2"), (ops.SIN, "sin"),
])  # fmt: skip
def test_unary_on_floats(op, name, d):
    x = floats(d, low=0.1)
    wanted = numpy_of(getattr(torch, name)(torch_of(x)))
    np.testing.assert_allclose(run(make(op, (x,))), wanted, rtol=2 * 2.0**-d.mantissa)


@pytest.mark.parametrize("d", INTS, ids=lambda d: d.name)
def test_integers_wrap_and_divide_downwards(d):
    a, b = ints(d), array(np.roll(ints(d).arg.buffer, 3), d)
    x, y = a.arg.buffer, b.arg.buffer
    modulus = 1 << d.bits

    def wrapped(f):
        exact = [f(int(i), int(j)) % modulus for i, j in zip(x.flat, y.flat)]
        signed = [v - modulus if d.kind == "i" and v >= modulus // 2 else v for v in exact]
        return np.array(signed, d.numpy).reshape(x.shape)

    for op, f in (
        (ops.ADD, lambda i, j: i + j), (ops.MUL, lambda i, j: i * j),
        (ops.DIV, lambda i, j: i // j if j else 0), (ops.MOD, lambda i, j: i % j if j else i),
        (ops.AND, lambda i, j: i & j), (ops.XOR, lambda i, j: i ^ j), (ops.MAX, max),
    ):  # fmt: skip
        assert np.array_equal(run(make(op, (a, b))), wrapped(f)), op
    assert np.array_equal(run(make(ops.LT, (a, b))), x < y)
    assert np.array_equal(run(make(ops.SUM, (a,), (0,))), x.sum(0, dtype=d.numpy))
    assert np.array_equal(run(make(ops.AMAX, (a,), (1,))), x.max(1))


def test_bool_operations():
    a, b = array([0, 0, 1, 1], dt.bool_), array([0, 1, 0, 1], dt.bool_)
    wanted = {ops.ADD: [0, 1, 1, 1], ops.MAX: [0, 1, 1, 1], ops.MUL: [0, 0, 0, 1],
              ops.AND: [0, 0, 0, 1], ops.NE: [0, 1, 1, 0], ops.XOR: [0, 1, 1, 0],
              ops.LT: [0, 1, 0, 0]}  # fmt: skip
    for op, result in wanted.items():
        assert run(make(op, (a, b))).tolist() == list(map(bool, result)), op
    assert run(make(ops.AMAX, (a,), (0,))) == np.True_


def test_max_settles_nan_and_signed_zero():
    nan = float("nan")
    a, b = array([nan, 1, -0.0, 0.0], dt.float32), array([1, nan, 0.0, -0.0], dt.float32)
    result = run(make(ops.MAX, (a, b)))
    assert np.isnan(result[:2]).all()
    assert np.signbit(result[2:]).tolist() == [False, True]  # b where neither is greater


def test_where():
    c, a, b = array([1, 0, 1], dt.bool_), array([1, 2, 3], dt.int8), array([7, 8, 9], dt.int8)
    assert run(make(ops.WHERE, (c, a, b))).tolist() == [1, 8, 3]


# --- casts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", INTS, ids=lambda d: d.name)
@pytest.mark.parametrize("source", FLOATS, ids=lambda d: d.name)
def test_floats_to_integers_truncate_and_saturate(source, target):
    edges = [0.0, -0.0, 0.9, -0.9, 1.5, -1.5, 127.5, 128, -129, 255, 256, 65535, 65536, 2.0**31,
             2.0**31 - 1, 2.0**32, 2.0**63, -(2.0**63), 2.0**64, 1e30, -1e30, np.inf, -np.inf,
             np.nan]  # fmt: skip
    with np.errstate(over="ignore"):
        x = array(edges, source)
    wanted = []
    for v in x.arg.buffer.astype(np.float64).tolist():
        if v != v:
            wanted.append(0)
        elif v in (np.inf, -np.inf):
            wanted.append(int(target.max if v > 0 else target.min))
        else:
            wanted.append(min(max(int(v), int(target.min)), int(target.max)))
    assert run(make(ops.CAST, (x,), None, target)).tolist() == wanted


@pytest.mark.parametrize("target", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("source", INTS, ids=lambda d: d.name)
def test_integers_to_floats_round_once(source, target):
    rng = np.random.default_rng(3)
    wide = rng.integers(int(source.min), int(source.max), 3000, source.numpy, endpoint=True)
    small = wide >> rng.integers(0, source.bits, 3000).astype(source.numpy)
    x = np.concatenate([wide, small, np.array([0, 1, source.min, source.max], source.numpy)])
    found = run(make(ops.CAST, (array(x, source),), None, target))
    assert found.astype(np.float64).tolist() == [nearest(int(v), target) for v in x]


def nearest(v: int, d: dt.DType) -> float:
    """An integer rounded to nearest, ties to even, with integers alone."""
    magnitude, bits = abs(v), d.mantissa + 1
    shift = max(magnitude.bit_length() - bits, 0)
    low, rest = magnitude >> shift, magnitude & ((1 << shift) - 1)
    half = 1 << shift >> 1
    if shift and (rest > half or (rest == half and low & 1)):
        low += 1
    largest = (2 - 2.0**-d.mantissa) * 2.0 ** ((1 << (d.exponent - 1)) - 1)
    result = float(low << shift)
    return (np.inf if result > largest else result) * (-1 if v < 0 else 1)


def test_float64_to_16_bits_rounds_once():
    """1 + 2^-8 + 2^-40 lies above the tie of bfloat16; by way of float32 it would be the tie."""
    x = array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 2.0**-11 + 2.0**-50], dt.float64)
    assert run(make(ops.CAST, (x,), None, dt.bfloat16)).tolist() == [1 + 2.0**-7, 1.0, 1.0]
    assert run(make(ops.CAST, (x,), None, dt.float16))[2] == 1 + 2.0**-10


def test_other_casts():
    x = array([0.0, -0.0, 0.3, np.nan], dt.float32)
    assert run(make(ops.CAST, (x,), None, dt.bool_)).tolist() == [False, False, True, True]
    y = array([-1, 300, 65536 + 5], dt.int32)
    assert run(make(ops.CAST, (y,), None, dt.uint8)).tolist() == [255, 44, 5]
    b = array([True, False], dt.bool_)
    for d in dt.ALL:
        assert run(make(ops.CAST, (b,), None, d)).tolist() == [1, 0]


def test_bitcast():
    x = array([1.0, -2.0], dt.float32)
    assert run(make(ops.BITCAST, (x,), None, dt.uint32)).tolist() == [0x3F800000, 0xC0000000]
    y = array([1.0, -2.0], dt.bfloat16)
    back = make(ops.BITCAST, (y,), None, dt.uint16)
    assert run(back).tolist() == [0x3F80, 0xC000]
    assert run(make(ops.BITCAST, (back,), None, dt.bfloat16)).tolist() == [1.0, -2.0]
    z = array([0x38], dt.uint8)
    assert run(make(ops.BITCAST, (z,), None, dt.float8_e4m3)).tolist() == [1.0]


def test_results_are_rounded_after_each_operation():
    one, tiny = array([1.0], dt.bfloat16), array([2.0**-9], dt.bfloat16)
    total = make(ops.ADD, (make(ops.ADD, (one, tiny)), tiny))
    assert run(total).tolist() == [1.0]
    eight = make(ops.CAST, (array([1.0, 0.06], dt.float32),), None, dt.float8_e4m3)
    assert run(make(ops.ADD, (eight, eight))).tolist() == [2.0, 0.1171875]


# --- reductions and movement ---------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("d", FLOATS, ids=lambda d: d.name)
@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 2), (0, 1, 2)])
def test_reductions(axes, d, profile):
    x = floats(d, (4, 1, 70))
    total = x.arg.buffer.sum(axis=axes, dtype=np.float64)
    found = run(make(ops.SUM, (x,), axes), profile=profile)
    # rounded once: half an ulp of the type, and a little for float32's own order
    scale = np.abs(x.arg.buffer).sum(axis=axes)
    error = np.abs(found - total)
    assert (error <= 0.51 * 2.0**-d.mantissa * np.abs(total) + 1e-5 * scale).all()
    assert np.array_equal(run(make(ops.AMAX, (x,), axes), profile=profile),
                          x.arg.buffer.max(axis=axes))  # fmt: skip


def test_reductions_of_nothing():
    x = array(np.zeros((3, 0)), dt.float32)
    for profile in ("fast", "exact"):
        assert run(make(ops.SUM, (x,), (1,)), profile=profile).tolist() == [0, 0, 0]
        assert run(make(ops.AMAX, (x,), (1,)), profile=profile).tolist() == [-np.inf] * 3
        assert run(make(ops.SUM, (x,), (0,)), profile=profile).shape == (0,)
    y = array(np.zeros((0,)), dt.int8)
    assert run(make(ops.AMAX, (y,), (0,))) == -128
    assert not run(make(ops.AMAX, (array(np.zeros((0,)), dt.bool_),), (0,)))


def test_movement():
    x = array(np.arange(24).reshape(2, 3, 4), dt.int32)
    v = x.arg.buffer
    assert np.array_equal(run(make(ops.RESHAPE, (x,), (4, 6))), v.reshape(4, 6))
    assert np.array_equal(run(make(ops.PERMUTE, (x,), (2, 0, 1))), v.transpose(2, 0, 1))
    wide = run(make(ops.EXPAND, (x,), (5, 2, 3, 4)))
    assert np.array_equal(wide, np.broadcast_to(v, (5, 2, 3, 4)))
    cut = make(ops.SLICE, (x,), ((1, 2, -1), (0, 2, 2), (3, 0, 1)))
    assert run(cut).shape == (2, 2, 0)
    turned = make(ops.SLICE, (x,), ((1, 2, -1), (0, 2, 2), (3, 2, -2)))
    assert np.array_equal(run(turned), v[::-1, ::2, ::-2])


@pytest.mark.parametrize("seed", range(30))
def test_pad_is_every_element_put_in_its_place(seed):
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers(0, 5, int(rng.integers(1, 3))))
    x = array(rng.integers(0, 9, shape), dt.int16)
    pads = []
    for n in shape:
        low, high, gap = int(rng.integers(-2, 4)), int(rng.integers(-2, 4)), int(rng.integers(3))
        whole = low + n + high + max(n - 1, 0) * gap
        pads.append((low, high + max(0, -whole), gap))
    found = run(make(ops.PAD, (x,), (tuple(pads), -1)))
    wanted = np.full(found.shape, -1)
    for index, v in np.ndenumerate(x.arg.buffer):
        place = tuple(lo + i * (gap + 1) for i, (lo, _, gap) in zip(index, pads))
        if all(0 <= p < m for p, m in zip(place, wanted.shape)):
            wanted[place] = v
    assert np.array_equal(found, wanted)


@pytest.mark.parametrize("d", [d for d in dt.ALL if d is not dt.bool_], ids=lambda d: d.name)
def test_iota_and_constants(d):
    assert run(iota(5, d)).tolist() == [0, 1, 2, 3, 4]
    assert run(const(1, d, (2, 2))).tolist() == [[1, 1], [1, 1]]
    assert run(iota(3, d)).dtype == d.numpy


# --- structure -----------------------------------------------------------------------------------


def test_a_scan_carries_stacks_and_turns_round():
    c, x, w = (param(i, (), dt.int64) for i in range(3))
    new = make(ops.ADD, (make(ops.MUL, (c, w)), x))
    body = Body((new, c), (c, x, w))
    xs = array([1, 2, 3], dt.int64)

    def scan(reverse, out):
        arg = ScanArg(body, 3, 1, 1, reverse, out)
        return make(ops.SCAN, (const(7, dt.int64), xs, const(10, dt.int64)), arg)

    assert run(scan(False, 0)) == 7123
    assert run(scan(True, 0)) == 7321
    assert run(scan(False, 1)).tolist() == [7, 71, 712]
    assert run(scan(True, 1)).tolist() == [732, 73, 7]


def test_a_scan_of_no_steps():
    c, x = param(0, (2,), dt.float32), param(1, (), dt.float32)
    body = Body((c, x), (c, x))
    n = var("n", 0, 5)
    start = array([1, 2], dt.float32)
    xs = make(ops.INPUT, (), Storage((n,), dt.float32))
    outs = [make(ops.SCAN, (start, xs), ScanArg(body, n, 1, 1, False, i)) for i in (0, 1)]
    found = evaluate(outs, {xs: np.zeros((0,), np.float32)}, variables={"n": 0})
    assert found[0].tolist() == [1, 2] and found[1].shape == (0,)


def test_equal_calls_are_computed_once():
    p = param(0, (4,), dt.float32)
    body = Body((make(ops.SQRT, (p,)), make(ops.SIN, (p,))), (p,))
    x = array([1, 2, 3, 4], dt.float32)
    count: dict[str, int] = {}
    evaluate([make(ops.CALL, (x,), CallArg(body, i)) for i in (0, 1)], count=count)
    assert count == {"SQRT": 4, "SIN": 4}


def test_bodies_inside_of_bodies_keep_their_parameters_apart():
    p = param(0, (), dt.int64)
    inner = Body((make(ops.ADD, (p, p)),), (p,))
    outer = Body((make(ops.ADD, (make(ops.CALL, (make(ops.MUL, (p, p)),), CallArg(inner)), p)),),
                 (p,))  # fmt: skip
    assert run(make(ops.CALL, (const(5, dt.int64),), CallArg(outer))) == 55


def test_a_deep_graph_and_freed_intermediates():
    x = array(np.ones(1000), dt.float32)
    y = x
    for _ in range(50_000):
        y = make(ops.SQRT, (y,))
    assert run(y)[0] == 1


def test_results_are_the_callers_own():
    x = array([1, 2], dt.int32)
    result = run(make(ops.EXPAND, (x,), (3, 2)))
    result[0, 0] = 9
    assert result[1, 0] == 1 and x.arg.buffer[0] == 1
    same = run(x)
    same[0] = 5
    assert x.arg.buffer[0] == 1


# --- symbolic sizes and misuse -------------------------------------------------------------------


def test_symbolic_sizes():
    n = var("n", 1, 8)
    x = make(ops.INPUT, (), Storage((n, 2), dt.int32))
    flat = make(ops.RESHAPE, (make(ops.PAD, (x,), (((1, 0, 0), (0, 0, 0)), 7)),), (n * 2 + 2,))
    size = make(ops.CAST, (n,), None, dt.float32)
    found = evaluate([flat, size], {x: np.ones((3, 2), np.int32)}, variables={"n": 3})
    assert found[0].tolist() == [7, 7, 1, 1, 1, 1, 1, 1] and found[1] == 3


def test_misuse_is_named():
    n = var("n", 2, 8)
    x = make(ops.INPUT, (), Storage((n,), dt.float32))
    three = np.ones(3, np.float32)
    with pytest.raises(GraphError, match="no number was given for the symbolic size 'n'"):
        evaluate([x], {x: three})
    with pytest.raises(GraphError, match="n=1 lies outside 2 <= n <= 8"):
        evaluate([x], {x: three}, variables={"n": 1})
    with pytest.raises(GraphError, match=r"shape \(4,\), got float32 and \(3,\)"):
        evaluate([x], {x: three}, variables={"n": 4})
    with pytest.raises(GraphError, match="NumPy type float32"):
        evaluate([x], {x: np.ones(3)}, variables={"n": 3})
    with pytest.raises(GraphError, match="no value was given"):
        evaluate([x], variables={"n": 3})
    with pytest.raises(GraphError, match="'fast' or 'exact'"):
        evaluate([x], {x: three}, profile="quick")
    with pytest.raises(GraphError, match="EXP2 has no meaning of its own in the exact profile"):
        evaluate([make(ops.EXP2, (x,))], {x: three}, variables={"n": 3}, profile="exact")
    beyond = make(ops.SLICE, (x,), ((2, 1, 1),))
    with pytest.raises(GraphError, match="leaves an axis of 2"):
        evaluate([beyond], {x: three[:2]}, variables={"n": 2})


def test_storage_bits_are_understood():
    x = make(ops.INPUT, (), Storage((2,), dt.bfloat16, buffer=np.array([0x3F80, 0], np.uint16)))
    assert run(x).tolist() == [1.0, 0.0]
