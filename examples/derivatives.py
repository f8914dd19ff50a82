"""Jacobians, Hessians and vectorised functions; and Newton's method, which needs them."""
from __future__ import annotations

from muladd import Tensor, grad, hessian, jacobian, vmap


def valley(x: Tensor) -> Tensor:
    """Rosenbrock's banana: a bent valley whose least value is 0, at (1, 1)."""
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def newton(x: Tensor, steps: int) -> Tensor:
    """x - H^-1 g, with the 2 by 2 inverse written out."""
    for _ in range(steps):
        g, h = grad(valley)(x), hessian(valley)(x)
        determinant = h[0, 0] * h[1, 1] - h[0, 1] * h[1, 0]
        move = Tensor.stack(h[1, 1] * g[0] - h[0, 1] * g[1], h[0, 0] * g[1] - h[1, 0] * g[0])
        x = (x - move / determinant).realize()
        print(f"  at {x.numpy().round(6)}  valley {valley(x).item():.2e}")
    return x


def main() -> None:
    print("Newton's method in Rosenbrock's valley:")
    found = newton(Tensor([-1.2, 1.0]), 6)
    assert abs(found.numpy() - 1).max() < 1e-3

    def polar(p: Tensor) -> Tensor:
        return Tensor.stack(p[0] * p[1].cos(), p[0] * p[1].sin())

    at = Tensor([2.0, 0.5])
    print("the Jacobian of polar coordinates at (2, 0.5):")
    print(jacobian(polar)(at).numpy().round(4))

    points = Tensor([[1.0, 0.0], [2.0, 0.5], [3.0, 1.0]])
    print("the same for many points at once, determinants (they are the radii):")
    many = vmap(jacobian(polar))(points).numpy()
    print((many[:, 0, 0] * many[:, 1, 1] - many[:, 0, 1] * many[:, 1, 0]).round(4))


if __name__ == "__main__":
    main()
