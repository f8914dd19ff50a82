"""Programs kept on disk: found without compiling, the same as compiled ones, and never trusted."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support import programs

from muladd import Tensor, cache, config, jit
from muladd.compile import compile_graph, kept, kernels, parameters, pipeline
from muladd.compile.donate import donatable
from muladd.compile.order import Ordered
from muladd.compile.program import Loop
from muladd.ir import codec, const, dtype, make, ops, param, var
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
    given = [np.linspace(-0.5, 0.5 + i, 128, dtype=np.float32) for i in range(2)]
    return [values.tobytes() for values in programs.run(program, given)]


def texts(program) -> list[str]:
    return [k.kernel.text() for k in program.kernels()]


def key() -> bytes:
    assert Ordered.of(graph()).graph == graph()
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


def test_another_order_is_found_by_its_own_record(compiling, monkeypatch):
    """Without even looking for an order of the graph's own."""
    outputs = graph()[::-1]
    first = compile_graph(outputs, "CPU")
    values, described = run(first), texts(first)
    forget()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "Ordered", None)
        again = compile_graph(outputs, "CPU")
        assert run(again) == values and donatable(again) == donatable(first)
        assert len(compiling) == 1
    assert texts(again) == described and len(compiling) == 2


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
    lambda r: {**r, "order": [99]},
    lambda r: {**r, "order": 5},
])  # fmt: skip
def test_an_odd_record_is_compiled_over(change, compiling):
    values, name = run(compile_graph(graph(), "CPU")), key()
    good = cache.cache().get("programs", name)
    cache.cache().put("programs", name, json.dumps(change(json.loads(good))).encode())
    forget()
    assert run(compile_graph(graph(), "CPU")) == values and len(compiling) == 2
    assert cache.cache().get("programs", name) == good


def test_any_order_of_memory_is_right(compiling):
    values, name = run(compile_graph(graph(), "CPU")), key()
    good = json.loads(cache.cache().get("programs", name))
    for order in ([], good["order"][::-1], good["order"] * 2, [0, 1]):
        cache.cache().put("programs", name, json.dumps({**good, "order": order}).encode())
        forget()
        assert run(compile_graph(graph(), "CPU")) == values
    assert len(compiling) == 1


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


# --- symbolic sizes -------------------------------------------------------------------------------


def symbolic(name: str = "n", low: int = 1, high: int = 64) -> tuple:
    """A chain over x (n, 16) and y (16,), and the sums of its rows and columns."""
    n = var(name, low, high)
    x, y = param(0, (n, 16), dtype.float32), param(1, (16,), dtype.float32)
    z = make(ops.EXPAND, (y,), (n, 16))
    for i in range(60):
        shifted = make(ops.ADD, (z, const(float(i), dtype.float32, z.shape)))
        z = make(ops.MUL, (x, shifted)) if i % 3 else make(ops.MAX, (x, shifted))
    doubled = make(ops.PAD, (z,), (((0, n, 0), (0, 0, 0)), 0.5))
    return doubled, make(ops.SUM, (z,), (1,)), make(ops.SUM, (doubled,), (0,))


def run_at(program, n: int) -> list[bytes]:
    given = [np.linspace(-0.5, 0.5, count, dtype=np.float32) for count in (n * 16, 16)]
    return [values.tobytes() for values in programs.run(program, given, (n,))]


def test_a_program_of_symbolic_sizes_is_found_again(compiling):
    first = compile_graph(symbolic(), "CPU")
    values, described = [run_at(first, n) for n in (1, 7, 64)], texts(first)
    forget()
    again = compile_graph(symbolic(), "CPU")
    assert [run_at(again, n) for n in (64, 7, 1)] == values[::-1]
    assert kept._Writer(again).record == kept._Writer(first).record
    assert again.variables == ("n",) and donatable(again) == donatable(first)
    assert len(compiling) == 1
    assert texts(again) == described and len(compiling) == 2


@pytest.mark.parametrize("other", [("m",), ("n", 2, 64), ("n", 1, 65)])
def test_names_and_bounds_of_sizes_have_programs_of_their_own(other, compiling):
    values = run_at(compile_graph(symbolic(), "CPU"), 9)
    forget()
    program = compile_graph(symbolic(*other), "CPU")
    assert len(compiling) == 2 and run_at(program, 9) == values
    assert program.variables == (other[0],)
    forget()
    assert run_at(compile_graph(symbolic(), "CPU"), 9) == values and len(compiling) == 2


def hexadecimal(*sizes) -> str:
    return codec.encode(sizes).hex()


@pytest.mark.parametrize("change", [
    lambda r: {**r, "sizes": ""},
    lambda r: {**r, "sizes": "no hexadecimal"},
    lambda r: {**r, "sizes": r["sizes"][:-2]},
    lambda r: {**r, "sizes": hexadecimal()},
    lambda r: {**r, "sizes": hexadecimal(*[var("m", 1, 64)] * 9)},
    lambda r: {**r, "sizes": hexadecimal(*[var("n", 1, 65)] * 9)},
    lambda r: {**r, "sizes": hexadecimal(*[param(0, (2,), dtype.int64)] * 9)},
    lambda r: {**r, "arrays": [[a[0], [99], *a[2:]] for a in r["arrays"]]},
    lambda r: {**r, "arrays": [[a[0], [], *a[2:]] for a in r["arrays"]]},
    lambda r: {**r, "arrays": [[a[0], 5, *a[2:]] for a in r["arrays"]]},
    lambda r: {k: v for k, v in r.items() if k != "sizes"},
])  # fmt: skip
def test_a_record_of_odd_sizes_is_compiled_over(change, compiling):
    first = compile_graph(symbolic(), "CPU")
    assert Ordered.of(symbolic()).graph == symbolic()  # or there would be two records
    name = kept.key_of(symbolic(), first.device, exact=False)
    values, good = run_at(first, 9), cache.cache().get("programs", name)
    cache.cache().put("programs", name, json.dumps(change(json.loads(good))).encode())
    forget()
    assert run_at(compile_graph(symbolic(), "CPU"), 9) == values and len(compiling) == 2
    assert cache.cache().get("programs", name) == good


def test_a_kernel_whose_grid_is_symbolic_is_not_lowered_again(monkeypatch):
    """Also where the whole program is not found, as small ones are not."""
    values = run_at(compile_graph(symbolic(), "CPU"), 9)
    forget()
    monkeypatch.setattr(kept, "find", lambda *_: None)
    monkeypatch.setattr(kernels, "lower", None)
    assert run_at(compile_graph(symbolic(), "CPU"), 9) == values


PROCESS = """
import sys
import numpy as np
from muladd import Tensor, jit
from muladd.compile import pipeline

if sys.argv[1] == "warm":
    pipeline._compile = lambda *_: sys.exit("compiled")

@jit(symbolic={"x": {0: ("n", 1, 64)}})
def f(x, w):
    for i in range(20):
        x = ((x @ w) / 16 + i * 0.1).tanh().layernorm(axis=-1) + x
    return x, x.softmax(axis=0)

w = Tensor(np.linspace(-1, 1, 256, dtype=np.float32).reshape(16, 16))
for n in (3, 64, 1, 17):
    x = Tensor(np.linspace(-1, 1, n * 16, dtype=np.float32).reshape(n, 16))
    for y in f(x, w):
        print(y.numpy().tobytes().hex())
"""


@pytest.mark.slow
def test_processes_share_programs_of_symbolic_sizes(tmp_path):
    """Three that start together on an empty cache, and one that must find what they left."""
    def start(how: str) -> subprocess.Popen:
        command = [sys.executable, "-c", PROCESS, how]
        settings = {**os.environ, "MULADD_CACHE_DIR": str(tmp_path), "DEVICE": "CPU", "CHECK": "0"}
        return subprocess.Popen(command, env=settings, stdout=subprocess.PIPE, text=True)

    def said(process: subprocess.Popen) -> str:
        out, _ = process.communicate(timeout=300)
        assert process.returncode == 0
        return out

    results = {said(p) for p in [start("cold"), start("cold"), start("cold")]}
    assert results == {said(start("warm"))} and len(results) == 1
