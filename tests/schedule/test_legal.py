"""Plans of unknown origin: what they may not do, and that what they may do keeps the results."""
from __future__ import annotations

import itertools

import pytest

from muladd import Tensor, config
from muladd.compile import compile_graph, parameters
from muladd.compile.search.worker import Bench
from muladd.compile.tuned import checked
from muladd.errors import FormatError, MuladdError, ScheduleError
from muladd.loop import codec
from muladd.schedule import heuristic, neighbours
from muladd.schedule.primitives import apply

EXPRESSIONS = {
    "product": lambda a, b: a @ b.T,
    "epilogue": lambda a, b: (a @ b.T).gelu() + 1,
    "softmax": lambda a, b: a.softmax(-1),
    "columns": lambda a, b: (a * b).sum(0),
    "rows": lambda a, b: (a - b).amax(1),
}


def kernel_of(name: str, profile: str = "fast"):
    a, b = Tensor.ones(24, 80, device="CPU").realize(), Tensor.ones(24, 80, device="CPU").realize()
    with config.context(PROFILE=profile):
        graph, _ = parameters((EXPRESSIONS[name](a, b).node,))
        return compile_graph(graph, "CPU").kernels()[-1].kernel


def usual(kernel):
    from muladd.device import Machine

    return heuristic.schedule(kernel, Machine.named("avx2"))


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_the_lines_of_a_plan_make_it_again_and_are_legal(name, profile):
    kernel = kernel_of(name, profile)
    plan = usual(kernel)
    again = checked(kernel, plan.lines)
    assert (again.text(), again.kernel.text()) == (plan.text(), plan.kernel.text())


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_whatever_is_legal_computes_the_same(name, profile):
    """In the exact profile, which a worker compares bit by bit, to the last one."""
    kernel = kernel_of(name, profile)
    plan = usual(kernel)
    bench = Bench(kernel, "CPU", list(plan.lines))
    same = 0
    for lines in itertools.islice(neighbours.near(plan), 0, None, 3):
        try:
            checked(kernel, lines)
        except ScheduleError:
            continue
        assert bench.pairs(list(lines), 1), lines
        same += 1
    assert same >= 2


def test_a_worker_compares_results():
    bench = Bench(kernel_of("softmax"), "CPU", [])
    bench.expected[0][:4] = 1
    with pytest.raises(MuladdError, match="something else"):
        bench.pairs([], 1)


REFUSED = [  # of softmax, s0 the maximum of each row p0
    ("fast", ("outer p0", "parallel 0", "at s1 0"), "other threads|before s0"),
    ("fast", ("at s0 0",), "points that other threads have"),
    ("fast", ("split p0 4", "outer p0.0 p0.1", "parallel 1", "at s1 1"), "computed before s0"),
    ("fast", ("bind s0 r0",), "power of two|no groups"),
    ("fast", ("split r0 8", "bind s0 r0.1"), "no groups"),
    ("fast", ("split r0 0",), "whole numbers from 1 on"),
    ("fast", ("split r0 -4",), "whole numbers from 1 on"),
    ("fast", ("split p0 4", "outer p0.0 p0.0"), "names a loop twice"),
    ("fast", ("split r0 128", "vector r0.1"), "lanes, at most 64"),
    ("fast", ("split r0 64 32", "unroll r0.1 r0.2"), "turns out, at most"),
    ("fast", ("split r0 8", "vector r0.1", "unroll r0.1"), "both in lanes and written out"),
    ("fast", ("nontemporal s0",), "does not store"),
    ("fast", ("keep s0 s1",), "there is a stage s1 already"),
    ("fast", ("nest s0",), "has the loops"),
    ("fast", ("layout s1 p0",), "no loops of this kernel"),
    ("fast", ("import os",), "no directive"),
    ("fast", ("split",), "cannot be applied"),
    ("exact", ("split r0 16", "vector s0 r0.1"), "other partial results"),
    ("exact", ("split r0 2 64", "nest s0 r0.1 r0.0 r0.2", "unroll s0 r0.2"), "another order"),
]  # fmt: skip


@pytest.mark.parametrize("profile, lines, message", REFUSED, ids=lambda x: str(x)[:40])
def test_what_could_compute_something_else_is_refused(profile, lines, message):
    with pytest.raises(ScheduleError, match=message):
        checked(kernel_of("softmax", profile), lines)


def test_a_copy_is_made_where_its_reader_turns():
    kernel = kernel_of("product")
    lines = ["copy s0 right c0", "split r0 8", "split c0.r0 8", "at c0 r0.0"]
    assert checked(kernel, tuple(lines))
    with pytest.raises(ScheduleError, match="which s0 has not"):
        checked(kernel, (*lines, "unroll s0 r0.0"))
    with pytest.raises(ScheduleError, match="there is a stage c0 already"):
        checked(kernel, ("copy s0 right c0", "copy s0 left c0"))


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("name", EXPRESSIONS)
def test_a_kernel_written_down_is_the_same_kernel(name, profile):
    kernel = kernel_of(name, profile)
    assert codec.decode(codec.encode(kernel)) == kernel


@pytest.mark.parametrize("given", [
    {}, [], None, {"nodes": 3}, {"nodes": [["ADD", "float32", [0, 1], None]]},
    {"nodes": [["RANGE", "int64", [], ["p0", -1]]]}, {"nodes": [["INPUT", "float32", [], "x"]]},
])  # fmt: skip
def test_a_damaged_description_is_no_kernel(given):
    with pytest.raises(FormatError, match="damaged"):
        codec.decode(given)


def test_kernels_of_symbolic_sizes_are_not_written():
    from muladd.ir import Var, dtype, make, ops, param

    n = make(ops.INPUT, (), Var("n", 1, 9))
    x = param(0, (n,), dtype.float32)
    kernel = compile_graph((make(ops.MUL, (x, x)),), "CPU").kernels()[0].kernel
    with pytest.raises(FormatError, match="symbolic"):
        codec.encode(kernel)
    assert apply(kernel, ()).text()
