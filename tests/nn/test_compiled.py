"""Training steps under jit do what they do without: state, statistics, rates, scaling."""

from __future__ import annotations

import numpy as np
import pytest

from muladd import jit, nn
from muladd.nn import amp, optim, schedule
from muladd.tensor import Tensor


def batch(step):
    random = np.random.default_rng(step)
    x = random.standard_normal((8, 3)).astype(np.float32)
    return Tensor(x), Tensor(x.sum(1, keepdims=True) > 0).cast("float32")


def trained(compiled, make, steps=6, around=None):
    """(losses, all tensors) after some steps."""
    Tensor.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 5, bias=False), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 1)
    )
    optimizer = make(model)

    def step(x, y):
        loss = model(x).binary_cross_entropy_with_logits(y)
        optimizer.zero_grad()
        loss.backward()
        nn.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.detach()

    run = jit(step) if compiled else step
    losses = []
    for number in range(steps):
        losses.append(run(*batch(number)).item())
        if around:
            around(number, optimizer)
    state = {**model.state_dict(), **{f"opt.{k}": v for k, v in optimizer.state_dict().items()}}
    return losses, {name: tensor.numpy() for name, tensor in state.items()}


OPTIMISERS = {
    "sgd": lambda m: optim.SGD(m.parameters(), lr=0.1, momentum=0.9),
    "adamw": lambda m: optim.AdamW(m.parameters(), lr=0.05),
    "scheduled": lambda m: optim.AdamW(
        m.parameters(), lr=schedule.cosine(0.05, steps=6, warmup=2)
    ),
    "lion": lambda m: optim.Lion(m.parameters(), lr=0.01),
    "lamb": lambda m: optim.LAMB(m.parameters(), lr=0.01),
    "rmsprop": lambda m: optim.RMSprop(m.parameters(), lr=0.01, centered=True),
    "groups": lambda m: optim.Adam([
        {"params": [p for p in m.parameters() if p.ndim == 2], "lr": 0.01},
        {"params": [p for p in m.parameters() if p.ndim < 2], "lr": 0.1},
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIMISERS)
def test_compiled_steps_are_the_same_steps(name):
    losses, state = trained(True, OPTIMISERS[name])
    wanted_losses, wanted = trained(False, OPTIMISERS[name])
    np.testing.assert_allclose(losses, wanted_losses, rtol=1e-4)
    assert state.keys() == wanted.keys()
    for key in wanted:
        np.testing.assert_allclose(state[key], wanted[key], rtol=1e-3, atol=1e-5, err_msg=key)
    assert state["opt.step"] == 6 and state["1.num_batches_tracked"] == 6


def test_a_rate_set_from_outside_reaches_the_compiled_step():
    def around(number, optimizer):
        optimizer.lr = 0.1 / (number + 2)

    def make(model):
        return optim.SGD(model.parameters(), lr=0.1)

    compiled, plain = (trained(c, make, around=around)[1] for c in (True, False))
    for key in plain:
        np.testing.assert_allclose(compiled[key], plain[key], rtol=1e-3, atol=1e-5, err_msg=key)


def test_train_and_eval_are_different_programs():
    layer = nn.BatchNorm1d(3)
    run = jit(lambda x: layer(x))
    x = batch(0)[0]
    in_training = run(x).numpy()
    layer.eval()
    in_evaluation = run(x).numpy()
    assert abs(in_training - in_evaluation).max() > 0.01
    np.testing.assert_allclose(in_evaluation, layer(x).numpy(), rtol=1e-5, atol=1e-6)
    assert layer.num_batches_tracked.item() == 1


def test_dropout_differs_from_call_to_call():
    layer = nn.Dropout(0.5)
    run = jit(lambda x: layer(x))
    x = Tensor(np.ones((20, 20), np.float32))
    assert (run(x).numpy() != run(x).numpy()).any()


def test_loss_scaling_in_a_compiled_step():
    model = nn.Linear(2, 1)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = amp.GradScaler(init_scale=4.0, growth_interval=2)

    @jit
    def step(x):
        with amp.autocast("float16"):
            loss = model(x).cast("float32").square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    good, bad = Tensor([[1.0, 2.0]]), Tensor([[float("inf"), 1.0]])
    step(good).realize()
    before = model.weight.numpy()
    step(bad).realize()
    assert np.array_equal(model.weight.numpy(), before)
    assert scaler.get_scale() == 2.0
    step(good).realize()
    step(good).realize()
    assert scaler.get_scale() == 4.0
    assert optimizer.step_count.item() == 3


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_autocast_reaches_bare_products_and_keeps_losses_wide(kind):
    x, w = Tensor.randn(4, 8), Tensor.randn(8, 3, requires_grad=True)
    image, kernel = Tensor.randn(1, 2, 5, 5), Tensor.randn(3, 2, 3, 3)
    double = x.double()
    with amp.autocast(kind):
        narrow = [x @ w, x.matmul(w), Tensor.einsum("ij,jk->ik", x, w), x.linear(w.T, x[0, :3]),
                  image.conv2d(kernel), x.scaled_dot_product_attention(x, x[:, :3])]  # fmt: skip
        logits = x @ w
        wide = [logits.softmax(-1), logits.log_softmax(-1), logits.layer_norm((3,)),
                logits.mse_loss(Tensor.zeros(4, 3)), x + x, x.exp(),
                logits.cross_entropy(Tensor([0, 1, 2, 0]))]  # fmt: skip
        assert (double @ w).dtype.name == "float64"
        integers = Tensor([[1, 2]]) @ Tensor([[3], [4]])
    assert [t.dtype.name for t in narrow[:-1]] == [kind] * 5
    assert [t.dtype.name for t in wide] == ["float32"] * 7
    assert integers.dtype.name == "int64"
    np.testing.assert_allclose(narrow[0].float().numpy(), (x @ w).numpy(), rtol=3e-2, atol=5e-2)
    wide[-1].backward()
    assert w.grad.dtype.name == "float32" and np.isfinite(w.grad.numpy()).all()
    assert (x @ w).dtype.name == "float32"
