"""Views, joins, repetitions and windows against torch; writing through views."""
import numpy as np
import pytest
import torch
from oracle import compare

from muladd import Tensor

T = {"Tensor": Tensor, "torch": torch}


def lib(t):
    """The namespace of cat, stack, ... for a tensor of either library."""
    return Tensor if isinstance(t, Tensor) else torch


def joined(name, *tensors, **named):
    first = tensors[0]
    if isinstance(first, Tensor):
        return getattr(Tensor, name)(*tensors, **named)
    return getattr(torch, name)(tensors, **named)


CASES = {
    "reshape": lambda x: x.reshape(4, -1),
    "reshape_tuple": lambda x: x.reshape((6, 4)),
    "view": lambda x: x.view(-1),
    "flatten": lambda x: x.flatten(1),
    "unflatten": lambda x: x.unflatten(2, (2, -1)),
    "squeeze": lambda x: x[:, :1].squeeze(),
    "squeeze_dim": lambda x: x[:, :1].squeeze(1),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "expand": lambda x: x.unsqueeze(1).expand(2, 5, 3, 4),
    "expand_minus": lambda x: x[:, :1].expand(-1, 3, -1),
    "broadcast_to": lambda x: x.broadcast_to((2, 2, 3, 4)),
    "permute": lambda x: x.permute(2, 0, 1),
    "transpose": lambda x: x.transpose(0, -1),
    "mT": lambda x: x.mT,
    "T": lambda x: x[0].T,
    "movedim": lambda x: x.movedim(0, 2),
    "movedim_many": lambda x: x.movedim((0, 1), (2, 0)),
    "narrow": lambda x: x.narrow(2, 1, 2),
    "split": lambda x: x.split(3, 2),
    "split_list": lambda x: x.split([1, 3], 2),
    "chunk": lambda x: x.chunk(3, 2),
    "tensor_split": lambda x: x.tensor_split(3, 2),
    "tensor_split_at": lambda x: x.tensor_split((1, 2), 2),
    "unbind": lambda x: x.unbind(1),
    "select": lambda x: x.select(1, -1),
    "diagonal": lambda x: x.diagonal(0, 1, 2),
    "diagonal_offset": lambda x: x.diagonal(1, 1, 2),
    "diagonal_below": lambda x: x.diagonal(-1, 1, 2),
    "diag": lambda x: x[0, 0].diag(1),
    "diag_embed": lambda x: x.diag_embed(-1),
    "tril": lambda x: x.tril(),
    "triu": lambda x: x.triu(1),
    "repeat": lambda x: x.repeat(2, 1, 3),
    "repeat_lead": lambda x: x.repeat(2, 1, 1, 2),
    "tile": lambda x: x.tile((2, 3)),
    "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
    "flip": lambda x: x.flip(0, 2),
    "roll": lambda x: x.roll(1, 2),
    "roll_flat": lambda x: x.roll(5),
    "roll_many": lambda x: x.roll((1, -1), (0, 1)),
    "rot90": lambda x: x.rot90(1, (1, 2)),
    "rot90_3": lambda x: x.rot90(3, (1, 2)),
    "rot90_2": lambda x: x.rot90(2, (0, 1)),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "unfold_step": lambda x: x.unfold(1, 2, 1),
    "cat": lambda x: joined("cat", x, x * 2, dim=1),
    "stack": lambda x: joined("stack", x, x * 2, dim=1),
    "hstack": lambda x: joined("hstack", x, x * 2),
    "vstack": lambda x: joined("vstack", x, x * 2),
    "meshgrid": lambda x: lib(x).meshgrid(x[0, 0], x[0, :, 0], indexing="ij"),
    "meshgrid_xy": lambda x: lib(x).meshgrid(x[0, 0], x[0, :, 0], indexing="xy"),
    "kron": lambda x: x[0].kron(x[1]) if isinstance(x, Tensor) else torch.kron(x[0], x[1]),
    "fliplr": lambda x: x[0].fliplr() if isinstance(x, Tensor) else torch.fliplr(x[0]),
    "swapaxes": lambda x: x.swapaxes(0, 1),
    "ravel": lambda x: x.ravel(),
}


@pytest.mark.parametrize("name", CASES)
def test_movement(name, device, rng):
    compare(CASES[name], rng.normal(size=(2, 3, 4)).astype(np.float32))


def test_unfold_and_fold(device, rng):
    x = rng.normal(size=(2, 3, 6, 7)).astype(np.float32)
    options = {"dilation": 1, "padding": 1, "stride": 2}
    compare(lambda t: t.unfold((2, 3), **options), x,
            oracle=lambda t: torch.nn.functional.unfold(t, (2, 3), **options))  # fmt: skip
    columns = rng.normal(size=(2, 3 * 6, 16)).astype(np.float32)
    compare(lambda t: t.fold((6, 7), (2, 3), **options), columns,
            oracle=lambda t: torch.nn.functional.fold(t, (6, 7), (2, 3), **options))  # fmt: skip


@pytest.mark.parametrize("pads", [(1, 2), (1, 0, 2, 1), (-1, 1), (0, 0, -1, 2)])
def test_constant_padding(pads, device, rng):
    x = rng.normal(size=(2, 3, 5)).astype(np.float32)
    compare(lambda t: t.pad(pads, value=1.5), x,
            oracle=lambda t: torch.nn.functional.pad(t, pads, value=1.5))  # fmt: skip


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("pads", [(1, 2), (2, 0, 1, 1)])
def test_padding_modes(mode, pads, device, rng):
    x = rng.normal(size=(2, 3, 4, 5)[4 - len(pads) // 2 - 2:]).astype(np.float32)
    compare(lambda t: t.pad(pads, mode=mode), x,
            oracle=lambda t: torch.nn.functional.pad(t, pads, mode=mode))  # fmt: skip


# --- state -------------------------------------------------------------------------------------


def both(function, array):
    """A function that mutates, on both libraries; its results must be equal."""
    ours, theirs = function(Tensor(array.copy())), function(torch.tensor(array))
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-6)


def write_slice(x):
    v = x[1:, ::2]
    v += 10
    return x, v


def write_transposed(x):
    v = x.T
    v[0] = 7
    return x, v


def write_reshaped(x):
    v = x.reshape(-1)
    v[3:5] = -1
    return x, v


def write_base(x):
    v = x[0]
    x[0, 1] = 5
    x.mul_(2)
    return x, v


def write_twice(x):
    a = x.permute(1, 0)[1:]
    b = a[:, 0]
    b.zero_()
    a.add_(1)
    return x, a, b


def write_each(x):
    for i in range(3):
        x[i] += i
    return (x,)


def write_negative_steps(x):
    if isinstance(x, Tensor):
        x[::-1, 1] = Tensor([1.0, 2.0, 3.0])
    else:
        x.flip(0)
        x[:, 1] = torch.tensor([3.0, 2.0, 1.0])
    return (x,)


def write_detached(x):
    d = x.detach()
    d[1] = 3
    return x, d


def write_column_twice(x):
    x[:, 0] = x[:, 1]
    x[:, 1] = 0
    return (x,)


@pytest.mark.parametrize("function", [
    write_slice, write_transposed, write_reshaped, write_base, write_twice, write_each,
    write_negative_steps, write_detached, write_column_twice,
])  # fmt: skip
def test_views_share_their_elements(function, device, rng):
    both(function, rng.normal(size=(3, 4)).astype(np.float32))


def test_a_realised_view_still_sees_writes(device):
    x = Tensor([[1.0, 2.0], [3.0, 4.0]])
    v = x[0]
    v.realize()
    x[0, 0] = 9
    assert v.tolist() == [9.0, 2.0]
    v[1] = 8
    assert x.tolist() == [[9.0, 8.0], [3.0, 4.0]]


def test_gradients_follow_what_was_written(device, rng):
    def f(x, y):
        z = x * 2
        z[1:] = y * y
        z += 1
        return z * x

    a, b = rng.normal(size=(3, 2)).astype(np.float32), rng.normal(size=(2, 2)).astype(np.float32)
    compare(f, a, b)
