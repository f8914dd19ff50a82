"""jit gives what the plain function gives, in each known trap of designs that trace and replay."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor, jit, nn, no_grad
from muladd.errors import TraceError


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return Tensor(np.random.default_rng(seed).standard_normal(shape).astype("float32"))


def test_traced_once_per_signature() -> None:
    f = jit(lambda x: (x * 2.0).sum(-1))
    for shape in [(3, 4), (3, 4), (3, 4), (5, 2), (5, 2), (3, 4)]:
        x = numbers(*shape)
        np.testing.assert_allclose(f(x).numpy(), x.numpy().sum(-1) * 2, rtol=1e-5)
    assert f.traces == 2


def test_results_are_never_overwritten() -> None:
    f = jit(lambda x: x + 1.0)
    kept = [f(Tensor([float(i)])) for i in range(6)]
    assert [k.item() for k in kept] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_a_changed_python_value_is_seen() -> None:
    scale = 2.0

    def f(x: Tensor) -> Tensor:
        return x * scale

    g = jit(f)
    x = Tensor([1.0])
    assert [g(x).item() for _ in range(3)] == [2.0, 2.0, 2.0]
    scale = 3.0
    assert [g(x).item() for _ in range(3)] == [3.0, 3.0, 3.0]


def test_a_changed_branch_is_seen() -> None:
    class Switch(nn.Module):
        def __init__(self) -> None:
            self.on = True

        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if self.on else x - 1

    module = Switch()
    f = jit(lambda x: module(x))
    assert [f(Tensor([1.0])).item() for _ in range(3)] == [2.0] * 3
    module.on = False
    assert [f(Tensor([1.0])).item() for _ in range(3)] == [0.0] * 3


def test_a_python_argument_is_part_of_the_signature() -> None:
    f = jit(lambda x, k, flag=True: x * k if flag else x)
    for _ in range(3):
        assert f(Tensor([2.0]), 3).item() == 6.0
        assert f(Tensor([2.0]), 4).item() == 8.0
        assert f(Tensor([2.0]), 4, flag=False).item() == 2.0


def test_a_captured_tensor_that_is_assigned_is_seen() -> None:
    w = Tensor([1.0])
    f = jit(lambda x: x * w)
    assert [f(Tensor([5.0])).item() for _ in range(3)] == [5.0] * 3
    w.assign(Tensor([3.0]))
    assert f(Tensor([5.0])).item() == 15.0


def test_a_name_bound_to_another_tensor_is_seen() -> None:
    w = Tensor([1.0])

    def f(x: Tensor) -> Tensor:
        return x * w

    g = jit(f)
    assert [g(Tensor([5.0])).item() for _ in range(3)] == [5.0] * 3
    w = Tensor([4.0])
    assert [g(Tensor([5.0])).item() for _ in range(3)] == [20.0] * 3


def test_state_is_carried_from_call_to_call() -> None:
    count = Tensor([0.0])

    @jit
    def f(x: Tensor) -> Tensor:
        count.assign((count + x).detach())
        return count * 1.0

    assert [f(Tensor([2.0])).item() for _ in range(5)] == [2.0, 4.0, 6.0, 8.0, 10.0]
    assert count.item() == 10.0


def test_asking_for_a_value_says_what_to_do() -> None:
    f = jit(lambda x: x * x.sum().item())
    f(Tensor([1.0]))
    with pytest.raises(TraceError, match="item"):
        f(Tensor([1.0]))


def test_an_exception_leaves_state_as_it_was() -> None:
    state = Tensor([1.0])
    fail = [False, False, True]

    @jit
    def f(x: Tensor) -> Tensor:
        state.assign((state + x).detach())
        if fail[0]:
            raise ValueError("no")
        return state + 0.0

    f(Tensor([1.0]))
    fail[0] = True
    with pytest.raises(ValueError, match="no"):
        f(Tensor([1.0]))
    assert state.item() in (2.0, 3.0)  # eager calls run what stands before the error
    before = state.item()
    fail[0] = False
    assert f(Tensor([1.0])).item() == before + 1.0


def test_two_instances_do_not_share_a_trace() -> None:
    class Scale:
        def __init__(self, by: float) -> None:
            self.by = by

        @jit
        def __call__(self, x: Tensor) -> Tensor:
            return x * self.by

    a, b = Scale(2.0), Scale(5.0)
    for _ in range(3):
        assert a(Tensor([1.0])).item() == 2.0
        assert b(Tensor([1.0])).item() == 5.0
    a.by = 7.0
    assert [a(Tensor([1.0])).item() for _ in range(2)] == [7.0, 7.0]


def test_nested_containers_in_and_out() -> None:
    @jit
    def f(batch: dict) -> dict:
        x, (y, k) = batch["x"], batch["pair"]
        return {"sum": x + y, "list": [x * k, y]}

    for i in range(4):
        x, y = numbers(3, seed=i), numbers(3, seed=i + 10)
        out = f({"x": x, "pair": (y, 3)})
        np.testing.assert_allclose(out["sum"].numpy(), x.numpy() + y.numpy())
        np.testing.assert_allclose(out["list"][0].numpy(), x.numpy() * 3)
        np.testing.assert_allclose(out["list"][1].numpy(), y.numpy())


def test_the_same_tensor_twice() -> None:
    f = jit(lambda a, b: a * 2 + b)
    x, y = Tensor([1.0]), Tensor([10.0])
    for _ in range(3):
        assert f(x, x).item() == 3.0
        assert f(x, y).item() == 12.0


def test_nested_jit_and_gradients_inside() -> None:
    inner = jit(lambda x: x * x)
    w = Tensor([3.0], requires_grad=True)

    @jit
    def f(x: Tensor) -> Tensor:
        loss = (inner(w) * x).sum()
        w.grad = None
        loss.backward()
        return w.grad + 0.0

    assert [f(Tensor([2.0])).item() for _ in range(3)] == [12.0] * 3


def test_random_numbers_differ_from_call_to_call() -> None:
    f = jit(lambda x: x + Tensor.rand(4))
    Tensor.manual_seed(3)
    drawn = [tuple(f(Tensor.zeros(4)).tolist()) for _ in range(6)]
    assert len(set(drawn)) == 6


def test_a_symbolic_size_binds_at_the_call() -> None:
    w = numbers(4, 3)
    f = jit(lambda x: (x @ w).softmax(-1), symbolic={"x": {0: ("n", 1, 64)}})
    for n in (5, 7, 1, 64, 33, 5):
        x = numbers(n, 4, seed=n)
        np.testing.assert_allclose(f(x).numpy(), (x @ w).softmax(-1).numpy(), rtol=1e-5)
    assert f.traces == 1
    with pytest.raises(TraceError, match="declared 1 to 64"):
        f(numbers(65, 4))


def test_training_equals_the_plain_loop() -> None:
    def run(compiled: bool) -> np.ndarray:
        Tensor.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        optimizer = nn.optim.AdamW(model.parameters(), lr=0.01)

        def step(x: Tensor, y: Tensor) -> Tensor:
            loss = ((model(x) - y) ** 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        f = jit(step) if compiled else step
        return np.array([f(numbers(16, 4, seed=i), numbers(16, 1, seed=i)).item()
                         for i in range(20)])  # fmt: skip

    np.testing.assert_allclose(run(True), run(False), rtol=1e-4)


def test_at_once_the_first_call_is_compiled_too():
    w = Tensor(np.ones(3, np.float32), requires_grad=True)

    @jit(at_once=True)
    def step(x):
        loss = (w * x).exp().sum()
        loss.backward()
        with no_grad():
            w.assign(w - 0.1 * w.grad)
        w.grad = None
        return loss.detach()

    x = Tensor(np.arange(3, dtype=np.float32))
    first = step(x)
    assert step.traces == 1
    np.testing.assert_allclose(first.item(), np.exp(np.arange(3)).sum(), rtol=1e-6)
    assert step(x).item() < first.item() and step.traces == 1
