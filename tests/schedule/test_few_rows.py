"""A few rows times a large matrix: which products are read row by row, and that they are right."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor
from muladd.device.machine import Machine
from muladd.loop.bounds import prove
from muladd.loop.lower import lower
from muladd.schedule.heuristic import schedule


def is_read_row_by_row(t: Tensor, machine: str) -> bool:
    (k,) = t.kernels()
    made = schedule(k.kernel, Machine.named(machine))
    prove(lower(made))
    nest = next(line for line in made.text().splitlines() if line.startswith("s0 at"))
    loops = [x.split("<")[0] for x in nest.split(": ")[1].split()]
    return loops[:2] == ["r0.0", "p1.1"] and not any(x.startswith("copy") for x in made.lines)


def zeros(*shape: int) -> Tensor:
    return Tensor(np.zeros(shape, "float32"))


@pytest.mark.parametrize("machine", ["sse", "avx2", "avx512", "neon"])
def test_which_matrices_are_read_row_by_row(machine):
    for rows in (2, 7, 16, 23):
        assert is_read_row_by_row(zeros(rows, 4096) @ zeros(4096, 4096), machine)
        assert is_read_row_by_row((zeros(rows, 4096) @ zeros(4096, 3001)).relu(), machine)
    for product in (
        zeros(64, 4096) @ zeros(4096, 4096),  # many rows: the matrix is copied, panel by panel
        zeros(8, 4096) @ zeros(4096, 4096).transpose(0, 1),  # columns lie along the terms
        zeros(8, 256) @ zeros(256, 256),  # in the caches
        zeros(8, 64) @ zeros(64, 65536),  # few terms
    ):
        assert not is_read_row_by_row(product, machine)


@pytest.mark.parametrize("rows, terms, columns", [
    (7, 1023, 2047), (2, 600, 4096), (13, 2048, 1300), (23, 3000, 1025), (8, 4099, 768),
])  # fmt: skip
def test_what_few_rows_give(rows, terms, columns):
    rng = np.random.default_rng(rows)
    a, b, c = (rng.normal(size=s).astype("f") for s in ((rows, terms), (terms, columns), columns))
    wanted = a.astype("d") @ b
    given = (Tensor(a), Tensor(b), Tensor(c))
    assert is_read_row_by_row(given[0] @ given[1], "avx512")
    np.testing.assert_allclose((given[0] @ given[1]).numpy(), wanted, rtol=1e-4, atol=2e-3)
    more = (given[0] @ given[1] + given[2]).relu() * 2
    np.testing.assert_allclose(more.numpy(), np.maximum(wanted + c, 0) * 2, rtol=1e-4, atol=4e-3)
    soft = ((given[0] @ given[1]) / 50).softmax(-1)
    powers = np.exp(wanted / 50 - (wanted / 50).max(-1, keepdims=True))
    np.testing.assert_allclose(soft.numpy(), powers / powers.sum(-1, keepdims=True), rtol=2e-3)


@pytest.mark.parametrize("rows", range(4, 24, 3))
def test_small_products_are_shared_equally(rows):
    """Panels are as many for each core, also where a chunk could hold most of them."""
    (k,) = (zeros(rows, 512) @ zeros(512, 256)).kernels()
    made = schedule(k.kernel, Machine.named("avx512"))
    extents = {name: int(n) for line in made.text().splitlines() for x in line.split()
               if "<" in x for name, n in [x.split("*")[0].split("<")]}  # fmt: skip
    cores = Machine.named("avx512").cores
    panels = -(-256 // (extents["p1.2"] * 16))
    assert extents["p1.0"] * extents["p1.1"] <= -(-panels // cores) * cores
