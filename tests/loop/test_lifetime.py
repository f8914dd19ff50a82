"""Arrays of a kernel share memory only where neither needs what the other holds."""
from __future__ import annotations

import itertools

import numpy as np
import pytest

from muladd import Tensor, config
from muladd.compile import compile_graph, parameters
from muladd.device import Machine
from muladd.loop.lifetime import lifetimes, offsets
from muladd.loop.lower import lower
from muladd.schedule import heuristic
from muladd.tensor.network import ascending


def zeros(*shape, dtype="float32"):
    return Tensor.zeros(*shape, dtype=dtype, device="NULL").realize()


def sorted_bits():
    t = zeros(64, 256, dtype="int64")
    return t._result(ascending(t.node))


GRAPHS = {
    "softmax": lambda: (zeros(64, 4096) * 2).softmax(-1),
    "softmax twice": lambda: zeros(64, 4096).softmax(-1).sin().softmax(-1),
    "attention": lambda: zeros(1, 4, 256, 64).scaled_dot_product_attention(
        zeros(1, 4, 256, 64), zeros(1, 4, 256, 64), is_causal=True
    ),
    "product": lambda: (zeros(512, 512) @ zeros(512, 512)).relu(),
    "long product": lambda: zeros(4096, 512).T @ zeros(4096, 512),
    "convolution": lambda: zeros(1, 64, 28, 28).conv2d(zeros(64, 64, 3, 3), padding=1),
    "network": sorted_bits,
    "running sum": lambda: zeros(32, 1000).cumsum(-1),
}


def lowered(name):
    with config.context(DEVICE="NULL", CHECK=0):
        graph, _ = parameters((GRAPHS[name]().node,))
        kernels = [k.kernel for k in compile_graph(graph, "NULL").kernels()]
    return [lower(heuristic.schedule(k, Machine.named("avx2"))) for k in kernels]


@pytest.mark.parametrize("name", GRAPHS)
def test_what_is_needed_at_once_lies_apart(name):
    for kernel in lowered(name):
        arrays = {n: a for n, a in kernel.arrays.items() if not a.lanes}
        spans = lifetimes(kernel)
        places, total = offsets(kernel, arrays)
        assert set(places) == set(arrays)
        ends = {n: places[n] + a.count * a.dtype.itemsize for n, a in arrays.items()}
        assert all(p % 64 == 0 for p in places.values())
        assert max(ends.values(), default=0) <= total
        for a, b in itertools.combinations(arrays, 2):
            meet = spans[a][0] <= spans[b][1] and spans[b][0] <= spans[a][1]
            assert not meet or ends[a] <= places[b] or ends[b] <= places[a], (a, b)


def test_a_chain_takes_the_memory_of_two_of_its_links():
    (kernel,) = lowered("network")
    arrays = {n: a for n, a in kernel.arrays.items() if not a.lanes}
    sizes = [a.count * a.dtype.itemsize for a in arrays.values()]
    assert len(sizes) > 8 and offsets(kernel, arrays)[1] <= 2 * (max(sizes) + 64)


def test_what_a_loop_reads_again_in_its_next_turn_is_kept():
    """Partial sums of a long product wait while blocks of both sides are copied anew."""
    kernel = next(k for k in lowered("long product") if "c0" in k.arrays and "c1" in k.arrays)
    spans = lifetimes(kernel)
    waiting = next(s.name for s in kernel.kernel.stages if s.reduced)
    for copy in ("c0", "c1"):
        assert spans[waiting][0] < spans[copy][0] and spans[copy][1] <= spans[waiting][1]


@pytest.mark.parametrize("width", [700, 1000, 5000])
def test_rows_that_share_memory_are_right(width, rng):
    x = rng.standard_normal((20, width)).astype(np.float32)
    t = Tensor(x, device="CPU")
    found = (t.softmax(-1) * t).sin().layernorm(axis=-1).softmax(-1).cumsum(-1).numpy()
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    y = np.sin(e / e.sum(-1, keepdims=True) * x)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    e = np.exp(y)
    assert np.allclose(found, (e / e.sum(-1, keepdims=True)).cumsum(-1), atol=2e-5)
