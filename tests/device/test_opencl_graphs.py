"""Compiled graphs on OPENCL against the interpreter: groups, tiles, scratch, sizes, chance."""
from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from muladd import config
from muladd.compile import compile_graph, parameters
from muladd.compile.fuzzing import run, runner
from muladd.interp.differential import check
from muladd.ir import Node, Storage, const, dtype, make, ops, var
from muladd.rewrite.transcendental import expand

FLOAT = dtype.float32
PROFILES = ("fast", "exact")


pytestmark = pytest.mark.usefixtures("opencl")


def leaf(*shape: int | Node, d: dtype.DType = FLOAT) -> Node:
    return make(ops.INPUT, (), Storage(shape, d))


def wide(x: Node, *shape: int) -> Node:
    return make(ops.EXPAND, (x,), shape)


def matmul(a: Node, b: Node) -> Node:
    (m, k), n = a.shape, b.shape[1]
    left = wide(make(ops.RESHAPE, (a,), (m, 1, k)), m, n, k)
    right = wide(make(ops.RESHAPE, (make(ops.PERMUTE, (b,), (1, 0)),), (1, n, k)), m, n, k)
    return make(ops.SUM, (make(ops.MUL, (left, right)),), (2,))


def softmax(x: Node) -> Node:
    rows = (x.shape[0], 1)
    top = make(ops.RESHAPE, (make(ops.AMAX, (x,), (1,)),), rows)
    less = make(ops.MUL, (wide(top, *x.shape), const(-1.0, FLOAT, x.shape)))
    raised = make(ops.EXP2, (make(ops.ADD, (x, less)),))
    total = make(ops.RESHAPE, (make(ops.SUM, (raised,), (1,)),), rows)
    return make(ops.DIV, (raised, wide(total, *x.shape)))


def holds(outputs: list[Node], *leaves: Node, profiles=PROFILES, variables=None) -> None:
    rng = np.random.default_rng(3)
    sizes = variables or {}
    shape = lambda x: [d if isinstance(d, int) else sizes[d.arg.name] for d in x.shape]  # noqa: E731
    inputs = {x: rng.standard_normal(shape(x)).astype(x.dtype.numpy) for x in leaves}
    for profile in profiles:
        check(outputs, inputs, sizes, runner("OPENCL", profile), profile=profile,
              expand=expand if profile == "exact" else None)  # fmt: skip


def plans(outputs: list[Node], profile: str = "fast") -> str:
    with config.context(PROFILE=profile):
        graph, _ = parameters(tuple(outputs))
        return "\n".join(k.plan.text() for k in compile_graph(graph, "OPENCL").kernels())


@pytest.mark.parametrize("sizes", [(64, 64, 64), (70, 33, 65), (40, 129, 100), (32, 32, 17)])
def test_matrix_products_in_tiles(sizes):
    m, n, k = sizes
    a, b = leaf(m, k), leaf(k, n)
    text = plans([matmul(a, b)])
    assert "c0" in text and "*t" in text, "panels lie in the group's memory"
    holds([matmul(a, b)], a, b)


def test_a_product_with_its_epilogue_in_half_precision():
    a, b, c = leaf(48, 40, d=dtype.float16), leaf(40, 36, d=dtype.float16), leaf(36)
    y = make(ops.CAST, (matmul(a, b),), None, FLOAT)
    y = make(ops.MAX, (make(ops.ADD, (y, wide(c, 48, 36))), const(0.0, FLOAT, (48, 36))))
    holds([y], a, b, c)


@pytest.mark.parametrize("shape", [(5, 1000), (3, 64), (2, 200), (1, 130), (4, 7)])
def test_softmax_is_one_kernel(shape):
    x = leaf(*shape)
    assert plans([softmax(x)]).count("grid") == 1
    holds([softmax(x)], x)


def test_rows_too_long_for_a_groups_memory():
    x = leaf(3, 200_000)
    holds([softmax(x)], x, profiles=("fast",))


def test_groups_whose_memory_lies_in_scratch_come_in_parts(opencl, monkeypatch):
    monkeypatch.setattr(opencl, "machine", replace(opencl.machine, l1=64))
    x = leaf(600, 131)  # of which 256 rows at once have scratch
    holds([softmax(x)], x)
    # a loop over chunks around the barriers of these stages was compiled wrongly by PoCL
    report = run(1, seed=695632948, devices=["OPENCL"], profiles=["exact"], first=52, most_graphs=1)
    assert not report.failures, str(report)


@pytest.mark.parametrize("size", [2, 63, 64, 65, 300])
def test_sizes_known_at_the_call(size):
    n = var("n", 2, 300)
    x = leaf(3, n)
    total = make(ops.SUM, (x,), (1,))
    again = make(ops.EXPAND, (make(ops.RESHAPE, (total,), (3, 1)),), (3, n))
    holds([total, make(ops.ADD, (x, again))], x, variables={"n": size})


@pytest.mark.slow
def test_random_graphs():
    report = run(16 / 60, seed=511, devices=["OPENCL"], most_graphs=20)
    assert not report.failures, str(report)
    assert report.graphs > 4
