"""Searched schedules: found where there are any, never slower, and harmless whatever happens."""
from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
import pytest

from muladd import Tensor, cache, config
from muladd import device as devices
from muladd.compile import backends, compile_graph, kernels, parameters, pipeline, tuned
from muladd.compile import search as searching
from muladd.compile.search import process, search, worker
from muladd.errors import FormatError
from muladd.ir import dtype
from muladd.loop.plan import plain
from muladd.schedule.primitives import apply

CPU = devices.get("CPU")


@pytest.fixture(autouse=True)
def own_cache(tmp_path):
    with config.context(CACHE_DIR=str(tmp_path), CHECK=0):
        pipeline.forget()
        yield
    pipeline.forget()


def graph(width: int = 96):
    """A softmax of 40 rows, and its storage."""
    x = Tensor(np.linspace(-1, 1, 40 * width, dtype=np.float32).reshape(40, width)).realize()
    return parameters((x.softmax(-1).node,))


def compiled(width: int = 96):
    return compile_graph(graph(width)[0], "CPU").kernels()[-1]


def results(width: int = 96) -> np.ndarray:
    outputs, storages = graph(width)
    (found,) = compile_graph(outputs, "CPU").run([s.buffer for s in storages])
    values = np.empty(40 * width, np.float32)
    CPU.copy_out(found, values)
    return values


def tell(kernel, schedule, **changes) -> tuned.Tuned:
    """Keep a schedule for a kernel as if it had been searched."""
    usual = backends.of(CPU).schedule(kernel)
    found = tuned.Tuned({}, tuned.place_of(CPU), usual.lines, schedule, 0.5, 1)
    found = dataclasses.replace(found, **changes)
    tuned.keep(kernel.key(), found)
    pipeline.forget()
    return found


# --- what is kept is used ------------------------------------------------------------------------

SCALAR = ("outer p0", "parallel 1")


def test_a_tuned_schedule_is_used_from_the_next_compilation_on():
    before, kernel = results(), compiled().kernel
    tell(kernel, SCALAR)
    assert compiled().plan.lines == SCALAR and compiled().tuned is not None
    np.testing.assert_allclose(results(), before, rtol=1e-6)
    tell(kernel, None)
    assert compiled().plan.lines != SCALAR


def test_a_program_from_the_disk_has_the_schedules_of_today(monkeypatch):
    monkeypatch.setattr(pipeline.kept, "_LEAST", 0)
    kernel = compiled().kernel
    tell(kernel, SCALAR)
    assert compiled().plan.lines == SCALAR  # the record's objects are not there: compiled anew
    pipeline.forget()
    anew = []
    monkeypatch.setattr(pipeline, "_compile", lambda *given: anew.append(given))
    assert compiled().tuned.schedule == SCALAR and not anew  # from the record
    pipeline.forget()
    with config.context(BEAM=2), pytest.raises(AttributeError):  # wants a search: no record will do
        compiled()
    assert anew


@pytest.mark.parametrize("schedule, changes", [
    (("at s0 0",), {}), (("rm -rf",), {}), (("split p0 0",), {}),
    (SCALAR, {"baseline": ("split p0 3",)}), (SCALAR, {"where": "another machine"}),
], ids=["unsafe", "no directive", "no split", "stale", "elsewhere"])  # fmt: skip
def test_what_does_not_hold_gives_way_to_the_heuristic(schedule, changes):
    kernel, usual, before = compiled().kernel, compiled().plan.lines, results()
    tell(kernel, schedule, **changes)
    assert compiled().plan.lines == usual
    assert np.array_equal(results(), before)


@pytest.mark.parametrize("blob", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"kernel": 1}'])
def test_a_damaged_record_is_none(blob):
    kernel = compiled().kernel
    cache.cache().put(tuned.KIND, tuned.key_of(kernel.key(), tuned.place_of(CPU)), blob)
    assert tuned.find([kernel.key()], CPU) == {}


@pytest.mark.parametrize("change", [
    {"schedule": "split p0 2"}, {"schedule": [1]}, {"schedule": [""]}, {"schedule": ["x" * 501]},
    {"schedule": ["x"] * 501}, {"ratio": 2}, {"ratio": "fast"}, {"width": None}, {"more": 1},
])  # fmt: skip
def test_a_record_of_another_form_is_refused(change):
    good = tell(compiled().kernel, SCALAR)
    given = json.loads(json.dumps(dataclasses.asdict(good)))
    assert tuned.parse(given) == good
    with pytest.raises(FormatError, match="tuned schedule"):
        tuned.parse({**given, **change})


# --- searching -----------------------------------------------------------------------------------


def test_a_search_beats_a_handicapped_heuristic(monkeypatch):
    """Without vectors, which a search finds; results stay what they are."""
    before = results(512)
    none = lambda self, kernel, machine=None: plain(kernel)  # noqa: E731
    monkeypatch.setattr(backends.Backend, "schedule", none)
    pipeline.forget()
    cache.cache().clear()
    kernel = compiled(512).kernel
    assert not apply(kernel, ()).vector
    found = search(kernel, CPU, 20, 1)
    assert found.schedule is not None and found.ratio < 0.7
    tuned.keep(kernel.key(), found)
    pipeline.forget()
    assert compiled(512).plan.vector
    np.testing.assert_allclose(results(512), before, rtol=1e-5)


def test_BEAM_searches_once(monkeypatch):
    asked = []

    def found(kernel, device, seconds, width):
        asked.append(width)
        return tuned.Tuned({}, tuned.place_of(device), (), None, 1.0, width)

    monkeypatch.setattr(searching, "search", found)
    for width in (2, 2, 1, 3):
        with config.context(BEAM=width):
            pipeline.forget()
            compiled()
    assert asked == [2, 3]


class Told(process.Worker):
    """A worker whose answers are told: by the number of turns, seconds beside the baseline's 1."""

    def __init__(self, **seconds):
        super().__init__(CPU)
        self.seconds, self.turns = seconds, []

    def begin(self, kernel, baseline):
        return 1.0

    def pairs(self, lines, turns, limit):
        self.turns.append(turns)
        return [[s, 1.0] for s in self.seconds[f"of{turns}"]]


@pytest.mark.parametrize("seconds, ratio", [
    ({"of5": [0.98] * 5}, 1.0),  # within the margin
    ({"of5": [0.5] * 5, "of15": [1.0] * 15}, 1.0),  # the first measurement was luck
    ({"of5": [0.5] * 5, "of15": [0.5] + [1.1] * 14}, 1.0),  # one sample is no proof
    ({"of5": [0.5] * 5, "of15": [0.9] * 15}, 0.9),
])  # fmt: skip
def test_only_what_is_faster_twice_is_kept(seconds, ratio):
    found = search(compiled().kernel, CPU, 60, 1, Told(**seconds))
    assert found.ratio == ratio and (found.schedule is None) == (ratio == 1)


def test_a_search_ends_when_its_time_is_over():
    told = Told(of5=[1.0] * 5)
    search(compiled().kernel, CPU, 3, 4, told, clock=lambda: float(len(told.turns)))
    assert told.turns == [5] * 3


def test_kernels_of_symbolic_sizes_and_scatters_are_left_alone():
    table = Tensor.zeros(50, 4).realize()
    table.requires_grad_()
    table[Tensor([1, 2, 2])].sum().backward()
    table.grad.realize()
    scatters = [k.kernel for p in pipeline.compiled() for k in p.kernels()
                if any(s.scatter for s in k.kernel.stages)]  # fmt: skip
    assert scatters and not any(searching.can_search(k, CPU) for k in scatters)
    assert search(scatters[0], CPU, 5, 1).schedule is None


# --- the process ---------------------------------------------------------------------------------

FAKE = """
import json, os, sys, time
for line in sys.stdin:
    asked = json.loads(line)
    if "kernel" in asked:
        print(json.dumps({"seconds": 1.0}), flush=True)
    elif asked["try"] == ["crash"]:
        os.abort()
    elif asked["try"] == ["hang"]:
        time.sleep(60)
    elif asked["try"] == ["babble"]:
        print("no JSON", flush=True)
    else:
        print(json.dumps({"pairs": [[0.5, 1.0]]}), flush=True)
"""


def test_a_crash_a_hang_and_nonsense_are_one_lost_candidate_each():
    with process.Worker(CPU, (sys.executable, "-c", FAKE)) as one:
        assert one.begin({}, []) == 1.0
        for lost, lines in enumerate((["crash"], ["hang"], ["babble"])):
            assert one.pairs(lines, 5, 0.5) == [] and one.lost == lost + 1
            assert one.pairs(["good"], 5, 5) == [[0.5, 1.0]]
    assert one._process is None


def test_a_worker_refuses_what_is_no_schedule_and_goes_on():
    kernel = compiled().kernel
    with process.Worker(CPU) as one:
        assert one.begin(searching.codec.encode(kernel), compiled().plan.lines) > 0
        assert one.pairs(("split p0 0",), 2, 20) == [] and one.lost == 0
        assert len(one.pairs(SCALAR, 2, 20)) == 2


@pytest.mark.parametrize("d", [dtype.float32, dtype.bfloat16, dtype.int32, dtype.bool_],
                         ids=lambda d: d.name)  # fmt: skip
def test_results_are_compared_as_closely_as_they_can_be(d):
    stored = worker.filling(np.random.default_rng(0), d, 1000)
    other = stored.copy()
    assert stored.nbytes == 1000 * d.itemsize and worker.equal(d, stored, other, 64, True)
    other[-1] ^= 0x40  # of a float the exponent's highest bit
    for exact in (True, False):
        assert not worker.equal(d, other, stored, 64, exact)


def test_rounding_is_allowed_in_the_fast_profile_only():
    a = np.linspace(1, 2, 100, dtype=np.float32)
    a[3] = np.nan
    b = np.nextafter(a, np.float32(9))
    pair = a.view(np.uint8), b.view(np.uint8)
    assert worker.equal(dtype.float32, *pair, 64, False)
    assert not worker.equal(dtype.float32, *pair, 64, True)
    b[4] = np.inf
    assert not worker.equal(dtype.float32, *pair, 64, False)


def test_forgetting_drops_the_kernels_of_this_process():
    first = compiled()
    assert compiled() is first
    pipeline.forget()
    assert kernels._made == {} and compiled() is not first
