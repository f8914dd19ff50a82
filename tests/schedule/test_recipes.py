"""Recipes: what they derive from the machine."""
from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest

from muladd import Tensor
from muladd.compile import compile_graph, parameters
from muladd.device import Machine
from muladd.ir import dtype, make, ops, sym
from muladd.loop.kernel import Argument, Kernel, Stage
from muladd.loop.plan import Plan
from muladd.schedule import analysis, heuristic


def product(
    n: int, d: dtype.DType, summed: dtype.DType | None = None, columns: int | None = None,
    rows: int | None = None,
) -> Kernel:  # fmt: skip
    """A product of n x n matrices, converted before it is summed if asked for; there may be fewer
    rows or columns."""
    m, high = n if columns is None else columns, n if rows is None else rows
    i, j, k = sym.axis("p0", high), sym.axis("p1", m), sym.axis("r0", n)
    left = make(ops.LOAD, (sym.as_node(sym.add(sym.mul(i, n), k)),), 0, d)
    right = make(ops.LOAD, (sym.as_node(sym.add(sym.mul(k, m), j)),), 1, d)
    if summed is not None:
        left, right = (make(ops.CAST, (x,), None, summed) for x in (left, right))
    stage = Stage("s0", (i, j), make(ops.MUL, (left, right)), ops.SUM, (k,), 2,
                  sym.add(sym.mul(i, m), j), contracted=True)  # fmt: skip
    sizes = ((d, high * n), (d, n * m), (stage.dtype, high * m))
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


def test_columns_that_lie_along_the_terms_are_copied_a_vector_of_each():
    """If these are whole blocks, or if one element of each in turn would take too many ways."""
    for n, turned in ((768, True), (770, False), (1024, True), (3072, True)):
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


@pytest.mark.parametrize("shape", [(2048, 384, 1536), (2048, 384, 1152), (1024, 256, 1024)])
@pytest.mark.parametrize("kind", ["avx2", "avx512"])
def test_threads_have_equal_shares_of_a_product(kind, shape):
    machine = replace(Machine.named(kind), cores=2)
    rows, depth, columns = shape
    plan = heuristic.schedule(
        product(depth, dtype.float32, columns=columns, rows=rows), machine)
    panels = {x.loop.arg.name: x for x in plan.leaves[plan.kernel.shared[1]]}
    chunks = prod(x.arg.extent for x in plan.outer[: plan.parallel])
    whole = panels["p1.0"].extent * panels["p1.0"].stride  # columns, filled up to whole chunks
    assert -(-chunks // 2) * 2 * whole / chunks / columns < 1.1


def test_a_long_sum_waits_while_a_block_of_its_operands_is_near():
    """Where a panel of all its terms would not fit the second cache, whatever the rows."""
    machine = Machine.named("avx512")
    for depth in (512, 1024, 4096, 16384):
        for rows in (64, 1024):
            plan = heuristic.schedule(
                product(depth, dtype.float32, columns=768, rows=rows), machine)
            waits = any(line.startswith("keep") for line in plan.lines)
            assert waits == (depth * 64 * 4 > machine.l2 // 2)


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


def asked_for(n: int, machine: Machine) -> str:
    """What the sum of a product of n x n matrices asks memory for."""
    plan = heuristic.schedule(product(n, dtype.float32), machine)
    return next(x for x in plan.text().splitlines() if x.startswith("s0")).rsplit("*v", 1)[1]


def test_what_a_tile_needs_is_asked_for_where_no_cache_holds_it():
    """The rows of the next tile, terms of the panel, lines of results: in a small product they are
    near, and of rows a page apart what came early would push out what is in use."""
    machine = Machine.named("avx512")
    assert asked_for(1536, machine) == " ahead r0+8 prefetch s0 p0.1 claim s0"
    assert asked_for(96, machine) == "" and "prefetch" not in asked_for(1024, machine)
    assert asked_for(1536, Machine.named("avx2")) == " claim s0"  # 12 results a term: no room


def test_scores_of_a_short_sequence_run_along_their_results():
    """Where a head is one point of a kernel, neither side of q k' lies along results: a copy of one
    does. As dot products, lane by lane, the derivatives of attention took twice as long."""
    q, k, v = (Tensor.zeros(4, 8, 64, 32, device="NULL", requires_grad=True) for _ in range(3))
    y = q.scaled_dot_product_attention(k, v, is_causal=True)
    y.square().sum().backward()
    graph, _ = parameters(tuple(t.grad.node for t in (q, k, v)))
    summed = [[plan.owner(x) in s.reduced for x in plan.nests[s.name] if plan.spreads(s, x)]
              for plan in (run.plan for run in compile_graph(graph, "NULL").kernels())
              for s in plan.kernel.stages if analysis.product(plan.kernel, s) is not None
              and len(plan.kernel.free_axes(s)) == 2]  # fmt: skip
    across = [lanes for lanes in summed if any(lanes)]
    assert len(summed) > 4 and len(across) <= 1  # both sides of one are the kernel's own


@pytest.mark.parametrize("shape", [  # images, channels, size, results, groups
    (2, 64, 32, 128, 4), (1, 64, 28, 64, 1), (32, 16, 8, 32, 1), (1, 64, 7, 64, 1),
])  # fmt: skip
def test_weights_gradients_of_few_images_are_tiles(shape):
    """They were dot products, each over memory by itself: up to nine times as long."""
    images, channels, size, results, groups = shape
    x = Tensor.zeros(images, channels, size, size, device="NULL").realize()
    w = Tensor.zeros(results, channels // groups, 3, 3, device="NULL", requires_grad=True)
    x.conv2d(w, padding=1, groups=groups).square().sum().backward()
    graph, _ = parameters((w.grad.node,))
    plans = [k.plan for k in compile_graph(graph, "NULL").kernels()]
    plan = [x for x in plans if any(analysis.product(x.kernel, s) for s in x.kernel.stages)][-1]
    assert [s for s in plan.kernel.stages if s.name.startswith("c")]  # operands are copied
    s = next(s for s in plan.kernel.stages if analysis.product(plan.kernel, s) is not None)
    assert not any(plan.owner(x) in s.reduced for x in plan.nests[s.name] if plan.spreads(s, x))
