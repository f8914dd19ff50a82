"""Sums down columns in pieces of rows, and products of bytes packed for the machine's instructions:
which kernels get them, and that what they give is right."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor
from muladd.device.machine import Machine
from muladd.loop.bounds import prove
from muladd.loop.lower import lower
from muladd.schedule.heuristic import schedule


def plan(t: Tensor, machine: str):
    (k,) = t.kernels()
    made = schedule(k.kernel, Machine.named(machine))
    prove(lower(made))
    return made


def zeros(*shape: int, dtype: str = "float32") -> Tensor:
    return Tensor(np.zeros(shape, dtype))


@pytest.mark.parametrize("machine", ["sse", "avx2", "avx512", "sapphire rapids", "neon", "sve"])
def test_columns_of_what_comes_from_memory_are_summed_in_pieces_of_rows(machine):
    large = {"sum": zeros(4096, 4096).sum(0), "row by matrix": zeros(1, 4096) @ zeros(4096, 4096),
             "odd": zeros(3001, 4099).amax(0), "squares": zeros(2, 3000, 2048).square().sum(1)}
    if machine != "sapphire rapids":  # whose cores are too many for one row
        assert all("keep s0 d0" in plan(t, machine).lines for t in large.values())
    for t in (zeros(16, 4096).sum(0), zeros(4096, 64).sum(0), zeros(4096, 4096).sum(1)):
        assert "keep s0 d0" not in plan(t, machine).lines


@pytest.mark.parametrize("rows, columns", [(1500, 4096), (700, 4099), (4097, 1024), (600, 3000)])
def test_sums_down_columns(rows, columns):
    rng = np.random.default_rng(0)
    x, v = rng.normal(size=(rows, columns)).astype("f"), rng.normal(size=(1, rows)).astype("f")
    t, wide = Tensor(x), x.astype("d")
    for found, wanted in ((t.sum(0), wide.sum(0)), (t.mean(0), wide.mean(0)),
                          (t.amax(0), wide.max(0)), (Tensor(v) @ t, v @ wide),
                          (t.square().sum(0).sqrt() + 1, np.sqrt((wide**2).sum(0)) + 1)):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=2e-3)
    narrow = t.cast("bfloat16")  # whose sums do not wait in bfloat16
    np.testing.assert_allclose(narrow.sum(0).float().numpy(), wide.sum(0), rtol=0.02, atol=0.6)
    x[3, 5] = np.nan
    assert np.isnan(Tensor(x).amax(0).numpy()).sum() == 1


@pytest.mark.parametrize("machine, how", [("avx512", ["unsigned", "dot"]), ("neon", ["dot"]),
                                          ("zen4", ["unsigned", "dot"]), ("avx2", []),
                                          ("sve", [])])  # fmt: skip
def test_products_of_bytes_are_packed_for_the_instructions(machine, how):
    made = plan(zeros(512, 512, dtype="int8").int() @ zeros(512, 512, dtype="int8").int(), machine)
    used = [x.split()[0] for x in made.lines]
    assert [x for x in used if x in ("unsigned", "dot")] == how


@pytest.mark.parametrize("m, k, n", [(64, 64, 64), (50, 256, 192), (129, 1024, 64), (64, 66, 64),
                                     (256, 512, 100), (16, 4, 64), (1, 64, 64)])  # fmt: skip
@pytest.mark.parametrize("batch", [(), (3,)])
def test_products_of_bytes(m, k, n, batch):
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (*batch, *s)).astype("int8") for s in ((m, k), (k, n)))
    a.flat[:4], b.flat[:4] = -128, -128
    wanted = a.astype("int64") @ b.astype("int64")
    np.testing.assert_array_equal((Tensor(a).int() @ Tensor(b).int()).numpy(), wanted)
    with_more = ((Tensor(a).int() @ Tensor(b).int()).float() * 0.5 + 1).numpy()
    np.testing.assert_array_equal(with_more, (wanted * 0.5 + 1).astype("f"))


@pytest.mark.parametrize("m, k, n", [(64, 64, 64), (128, 256, 512), (1000, 16, 16), (50, 36, 64)])
def test_products_of_bytes_that_are_made_of_floats(m, k, n):
    rng = np.random.default_rng(0)
    a, b = (rng.uniform(-127, 127, s).astype("f") for s in ((m, k), (k, n)))
    x, y = (Tensor(v).cast("int8").int() for v in (a, b))
    product = x @ y
    if (m, k, n) == (128, 256, 512):  # each row is made once for a tile, not for each panel
        assert "copy s0 left c1 narrow" in plan(product, "avx512").lines
    wanted = a.astype("int8").astype("int64") @ b.astype("int8").astype("int64")
    np.testing.assert_array_equal(product.numpy(), wanted)
