"""Benchmarks of whole programs: training steps, small calls, the exact profile, graphs."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import muladd
from muladd import Tensor, config, nn
from muladd.bench import networks
from muladd.bench.case import US, BenchmarkError, Case, Contest, Target, compare
from muladd.bench.peers import Peers

_GPT_FLOPS = 140e9  # of a training step: 6 a parameter and token, and attention
_CNN_FLOPS = 40e9


def cases() -> Iterator[Case]:
    yield Case("gpt 6x384 training step", "models", gpt, Target(1.2), quick=False)
    yield Case("cnn training step, 512 images", "models", cnn, Target(1.3), quick=False)
    yield Case("mlp 10x16 batch 1, jit", "foundation", mlp, Target(seconds=5e-6))
    yield Case("graph of 10 operations again, no jit", "foundation", again, Target(seconds=300e-6))


# --- training steps ------------------------------------------------------------------------------


def gpt(
    peers: Peers, layers: int = 6, width: int = 384, heads: int = 6, time: int = 256
) -> Contest:
    text = networks.text_batch(time=time)
    model, step = networks.gpt_step(layers, width, heads)
    ours = Tensor(text).realize()
    contest = Contest({}, flops=_GPT_FLOPS)
    torch = peers.torch
    if torch is not None:
        twin = networks.torch_gpt(torch, layers, width, heads)
        networks.copy_weights(torch, model, twin)
        optimizer = torch.optim.AdamW(twin.parameters(), lr=3e-4, weight_decay=0.01)
        whole = torch.from_numpy(text)
        inputs, targets = whole[:, :-1].contiguous(), whole[:, 1:].reshape(-1)
        run = networks.torch_step(torch, twin, optimizer, lambda m, x: m(x).flatten(0, 1))
        contest.contenders["torch"] = lambda: run(inputs, targets).item()
    return _first_losses_agree(contest, lambda: step(ours).item())


def cnn(peers: Peers, batch: int = 512) -> Contest:
    images, labels = networks.image_batch(batch)
    model = networks.cnn()
    optimizer = nn.optim.Adam(model.parameters(), lr=1e-3)
    step = networks.training_step(model, optimizer, networks.class_loss)
    x, y = Tensor(images).realize(), Tensor(labels).realize()
    contest = Contest({}, flops=_CNN_FLOPS * batch / 512)
    torch = peers.torch
    if torch is not None:
        twin = networks.torch_cnn(torch)
        networks.copy_weights(torch, model, twin)
        adam = torch.optim.Adam(twin.parameters(), lr=1e-3)
        tx, ty = torch.from_numpy(images), torch.from_numpy(labels)
        run = networks.torch_step(torch, twin, adam, lambda m, i: m(i))
        contest.contenders["torch"] = lambda: run(tx, ty).item()
    return _first_losses_agree(contest, lambda: step(x, y).item())


def _first_losses_agree(contest: Contest, ours: Callable[[], float]) -> Contest:
    """The contest with our step in it, after three steps whose losses were compared."""
    contest.contenders = {US: ours, **contest.contenders}
    losses = {name: [call() for _ in range(3)] for name, call in contest.contenders.items()}
    for name, found in losses.items():
        worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(losses[US], found))
        if not worst < 1e-2:
            raise BenchmarkError(f"bench: losses {losses[US]} here, {found} at {name}")
        if name != US:
            contest.difference = worst
    return contest


# --- small calls ---------------------------------------------------------------------------------


def mlp(peers: Peers) -> Contest:
    model = networks.mlp()
    x = np.random.default_rng(0).standard_normal((1, 16), dtype=np.float32)
    ours = Tensor(x).realize()

    @muladd.jit
    def forward(x: Tensor) -> Tensor:
        with muladd.no_grad():
            return model(x)

    contest = Contest({US: lambda: forward(ours)}, flops=2.0 * 10 * 16 * 16)
    torch = peers.torch
    if torch is not None:
        twin, tx = networks.torch_mlp(torch), torch.from_numpy(x)
        networks.copy_weights(torch, model, twin)

        def call() -> Any:
            with torch.no_grad():
                return twin(tx)

        contest.contenders["torch"] = call
        contest.difference = compare([forward(ours).numpy()], [call().numpy()], 1e-4)
    return contest


def again(peers: Peers, size: int = 64) -> Contest:
    """Ten operations written anew each time over the same tensors; the program is in the cache."""
    x = np.random.default_rng(0).standard_normal((size, size), dtype=np.float32)
    ours = Tensor(x).realize()
    contest = Contest({US: lambda: _ten(ours).realize()})
    torch = peers.torch
    if torch is not None:
        tx = torch.from_numpy(x)
        contest.contenders["torch"] = lambda: _ten(tx)
        contest.difference = compare([_ten(ours).numpy()], [_ten(tx).numpy()], 1e-4)
    return contest


def _ten(x: Any) -> Any:
    y = (x * 2 + 1).relu()
    y = (y @ x).tanh() * x
    return (y + x).sigmoid() - y


# --- exact beside fast ---------------------------------------------------------------------------


def exact_cases() -> Iterator[Case]:
    for name, prepare in (("mlp", exact_mlp), ("conv net", exact_conv),
                          ("transformer block", exact_block)):  # fmt: skip
        yield Case(f"exact: {name} training step", "exact", prepare)


def exact_mlp(peers: Peers) -> Contest:
    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        return model(x).cross_entropy(y)

    def network() -> Any:
        return nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(),
                             nn.Linear(256, 10))  # fmt: skip

    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 256), dtype=np.float32)
    return _both_profiles(network, loss, x, rng.integers(0, 10, (128,), dtype=np.int64))


def exact_conv(peers: Peers) -> Contest:
    return _both_profiles(networks.cnn, networks.class_loss, *networks.image_batch(32))


def exact_block(peers: Peers) -> Contest:
    x = np.random.default_rng(0).standard_normal((4, 64, 128), dtype=np.float32)
    return _both_profiles(lambda: nn.TransformerBlock(128, 4, causal=True),
                          lambda model, x: (model(x) * x).mean(), x)  # fmt: skip


def _both_profiles(network: Any, loss: Any, *arrays: np.ndarray) -> Contest:
    """The same Adam step in the profiles fast ('muladd') and exact."""
    contest = Contest({})
    for name, profile in ((US, "fast"), ("exact", "exact")):
        with config.context(PROFILE=profile):
            contest.contenders[name] = _step_in(profile, network, loss, arrays)
    return contest


def _step_in(profile: str, network: Any, loss: Any, arrays: Any) -> Callable[[], Any]:
    with config.context(SEED=0):
        model = network()
    step = networks.training_step(model, nn.optim.Adam(model.parameters(), lr=1e-3), loss)
    batch = [Tensor(a).realize() for a in arrays]

    def call() -> Any:
        with config.context(PROFILE=profile):
            return step(*batch).item()

    return call


# --- graphs --------------------------------------------------------------------------------------


def graph_cases() -> Iterator[Case]:
    for power in (3, 4, 5, 6):
        yield Case(f"rewrite a graph of 10^{power} nodes", "graph", _rewriting(10**power),
                   quick=power < 5)  # fmt: skip


def _rewriting(count: int) -> Callable[[Peers], Contest]:
    """Seconds to canonicalise a chain of so many nodes that was not seen before."""

    def prepare(peers: Peers) -> Contest:
        from muladd.ir import const, dtype, make, ops, param
        from muladd.rewrite.canonical import canonicalise

        x = node = param(0, (64,), dtype.float32)
        for i in range(count // 4):
            node = make(ops.ADD, (make(ops.MUL, (node, x)), const(float(i), dtype.float32, (64,))))
        start = time.perf_counter()
        canonicalise((node,), "fast")
        seconds = time.perf_counter() - start
        return Contest({}, seconds={US: seconds}, items=count, item="nodes")

    return prepare
