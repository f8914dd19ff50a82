"""Matrix products, einsum, convolution and pooling against torch."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import compare

from muladd import Tensor

SHAPES = [
    ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2)), ((1, 4), (4, 1)), ((2, 3, 4), (4,)),
    ((4,), (2, 4, 3)),
]  # fmt: skip


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("shapes", SHAPES)
def test_matmul(shapes, double, device, rng):
    a, b = (rng.normal(size=s).astype(np.float32) for s in shapes)
    compare(lambda x, y: x @ y, a, b, double=double)


@pytest.mark.parametrize("dtype", [np.float16, np.int32, np.int64])
def test_matmul_of_other_types(dtype, device, rng):
    a, b = rng.integers(-5, 5, (3, 4)).astype(dtype), rng.integers(-5, 5, (4, 2)).astype(dtype)
    compare(lambda x, y: x @ y, a, b, gradient=False)


EINSUM = [
    ("ij,jk->ik", (2, 3), (3, 4)), ("bij,bjk->bik", (2, 3, 4), (2, 4, 5)), ("ij->ji", (2, 3)),
    ("ii->i", (3, 3)), ("ii", (3, 3)), ("ij->", (2, 3)), ("i,j->ij", (2,), (3,)),
    ("...ij,...jk->...ik", (2, 3, 4), (4, 5)), ("bhid,bhjd->bhij", (1, 2, 3, 4), (1, 2, 5, 4)),
    ("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)), ("i,i->", (3,), (3,)), ("ij,ij->ij", (2, 3), (2, 3)),
    ("abc,cd", (2, 3, 4), (4, 2)), ("bij,kj->bki", (2, 3, 4), (5, 4)), ("...i->...", (2, 3)),
    ("ij,k->i", (2, 3), (4,)), ("a...,b...->ab...", (2, 3), (4, 3)),
]  # fmt: skip


@pytest.mark.parametrize("case", EINSUM, ids=[c[0] for c in EINSUM])
def test_einsum(case, device, rng):
    equation, *shapes = case
    arrays = [rng.normal(size=s).astype(np.float32) for s in shapes]
    compare(lambda *t: Tensor.einsum(equation, *t), *arrays,
            oracle=lambda *t: torch.einsum(equation, *t))  # fmt: skip


PRODUCTS = {
    "mm": (lambda a, b: a.mm(b), (2, 3), (3, 4)),
    "bmm": (lambda a, b: a.bmm(b), (2, 2, 3), (2, 3, 4)),
    "mv": (lambda a, b: a.mv(b), (2, 3), (3,)),
    "dot": (lambda a, b: a.dot(b), (3,), (3,)),
    "outer": (lambda a, b: a.outer(b), (3,), (4,)),
    "inner": (lambda a, b: a.inner(b), (2, 3), (4, 3)),
    "addmm": (lambda c, a, b: c.addmm(a, b, beta=0.5, alpha=2), (2, 4), (2, 3), (3, 4)),
    "baddbmm": (lambda c, a, b: c.baddbmm(a, b), (2, 2, 4), (2, 2, 3), (2, 3, 4)),
    "addmv": (lambda c, a, b: c.addmv(a, b), (2,), (2, 3), (3,)),
    "cross": (lambda a, b: a.cross(b, dim=-1), (2, 3), (2, 3)),
    "matrix_power": (lambda a: a.matrix_power(3), (3, 3)),
    "trace": (lambda a: a.trace(), (3, 3)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name, device, rng):
    function, *shapes = PRODUCTS[name]
    compare(function, *[rng.normal(size=s).astype(np.float32) for s in shapes])


def test_tensordot(device, rng):
    a, b = rng.normal(size=(2, 3, 4)), rng.normal(size=(4, 3, 5))
    for dims in (1, ([1, 2], [1, 0]), ([2], [0])):
        compare(lambda x, y, d=dims: x.tensordot(y, d), a, b,
                oracle=lambda x, y, d=dims: torch.tensordot(x, y, d))  # fmt: skip


def test_distances(device, rng):
    a, b = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
    compare(lambda x, y: x.cdist(y), a, b, oracle=torch.cdist)
    compare(lambda x, y: x.cosine_similarity(y), a, b, oracle=F.cosine_similarity)
    compare(lambda x, y: x.pairwise_distance(y), a, b, oracle=F.pairwise_distance)


# --- convolution ----------------------------------------------------------------------------------

CONV = [
    (1, {}, (2, 3, 9), (4, 3, 3)),
    (1, {"stride": 2, "padding": 1, "dilation": 2}, (2, 4, 11), (6, 2, 3), 2),
    (2, {}, (2, 3, 6, 7), (4, 3, 3, 2)),
    (2, {"stride": 2, "padding": 1}, (1, 2, 7, 6), (3, 2, 3, 3)),
    (2, {"stride": (1, 2), "padding": (2, 0), "dilation": (2, 1)}, (1, 2, 7, 8), (3, 2, 3, 2)),
    (2, {"padding": "same"}, (1, 2, 5, 5), (2, 2, 3, 5)),
    (2, {"padding": "valid"}, (1, 2, 5, 5), (2, 2, 3, 3)),
    (2, {}, (1, 4, 5, 5), (4, 1, 3, 3), 4),
    (2, {"stride": 3}, (1, 2, 8, 8), (2, 2, 1, 1)),
    (2, {}, (3, 6, 7), (4, 3, 3, 2)),
    (3, {"stride": 2, "padding": 1}, (1, 2, 4, 5, 4), (2, 2, 3, 3, 2)),
    # many narrow images: vectors along the channels
    (2, {}, (17, 8, 9, 9), (32, 8, 5, 5)),
    (2, {"padding": 4}, (20, 8, 5, 6), (16, 8, 5, 5)),
    (2, {"stride": 2, "padding": 1}, (16, 16, 13, 11), (64, 16, 3, 3)),
]


@pytest.mark.parametrize("case", CONV, ids=range(len(CONV)))
def test_convolution(case, device, rng):
    d, options, x, w = case[:4]
    options = dict(options, groups=case[4] if len(case) > 4 else 1)
    arrays = [rng.normal(size=s).astype(np.float32) for s in (x, w, (w[0],))]
    name = f"conv{d}d"
    compare(lambda *t: getattr(t[0], name)(*t[1:], **options), *arrays, rtol=1e-4, atol=1e-5,
            oracle=lambda *t: getattr(F, name)(*t, **options))  # fmt: skip


TRANSPOSED = [
    (1, {"stride": 2, "padding": 1, "output_padding": 1}, (2, 3, 5), (3, 4, 3), 1),
    (2, {}, (1, 2, 3, 4), (2, 3, 3, 2), 1),
    (2, {"stride": 2, "padding": 1}, (2, 4, 3, 3), (4, 2, 3, 3), 2),
    (2, {"stride": (2, 3), "dilation": 2, "padding": 3}, (1, 2, 4, 4), (2, 2, 3, 3), 1),
    (3, {"stride": 2}, (1, 2, 2, 3, 2), (2, 2, 2, 2, 2), 1),
]


@pytest.mark.parametrize("case", TRANSPOSED, ids=range(len(TRANSPOSED)))
def test_transposed_convolution(case, device, rng):
    d, options, x, w, groups = case
    options = dict(options, groups=groups)
    arrays = [rng.normal(size=s).astype(np.float32) for s in (x, w, (w[1] * groups,))]
    name = f"conv_transpose{d}d"
    compare(lambda *t: getattr(t[0], name)(*t[1:], **options), *arrays, rtol=1e-4, atol=1e-5,
            oracle=lambda *t: getattr(F, name)(*t, **options))  # fmt: skip


POOL = [
    ("max_pool1d", (2, 3, 9), {"kernel_size": 3}),
    ("max_pool2d", (2, 3, 6, 7), {"kernel_size": 2}),
    ("max_pool2d", (1, 2, 7, 8), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("max_pool2d", (1, 2, 7, 8), {"kernel_size": 2, "stride": 1, "dilation": 2}),
    ("max_pool2d", (1, 2, 7, 8), {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("max_pool2d", (1, 2, 7, 8), {"kernel_size": (2, 3), "return_indices": True}),
    ("max_pool3d", (1, 2, 4, 4, 5), {"kernel_size": 2}),
    ("avg_pool1d", (2, 3, 9), {"kernel_size": 3, "stride": 2, "padding": 1}),
    ("avg_pool2d", (2, 3, 6, 7), {"kernel_size": 2}),
    ("avg_pool2d", (1, 2, 7, 8), {"kernel_size": 3, "stride": 2, "padding": 1,
                                  "count_include_pad": False}),
    ("avg_pool2d", (1, 2, 7, 8), {"kernel_size": 3, "stride": 2, "ceil_mode": True, "padding": 1}),
    ("avg_pool2d", (1, 2, 6, 6), {"kernel_size": 3, "divisor_override": 5}),
    ("avg_pool3d", (1, 2, 4, 4, 5), {"kernel_size": 2}),
    ("adaptive_avg_pool1d", (2, 3, 9), {"output_size": 4}),
    ("adaptive_avg_pool2d", (2, 3, 6, 7), {"output_size": (3, 4)}),
    ("adaptive_avg_pool2d", (2, 3, 6, 7), {"output_size": 1}),
    ("adaptive_avg_pool3d", (1, 2, 4, 5, 3), {"output_size": 2}),
    ("adaptive_max_pool1d", (2, 3, 9), {"output_size": 4}),
    ("adaptive_max_pool2d", (2, 3, 6, 7), {"output_size": (3, 4)}),
    ("lp_pool1d", (2, 3, 9), {"norm_type": 2, "kernel_size": 3}),
    ("lp_pool2d", (2, 3, 6, 6), {"norm_type": 3, "kernel_size": 2}),
]  # fmt: skip


@pytest.mark.parametrize("case", POOL, ids=[f"{i}-{c[0]}" for i, c in enumerate(POOL)])
def test_pooling(case, device, rng):
    name, shape, options = case
    x = rng.permutation(int(np.prod(shape))).reshape(shape).astype(np.float32)
    x = (np.abs(x) if name.startswith("lp") else x - x.mean()) / np.float32(10)
    compare(lambda t: getattr(t, name)(**options), x, rtol=1e-4, atol=1e-5,
            oracle=lambda t: getattr(F, name)(t, **options))  # fmt: skip


def test_unpooling(device, rng):
    x = rng.normal(size=(1, 2, 4, 6)).astype(np.float32)
    compare(lambda t: t.max_pool2d(2, return_indices=True)[0].max_unpool2d(
        t.max_pool2d(2, return_indices=True)[1], 2), x,
        oracle=lambda t: F.max_unpool2d(*F.max_pool2d(t, 2, return_indices=True), 2))  # fmt: skip


INTERPOLATE = [
    ((1, 2, 5), {"size": 8, "mode": "linear"}),
    ((1, 2, 5), {"scale_factor": 2, "mode": "nearest"}),
    ((1, 2, 4, 5), {"scale_factor": 2, "mode": "nearest"}),
    ((1, 2, 4, 5), {"size": (7, 3), "mode": "nearest"}),
    ((1, 2, 4, 5), {"size": (7, 3), "mode": "nearest-exact"}),
    ((1, 2, 4, 5), {"size": (7, 8), "mode": "bilinear", "align_corners": False}),
    ((1, 2, 4, 5), {"size": (7, 8), "mode": "bilinear", "align_corners": True}),
    ((1, 2, 6, 6), {"size": (3, 4), "mode": "bilinear", "align_corners": False}),
    ((1, 2, 4, 5), {"scale_factor": 1.5, "mode": "bilinear"}),
    ((1, 2, 4, 5), {"size": (7, 8), "mode": "bicubic", "align_corners": False}),
    ((1, 2, 4, 5), {"size": (7, 8), "mode": "bicubic", "align_corners": True}),
    ((1, 2, 4, 5), {"size": (2, 3), "mode": "area"}),
    ((1, 1, 3, 4, 3), {"size": (5, 4, 6), "mode": "trilinear"}),
]


@pytest.mark.parametrize("case", INTERPOLATE, ids=range(len(INTERPOLATE)))
def test_interpolation(case, device, rng):
    shape, options = case
    compare(lambda t: t.interpolate(**options), rng.normal(size=shape).astype(np.float32),
            rtol=1e-4, atol=1e-5, oracle=lambda t: F.interpolate(t, **options))  # fmt: skip


def test_pixel_shuffles(device, rng):
    x = rng.normal(size=(1, 8, 2, 4)).astype(np.float32)
    compare(lambda t: t.pixel_shuffle(2), x, oracle=lambda t: F.pixel_shuffle(t, 2))
    compare(lambda t: t.pixel_unshuffle(2), x, oracle=lambda t: F.pixel_unshuffle(t, 2))
    compare(lambda t: t.channel_shuffle(4), x, oracle=lambda t: F.channel_shuffle(t, 4),
            gradient=False)  # fmt: skip
