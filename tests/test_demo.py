"""The demonstration, as a newcomer runs it; and the examples, made short."""
from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import muladd
from muladd import data, demo
from muladd.formats import safetensors
from muladd.tensor import Tensor

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.mark.slow
def test_the_demonstration_learns(tmp_path, capsys):
    """Two of ten passes are enough to see that it learns and ends as it should."""
    path = tmp_path / "weights.safetensors"
    result = demo.run(path, epochs=2, seed=1)
    out = capsys.readouterr().out
    assert result["accuracy"] > 0.9
    assert "images/s" in out and "test accuracy" in out and str(path) in out
    model = demo.DigitNet()
    model.load_state_dict(safetensors.load(path))
    digits = data.digits()
    assert demo.test_accuracy(model, digits) == result["accuracy"]


def test_batches_cover_the_digits_once():
    digits = data.digits()
    labels = [y.numpy() for _, y in demo.batches(digits, 100, np.random.default_rng(0))]
    assert len(labels) == 42
    counts = np.bincount(np.concatenate(labels))
    assert (counts == np.bincount(digits.train_labels)).all()


def test_progress_is_a_line_per_tenth_where_nobody_watches():
    out = io.StringIO()
    bar = demo.Progress(40, out)
    for _ in range(40):
        bar.advance(Tensor(0.5), Tensor(8), 10)
    lines = out.getvalue().splitlines()
    assert len(lines) == 10
    assert "loss 0.500" in lines[-1] and "accuracy 80.0%" in lines[-1] and "40/40" in lines[-1]


ARGUMENTS = {
    "digits.py": ["--epochs", "1"],
    "gpt.py": ["--steps", "8", "--width", "32", "--layers", "1", "--heads", "2", "--time", "16",
               "--batch", "4", "--write", "10"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("*.py")))
def test_example_runs(name):
    line = [sys.executable, str(EXAMPLES / name), *ARGUMENTS.get(name, [])]
    here = {**os.environ, "PYTHONPATH": str(Path(muladd.__file__).parent.parent)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=300, env=here)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()
