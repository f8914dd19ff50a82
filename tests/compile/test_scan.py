"""Repetition: compiled once whatever the count, right over long runs, differentiable throughout."""
from __future__ import annotations

import numpy as np
import torch

from muladd import Tensor
from muladd.compile import compile_graph, parameters
from muladd.tensor import backend
from muladd.tensor.functional import scan

WIDTH, HEADS, TIME = 32, 2, 8


def _program(*tensors: Tensor):  # type: ignore[no-untyped-def]
    roots, _ = backend.expand([t.node for t in tensors], "CPU")
    graph, _ = parameters(tuple(roots))
    return compile_graph(graph, "CPU")


def _normal(*shape: int) -> Tensor:
    values = np.random.default_rng(len(shape)).standard_normal(shape).astype("float32") * 0.1
    return Tensor(values, device="CPU", requires_grad=True)


def _stack(layers: int) -> tuple[Tensor, list[Tensor]]:
    """`layers` equal transformer blocks as one scan over stacked weights; a scalar loss."""
    weights = [_normal(layers, WIDTH, 3 * WIDTH), _normal(layers, WIDTH, WIDTH),
               _normal(layers, WIDTH, 4 * WIDTH), _normal(layers, 4 * WIDTH, WIDTH)]  # fmt: skip

    def block(x: Tensor, w: list[Tensor]) -> tuple[Tensor, None]:
        qkv = (x.layernorm(axis=-1) @ w[0]).reshape(2, TIME, 3, HEADS, WIDTH // HEADS)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        a = q.scaled_dot_product_attention(k, v, is_causal=True)
        x = x + a.permute(0, 2, 1, 3).reshape(2, TIME, WIDTH) @ w[1]
        return x + (x.layernorm(axis=-1) @ w[2]).gelu() @ w[3], None

    out, _ = scan(block, _normal(2, TIME, WIDTH), weights)
    return (out * out).mean(), weights


def test_a_stack_of_48_layers_compiles_like_one_of_2() -> None:
    sizes = []
    for layers in (2, 48):
        loss, weights = _stack(layers)
        loss.backward()
        program = _program(loss, *[w.grad for w in weights])
        distinct = {k.kernel.key() for k in program.kernels()}
        sizes.append((len(program.kernels()), len(distinct)))
    assert sizes[0] == sizes[1]


def test_a_recurrence_over_1000_steps_matches_torch() -> None:
    steps, width = 1000, 8
    rng = np.random.default_rng(0)
    xs = rng.standard_normal((steps, width)).astype("float32")
    w = (rng.standard_normal((width, width)) * 0.2).astype("float32")
    weight = Tensor(w, device="CPU", requires_grad=True)
    h, _ = scan(lambda h, x: ((h @ weight + x).tanh(), None), Tensor.zeros(width, device="CPU"),
                Tensor(xs, device="CPU"))  # fmt: skip
    (h * h).sum().backward()
    tw = torch.tensor(w, requires_grad=True)
    th = torch.zeros(width)
    for x in torch.tensor(xs):
        th = (th @ tw + x).tanh()
    (th * th).sum().backward()
    np.testing.assert_allclose(h.numpy(), th.detach().numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(weight.grad.numpy(), tw.grad.numpy(), rtol=1e-4, atol=1e-4)


def test_200_training_steps_inside_one_graph() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((64, 4)).astype("float32")
    y = x @ np.array([[1.0], [-2.0], [3.0], [0.5]], "float32")
    inputs, targets = Tensor(x, device="CPU"), Tensor(y, device="CPU")

    def step(w: Tensor, _: None) -> tuple[Tensor, Tensor]:
        error = inputs @ w - targets
        slope = inputs.T @ error * (2.0 / 64)
        return w - slope * 0.05, (error * error).mean()

    w, losses = scan(step, Tensor.zeros(4, 1, device="CPU"), length=200)
    program = _program(w, losses)
    assert len(program.kernels()) < 10
    values = losses.numpy()
    assert values[-1] < 1e-3 * values[0]
    np.testing.assert_allclose(w.numpy()[:, 0], [1, -2, 3, 0.5], atol=0.05)
