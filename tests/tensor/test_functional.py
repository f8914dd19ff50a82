"""Transformations of functions, against torch.func and by hand."""
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import muladd
from muladd import Tensor
from muladd.errors import GradientError, MuladdError, ShapeError


def close(a, b, rtol=1e-5):
    np.testing.assert_allclose(a.numpy(), b.detach().numpy() if isinstance(b, torch.Tensor) else b,
                               rtol=rtol, atol=1e-6)  # fmt: skip


def f(x):
    return (x.sin() * x * x).sum()


X = np.array([0.3, -1.2, 2.0], np.float32)


def test_grad_of_grad(device):
    first = muladd.grad(f)
    close(first(Tensor(X)), torch.func.grad(f)(torch.tensor(X)))
    second = muladd.grad(lambda x: first(x).sum())
    oracle = torch.func.grad(lambda x: torch.func.grad(f)(x).sum())
    close(second(Tensor(X)), oracle(torch.tensor(X)))


def test_grad_of_a_tree(device):
    def loss(p, x):
        return ((x @ p["w"] + p["b"][0]) ** 2).mean()

    p = {"w": Tensor(np.eye(3, dtype=np.float32)), "b": [Tensor([1.0, 2.0, 3.0]), "a name"]}
    value, g = muladd.value_and_grad(loss)(p, Tensor(X[None]))
    assert g["b"][1] == "a name"
    assert value.shape == ()
    close(g["b"][0], 2 / 3 * (X + [1, 2, 3]))


def test_grad_with_aux_and_several_arguments(device):
    g, aux = muladd.grad(lambda a, b: ((a * b).sum(), a + b), argnums=(0, 1), has_aux=True)(
        Tensor(X), Tensor(X * 2)
    )
    close(g[0], X * 2)
    close(g[1], X)
    close(aux, X * 3)


def test_asking_for_a_value_inside_keeps_the_gradient(device):
    def g(x):
        y = x * x
        assert y.sum().item() > 0
        return y.sum() * 2

    close(muladd.grad(g)(Tensor(X)), 4 * X)


def test_jvp_and_vjp(device):
    t = np.array([1.0, 0.5, -1.0], np.float32)
    out, moved = muladd.jvp(lambda x: x.exp() * x, (Tensor(X),), (Tensor(t),))
    want, want_moved = torch.func.jvp(lambda x: x.exp() * x, (torch.tensor(X),), (torch.tensor(t),))
    close(out, want)
    close(moved, want_moved)
    out, pull = muladd.vjp(lambda x: x.exp() * x, Tensor(X))
    close(pull(Tensor(t))[0], torch.func.vjp(lambda x: x.exp() * x, torch.tensor(X))[1](
        torch.tensor(t))[0])  # fmt: skip


def test_vmap(device, rng):
    w, x = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(5, 3)).astype(np.float32)
    mapped = muladd.vmap(lambda a, b: (a @ b).softmax(-1), in_axes=(0, None))
    close(mapped(Tensor(x), Tensor(w)), (torch.tensor(x) @ torch.tensor(w)).softmax(-1))
    over = muladd.vmap(lambda a: a.sum(), in_axes=1)
    close(over(Tensor(x)), x.sum(0))
    per_example = muladd.vmap(muladd.grad(lambda a: (a * a).sum()))
    close(per_example(Tensor(x)), 2 * x)


def test_jacobian_and_hessian(device):
    g = lambda x: x.sin() * x.sum()  # noqa: E731
    close(muladd.jacobian(g)(Tensor(X)), torch.func.jacrev(g)(torch.tensor(X)))
    close(muladd.hessian(f)(Tensor(X)), torch.func.hessian(f)(torch.tensor(X)), 1e-4)


def test_checkpoint_changes_no_value(device):
    inner = muladd.checkpoint(lambda x: (x.sin() * x).exp())
    close(muladd.grad(lambda x: inner(x).sum())(Tensor(X)),
          torch.func.grad(lambda x: (x.sin() * x).exp().sum())(torch.tensor(X)))  # fmt: skip
    w = Tensor(X, requires_grad=True)
    (inner(w) * 2).sum().backward()
    assert w.grad is not None


def test_custom_gradient(device):
    @muladd.custom_gradient
    def clipped(x):
        return x * 3, lambda c: c.clamp(-1, 1) * 10

    close(clipped(Tensor(X)), X * 3)
    close(muladd.grad(lambda x: (clipped(x) * 5).sum())(Tensor(X)), np.full(3, 10.0))

    scale = Tensor(2.0)

    @muladd.custom_gradient
    def two(x, y):
        z = x * y * scale
        return z, lambda c: (c * z, None)

    g = muladd.grad(lambda x, y: two(x, y).sum(), argnums=(0, 1))(Tensor(X), Tensor(X))
    close(g[0], X * X * 2)
    close(g[1], np.zeros(3))


def test_custom_gradient_refuses_a_wrong_count(device):
    @muladd.custom_gradient
    def bad(x, y):
        return x * y, lambda c: c

    with pytest.raises(GradientError, match="2 tensors"):
        bad(Tensor(X), Tensor(X))


def test_scan(device, rng):
    xs = rng.normal(size=(6, 3)).astype(np.float32)
    w = rng.normal(size=(3, 3)).astype(np.float32)

    def run(x, w, h):
        ys = []
        for row in x:
            h = (h @ w + row).tanh()
            ys.append(h * 2)
        return h, torch.stack(ys)

    def ours(x, w, h):
        def step(h, row):
            h = (h @ w + row).tanh()
            return h, h * 2

        return muladd.scan(step, h, x)

    a = [Tensor(v, requires_grad=True) for v in (xs, w, X)]
    b = [torch.tensor(v, requires_grad=True) for v in (xs, w, X)]
    (h, ys), (h2, ys2) = ours(*a), run(*b)
    close(h, h2)
    close(ys, ys2)
    (h.sum() + (ys * ys).sum()).backward()
    (h2.sum() + (ys2 * ys2).sum()).backward()
    for p, q in zip(a, b):
        close(p.grad, q.grad, 1e-4)
    total, none = muladd.scan(lambda c, x: (c + 1, None), Tensor(0.0), length=4)
    assert total.item() == 4 and none is None


def test_misuse_of_scan_and_vmap(device):
    with pytest.raises(ShapeError, match="length"):
        muladd.scan(lambda c, x: (c, None), Tensor(0.0))
    with pytest.raises(ShapeError, match="carry, y"):
        muladd.scan(lambda c, x: c, Tensor(0.0), length=2)
    with pytest.raises(ShapeError, match="in_axes"):
        muladd.vmap(lambda a: a, in_axes=(0, 1))(Tensor(X))


def test_grad_of_a_vector_is_refused(device):
    with pytest.raises(GradientError, match="one element"):
        muladd.grad(lambda x: x)(Tensor(X))


def test_a_python_float_is_a_tensor(device):
    cube = lambda x: x * x * x  # noqa: E731
    assert muladd.grad(cube)(2.0).item() == 12
    assert muladd.grad(muladd.grad(cube))(np.float32(2)).item() == 12
    assert [x.item() for x in muladd.grad(lambda a, b: a * b, argnums=(0, 1))(2.0, 3.0)] == [3, 2]
    assert muladd.jacobian(cube)(2.0).item() == muladd.hessian(cube)(2.0).item() == 12
    assert [x.item() for x in muladd.jvp(cube, (2.0,), (0.5,))] == [8, 6]
    assert muladd.vjp(cube, 2.0)[1](0.5)[0].item() == 6


MISUSE = [
    (lambda: muladd.grad(3), "grad: expected a function, got int 3"),
    (lambda: muladd.hessian(None), "expected a function"),
    (lambda: muladd.vmap(3), "vmap: expected a function"),
    (lambda: muladd.scan(3, 0.0, length=1), "scan: expected a function"),
    (lambda: muladd.jit(3), "jit: expected a function"),
    (lambda: muladd.grad(f)(2), "grad: argument 0 is int"),
    (lambda: muladd.grad(f)(Tensor([1, 2])), r"grad: argument 0 is int64\[2\]"),
    (lambda: muladd.grad(f)(x=2.0), "argnums names argument 0, but 0 came by position"),
    (lambda: muladd.grad(f, has_aux=True)(2.0), r"must return \(loss, aux\)"),
    (lambda: muladd.jvp(f, (Tensor(X),), (Tensor(X[:2]),)),
     r"jvp: tangent 0 is float32\[2\], expected float32\[3\]"),
    (lambda: muladd.vjp(lambda x: x * 1, Tensor(X))[1](Tensor(X[:2])),
     r"vjp: cotangent 0 is float32\[2\], expected float32\[3\]"),
    (lambda: muladd.custom_gradient(lambda x: x)(Tensor(X)), r"must return \(result, backward\)"),
    (lambda: muladd.scan(lambda h, x: (h, None), 0.0, length=-1), "scan: length: a size"),
    (lambda: muladd.scan(lambda h, x: (h, None), 0.0, length=2.5), "scan: length: a size"),
]  # fmt: skip


@pytest.mark.parametrize("call, words", MISUSE)
def test_misuse_is_told_by_the_public_name(call, words, device):
    with pytest.raises(MuladdError, match=words):
        call()


def test_trees_of_dataclasses_and_modules(device):
    from muladd.tensor import tree

    @dataclass
    class Pair:
        a: Tensor
        b: int

    class Layer:
        def __init__(self):
            self.w, self.name = Tensor(X), "layer"

        def parameters(self):
            return [self.w]

    g = muladd.grad(lambda p: (p.a * p.b).sum())(Pair(Tensor(X), 3))
    close(g.a, np.full(3, 3.0))
    layer = Layer()
    g = muladd.grad(lambda m: (m.w * m.w).sum())(layer)
    close(g.w, 2 * X)
    close(layer.w, X)
    assert tree.tree_map(lambda t: t + 1, {"a": (Tensor(1),)})["a"][0].item() == 2
    t = Tensor(1.0)
    assert len(tree.tree_leaves([t, t, {"x": t}])) == 1
