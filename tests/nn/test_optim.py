"""Every optimiser for ten steps beside torch's, or beside its formula in NumPy."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import nn
from muladd.errors import ArgumentError
from muladd.nn import amp, optim, schedule
from muladd.tensor import Tensor, no_grad

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

STEPS = 10
SHAPES = [(4, 3), (3,), (2, 3, 2)]


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gradient(i, step):
    return numbers(*SHAPES[i], seed=100 + 10 * step + i)


def run(optimizer, parameters, make, steps=STEPS, after=None):
    for step in range(steps):
        for i, p in enumerate(parameters):
            p.grad = make(gradient(i, step))
        optimizer.step()
        if after:
            after()


def values(parameters):
    return [p.numpy() if isinstance(p, Tensor) else p.detach().numpy() for p in parameters]


def ours():
    return [Tensor(numbers(*s, seed=i), requires_grad=True) for i, s in enumerate(SHAPES)]


def theirs():
    return [torch.tensor(numbers(*s, seed=i), requires_grad=True) for i, s in enumerate(SHAPES)]


CASES = {
    "sgd": ("SGD", dict(lr=0.1)),
    "sgd decay": ("SGD", dict(lr=0.1, weight_decay=0.1)),
    "sgd momentum": ("SGD", dict(lr=0.1, momentum=0.9)),
    "sgd dampening": ("SGD", dict(lr=0.1, momentum=0.9, dampening=0.5, weight_decay=0.01)),
    "sgd nesterov": ("SGD", dict(lr=0.1, momentum=0.9, nesterov=True)),
    "adam": ("Adam", dict(lr=0.01)),
    "adam decay": ("Adam", dict(lr=0.01, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-4)),
    "adam amsgrad": ("Adam", dict(lr=0.01, amsgrad=True)),
    "adamw": ("AdamW", dict(lr=0.01)),
    "adamw amsgrad": ("AdamW", dict(lr=0.01, amsgrad=True, weight_decay=0.3)),
    "rmsprop": ("RMSprop", dict(lr=0.01)),
    "rmsprop momentum": ("RMSprop", dict(lr=0.01, momentum=0.9, weight_decay=0.1)),
    "rmsprop centered": ("RMSprop", dict(lr=0.01, centered=True)),
    "adagrad": ("Adagrad", dict(lr=0.1)),
    "adagrad decay": (
        "Adagrad", dict(lr=0.1, lr_decay=0.1, weight_decay=0.1, initial_accumulator_value=0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_ten_steps_beside_torch(name):
    kind, options = CASES[name]
    a, b = ours(), theirs()
    run(getattr(optim, kind)(a, **options), a, Tensor)
    run(getattr(torch.optim, kind)(b, **options), b, torch.tensor)
    for x, y in zip(values(a), values(b)):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


def test_adam_in_float64_is_tight():
    def made(make):
        return [make(numbers(3, 2).astype(np.float64), requires_grad=True)]

    a, b = made(Tensor), made(torch.tensor)
    first, second = optim.AdamW(a, lr=0.01), torch.optim.AdamW(b, lr=0.01)
    for step in range(STEPS):
        g = numbers(3, 2, seed=step).astype(np.float64)
        a[0].grad, b[0].grad = Tensor(g), torch.tensor(g)
        first.step()
        second.step()
    np.testing.assert_allclose(a[0].numpy(), b[0].detach().numpy(), rtol=1e-12)


# --- without a peer: the formula in NumPy --------------------------------------------------------


def lion(p, g, state, lr=0.01, b1=0.9, b2=0.99, decay=0.1):
    m = state.setdefault("m", np.zeros_like(p))
    step = np.sign(b1 * m + (1 - b1) * g) + decay * p
    state["m"] = b2 * m + (1 - b2) * g
    return p - lr * step


def lamb(p, g, state, lr=0.01, b1=0.9, b2=0.999, eps=1e-6, decay=0.1):
    state["t"] = t = state.get("t", 0) + 1
    state["m"] = m = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = v = b2 * state.get("v", 0) + (1 - b2) * g * g
    u = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * p
    size, length = np.sqrt((p * p).sum()), np.sqrt((u * u).sum())
    return p - lr * (size / length if size > 0 and length > 0 else 1.0) * u


def muon(p, g, state, lr=0.01, momentum=0.95, decay=0.1):
    b = state["b"] = momentum * state.get("b", 0) + (1 - momentum) * g
    u = ((1 - momentum) * g + momentum * b).reshape(len(p), -1)
    tall = u.shape[0] > u.shape[1]
    x = u.T if tall else u
    x = x / max(np.sqrt((x * x).sum()), 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
    x = x.T if tall else x
    return p * (1 - lr * decay) - lr * max(1, u.shape[0] / u.shape[1]) ** 0.5 * x.reshape(p.shape)


@pytest.mark.parametrize("name, formula, options, which", [
    ("Lion", lion, dict(lr=0.01, weight_decay=0.1), [0, 1, 2]),
    ("LAMB", lamb, dict(lr=0.01, weight_decay=0.1), [0, 1, 2]),
    ("Muon", muon, dict(lr=0.01, weight_decay=0.1), [0, 2]),
])  # fmt: skip
def test_ten_steps_beside_the_formula(name, formula, options, which):
    a = [Tensor(numbers(*SHAPES[i], seed=i), requires_grad=True) for i in which]
    optimizer = getattr(optim, name)(a, **options)
    wanted = [numbers(*SHAPES[i], seed=i).astype(np.float64) for i in which]
    states = [{} for _ in which]
    for step in range(STEPS):
        for p, i in zip(a, which):
            p.grad = Tensor(gradient(i, step))
        optimizer.step()
        wanted = [formula(p, gradient(i, step).astype(np.float64), s)
                  for p, i, s in zip(wanted, which, states)]  # fmt: skip
    for x, y in zip(values(a), wanted):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


def test_muon_makes_singular_values_nearly_one():
    x = optim.descent.orthogonalise(Tensor(numbers(6, 20)), 5, 1e-7, optim.Muon.COEFFICIENTS)
    spread = np.linalg.svd(x.numpy(), compute_uv=False)
    assert 0.6 < spread.min() and spread.max() < 1.3


# --- groups, rates, state ------------------------------------------------------------------------


def test_groups_have_their_own_settings():
    a, b = ours(), theirs()
    groups = [{"params": 0, "lr": 0.1}, {"params": 1, "weight_decay": 0.5}]

    def split(p):
        return [{**g, "params": p[:1] if g["params"] == 0 else p[1:]} for g in groups]

    run(optim.AdamW(split(a), lr=0.01), a, Tensor)
    run(torch.optim.AdamW(split(b), lr=0.01), b, torch.tensor)
    for x, y in zip(values(a), values(b)):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_group_that_comes_later_has_the_optimisers_settings(name):
    settings = {"lr": 0.01, "momentum": 0.9} if name == "SGD" else {"lr": 0.01, "betas": (0.8, 0.9)}
    a, b = ours(), theirs()
    for parameters, module, tensor in ((a, optim, Tensor), (b, torch.optim, torch.tensor)):
        optimizer = getattr(module, name)(parameters[:1], **settings)
        run(optimizer, parameters, tensor)
        add = optimizer.add_group if module is optim else optimizer.add_param_group
        add({"params": parameters[1:], "lr": 0.1})
        run(optimizer, parameters, tensor)
    for x, y in zip(values(a), values(b)):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("group, told", [
    ({"lr": 0.1}, "its params are missing"),
    ([], r"got \[\]"),
    ({"params": [], "momentun": 0.9}, "got momentun"),
])  # fmt: skip
def test_a_group_that_is_none_says_what_one_is(group, told):
    optimizer = optim.SGD(ours(), lr=0.1)
    with pytest.raises(ArgumentError, match=f"any of lr, momentum.*{told}"):
        optimizer.add_group(group)


def test_the_rate_can_be_changed():
    a, b = ours(), theirs()
    first, second = optim.SGD(a, lr=0.1), torch.optim.SGD(b, lr=0.1)
    rates = iter(np.linspace(0.1, 0.01, 2 * STEPS))

    def after_ours():
        first.lr = next(rates)

    def after_theirs():
        second.param_groups[0]["lr"] = next(rates)

    run(first, a, Tensor, after=after_ours)
    rates = iter(np.linspace(0.1, 0.01, 2 * STEPS))
    run(second, b, torch.tensor, after=after_theirs)
    for x, y in zip(values(a), values(b)):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_parameters_without_gradient_stay():
    p, q = Tensor([1.0, 2.0], requires_grad=True), Tensor([3.0], requires_grad=True)
    optimizer = optim.Adam([p, q], lr=0.1)
    p.grad = Tensor([1.0, 1.0])
    optimizer.step()
    assert q.item() == 3.0 and p.numpy()[0] < 1.0
    optimizer.zero_grad()
    assert p.grad is None


def test_state_goes_round():
    a, b = ours(), ours()
    first, second = optim.AdamW(a, lr=0.01), optim.AdamW(b, lr=0.5)
    run(first, a, Tensor, steps=3)
    with no_grad():
        for x, y in zip(a, b):
            y.assign(x)
    second.load_state_dict({k: v.numpy() for k, v in first.state_dict().items()})
    assert second.step_count.item() == 3
    np.testing.assert_allclose(second.lr.item(), 0.01, rtol=1e-6)
    run(first, a, Tensor, steps=3)
    run(second, b, Tensor, steps=3)
    for x, y in zip(values(a), values(b)):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("make, message", [
    (lambda: optim.SGD([]), "no parameters"),
    (lambda: optim.SGD([Tensor([1.0])]), "requires_grad"),
    (lambda: optim.SGD([ours()[0]] * 2), "twice"),
    (lambda: optim.SGD(ours(), nesterov=True), "nesterov"),
    (lambda: optim.Adam(ours(), betas=(1.0, 0.9)), "betas"),
    (lambda: optim.Adam(ours(), eps=-1.0), "negative"),
    (lambda: optim.Muon(ours()), "matrices"),
    (lambda: optim.Adam(ours()).load_state_dict({}), "do not fit"),
])  # fmt: skip
def test_misuse_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- schedules -----------------------------------------------------------------------------------


def torch_rates(make, steps, peak=0.1):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=peak, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


S = torch.optim.lr_scheduler
SCHEDULES = {
    "constant": (schedule.constant(0.1), lambda o: S.LambdaLR(o, lambda e: 1.0)),
    "linear": (schedule.linear(0.1, 0.02, 10), lambda o: S.LinearLR(o, 1.0, 0.2, 10)),
    "step": (schedule.step(0.1, 4, 0.5), lambda o: S.StepLR(o, 4, 0.5)),
    "exponential": (schedule.exponential(0.1, 0.9), lambda o: S.ExponentialLR(o, 0.9)),
    "cosine": (schedule.cosine(0.1, 20, end=0.01), lambda o: S.CosineAnnealingLR(o, 20, 0.01)),
    "one cycle": (schedule.one_cycle(0.1, 20), lambda o: S.OneCycleLR(o, 0.1, total_steps=20)),
    "piecewise": (
        schedule.piecewise([0.1, 0.01, 0.001], [5, 12]), lambda o: S.MultiStepLR(o, [5, 12], 0.1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_beside_torch(name):
    ours, make = SCHEDULES[name]
    wanted = torch_rates(make, 19)
    given = [ours(step).item() for step in range(19)]
    np.testing.assert_allclose(given, wanted, rtol=2e-4, atol=1e-7)
    together = ours(Tensor(np.arange(19))).numpy()
    np.testing.assert_allclose(together, given, rtol=1e-6)


def test_warmup_is_a_line_and_then_the_rest():
    rate = schedule.cosine(1.0, steps=14, warmup=4)
    given = rate(Tensor(np.arange(14))).numpy()
    np.testing.assert_allclose(given[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    wanted = 0.5 * (1 + np.cos(np.pi * np.arange(10) / 10))
    np.testing.assert_allclose(given[4:], wanted, rtol=1e-5)


def test_a_schedule_drives_the_optimiser():
    p = Tensor([0.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=schedule.linear(1.0, 0.0, 4))
    for _ in range(6):
        p.grad = Tensor([1.0])
        optimizer.step()
    np.testing.assert_allclose(p.item(), -(1 + 0.75 + 0.5 + 0.25), rtol=1e-6)


# --- clipping and mixed precision ----------------------------------------------------------------


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("most", [0.5, 100.0])
def test_clip_by_norm(norm_type, most):
    a, b = ours(), theirs()
    for i, (p, q) in enumerate(zip(a, b)):
        p.grad, q.grad = Tensor(gradient(i, 0)), torch.tensor(gradient(i, 0))
    total = nn.clip_grad_norm_(a, most, norm_type)
    wanted = torch.nn.utils.clip_grad_norm_(b, most, norm_type)
    np.testing.assert_allclose(total.item(), float(wanted), rtol=1e-5)
    for p, q in zip(a, b):
        np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-5)


def test_clip_by_value():
    a = ours()
    for i, p in enumerate(a):
        p.grad = Tensor(gradient(i, 0))
    nn.clip_grad_value_(a, 0.3)
    for i, p in enumerate(a):
        np.testing.assert_array_equal(p.grad.numpy(), np.clip(gradient(i, 0), -0.3, 0.3))


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_autocast_lowers_products_and_nothing_else(kind):
    model = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 2))
    x = Tensor(numbers(4, 6))
    plain = model(x)
    with amp.autocast(kind):
        y = model(x)
        assert model[0](x).dtype.name == kind
        assert model[1](model[0](x)).dtype.name == "float32"
    assert y.dtype.name == kind and plain.dtype.name == "float32"
    np.testing.assert_allclose(y.cast("float32").numpy(), plain.numpy(), rtol=0.1, atol=0.05)
    y.cast("float32").sum().backward()
    assert all(p.grad.dtype.name == "float32" for p in model.parameters())


def test_autocast_convolution_beside_torch():
    a, b = nn.Conv2d(2, 3, 3), torch.nn.Conv2d(2, 3, 3)
    a.load_state_dict({k: v.numpy() for k, v in b.state_dict().items()})
    x = numbers(1, 2, 6, 6)
    with amp.autocast("bfloat16"), torch.autocast("cpu", torch.bfloat16):
        y, z = a(Tensor(x)), b(torch.tensor(x))
    np.testing.assert_allclose(
        y.cast("float32").numpy(), z.detach().float().numpy(), rtol=0.02, atol=0.02
    )


def test_the_scaler_skips_overflow_and_adapts():
    p = Tensor([1.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=0.5)
    scaler = amp.GradScaler(init_scale=8.0, growth_interval=2)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        return p.item(), scaler.get_scale(), optimizer.step_count.item()

    assert step(1.0) == (0.5, 8.0, 1)
    assert step(float("inf")) == (0.5, 4.0, 1)
    assert step(1.0) == (0.0, 4.0, 2)
    assert step(1.0) == (-0.5, 8.0, 3)
    assert step(float("nan")) == (-0.5, 4.0, 3)


def test_unscale_before_clipping():
    p = Tensor([3.0, 4.0], requires_grad=True)
    optimizer = optim.SGD([p], lr=1.0)
    scaler = amp.GradScaler(init_scale=1024.0)
    scaler.scale((p * p).sum() * 0.5).backward()
    scaler.unscale_(optimizer)
    assert abs(nn.clip_grad_norm_([p], 1.0).item() - 5.0) < 1e-5
    scaler.step(optimizer)
    np.testing.assert_allclose(p.numpy(), [2.4, 3.2], rtol=1e-5)
