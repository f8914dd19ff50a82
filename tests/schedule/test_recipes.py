"""Recipes: what they derive from the machine."""
from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from muladd.device import Machine
from muladd.ir import dtype, make, ops, sym
from muladd.loop.kernel import Argument, Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule import heuristic


def product(
    n: int, d: dtype.DType, summed: dtype.DType | None = None, columns: int | None = None
) -> Kernel:
    """A product of n x n matrices, converted before it is summed if asked for; the right one and
    the result may have fewer columns."""
    m = n if columns is None else columns
    i, j, k = sym.axis("p0", n), sym.axis("p1", m), sym.axis("r0", n)
    left = make(ops.LOAD, (sym.as_node(sym.add(sym.mul(i, n), k)),), 0, d)
    right = make(ops.LOAD, (sym.as_node(sym.add(sym.mul(k, m), j)),), 1, d)
    if summed is not None:
        left, right = (make(ops.CAST, (x,), None, summed) for x in (left, right))
    stage = Stage("s0", (i, j), make(ops.MUL, (left, right)), ops.SUM, (k,), 2,
                  sym.add(sym.mul(i, m), j), contracted=True)  # fmt: skip
    sizes = ((d, n * n), (d, n * m), (stage.dtype, n * m))
    arguments = tuple(Argument(x, kind, size, written=x == 2)
                      for x, (kind, size) in enumerate(sizes))  # fmt: skip
    return Kernel((stage,), (i, j), arguments)


def side_by_side(plan: Plan) -> tuple[int, int]:
    """Lanes of the product's vectors, and results that are summed at once."""
    s = plan.kernel.stage("s0")
    lanes = [x.arg.extent for x in plan.nests["s0"] if plan.spreads(s, x)]
    turns = [x.arg.extent for x in plan.nests["s0"] if plan.unrolls(s, x)]
    return prod(lanes), prod(lanes) * prod(turns)


@pytest.mark.parametrize("kind", ["avx2", "avx512", "neon", "sve"])
@pytest.mark.parametrize("d", [dtype.float32, dtype.float64], ids=lambda d: d.name)
def test_a_tile_is_made_of_whole_vectors_and_stays_in_registers(kind, d):
    machine = Machine.named(kind)
    lanes, results = side_by_side(heuristic.schedule(product(512, d), machine))
    assert lanes * d.bits == machine.vector_bits
    assert results * d.bits < machine.vector_bits * machine.vector_registers


def test_rows_a_page_apart_do_not_push_each_other_out_of_the_first_cache():
    """49 columns are seven vectors, of which a tile of one wastes least: it has many rows."""
    rows = {}
    for n in (1000, 1024, 2048):
        plan = heuristic.schedule(product(n, dtype.float32, columns=49), Machine.named("avx2"))
        s = plan.kernel.stage("s0")
        rows[n] = next(x.arg.extent for x in plan.nests["s0"] if plan.unrolls(s, x))
    assert rows[1000] > 8 and max(rows[1024], rows[2048]) <= 6


def test_columns_a_page_apart_that_lie_along_the_terms_are_copied_a_vector_of_each():
    for n, turned in ((768, False), (1024, True), (3072, True)):
        kernel = product(n, dtype.float32)
        (stage,) = kernel.stages
        left, right = stage.value.srcs
        (_, j), (k,) = stage.axes, stage.reduced
        index = sym.as_node(sym.add(sym.mul(j, n), k))
        value = make(ops.MUL, (left, make(ops.LOAD, (index,), 1, dtype.float32)))
        plan = heuristic.schedule(
            replace(kernel, stages=(replace(stage, value=value),)), Machine.named("avx2")
        )
        last = plan.owner(plan.nests["c0"][-1])
        assert (last in plan.kernel.stage("c0").axes and last is not j) == turned


def test_panels_of_columns_take_half_of_the_second_cache():
    machine = Machine.named("avx2")
    for d in (dtype.float32, dtype.float64):
        plan = heuristic.schedule(product(1024, d), machine)
        _, depth, *panel = plan.nests["c0"]
        panels = plan.nests["c0"][0].arg.extent
        size = d.itemsize * depth.arg.extent * prod(x.arg.extent for x in panel)
        assert panels * size <= machine.l2 // 2 < (panels + 1) * size


@pytest.mark.parametrize("d", [dtype.bfloat16, dtype.float16, dtype.int8], ids=lambda d: d.name)
def test_what_has_to_be_converted_is_converted_once_for_many_tiles(d):
    """Conversions of the broadcast side used to stand in the innermost loop: half of the speed."""
    summed = dtype.float32 if d.is_float else dtype.int32
    plan = heuristic.schedule(product(512, d, summed), Machine.named("avx2"))
    value = plan.kernel.stage("s0").value
    assert [x.op for x in value.srcs] == [ops.READ, ops.READ]
    assert any(plan.spreads(plan.kernel.stage("c1"), x) for x in plan.nests["c1"])
