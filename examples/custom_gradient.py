"""Functions whose derivative you say yourself: a numerically safer one, and a useful lie."""
from __future__ import annotations

import numpy as np

from muladd import Tensor, custom_gradient, grad


@custom_gradient
def softplus(x: Tensor) -> tuple[Tensor, object]:
    """log(1 + exp(x)), written so that nothing overflows, with its derivative: a sigmoid."""
    result = x.maximum(0) + (1 + (-x.abs()).exp()).log()

    def backward(cotangent: Tensor) -> Tensor:
        return cotangent * x.sigmoid()

    return result, backward


@custom_gradient
def sign_straight_through(x: Tensor) -> tuple[Tensor, object]:
    """The sign of x, whose derivative is zero almost everywhere; taken to be 1 near 0 instead, it
    lets a network with weights of +1 and -1 learn (Bengio et al., 2013)."""

    def backward(cotangent: Tensor) -> Tensor:
        return (x.abs() <= 1).where(cotangent, 0.0)

    return x.sign(), backward


def main() -> None:
    x = Tensor([-200.0, -1.0, 0.0, 1.0, 200.0])
    slope = grad(lambda t: softplus(t).sum())
    print("softplus ", softplus(x).numpy().round(4))
    print("its slope", slope(x).numpy().round(4))
    assert np.allclose(slope(x).numpy(), x.sigmoid().numpy())
    print("its slope's slope", grad(lambda t: slope(t).sum())(x).numpy().round(4))

    # find the signs of hidden weights from examples
    random = np.random.default_rng(0)
    hidden = np.sign(random.standard_normal(16)).astype(np.float32)
    inputs = random.standard_normal((200, 16)).astype(np.float32)
    given, wanted = Tensor(inputs), Tensor((inputs * hidden).sum(1))
    w = Tensor(random.uniform(-0.1, 0.1, 16).astype(np.float32))

    def loss(w: Tensor) -> Tensor:
        return ((given * sign_straight_through(w)).sum(1) - wanted).square().mean()

    for step in range(6):
        print(f"step {step}  loss {loss(w).item():8.4f}")
        w = (w - 0.02 * grad(loss)(w)).realize()
    assert (np.sign(w.numpy()) == hidden).all()
    print("all 16 signs found")


if __name__ == "__main__":
    main()
