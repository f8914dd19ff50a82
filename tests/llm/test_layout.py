"""Laid matrices: the numbers of every kind are what they were, and products are close to theirs."""
from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from muladd import Tensor, config
from muladd.compile import compile_graph, parameters
from muladd.device.machine import Machine
from muladd.errors import ArgumentError
from muladd.formats import quant
from muladd.formats.gguf import GGUFTensor
from muladd.llm import layout, memory
from muladd.llm.generate import load
from muladd.llm.weights import Matrix, matrix, quantized
from muladd.loop.dots import factors
from muladd.tensor.handle import no_grad

KINDS = [name for name, kind in quant.KINDS.items() if kind.dtype is None]


def stored(kind: str, *shape: int, seed: int = 0) -> GGUFTensor:
    """Random blocks whose numbers are neither infinite nor far greater than others."""
    chance, k = np.random.default_rng(seed), quant.KINDS[kind]
    blocks = chance.integers(0, 256, (np.prod(shape) // k.elements, k.bytes), dtype=np.uint8)
    while True:
        values = np.abs(quant.decode(blocks, kind))
        wild = ~(values < 1e3).all(-1) | (values.max(-1) < 1e-3)
        if not wild.any():
            break
        blocks[wild] = chance.integers(0, 256, (wild.sum(), k.bytes), dtype=np.uint8)
    return GGUFTensor(k, shape, blocks.reshape(*shape[:-1], -1))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_rows_and_products_of_every_kind(kind):
    weight = stored(kind, 37, 512)  # the last panel is not full
    wanted, found = weight.dequantize(), matrix(weight, arithmetic="int8")
    rows = -(-37 // Machine.host().float_lanes) * Machine.host().float_lanes
    assert found.shape == (37, 512) and found.nbytes < rows * 512 * 1.4
    np.testing.assert_array_equal(found.numbers().numpy(), wanted)
    ids = np.array([3, 36, 0, 3], np.int32)
    np.testing.assert_array_equal(found.rows(Tensor(ids)).numpy(), wanted[ids])
    x = np.random.default_rng(1).standard_normal((5, 512)).astype(np.float32)
    exact = x.astype(np.float64) @ wanted.T.astype(np.float64)
    scale = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(wanted, axis=1)
    with no_grad():
        by_bytes, plain = found(Tensor(x)).numpy(), matrix(weight)(Tensor(x)).numpy()
    assert np.abs((plain - exact) / scale).max() < 1e-6
    assert np.abs((by_bytes - exact) / scale).max() < 0.02
    recorded = found(Tensor(x, requires_grad=True)).numpy()  # gradients want numbers
    assert np.abs((recorded - exact) / scale).max() < 1e-6


@pytest.mark.parametrize("kind, width, rows", [
    ("Q4_1", 96, 5), ("Q4_1", 96, 33), ("Q4_0", 2048, 16), ("Q8_0", 2048, 1), ("Q8_0", 2048, 16),
    ("Q6_K", 1024, 1), ("Q6_K", 1024, 16), ("Q6_K", 1024, 33), ("Q2_K", 256, 5),
])  # fmt: skip
def test_products_of_several_rows_are_one_kernel(kind, width, rows):
    """Blocks' sums never reach memory, whatever a block is, and however many there are."""
    weight = stored(kind, 512, width)
    x = np.random.default_rng(1).standard_normal((rows, width)).astype(np.float32)
    with no_grad():
        found = matrix(weight, arithmetic="int8")(Tensor(x))
        graph, _ = parameters((found.node,))
        kernels = compile_graph(graph, "CPU").kernels()
        products = [k for k in kernels if any(factors(s) for s in k.kernel.stages)]
        assert len(products) == 1 and "*d" in products[0].plan.text()
        assert all(s.argument is None for s in products[0].kernel.stages if factors(s))
        exact = x.astype(np.float64) @ weight.dequantize().T
        scale = np.linalg.norm(x, axis=1)[:, None] * np.linalg.norm(weight.dequantize(), axis=1)
        assert np.abs((found.numpy() - exact) / scale).max() < 0.02


def test_a_product_of_bytes_is_what_its_bytes_say():
    """The whole numbers are exact: only scaling and adding the groups' sums rounds."""
    weight = stored("Q4_1", 64, 96)
    x = np.random.default_rng(2).standard_normal((3, 96)).astype(np.float32)
    with no_grad():
        found = matrix(weight, arithmetic="int8")(Tensor(x)).numpy()
        parts = [t.numpy() for t in quantized(Tensor(x), 3)]
    heard = (parts[0].astype(np.float64) * parts[1][..., None]).reshape(3, 96)
    assert np.abs(parts[0]).max(-1).min() == 127 and np.abs(heard - x).max() < 0.02
    np.testing.assert_allclose(parts[2], heard.reshape(3, 3, 32).sum(-1), atol=1e-5)
    np.testing.assert_allclose(found, heard @ weight.dequantize().T.astype(np.float64), rtol=1e-4)


def test_rows_of_zeros_and_many_matrices_at_once():
    weight = stored("Q8_0", 2, 16, 64)
    found = matrix(weight, arithmetic="int8")
    assert found.shape == (2, 16, 64)
    x = np.zeros((2, 3, 64), np.float32)
    x[1] = np.random.default_rng(3).standard_normal((3, 64))
    wanted = x @ weight.dequantize().transpose(0, 2, 1)
    with no_grad():
        got = found(Tensor(x)).numpy()
        one = found(Tensor(x[1])).numpy()  # the same rows for each matrix
    assert not got[0].any() and np.abs(got - wanted).max() < 0.05 * np.abs(wanted).max()
    np.testing.assert_array_equal(one[1], got[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_large_matrices_are_laid_in_pieces(threads, monkeypatch):
    monkeypatch.setattr(layout, "_AT_ONCE", 1 << 10)
    for kind in ("Q4_1", "Q6_K"):
        weight = stored(kind, 3, 44, 256)
        with config.context(THREADS=threads):
            found = matrix(weight)
        np.testing.assert_array_equal(found.numbers().numpy(), weight.dequantize())


def test_what_was_read_of_a_file_is_let_go_of(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_BLOCK", 4 * mmap.PAGESIZE)
    path = tmp_path / "weights"
    path.write_bytes(bytes(range(256)) * (10 * mmap.PAGESIZE // 256))
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    asked = []

    class Watched(mmap.mmap):
        def madvise(self, *given):
            asked.append((given[1] // mmap.PAGESIZE, given[2] // mmap.PAGESIZE))

    raw = np.frombuffer(memoryview(mapped), np.uint8)
    with open(path, "rb") as file:
        watched = np.frombuffer(Watched(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    ends = [100, 3, 4, 7, 9, 10]  # of pieces read one after another, in pages but the first
    places = [0, 100, *(n * mmap.PAGESIZE for n in ends[1:])]
    for first, last in zip(places, places[1:]):
        before = raw[first:last].copy()
        memory.release(raw[first:last].reshape(1, -1))
        np.testing.assert_array_equal(raw[first:last], before)
        memory.release(watched[first:last])
    assert asked == [(0, 4), (4, 4), (8, 2)]  # each page once, as the end of its block is passed
    memory.release(np.zeros(8, np.uint8))  # of no file


def test_plain_matrices_know_no_form():
    found = Matrix(Tensor(np.eye(4, dtype=np.float32)))
    assert found.shape == (4, 4) and found.nbytes == 64 and found.form is None
    with pytest.raises(ArgumentError, match="arithmetic is 'int4'; expected int8 or float32"):
        load("nothing.gguf", arithmetic="int4")


def test_memory_is_there_when_it_is_touched():
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE

    if not Path("/proc/self/statm").exists():
        pytest.skip("tells resident memory in another way")
    before = resident()
    made = memory.memory_of(256 << 20, huge=False)
    made[:: 2 << 20] = 1  # as the first page of each layer's keys and values
    assert resident() - before < 16 << 20 and not made[1 : 2 << 20].any()


def test_a_piece_of_memory_serves_several_matrices():
    room = memory._Room()
    a, b = room.cut(1000), room.cut(1000)
    assert b.address - a.address == 1024 and a.address % 64 == 0 and a.owner is b.owner
    assert room.cut(memory._PIECE).nbytes == memory._PIECE
