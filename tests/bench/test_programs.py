"""Whole programs of `muladd bench`, small, beside the peers that are installed: that they agree."""
from __future__ import annotations

import pytest

from muladd.bench import inference, models
from muladd.bench.case import US


def beside(peers, name: str) -> str:
    """The peer's name, or a skipped test that says why it is not here."""
    if name not in peers.names:
        pytest.skip(peers.absent[name])
    return name


def test_small_training_steps_agree_with_the_peer(peers):
    contest = models.gpt(peers, layers=1, width=32, heads=2, time=16)
    assert contest.difference is not None and contest.difference < 1e-2


def test_a_graph_run_again_agrees_with_the_peer(peers):
    assert models.again(peers, size=8).difference is not None


def test_a_small_network_called_agrees_with_the_peer(peers):
    assert models.mlp(peers).difference is not None


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
