"""The fuzzer finds broken devices, makes the graph small, and lets correct ones pass."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.interp import evaluate
from muladd.interp.differential import Mismatch, check, difference, fuzz
from muladd.ir import Storage, make, ops, toposort
from muladd.ir import dtype as dt
from muladd.rewrite.transcendental import expand


def correct(outputs, inputs, variables):
    return evaluate(outputs, inputs, variables=variables)


def in_another_order(outputs, inputs, variables):
    """The exact profile is a device of its own: other sums, other exp2, fused products."""
    return evaluate(outputs, inputs, variables=variables, profile="exact", expand=expand)


def without(wrong):
    """A device on which the row of an operation means something else."""
    def run(outputs, inputs, variables):
        from muladd.interp import meaning

        original = meaning.elementwise
        meaning.elementwise = lambda op, d, args: wrong(op, args, original(op, d, args))
        try:
            return evaluate(outputs, inputs, variables=variables)
        finally:
            meaning.elementwise = original

    return run


@pytest.mark.parametrize("device", [correct, in_another_order])
def test_a_correct_device_passes(device):
    report = fuzz(device, 60, seed=5, most_graphs=150)
    assert not report.failures, str(report)
    assert report.graphs == 150 and report.nodes > 1500


BROKEN = {
    "MOD": lambda op, args, x: np.fmod(*args) if op is ops.MOD else x,
    "LT": lambda op, args, x: np.less_equal(*args) if op is ops.LT else x,
    "SIN": lambda op, args, x: x * x.dtype.type(1.02) if op is ops.SIN else x,
    "DIV": lambda op, args, x: x * x.dtype.type(0.98) if op is ops.DIV and x.dtype.kind == "f"
    else x,
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_operation_is_found_and_made_small(name):
    run = without(BROKEN[name])
    # the band is found with the oracle, so the device may only be broken while it runs
    with np.errstate(all="ignore"):
        report = fuzz(run, 60, seed=6, most_failures=1, most_graphs=600)
    assert report.failures, "not found"
    failure = report.failures[0]
    order = toposort(failure.outputs)
    assert len(order) <= 6, failure.message
    assert name in failure.message
    assert "expected" in failure.message


def test_an_exception_is_a_failure_and_tells_the_graph():
    def run(outputs, inputs, variables):
        if any(n.op is ops.PAD for n in toposort(outputs)):
            raise ValueError("no room")
        return correct(outputs, inputs, variables)

    report = fuzz(run, 60, seed=8, most_failures=1)
    assert "ValueError: no room" in str(report) and "PAD" in str(report)
    assert len(toposort(report.failures[0].outputs)) <= 2


def test_integers_and_shapes_must_be_equal():
    x = make(ops.INPUT, (), Storage((2,), dt.int8))
    inputs = {x: np.array([1, 2], np.int8)}
    assert difference([x], inputs, {}, [np.array([1, 2], np.int8)]) == ""
    assert "1 of 2 elements" in difference([x], inputs, {}, [np.array([1, 3], np.int8)])
    assert "expected int8[2]" in difference([x], inputs, {}, [np.array([1], np.int8)])
    assert "expected int8[2]" in difference([x], inputs, {}, [np.array([1, 2], np.int32)])
    assert "0 results" in difference([x], inputs, {}, [])
    with pytest.raises(Mismatch, match="%0 = INPUT"):
        check([x], inputs, {}, lambda o, i, v: [np.zeros(2, np.int8)])


def test_the_exact_profile_wants_all_bits():
    x = make(ops.INPUT, (), Storage((70,), dt.float32))
    inputs = {x: np.linspace(0.1, 7, 70, dtype=np.float32)}
    total = make(ops.SUM, (x,), (0,))
    right = evaluate([total], inputs, profile="exact")[0]
    near = np.nextafter(right, np.float32(0))
    assert difference([total], inputs, {}, [right], profile="exact") == ""
    assert difference([total], inputs, {}, [near]) == ""
    assert "1 of 1" in difference([total], inputs, {}, [near], profile="exact")


def test_progress_and_time_are_handed_in():
    seen = []
    ticks = iter(range(1000))
    report = fuzz(correct, 10, seed=1, progress=lambda r: seen.append(r.graphs),
                  clock=lambda: next(ticks))  # fmt: skip
    assert seen == list(range(1, report.graphs + 1)) and 1 < report.graphs < 10
