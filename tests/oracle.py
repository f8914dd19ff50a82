"""Runs one function on muladd's tensors and on torch's, and compares results and gradients."""
import numpy as np
import torch

from muladd import Tensor

torch.set_num_threads(1)


def arrays_of(result):
    """Tensors in a result (a tensor, a tuple, a named tuple) in order."""
    if isinstance(result, tuple | list):
        return [r for item in result for r in arrays_of(item)]
    return [result]


def numbers(t):
    if isinstance(t, Tensor):
        return t.numpy()
    if isinstance(t, torch.Tensor):
        return t.detach().to(torch.float32).numpy() if t.dtype == torch.bfloat16 \
            else t.detach().numpy()
    return np.asarray(t)


def compare(function, *arrays, oracle=None, gradient=True, rtol=None, atol=None, double=False):
    """function(*tensors) against oracle(*torch tensors); floats also get their gradients compared.

    Results are joined to one number by fixed random weights, so that every element counts.
    """
    oracle = oracle or function
    if double:
        arrays = [a.astype(np.float64) if a.dtype == np.float32 else a for a in arrays]
    wide = any(a.dtype == np.float64 for a in arrays)
    rtol = rtol or (1e-11 if wide else 1e-5)
    atol = atol or (1e-12 if wide else 2e-6)
    ours = [Tensor(a, requires_grad=gradient and a.dtype.kind == "f") for a in arrays]
    theirs = [torch.tensor(a, requires_grad=gradient and a.dtype.kind == "f") for a in arrays]
    got, expected = arrays_of(function(*ours)), arrays_of(oracle(*theirs))
    assert len(got) == len(expected)
    weights = np.random.default_rng(3)
    mine, other = [], []
    for a, b in zip(got, expected):
        x, y = numbers(a), numbers(b)
        assert x.shape == y.shape, f"shape {x.shape}, torch has {y.shape}"
        if y.dtype.kind == "f":
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(x, y)
        if isinstance(b, torch.Tensor) and b.requires_grad:
            w = weights.uniform(0.5, 1.5, y.shape).astype(y.dtype)
            mine.append((a * Tensor(w)).sum())
            other.append((b * torch.tensor(w)).sum())
    if not mine:
        return
    loss, oracle_loss = mine[0], other[0]
    for a, b in zip(mine[1:], other[1:]):
        loss, oracle_loss = loss + a, oracle_loss + b
    oracle_loss.backward()
    if not any(t.grad is not None and t.grad.any() for t in theirs):
        return  # constant almost everywhere: there is nothing to go back through
    loss.backward()
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if b.requires_grad:
            if b.grad is None:
                assert a.grad is None or not a.grad.numpy().any()
                continue
            mine_grad = np.zeros_like(b.detach().numpy()) if a.grad is None else a.grad.numpy()
            np.testing.assert_allclose(
                mine_grad, b.grad.numpy(), rtol=max(rtol * 10, 1e-4 if not wide else 0),
                atol=max(atol * 10, 1e-5 if not wide else 0), err_msg=f"gradient of argument {i}",
            )  # fmt: skip
