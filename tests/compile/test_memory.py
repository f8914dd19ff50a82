"""The plan of memory: arrays that live together never overlap, and the arena is near its bound."""
from __future__ import annotations

import random

import numpy as np
import pytest

from muladd import Tensor, config, jit
from muladd import device as devices
from muladd.compile import memory, pipeline
from muladd.compile.program import Array, Loop, Move, Program, Use
from muladd.ir import dtype, sym, var
from muladd.tensor.functional import checkpoint, grad


@pytest.fixture(autouse=True)
def on_the_cpu():
    with config.context(DEVICE="CPU"):
        yield


def number(x) -> int:
    return sym.evaluate(x, {})


def checked(actions) -> tuple[int, int]:
    """(size of the arena, its lower bound), after proving that no two living arrays overlap."""
    offsets, total = memory.place(actions, number)
    spans = memory.lifetimes(actions)
    arrays = list(offsets)
    for i, a in enumerate(arrays):
        assert offsets[a] % 64 == 0 and offsets[a] + size(a) <= total
        for b in arrays[:i]:
            together = spans[a][0] <= spans[b][1] and spans[b][0] <= spans[a][1]
            apart = (offsets[a] + size(a) <= offsets[b] or offsets[b] + size(b) <= offsets[a])
            assert apart or not together
    return total, memory.lower_bound(actions, number)


def size(a: Array) -> int:
    return number(a.size) * a.dtype.itemsize


def program_of(f) -> Program:
    """The program of a jitted function that was called twice."""
    (trace,) = [t for kept in f._programs.values() for t in kept]
    return trace.program


def chain(rng: random.Random, length: int) -> list:
    """Moves between arrays of many sizes, each with a few later readers."""
    arrays = [Array(dtype.float32, 16 * rng.randint(1, 200)) for _ in range(length)]
    actions: list = []
    for i, a in enumerate(arrays):
        source = arrays[max(0, i - rng.randint(1, 12))]
        actions.append(Move(Use(a), Use(source), 1, 4))
    return actions


@pytest.mark.parametrize("seed", range(8))
def test_random_lifetimes(seed: int) -> None:
    total, bound = checked(chain(random.Random(seed), 120))
    assert bound <= total <= 1.1 * bound


def test_what_crosses_turns_of_a_loop_lives_throughout() -> None:
    carried, inside, outside, late = (Array(dtype.float32, 64) for _ in range(4))
    loop = Loop(3, [Move(Use(inside), Use(carried), 64, 4), Move(Use(carried), Use(inside), 64, 4)])
    actions = [Move(Use(carried), Use(outside), 64, 4), loop, Move(Use(late), Use(carried), 64, 4)]
    spans = memory.lifetimes(actions)
    assert spans[carried][0] == 0 and spans[carried][1] == spans[late][0]
    assert checked(actions)[0] == 2 * 256  # outside and late take the place of what is gone


@pytest.mark.slow
def test_a_gpt_training_step_is_near_the_lower_bound() -> None:
    from muladd.bench.networks import gpt_step

    _, step = gpt_step(2, 32, 2)
    text = Tensor(np.random.default_rng(0).integers(0, 65, (4, 25), dtype=np.int64)).realize()
    for _ in range(2):
        step(text)
    program = program_of(step)
    total, bound = checked(program.actions)
    assert bound <= total <= 1.1 * bound
    outputs = sum(program.bind().outputs)
    assert program.peak_bytes() == outputs + max(total, 64)  # known before anything runs


def test_checkpoint_lowers_the_peak() -> None:
    weights = [Tensor(np.eye(64, dtype="float32") * 0.9).realize() for _ in range(12)]
    x = Tensor(np.ones((512, 64), "float32")).realize()

    def layers(x: Tensor, *some: Tensor) -> Tensor:
        for w in some:
            x = (x @ w).tanh().exp().sin()
        return x

    def loss(parts: bool):
        def f(weights, x):
            for i in range(0, 12, 3):
                some = weights[i : i + 3]
                x = checkpoint(layers)(x, *some) if parts else layers(x, *some)
            return x.sum()

        return f

    peaks, values = [], []
    for parts in (False, True):
        step = jit(grad(loss(parts)))
        for _ in range(2):
            found = step(weights, x)
        program = program_of(step)
        checked(program.actions)
        peaks.append(program.peak_bytes())
        values.append([g.numpy() for g in found])
    assert peaks[1] < 0.8 * peaks[0]
    for a, b in zip(*values):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_one_order_serves_all_sizes(monkeypatch):
    """Placing for another size searches nothing, and wastes little where a search would not."""
    n = var("n", 1, 4096)
    rng = random.Random(5)
    arrays = [Array(dtype.float32, sym.mul(n, rng.randint(1, 40))) for _ in range(60)]
    actions: list = [Move(Use(a), Use(arrays[max(0, i - rng.randint(1, 9))]), 1, 4)
                     for i, a in enumerate(arrays)]  # fmt: skip
    program = Program(devices.get("NULL"), actions, [], [], ("n",))
    found = program.arrangement()
    monkeypatch.setattr(memory, "arranged", None)
    for value in (1, 77, 4096):
        at = lambda x, value=value: sym.evaluate(x, {"n": value})  # noqa: E731
        _, total = memory.place(actions, at, found)
        assert total <= 1.25 * memory.lower_bound(actions, at) + 64 * len(arrays)


def test_arrays_that_an_order_lacks_or_repeats_are_placed_all_the_same():
    actions = chain(random.Random(1), 30)
    spans = memory.lifetimes(actions)
    for order in ([], list(spans)[:7], [*spans, *spans], [Array(dtype.int8, 3)]):
        offsets, total = memory.place(actions, number, order)
        assert offsets.keys() == spans.keys()
        assert total >= memory.lower_bound(actions, number)


def test_one_table_serves_many_sizes():
    """Another size costs a few numbers: no plan, no steps, no memory."""

    @jit(symbolic={"x": {0: ("n", 1, 4096)}})
    def rows(x):
        y = (x - x.mean(0, keepdim=True)).exp()
        return (y / y.sum(0, keepdim=True)).amax(1, keepdim=True) * y.sum(1, keepdim=True)

    before = set(map(id, pipeline.compiled()))
    rng = np.random.default_rng(0)
    for n in (3, *range(1, 40), 900, 77):
        x = rng.standard_normal((n, 5)).astype(np.float32)
        y = np.exp(x - x.mean(0))
        want = (y / y.sum(0)).max(1, keepdims=True) * y.sum(1, keepdims=True)
        np.testing.assert_allclose(rows(Tensor(x)).numpy(), want, 1e-4)
    (program,) = [p for p in pipeline.compiled() if id(p) not in before and p.variables]
    assert len(program.bound) > 38 and len(program.tables) <= 2


def test_memory_fits_where_an_array_grows_as_a_size_shrinks():
    @jit(symbolic={"x": {0: ("n", 1, 60)}})
    def both(x):
        rest = Tensor.arange(64, dtype="float32")[x.shape[0] :].reshape(-1, 1) / 64
        far = (rest * rest.transpose(0, 1)).exp().sum(0)
        return (far * 3).sum(0, keepdim=True) + far, (x * 5).sum()

    for n in (50, 3, 60, 1, 31):
        x, rest = np.arange(n, dtype=np.float32) / 64, np.arange(64, dtype=np.float32)[n:] / 64
        found, total = both(Tensor(x))
        far = np.exp(rest[:, None] * rest).sum(0)
        np.testing.assert_allclose(found.numpy(), (far * 3).sum(0, keepdims=True) + far, 1e-5)
        np.testing.assert_allclose(total.item(), (x * 5).sum(), 1e-5)
