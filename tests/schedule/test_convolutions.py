"""Recipes of convolutions and their derivatives: what they make, and that it is right."""
from __future__ import annotations

import numpy as np
import pytest
import torch

from muladd import Tensor
from muladd.compile import compile_graph, parameters
from muladd.device.machine import Machine
from muladd.errors import ScheduleError
from muladd.loop.bounds import prove
from muladd.loop.lower import lower
from muladd.schedule import analysis
from muladd.schedule.heuristic import collapse_all, schedule
from muladd.schedule.primitives import step
from muladd.schedule.recipes.depthwise import depthwise
from muladd.schedule.recipes.weights import weights

MACHINES = ["sse", "avx2", "avx512", "neon", "sve"]


def zeros(*shape: int, grad: bool = False) -> Tensor:
    return Tensor(np.zeros(shape, "float32"), requires_grad=grad, device="NULL")


def kernels_of(*tensors: Tensor) -> list:
    graph, _ = parameters(tuple(t.node for t in tensors))
    return [k.kernel for k in compile_graph(graph, "NULL").kernels()]


def for_weights(n, c, size, o, k, stride, padding, groups=1) -> list:
    """The kernels of a convolution's derivative by its weights, for what is told to all of it."""
    x, w = zeros(n, c, size, size), zeros(o, c // groups, k, k, grad=True)
    y = x.conv2d(w, stride=stride, padding=padding, groups=groups)
    (y * zeros(*y.shape)).sum().backward()
    return kernels_of(w.grad)


def differences(n, c, size, o, k, stride, padding, groups) -> list[float]:
    """Of a convolution and its two derivatives, from PyTorch's in float64."""
    rng = np.random.default_rng(size)
    x, w = (rng.normal(size=s).astype("f") for s in ((n, c, size, size), (o, c // groups, k, k)))
    a, b = (torch.tensor(t).double().requires_grad_() for t in (x, w))
    r = torch.nn.functional.conv2d(a, b, None, stride, padding, 1, groups)
    told = rng.normal(size=r.shape).astype("f")
    (r * torch.tensor(told)).sum().backward()
    A, B = Tensor(x, requires_grad=True), Tensor(w, requires_grad=True)
    y = A.conv2d(B, stride=stride, padding=padding, groups=groups)
    (y * Tensor(told)).sum().backward()
    pairs = ((y.detach(), r.detach()), (A.grad, a.grad), (B.grad, b.grad))
    return [float(np.abs(u.numpy() - v.numpy()).max() / v.abs().max()) for u, v in pairs]


@pytest.mark.parametrize("shape", [  # channels by size, results, taps, stride, padding, groups
    (3, 5, 13, 7, 3, 1, 1, 1), (16, 16, 12, 16, 3, 1, 1, 1), (2, 3, 20, 33, 5, 2, 2, 1),
    (8, 1, 14, 16, 3, 1, 1, 1), (8, 1, 17, 32, 5, 1, 0, 1), (5, 24, 9, 40, 3, 3, 1, 1),
    (1, 64, 14, 64, 3, 1, 1, 1), (8, 32, 10, 48, 1, 1, 0, 1), (4, 40, 11, 36, 1, 2, 0, 1),
    (2, 12, 15, 24, 3, 2, 1, 2), (3, 9, 16, 18, 4, 2, 1, 1), (6, 48, 8, 64, 3, 2, 1, 1),
    (4, 96, 7, 128, 3, 1, 1, 1), (2, 36, 9, 40, 5, 3, 2, 1),
    (4, 24, 28, 24, 5, 1, 2, 24), (3, 17, 14, 17, 3, 1, 1, 17), (2, 8, 33, 16, 3, 1, 1, 8),
    (2, 32, 7, 32, 7, 1, 3, 32), (4, 16, 30, 16, 3, 2, 1, 16), (1, 6, 70, 6, 4, 1, 2, 6),
])  # fmt: skip
def test_derivatives(shape):
    assert max(differences(*shape)) < 1e-5


@pytest.mark.parametrize("shape", [
    (8, 64, 56, 64, 3, 1, 1), (128, 16, 32, 16, 3, 1, 1), (64, 1, 28, 32, 5, 1, 2),
    (16, 3, 64, 32, 3, 1, 1), (8, 64, 28, 128, 3, 2, 1), (1, 64, 40, 64, 3, 1, 1),
    (8, 3, 64, 64, 7, 2, 3), (64, 32, 14, 64, 3, 1, 1),
])  # fmt: skip
@pytest.mark.parametrize("machine", MACHINES)
def test_weights_are_summed_beside_a_copy_of_the_padded_image(shape, machine):
    """All threads have work, no term is loaded under a condition, and tiles fill the registers."""
    here = Machine.named(machine)
    found = [(k, s) for k in for_weights(*shape) for s in k.stages
             if len(s.reduced) > 1 and analysis.product(k, s) is not None]  # fmt: skip
    assert found
    for kernel, s in found:
        plan = weights(collapse_all(kernel), here, analysis.product(kernel, s))
        assert plan is not None
        prove(lower(plan))
        (sums,) = [t for t in plan.kernel.stages if t.name == s.name]
        assert not any(len(n.srcs) > 1 for n in sums.loads())
        assert {"c0", "c1"} <= {t.name for t in plan.kernel.stages}
        chunks = np.prod([analysis.extent(x) for x in plan.outer[: plan.parallel]])
        assert chunks >= min(here.cores, 4)
        side_by_side = [x.arg.extent for x in plan.nests[s.name] if plan.unrolls(sums, x)]
        assert np.prod(side_by_side) * 2 >= here.chains


def test_parts_of_a_sum_are_kernels_apart_from_their_sum():
    first, second = for_weights(8, 64, 24, 96, 1, 1, 0)
    assert any(analysis.product(first, s) for s in first.stages)
    assert [s.name for s in second.stages if s.reduced] and len(first.stages) == 1


@pytest.mark.parametrize("images, size, summed", [
    (12, 128, [12, 16, 128]), (4, 256, [4, 8, 256]), (16, 40, [2, 40, 40]), (12, 30, [30, 30]),
])  # fmt: skip
def test_parts_of_large_images_are_lines_and_of_others_images(images, size, summed):
    kernel, *_ = for_weights(images, 16, size, 16, 3, 1, 1)
    (s,) = kernel.stages
    assert [a.arg.extent for a in s.reduced if a.arg.extent > 1] == summed


def test_gradients_of_layers_are_not_done_in_parts():
    """Their operands lie along the results."""
    x, w = zeros(16, 256, 64), zeros(64, 48, grad=True)
    y = x @ w
    (y * zeros(*y.shape)).sum().backward()
    assert len(kernels_of(w.grad)) == 1


def test_derivatives_by_images_of_many_channels_are_tiles():
    """The columns of such a long sum have a batch: no recipe took it, and it was seven times as
    slow."""
    x, w = zeros(8, 64, 14, 14, grad=True), zeros(2048, 64, 1, 1)
    y = x.conv2d(w)
    (y * zeros(*y.shape)).sum().backward()
    (kernel,) = kernels_of(x.grad)
    plan = schedule(kernel, Machine.named("avx512"))
    assert {"c0", "c1"} <= {s.name for s in plan.kernel.stages}


def test_phases_with_unlike_taps_are_convolutions_of_their_own():
    def terms(k: int) -> int:
        x, w = zeros(4, 64, 28, 28, grad=True), zeros(64, 64, k, k)
        y = x.conv2d(w, stride=2, padding=k // 2)
        (y * zeros(*y.shape)).sum().backward()
        products = [s for k in kernels_of(x.grad) for s in k.stages if analysis.product(k, s)]
        return sum(map(analysis.work, products)) // (64 * 64 * 4 * 14 * 14)

    assert terms(3) <= 9 * 1.2 and terms(5) <= 25 * 1.2 and terms(1) <= 1.2


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("c, size, k", [(32, 28, 5), (32, 14, 3), (16, 56, 7), (16, 60, 5)])
def test_channels_by_themselves_are_tiles_of_lines(c, size, k, machine):
    (kernel,) = kernels_of((zeros(4, c, size, size).conv2d(
        zeros(c, 1, k, k), padding=k // 2, groups=c) + 1).relu())  # fmt: skip
    here = Machine.named(machine)
    plan = depthwise(collapse_all(kernel), here)
    if plan is None:  # a line of it is a tile
        assert size > 4 * here.float_lanes and k * k < 16
        return
    prove(lower(plan))
    (sums,) = [s for s in plan.kernel.stages if s.reduced]
    assert not any(len(n.srcs) > 1 for n in sums.loads())
    lines = [x for x in plan.nests[sums.name] if plan.unrolls(sums, x)]
    assert np.prod([x.arg.extent for x in lines]) >= 3


def test_what_is_no_convolution_of_channels_is_left_alone():
    here = Machine.named("avx512")
    x = zeros(64, 64)
    for t in (x @ x, x.sum(1), (x * x).sum(0), zeros(2, 3, 28, 28).avg_pool2d(3, stride=1)):
        for k in kernels_of(t):
            assert depthwise(collapse_all(k), here) is None


def test_an_image_is_no_copy_of_lines_that_its_reader_has_not():
    """Places of a copy that windows slide over are not the lines of a block."""
    (kernel, *_) = for_weights(1, 64, 40, 64, 3, 1, 1)
    (s,) = kernel.stages
    plan = step(collapse_all(kernel), f"copy {s.name} right c1")
    taps = [a.arg.name for a in plan.kernel.stage("c1").axes if a.arg.extent == 3]
    assert len(taps) == 2
    lines = [a.arg.name for a in plan.kernel.free_axes(plan.kernel.stage("c1"))]
    with pytest.raises(ScheduleError, match="own"):
        step(plan, f"slide c1 {lines[0]} {lines[1]} whole")
    with pytest.raises(ScheduleError, match="'whole'"):
        step(plan, f"slide c1 {lines[-1]} {taps[-1]} most")
    slid = step(plan, f"slide c1 {lines[-1]} {taps[-1]} whole")
    with pytest.raises(ScheduleError, match="is not read at"):
        step(slid, f"at c1 {taps[-1]}")
