"""The table of benchmarks: names, work, peers and targets, group by group.

Groups: foundation (must hold always), kernels, threads, models, compile, exact, graph. Each kernel
is one expression that both sides understand; see peers.py.
"""
from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from muladd.bench import inference, models, processes, scaling
from muladd.bench.case import Case, Given, Target, kernel

_16M = (1 << 24,)
_SQUARES = (128, 256, 512, 1024, 2048)
# rows made of others, where all of these were measured: name, group, the others, target
MEANS = (("matmul 128 to 2048, geometric mean", "kernels", [f"matmul {n}" for n in _SQUARES],
          Target(1.05)),)  # fmt: skip


def all_cases() -> list[Case]:
    """Every case, in the order of the table."""
    found = [*foundation(), *rows(), *products(), *elementwise(), *reductions(), *attention(),
             *convolutions(), *lookups(), *sorting(), *threads(), *models.cases(),
             *inference.cases(), *processes.cases(), *models.exact_cases(),
             *models.graph_cases()]  # fmt: skip
    return found


def unknown(names: list[str]) -> list[str]:
    """Those of the names that are no group, nor part of the name of a case."""
    cases = all_cases()
    return [n for n in names if n != "all" and not any(_is_meant(n, c) for c in cases)]


def chosen(names: list[str], quick: bool = False) -> list[Case]:
    """Cases whose group is, or whose name contains, one of `names`; all if there are none, or with
    the name "all"."""
    cases = [c for c in all_cases() if c.quick or not quick]
    if not names or "all" in names:
        return cases
    return [c for c in cases if any(_is_meant(n, c) for n in names)]


def _is_meant(name: str, case: Case) -> bool:
    return bool(name) and (name == case.group or name in case.name)


def foundation() -> Iterator[Case]:
    for n in (512, 1024):
        yield kernel(f"matmul {n}", _matmul, (n, n), (n, n), group="foundation",
                     target=Target(1.0, must=0.9))  # fmt: skip
    yield kernel("a*b+c 16M", lambda f, a, b, c: a * b + c, _16M, _16M, _16M, group="foundation",
                 target=Target(3.0, must=2.0))  # fmt: skip


def products() -> Iterator[Case]:
    for n in (128, 256, 2048):
        yield kernel(f"matmul {n}", _matmul, (n, n), (n, n), target=Target(1.0))
    for m, k, n in ((1, 4096, 4096), (7, 511, 1023), (4096, 64, 4096)):
        yield kernel(f"matmul {m}x{k}x{n}", _matmul, (m, k), (k, n), target=Target(1.0))
    for m in (8, 16):
        yield kernel(f"matmul {m}x4096x4096", _matmul, (m, 4096), (4096, 4096))
    yield kernel("matmul 1024 A transposed", lambda f, a, b: a.T @ b, (1024, 1024), (1024, 1024),
                 target=Target(1.0))  # fmt: skip
    yield kernel("matmul 1024 B transposed", lambda f, a, b: a @ b.T, (1024, 1024), (1024, 1024),
                 target=Target(1.0))  # fmt: skip
    yield kernel("matmul 32x128x64x128 batched", _matmul, (32, 128, 64), (32, 64, 128),
                 target=Target(1.0))  # fmt: skip
    for n in (512, 1024):
        yield kernel(f"matmul bfloat16 {n}", _matmul, Given((n, n), "bfloat16"),
                     Given((n, n), "bfloat16"), target=Target(1.0), tolerance=1e-2)  # fmt: skip
    yield kernel("matmul int8 1024", lambda f, a, b: a.int() @ b.int(), Given((1024, 1024), "int8"),
                 Given((1024, 1024), "int8"), theirs=lambda f, a, b: f._int_mm(a, b),
                 target=Target(1.0), tolerance=0.0)  # fmt: skip
    for n in (512, 1024, 1536):
        yield kernel(f"matmul+bias+gelu {n}", lambda f, a, b, c: f.gelu(a @ b + c), (n, n), (n, n),
                     (n,), target=Target(1.2))  # fmt: skip


def _matmul(f: Any, a: Any, b: Any) -> Any:
    return a @ b


def elementwise() -> Iterator[Case]:
    yield kernel("transpose 4096x4096", lambda f, a: a.T.contiguous(), (4096, 4096))
    for name in ("exp", "tanh", "sigmoid", "gelu"):
        yield kernel(f"{name} 16M", _named(name), _16M, target=Target(2.0))


def _named(name: str) -> Any:
    return lambda f, x: getattr(f, name)(x)


def rows() -> Iterator[Case]:
    for height, width in ((4096, 4096), (64, 50257)):
        for name, expression in (("softmax", _softmax), ("layernorm", _normed("layer_norm", width)),
                                 ("rmsnorm", _normed("rms_norm", width))):  # fmt: skip
            foundation = height == 4096 and name != "rmsnorm"
            yield kernel(
                f"{name} {height}x{width}", expression, (height, width),
                group="foundation" if foundation else "kernels",
                target=Target(4.5, must=3.0 if foundation else None), recycled_target=Target(1.2),
            )  # fmt: skip


def _softmax(f: Any, x: Any) -> Any:
    return f.softmax(x, -1)


def _normed(name: str, width: int) -> Any:
    return lambda f, x: getattr(f, name)(x, (width,))


def reductions() -> Iterator[Case]:
    for name in ("sum", "mean", "amax"):
        for over, axis in (("all", None), ("rows", 1), ("columns", 0)):
            yield kernel(f"{name} {over} 4096x4096", _reduced(name, axis), (4096, 4096),
                         target=Target(1.0))  # fmt: skip


def _reduced(name: str, axis: int | None) -> Any:
    return lambda f, x: getattr(x, name)() if axis is None else getattr(x, name)(axis)


def attention() -> Iterator[Case]:
    for heads, time, width in ((8, 2048, 64), (1, 2048, 64), (8, 1999, 64), (1, 8192, 64)):
        asked = time <= 2048  # longer rows, which are done in blocks, have no target
        shape = (1, heads, time, width)
        whole = 4.0 * heads * time * time * width
        size = f"{heads}x{time}x{width}"
        yield kernel(f"attention {size} causal", _attend(True), shape, shape, shape,
                     flops=whole / 2, target=Target(1.4) if asked else Target())  # fmt: skip
        yield kernel(f"attention {size} full", _attend(False), shape, shape, shape,
                     flops=whole, target=Target(1.2) if asked else Target())  # fmt: skip
    shape = (1, 8, 2048, 64)
    yield kernel("attention 8x2048x64 causal fwd+bwd", _attend(True), shape, shape, shape,
                 backward=True, flops=3.5 * whole_of(shape) / 2, target=Target(1.2))  # fmt: skip


def whole_of(shape: tuple[int, ...]) -> float:
    """Operations of attention without a mask: two products of heads x time x time x width."""
    _, heads, time, width = shape
    return 4.0 * heads * time * time * width


def _attend(causal: bool) -> Any:
    return lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=causal)


def convolutions() -> Iterator[Case]:
    """(channels in, out, height, kernel, stride, groups) beside PyTorch, batch 1 and 32."""
    layers = (
        ("3x3 64ch 56", 64, 64, 56, 3, 1, 1), ("3x3 128ch 28", 128, 128, 28, 3, 1, 1),
        ("3x3 256ch 14", 256, 256, 14, 3, 1, 1), ("1x1 256ch 28", 256, 256, 28, 1, 1, 1),
        ("7x7/2 3-64ch 224", 3, 64, 224, 7, 2, 1),
        ("depthwise 3x3 128ch 56", 128, 128, 56, 3, 1, 128),
    )  # fmt: skip
    for batch in (1, 32):
        for name, channels, out, size, k, stride, groups in layers:
            x, w = (batch, channels, size, size), (out, channels // groups, k, k)
            yield kernel(f"conv {name} batch {batch}", _convolved(stride, k // 2, groups), x, w,
                         target=Target(1.0), quick=batch == 1)  # fmt: skip


def _convolved(stride: int, padding: int, groups: int) -> Any:
    return lambda f, x, w: f.conv2d(x, w, stride=stride, padding=padding, groups=groups)


def lookups() -> Iterator[Case]:
    table = 50257 * 768
    found = 2048 * 768
    yield kernel("embedding 50257x768, 2048 indices, forward", lambda f, i, w: f.embedding(i, w),
                 Given((2048,), high=50257), (50257, 768), flops=0.0,
                 nbytes=8.0 * found)  # fmt: skip
    yield kernel("embedding 50257x768, 2048 indices, fwd+bwd", lambda f, i, w: f.embedding(i, w),
                 Given((2048,), high=50257), (50257, 768), backward=True, flops=float(found),
                 nbytes=8.0 * found + 4.0 * table + 8.0 * found, target=Target(2.0))  # fmt: skip


def sorting() -> Iterator[Case]:
    million = (1 << 20,)
    # comparisons are no multiply-adds: what bounds these is reading the numbers once
    yield kernel("sort 1M", lambda f, x: x.sort(-1)[0], million, target=Target(0.5), flops=0.0,
                 nbytes=8.0 * million[0], quick=False)  # fmt: skip
    yield kernel("topk 100 of 1M", lambda f, x: x.topk(100, -1)[0], million, target=Target(0.5),
                 flops=0.0, nbytes=4.0 * million[0], quick=False)  # fmt: skip
    yield kernel("cumsum 1M", lambda f, x: x.cumsum(-1), million, target=Target(0.5),
                 tolerance=1e-3)  # fmt: skip


def threads() -> Iterator[Case]:
    names = ("matmul 1024", "matmul+bias+gelu 1024", "conv 3x3 64ch 56 batch 1",
             "conv 3x3 128ch 28 batch 1", "attention 8x2048x64 causal",
             "attention 1x2048x64 full")  # fmt: skip
    kernels = chain(foundation(), products(), convolutions(), attention())
    return scaling.threaded(kernels, names)
