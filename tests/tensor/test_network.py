"""Activations, losses, normalisation, attention against torch."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from oracle import compare

from muladd import Tensor

ACTIVATIONS = {
    "relu": {}, "relu6": {}, "leaky_relu": {"negative_slope": 0.1}, "elu": {"alpha": 1.5},
    "celu": {"alpha": 0.7}, "selu": {}, "gelu": {}, "gelu_tanh": {"approximate": "tanh"},
    "sigmoid": {}, "logsigmoid": {}, "hardsigmoid": {}, "silu": {}, "hardswish": {}, "mish": {},
    "softplus": {"beta": 2.0}, "softsign": {}, "hardtanh": {"min_val": -0.5, "max_val": 0.7},
    "hardshrink": {}, "softshrink": {}, "tanhshrink": {}, "threshold": {"threshold": 0.1,
    "value": 3.0}, "glu": {"dim": -1}, "tanh": {}, "rrelu": {}, "normalize": {"dim": 1},
}  # fmt: skip


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, double, device, rng):
    x = np.concatenate([rng.normal(0, 3, (3, 9)), np.linspace(-30, 30, 9)[None]]).astype(np.float32)
    x = x[:, :8] + np.float32(0.013)
    if double and name in ("celu", "hardsigmoid"):
        pytest.skip("torch keeps the constants of these two in float32")
    options, real = ACTIVATIONS[name], name.removesuffix("_tanh")
    compare(lambda t: getattr(t, real)(**options), x, double=double,
            rtol=3e-5 if not double else 1e-10, atol=2e-6 if not double else 1e-11,
            oracle=lambda t: getattr(F, real)(t, **options))  # fmt: skip


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16"])
def test_relu_keeps_the_least_positive_numbers_and_nan(kind):
    least = torch.finfo(getattr(torch, kind)).smallest_normal * 2.0 ** -{
        "float64": 52, "float32": 23, "float16": 10, "bfloat16": 7}[kind]  # fmt: skip
    given = [least, 3 * least, -least, 0.0, -0.0, np.nan]
    result = Tensor(given, dtype=kind).relu().cast("float64").numpy()
    np.testing.assert_array_equal(result, [least, 3 * least, 0.0, 0.0, 0.0, np.nan])
    assert not np.signbit(result[:5]).any()


def test_relu_at_zero(device):
    compare(lambda t: t.relu() + t.leaky_relu() + t.relu6(), np.array([0.0, -0.0, 1.0], np.float32),
            oracle=lambda t: t.relu() + F.leaky_relu(t) + F.relu6(t))  # fmt: skip


def test_sigmoid_of_large_numbers_has_finite_gradients(device):
    x = np.array([-1000, -100, -50, 50, 100, 1000], np.float32)
    for name in ("sigmoid", "silu", "logsigmoid", "tanh", "softplus", "gelu", "mish"):
        compare(lambda t, n=name: getattr(t, n)(), x, atol=1e-5,
                oracle=lambda t, n=name: getattr(F, n)(t))  # fmt: skip


def test_prelu(device, rng):
    x, w = rng.normal(size=(2, 3, 4)).astype(np.float32), np.array([0.1, 0.2, 0.3], np.float32)
    compare(lambda t, v: t.prelu(v), x, w)
    compare(lambda t, v: t.prelu(v), x, w[:1])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis, device, rng):
    x = rng.normal(0, 10, (3, 4, 5)).astype(np.float32)
    compare(lambda t: t.softmax(axis), x)
    compare(lambda t: t.softmax(axis), x, double=True)
    np.testing.assert_array_equal(Tensor(x).softmax(axis=axis).numpy(),
                                  Tensor(x).softmax(dim=axis).numpy())  # fmt: skip


# --- losses ---------------------------------------------------------------------------------------

CROSS = [
    {}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1},
    {"ignore_index": 2}, {"ignore_index": 2, "label_smoothing": 0.2},
    {"weight": True}, {"weight": True, "label_smoothing": 0.1, "ignore_index": 1},
    {"weight": True, "reduction": "none", "label_smoothing": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("options", CROSS, ids=range(len(CROSS)))
@pytest.mark.parametrize("shape", [(6, 5), (2, 5, 3)])
def test_cross_entropy(options, shape, device, rng):
    x = rng.normal(size=shape).astype(np.float32)
    y = rng.integers(0, 5, (shape[0], *shape[2:]))
    w = rng.uniform(0.5, 2, 5).astype(np.float32)
    options = dict(options)
    weighted = options.pop("weight", False)
    compare(lambda t, u: t.cross_entropy(u, Tensor(w) if weighted else None, **options), x, y,
            oracle=lambda t, u: F.cross_entropy(t, u, torch.tensor(w) if weighted else None,
                                                **options))  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"reduction": "sum"}])
def test_cross_entropy_of_probabilities(options, device, rng):
    x, y = rng.normal(size=(6, 5)).astype(np.float32), rng.dirichlet([1] * 5, 6).astype(np.float32)
    compare(lambda t, u: t.cross_entropy(u, **options), x, y,
            oracle=lambda t, u: F.cross_entropy(t, u, **options))  # fmt: skip


PAIRS = ["mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss",
         "binary_cross_entropy_with_logits", "kl_div", "soft_margin_loss", "poisson_nll_loss",
         "multilabel_soft_margin_loss", "hinge_embedding_loss"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:reduction")
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", PAIRS)
def test_losses(name, reduction, device, rng):
    x, y = rng.normal(size=(4, 3)).astype(np.float32), rng.uniform(0.1, 0.9, (4, 3))
    if name in ("soft_margin_loss", "hinge_embedding_loss"):
        y = rng.choice([-1, 1], (4, 3))
    y = y.astype(np.float32)
    compare(lambda t, u: getattr(t, name)(u.detach(), reduction=reduction), x, y,
            oracle=lambda t, u: getattr(F, name)(t, u.detach(), reduction=reduction))  # fmt: skip


def test_other_losses(device, rng):
    a, b, c = (rng.normal(size=(4, 3)).astype(np.float32) for _ in range(3))
    p = rng.uniform(0.05, 0.95, (4, 3)).astype(np.float32)
    sign = rng.choice([-1, 1], 4)
    y = rng.integers(0, 3, 4)
    compare(lambda t, u: t.binary_cross_entropy(u.detach()), p, p[::-1].copy(),
            oracle=lambda t, u: F.binary_cross_entropy(t, u.detach()))  # fmt: skip
    compare(lambda t, u: t.binary_cross_entropy_with_logits(u.detach(), pos_weight=u[0].detach()),
            a, p, oracle=lambda t, u: F.binary_cross_entropy_with_logits(
                t, u.detach(), pos_weight=u[0].detach()))  # fmt: skip
    compare(lambda t, u: t.log_softmax(-1).kl_div(u.log_softmax(-1), "batchmean", True), a, b,
            oracle=lambda t, u: F.kl_div(t.log_softmax(-1), u.log_softmax(-1),
                                         reduction="batchmean", log_target=True))  # fmt: skip
    compare(lambda t, u, v: t.gaussian_nll_loss(u, v.exp()), a, b, c,
            oracle=lambda t, u, v: F.gaussian_nll_loss(t, u, v.exp()))  # fmt: skip
    compare(lambda t, u, s: t.cosine_embedding_loss(u, s, 0.1), a, b, sign,
            oracle=lambda t, u, s: F.cosine_embedding_loss(t, u, s, 0.1))  # fmt: skip
    compare(lambda t, u, s: t[:, 0].margin_ranking_loss(u[:, 0], s, 0.1), a, b, sign,
            oracle=lambda t, u, s: F.margin_ranking_loss(t[:, 0], u[:, 0], s, 0.1))  # fmt: skip
    compare(lambda t, u, v: t.triplet_margin_loss(u, v, swap=True), a, b, c,
            oracle=lambda t, u, v: F.triplet_margin_loss(t, u, v, swap=True))  # fmt: skip
    compare(lambda t, u: t.multi_margin_loss(u), a, y, oracle=F.multi_margin_loss)
    compare(lambda t, u: t.sparse_categorical_crossentropy(u), a, y, oracle=F.cross_entropy)
    compare(lambda t, u: t.log_softmax(1).nll_loss(u, ignore_index=1), a, y,
            oracle=lambda t, u: F.nll_loss(t.log_softmax(1), u, ignore_index=1))  # fmt: skip


# --- normalisation --------------------------------------------------------------------------------


@pytest.mark.parametrize("double", [False, True])
def test_layer_norm(double, device, rng):
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((3, 4, 5), (4, 5), (4, 5)))
    compare(lambda t, u, v: t.layer_norm((4, 5), u, v), x, w, b, double=double, rtol=None if double
            else 1e-4, oracle=lambda t, u, v: F.layer_norm(t, (4, 5), u, v))  # fmt: skip
    compare(lambda t: t.layernorm(axis=-1), x, double=double, rtol=None if double else 1e-4,
            oracle=lambda t: F.layer_norm(t, (5,)))  # fmt: skip
    compare(lambda t, u: t.rms_norm((4, 5), u), x, w, double=double, rtol=None if double else 1e-4,
            oracle=lambda t, u: F.rms_norm(t, (4, 5), u))  # fmt: skip


def test_group_and_instance_norm(device, rng):
    x, w, b = (rng.normal(size=s).astype(np.float32) for s in ((2, 6, 4, 3), (6,), (6,)))
    compare(lambda t, u, v: t.group_norm(3, u, v), x, w, b, rtol=1e-4, atol=1e-5,
            oracle=lambda t, u, v: F.group_norm(t, 3, u, v))  # fmt: skip
    compare(lambda t, u, v: t.instance_norm(weight=u, bias=v), x, w, b, rtol=1e-4, atol=1e-5,
            oracle=lambda t, u, v: F.instance_norm(t, weight=u, bias=v))  # fmt: skip
    compare(lambda t: t.local_response_norm(3), x, oracle=lambda t: F.local_response_norm(t, 3))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 5, 2)])
def test_batch_norm(training, shape, device, rng):
    x = rng.normal(size=shape).astype(np.float32)
    w, b, m = (rng.normal(size=3).astype(np.float32) for _ in range(3))
    v = rng.uniform(0.5, 2, 3).astype(np.float32)
    state = [[Tensor(m), Tensor(v)], [torch.tensor(m), torch.tensor(v)]]
    compare(lambda t, u, c: t.batch_norm(*state[0], u, c, training), x, w, b, rtol=1e-4, atol=1e-5,
            oracle=lambda t, u, c: F.batch_norm(t, *state[1], u, c, training))  # fmt: skip
    for a, c in zip(*state):
        np.testing.assert_allclose(a.numpy(), c.numpy(), rtol=1e-5, atol=1e-6)
        assert not a.requires_grad


# --- attention ------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["plain", "causal", "bool", "float", "scale", "gqa", "masked_row"])
def test_attention(case, device, rng):
    heads = 2 if case == "gqa" else 4
    q = rng.normal(size=(2, 4, 5, 8)).astype(np.float32)
    k, v = (rng.normal(size=(2, heads, 5, 8)).astype(np.float32) for _ in range(2))
    mask = rng.integers(0, 2, (5, 5)).astype(bool) | np.eye(5, dtype=bool)
    if case == "masked_row":
        mask[2] = False
    bias = rng.normal(size=(5, 5)).astype(np.float32)

    def options(make):
        return {
            "plain": {}, "causal": {"is_causal": True}, "bool": {"attn_mask": make(mask)},
            "float": {"attn_mask": make(bias)}, "scale": {"scale": 0.3},
            "gqa": {"enable_gqa": True, "is_causal": True}, "masked_row": {"attn_mask": make(mask)},
        }[case]  # fmt: skip

    compare(lambda a, b, c: a.scaled_dot_product_attention(b, c, **options(Tensor)), q, k, v,
            rtol=1e-4, atol=1e-5, oracle=lambda a, b, c: F.scaled_dot_product_attention(
                a, b, c, **options(torch.tensor)))  # fmt: skip


def test_half_precision_accumulates_in_float32(device, rng):
    a, b = (rng.normal(size=s).astype(np.float16) for s in ((3, 300), (300, 2)))
    got = (Tensor(a) @ Tensor(b)).numpy()
    want = (a.astype(np.float32) @ b.astype(np.float32)).astype(np.float16)
    np.testing.assert_allclose(got, want, rtol=2e-3)
    assert (Tensor(a) @ Tensor(b)).dtype.name == "float16"
    x = Tensor(rng.normal(size=(3, 8)), dtype="bfloat16")
    assert x.softmax(-1).dtype.name == x.layernorm().dtype.name == "bfloat16"
    assert x.linear(x).dtype.name == "bfloat16"
