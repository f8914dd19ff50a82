"""Random numbers: the published vectors of the cipher, repeatability, distributions."""
import numpy as np
import pytest

from muladd import Tensor
from muladd.ir import const
from muladd.ir import dtype as dt
from muladd.tensor import random


@pytest.mark.parametrize("counter, key, result", [
    ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
    ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
    ((0x243F6A88, 0x85A308D3), (0x13198A2E, 0x03707344), (0xC4923A9C, 0x483DF7A0)),
])  # fmt: skip
def test_the_cipher_gives_the_published_numbers(counter, key, result, device):
    words = [const(w, dt.uint32) for w in (*counter, *key)]
    out = random.threefry(*words)
    assert tuple(Tensor.from_node(n).item() for n in out) == result


def test_equal_seeds_give_equal_numbers(device):
    Tensor.manual_seed(3)
    a, b = Tensor.rand(5), Tensor.rand(5)
    Tensor.manual_seed(3)
    c, d = Tensor.rand(5), Tensor.rand(5)
    assert a.tolist() == c.tolist() and b.tolist() == d.tolist()
    assert a.tolist() != b.tolist()


def test_distributions(device):
    Tensor.manual_seed(1)
    n = 4000
    u, z = Tensor.rand(n).numpy(), Tensor.randn(n).numpy()
    assert 0 <= u.min() and u.max() < 1 and abs(u.mean() - 0.5) < 0.02
    assert abs(z.mean()) < 0.05 and abs(z.std() - 1) < 0.05 and abs((z**4).mean() - 3) < 0.5
    i = Tensor.randint(3, 8, (n,)).numpy()
    assert set(i) == {3, 4, 5, 6, 7} and abs((i == 5).mean() - 0.2) < 0.03
    assert abs(Tensor.full((n,), 0.3).bernoulli().numpy().mean() - 0.3) < 0.03
    assert Tensor.rand(10, dtype="float64").numpy().dtype == np.float64
    assert Tensor.rand(10, dtype="bfloat16").dtype.name == "bfloat16"
    w = Tensor.normal(500, mean=2, std=3).numpy()
    assert abs(w.mean() - 2) < 0.5 and abs(w.std() - 3) < 0.4


def test_permutations_and_draws(device):
    assert sorted(Tensor.randperm(37).tolist()) == list(range(37))
    p = Tensor([0.0, 0.5, 0.5, 0.0])
    assert set(p.multinomial(50, replacement=True).tolist()) <= {1, 2}
    drawn = Tensor([[0.1, 0.2, 0.7], [1.0, 1.0, 1.0]]).multinomial(3).numpy()
    assert all(sorted(row) == [0, 1, 2] for row in drawn)
    often = Tensor([0.1, 0.2, 0.7]).expand(300, 3).multinomial(1).numpy()
    assert abs((often == 2).mean() - 0.7) < 0.1


def test_dropout(device):
    x = Tensor.ones(2000, requires_grad=True)
    y = x.dropout(0.25)
    values = y.numpy()
    assert abs((values == 0).mean() - 0.25) < 0.04
    np.testing.assert_allclose(values[values != 0], 1 / 0.75, rtol=1e-6)
    y.sum().backward()
    np.testing.assert_allclose(x.grad.numpy(), values, rtol=1e-6)
    assert x.dropout(0.5, training=False) is x
    assert Tensor.ones(4, 6, 2, 2).dropout2d(0.5).numpy().std((2, 3)).max() == 0


def test_initialisers(device):
    w = Tensor.kaiming_uniform(30, 20, a=0).numpy()
    assert abs(w).max() <= np.sqrt(6 / 20) and abs(w).max() > 0.5 * np.sqrt(6 / 20)
    w = Tensor.xavier_normal(50, 40).numpy()
    assert abs(w.std() - np.sqrt(2 / 90)) < 0.02
    w = Tensor.kaiming_normal(20, 4, 3, 3, requires_grad=True)
    assert w.requires_grad and abs(w.numpy().std() - np.sqrt(2 / (1.0001 * 36))) < 0.03
    assert abs(Tensor.xavier_uniform(9, 9).numpy()).max() <= np.sqrt(6 / 18)
