"""Every layer beside torch's: the same state gives the same results and the same gradients."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import nn
from muladd.ir import toposort
from muladd.tensor import Tensor

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

# name: (ours, torch's, shape of the input)
LAYERS = {
    "linear": (nn.Linear, torch.nn.Linear, (5, 3), dict(), (4, 5)),
    "linear no bias": (nn.Linear, torch.nn.Linear, (5, 3), dict(bias=False), (2, 3, 5)),
    "conv1d": (nn.Conv1d, torch.nn.Conv1d, (3, 4, 3), dict(stride=2, padding=1), (2, 3, 9)),
    "conv1d same": (nn.Conv1d, torch.nn.Conv1d, (3, 4, 4), dict(padding="same"), (2, 3, 9)),
    "conv2d": (nn.Conv2d, torch.nn.Conv2d, (2, 3, 3), dict(padding=1), (2, 2, 5, 6)),
    "conv2d strided": (
        nn.Conv2d, torch.nn.Conv2d, (2, 4, (3, 2)), dict(stride=(2, 1), dilation=(1, 2), groups=2),
        (1, 2, 7, 8),
    ),
    "conv2d reflect": (
        nn.Conv2d, torch.nn.Conv2d, (2, 3, 3), dict(padding=1, padding_mode="reflect"),
        (1, 2, 5, 5),
    ),
    "conv2d depthwise": (nn.Conv2d, torch.nn.Conv2d, (4, 4, 3), dict(groups=4), (1, 4, 5, 5)),
    "conv3d": (nn.Conv3d, torch.nn.Conv3d, (1, 2, 2), dict(stride=2), (1, 1, 4, 5, 4)),
    "conv transpose 1d": (
        nn.ConvTranspose1d, torch.nn.ConvTranspose1d, (3, 2, 4),
        dict(stride=3, padding=1, output_padding=1), (2, 3, 5),
    ),
    "conv transpose 2d": (
        nn.ConvTranspose2d, torch.nn.ConvTranspose2d, (4, 6, 3),
        dict(stride=2, padding=1, groups=2, dilation=2), (1, 4, 4, 3),
    ),
    "conv transpose 3d": (
        nn.ConvTranspose3d, torch.nn.ConvTranspose3d, (2, 1, 2), dict(stride=2), (1, 2, 2, 3, 2),
    ),
    "layer norm": (nn.LayerNorm, torch.nn.LayerNorm, (6,), dict(), (4, 6)),
    "layer norm 2": (nn.LayerNorm, torch.nn.LayerNorm, ((3, 4),), dict(eps=1e-3), (2, 3, 4)),
    "layer norm plain": (
        nn.LayerNorm, torch.nn.LayerNorm, (6,), dict(elementwise_affine=False), (4, 6)
    ),
    "rms norm": (nn.RMSNorm, torch.nn.RMSNorm, (6,), dict(), (4, 6)),
    "rms norm eps": (nn.RMSNorm, torch.nn.RMSNorm, ((2, 3),), dict(eps=1e-2), (4, 2, 3)),
    "group norm": (nn.GroupNorm, torch.nn.GroupNorm, (2, 4), dict(), (3, 4, 5)),
    "group norm plain": (nn.GroupNorm, torch.nn.GroupNorm, (4, 4), dict(affine=False), (3, 4, 5)),
    "batch norm 1d": (nn.BatchNorm1d, torch.nn.BatchNorm1d, (4,), dict(), (6, 4)),
    "batch norm 1d long": (nn.BatchNorm1d, torch.nn.BatchNorm1d, (4,), dict(), (3, 4, 5)),
    "batch norm 2d": (nn.BatchNorm2d, torch.nn.BatchNorm2d, (3,), dict(eps=1e-4), (2, 3, 4, 5)),
    "batch norm average": (
        nn.BatchNorm2d, torch.nn.BatchNorm2d, (3,), dict(momentum=None), (2, 3, 4, 5)
    ),
    "batch norm 3d": (nn.BatchNorm3d, torch.nn.BatchNorm3d, (2,), dict(), (2, 2, 2, 3, 2)),
    "batch norm untracked": (
        nn.BatchNorm1d, torch.nn.BatchNorm1d, (4,), dict(track_running_stats=False, affine=False),
        (5, 4),
    ),
    "instance norm 1d": (nn.InstanceNorm1d, torch.nn.InstanceNorm1d, (3,), dict(), (2, 3, 5)),
    "instance norm 2d": (
        nn.InstanceNorm2d, torch.nn.InstanceNorm2d, (3,), dict(affine=True), (2, 3, 4, 5)
    ),
    "instance norm 3d": (nn.InstanceNorm3d, torch.nn.InstanceNorm3d, (2,), {}, (1, 2, 2, 3, 2)),
    "relu": (nn.ReLU, torch.nn.ReLU, (), dict(), (3, 4)),
    "leaky relu": (nn.LeakyReLU, torch.nn.LeakyReLU, (0.2,), dict(), (3, 4)),
    "elu": (nn.ELU, torch.nn.ELU, (), dict(alpha=0.5), (3, 4)),
    "gelu": (nn.GELU, torch.nn.GELU, (), dict(), (3, 4)),
    "gelu tanh": (nn.GELU, torch.nn.GELU, (), dict(approximate="tanh"), (3, 4)),
    "silu": (nn.SiLU, torch.nn.SiLU, (), dict(), (3, 4)),
    "mish": (nn.Mish, torch.nn.Mish, (), dict(), (3, 4)),
    "prelu": (nn.PReLU, torch.nn.PReLU, (4,), dict(), (3, 4, 2)),
    "softmax": (nn.Softmax, torch.nn.Softmax, (), dict(dim=1), (3, 4)),
    "log softmax": (nn.LogSoftmax, torch.nn.LogSoftmax, (-1,), dict(), (3, 4)),
    "softplus": (nn.Softplus, torch.nn.Softplus, (), dict(beta=2.0), (3, 4)),
    "hardswish": (nn.Hardswish, torch.nn.Hardswish, (), dict(), (3, 4)),
    "hardtanh": (nn.Hardtanh, torch.nn.Hardtanh, (), dict(), (3, 4)),
    "max pool": (nn.MaxPool2d, torch.nn.MaxPool2d, (2,), dict(), (1, 2, 5, 6)),
    "avg pool": (nn.AvgPool2d, torch.nn.AvgPool2d, (3,), dict(stride=2), (1, 2, 7, 6)),
    "adaptive pool": (nn.AdaptiveAvgPool2d, torch.nn.AdaptiveAvgPool2d, (1,), {}, (1, 2, 5, 6)),
    "flatten": (nn.Flatten, torch.nn.Flatten, (), dict(), (2, 3, 4)),
}  # fmt: skip


def same_state(ours, theirs):
    """Give our layer torch's state; names and shapes have to fit exactly."""
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict({name: value.numpy() for name, value in theirs.state_dict().items()})


def close(ours, theirs, rtol, what):
    given = ours.numpy() if isinstance(ours, Tensor) else ours
    wanted = theirs.detach().numpy()
    assert given.shape == wanted.shape, what
    scale = max(float(np.abs(wanted).max(initial=0)), 1e-3)
    np.testing.assert_allclose(given, wanted, rtol=rtol, atol=rtol * scale, err_msg=what)


def compare(ours, theirs, call, inputs):
    """Forward, gradients of all inputs and parameters, and buffers afterwards."""
    x = [Tensor(a, requires_grad=True) for a in inputs]
    t = [torch.tensor(a, requires_grad=True) for a in inputs]
    y, z = call(ours, *x), call(theirs, *t)
    close(y, z, 1e-5, "forward")
    weight = np.random.default_rng(3).standard_normal(tuple(z.shape)).astype(np.float32)
    (y * Tensor(weight)).sum().backward()
    (z * torch.tensor(weight)).sum().backward()
    for i, (a, b) in enumerate(zip(x, t)):
        close(a.grad, b.grad, 1e-4, f"gradient of input {i}")
    wanted = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        close(parameter.grad, wanted[name].grad, 1e-4, f"gradient of {name}")
    for name, buffer in theirs.named_buffers():
        close(ours.state_dict()[name], buffer, 1e-5, f"buffer {name}")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    ours, theirs, args, options, shape = LAYERS[name]
    a, b = ours(*args, **options), theirs(*args, **options)
    same_state(a, b)
    compare(a, b, lambda layer, x: layer(x), [numbers(*shape)])


@pytest.mark.parametrize("name", [n for n in LAYERS if "norm" in n or "relu" in n])
def test_layer_in_evaluation(name):
    ours, theirs, args, options, shape = LAYERS[name]
    a, b = ours(*args, **options), theirs(*args, **options)
    if "batch" in name and options.get("track_running_stats", True):
        for buffer in (b.running_mean, b.running_var):
            buffer += torch.rand(buffer.shape)
    same_state(a, b)
    compare(a.eval(), b.eval(), lambda layer, x: layer(x), [numbers(*shape)])


def test_batch_norm_over_several_batches():
    a, b = nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    same_state(a, b)
    for seed in range(4):
        batch = numbers(5, 3, seed=seed) * 2 + 1
        a(Tensor(batch)).realize()
        b(torch.tensor(batch))
        size = len(toposort([a.running_mean.node, a.running_var.node]))
        assert size == 2, "statistics are values, and do not drag along how they were made"
    close(a.running_mean, b.running_mean, 1e-5, "mean")
    close(a.running_var, b.running_var, 1e-5, "variance")
    assert a.num_batches_tracked.item() == 4


def test_batch_norm_of_an_empty_batch_leaves_the_statistics():
    a, b = nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    for batch in (numbers(5, 3), numbers(0, 3)):
        assert a(Tensor(batch)).numpy().shape == b(torch.tensor(batch)).shape
    close(a.running_mean, b.running_mean, 1e-5, "mean")
    close(a.running_var, b.running_var, 1e-5, "variance")


@pytest.mark.parametrize("padding", [None, 2, -1])
def test_embedding(padding):
    a = nn.Embedding(7, 3, padding_idx=padding)
    b = torch.nn.Embedding(7, 3, padding_idx=padding)
    if padding is not None:
        assert (a.weight.numpy()[padding] == 0).all()
    same_state(a, b)
    index = np.array([[0, 2, 6], [2, 5, 2]])
    y, z = a(Tensor(index)), b(torch.tensor(index))
    close(y, z, 1e-6, "forward")
    (y * y).sum().backward()
    (z * z).sum().backward()
    close(a.weight.grad, b.weight.grad, 1e-5, "gradient")


# --- recurrent ---------------------------------------------------------------------------------

RECURRENT = {
    "rnn": ("RNN", dict()),
    "lstm": ("LSTM", dict()),
    "gru": ("GRU", dict()),
    "lstm two layers": ("LSTM", dict(num_layers=2)),
    "lstm both ways": ("LSTM", dict(bidirectional=True, num_layers=2)),
    "gru both ways": ("GRU", dict(bidirectional=True)),
    "lstm no bias": ("LSTM", dict(bias=False)),
    "gru batch first": ("GRU", dict(batch_first=True)),
}


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("with_state", [False, True])
def test_recurrent(name, with_state):
    kind, options = RECURRENT[name]
    a, b = getattr(nn, kind)(3, 4, **options), getattr(torch.nn, kind)(3, 4, **options)
    same_state(a, b)
    places = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    inputs = [numbers(5, 2, 3)]
    batch = 5 if options.get("batch_first") else 2
    if with_state:
        inputs += [numbers(places, batch, 4, seed=s) for s in range(2 if kind == "LSTM" else 1)]

    def call(layer, x, *state):
        given = () if not state else (state,) if len(state) > 1 else state
        y, final = layer(x, *given)
        final = final if isinstance(final, tuple) else (final,)
        return y.sum() * 0.5 + sum((f * f).sum() for f in final) + (y * y).sum()

    compare(a, b, call, inputs)


def test_recurrent_shapes_and_errors():
    layer = nn.LSTM(3, 4, num_layers=2, bidirectional=True, batch_first=True)
    y, (h, c) = layer(Tensor(numbers(2, 5, 3)))
    assert y.shape == (2, 5, 8) and h.shape == (4, 2, 4) and c.shape == (4, 2, 4)
    with pytest.raises(ValueError, match=r"takes \(batch, time, 3\)"):
        layer(Tensor(numbers(2, 5, 4)))
    with pytest.raises(ValueError, match="2 initial state"):
        layer(Tensor(numbers(2, 5, 3)), Tensor(numbers(4, 2, 4)))


# --- attention ---------------------------------------------------------------------------------

ATTENTION = {
    "plain": dict(),
    "causal mask": dict(attn_mask="causal"),
    "float mask": dict(attn_mask="float"),
    "mask per head": dict(attn_mask="heads"),
    "padding": dict(key_padding_mask="padding"),
    "both masks": dict(key_padding_mask="padding", attn_mask="causal"),
    "weights per head": dict(average_attn_weights=False),
}


def _masks(name):
    return {
        "causal": np.triu(np.ones((5, 5), bool), 1), "float": numbers(5, 5, seed=9),
        "heads": np.random.default_rng(1).random((4, 5, 5)) < 0.3,
        "padding": np.array([[False] * 5, [False] * 3 + [True] * 2]),
    }[name]  # fmt: skip


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention(name, need_weights):
    a = nn.MultiheadAttention(6, 2, batch_first=True)
    b = torch.nn.MultiheadAttention(6, 2, batch_first=True)
    same_state(a, b)
    options = {k: v for k, v in ATTENTION[name].items() if not isinstance(v, str)}
    masks = {k: _masks(v) for k, v in ATTENTION[name].items() if isinstance(v, str)}

    def call(layer, x):
        wrap = Tensor if isinstance(x, Tensor) else torch.tensor
        given = {k: wrap(v) for k, v in masks.items()}
        y, weights = layer(x, x, x, need_weights=need_weights, **options, **given)
        assert (weights is not None) == need_weights
        return y if weights is None else y * weights.sum() + (weights * weights).sum()

    compare(a, b, call, [numbers(2, 5, 6)])


def test_attention_over_another_source():
    a = nn.MultiheadAttention(6, 3, kdim=4, vdim=5, bias=False)
    b = torch.nn.MultiheadAttention(6, 3, kdim=4, vdim=5, bias=False)
    a.load_state_dict({k: v.numpy() for k, v in b.state_dict().items()})
    inputs = [numbers(3, 2, 6), numbers(7, 2, 4, seed=1), numbers(7, 2, 5, seed=2)]
    compare(a, b, lambda layer, q, k, v: layer(q, k, v)[0], inputs)


@pytest.mark.parametrize("norm_first, causal", [
    (True, True),
    pytest.param(True, False, marks=pytest.mark.slow),
    pytest.param(False, True, marks=pytest.mark.slow),
    (False, False),
])  # fmt: skip
def test_transformer_block(norm_first, causal):
    a = nn.TransformerBlock(8, 2, hidden=12, norm_first=norm_first, causal=causal)
    b = torch.nn.TransformerEncoderLayer(
        8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=norm_first
    )
    a.load_state_dict({k: v.numpy() for k, v in b.state_dict().items()})
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5) if causal else None

    def call(layer, x):
        return layer(x) if layer is a else layer(x, src_mask=mask, is_causal=causal)

    compare(a, b, call, [numbers(2, 5, 8)])


# --- losses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [
    "MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss", "BCELoss", "BCEWithLogitsLoss",
])  # fmt: skip
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_losses(name, reduction):
    given, target = numbers(3, 4), np.random.default_rng(1).random((3, 4)).astype(np.float32)
    given = 1 / (1 + np.exp(-given)) if name == "BCELoss" else given

    def call(loss, x):
        return loss(x, (Tensor if isinstance(x, Tensor) else torch.tensor)(target))

    compare(getattr(nn, name)(reduction=reduction), getattr(torch.nn, name)(reduction=reduction),
            call, [given])  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 2}])
def test_cross_entropy_loss(options):
    target = np.array([1, 0, 2, 3])

    def call(loss, x):
        return loss(x, (Tensor if isinstance(x, Tensor) else torch.tensor)(target))

    compare(nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options), call,
            [numbers(4, 5)])  # fmt: skip


# --- first values ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["linear", "conv2d strided", "conv transpose 2d", "conv1d"])
def test_first_values_have_torchs_spread(name):
    Tensor.manual_seed(0)
    torch.manual_seed(0)
    ours, theirs, args, options, _ = LAYERS[name]
    args = tuple(64 if i < 2 else n for i, n in enumerate(args))
    a, b = ours(*args, **options), theirs(*args, **options)
    for key, value in b.state_dict().items():
        bound = float(value.abs().max())
        values = a.state_dict()[key].numpy()
        assert abs(values).max() <= bound * 1.2
        assert abs(values.std() - float(value.std())) < 0.25 * float(value.std())


@pytest.mark.parametrize("name", [
    "uniform_", "normal_", "xavier_uniform_", "xavier_normal_", "kaiming_uniform_",
    "kaiming_normal_", "trunc_normal_", "zeros_", "ones_",
])  # fmt: skip
def test_initialisers(name):
    a, b = Tensor.zeros(600, 50), torch.empty(600, 50)  # enough that 5 % is twelve deviations
    assert getattr(nn.init, name)(a) is a
    getattr(torch.nn.init, name)(b)
    values = a.numpy()
    assert abs(values.mean() - float(b.mean())) < 0.1
    assert abs(values.std() - float(b.std())) < 0.05 * max(float(b.std()), 1e-6)
    assert abs(abs(values).max() / max(float(b.abs().max()), 1e-9) - 1) < 0.4 or name == "zeros_"
