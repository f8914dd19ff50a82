"""The exact profile: the interpreter's bits from compiled code, however it is compiled."""
from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from exact_networks import SHAPES, once, training

from muladd import config
from muladd import device as devices
from muladd.compile import backends, pipeline
from muladd.compile.fuzzing import download, upload
from muladd.device.machine import Machine
from muladd.interp import evaluate
from muladd.ir import Body, CallArg, Storage, const, iota, make, ops, param, substitute
from muladd.ir import dtype as dt
from muladd.ir.named import HALF_PI, LOG2_E
from muladd.loop.plan import plain
from muladd.rewrite.transcendental import expand

HOST = Machine.host()
MACHINES = {
    "host": HOST,
    "avx2": replace(HOST, vector_bits=256, vector_registers=16),
    "avx512": replace(HOST, vector_bits=512, vector_registers=32),  # legalised where it must be
    "sse": replace(HOST, vector_bits=128),
    "plain": replace(HOST, features=HOST.features + ",+sse2"),  # a key of its own
}


class Plain(backends.Backend):
    """Code without any schedule."""

    def schedule(self, kernel):
        return plain(kernel)


def compiled(outputs, inputs, how="host", threads=2):
    """The results of a graph by one kind of code, or on the other device, as bits."""
    other = how not in MACHINES
    if other:
        pytest.importorskip("pyopencl")
    device = devices.get(how if other else "CPU")
    leaves = list(inputs)
    params = {n: param(i, n.shape, n.dtype) for i, n in enumerate(leaves)}
    found = backends.of(device)
    if not other:
        device.machine = MACHINES[how]
        device.set_threads(threads)
        found = (Plain if how == "plain" else backends.Backend)(device)
    try:
        with config.context(PROFILE="exact"), pytest.MonkeyPatch.context() as patch:
            patch.setattr(backends, "of", lambda _: found)
            graph = substitute(tuple(outputs), params)
            program = pipeline._compile(graph, device, True)
            buffers = [upload(device, inputs[n], n.dtype) for n in leaves]
            results = program.run(buffers)
        return [download(device, b, n, {}) for b, n in zip(results, outputs)]
    finally:
        if not other:
            device.machine = HOST
            device.set_threads(2)


def bits(x: np.ndarray) -> np.ndarray:
    if x.dtype.kind != "f":
        return x
    whole = np.where(np.isnan(x), x.dtype.type(np.nan), x)
    return np.ascontiguousarray(whole).view(f"u{x.dtype.itemsize}")


def same(outputs, inputs, kinds=(*MACHINES, "OPENCL"), threads=(2,)) -> None:
    wanted = evaluate(outputs, inputs, profile="exact", expand=expand)
    for how, count in itertools.product(kinds, threads):
        found = compiled(outputs, inputs, how, count)
        for i, (a, b) in enumerate(zip(found, wanted)):
            a, b = np.atleast_1d(a), np.atleast_1d(b)
            wrong = bits(a) != bits(b)
            assert not wrong.any(), (
                f"{how}, {count} threads, output {i} {outputs[i]!r}: {wrong.sum()} of {wrong.size} "
                f"differ, {a[wrong][:3]} for {b[wrong][:3]}"
            )


def leaf(values: np.ndarray, d=None):
    d = d or next(x for x in dt.ALL if x.numpy == values.dtype and x.storage == x.numpy)
    return make(ops.INPUT, (), Storage(values.shape, d)), values


# --- networks ------------------------------------------------------------------------------------


HEAVY = [pytest.param(n, marks=[pytest.mark.slow] if n == "transformer" else []) for n in SHAPES]


@pytest.mark.parametrize("name", HEAVY)
def test_forward_and_backward(name):
    outputs, inputs = once(name)
    same(outputs, inputs)
    same(outputs, inputs, kinds=("host",), threads=(1,))


@pytest.mark.parametrize("name", HEAVY)
def test_two_hundred_steps_of_adam(name):
    outputs, inputs = training(name)
    few = {} if name == "perceptron" else {"kinds": ("host", "avx512", "OPENCL")}
    same(outputs, inputs, **few)


# --- reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [dt.float32, dt.float64, dt.float16, dt.bfloat16],
                         ids=lambda d: d.name)  # fmt: skip
def test_sums_and_maxima_of_all_shapes(d):
    rng = np.random.default_rng(1)
    outputs, inputs = [], {}
    shapes = [(1,), (3,), (63,), (64,), (65,), (200,), (7, 1), (3, 130), (130, 3), (2, 5, 70),
              (5, 70, 2), (70, 1, 3)]  # fmt: skip
    if d.bits == 16:
        shapes = shapes[::3]
    for shape in shapes:
        x = (rng.standard_normal(shape) * 10.0 ** rng.integers(-3, 3, shape)).astype(np.float32)
        x[rng.random(shape) < 0.1] = 0.0
        x[rng.random(shape) < 0.1] *= np.float32(-0.0)
        value = dt.decode(dt.encode(x, d), d) if d.bits < 32 else x.astype(d.numpy)
        n, value = leaf(value, d)
        inputs[n] = value
        for k in range(len(shape) + 1):
            for axes in itertools.combinations(range(len(shape)), k):
                outputs.append(make(ops.SUM, (n,), axes))
                outputs.append(make(ops.AMAX, (n,), axes))
                outputs.append(make(ops.SUM, (make(ops.MUL, (n, n)),), axes))
    same(outputs, inputs, kinds=("host", "avx512"))


def test_large_reductions_on_every_kind_of_code():
    rng = np.random.default_rng(2)
    n, value = leaf(rng.standard_normal((37, 1000)).astype(np.float32))
    m, other = leaf(rng.standard_normal((1000, 29)).astype(np.float32))
    rows = make(ops.EXPAND, (make(ops.RESHAPE, (n,), (37, 1000, 1)),), (37, 1000, 29))
    columns = make(ops.EXPAND, (m,), (37, 1000, 29))
    outputs = [
        make(ops.SUM, (n,), (1,)), make(ops.SUM, (n,), (0,)), make(ops.SUM, (n,), (0, 1)),
        make(ops.SUM, (make(ops.MUL, (rows, columns)),), (1,)),
        make(ops.SUM, (make(ops.PERMUTE, (n,), (1, 0)),), (0, 1)),
        make(ops.SUM, (make(ops.MUL, (rows, columns)),), (0, 1, 2)),
    ]  # fmt: skip
    same(outputs, {n: value, m: other}, threads=(1, 2))


def test_signed_zeros_and_nans_of_maxima():
    x = np.zeros((4, 130), np.float32)
    x[::2, ::3] *= -1
    x[1, ::2] = -0.0
    x[3, 77] = np.nan
    n, x = leaf(x)
    outputs = [make(ops.AMAX, (n,), axes) for axes in ((0,), (1,), (0, 1), ())]
    outputs += [make(ops.SUM, (n,), axes) for axes in ((0,), (1,), (0, 1), ())]
    same(outputs, {n: x})


def test_products_of_integers():
    rng = np.random.default_rng(3)
    a, x = leaf(rng.integers(-128, 128, (20, 70)).astype(np.int8))
    b, y = leaf(rng.integers(-128, 128, (70, 33)).astype(np.int8))
    shape = (20, 70, 33)
    wide = [make(ops.CAST, (n,), None, dt.int32) for n in (a, b)]
    left = make(ops.EXPAND, (make(ops.RESHAPE, (wide[0],), (20, 70, 1)),), shape)
    right = make(ops.EXPAND, (wide[1],), shape)
    same([make(ops.SUM, (make(ops.MUL, (left, right)),), (1,))], {a: x, b: y})


# --- elementwise ---------------------------------------------------------------------------------


def patterns(count: int, d) -> np.ndarray:
    """Bit patterns spread over all of a dtype's, and its special values."""
    step = (1 << d.bits) // count
    every = (np.arange(count, dtype=np.uint64) * np.uint64(step | 1)).astype(f"u{d.itemsize}")
    info = np.finfo(d.numpy)
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, info.tiny, info.smallest_subnormal,
                        -info.smallest_subnormal, info.max, 1.0, -1.0], d.numpy)  # fmt: skip
    return np.concatenate([every.view(d.numpy), special])


@pytest.mark.parametrize("d", [dt.float32, dt.float64], ids=lambda d: d.name)
def test_elementwise_over_all_bit_patterns(d):
    x = patterns(40_000, d)
    a, x = leaf(x)
    b, y = leaf(np.random.default_rng(4).permutation(x))
    scaled = make(ops.MUL, (a, b))
    outputs = [make(op, (a,)) for op in (ops.EXP2, ops.LOG2, ops.SIN, ops.SQRT)]
    outputs += [make(op, (a, b)) for op in (ops.DIV, ops.ADD, ops.MUL, ops.MAX, ops.LT)]
    outputs += [make(ops.ADD, (scaled, b)), make(ops.CAST, (a,), None, dt.int32),
                make(ops.CAST, (a,), None, dt.float16), make(ops.CAST, (a,), None, dt.bfloat16)]
    same(outputs, {a: x, b: y}, kinds=("host", "avx512", "OPENCL"))


def test_exp_and_cos_are_one_operation_wherever_their_parts_are():
    """Directly, with the inner value wanted too, and moved between: each the same everywhere."""
    a, x = leaf(np.linspace(-90, 88, 64, dtype=np.float32))
    outputs = []
    for inner, number, outer in ((ops.MUL, LOG2_E, ops.EXP2), (ops.ADD, HALF_PI, ops.SIN)):
        part = make(inner, (a, const(number, dt.float32, (64,))))
        moved = make(ops.RESHAPE, (part,), (8, 8))
        outputs += [part, make(outer, (part,)), make(outer, (moved,))]
    same(outputs, {a: x}, kinds=("host", "OPENCL"))
    p = param(0, (64,), dt.float32)
    body = Body((substitute((outputs[4],), {a: p})[0],), (p,))  # the cosine, in a body
    same([make(ops.CALL, (a,), CallArg(body))], {a: x}, kinds=("host",))


def test_a_product_and_a_sum_are_not_contracted():
    n = iota(50, dt.float32)
    third = make(ops.DIV, (n, make(ops.ADD, (n, n))))
    same([make(ops.ADD, (make(ops.MUL, (third, third)), n))], {})


def test_nans_are_canonical_when_they_leave():
    raw = np.array([0xFFC12345, 0x7FC00001, 0xFF800001, 0x3F800000], np.uint32).view(np.float32)
    n, x = leaf(raw)
    product = make(ops.MUL, (n, n))
    with np.errstate(all="ignore"):
        wanted = evaluate([product, n], {n: x}, profile="exact")
    for got, want in zip(compiled([product, n], {n: x}), wanted):
        assert np.array_equal(got.view(np.uint32), want.view(np.uint32))
