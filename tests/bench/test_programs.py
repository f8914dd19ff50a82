"""Whole programs of `muladd bench`, small, beside the peers that are installed: that they agree."""
from __future__ import annotations

import math

import pytest

from muladd.bench import inference, models, processes
from muladd.bench.case import US
from muladd.bench.peers import installed


def beside(peers, name: str) -> str:
    """The peer's name, or a skipped test that says why it is not here."""
    if name not in peers.names:
        pytest.skip(peers.absent[name])
    return name


@pytest.mark.slow
def test_small_training_steps_agree_with_the_peers(peers):
    contest = models.gpt(peers, layers=1, width=32, heads=2, length=16)
    assert contest.difference is not None and contest.difference < 1e-3
    assert {US, beside(peers, "torch"), beside(peers, "jax")} == set(contest.contenders)


@pytest.mark.slow
def test_small_mixed_steps_agree_with_the_peers(peers, monkeypatch):
    monkeypatch.setattr(models, "_PATIENCE", math.inf)
    contest = models.mixed_gpt(peers, layers=1, width=32, heads=2, length=16)
    assert contest.difference is not None and contest.difference < 1e-2
    assert set(contest.contenders) == {US, beside(peers, "torch"), "torch autocast"}


@pytest.mark.slow
def test_a_peer_without_fast_bfloat16_is_not_waited_for(peers, monkeypatch):
    monkeypatch.setattr(models, "_PATIENCE", 0)
    contest = models.mixed_gpt(peers, layers=1, width=32, heads=2, length=16)
    assert "times those in float32" in contest.absent["torch autocast"]


@pytest.mark.slow
def test_what_torch_compiles_agrees(peers):
    compiled = installed(["torch.compile"], 1)
    name = beside(compiled, "torch.compile")
    assert name in models.gpt(compiled, layers=1, width=32, heads=2, length=16).contenders
    assert name in inference.mlp(compiled).contenders


def test_a_graph_run_again_agrees_with_the_peer(peers):
    assert models.again(peers, size=8).difference is not None


def test_a_small_network_called_agrees_with_the_peers(peers):
    contest = inference.mlp(peers)
    assert contest.difference is not None and contest.difference < 1e-4
    assert {US, beside(peers, "torch"), beside(peers, "jax")} == set(contest.contenders)


@pytest.mark.parametrize("case", list(models.exact_cases())[:1], ids=lambda c: c.name)
def test_the_exact_profile_stands_beside_the_fast_one(case, peers):
    assert set(case.prepare(peers).contenders) == {US, "exact"}


def test_a_small_residual_network_agrees_with_the_peer(peers):
    contest = inference.resnet(peers, blocks=(1, 2), width=8, size=32)
    assert beside(peers, "onnxruntime") in contest.contenders
    assert contest.difference is not None and contest.difference < 1e-4 and contest.flops > 1e6


@pytest.mark.parametrize("peer", ["torch", "onnxruntime"])
def test_a_small_encoder_agrees_with_the_peer(peers, peer):
    contest = inference.bert(peers, layers=2, width=16, heads=2, time=6)
    assert beside(peers, peer) in contest.contenders
    assert contest.difference is not None and contest.difference < 1e-4


@pytest.mark.slow
def test_compiling_is_measured_in_fresh_processes():
    everybody = installed(["jax"], 1)  # torch.compile goes the same way, for a minute
    cold = processes.compiling_cold(everybody, sizes=(1, 32, 2)).seconds
    assert set(cold) == {US, *everybody.names} and all(s > 0 for s in cold.values())
    warm = processes.compiling_again(everybody, sizes=(1, 32, 2)).seconds
    assert 0 < warm[US] < cold[US]
