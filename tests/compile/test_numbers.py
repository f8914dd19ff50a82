"""Numbers that change between realisations: one program for all, equal results, and what stays."""
from __future__ import annotations

import numpy as np
import pytest

from muladd import Tensor, config
from muladd.compile import numbers, pipeline
from muladd.tensor import known


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    """Nothing was compiled before, and it is forgotten afterwards."""
    for place in ((numbers, "_forms"), (pipeline, "_programs"), (known, "_programs")):
        monkeypatch.setattr(*place, {})


def programs_of(function, values):
    """(results, programs made) of a function of a tensor and a number, for several numbers."""
    x = Tensor(np.linspace(-3, 3, 100, dtype=np.float32)).realize()
    before = compiled()
    results = [function(x, v).numpy() for v in values]
    return results, compiled() - before


def compiled() -> int:
    """How many graphs were, not counting the orders of inputs that share a program."""
    return len({id(program.actions) for program in pipeline._programs.values()})


CHANGING = {
    "a factor": lambda x, v: x * v,
    "a term behind functions": lambda x, v: (x * 3.7).sigmoid() - v,
    "two numbers": lambda x, v: (x * v + 1.7).clamp(-v, v + 0.3).sum(),
    "one of two": lambda x, v: (x + 1.5) * 0.3 + (x > v).where(v, 2.5),
}


@pytest.mark.parametrize("profile", ["fast", "exact"])
@pytest.mark.parametrize("name", CHANGING)
def test_numbers_that_change_share_a_program_and_give_the_same_bits(name, profile, monkeypatch):
    values = [1.001 + 0.01 * k for k in range(8)]
    with config.context(PROFILE=profile):
        shared, made = programs_of(CHANGING[name], values)
        assert made == 2, "the first as it stands, one for all others"
        monkeypatch.setattr(pipeline, "lifted", lambda graph, inputs: (graph, []))
        monkeypatch.setattr(known, "_programs", {})
        alone, made = programs_of(CHANGING[name], values)
        assert made == len(values) - 1
    np.testing.assert_array_equal(shared, alone)


@pytest.mark.parametrize("function, values", [
    (lambda x, v: x * v, [0.0, 1.0, 2.0, -1.0, -2.0, 0.5, float("inf")]),
    (lambda x, v: x / v, [3.0, 5.0, 7.0]),
    (lambda x, v: x.int() * v, [3, 5, 7]),
    (lambda x, v: x[:v] + 1, [3, 5, 7]),
], ids=["looked at by rules", "divisors", "integers", "sizes"])  # fmt: skip
def test_other_numbers_stay_constants(function, values):
    assert programs_of(function, values)[1] == len(values)
    assert not any(form.differing for form in numbers._forms.values())


def test_a_number_that_is_the_same_each_time_stays_a_constant():
    assert programs_of(lambda x, v: x * 1.25 + v, [0.1, 0.2, 0.3])[1] == 2
    (form,) = numbers._forms.values()
    assert len(form.first) == 2 and len(form.differing) == 1
