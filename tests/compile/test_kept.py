"""Programs kept on disk: found without compiling, the same as compiled ones, and never trusted."""
from __future__ import annotations

import json

import numpy as np
import pytest

from muladd import Tensor, config, jit
from muladd.compile import cache, compile_graph, kept, kernels, parameters, pipeline
from muladd.compile.donate import donatable
from muladd.compile.program import Loop
from muladd.ir import const, dtype, make, ops, param
from muladd.tensor import backend
from muladd.tensor.functional import scan


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with config.context(CACHE_DIR=str(tmp_path), CHECK=0):
        forget()
        yield
    forget()


def forget() -> None:
    """As in a new process."""
    pipeline._programs.clear()
    kernels._made.clear()


def graph(steps: int = 90) -> tuple:
    """Two outputs over two parameters, of more nodes than are compiled without a record."""
    x, y = param(0, (8, 16), dtype.float32), param(1, (8, 16), dtype.float32)
    z = y
    for i in range(steps):
        shifted = make(ops.ADD, (z, const(float(i), dtype.float32, z.shape)))
        z = make(ops.MUL, (x, shifted)) if i % 3 else make(ops.MAX, (x, shifted))
    return z, make(ops.SUM, (z,), (1,))


def run(program) -> list[bytes]:
    device = program.device
    given = []
    for i in range(2):
        values = np.linspace(-0.5, 0.5 + i, 128, dtype=np.float32)
        given.append(device.allocate(values.nbytes))
        device.copy_in(given[-1], values)
    found = []
    for buffer, a in zip(program.run(given), program.outputs):
        values = np.empty(a.size, np.float32)
        device.copy_out(buffer, values)
        found.append(values.tobytes())
    return found


def texts(program) -> list[str]:
    return [k.kernel.text() for k in program.kernels()]


def key() -> bytes:
    found = kept.key_of(graph(), compile_graph(graph(), "CPU").device, exact=False)
    assert found is not None
    return found


@pytest.fixture
def compiling(monkeypatch):
    """How many graphs were compiled."""
    count = []
    real = pipeline._compile

    def counted(*args):
        count.append(args)
        return real(*args)

    monkeypatch.setattr(pipeline, "_compile", counted)
    return count


def test_a_program_is_found_again_without_compiling(compiling):
    first = compile_graph(graph(), "CPU")
    values, described = run(first), texts(first)
    forget()
    again = compile_graph(graph(), "CPU")
    assert len(compiling) == 1 and again is not first
    assert run(again) == values and donatable(again) == donatable(first)
    assert [k.name for k in again.kernels()] == [k.name for k in first.kernels()]
    assert len(compiling) == 1
    assert texts(again) == described  # found by compiling, once for all
    assert len(compiling) == 2
    assert again.kernels()[0].plan.text() == first.kernels()[0].plan.text()


def test_a_kernel_found_on_disk_learns_its_algorithm_from_whoever_compiles_it(compiling):
    compile_graph(graph(), "CPU")
    forget()
    (kernel, *_) = compile_graph(graph(), "CPU").kernels()
    pipeline._compile(graph(), compile_graph(graph(), "CPU").device, False)
    count = len(compiling)
    assert kernel.kernel.text() and len(compiling) == count


def scanned() -> list[Tensor]:
    """Two results of a loop, and a derivative through it."""
    def body(x, w):
        x = (x @ w).layernorm(axis=-1).gelu() + x
        return x, x.sum(axis=-1)

    start = Tensor(np.linspace(-1, 1, 32, dtype=np.float32).reshape(4, 8))
    w = Tensor(np.linspace(-1, 1, 320, dtype=np.float32).reshape(5, 8, 8), requires_grad=True)
    last, rows = scan(body, start, w)
    ((last * last).sum() + rows.sum()).backward()
    return [last, rows, w.grad]


def test_loops_and_copies_are_kept(compiling):
    roots, _ = backend.expand([t.node for t in scanned()], "CPU")
    outputs, _ = parameters(tuple(roots))
    first = compile_graph(outputs, "CPU")
    assert any(isinstance(a, Loop) for a in first.actions)
    forget()
    again = compile_graph(outputs, "CPU")
    assert len(compiling) == 1
    assert kept._Writer(again).record == kept._Writer(first).record


def test_a_loop_from_disk_computes_the_same(compiling):
    values, counts = [], []
    for _ in range(2):
        forget()
        last, rows, grad = scanned()
        last.realize(rows, grad)
        values.append([t.numpy().tobytes() for t in (last, rows, grad)])
        counts.append(len(compiling))
    assert values[0] == values[1] and 0 < counts[0] == counts[1]


@pytest.mark.parametrize("change", [
    lambda r: [],
    lambda r: {},
    lambda r: {**r, "arrays": r["arrays"][:-1]},
    lambda r: {**r, "arrays": [["float33", *a[1:]] for a in r["arrays"]]},
    lambda r: {**r, "outputs": r["outputs"][:-1]},
    lambda r: {**r, "outputs": r["outputs"][::-1]},
    lambda r: {**r, "inputs": [-1, *r["inputs"][1:]]},
    lambda r: {**r, "kernels": [["0" * 32, *k[1:]] for k in r["kernels"]]},
    lambda r: {**r, "actions": [["jump", *a[1:]] for a in r["actions"]]},
    lambda r: {**r, "actions": [[a[0], a[1], a[2][:-1]] for a in r["actions"]]},
    lambda r: {**r, "actions": [[a[0], 99, a[2]] for a in r["actions"]]},
    lambda r: {**r, "donated": [[0, 7]]},
])  # fmt: skip
def test_an_odd_record_is_compiled_over(change, compiling):
    values, name = run(compile_graph(graph(), "CPU")), key()
    good = cache.cache().get("programs", name)
    cache.cache().put("programs", name, json.dumps(change(json.loads(good))).encode())
    forget()
    assert run(compile_graph(graph(), "CPU")) == values and len(compiling) == 2
    assert cache.cache().get("programs", name) == good


def test_bytes_that_are_no_record_are_compiled_over(compiling):
    compile_graph(graph(), "CPU")
    for junk in (b"", b"\xff\xfe", b"{", b"[" * 100_000):
        cache.cache().put("programs", key(), junk)
        forget()
        compile_graph(graph(), "CPU")
    assert len(compiling) == 5


def test_a_missing_object_is_compiled_again(monkeypatch, compiling):
    values = run(compile_graph(graph(), "CPU"))
    forget()
    monkeypatch.setattr(kernels, "compiler_version", lambda: "another")  # objects' keys, not ours
    assert run(compile_graph(graph(), "CPU")) == values and len(compiling) == 2


def test_profiles_have_records_of_their_own_and_small_graphs_none(compiling):
    device = compile_graph(graph(), "CPU").device
    assert kept.key_of(graph(), device, True) != kept.key_of(graph(), device, False)
    assert kept.key_of(graph(3), device, False) is None
    with config.context(CHECK=1):
        assert kept.key_of(graph(), device, False) is None


def test_state_is_updated_by_a_program_from_disk():
    def three_steps() -> list[float]:
        forget()
        weights = [Tensor(np.full((64,), i + 1.0, np.float32)).realize() for i in range(24)]

        @jit
        def step(x):
            loss = sum(((w * x) ** 2).sum() for w in weights)
            for w in weights:
                w.assign(w * 0.9 + x * 0.01)
            return loss

        x = Tensor(np.ones(64, np.float32)).realize()
        return [step(x).item() for _ in range(4)] + [float(w.sum().item()) for w in weights]

    assert three_steps() == three_steps()
