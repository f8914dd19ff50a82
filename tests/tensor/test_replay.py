"""The shortest way to call a compiled function gives what the function gives, whatever changes."""
from __future__ import annotations

import threading

import numpy as np
import pytest

from muladd import Tensor, config, jit, nn, no_grad
from muladd.tensor.jit import Jitted


@pytest.fixture(autouse=True)
def quick():
    """Programs whose results are not looked at: only those are replayed so."""
    with config.context(CHECK=0, DEVICE="CPU"):
        yield


def numbers(*shape: int, start: float = -1.0) -> Tensor:
    count = int(np.prod(shape))
    return Tensor(np.linspace(start, 1, count, dtype=np.float32).reshape(shape)).realize()


def network() -> tuple[nn.Sequential, Jitted]:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    @jit
    def forward(x):
        with no_grad():
            return model(x)

    for _ in range(3):
        forward(numbers(1, 8))
    assert forward._replay is not None and forward._replay(numbers(1, 8)) is not None
    return model, forward


def plain(model: nn.Sequential, x: Tensor) -> np.ndarray:
    with no_grad():
        return model(x).numpy()


def test_results_are_those_of_the_function_and_stay():
    model, forward = network()
    inputs = [numbers(1, 8, start=-i) for i in range(12)]
    results = [forward(x) for x in inputs]
    for x, y in zip(inputs, results, strict=True):
        np.testing.assert_allclose(y.numpy(), plain(model, x), rtol=1e-5, atol=1e-6)
    assert forward.traces == 1


def test_a_result_may_be_the_next_argument():
    @jit
    def f(x):
        return x * 2 + 1

    x, expected = numbers(5), numbers(5).numpy()
    for _ in range(20):
        x, expected = f(x), expected * 2 + 1
    assert f._replay is not None
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-6)


def test_what_was_assigned_since_counts():
    model, forward = network()
    x = numbers(1, 8)
    for i in range(4):
        model[2].bias.assign(model[2].bias + i)
        np.testing.assert_allclose(forward(x).numpy(), plain(model, x), rtol=1e-5)
    model[0] = nn.Linear(8, 8)
    for _ in range(3):
        np.testing.assert_allclose(forward(x).numpy(), plain(model, x), rtol=1e-5)
    assert forward._replay(x) is not None


@pytest.mark.parametrize("x", [
    numbers(2, 8), numbers(1, 8).cast("float64"), Tensor(np.arange(8)).reshape(1, 8),
    numbers(2, 8)[1:], numbers(1, 8).expand(3, 8), numbers(1, 8) + 1,
    Tensor(np.ones((1, 8), np.float32), requires_grad=True),
])  # fmt: skip
def test_other_kinds_of_arguments_are_asked_in_full(x):
    model, forward = network()
    assert forward._replay(x) is None
    np.testing.assert_allclose(forward(x).numpy(), plain(model, x), rtol=1e-5)


def test_what_is_no_tensor_at_all():
    _, forward = network()
    for other in (None, 3, np.ones((1, 8), np.float32), [numbers(1, 8)]):
        assert forward._replay(other) is None


def test_settings_around_a_call_count():
    factor = 2

    @jit
    def f(x):
        return x * factor

    x = numbers(4)
    for _ in range(3):
        f(x)
    with no_grad():
        assert f._replay(x) is None
    with config.context(PROFILE="exact"):
        assert f._replay(x) is None
    with config.context(CHECK=0, DEVICE="CPU"):
        assert f._replay(x) is not None
    factor = 3
    assert f._replay(x) is None
    np.testing.assert_array_equal(f(x).numpy(), x.numpy() * 3)


def test_arguments_that_a_function_does_not_read():
    y = numbers(3)

    @jit
    def f(x):
        return y + 1

    for _ in range(4):
        np.testing.assert_array_equal(f(numbers(2)).numpy(), y.numpy() + 1)
    assert f._replay is None


def test_inside_of_another_function_it_is_a_part():
    _, forward = network()

    @jit
    def twice(x):
        return forward(x) + forward(x)

    x = numbers(1, 8)
    for _ in range(4):
        np.testing.assert_allclose(twice(x).numpy(), 2 * forward(x).numpy(), rtol=1e-6)


def test_threads_get_results_of_their_own():
    model, forward = network()
    wrong = []

    def work(i):
        x = numbers(1, 8, start=-i - 1.0)
        expected = forward(x).numpy()
        for _ in range(300):
            if not (forward(x).numpy() == expected).all():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
