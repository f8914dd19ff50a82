"""How many kernels well-known compositions become, and what work those do."""
from __future__ import annotations

import numpy as np
import pytest

import muladd
from muladd import Tensor, config, nn
from muladd.codegen.llvm import render
from muladd.compile import compile_graph, parameters
from muladd.ir import ops, toposort
from muladd.schedule.analysis import size, stride
from muladd.tensor import backend


def kernels(*tensors: Tensor) -> list:
    """The kernels that computing these tensors on the CPU takes."""
    roots, _ = backend.expand([t.node for t in tensors], "CPU")
    graph, _ = parameters(tuple(roots))
    return compile_graph(graph, "CPU").kernels()


def given(*shape: int, grad: bool = False) -> Tensor:
    values = np.random.default_rng(sum(shape)).standard_normal(shape).astype("float32")
    return Tensor(values, device="CPU", requires_grad=grad)


def test_multiply_add_is_one_kernel() -> None:
    a, b, c = given(64, 48), given(64, 48), given(64, 48)
    assert len(kernels(a * b + c)) == 1


def test_a_product_of_six_is_one_kernel_that_reads_each_once() -> None:
    xs = [given(33, 20) for _ in range(6)]
    xs = [x + float(i) for i, x in enumerate(xs)]
    (kernel,) = kernels(xs[0] * xs[1] * xs[2] * xs[3] * xs[4] * xs[5])
    assert sum(len(s.loads()) for s in kernel.kernel.stages) == len(kernel.kernel.arguments) - 1


def test_matmul_with_bias_gelu_and_residual_is_one_kernel() -> None:
    x, w, b, r = given(64, 32), given(32, 48), given(48), given(64, 48)
    assert len(kernels((x @ w + b).gelu() + r)) == 1


def test_convolution_with_batch_norm_and_relu_is_one_kernel() -> None:
    x, w = given(2, 3, 12, 12), given(8, 3, 3, 3)
    mean, var, gamma, beta = given(8), given(8).abs() + 1.0, given(8), given(8)
    var = Tensor(var.numpy(), device="CPU")
    y = x.conv2d(w, padding=1)
    y = (y - mean.reshape(8, 1, 1)) / (var.reshape(8, 1, 1) + 1e-5).sqrt()
    assert len(kernels((y * gamma.reshape(8, 1, 1) + beta.reshape(8, 1, 1)).relu())) == 1


def test_what_windows_repeat_is_computed_by_the_kernel_before() -> None:
    """Activations end the kernel of their convolution; the next one reads them padded."""
    x, w = given(1, 8, 14, 14), given(8, 8, 3, 3)
    shift = given(8).reshape(8, 1, 1)
    first, second = kernels((x.conv2d(w, padding=1) + shift).relu().conv2d(w, padding=1))
    assert [len(s.loads()) for s in first.kernel.stages] == [2, 1]
    assert [len(s.loads()) for s in second.kernel.stages] == [2]


def test_a_convolution_and_the_channels_product_after_it_are_two_kernels() -> None:
    x, w, across = given(1, 16, 28, 28), given(16, 16, 3, 3), given(48, 16, 1, 1)
    assert len(kernels(x.conv2d(w, padding=1).relu().conv2d(across))) == 2
    apart = given(16, 1, 3, 3)
    assert len(kernels(x.conv2d(apart, padding=1, groups=16).relu().conv2d(across))) == 2


def test_a_product_keeps_its_axes_rather_than_compute_what_all_of_them_need() -> None:
    """1 / sqrt(variance) of each channel would leave the product the channels' axis only."""
    x, w, var = given(1, 512, 7, 7), given(512, 512, 1, 1), given(512).abs()
    y = x.conv2d(w) * (var + 1e-5).rsqrt().reshape(512, 1, 1)
    main = max(kernels(y), key=lambda k: max(size(s.axes) for s in k.kernel.stages))
    assert size(main.kernel.shared) == 512 * 7 * 7


def test_a_convolution_and_the_sums_of_its_channels_are_kernels_of_their_own() -> None:
    """A channel's sum in one kernel with it walks the images channel by channel: three times as
    long for the steps of `muladd demo`, when rows of few terms were made in blocks."""
    x, w = given(100, 8, 14, 14), given(16, 8, 3, 3)
    first, *sums = kernels(x.conv2d(w, padding=1).mean((0, 2, 3)))
    assert first.name.startswith("conv_") and sums


def test_images_between_convolutions_lie_as_their_axes_do() -> None:
    """Windows of one tap start with no movement that a stride would make the order of memory."""
    x, w = given(1, 32, 14, 14), given(32, 32, 1, 1)
    first, _ = kernels(x.conv2d(w).conv2d(w, stride=2).relu())
    at = first.kernel.stages[-1].position
    strides = [stride(at, a) for a in first.kernel.shared]
    assert strides == sorted(strides, reverse=True) and strides[-1] == 1


def test_heads_lie_side_by_side_where_a_product_joins_them() -> None:
    """Also if others take the same values head by head, as the derivative of attention does."""
    heads = given(2, 8, 32, 64) @ given(2, 8, 64, 64)
    joined = heads.transpose(1, 2).reshape(2, 32, 512) @ given(512, 512)
    first, *_ = kernels(joined, heads * given(2, 8, 32, 64))
    product, *_ = first.kernel.stages
    order = [32 * 512, 64, 512, 1]  # of batch, head, time and width
    sizes = {(a.arg.extent, stride(product.position, a)) for a in product.axes}
    assert sizes == set(zip((2, 8, 32, 64), order))


def test_products_of_which_the_first_is_kept_are_two_kernels() -> None:
    x, up, down = given(512, 32), given(32, 64), given(64, 32)
    hidden = (x @ up).relu()
    assert len(kernels(hidden @ down)) == 1
    assert len(kernels(hidden @ down @ up + hidden)) == 2
    assert len(kernels(hidden @ down, hidden.T @ x)) == 3  # which goes down the columns


@pytest.mark.parametrize("turned", [False, True])
def test_products_side_by_side_are_kernels_of_their_own(turned):
    """As the gate of a gated layer, or the gradient of a weight that is used twice."""
    x, w, v = given(64, 128), given(128, 96), given(128, 96)
    if turned:
        w, v = given(96, 128).T, given(96, 128).T
    assert len(kernels((x @ w).silu() * (x @ v))) == 2
    assert len(kernels(x @ w + x @ v)) == 2
    small = given(4, 128)
    assert len(kernels((small @ w).silu() * (small @ v))) == 1


def test_products_over_the_same_rows_of_which_a_third_goes_on_are_one_kernel():
    q, k, v, y = (given(2, 4, 128, 32) for _ in range(4))
    scores = (q @ k.transpose(-1, -2)).exp() * (y @ v.transpose(-1, -2))
    assert len(kernels(scores @ k)) == 1


@pytest.mark.parametrize("shape", [(64, 512), (8, 4, 33), (3, 4096)])
def test_softmax_and_norms_are_one_kernel(shape: tuple[int, ...]) -> None:
    x = given(*shape)
    assert len(kernels(x.softmax(-1))) == 1
    assert len(kernels(x.layernorm(axis=-1))) == 1
    assert len(kernels(x * ((x * x).mean(-1, keepdim=True) + 1e-6).rsqrt())) == 1


def test_embedding_is_one_kernel_of_linear_work() -> None:
    table = given(1000, 16, grad=True)
    index = Tensor(np.arange(24).reshape(4, 6), device="CPU")
    (lookup,) = kernels(table[index])
    assert not any(s.reduced for s in lookup.kernel.stages)
    (table[index] * given(4, 6, 16)).sum().backward()
    scatter = [k for k in kernels(table.grad) if any(s.scatter for s in k.kernel.stages)]
    assert len(scatter) == 1


def test_cross_entropy_is_at_most_two_kernels() -> None:
    scores, target = given(64, 100), Tensor(np.arange(64) % 100, device="CPU")
    assert len(kernels(scores.cross_entropy(target))) <= 2


def test_attention_is_at_most_three_kernels() -> None:
    q, k, v = given(2, 4, 32, 16), given(2, 4, 32, 16), given(2, 4, 32, 16)
    assert len(kernels(q.scaled_dot_product_attention(k, v, is_causal=True))) <= 3


def test_a_transformer_block_is_at_most_eight_kernels() -> None:
    batch, time, width, heads = 4, 64, 128, 4
    x = given(batch, time, width)
    w = {n: given(*s) for n, s in {
        "qkv": (width, 3 * width), "out": (width, width), "up": (width, 4 * width),
        "down": (4 * width, width)}.items()}  # fmt: skip
    b = {n: given(s) for n, s in {"qkv": 3 * width, "out": width, "up": 4 * width,
                                  "down": width}.items()}  # fmt: skip
    h = x.layernorm(axis=-1) @ w["qkv"] + b["qkv"]
    q, k, v = h.reshape(batch, time, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
    a = q.scaled_dot_product_attention(k, v, is_causal=True)
    x = x + (a.permute(0, 2, 1, 3).reshape(batch, time, width) @ w["out"] + b["out"])
    h = (x.layernorm(axis=-1) @ w["up"] + b["up"]).gelu()
    assert len(kernels(x + (h @ w["down"] + b["down"]))) <= 8


def test_a_sum_of_many_arrays_is_cut_before_it_is_multiplied():
    """A residual stream of 30 terms, times a matrix: never a product kept for every pair."""
    random = np.random.default_rng(0)
    terms = [Tensor(random.standard_normal((16, 24), np.float32)) for _ in range(30)]
    w = Tensor(random.standard_normal((24, 40), np.float32))
    product = sum(terms[1:], terms[0]) @ w
    sizes = [a.size for k in product.kernels() for a in k.kernel.arguments if a.written]
    assert all(size <= 16 * 40 for size in sizes)
    assert all(len(s.axes) <= 2 for k in product.kernels() for s in k.kernel.stages)
    expected = sum(t.numpy().astype("d") for t in terms) @ w.numpy()
    np.testing.assert_allclose(product.numpy(), expected, rtol=1e-4, atol=1e-4)


def test_what_is_cut_off_a_sum_is_not_computed():
    x = Tensor.rand(2, 3, 7, 7, requires_grad=True).realize()
    w = Tensor.rand(4, 3, 3, 3).realize()
    derivative = muladd.grad(lambda t: t.conv2d(w, padding=1).sin().sum())(x)
    graph, _ = parameters((derivative.node,))
    stages = [s for k in compile_graph(graph, "CPU").kernels() for s in k.kernel.stages]
    assert {size(s.axes) for s in stages if len(s.reduced) == 3} == {2 * 4 * 7 * 7, 2 * 3 * 7 * 7}


def test_what_is_kept_is_not_written_down_the_columns_of_its_sum():
    a, b = given(600, 512), given(512, 7)
    x = a.exp() + 1
    made = kernels(x, x @ b, x.sum(0))
    (writer,) = (k for k in made if any(s.reduction is None and size(s.axes) == 600 * 512
                                        for s in k.kernel.stages))  # fmt: skip
    assert not any(len(s.axes) == 1 and s.reduced for s in writer.kernel.stages)
    small = given(60, 51)
    y = small.exp() + 1
    assert len(kernels(y, y.sum(0))) == 1


def test_the_slope_of_an_activation_is_kept_in_place_of_its_argument():
    """Forward makes gelu and its slope of one quotient; backward only multiplies."""
    x, up, b, down = given(64, 384), given(384, 512, grad=True), given(512), given(512, 384)
    y = (x @ up + b).gelu() @ down
    forward, _ = kernels(y)  # alone
    y.square().sum().backward()
    made = kernels(up.grad)
    divides = [k for k in made for s in k.kernel.stages
               if any(n.op is ops.DIV for n in toposort((s.value,)))]  # fmt: skip
    assert divides == [made[0]] * 2  # two stages of it
    for k, count in ((forward, 1), (made[0], 2)):
        assert [a.size for a in k.kernel.arguments if a.written] == [64 * 512] * count
    quotients = [render(k.lowered(), {}).source.count("fdiv") for k in (forward, made[0])]
    assert quotients[0] == quotients[1] > 0


GELUS = {  # of a product, in what is kept: arrays of its size, beside all other results
    "bare": (lambda t, b: t.gelu(), 3),
    "sum of inputs": (lambda t, b: (t + (b + 2.0 * b)).gelu(), 3),
    "bfloat16": (lambda t, b: (t + b.cast("bfloat16").cast("float32")).gelu(), 3),
    "layer norm": (lambda t, b: t.layernorm(-1, b, b).gelu(), 6),
    "turned": (lambda t, b: t.reshape(8, 8, 512).permute(1, 0, 2).gelu(), 3),
    "gated": (lambda t, b: t[:, :256] * t[:, 256:].gelu(), 2),
    "residual": (lambda t, b: (t + b).gelu() + t, 3),
}


@pytest.mark.parametrize("name", GELUS)
def test_what_a_step_keeps_of_an_activation_is_no_more_than_its_argument(name):
    """No part of its formula, though forward and backward have some in common."""
    x, w, b = given(64, 384), given(384, 512, grad=True), given(512)
    make, most = GELUS[name]
    h = make(x @ w, b)
    ((h.reshape(64, -1) @ given(h.numel() // 64, 384)) ** 2).sum().backward()
    written = [a for k in kernels(w.grad) for a in k.kernel.arguments if a.written]
    bytes_ = sum(a.size * a.dtype.itemsize for a in written)
    assert bytes_ - 4 * 384 * 512 <= 4 * 64 * 512 * most


def test_a_layer_norm_keeps_no_row_but_its_result():
    """What backward needs of rows it computes again, of two numbers for each."""
    x, w, v = given(512, 384), given(384, 384, grad=True), given(384, 384)
    norm = nn.LayerNorm(384)
    hidden = x @ w
    (hidden + norm(hidden) @ v).square().sum().backward()
    made = kernels(w.grad, *(p.grad for p in norm.parameters()))
    forward = next(k for k in made if any(n.op is ops.SQRT for s in k.kernel.stages
                                          for n in toposort((s.value,))))  # fmt: skip
    assert sum(a.size == 512 * 384 for a in forward.kernel.arguments if a.written) == 1


@pytest.mark.parametrize("shapes", [((5, 1 << 15), (1 << 15, 33)), ((20, 6000), (6000, 40))])
def test_products_of_few_long_sums_are_parted_for_the_threads(shapes):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype("f") for s in shapes)
    x = Tensor(a, device="CPU") @ Tensor(b, device="CPU")
    found = [s for k in kernels(x) for s in k.kernel.stages if s.reduced]
    long = shapes[0][1] >= 1 << 15
    assert [len(s.axes) for s in found if size(s.reduced) > 64] == [3 if long else 2]
    np.testing.assert_allclose(x.numpy(), a.astype("d") @ b, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("shape", "blocks"), [
    ((2048, 384), 16), ((8, 300, 384), 16), ((2047, 384), 1), ((2048, 100), 1), ((4096, 1024), 1),
])  # fmt: skip
def test_narrow_sums_down_columns_go_by_blocks_of_whole_rows(shape, blocks):
    x = given(*shape)
    rows = tuple(range(len(shape) - 1))
    for profile in ("fast", "exact"):
        with config.context(PROFILE=profile):
            total = x.sum(rows)
            first, *rest = kernels(total)
            if profile == "fast" and blocks > 1:
                assert {size(s.axes) for s in first.kernel.stages} == {blocks * shape[-1]}
                assert len(rest) == 1
            else:
                assert not rest
            expected = x.numpy().astype("d").sum(rows)
            np.testing.assert_allclose(total.numpy(), expected, rtol=1e-4, atol=1e-3)


def looked_at(pages: Tensor, q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attention of queries (pages, heads, rows, width) over each of these pages for itself."""
    return (q @ keys[pages]).softmax(-1) @ values[pages]


def arena(x: Tensor) -> int:
    """Bytes of all temporary arrays."""
    roots, _ = backend.expand([x.node], "CPU")
    return compile_graph(parameters(tuple(roots))[0], "CPU").bind().table.arena


@pytest.mark.parametrize("rows", [1, 3, 12, 48])
def test_pages_are_read_by_the_attention_over_them(rows):
    """Not copied before: they are the most of what it reads."""
    pages = Tensor(np.arange(100, dtype="int32"), device="CPU")
    q, keys, values = given(100, 3, rows, 64), given(129, 3, 64, 64), given(129, 3, 64, 64)
    y = looked_at(pages % 129, q, keys, values)
    assert len(kernels(y)) <= 2 and arena(y) < 1000  # the pages' numbers


def test_lookups_that_share_only_their_numbers_are_apart():
    """Else the pages of all layers would have to be there at once."""
    pages = given(40).cast("int32") % 129
    x, w = given(3, 192, 64), given(192, 192)
    for _ in range(6):
        x = looked_at(pages, x, given(129, 3, 64, 64), given(129, 3, 64, 64)).sum(0)
        x = (x.reshape(192, 192) @ w).reshape(3, 192, 64)
    copies = 2 * 40 * 3 * 64 * 64 * 4  # of a layer's pages
    assert arena(x) < 1.5 * copies
