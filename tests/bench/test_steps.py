"""The program that builds a matrix product directive by directive."""
from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from muladd import device
from muladd.device import Machine
from muladd.schedule import heuristic
from muladd.schedule.primitives import apply

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "matmul_steps.py"


@pytest.fixture
def steps():
    spec = importlib.util.spec_from_file_location("matmul_steps", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = device.get("CPU").pool.threads
    yield module
    device.get("CPU").set_threads(threads or 1)


@pytest.mark.parametrize("kind", ["avx2", "avx512", "neon", "sve"])
def test_the_last_plan_is_the_one_that_the_compiler_chooses(steps, kind):
    kernel, _, _ = steps.product(1024)
    machine = Machine.named(kind)
    lines = tuple(line for line, _ in steps.directives(kernel, machine))
    assert apply(kernel, lines).text() == heuristic.schedule(kernel, machine).text()


def test_it_runs_and_every_plan_computes_the_product(steps, capsys, monkeypatch):
    monkeypatch.setattr(steps, "ENOUGH", 0.0)
    plan = steps.main(128, 1, plans=True)
    told = capsys.readouterr().out
    assert "(plain)" in told and "-- packing" in told and "at c0 2" in told
    assert plan.text() in told
