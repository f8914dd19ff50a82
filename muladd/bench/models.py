"""Benchmarks of whole programs: training steps, small calls, the exact profile, graphs."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from muladd import Tensor, config, nn
from muladd.bench import jax_networks, networks
from muladd.bench.case import US, BenchmarkError, Case, Contest, Target, compare
from muladd.bench.peers import Peers

_GPT_FLOPS = 140e9  # of a training step: 6 a parameter and token, and attention
_CNN_FLOPS = 40e9
_PATIENCE = 20  # a peer whose bfloat16 takes so many times its float32 is not waited for


def cases() -> Iterator[Case]:
    yield Case("gpt 6x384 training step", "models", gpt, quick=False, beside={
        "torch": Target(1.2), "torch.compile": Target(1.1), "jax": Target(2.2)})  # fmt: skip
    yield Case("gpt 6x384 training step, bfloat16", "models", mixed_gpt, quick=False,
               beside={"torch": Target(1.7), "torch autocast": Target(1.1)})  # fmt: skip
    yield Case("cnn training step, 512 images", "models", cnn, Target(1.3), quick=False)
    yield Case("graph of 10 operations again, no jit", "foundation", again, Target(seconds=300e-6))


# --- training steps ------------------------------------------------------------------------------


def gpt(
    peers: Peers, layers: int = 6, width: int = 384, heads: int = 6, length: int = 256
) -> Contest:
    text = networks.text_batch(time=length)
    model, step = networks.gpt_step(layers, width, heads)
    ours = Tensor(text).realize()
    entrants = {}
    torch, compiled, jax = peers.torch, peers.torch_compile, peers.jax
    if torch is not None:
        entrants["torch"] = networks.torch_gpt_step(torch, model, text)
    if compiled is not None:
        entrants["torch.compile"] = networks.torch_gpt_step(compiled, model, text, compiled=True)
    if jax is not None:
        entrants["jax"] = jax_networks.gpt_step(jax, model, text)
    return _training(lambda: step(ours).item(), entrants, _GPT_FLOPS)


def mixed_gpt(
    peers: Peers, layers: int = 6, width: int = 384, heads: int = 6, length: int = 256
) -> Contest:
    """Products in bfloat16, beside PyTorch's step in float32 and that of its autocast."""
    text = networks.text_batch(time=length)
    model, step = networks.gpt_step(layers, width, heads, networks.mixed_gpt_loss)
    ours = Tensor(text).realize()
    entrants, absent = {}, {}
    torch = peers.torch
    if torch is not None:
        entrants["torch"] = networks.torch_gpt_step(torch, model, text)
        slower = _bfloat16_beside_float32(torch)
        if slower < _PATIENCE:
            entrants["torch autocast"] = networks.torch_gpt_step(torch, model, text, mixed=True)
        else:
            absent["torch autocast"] = f"its products take {slower:.0f} times those in float32"
    contest = _training(lambda: step(ours).item(), entrants, _GPT_FLOPS)
    contest.absent |= absent
    return contest


def _bfloat16_beside_float32(torch: Any) -> float:
    """How many times longer PyTorch's products take in bfloat16: hundreds, on processors without
    instructions for it."""
    taken = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones((512, 512), dtype=dtype)
        for _ in range(2):
            start = time.perf_counter()
            a @ a
            seconds = time.perf_counter() - start
        taken.append(seconds)
    return taken[1] / taken[0]


def cnn(peers: Peers, batch: int = 512) -> Contest:
    images, labels = networks.image_batch(batch)
    model = networks.cnn()
    optimizer = nn.optim.Adam(model.parameters(), lr=1e-3)
    step = networks.training_step(model, optimizer, networks.class_loss)
    x, y = Tensor(images).realize(), Tensor(labels).realize()
    entrants = {}
    torch = peers.torch
    if torch is not None:
        twin = networks.torch_cnn(torch)
        networks.copy_weights(torch, model, twin)
        adam = torch.optim.Adam(twin.parameters(), lr=1e-3)
        entropy = torch.nn.functional.cross_entropy
        run = networks.torch_step(torch, adam, lambda i, t: entropy(twin(i), t))
        tx, ty = torch.from_numpy(images), torch.from_numpy(labels)
        entrants["torch"] = lambda: run(tx, ty)
    return _training(lambda: step(x, y).item(), entrants, _CNN_FLOPS * batch / 512)


def _training(
    ours: Callable[[], float], entrants: dict[str, Callable[[], float]], flops: float
) -> Contest:
    """Our step and those of the peers, after three steps whose losses were compared."""
    first = [ours() for _ in range(3)]

    def check(call: Callable[[], float]) -> float:
        found = [call() for _ in range(3)]
        worst = max(abs(a - b) / max(abs(b), 1e-6) for a, b in zip(first, found))
        if not worst < 1e-2:
            raise BenchmarkError(f"bench: losses {first} here, {found} at the peer")
        return worst

    contest = Contest({US: ours}, flops=flops)
    for name, call in entrants.items():
        contest.enter(name, call, check)
    return contest


# --- small calls ---------------------------------------------------------------------------------


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
