"""What DEBUG prints, what profile() counts, what explain() and kernels() tell, what GRAPH draws."""
from __future__ import annotations

import xml.etree.ElementTree as xml

import numpy as np
import pytest

from muladd import Tensor, config, jit
from muladd import compile as compiler
from muladd.compile import draw, report


@pytest.fixture(autouse=True)
def on_the_cpu():
    with config.context(DEVICE="CPU"):
        yield


def given(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype("float32")).realize()


def only(t: Tensor):
    (kernel,) = t.kernels()
    return kernel.kernel


def test_work_of_a_product() -> None:
    kernel = only(given(33, 20) @ given(20, 17))
    assert report.flops(kernel, {}) == 2 * 33 * 20 * 17
    assert report.nbytes(kernel, {}) == 4 * (33 * 20 + 20 * 17 + 33 * 17)
    assert report.shapes(kernel, {}) == "33x17 over 20"


def test_work_of_an_expression() -> None:
    kernel = only(given(64, 48) * given(64, 48) + given(64, 48))
    assert report.flops(kernel, {}) == 2 * 64 * 48
    assert report.nbytes(kernel, {}) == 4 * 4 * 64 * 48


def test_a_lookup_counts_what_is_looked_up() -> None:
    kernel = only(given(10_000, 16)[Tensor([3, 5, 7]).realize()])
    assert report.nbytes(kernel, {}) <= 2 * 4 * 3 * 16 + 3 * 8


def test_operations_count_for_the_loops_they_depend_on() -> None:
    x, w = given(2, 3, 6, 6), given(4, 3, 3, 3)
    windows = 2 * 3 * 6 * 6 * 9  # for each an addition and a choice; where it lies is none
    kernel = only((x + 1.0).conv2d(w, padding=1))
    assert report.flops(kernel, {}) == 2 * 4 * windows + 2 * windows


def test_profile_counts_every_run() -> None:
    x = given(40, 40)
    f = jit(lambda x: (x @ x).relu())
    for _ in range(3):
        f(x)
    with compiler.profile() as found:
        for _ in range(5):
            f(x)
    (row,) = found.sorted()
    assert row.calls == 5 and row.seconds > 0 and row.flops >= 5 * 2 * 40**3
    lines = found.table().splitlines()
    assert len(lines) == 3 and len({len(line) for line in lines[1:]}) == 1
    with compiler.profile() as nothing:
        pass
    assert nothing.sorted() == []


def test_profiles_inside_of_each_other_count_the_same_runs() -> None:
    x = given(40, 40)
    f = jit(lambda x: (x @ x).relu())
    with compiler.profile() as outer:
        for _ in range(3):
            f(x)
        with compiler.profile() as inner:
            f(x)
        f(x)
    assert inner.sorted()[0].calls == 1
    assert sum(row.calls for row in outer.sorted()) == 5


def test_level_2_prints_an_aligned_line_per_kernel(capfd) -> None:
    with config.context(DEBUG=2):
        (given(31, 16) @ given(16, 8)).softmax(-1).sum(0).realize()
    err = capfd.readouterr().err.splitlines()
    at = err.index(next(line for line in err if line.startswith("kernel ")))
    lines = err[at:]
    assert len(lines) >= 2 and len({len(line) for line in lines}) == 1
    assert "GFLOP/s" in lines[0] and "predicted" in lines[0] and lines[-1].endswith("%")


def test_levels_3_to_5_show_schedule_source_and_assembly(capfd) -> None:
    for level in (3, 4, 5):
        y = given(200 + level, 300) * 2.5
        with config.context(DEBUG=level):
            y.realize()
        err = capfd.readouterr().err
        (kernel,) = (given(200 + level, 300) * 2.5 + 0).kernels() or [None]
        assert kernel is not None and kernel.plan.text() in err
        assert ("define void" in err) == (level >= 4)
        assert (kernel.assembly().splitlines()[-1] in err) == (level >= 5)


def test_graph_writes_dot_and_svg(tmp_path) -> None:
    roots, _ = compiler.parameters(((given(3, 4) @ given(4, 5)).relu()._value(),))
    path = draw.write(roots, tmp_path)
    assert xml.parse(path).getroot().tag.endswith("svg")
    assert path.with_suffix(".dot").read_text().startswith("digraph")


def test_graph_setting_draws_into_the_cache_folder_and_tells_the_path(capfd, tmp_path) -> None:
    with config.context(GRAPH=1, CACHE_DIR=str(tmp_path)):
        (given(11, 13) * 3 + 1).exp().realize()
    path = capfd.readouterr().err.split("graph: ")[1].strip()
    assert path == str(tmp_path / "graphs" / "graph-1.svg")
    assert xml.parse(path).getroot().tag.endswith("svg")


def test_explain_and_kernels_run_nothing() -> None:
    y = (given(6, 7) + 1).softmax(-1)
    assert len(y.kernels()) == 1 and "kernel 1 of 1" in y.explain()
    assert y._kept is None
    y.realize()
    assert y.kernels() == []


def test_ceilings_are_kept_on_disk(monkeypatch, tmp_path) -> None:
    from muladd import cache
    from muladd.compile import roofline

    own = cache.Cache(tmp_path / "own.sqlite")  # others measure, and write into the shared one
    monkeypatch.setattr(cache, "cache", lambda: own)
    monkeypatch.setattr(roofline, "_measured", {})
    first = report.ceilings()
    roofline._measured.clear()
    monkeypatch.setattr(roofline, "peaks", lambda *_: pytest.fail("measured again"))
    assert report.ceilings() == first
    assert first.flops > 1e8 and first.bandwidth > 1e8


def names(t: Tensor) -> list[str]:
    return [k.name for k in t.kernels()]


def test_a_name_says_what_a_kernel_reduces_and_how_large_its_result_is() -> None:
    images, taps = given(2, 3, 9, 9), given(4, 3, 3, 3)
    assert names(given(33, 20) @ given(20, 17)) == ["matmul_33x17"]
    assert names(images.conv2d(taps)) == ["conv_2x4x7x7"]
    assert names(images.conv2d(given(4, 3, 1, 1))) == ["matmul_2x4x9x9"]
    assert names(given(5, 300).softmax(-1)) == ["amax-sum_5x300"]
    assert names((given(16, 500) * given(16, 500)).sum(1)) == ["sum_16"]
    assert names(given(7, 8) + 1) == ["map_7x8"]
    q, k, v = (given(2, 50, 8) for _ in range(3))
    assert names(q.scaled_dot_product_attention(k, v)) == ["matmul-amax-sum_2x50x8"]


def test_sums_of_products_that_are_no_matrix_product_are_named_sums() -> None:
    x, scale = given(64, 16, 4, 4), given(16).requires_grad_()
    mean = x.mean((0, 2, 3), keepdim=True)
    y = (x - mean) * ((x - mean) * (x - mean)).mean((0, 2, 3), keepdim=True).rsqrt()
    (y * scale.reshape(1, 16, 1, 1) * x).sum().backward()
    assert {name.split("_")[0] for name in names(scale.grad)} <= {"sum", "map"}
