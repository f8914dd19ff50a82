"""Ranges of whole numbers: no value lies outside, and look-ups that lie inside have no guard."""
from __future__ import annotations

import numpy as np

from muladd import Tensor, config, jit
from muladd.interp import evaluate
from muladd.interp.generate import generate
from muladd.ir import Storage, const, make, ops, toposort
from muladd.ir import dtype as dt
from muladd.loop.values import whole_numbers

WHOLE = (dt.bool_, dt.int8, dt.uint8, dt.int16, dt.int32, dt.int64)


def test_no_value_of_a_random_graph_lies_outside_its_range():
    told = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        outputs, inputs, variables = generate(rng, 25, dtypes=WHOLE, structure=False)
        nodes = [n for n in toposort(outputs) if n.op is not ops.CONST]
        for n, values in zip(nodes, evaluate(nodes, inputs, variables=variables)):
            found = whole_numbers(n)
            assert (found is None) == n.dtype.is_float
            if found is not None and values.size:
                assert found[0] <= int(values.min()) and int(values.max()) <= found[1], (seed, n.op)
                told += found != (int(n.dtype.min), int(n.dtype.max))
    assert told > 100  # it says something, too


def test_a_read_under_a_condition_may_give_zero():
    x = make(ops.MAX, (make(ops.INPUT, (), Storage((4,), dt.int32)), const(3, dt.int32, (4,))))
    i, true = const(1, dt.int64), const(True, dt.bool_)
    read = make(ops.READ, (i,), (x, 1), dt.int32)
    guarded = make(ops.READ, (i, true), (x, 1), dt.int32)
    assert whole_numbers(read) == (3, dt.int32.max)
    assert whole_numbers(guarded) == (0, dt.int32.max)


def test_a_look_up_is_guarded_unless_its_indices_lie_inside():
    table, at = Tensor(np.arange(5, dtype="f")), Tensor(np.array([3, -2, 4], "i4"))

    def text(index: Tensor) -> str:
        with config.context(CHECK=0):  # with 1 indices are computed first, to be looked at
            return "".join(k.plan.kernel.text() for k in table[index].kernels())

    otherwise = "0.0:float32"  # what is given where nothing is loaded
    assert otherwise in text(at)
    assert otherwise in text(at % 6)  # 5 is outside
    assert otherwise not in text(at % 5)
    assert table[at % 5].numpy().tolist() == [3, 3, 4]


def test_sums_over_a_symbolic_axis_of_what_was_looked_up_stay_in_bounds():
    """The last turn of a split symbolic axis reads past it, into padding that must be there."""

    @jit(symbolic={"at": {0: ("n", 1, 256)}, "other": {0: ("n", 1, 256)}})
    def spread(x, at, other):
        y = (x[at % 4].reshape(-1, 2, 2, 8) * other.unsqueeze(1)).sum(-1)
        return (y - y.amax(0, keepdim=True)).exp().sum(0)

    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 2, 16), np.float32)
    with config.context(CHECK=1):
        for n in (5, 70, 256, 33):
            at, other = rng.integers(0, 9, n, np.int32), rng.standard_normal((n, 2, 8), np.float32)
            y = (x[at % 4].reshape(-1, 2, 2, 8) * other[:, None]).sum(-1)
            want = np.exp(y - y.max(0)).sum(0)
            np.testing.assert_allclose(spread(*map(Tensor, (x, at, other))).numpy(), want, 1e-4)
