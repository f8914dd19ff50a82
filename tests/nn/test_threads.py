"""Threads of one process that each train something of their own."""
from __future__ import annotations

import threading
from collections.abc import Callable

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
