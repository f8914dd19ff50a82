"""Runs one function on muladd's tensors and on torch's, and compares results and gradients."""
import numpy as np
import torch

from muladd import Tensor, config

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
    losses = joined(got, expected)
    back = losses is not None
    if losses:
        losses[1].backward()
        # constant almost everywhere: there is nothing to go back through
        back = any(t.grad is not None and t.grad.any() for t in theirs)
        if back:
            losses[0].backward()
    if config.get("DEVICE") != "CPU":  # other devices' compilers are slow to begin: all in one go
        Tensor.realize(*got, *(t.grad for t in ours if t.grad is not None))
    for a, b in zip(got, expected):
        x, y = numbers(a), numbers(b)
        assert x.shape == y.shape, f"shape {x.shape}, torch has {y.shape}"
        if y.dtype.kind == "f":
            np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(x, y)
    for i, (a, b) in enumerate(zip(ours, theirs)):
        if back and b.requires_grad:
            if b.grad is None:
                assert a.grad is None or not a.grad.numpy().any()
                continue
            mine_grad = np.zeros_like(b.detach().numpy()) if a.grad is None else a.grad.numpy()
            np.testing.assert_allclose(
                mine_grad, b.grad.numpy(), rtol=max(rtol * 10, 1e-4 if not wide else 0),
                atol=max(atol * 10, 1e-5 if not wide else 0), err_msg=f"gradient of argument {i}",
            )  # fmt: skip


def joined(got, expected):
    """Both sides' results as one number each, or None where torch has no gradient of any."""
    weights = np.random.default_rng(3)
    mine, other = [], []
    for a, b in zip(got, expected):
        if isinstance(b, torch.Tensor) and b.requires_grad:
            assert tuple(a.shape) == tuple(b.shape)
            w = torch.tensor(weights.uniform(0.5, 1.5, b.shape)).to(b.dtype)
            mine.append((a * Tensor(numbers(w))).sum())
            other.append((b * w).sum())
    if not mine:
        return None
    loss, oracle_loss = mine[0], other[0]
    for a, b in zip(mine[1:], other[1:]):
        loss, oracle_loss = loss + a, oracle_loss + b
    return loss, oracle_loss
