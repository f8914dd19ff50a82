"""Modules: what belongs to them, saving and loading, modes, and clear errors."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import nn
from muladd.errors import FormatError, ShapeError
from muladd.formats import safetensors, torch_file
from muladd.tensor import Tensor

torch = pytest.importorskip("torch")


class Net(nn.Module):
    def __init__(self):
        self.first = nn.Linear(3, 4)
        self.norm = nn.BatchNorm1d(4)
        self.rest = [nn.Linear(4, 4), nn.Linear(4, 2)]
        self.scale = nn.Parameter(Tensor([2.0]))
        self.extra = {"table": Tensor([1.0, 2.0])}
        self._private = Tensor([9.0])
        self.label = "net"

    def forward(self, x):
        x = self.norm(self.first(x)).relu()
        for layer in self.rest:
            x = layer(x)
        return x * self.scale


def test_names_follow_the_attributes():
    names = [name for name, _ in Net().named_parameters()]
    assert names == ["scale", "first.weight", "first.bias", "norm.weight", "norm.bias",
                     "rest.0.weight", "rest.0.bias", "rest.1.weight", "rest.1.bias"]  # fmt: skip
    buffers = [name for name, _ in Net().named_buffers()]
    assert buffers == ["extra.table", "norm.running_mean", "norm.running_var",
                       "norm.num_batches_tracked"]  # fmt: skip
    assert [type(m).__name__ for m in Net().modules()] == [
        "Net", "Linear", "BatchNorm1d", "Linear", "Linear",
    ]  # fmt: skip


def test_tied_parameters_come_once():
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    net[1].weight = net[0].weight
    assert len(net.parameters()) == 1
    assert list(net.state_dict()) == ["0.weight", "1.weight"]


def test_modes_reach_everything():
    net = Net()
    assert not net.eval().norm.training and not net.rest[1].training
    assert net.train().norm.training


def test_state_goes_through_safetensors(tmp_path):
    a, b = Net(), Net()
    a(Tensor(np.random.default_rng(0).random((5, 3)).astype(np.float32))).realize()
    path = tmp_path / "net.safetensors"
    safetensors.save(a.state_dict(), path, {"epoch": "3"})
    b.load_state_dict(safetensors.load(path))
    for name, value in a.state_dict().items():
        assert np.array_equal(b.state_dict()[name].numpy(), value.numpy())
    b.load_state_dict(safetensors.open_file(path))
    reference = pytest.importorskip("safetensors.torch")
    loaded = reference.load_file(path)
    assert np.array_equal(loaded["first.weight"].numpy(), a.first.weight.numpy())


def test_state_comes_from_a_torch_file(tmp_path):
    theirs = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    torch.save(theirs.state_dict(), tmp_path / "net.pt")
    ours = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours.load_state_dict(torch_file.open_file(tmp_path / "net.pt"))
    x = np.random.default_rng(0).random((5, 3)).astype(np.float32)
    np.testing.assert_allclose(
        ours.eval()(Tensor(x)).numpy(), theirs.eval()(torch.tensor(x)).detach().numpy(), rtol=1e-5,
        atol=1e-6,
    )  # fmt: skip


def test_loading_keeps_the_optimisers_hold():
    net = nn.Linear(2, 1)
    optimizer = nn.optim.SGD(net.parameters(), lr=1.0)
    net.load_state_dict({"weight": np.ones((1, 2)), "bias": np.zeros(1)})
    net(Tensor([[1.0, 2.0]])).sum().backward()
    optimizer.step()
    np.testing.assert_allclose(net.weight.numpy(), [[0.0, -1.0]])


def test_loading_names_what_does_not_fit():
    net = nn.Linear(2, 3)
    good = {"weight": np.zeros((3, 2)), "bias": np.zeros(3)}
    before = net.weight.numpy().copy()
    with pytest.raises(FormatError, match="missing bias.*unexpected other"):
        net.load_state_dict({"weight": good["weight"], "other": np.zeros(3)})
    with pytest.raises(ShapeError, match=r"bias: \(3,\) here, \(4,\) given"):
        net.load_state_dict({**good, "bias": np.zeros(4)})
    assert np.array_equal(net.weight.numpy(), before), "nothing changes unless all fits"
    net.load_state_dict({"weight": good["weight"], "other": np.zeros(3)}, strict=False)
    assert (net.weight.numpy() == 0).all()


def test_to_changes_floats_only_and_keeps_ties():
    net = Net()
    net.first.weight2 = net.first.weight
    net.to(dtype="float64")
    assert net.first.weight.dtype.name == "float64"
    assert net.first.weight2 is net.first.weight
    assert net.norm.num_batches_tracked.dtype.name == "int64"
    assert net.first.weight.requires_grad and not net.norm.running_mean.requires_grad


def test_freezing():
    net = nn.Linear(2, 2)
    net.requires_grad_(False)
    assert net.parameters() == []
    net.requires_grad_(True)
    assert len(net.parameters()) == 2


def test_apply_visits_inner_modules_first():
    seen = []
    nn.Sequential(nn.ReLU(), nn.Sequential(nn.Tanh())).apply(lambda m: seen.append(type(m)))
    assert seen[-1] is nn.Sequential and nn.Tanh in seen


def test_sequential_and_list():
    layers = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert len(layers) == 3 and isinstance(layers[-1], nn.Linear)
    assert len(layers[:2]) == 2 and isinstance(layers[:2], nn.Sequential)
    layers[1] = nn.Tanh()
    assert isinstance(layers[1], nn.Tanh)
    with pytest.raises(IndexError, match="index 3 of 3"):
        layers[3]
    assert len(nn.ModuleList([nn.ReLU()]).append(nn.ReLU()).extend([nn.ReLU()])) == 3


def test_repr_shows_the_tree():
    text = repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())))
    assert "(0): Linear(2, 3, bias=True)" in text
    assert "(0): ReLU()" in text


def test_dropout_in_training_and_not_in_evaluation():
    layer, x = nn.Dropout(0.25), Tensor(np.ones((100, 100), np.float32))
    y = layer(x).numpy()
    assert set(np.unique(y).round(5)) == {0.0, np.float32(4 / 3).round(5)}
    assert abs((y == 0).mean() - 0.25) < 0.03
    assert np.array_equal(layer.eval()(x).numpy(), x.numpy())


@pytest.mark.parametrize("call, message", [
    (lambda: nn.Linear(3, 2)(Tensor([[1.0]])), "the weight \\[2, 3\\] takes 3"),
    (lambda: nn.Conv2d(3, 2, 3)(Tensor([[1.0]])), "Conv2d: takes"),
    (lambda: nn.Conv2d(3, 2, 3, groups=2), "do not divide"),
    (lambda: nn.Conv2d(1, 1, 3, padding="odd"), "'same' or 'valid'"),
    (lambda: nn.LayerNorm(3)(Tensor([[1.0]])), "layer_norm"),
    (lambda: nn.BatchNorm2d(3)(Tensor([[1.0]])), "BatchNorm2d"),
    (lambda: nn.BatchNorm1d(1)(Tensor([[1.0]])), r"\[1, 1\] has one value per channel.*eval"),
    (lambda: nn.GroupNorm(2, 3), "do not divide"),
    (lambda: nn.MultiheadAttention(5, 2), "does not divide"),
    (lambda: nn.Embedding(3, 2, padding_idx=3), "padding_idx"),
    (lambda: nn.Dropout(2.0), "Dropout: p is a probability in 0..1, got 2.0"),
    (lambda: nn.Sequential(3), "Sequential: expected modules, got 3 at place 0"),
    (lambda: nn.Linear(2, 3).load_state_dict(3), "Linear.load_state_dict: expected a mapping"),
    (lambda: nn.optim.SGD(nn.Linear(2, 3), 0.1), r"SGD: params.*model.parameters\(\), got Linear"),
    (lambda: nn.optim.SGD(nn.Linear(2, 3).parameters(), -1), "SGD: lr is a number.*got -1"),
    (lambda: nn.optim.SGD(nn.Linear(2, 3).parameters(), "fast"), "SGD: lr is.*got 'fast'"),
    (lambda: safetensors.save(nn.Linear(2, 3), "x"), r"safetensors.save.*state_dict\(\).*Linear"),
    (lambda: nn.MSELoss(reduction="most"), "reduction"),
    (lambda: nn.init.xavier_uniform_(Tensor([1.0])), "at least 2 axes"),
])  # fmt: skip
def test_misuse_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_module_without_forward_says_so():
    with pytest.raises(TypeError, match="has no forward"):
        nn.Module()(1)
