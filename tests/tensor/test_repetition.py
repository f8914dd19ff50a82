"""Loops as one SCAN: long recurrences, checkpoints in O(sqrt n) memory, accumulation, vmap, jit."""
import numpy as np
import pytest
import torch

from muladd import Tensor, grad, jit, nn, scan, vmap
from muladd.compile import compile_graph, parameters
from muladd.tensor import backend


def program(*tensors):
    roots, _ = backend.expand([t.node for t in tensors], "CPU")
    graph, _ = parameters(tuple(roots))
    return compile_graph(graph, "CPU")


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_thousand_steps_beside_torch(kind):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1000, 2, 5)).astype(np.float32)
    theirs = getattr(torch.nn, kind)(5, 6)
    ours = getattr(nn, kind)(5, 6)
    state = {name: value.detach().numpy() for name, value in theirs.named_parameters()}
    ours.load_state_dict({name: Tensor(value) for name, value in state.items()})
    mine, other = Tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    out, expected = ours(mine)[0], theirs(other)[0]
    np.testing.assert_allclose(out.numpy(), expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    (out[-1] * out[-1]).sum().backward()
    (expected[-1] * expected[-1]).sum().backward()
    np.testing.assert_allclose(mine.grad.numpy(), other.grad.numpy(), rtol=1e-3, atol=1e-5)
    for name, p in theirs.named_parameters():
        found = dict(ours.named_parameters())[name].grad.numpy()
        np.testing.assert_allclose(found, p.grad.numpy(), rtol=1e-3, atol=1e-4, err_msg=name)


def chain(length, checkpoint):
    """The gradient of a loss after `length` steps of a layer of 64 x 64."""
    w = Tensor(np.eye(64, dtype=np.float32) * 0.9, requires_grad=True)
    x = Tensor(np.ones((16, 64), np.float32))
    h, _ = scan(lambda h, _: ((h @ w).tanh() + x, None), x, length=length, checkpoint=checkpoint)
    (h * h).sum().backward()
    return w.grad


def test_a_checkpointed_gradient_takes_the_root_of_the_memory():
    step = 16 * 64 * 4
    peaks = {n: program(chain(n, True)).peak_bytes() for n in (64, 1024)}
    plain = program(chain(1024, False)).peak_bytes()
    assert plain > 1024 * step
    assert peaks[1024] < 0.2 * plain
    assert peaks[1024] < 5 * peaks[64]  # 16 times the steps
    np.testing.assert_allclose(chain(100, True).numpy(), chain(100, False).numpy(), rtol=1e-4)
    np.testing.assert_allclose(chain(100, 7).numpy(), chain(100, False).numpy(), rtol=1e-4)


def test_the_kernels_do_not_depend_on_the_count():
    kernels = [{k.kernel.key() for k in program(chain(n, False)).kernels()} for n in (16, 4096)]
    assert len(kernels[0]) == len(kernels[1])


def test_gradients_accumulate_inside_one_graph():
    rng = np.random.default_rng(1)
    x, y = (Tensor(rng.standard_normal((8, 4, 3)).astype(np.float32)) for _ in range(2))
    w = Tensor(rng.standard_normal((3, 3)).astype(np.float32))

    def loss(w, x, y):
        return ((x @ w - y) ** 2).mean()

    @jit
    def accumulated(w, x, y):
        def part(total, batch):
            return total + grad(loss)(w, *batch), None

        return scan(part, w.zeros_like(), (x, y))[0] / 8

    whole = grad(loss)(w, x.reshape(32, 3), y.reshape(32, 3))
    for _ in range(3):
        np.testing.assert_allclose(accumulated(w, x, y).numpy(), whole.numpy(), rtol=1e-5)


def test_a_scan_under_vmap_under_jit():
    def total(start, xs):
        return scan(lambda h, x: (h * 0.5 + x, h), start, xs)

    start, xs = np.array([1.0, 2.0], np.float32), np.arange(6, dtype=np.float32).reshape(2, 3)
    mapped = jit(vmap(total))
    for _ in range(3):
        last, seen = mapped(Tensor(start), Tensor(xs))
    for i in range(2):
        h = start[i]
        for j in range(3):
            assert seen.numpy()[i, j] == pytest.approx(h)
            h = h * 0.5 + xs[i, j]
        assert last.numpy()[i] == pytest.approx(h)
    slope = vmap(grad(lambda s, xs: total(s, xs)[0]))(Tensor(start), Tensor(xs))
    np.testing.assert_allclose(slope.numpy(), [0.125, 0.125])
