"""Convolutions by values at points: the matrices, which sums are meant, and how exact they are."""
from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from oracle import compare

import muladd
from muladd import Tensor, config, nn
from muladd.compile import compile_graph, parameters, winograd
from muladd.compile.pipeline import forget
from muladd.compile.report import profile
from muladd.compile.winograd import fewer_products, matrices
from muladd.device.machine import Machine
from muladd.ir import ops, toposort
from muladd.rewrite.canonical import canonicalise
from muladd.rewrite.rules.inline import inline_calls
from muladd.tensor import backend

WAYS = [(2, 3), (4, 3), (2, 5)]  # results at once, taps


def given(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return Tensor(values.astype("float32"), device="CPU").realize()


def graph_of(*tensors: Tensor) -> tuple:
    roots, _ = backend.expand([t.node for t in tensors], "CPU")
    return parameters(tuple(roots))[0]


@pytest.fixture
def always(monkeypatch):
    """By values at points wherever that can be, also where it is more work."""
    forget()
    monkeypatch.setattr(winograd, "_GAIN", 1e-9)
    yield
    forget()


def by_points(*tensors: Tensor, fixed: frozenset[int] = frozenset()) -> int:
    """How many of the sums behind tensors are done by values at points: each is three JOINs."""
    outputs = canonicalise(inline_calls(graph_of(*tensors)))
    made, _ = fewer_products(outputs, Machine.named("avx2"), fixed)
    return sum(n.op is ops.JOIN for n in toposort(made)) // 3


@pytest.mark.parametrize(("m", "r"), WAYS)
def test_the_matrices_are_exact(m, r):
    a, g, b = matrices(m, r)
    n = m + r - 1
    for k in range(r):
        for i in range(n):  # of the i-th value and the k-th tap, which are bilinear's basis
            w = [g[p][k] for p in range(n)]
            x = [b[p][i] for p in range(n)]
            y = [sum((a[j][p] * w[p] * x[p] for p in range(n)), Fraction(0)) for j in range(m)]
            assert y == [Fraction(i == j + k) for j in range(m)]


def test_which_sums_are_done_by_values_at_points() -> None:
    x, w = given(2, 64, 34, 34), given(64, 64, 3, 3)
    assert by_points(x.conv2d(w)) == 1
    assert by_points(x[:, :, :32, :32].conv2d(w, padding=1)) == 1
    assert by_points(given(1, 64, 32, 32).conv2d(given(64, 64, 5, 5), padding=2)) == 1
    assert by_points(x[:, :, :, 3:33].conv2d(w, padding=(0, 2))) == 1
    assert by_points(x.half().conv2d(w.half())) == 1  # its sums are in float32
    for other in (
        x.conv2d(w, stride=2), x.conv2d(w, dilation=2), x.conv2d(given(64, 64, 1, 1)),
        x.conv2d(given(64, 2, 3, 3), groups=32), x.conv2d(given(64, 64, 7, 7)),
        x.conv2d(given(64, 64, 3, 5)), x.double().conv2d(w.double()),
        given(1, 64, 4, 4).conv2d(w), given(2, 3, 20, 20).conv2d(given(8, 3, 3, 3)),
        x.flatten(1) @ given(73984, 64), x.avg_pool2d(3),
        given(64, 64, 34, 34).conv2d(w),  # whose values at points would go to memory and back
    ):  # fmt: skip
        assert by_points(other) == 0
    with config.context(WINOGRAD=0):
        assert by_points(x.conv2d(w)) == 0


def test_one_image_of_several() -> None:
    """The first, or another, of a batch; and some channels of it."""
    w = given(64, 48, 3, 3)
    cut = (slice(0, 1), slice(1, 2), slice(0, 3, 2), slice(0, 2), slice(0, 3))
    assert by_points(given(3, 48, 34, 34)[:1].conv2d(w)) == 1
    for images in cut:
        for channels in (slice(0, 48), slice(9, 57)):
            compare(lambda a, b, i=images, c=channels: a[i, c].conv2d(b) if isinstance(a, Tensor)
                    else torch.conv2d(a[i, c], b), given(3, 64, 34, 34).numpy(), w.numpy() / 24,
                    gradient=False, rtol=2e-5, atol=5e-5)  # fmt: skip


def test_a_convolution_by_another_name_is_one() -> None:
    """Windows cut out and multiplied by hand; other zeros around them are no padding."""
    x, w = given(2, 64, 34, 34), given(64, 64, 3, 3)
    rows = [x[:, None, :, i : i + 32, j : j + 32] for i in range(3) for j in range(3)]
    taps = Tensor.stack(*rows, dim=-1).reshape(2, 1, 64, 32, 32, 3, 3)
    assert by_points((taps * w[None, :, :, None, None]).sum((2, 5, 6))) == 0  # nine copies of it
    ones = x[:, :, :32, :32].pad((1, 1, 1, 1), value=1.0)
    assert by_points(ones.conv2d(w)) == 1  # what is read is another array, ones and all
    compare(lambda a, b: a.conv2d(b, padding=1) if isinstance(a, Tensor)
            else torch.conv2d(a, b, padding=1),
            x.numpy(), w.numpy() / 24, gradient=False, rtol=2e-5, atol=5e-5)  # fmt: skip


SHAPES = [  # image, out, taps, padding
    ((2, 64, 20, 20), 64, 3, 0), ((1, 48, 13, 33), 80, 3, 1), ((3, 64, 7, 9), 96, 3, (2, 0)),
    ((1, 64, 18, 18), 64, 5, 2), ((64, 18, 21), 64, 3, 1), ((1, 96, 40, 3), 96, 3, (0, 1)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("where", "most", "which"),
    [*(("CPU", 4, i) for i in range(len(SHAPES))), ("CPU", 2, 0), ("CPU", 2, 1), ("OPENCL", 4, 4)],
)
def test_results_and_gradients_are_those_of_torch(where, most, which, always, request):
    if where == "OPENCL":
        request.getfixturevalue("opencl")
    image, out, taps, padding = SHAPES[which]
    rng = np.random.default_rng(2)
    x = rng.standard_normal(image).astype("float32")
    w = (rng.standard_normal((out, image[-3], taps, taps)) / (taps * image[-3] ** 0.5))
    b = rng.standard_normal(out).astype("float32")

    def f(x, w, b):
        conv = x.conv2d if isinstance(x, Tensor) else lambda *a, **k: torch.conv2d(x, *a, **k)
        y = conv(w, b, padding=padding)
        return y.relu(), y.sum()

    with config.context(WINOGRAD=most, DEVICE=where):
        compare(f, x, w.astype("float32"), b, rtol=2e-5, atol=5e-5)  # what docs/accuracy.md says


@pytest.mark.parametrize(("m", "r"), WAYS)
def test_rounding_is_what_the_documentation_says(m, r, always):
    """Errors beside float64, and beside those of the plain sum: docs/accuracy.md."""
    x, w = given(1, 64, 24, 24), given(64, 64, r, r, seed=1)
    exact = torch.conv2d(torch.tensor(x.numpy()).double(), torch.tensor(w.numpy()).double())
    errors = []
    for most in (0, m):
        with config.context(WINOGRAD=most):
            assert by_points(x.conv2d(w)) == (most > 0)
            errors.append(np.abs(x.conv2d(w).numpy() - exact.numpy()) / exact.numpy().std())
    plain, points = (float((e**2).mean() ** 0.5) for e in errors)
    low, high = {(2, 3): (0.4, 0.8), (4, 3): (1.2, 2.2), (2, 5): (0.8, 1.5)}[m, r]
    assert low < points / plain < high
    assert errors[1].max() < 2e-5


def test_what_follows_a_convolution_is_done_where_its_results_are(always) -> None:
    norm = nn.BatchNorm2d(64)
    norm.running_mean.assign(given(64))
    norm.eval()
    x, w = given(1, 64, 24, 24), given(64, 64, 3, 3, scale=0.05)

    def f(x):
        return norm(x.conv2d(w, padding=1)).relu()

    kernels = compile_graph(graph_of(f(x)), "CPU").kernels()
    last = kernels[-2].kernel.stages  # the last one brings the result into its place
    assert len(last) == 16 and not any(s.reduced for s in last)
    assert len(kernels[-1].kernel.stages[0].loads()) == 1
    with config.context(WINOGRAD=0):
        plain = f(x).numpy()
    np.testing.assert_allclose(f(x).numpy(), plain, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", ["residual", "norm of itself", "two users", "result", "gelu"])
def test_what_cannot_follow_is_right(kind, always):
    x, w = given(2, 64, 16, 20), given(64, 64, 3, 3, scale=0.05)
    other = given(2, 64, 16, 20, seed=3)

    def f(x):
        y = x.conv2d(w, padding=1)
        if kind == "residual":
            return (y * 2.0 + other).relu()
        if kind == "norm of itself":
            return (y - y.mean((2, 3), keepdim=True)) / y.std((0, 2, 3), keepdim=True)
        if kind == "two users":
            return y.relu() + y.flip(3), y.exp()
        if kind == "result":
            return y, (y + 1.0).relu(), y.T
        return y.gelu()

    with config.context(WINOGRAD=0):
        plain = muladd.jit(f)
        for _ in range(2):
            expected = plain(x)
    step = muladd.jit(f)
    for _ in range(3):
        got = step(x)
    for g, e in zip(*[t if isinstance(t, tuple) else (t,) for t in (got, expected)], strict=True):
        np.testing.assert_allclose(g.numpy(), e.numpy(), rtol=1e-4, atol=2e-5)


def test_one_weight_for_images_of_two_sizes(monkeypatch):
    """With four results at once and with two: some values of the weight at points are the same."""
    forget()
    monkeypatch.setattr(winograd, "_best", lambda c, *rest: 4 if c.size[0] > 10 else 2)
    x, y = given(1, 64, 24, 24), given(1, 64, 8, 8, seed=1)
    w = given(64, 64, 3, 3, scale=0.05)

    def f(x, y):
        return x.conv2d(w, padding=1), y.conv2d(w, padding=1)

    with config.context(WINOGRAD=0):
        expected = [t.numpy() for t in f(x, y)]
    step = muladd.jit(f)
    for run in (f, step, step, step):
        for g, e in zip(run(x, y), expected):
            np.testing.assert_allclose(g.numpy(), e, rtol=1e-4, atol=2e-5)
    forget()


# --- what is computed of captured tensors once ----------------------------------------------------


def model_of(w: Tensor):
    return muladd.jit(lambda x: x.conv2d(w, padding=1).relu())


def plainly(x: Tensor, w: Tensor) -> np.ndarray:
    with config.context(WINOGRAD=0):
        return x.conv2d(w, padding=1).relu().numpy()


def launches(f, x) -> int:
    with profile() as found:
        f(x).realize()
    return sum(row.calls for row in found.sorted())


def test_a_captured_weight_is_transformed_once_and_again_when_it_changes() -> None:
    x, w = given(1, 256, 14, 14), given(256, 256, 3, 3, scale=0.02).clone().realize()
    assert by_points(x.conv2d(w)) == 0  # not worth it in each call
    f = model_of(w)
    f(x), f(x)
    usual = launches(f, x)
    assert launches(f, x) == usual
    for change in (lambda: w.assign(w * 2.0), lambda: w.mul_(0.5), lambda: w.assign(w + 0.01)):
        change()
        np.testing.assert_allclose(f(x).numpy(), plainly(x, w), rtol=1e-4, atol=1e-4)
        assert launches(f, x) == usual
    assert f.traces == 1


def test_a_weight_that_a_training_step_changes() -> None:
    layer = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    optimizer = nn.optim.SGD(layer.parameters(), lr=0.1)
    x = given(2, 64, 16, 16)

    @muladd.jit
    def step(x):
        loss = (layer(x) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    look = muladd.jit(lambda x: layer(x).relu())
    for _ in range(4):
        step(x)
        expected = plainly(x, layer.weight.detach())
        np.testing.assert_allclose(look(x).detach().numpy(), expected, rtol=1e-4, atol=1e-4)


def test_memory_that_others_write_to_is_looked_at_again() -> None:
    """A tensor over a NumPy array changes without muladd's knowledge."""
    array = np.random.default_rng(0).standard_normal((256, 256, 3, 3)).astype("float32") * 0.02
    x, w = given(1, 256, 14, 14), given(256, 256, 3, 3, scale=0.02).clone().realize()
    f = model_of(w)
    f(x), f(x)
    shared = Tensor.from_numpy(array) if hasattr(Tensor, "from_numpy") else Tensor(array)
    w.assign(shared)
    np.testing.assert_allclose(f(x).numpy(), plainly(x, w), rtol=1e-4, atol=1e-4)
    array *= 2.0
    np.testing.assert_allclose(f(x).numpy(), plainly(x, w), rtol=1e-4, atol=1e-4)


def test_two_threads_and_two_models_share_a_program_but_no_weights() -> None:
    from concurrent.futures import ThreadPoolExecutor

    x = given(1, 256, 14, 14)
    weights = [given(256, 256, 3, 3, seed=s, scale=0.02).clone().realize() for s in range(2)]
    models = [model_of(w) for w in weights]
    for f in models:
        f(x), f(x)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: models[i % 2](x).numpy(), range(12)))
    for i, y in enumerate(found):
        np.testing.assert_allclose(y, plainly(x, weights[i % 2]), rtol=1e-4, atol=1e-4)


def test_a_program_that_holds_is_kept_on_disk(tmp_path) -> None:
    x, w = given(1, 256, 14, 14), given(256, 256, 3, 3, scale=0.02).clone().realize()
    expected = plainly(x, w)
    with config.context(CACHE_DIR=str(tmp_path), CHECK=0):
        for _ in range(2):
            forget()
            f = model_of(w)
            for _ in range(3):
                np.testing.assert_allclose(f(x).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert list(tmp_path.rglob("*"))
