"""`muladd bench` with tiny cases: what it compares, prints, writes, samples; no speeds."""
from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from muladd import device
from muladd.bench import command, measure, scaling, table
from muladd.bench import peers as bench_peers
from muladd.bench.case import US, BenchmarkError, Case, Contest, Given, Target, compare, kernel
from muladd.bench.cases import MEANS, all_cases, chosen
from muladd.bench.measure import Effort, alternate
from muladd.bench.peers import NAMES, Peers, installed
from muladd.bench.worst import Gap, gaps, worst_text
from muladd.compile.roofline import Peaks, peaks
from muladd.device.machine import usable_cores
from muladd.errors import FormatError

CEILINGS = Peaks(flops=1e11, bandwidth=1e10)
SHORT = Effort(repeat=2, seconds=0.5, gap=0.0)
TINY = [
    kernel("product", lambda f, a, b: a @ b, (8, 12), (12, 16)),
    kernel("softmax", lambda f, x: f.softmax(x, -1), (4, 33), recycled_target=Target(1.0)),
    kernel("layernorm", lambda f, x: f.layer_norm(x, (40,)), (3, 40)),
    kernel("rmsnorm", lambda f, x: f.rms_norm(x, (40,)), (3, 40)),
    kernel("attention", lambda f, q, k, v: f.scaled_dot_product_attention(q, k, v, is_causal=True),
           (1, 2, 9, 4), (1, 2, 9, 4), (1, 2, 9, 4), backward=True),
    kernel("conv", lambda f, x, w: f.conv2d(x, w, stride=2, padding=1, groups=2), (2, 4, 9, 9),
           (6, 2, 3, 3)),
    kernel("embedding", lambda f, i, w: f.embedding(i, w), Given((5,), high=11), (11, 8),
           backward=True),
    kernel("bfloat16", lambda f, a, b: a @ b, Given((8, 8), "bfloat16"), Given((8, 8), "bfloat16"),
           tolerance=2e-2),
    kernel("int8", lambda f, a, b: a.int() @ b.int(), Given((32, 32), "int8"),
           Given((32, 32), "int8"), theirs=lambda f, a, b: f._int_mm(a, b), tolerance=0.0),
    kernel("sort", lambda f, x: x.sort(-1)[0], (4,)),
    kernel("cumsum", lambda f, x: x.cumsum(-1), (64,)),
    kernel("column means", lambda f, x: x.mean(0), (6, 7)),
]  # fmt: skip


@pytest.mark.parametrize("case", TINY, ids=lambda c: c.name)
def test_a_case_gives_a_row_with_its_peer(case, peers):
    row = command.measured(case, peers, SHORT, CEILINGS, 60)
    assert not row.failure and row.difference is not None
    assert row.seconds is not None and set(row.seconds) == {US, "torch"}
    assert row.ratio == row.seconds["torch"] / row.seconds[US]


def test_a_case_with_recycled_memory_is_a_row_of_its_own(peers):
    case = next(c for c in TINY if c.recycled_target != Target())
    row = command.measured(case, peers, SHORT, CEILINGS, 60, recycled=True)
    assert row.name == f"{case.name} (recycled)" and row.target == case.recycled_target
    assert not row.failure and row.ratio is not None


def test_without_peers_there_is_no_ratio():
    row = command.measured(TINY[0], installed(["none"], 1), SHORT, CEILINGS, 60)
    assert row.ratio is None and row.peer is None and row.roofline is not None


def test_peers_may_have_targets_of_their_own(peers):
    targets = {"torch": Target(1e-9), "someone else": Target(1.0)}
    case = replace(TINY[0], target=Target(), beside=targets)
    peers.absent["someone else"] = "not installed"
    row = command.measured(case, peers, SHORT, CEILINGS, 60)
    assert [(c[3], c[8]) for c in row.cells()] == [
        ("torch", "met"), ("someone else", "not installed"),
    ]  # fmt: skip
    assert row.verdict == "met" and ": 1 met, 0 must met, 0 missed" in table.summary([row])
    assert row.as_json()["beside"]["torch"]["verdict"] == "met"
    limited = replace(row, target=Target(seconds=1e-12))
    assert [(c[3], c[8]) for c in limited.cells()][0] == ("", "missed")
    assert limited.verdict == "missed"


def test_peers_that_are_not_here_say_so():
    missing = Peers((), 1, absent={"torch": "torch not installed"})
    case = replace(TINY[0], target=Target(), beside={"torch": Target(1.0)})
    row = command.measured(case, missing, SHORT, CEILINGS, 60)
    assert [c[8] for c in row.cells()] == ["torch not installed"] and row.verdict == ""
    assert set(installed(None, 1).names) | set(installed(None, 1).absent) == set(NAMES)


@pytest.mark.skipif(usable_cores() < 2, reason="needs two cores")
def test_a_second_thread_is_measured_beside_the_first():
    cpu = device.get("CPU")
    given = iter([TINY[0], TINY[1]])
    (case,) = scaling.threaded(given, ("softmax",))
    contest = case.prepare(installed(["none"], 1))
    used = []
    for name, call in contest.contenders.items():
        call()
        used.append((name, cpu.pool.threads))
    assert used == [("1 thread", 1), (US, 2)]
    row = command.measured(case, installed(["none"], 1), SHORT, CEILINGS, 60)
    assert row.peer == "1 thread" and row.ratio is not None and row.group == "threads"


def test_one_core_has_no_second_thread(monkeypatch):
    monkeypatch.setattr(scaling, "usable_cores", lambda: 1)
    (case,) = scaling.threaded(iter([TINY[0]]), ("product",))
    row = command.measured(case, installed(["none"], 1), SHORT, CEILINGS, 60)
    assert row.failure == "BenchmarkError: bench: this process may use one core only"


def test_work_is_that_of_the_graph(peers):
    contest = TINY[0].prepare(peers)
    assert contest.flops == 2 * 8 * 12 * 16
    assert contest.nbytes == 4 * (8 * 12 + 12 * 16 + 8 * 16)


def test_a_case_that_raises_is_a_row(peers):
    def refuse(peers: Peers) -> Contest:
        raise ValueError("no such thing\nand more")

    row = command.measured(Case("wrong", "kernels", refuse), peers, SHORT, CEILINGS, 60)
    assert row.failure == "ValueError: no such thing" and row.verdict == "failed"
    assert "failed: ValueError: no such thing" in table.text([row])


def test_a_case_that_takes_too_long_is_a_row(peers):
    slow = Case("slow", "kernels", lambda peers: time.sleep(20))  # type: ignore[arg-type]
    row = command.measured(slow, peers, SHORT, CEILINGS, 1)
    assert row.failure == "TimeoutError: took longer than 1 s"


def test_outputs_that_differ_are_refused():
    a = np.arange(4.0)
    assert compare([a], [a + 1e-6], 1e-5) > 0
    for wrong in (a + 0.1, a[:2], a * np.nan):
        with pytest.raises(BenchmarkError):
            compare([wrong], [a], 1e-5)


# --- sampling ------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when somebody works or sleeps."""

    def __init__(self) -> None:
        self.now, self.told = 0.0, []

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float):
        def call() -> None:
            self.now += seconds
            self.told.append(name)

        return call

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.told.append("pause")


def test_samples_alternate_after_a_pause_and_two_warm_up_calls():
    clock = Clock()
    calls = {"a": clock.work("a", 0.01), "b": clock.work("b", 0.02)}
    alternate(calls, Effort(repeat=2, seconds=100.0), clock, clock.sleep)
    turn = ["pause", "a", "a", "a", "pause", "b", "b", "b"]
    assert clock.told == ["a", "a", "b", "b", *turn, *turn]


def test_long_calls_are_warmed_up_once():
    clock = Clock()
    calls = {"a": clock.work("a", 1.0), "b": clock.work("b", 2.0)}
    timings = alternate(calls, Effort(repeat=2, seconds=100.0), clock, clock.sleep)
    turn = ["pause", "a", "a", "pause", "b", "b"]
    assert clock.told == ["a", "a", "b", "b", *turn, *turn]
    assert timings["a"].median == pytest.approx(1.0) and timings["b"].least == pytest.approx(2.0)


def test_short_calls_are_timed_in_batches_and_long_cases_end_early():
    clock = Clock()
    alternate({"a": clock.work("a", 1e-4)}, Effort(repeat=1), clock, clock.sleep)
    batches = 1 + 4 + 16 + 64  # until one lasts long enough to tell what a call takes
    assert clock.told.count("a") == 1 + batches + 2 + 100
    for seconds, samples in ((0.4, 3), (5.0, 1)):
        calls = {"a": clock.work("a", seconds)}
        timings = alternate(calls, Effort(repeat=50, seconds=1.0), clock, clock.sleep)
        assert timings["a"].samples == samples


def test_neighbours_take_a_share_of_the_cores():
    for _ in range(20):  # within a tick of the clock too, where the parts may seem more than whole
        share = measure.Neighbours().share()
        assert share is None or 0 <= share <= 1


def test_memory_of_the_peer_can_be_recycled():
    with measure.recycled_memory() as done:
        assert done in (True, False)


def test_the_ceilings_are_measured_once():
    found = peaks(1, repeat=2)
    assert found.flops > 1e8 and found.bandwidth > 1e7
    assert peaks(1) is found
    assert found.seconds(found.flops, 2 * found.bandwidth) == pytest.approx(2.0)


# --- the table -----------------------------------------------------------------------------------


def test_targets_judge():
    assert Target(1.0, must=0.9).verdict(1.0, 0.95) == "must met"
    assert Target(1.0, must=0.9).verdict(1.0, 0.85) == "missed"
    assert Target(1.0).verdict(1.0, 1.0) == "met" and Target(1.0).verdict(1.0, None) == ""
    assert Target(seconds=2.0).verdict(2.5, None) == "missed"
    assert Target(1.0, must=0.9).text() == ">= 0.9, aim 1"
    assert Target(seconds=5e-6).text() == "<= 5 us"


def test_every_case_has_a_name_of_its_own_and_can_be_chosen():
    names = [c.name for c in all_cases()]
    assert len(set(names)) == len(names)
    assert {c.group for c in all_cases()} >= {"foundation", "kernels", "models", "exact", "graph"}
    assert [c.name for c in chosen(["matmul 512"])] == ["matmul 512"]
    assert all(c.group == "exact" for c in chosen(["exact"]))
    every = [c.name for c in chosen(["all"])]
    assert every == [c.name for c in chosen([])] == names and not chosen(["no such case"])


def test_the_mean_of_rows_has_the_mean_of_their_ratios():
    rows = [table.Row(n, "kernels", seconds={US: a, "torch": b})
            for n, a, b in (("x", 1.0, 2.0), ("y", 8.0, 4.0))]  # fmt: skip
    mean = table.mean_row(rows, "both", "kernels", ["x", "y"], Target(1.0))
    assert mean is not None and mean.ratio == pytest.approx(1.0) and mean.peer == "torch"
    assert table.mean_row(rows, "three", "kernels", ["x", "y", "z"], Target()) is None
    alone = [*rows, table.Row("z", "kernels", seconds={US: 1.0})]
    assert table.mean_row(alone, "three", "kernels", ["x", "y", "z"], Target()) is None
    assert {n for _, _, of, _ in MEANS for n in of} <= {c.name for c in all_cases()}


def test_the_page_keeps_its_words(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- figures -->\nold\n<!-- end of figures -->\nafter\n")
    table.write(page, "new")
    assert page.read_text() == (
        "before\n<!-- figures -->\nnew\n<!-- end of figures -->\nafter\n"
    )
    page.write_text("no marks")
    with pytest.raises(FormatError, match="figures"):
        table.write(page, "new")


def test_the_command_lists_measures_and_writes(tmp_path, capsys):
    assert command.main(["--list", "matmul"]) == 0
    assert "matmul 512" in capsys.readouterr().out
    assert command.main(["no such case"]) == 2
    page = tmp_path / "page.md"
    words = ["rewrite a graph of 10^3 nodes", "--quick", "--json", "--threads", "1", "--write",
             str(page), "--worst"]  # fmt: skip
    assert command.main(words) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(found) >= {"machine", "versions", "date", "cases"}
    assert found["cases"]["rewrite a graph of 10^3 nodes"]["muladd"] > 0
    assert "| rewrite a graph of 10^3 nodes |" in page.read_text()


@pytest.mark.parametrize("words", [
    "--seconds -1", "--seconds nan", "--repeat 0", "--limit 0", "--threads -1", "--threads 999",
    "--write no/such/folder.md", "--write .",
])  # fmt: skip
def test_numbers_and_pages_that_cannot_be_are_refused_before_the_work(words, capsys):
    with pytest.raises(SystemExit) as left:
        command.main(["matmul 128", *words.split()])
    assert left.value.code == 2 and words.split()[0] in capsys.readouterr().err


def test_what_is_not_there_is_named(tmp_path, capsys, monkeypatch):
    for names, told in ((["matmul 128", "nosuch"], "'nosuch'"), ([""], "''")):
        assert command.main([*names, "--quick"]) == 2 and told in capsys.readouterr().err
    monkeypatch.setitem(bench_peers.NEEDS, "jax", ("no_such_module",))
    assert command.main(["matmul 128", "--peer", "jax"]) == 2
    assert "no_such_module not installed" in capsys.readouterr().err
    page = tmp_path / "page.md"
    page.write_text("# mine\n")
    with pytest.raises(FormatError, match="figures"):
        command.main(["matmul 128", "--write", str(page)])
    assert page.read_text() == "# mine\n"


def test_a_case_that_fails_is_told_by_the_exit_status(monkeypatch, capsys):
    monkeypatch.setattr(command, "alternate", lambda *_: 1 / 0)
    assert command.main(["matmul 128", "--quick", "--peer", "none"]) == 1
    assert "1 failed" in capsys.readouterr().out
    assert command.main(["matmul 128", "--list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["matmul 128"]["target"] == ">= 1"


def test_kernels_that_are_compiled_at_the_second_call_are_listed_too(capsys):
    assert command.main(["mlp 10x16", "--quick", "--peer", "none", "--worst"]) == 0
    listed = capsys.readouterr().out.partition("gap  predicted")[2]
    assert "(mlp 10x16 batch 1, jit)" in listed


def test_kernels_far_from_the_roofline_come_first(peers):
    found = gaps("product", TINY[0].prepare(peers), CEILINGS)
    assert found and all(g.taken > 0 for g in found)
    text = worst_text([Gap("a", "near", 1.0, 1.1), Gap("b", "far", 1.0, 9.0)])
    assert text.index("far") < text.index("near")
