"""Threads of one process that each train something of their own."""
from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import muladd
from muladd import Tensor, nn
from muladd.nn import optim
from muladd.tensor import backend

THREADS, STEPS = 4, 25


def train(seed: int, how: str) -> list[float]:
    rng = np.random.default_rng(seed)
    x, y = (rng.normal(size=(16, n)).astype("f") for n in (8, 3))
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))
    for p in model.parameters():
        p.assign(Tensor(rng.normal(size=p.shape).astype("f")))
    o = optim.Adam(model.parameters(), lr=0.01)

    def step() -> Tensor:
        o.zero_grad()
        loss = (model(Tensor(x)) - Tensor(y)).square().mean()
        loss.backward()
        o.step()
        return loss.detach()

    run = muladd.jit(step) if how == "jit" else step
    return [run().item() for _ in range(STEPS)]


@pytest.mark.parametrize("how", ["plain", "jit"])
def test_each_thread_trains_as_if_it_were_alone(how):
    alone = [train(seed, how) for seed in range(THREADS)]
    beside: dict[int, list[float]] = {}
    threads = [threading.Thread(target=lambda s=seed: beside.update({s: train(s, how)}))
               for seed in range(THREADS)]  # fmt: skip
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for seed in range(THREADS):
        np.testing.assert_allclose(beside.get(seed, []), alone[seed], rtol=1e-5)


def test_a_thread_computes_nothing_of_what_another_has_written():
    mine = nn.Parameter(Tensor.zeros(4))

    def write() -> None:
        with muladd.no_grad():
            mine.assign(mine + 1)

    def elsewhere(function: Callable[[], object]) -> None:
        other = threading.Thread(target=function)
        other.start()
        other.join()

    write()
    elsewhere((Tensor.ones(3) * 2).numpy)
    assert backend.is_deferred(mine._raw)  # it stays a part of this thread's next graph
    seen: list[np.ndarray] = []
    elsewhere(lambda: seen.append(mine.numpy()))  # but whoever asks is told
    np.testing.assert_array_equal(seen[0], np.ones(4))
    write()
    np.testing.assert_array_equal(mine.numpy(), np.full(4, 2))


def run_all(*functions: Callable[[], object], seconds: float = 60) -> None:
    """Run functions in threads of their own; fails where one has not ended by then."""
    threads = [threading.Thread(target=f, daemon=True) for f in functions]
    for t in threads:
        t.start()
    for t in threads:
        t.join(seconds)
    assert not any(t.is_alive() for t in threads), "a thread waits for another"


def test_programs_that_need_state_of_another_do_not_wait_for_each_other():
    w, q, a, x = (Tensor(np.ones((64, 64), "f")).realize() for _ in range(4))
    f = muladd.jit(lambda x: w @ x)
    for _ in range(3):
        f(x).numpy()

    def captured() -> None:
        with muladd.no_grad():
            for _ in range(50):
                w.assign(w * 0.5)
                f(x)

    def same_graph() -> None:
        with muladd.no_grad():
            for _ in range(50):
                q.assign(a @ x)
                q.numpy()

    run_all(captured, same_graph)


def test_an_argument_may_be_the_result_of_the_same_program():
    g, y = muladd.jit(lambda x: x * 2), Tensor(np.ones((8, 8), "f")).realize()
    w, u = (Tensor(np.ones((8, 8), "f")).realize() for _ in range(2))
    f = muladd.jit(lambda x: w + x)
    for _ in range(3):
        g(y).numpy(), f(y).numpy()
    seen: list[np.ndarray] = []

    def lazy_argument() -> None:
        seen.append(g(y * 2).numpy())
        with muladd.no_grad():
            w.assign(w + u)
        seen.append(f(y).numpy())

    run_all(lazy_argument)
    np.testing.assert_array_equal(seen[0], np.full((8, 8), 4))
    np.testing.assert_array_equal(seen[1], np.full((8, 8), 3))


def test_what_another_thread_computed_is_written_no_longer():
    p = nn.Parameter(Tensor.zeros(4))
    with muladd.no_grad():
        p.assign(p + 1)
    run_all(p.numpy)
    assert not backend.waiting_beside([])


@pytest.mark.parametrize("fresh", [False, True])
def test_graphs_of_state_that_threads_write_in_turns_do_not_grow(fresh):
    w = nn.Parameter(Tensor.ones(4))
    mean = Tensor.zeros(4).realize()
    o = optim.SGD([w], lr=0.1)

    def job() -> None:
        o.zero_grad()
        (w * w).sum().backward()
        o.step()
        with muladd.no_grad():
            mean.assign(mean * 0.9 + w.detach() * 0.1)

    if fresh:
        for _ in range(20):
            run_all(job)
    else:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
            for i in range(20):
                (one if i % 2 else other).submit(job).result()
    size = len(muladd.ir.toposort(backend.expand([mean._raw], "CPU", reuse=False)[0]))
    assert size < 60
    wanted, value = 0.0, 1.0
    for _ in range(20):
        value -= 0.1 * 2 * value
        wanted = wanted * 0.9 + value * 0.1
    np.testing.assert_allclose(mean.numpy(), np.full(4, wanted), rtol=1e-5)


def test_a_thread_does_not_wait_until_another_has_compiled():
    big, small = (Tensor(np.ones(4, "f")).realize() for _ in range(2))
    compiling, go_on = threading.Event(), threading.Event()
    run, here = backend._run, threading.current_thread()

    def slow(*given: object) -> object:
        if threading.current_thread() is not here:
            compiling.set()
            go_on.wait(60)
        return run(*given)

    def other() -> None:
        with muladd.no_grad():
            big.assign(big * 3)
        big.numpy()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backend, "_run", slow)
        t = threading.Thread(target=other, daemon=True)
        t.start()
        compiling.wait(60)
        with muladd.no_grad():
            small.assign(small + 1)
        np.testing.assert_array_equal(small.numpy(), np.full(4, 2))  # while the other waits
        go_on.set()
        t.join(60)
    np.testing.assert_array_equal(big.numpy(), np.full(4, 3))
