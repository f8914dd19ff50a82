"""Proofs of accesses: right kernels pass, and statements that were changed are refused."""
from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from muladd import config
from muladd.compile.fuse import fuse
from muladd.compile.fuzzing import run
from muladd.device.machine import Machine
from muladd.errors import BoundsError, GraphError
from muladd.ir import const, iota, make, ops, param, sym, var
from muladd.ir import dtype as dt
from muladd.loop.bounds import holds, prove
from muladd.loop.lower import lower
from muladd.loop.narrow import cases
from muladd.loop.plan import plain
from muladd.loop.statements import For, Grid, If, Lowered, Store
from muladd.loop.validate import validate
from muladd.schedule.heuristic import schedule


def lowered(*outputs, machine="avx2") -> list[Lowered]:
    """The kernels as scheduled for a machine, or as they are for one without a name."""
    made = []
    for call in fuse(list(outputs)):
        kernel = call.kernel
        plan = schedule(kernel, Machine.named(machine)) if machine else plain(kernel)
        made.append(lower(plan))
    return made


def statements(body):
    for s in body:
        yield s
        if isinstance(s, If):
            yield from statements(s.body)
            yield from statements(s.orelse)
        elif isinstance(s, For | Grid):
            yield from statements(s.body)


def stores(body):
    return (s for s in statements(body) if isinstance(s, Store))


def gathered():
    table, i = param(0, (9, 5), dt.float32), param(1, (4,), dt.int32)
    shape = (4, 9, 5)
    place = make(ops.EXPAND, (make(ops.RESHAPE, (i,), (4, 1, 1)),), shape)
    rows = make(ops.EXPAND, (make(ops.RESHAPE, (iota(9, dt.int32),), (9, 1)),), shape)
    same = make(ops.NE, (make(ops.NE, (place, rows)), const(True, dt.bool_, shape)))
    all_rows = make(ops.EXPAND, (table,), shape)
    picked = make(ops.WHERE, (same, all_rows, const(0.0, dt.float32, shape)))
    return make(ops.SUM, (picked,), (1,))


def scattered():
    x, i = param(0, (30, 5), dt.float32), param(1, (30,), dt.int32)
    shape = (30, 9, 5)
    place = make(ops.EXPAND, (make(ops.RESHAPE, (i,), (30, 1, 1)),), shape)
    rows = make(ops.EXPAND, (make(ops.RESHAPE, (iota(9, dt.int32),), (9, 1)),), shape)
    same = make(ops.NE, (make(ops.NE, (place, rows)), const(True, dt.bool_, shape)))
    values = make(ops.EXPAND, (make(ops.RESHAPE, (x,), (30, 1, 5)),), shape)
    return make(ops.SUM, (make(ops.WHERE, (same, values, const(0.0, dt.float32, shape))),), (0,))


def matmul(m=70, k=33, n=50):
    a, b = param(0, (m, k), dt.float32), param(1, (k, n), dt.float32)
    shape = (m, k, n)
    left = make(ops.EXPAND, (make(ops.RESHAPE, (a,), (m, k, 1)),), shape)
    right = make(ops.EXPAND, (b,), shape)
    return make(ops.SUM, (make(ops.MUL, (left, right)),), (1,))


def padded():
    n = var("n", 1, 40)
    x = param(0, (n, 13), dt.float32)
    wide = make(ops.PAD, (x,), (((2, 1, 0), (0, 3, 2)), 1.0))
    flipped = make(ops.SLICE, (wide,), (((sym.add(n, 2)), sym.add(n, 3), -1), (0, 40, 1)))
    return make(ops.SUM, (flipped,), (1,))


GRAPHS = {f.__name__: f for f in (gathered, scattered, matmul, padded)}


@pytest.mark.parametrize("machine", ["", "sse", "avx2", "avx512", "sve"])
@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_are_proven(name, machine):
    for low in lowered(GRAPHS[name](), machine=machine):
        validate(low)
        assert prove(low) > 0


def test_random_kernels_are_proven():
    with config.context(CHECK=1):
        report = run(10 / 60, seed=9, most_graphs=15)
    assert not report.failures, str(report)


def test_whole_parts_of_a_symbolic_size():
    """The last vector of a row: 32 lie in each whole one, and something is left."""
    n, lane = var("n", 1, 128), sym.axis("lane", 16)
    left = sym.sub(sym.mod(n, 32), 1)  # 0 < n mod 32
    at = sym.sum_of([sym.mul(sym.div(n, 32), 32), lane, 16])
    assert holds(sym.poly(sym.sub(143, at)), [sym.poly(left)])
    assert not holds(sym.poly(sym.sub(143, at)))  # n = 128
    assert not holds(sym.poly(sym.sub(126, at)), [sym.poly(left)])


def test_whole_parts_where_a_multiple_stands_apart():
    """Rows from 32 on, in panels of 16, by chunks of 48: what is 3 panels of a chunk is no part of
    the quotient."""
    chunk, row = sym.axis("chunk", 2), sym.axis("row", 48)
    at = sym.sum_of([sym.mul(sym.div(row, 16), 256), sym.mod(row, 16), sym.mul(chunk, 768), -512])
    late = sym.sum_of([sym.mul(chunk, 48), row, -32])
    assert holds(sym.poly(at), [sym.poly(late)])
    assert not holds(sym.poly(at))
    assert not holds(sym.poly(sym.sub(at, 1)), [sym.poly(late)])
    assert not holds(sym.poly(at), [sym.poly(sym.add(late, 1))])
    early = sym.sub(79, sym.sum_of([sym.mul(chunk, 48), row]))  # row 79 is the last of panel 4
    assert holds(sym.poly(sym.sub(527, at)), [sym.poly(early)])
    assert not holds(sym.poly(sym.sub(526, at)), [sym.poly(early)])


def test_loops_that_bound_each_other_are_tried_one_by_one():
    """Three chunks of 26 rows by two loops: what holds for each pair of values holds."""
    i, j, row = (sym.axis(*x) for x in (("i", 2), ("j", 2), ("row", 26)))
    at = sym.sum_of([sym.mul(i, 52), sym.mul(j, 26), row])
    facts = (sym.poly(sym.sub(52, sym.sum_of([sym.mul(i, 52), sym.mul(j, 26)]))),)
    goal = sym.poly(sym.sub(12, sym.div(at, 6)))
    assert len(cases(goal, facts)) == 4
    for case in cases(goal, facts):
        here, known = (sym.poly(sym.replace(sym.build(p), case)) for p in (goal, *facts))
        assert holds(here, [known]) or sym.lower(known) < 0 and case == {i: 1, j: 1}


def test_whole_parts_of_three_loops():
    """Rows by tiles of 2, by 5, by chunks, in panels of 8: a condition on the tiles says which."""
    i, j, k, lane = (sym.axis(*x) for x in (("i", 8), ("j", 5), ("k", 2), ("lane", 16)))
    row = sym.sum_of([sym.mul(i, 10), sym.mul(j, 2), k])
    at = sym.sum_of([sym.mul(sym.div(row, 8), 4096), sym.mul(sym.mod(row, 8), 8),
                     sym.mul(lane, 64)])  # fmt: skip
    whole = sym.sub(576, sym.sum_of([sym.mul(i, 80), sym.mul(j, 16), 16]))
    assert holds(sym.poly(sym.sub(36863, at)), [sym.poly(whole)])
    assert not holds(sym.poly(sym.sub(36863, at)))
    assert not holds(sym.poly(sym.sub(8 * 4096 + 7 * 8 + 15 * 64 - 1, at)), [sym.poly(whole)])


def test_holds_is_never_wrong():
    """Whatever is claimed to follow is true at every point."""
    rng = np.random.default_rng(3)
    i, j = sym.axis("i", 7), sym.axis("j", 5)
    proven = 0
    for _ in range(400):
        a, b, c, d = (int(v) for v in rng.integers(-9, 10, 4))
        k = int(rng.integers(1, 5))
        goal = sym.sum_of([sym.mul(i, a), sym.mul(sym.div(sym.add(i, j), k), b), c])
        fact = sym.sum_of([sym.mul(j, d), sym.mul(i, int(rng.integers(-3, 4))), 3])
        if holds(sym.poly(goal), [sym.poly(fact)]):
            proven += 1
            for p in range(7):
                for q in range(5):
                    values = {"i": p, "j": q}
                    if sym.evaluate(fact, values) >= 0:
                        assert sym.evaluate(goal, values) >= 0
    assert proven > 50


# --- what is refused -----------------------------------------------------------------------------


def moved(by):
    def change(s: Store) -> None:
        base = sym.as_node(by)
        s.index = make(ops.ADD, (s.index, make(ops.EXPAND, (base,), s.index.shape)
                                 if s.index.shape else base))  # fmt: skip

    return change


@pytest.mark.parametrize("by", [-1, 1])
@pytest.mark.parametrize("name", GRAPHS)
def test_a_store_that_moved_is_refused(name, by):
    low = lowered(GRAPHS[name]())[-1]
    last = [s for s in stores(low.body) if isinstance(s.place, int)][-1 if by > 0 else 0]
    moved(by)(last)
    last.guard = None if name != "padded" else last.guard
    with pytest.raises(BoundsError, match="kernel: .* could not be proven for b"):
        prove(low)


def test_a_wild_index_needs_its_guard():
    (low,) = lowered(scattered())
    prove(low)
    asked = [x for x in statements(low.body) if isinstance(x, If)]
    for x in asked:
        x.condition = const(True, dt.bool_)
    assert asked
    with pytest.raises(BoundsError, match="Store"):
        prove(low)
    (low,) = lowered(gathered())
    for s in stores(low.body):
        loads = [n for n in sym.nodes.toposort((s.value,)) if n.op is ops.LOAD and len(n.srcs) > 1]
        bare = {n: make(ops.LOAD, n.srcs[:1], n.arg, n.dtype) for n in loads}
        s.value = sym.nodes.substitute((s.value,), bare)[0]
    with pytest.raises(BoundsError):
        prove(low)


def mutations():
    loop = sym.axis("stranger", 4)
    yield "outside of itself", lambda s: replace_index(s, loop)
    yield "expected float32", lambda s: setattr(s, "value", const(1, dt.int32, s.value.shape))
    yield "expected one of", lambda s: setattr(s, "place", "nowhere")
    yield "expected one of b0", lambda s: setattr(s, "place", 99)
    yield "only read", lambda s: setattr(s, "place", 0)
    yield "expected shape", lambda s: setattr(s, "value", const(1.0, dt.float32, (3,)))
    yield "expected bool", lambda s: setattr(s, "guard", sym.as_node(1))


def replace_index(s: Store, loop) -> None:
    s.index = make(ops.EXPAND, (loop,), s.index.shape) if s.index.shape else loop


@pytest.mark.parametrize("number", range(7))
def test_a_broken_statement_is_refused(number):
    message, change = list(mutations())[number]
    low = copy.copy(lowered(matmul())[-1])
    last = [s for s in stores(low.body) if isinstance(s.place, int)][-1]
    change(last)
    with pytest.raises(GraphError, match=message):
        validate(low, "matmul")


def test_registers_are_named_by_constants():
    low = lowered(matmul())[-1]
    first = next(s for s in stores(low.body)
                 if isinstance(s.place, str) and low.arrays[s.place].lanes)  # fmt: skip
    name = first.place
    first.index = sym.as_node(low.arrays[name].count)
    with pytest.raises(GraphError, match="a constant from 0 to"):
        validate(low)
    grid = low.body[0]
    assert isinstance(grid, Grid)
    low = replace(low, body=[For(sym.axis("q", 3), 0, 3, [grid])])
    with pytest.raises(GraphError, match="grid"):
        validate(low)
