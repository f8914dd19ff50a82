"""Graphs in another order of outputs and Params have one program, and it serves each of them."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
from support import programs

from muladd import Tensor, jit, nn
from muladd.compile import compile_graph, pipeline
from muladd.compile.donate import donatable
from muladd.compile.order import Ordered
from muladd.interp import evaluate
from muladd.ir import dtype, make, ops, param, var
from muladd.nn import optim
from muladd.tensor import known


@pytest.fixture(autouse=True)
def compiling(monkeypatch):
    """The graphs that were compiled; none was before."""
    for module in (pipeline, known):
        monkeypatch.setattr(module, "_programs", {})
    graphs = []
    real = pipeline._compile
    monkeypatch.setattr(pipeline, "_compile", lambda *args: graphs.append(args[0]) or real(*args))
    return graphs


def graph(numbers: tuple[int, ...], order: tuple[int, ...]) -> tuple:
    """A product with weights, its rows' sums, the weights' update and an input as it is: over
    Params of these numbers, in this order."""
    x, w, rate = (param(n, s, dtype.float32) for n, s in zip(numbers, ((4, 6), (6, 5), ())))
    wide = make(ops.EXPAND, (make(ops.RESHAPE, (x,), (4, 6, 1)),), (4, 6, 5))
    tall = make(ops.EXPAND, (make(ops.RESHAPE, (w,), (1, 6, 5)),), (4, 6, 5))
    product = make(ops.SUM, (make(ops.MUL, (wide, tall)),), (1,))
    rows = make(ops.SUM, (product,), (1,))
    moved = make(ops.ADD, (w, make(ops.MUL, (w, make(ops.EXPAND, (rate,), (6, 5))))))
    outs = product, rows, moved, x
    return tuple(outs[i] for i in order)


def run(program, arrays: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Inputs between those that the graph has may be anything."""
    nothing = np.zeros(1, np.float32)
    return programs.run(program, [arrays.get(i, nothing) for i in range(len(program.inputs))])


def test_any_order_has_the_one_program_and_the_right_values(compiling):
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 2, 3, 1, 1)]
    for numbers, order in itertools.product([(0, 1, 2), (2, 0, 1), (7, 3, 5)], orders):
        outputs = graph(numbers, order)
        program = compile_graph(outputs, "CPU")
        rng = np.random.default_rng(sum(numbers))
        shapes = dict(zip(numbers, ((4, 6), (6, 5), ())))
        arrays = {n: rng.standard_normal(s, np.float32) for n, s in shapes.items()}
        params = {param(n, s, dtype.float32): arrays[n] for n, s in shapes.items()}
        for found, wanted in zip(run(program, arrays), evaluate(outputs, params), strict=True):
            np.testing.assert_allclose(found, np.ravel(wanted), rtol=1e-5, atol=1e-6)
    assert len(compiling) == 2  # six outputs are another graph than four


def test_a_graph_in_its_own_order_stays_as_it_is():
    own = Ordered.of(graph((4, 0, 2), (2, 1, 3, 0)))
    assert Ordered.of(own.graph).graph == own.graph
    assert len(own.params) == 3 and set(own.params) == {4, 0, 2}


def test_state_is_written_over_in_any_order():
    for numbers, order in (((0, 1, 2), (2,)), ((2, 5, 0), (2, 3)), ((2, 5, 0), (3, 2))):
        pairs = donatable(compile_graph(graph(numbers, order), "CPU"))
        assert (order.index(2), numbers[1]) in pairs


def test_sizes_keep_their_names(compiling):
    n = var("n", 1, 64)
    for first, second in ((0, 1), (1, 0)):
        x, y = param(first, (n,), dtype.float32), param(second, (n,), dtype.float32)
        program = compile_graph((make(ops.MUL, (x, y)), make(ops.SUM, (x,), (0,))), "CPU")
        assert program.variables == ("n",)
    assert len(compiling) == 1


def test_what_is_computed_once_is_found_in_any_order():
    """A convolution's weights are transformed once; they are another Param here."""
    x = Tensor(np.random.default_rng(0).standard_normal((1, 16, 24, 24), np.float32)).realize()
    layer = nn.Conv2d(16, 16, 3, padding=1)
    model = jit(lambda x, y: (layer(x) * 2, y + 1))
    other = Tensor.ones(3).realize()
    for _ in range(3):
        found, one = model(x, other)
    np.testing.assert_allclose(found.numpy(), (layer(x) * 2).numpy(), rtol=1e-3, atol=1e-3)
    assert one.tolist() == [2, 2, 2]


def test_a_training_step_is_compiled_once_whether_traced_or_not(compiling):
    """Also the first, whose averages are zeros still, and a loss that is returned as a view."""
    rng = np.random.default_rng(0)
    x = Tensor(rng.standard_normal((16, 8), np.float32)).realize()
    label = Tensor(rng.integers(0, 3, 16)).realize()
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3))
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)

    def step() -> Tensor:
        loss = model(x).cross_entropy(label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    losses = [step().item() for _ in range(2)]
    steps = [g for g in compiling if len(g) > 10]
    assert len(steps) == 1
    traced = jit(step)
    losses += [traced().item() for _ in range(3)]
    assert [g for g in compiling if len(g) > 10] == steps
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 5


def test_the_first_call_of_a_step_runs_its_forward_pass_once(compiling):
    weight = Tensor(np.ones((8, 8), np.float32), requires_grad=True)
    optimizer = optim.SGD([weight], lr=0.1)
    x = Tensor(np.ones((4, 8), np.float32)).realize()

    @jit
    def step(x):
        loss = (x @ weight).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    step(x)
    assert sum(any(n.shape == () for n in g) and len(g) > 1 for g in compiling) == 1
    assert not [g for g in compiling if len(g) == 1 and g[0].shape == ()], "the loss by itself"


def test_running_statistics_are_computed_with_the_first_step(compiling):
    """State that waits beside the optimiser's is not computed by a pass of its own."""
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    x = Tensor(np.ones((4, 8), np.float32)).realize()
    for parameter in model.parameters():
        parameter.realize()
    compiling.clear()
    model(x).square().mean().backward()
    optimizer.step()
    assert len(compiling) == 1
