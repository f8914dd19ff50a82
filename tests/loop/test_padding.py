"""Terms of a convolution that lie in the padding are left out, and nothing else is."""
from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from muladd import Tensor, config
from muladd.compile import compile_graph, parameters
from muladd.ir import ops, sym, toposort
from muladd.loop.lower import lower
from muladd.loop.padding import padding
from muladd.loop.plan import plain
from muladd.loop.statements import For, Grid, Store


def data(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def kernels(t: Tensor, profile: str = "fast") -> list:
    with config.context(CHECK=0, WINOGRAD=0, PROFILE=profile):
        graph, _ = parameters((t.node,))
        return compile_graph(graph, "CPU").kernels()


def convolution(images=20, channels=16, size=6, results=32, taps=3, pad=2) -> Tensor:
    x, w = data(images, channels, size, size), data(results, channels, taps, taps, seed=1)
    return Tensor(x).conv2d(Tensor(w), padding=pad)


def fused(body: list, loops: dict) -> int:
    """Multiply-adds of vectors that a body runs, with its loops' variables as given."""
    total = 0
    for s in body:
        if isinstance(s, Grid):
            for turn in np.ndindex(*(x.arg.extent for x in s.loops)):
                total += fused(s.body, {**loops, **dict(zip(s.loops, map(int, turn)))})
        elif isinstance(s, For):
            start, stop = (sym.replace(x, loops) for x in (s.start, s.stop))
            counts = [fused(s.body, {**loops, s.loop: i}) for i in range(start, stop)]
            total += sum(counts)
        elif isinstance(s, Store):
            products = (n for n in toposort((s.value,)) if n.op in (ops.MUL, ops.FMA))
            total += any(n.shape and n.dtype.is_float for n in products) and ".acc" in str(s.place)
    return total


@pytest.mark.parametrize(("size", "taps", "pad"), [(6, 3, 2), (8, 3, 1), (20, 5, 4), (5, 3, 4)])
def test_only_terms_inside_the_image_are_added(size, taps, pad):
    (kernel,) = kernels(convolution(16, 16, size, 32, taps, pad))
    n = size + 2 * pad - taps + 1
    inside = sum(0 <= i + k - pad < size for i in range(n) for k in range(taps))
    whole = inside**2 * 16 * 16 * 32  # channels, images, results
    lanes = max(x.arg.extent for _, x in kernel.plan.vector)
    if "inline p3.0 p3.1" in kernel.plan.lines:
        assert fused(kernel.lowered().body, {}) * lanes == whole
    else:
        pytest.fail(f"not as in narrow images: {kernel.plan.lines}")


def test_rows_of_any_plan_end_at_the_border():
    """Without a directive too: a loop over taps that is one begins and ends there."""
    (kernel,) = kernels(convolution())
    loops = [s for s in nested(lower(plain(kernel.kernel)).body) if isinstance(s, For)]
    starts = [s.start for s in loops if s.loop.arg.name == "r1"]
    assert any(not isinstance(x, int) for x in starts)  # the others lie inside


def nested(body):
    for s in body:
        yield s
        for inside in ("body", "orelse"):
            yield from nested(getattr(s, inside, []))


def test_only_a_factor_that_is_zero_leaves_terms_out():
    """Not where a term is a sum, a maximum, or what exactness prescribes."""
    window = Tensor(data(4, 4, 8, 8)).max_pool2d(3, stride=1, padding=1)
    shifted = Tensor(data(4, 4, 8, 8)).pad((1, 1, 1, 1)) + 1.0
    found = [*kernels(window), *kernels(shifted.sum((2, 3))), *kernels(convolution(), "exact")]
    assert not any(padding(k.kernel, s) for k in found for s in k.kernel.stages)


SHAPES = list(itertools.product((1, 4, 7, 13, 20, 30), (1, 3, 5), (0, 1, 2, 4)))


@pytest.mark.parametrize(("size", "taps", "pad"), SHAPES)
def test_results_and_gradients_with_padding(size, taps, pad):
    if size + 2 * pad < taps:
        return
    seed = SHAPES.index((size, taps, pad))
    rng = np.random.default_rng(seed)
    n, c, o = (int(rng.integers(1, 20)), int(rng.integers(1, 20)), int(rng.choice([5, 16, 32])))
    x, w = data(n, c, size, size, seed=seed), data(o, c, taps, taps, seed=seed + 1)
    ours = [Tensor(a, requires_grad=True) for a in (x, w)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    with config.context(CHECK=True, WINOGRAD=0):
        y = ours[0].conv2d(ours[1], padding=pad)
        y.square().sum().backward()
        t = torch.conv2d(*theirs, padding=pad)
        t.square().sum().backward()
        for a, b in zip((y, *(v.grad for v in ours)), (t, *(v.grad for v in theirs))):
            b = b.detach().numpy()
            np.testing.assert_allclose(
                a.detach().numpy(), b, atol=2e-5 * max(1.0, float(abs(b).max()))
            )


def test_infinite_weights_do_not_meet_padding():
    """What is left out counts as finite: an infinity spoils what it is multiplied with alone."""
    w = data(32, 16, 3, 3)
    w[0, 0, 0, 0] = np.inf
    with config.context(WINOGRAD=0):
        y = Tensor(np.ones((16, 16, 9, 9), np.float32)).conv2d(Tensor(w), padding=1).numpy()
    assert np.isposinf(y[:, 0, 1:, 1:]).all() and np.isfinite(y[:, 0, 0, 0]).all()
    assert np.isfinite(y[:, 1:]).all()


# images whose places are one axis for the loops: then its columns do not grow with it
@pytest.mark.parametrize(("taps", "size", "channels", "results", "images"), [
    (3, 7, 2, 32, 1), (3, 7, 18, 32, 8), (5, 7, 5, 48, 3), (5, 10, 26, 5, 31), (5, 23, 7, 32, 14),
])  # fmt: skip
def test_places_that_are_one_axis(taps, size, channels, results, images):
    same_as_torch(data(images, channels, size, size), data(results, channels, taps, taps, seed=1),
                  padding=taps // 2)  # fmt: skip


@pytest.mark.parametrize(("size", "taps", "channels", "results"), [
    (9, 9, 8, 48), (5, 9, 8, 32), (13, 11, 8, 32),
])  # fmt: skip
def test_lines_of_more_taps_than_are_written_out(size, taps, channels, results):
    """Their loop over taps is one, inside of tiles of which each is written out."""
    same_as_torch(data(16, channels, size, size), data(results, channels, 3, taps, seed=1),
                  padding=(1, taps // 2))  # fmt: skip


@pytest.mark.parametrize("number", range(16))
def test_any_padded_convolution(number):
    random = np.random.default_rng(number)
    taps, groups = int(random.integers(1, 6)), int(random.choice([1, 1, 2, 4]))
    stride, dilation = (int(random.choice([1, 1, 2, 3])) for _ in range(2))
    channels, results = (groups * int(random.choice([1, 3, 8, 17, 32])) for _ in range(2))
    pad = int(random.integers(0, taps * dilation + 1))
    size = dilation * (taps - 1) + 1 + int(random.integers(0, 24))
    x = random.standard_normal((int(random.integers(1, 9)), channels, size, size)).astype("f")
    w = random.standard_normal((results, channels // groups, taps, taps)).astype("f")
    same_as_torch(x, w, padding=pad, stride=stride, dilation=dilation, groups=groups)


def same_as_torch(x, w, **options):
    """Forward and both gradients."""
    ours = [Tensor(a, device="CPU", requires_grad=True) for a in (x, w)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, w)]
    with config.context(WINOGRAD=0):
        y = ours[0].conv2d(ours[1], **options)
        y.square().sum().backward()
        found = [y.detach(), *(t.grad for t in ours)]
        Tensor.realize(*found)
    z = torch.conv2d(*theirs, **options)
    z.square().sum().backward()
    for a, b in zip(found, (z.detach(), *(t.grad for t in theirs))):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-3,
                                   atol=2e-5 * float(b.abs().max()))  # fmt: skip
