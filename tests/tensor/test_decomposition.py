"""Factorisations and systems of equations against torch."""
import numpy as np
import pytest
import torch
from oracle import compare

from muladd import Tensor


def matrix(rng, *shape):
    return rng.normal(size=shape)


@pytest.mark.parametrize("shape", [(3, 3), (2, 4, 4), (1, 1)])
def test_square_matrices(shape, device, rng):
    x = matrix(rng, *shape)
    compare(lambda t: t.inverse(), x, rtol=1e-8)
    compare(lambda t: t.det(), x, rtol=1e-8)
    compare(lambda t: t.slogdet(), x, rtol=1e-8)
    b = matrix(rng, *shape[:-1], 2)
    compare(lambda t, u: t.solve(u), x, b, rtol=1e-8,
            oracle=lambda t, u: torch.linalg.solve(t, u))  # fmt: skip
    compare(lambda t: (t @ t.mT + t.eye(shape[-1], dtype="float64")).cholesky(), x, rtol=1e-8,
            oracle=lambda t: torch.linalg.cholesky(
                t @ t.mT + torch.eye(shape[-1], dtype=torch.float64)))  # fmt: skip


@pytest.mark.parametrize("upper", [True, False])
def test_triangular_solve(upper, device, rng):
    x, b = matrix(rng, 2, 4, 4), matrix(rng, 2, 4, 3)
    for unit in (False, True):
        compare(lambda t, u, k=unit: t.triangular_solve(u, upper, k), x, b, rtol=1e-8,
                oracle=lambda t, u, k=unit: torch.linalg.solve_triangular(
                    t, u, upper=upper, unitriangular=k))  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 3), (3, 3), (2, 3, 5)])
def test_qr(shape, device, rng):
    x = matrix(rng, *shape)
    q, r = Tensor(x).qr()
    np.testing.assert_allclose((q @ r).numpy(), x, atol=1e-12)
    np.testing.assert_allclose((q.mT @ q - Tensor.eye(q.shape[-1])).abs().max().item(), 0,
                               atol=1e-12)  # fmt: skip
    compare(lambda t: tuple(t.qr()), x, rtol=1e-8, gradient=shape[-2] >= shape[-1],
            oracle=lambda t: tuple(torch.linalg.qr(t)))  # fmt: skip


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 5, 5)])
def test_svd(shape, device, rng):
    x = matrix(rng, *shape)
    u, s, vh = Tensor(x).svd()
    np.testing.assert_allclose(((u * s.unsqueeze(-2)) @ vh).numpy(), x, atol=1e-10)
    np.testing.assert_allclose(s.numpy(), torch.linalg.svdvals(torch.tensor(x)), rtol=1e-10)
    compare(lambda t: t.pinverse(), x, gradient=False, rtol=1e-8)


def test_singular_matrices(device):
    assert Tensor([[1.0, 2.0], [2.0, 4.0]]).det().item() == 0
    sign, logarithm = Tensor([[1.0, 2.0], [2.0, 4.0]]).slogdet()
    assert sign.item() == 0 and logarithm.item() == -np.inf
    assert Tensor([[-2.0]]).logdet().isnan().item()
