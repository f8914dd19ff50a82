"""Listings and drawings of graphs."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.interp.generate import generate
from muladd.ir import Body, ScanArg, Storage, const, make, ops, param, sym, var
from muladd.ir import dtype as dt
from muladd.ir.text import size_text, to_dot, to_text


def example():
    n = var("n", 1, 9)
    p, q = param(0, (n,), dt.float32), param(1, (), dt.float32)
    body = Body((make(ops.MUL, (p, make(ops.EXPAND, (q,), (n,)))),), (p, q), "decay")
    x = make(ops.INPUT, (), Storage((n,), dt.float32))
    y = make(ops.SCAN, (x, const(0.5, dt.float32)), ScanArg(body, 3, 1, 0))
    return [make(ops.SUM, (make(ops.PAD, (y,), (((1, 0, 0),), 2.0)),), (0,))]


LISTING = """\
body decay(float32[n], float32[]):
    %0 = INPUT float32[n] parameter 0
    %1 = INPUT float32[] parameter 1
    %2 = EXPAND float32[n] %1
    %3 = MUL float32[n] %0 %2
    return %3

%0 = INPUT float32[n] storage 0 on CPU
%1 = CONST float32[] 0.5
%2 = SCAN float32[n] %0 %1 decay.0 length=3 carries=1 stacked=0
%3 = PAD float32[n + 1] %2 by (1, 0, 0) with 2.0
%4 = SUM float32[] %3 axes=(0)
return %4
"""


def test_a_listing():
    assert to_text(example()) == LISTING


def test_a_drawing_has_every_node_once_and_a_box_per_body():
    dot = to_dot(example())
    assert dot.count("[label=\"") == 9
    assert dot.count("subgraph cluster_") == 1
    assert dot.count("{") == dot.count("}")
    assert 'label="decay"' in dot


@pytest.mark.parametrize("seed", range(30))
def test_every_graph_can_be_printed(seed):
    outputs = generate(np.random.default_rng(seed), 25)[0]
    assert to_text(outputs) == to_text(outputs)
    assert to_dot(outputs).startswith("digraph muladd {")


def test_bodies_of_one_name_are_told_apart():
    def body(op):
        p = param(0, (2,), dt.float32)
        return Body((make(op, (p,)),), (p,), "layer")

    x = make(ops.INPUT, (), Storage((2,), dt.float32))
    text = to_text([make(ops.SCAN, (x,), ScanArg(body(op), 2, 1, 0)) for op in (ops.SQRT, ops.SIN)])
    assert "body layer(" in text and "body layer.2(" in text


@pytest.mark.parametrize(("text", "build"), [
    ("n + 1", lambda n, m: n + 1),
    ("n*m*2 + 3", lambda n, m: n * m * 2 + 3),
    ("(n + m)//3", lambda n, m: (n + m) // 3),
    ("n%m", lambda n, m: n % m),
    ("m + n*(-1)", lambda n, m: m - n),
    ("7", lambda n, m: 7),
])  # fmt: skip
def test_sizes_are_written_as_people_do(text, build):
    n, m = var("n", 1, 9), var("m", 2, 9)
    found = size_text(build(n, m))
    values = {"n": 5, "m": 3}
    assert eval(found, dict(values)) == sym.evaluate(build(n, m), values)
    assert sorted(found) == sorted(text)
