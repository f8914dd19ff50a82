"""The measured networks as JAX's users write them: functions of a list of parameters.

Parameters come in the order in which the modules of networks.py list them.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from muladd.bench.networks import GPT

_BLOCK = 12  # parameters of a block


def parameters(jax: Any, model: Any) -> list[Any]:
    """Copies of a module's parameters, in its order."""
    return [jax.numpy.array(np.array(p.detach().numpy())) for p in model.parameters()]


def gpt_step(jax: Any, model: GPT, text: np.ndarray) -> Callable[[], float]:
    """A call of the model's training step, from its weights."""
    step = adamw_step(jax, gpt_loss(jax, model.sizes[2]), parameters(jax, model))
    given = jax.numpy.array(text)
    return lambda: step(given)


def gpt_loss(jax: Any, heads: int) -> Callable[..., Any]:
    """The loss of networks.GPT: (parameters, text (batch, time + 1)) to a scalar."""

    def loss(weights: Sequence[Any], text: Any) -> Any:
        characters, places, *blocks, scale, shift, head = weights
        x = characters[text[:, :-1]] + places[: text.shape[1] - 1]
        for i in range(0, len(blocks), _BLOCK):
            x = _block(jax, blocks[i : i + _BLOCK], x, heads)
        scores = jax.nn.log_softmax(_norm(jax, x, scale, shift) @ head.T)
        return -jax.numpy.take_along_axis(scores, text[:, 1:, None], axis=-1).mean()

    return loss


def _block(jax: Any, weights: Sequence[Any], x: Any, heads: int) -> Any:
    """Attention and a perceptron, each after a norm and added to its input."""
    project, project_bias, out, out_bias, w1, b1, w2, b2, *norms = weights
    parts = _norm(jax, x, *norms[:2]) @ project.T + project_bias
    q, k, v = (p.reshape(*p.shape[:2], heads, -1) for p in jax.numpy.split(parts, 3, axis=-1))
    y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
    x = x + y.reshape(x.shape) @ out.T + out_bias
    y = jax.nn.gelu(_norm(jax, x, *norms[2:]) @ w1.T + b1, approximate=False)
    return x + y @ w2.T + b2


def _norm(jax: Any, x: Any, scale: Any, shift: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5) * scale + shift


def adamw_step(
    jax: Any, loss: Callable[..., Any], weights: list[Any], rate: float = 3e-4,
    betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, decay: float = 0.01,
) -> Callable[..., Any]:  # fmt: skip
    """A training step that keeps its own state: batch to loss. Loshchilov and Hutter, 2017."""

    def update(state: Any, count: Any, *batch: Any) -> Any:
        value, gradients = jax.value_and_grad(loss)([w for w, _, _ in state], *batch)
        new = []
        for (w, m, v), g in zip(state, gradients):
            m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
            mean, spread = m / (1 - betas[0] ** count), v / (1 - betas[1] ** count)
            change = mean / (jax.numpy.sqrt(spread) + eps)
            new.append((w * (1 - rate * decay) - rate * change, m, v))
        return new, value

    compiled = jax.jit(update, donate_argnums=0)
    state = [(w, jax.numpy.zeros_like(w), jax.numpy.zeros_like(w)) for w in weights]
    count = 0

    def step(*batch: Any) -> float:
        nonlocal state, count
        count += 1
        state, value = compiled(state, float(count), *batch)
        return value.item()

    return step


def mlp(jax: Any, model: Any) -> Callable[[np.ndarray], Callable[[], Any]]:
    """networks.mlp, compiled, with our weights: an input to a call."""
    weights = parameters(jax, model)

    @jax.jit
    def forward(weights: Sequence[Any], x: Any) -> Any:
        for w, b in zip(weights[::2], weights[1::2]):
            x = jax.nn.relu(x @ w.T + b)
        return x

    def answer(x: np.ndarray) -> Callable[[], Any]:
        given = jax.numpy.array(x)
        return lambda: forward(weights, given).block_until_ready()

    return answer
