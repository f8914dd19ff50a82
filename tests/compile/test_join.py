"""Arrays that are put together from parts: each part is computed where it belongs."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import compare

import muladd
from muladd import Tensor
from muladd.compile import compile_graph, parameters
from muladd.compile.join import join, joined
from muladd.ir import make, ops, toposort
from muladd.rewrite.canonical import canonicalise
from muladd.tensor import backend


def graph_of(*tensors: Tensor) -> tuple:
    roots, _ = backend.expand([t.node for t in tensors], "CPU")
    return parameters(tuple(roots))[0]


def given(*shape: int, seed: int = 0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape).astype("float32")
    return Tensor(values, device="CPU").realize()


def costly(x, k):
    return (x * float(k + 2)).exp() + (x + float(k)).tanh() * (x + 2.0).log()


def joins(*tensors: Tensor) -> list:
    outputs = joined(canonicalise(graph_of(*tensors)))
    return [n for n in toposort(outputs) if n.op is ops.JOIN]


def test_few_plain_parts_are_chosen_among() -> None:
    x = given(4, 6)
    assert not joins(Tensor.cat(x * 2.0, x + 1.0))


def test_what_is_dear_is_joined_and_computed_once_for_each_element() -> None:
    x = given(5, 7)
    stacked = Tensor.stack(*[costly(x, k) for k in range(4)])
    (join_,) = joins(stacked)
    assert len(join_.srcs) == 4 and join_.shape == (4, 5, 7)
    (kernel,) = compile_graph(graph_of(stacked), "CPU").kernels()  # parts side by side
    assert [s.argument for s in kernel.kernel.stages] == [1] * 4


def test_the_work_of_many_parts_is_that_of_their_elements() -> None:
    """An element that looked at all parts would cost as much as all of them."""
    x = given(64, 32)
    for count in (4, 16):
        stacked = Tensor.stack(*[costly(x, k) for k in range(count)])
        kernels = compile_graph(graph_of(stacked), "CPU").kernels()
        work = sum(len(toposort((s.value,))) for k in kernels for s in k.kernel.stages)
        assert work < 80 * count


@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (1, 4, 2, 5), (8, 1, 1, 9)])
def test_parts_of_all_sizes_along_all_axes(device, axis, sizes):
    def f(*xs):
        parts = [(x * float(k + 2)).exp() + (x + float(k)).tanh() * x for k, x in enumerate(xs)]
        cat = Tensor.cat if isinstance(parts[0], Tensor) else None
        if cat is not None:
            return cat(*parts, dim=axis) * 0.5
        import torch

        return torch.cat(parts, dim=axis) * 0.5

    rng = np.random.default_rng(1)
    shapes = [[3, 4, 5] for _ in sizes]
    for s, n in zip(shapes, sizes):
        s[axis] = n
    compare(f, *[rng.standard_normal(s).astype("float32") * 0.5 for s in shapes])


def test_parts_that_others_want_too(device):
    """A result that is also a part, a part that stands twice, a reduction, an array itself."""
    x = given(6, 8).to(device)

    def f(x):
        a = costly(x, 1)
        b = costly(x, 2).sum(0).unsqueeze(0)
        return a, Tensor.cat(a, a, b, x, costly(x, 3)), a * 2.0

    expected = [t.numpy() for t in f(x)]
    plain = [costly(x, k).realize() for k in (1, 2, 3)]
    a, b, c = (t.numpy() for t in plain)
    whole = np.concatenate([a, a, b.sum(0)[None], x.numpy(), c])
    np.testing.assert_allclose(expected[1], whole, rtol=2e-6, atol=2e-6)
    step = muladd.jit(f)
    for _ in range(3):
        got = step(x)
        for g, e in zip(got, (a, whole, a * 2)):
            np.testing.assert_allclose(g.numpy(), e, rtol=2e-6, atol=2e-6)


def test_a_part_that_needs_another_one(device):
    x = given(4, 8).to(device)

    def f(x):
        first = costly(x, 1)
        second = costly(first - first.sum(1, keepdim=True), 2)
        third = costly(second * first, 3)
        return Tensor.stack(first, second, third, costly(x, 4)).sum(1)

    x = x * 0.1
    first = costly(x, 1).realize()
    second = costly((first - first.sum(1, keepdim=True)).realize(), 2).realize()
    third = costly((second * first).realize(), 3).realize()
    expected = np.stack([t.numpy() for t in (first, second, third, costly(x, 4))]).sum(1)
    np.testing.assert_allclose(f(x).numpy(), expected, rtol=1e-5, atol=1e-5)


def test_parts_in_a_scan(device):
    def step(carry, x):
        parts = [costly(carry * 0.1, k) for k in range(3)]
        carry = Tensor.cat(*parts, x)[:6] * 0.5
        return carry, Tensor.stack(*[costly(carry * 0.1, k) for k in range(3)])

    from muladd import scan

    start, xs = given(6).to(device), given(5, 2, seed=1).to(device)
    end, all_ = scan(step, start, xs)
    carry, rows = start, []
    for i in range(5):
        carry, row = step(carry.realize(), xs[i])
        rows.append(row.realize().numpy())
    np.testing.assert_allclose(end.numpy(), carry.numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(all_.numpy(), np.stack(rows), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [39, 41, 90])
def test_many_parts_are_a_few_kernels(count, device):
    """Small arrays, values of one array, and large ones that have nothing in common."""
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal(5).astype("float32") for _ in range(count)]
    given_rows = [Tensor(r, device=device).realize() for r in rows]
    x = given(9, 7).to(device).realize()

    def many() -> tuple:
        shifted = [(x * float(k)).abs() + float(k) for k in range(count)]
        return Tensor.stack(*given_rows), Tensor.stack(*shifted, dim=1)

    first, second = many()
    np.testing.assert_array_equal(first.numpy(), np.stack(rows))
    expected = [np.abs(x.numpy() * k) + k for k in range(count)]
    np.testing.assert_allclose(second.numpy(), np.stack(expected, 1), rtol=1e-6)
    for tensor in many() if device == "CPU" else ():
        assert len(compile_graph(graph_of(tensor), "CPU").kernels()) == -(-count // 40)


def test_parts_of_two_arrays(device):
    """One array, and one value, in two that are put together."""
    a, b = given(8).to(device), given(8, seed=1).to(device)

    def f(a, b):
        first = Tensor.cat(a, costly(b, 4), costly(b, 1), costly(b, 2))
        second = Tensor.cat(a, costly(b, 3), costly(b, 4), costly(a, 5), a[:0])
        return first, second, Tensor.cat(first[4:12], second[4:12])

    def value(x, k):
        return costly(x, k).numpy()

    one = np.concatenate([a.numpy(), value(b, 4), value(b, 1), value(b, 2)])
    two = np.concatenate([a.numpy(), value(b, 3), value(b, 4), value(a, 5)])
    step = muladd.jit(f)
    for run in (f, step, step, step):
        for g, e in zip(run(a, b), (one, two, np.concatenate([one[4:12], two[4:12]]))):
            np.testing.assert_allclose(g.numpy(), e, rtol=2e-6, atol=2e-6)


def test_arrays_whose_parts_need_each_others(device):
    """No array's parts need one another, but brought together they would go round in a ring."""
    a, b = given(2).to(device), given(2, seed=1).to(device)

    def f(a, b):
        s = Tensor.stack(b, costly(b, 4), costly(b, 1))
        t = Tensor.stack(costly(a, 2), b, costly(a, 1))
        return Tensor.cat(s.sum(0), Tensor.cat(t[2], costly(b, 4))[0:2])

    one, four = costly(b, 1).numpy(), costly(b, 4).numpy()
    expected = np.concatenate([b.numpy() + four + one, costly(a, 1).numpy()])
    step = muladd.jit(f)
    for run in (f, step, step):
        np.testing.assert_allclose(run(a, b).numpy(), expected, rtol=2e-6, atol=2e-6)


def test_a_part_that_another_parts_sum_needs(device):
    x, y = given(8).to(device), given(8, seed=1).to(device)

    def red(v):
        return v + v.sum(0, keepdim=True) * 0.1

    def f(x, y):
        return Tensor.cat(red(costly(x, 3) + costly(y, 4)), red(red(costly(x, 5))), costly(y, 4))

    four = costly(y, 4).realize()
    first, second = (costly(x, 3) + four).realize(), costly(x, 5).realize()
    second = red(second).realize()
    expected = np.concatenate([red(first).numpy(), red(second).numpy(), four.numpy()])
    np.testing.assert_allclose(f(x, y).numpy(), expected, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize("name", ["silu", "sigmoid", "gelu"])
@pytest.mark.parametrize("twice", [True, False])
def test_activations_that_are_joined(name, twice, device):
    """What backward keeps of an activation's argument is no part of what that is joined to."""
    rng = np.random.default_rng(0)
    x, *w = (rng.standard_normal(s).astype("f") for s in ((4, 5), (5, 6), (5, 6)))

    def loss(x, u, v):
        h = getattr(x @ u, name)()
        return (Tensor.cat(h, h * 2.0 if twice else getattr(x @ v, name)(), dim=1) ** 2).sum()

    def reference(x, u, v):
        act = getattr(torch, name, None) or getattr(torch.nn.functional, name)
        h = act(x @ u)
        return (torch.cat([h, h * 2.0 if twice else act(x @ v)], 1) ** 2).sum()

    ours = [Tensor(a, device=device, requires_grad=True) for a in (x, *w)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, *w)]
    loss(*ours).backward()
    reference(*theirs).backward()
    for a, b in list(zip(ours, theirs))[: 2 if twice else 3]:
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_a_joins_parts_are_its_own() -> None:
    x = given(2, 3)
    node = graph_of(x * 2.0)[0]
    (source,) = {n for n in toposort((node,)) if n.op is ops.INPUT}
    shape = (1, *node.shape)
    value = make(ops.RESHAPE, (make(ops.ADD, (node, node)),), shape)
    first = join([make(ops.RESHAPE, (node,), shape), value, value], 0)
    second = join([value, make(ops.RESHAPE, (source,), shape)], 0)
    outputs = joined((first, second, value))
    joins_ = [n for n in toposort(outputs) if n.op is ops.JOIN]
    parts = [p for n in joins_ for p in n.srcs]
    assert [n.shape for n in joins_] == [(3, 2, 3), (2, 2, 3)]
    assert len({*parts}) == 5 and outputs[2] is value and value not in parts
