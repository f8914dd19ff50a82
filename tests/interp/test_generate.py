"""The random graphs: all of the language occurs in them, and their values stay moderate."""
from __future__ import annotations

from collections import Counter

import numpy as np

from muladd.interp import evaluate
from muladd.interp.generate import GREATEST, generate
from muladd.ir import CallArg, Node, ScanArg, encode, ops, toposort
from muladd.ir import dtype as dt


def test_every_operation_and_dtype_and_kind_of_shape_occurs():
    operations: Counter[str] = Counter()
    seen: set[object] = set()
    for seed in range(150):
        outputs, _, variables = generate(np.random.default_rng(seed), 25)
        seen |= {"symbolic"} if variables else set()
        for n in toposort(outputs):
            operations[n.op.name] += 1
            seen.add(n.dtype)
            seen.add(f"rank {n.ndim}")
            seen |= {"size 0"} if 0 in n.shape else set()
            seen |= {"size 1"} if 1 in n.shape else set()
            if any(isinstance(d, Node) for d in n.shape):
                seen.add("symbolic shape")
            if n.op is ops.SLICE and any(step < 0 for _, _, step in n.arg):
                seen.add("backwards")
            if isinstance(n.arg, ScanArg):
                seen |= {f"{n.arg.carries} carries", f"reverse {n.arg.reverse}"}
            if isinstance(n.arg, ScanArg | CallArg):
                seen.add(f"{len(n.arg.body.outs)} results")
    assert not {o.name for o in ops.OPS} - operations.keys()
    wanted = {*dt.ALL, "symbolic", "symbolic shape", "rank 0", "rank 4", "size 0", "size 1",
              "backwards", "0 carries", "2 carries", "reverse True", "2 results"}  # fmt: skip
    assert not wanted - seen


def test_a_seed_gives_the_same_graph_and_inputs():
    a, b = (generate(np.random.default_rng(7), 25) for _ in range(2))
    assert encode(a[0]) == encode(b[0])
    assert all(np.array_equal(x, y) for x, y in zip(a[1].values(), b[1].values()))
    assert a[2] == b[2]


def test_values_are_finite_and_moderate():
    for seed in range(60):
        outputs, inputs, variables = generate(np.random.default_rng(seed), 25)
        for value in evaluate(outputs, inputs, variables=variables):
            if value.dtype.kind == "f":
                assert (np.abs(value) <= GREATEST).all()


def test_what_may_occur_can_be_limited():
    for seed in range(30):
        outputs, _, variables = generate(
            np.random.default_rng(seed), 25, dtypes=[dt.float32, dt.int32], symbolic=False,
            structure=False,
        )  # fmt: skip
        order = toposort(outputs)
        assert not variables
        assert {n.dtype for n in order} <= {dt.bool_, dt.int32, dt.int64, dt.float32}
        assert not {n.op for n in order} & {ops.CALL, ops.SCAN}
