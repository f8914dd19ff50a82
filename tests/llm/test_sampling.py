"""Probabilities that tokens are drawn with are those of transformers' logits processors."""
from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from muladd import Tensor
from muladd.llm.sampling import Sampler, Sampling, Weights, penalized, weights

SETTINGS = [
    {}, {"temperature": 0.3}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 40}, {"top_k": 5000},
    {"top_p": 0.05}, {"top_p": 0.9}, {"top_p": 0.9999}, {"min_p": 0.001}, {"min_p": 0.3},
    {"repetition_penalty": 1.7}, {"repetition_penalty": 0.6},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.2},
]  # fmt: skip


def theirs(logits, before, s):
    """transformers' own steps, in the order in which `generate` takes them."""
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    steps = [process.RepetitionPenaltyLogitsProcessor(s.repetition_penalty),
             process.TemperatureLogitsWarper(s.temperature)]  # fmt: skip
    steps += [process.TopKLogitsWarper(s.top_k)] if s.top_k else []
    steps += [process.TopPLogitsWarper(s.top_p)] if s.top_p < 1 else []
    steps += [process.MinPLogitsWarper(s.min_p)] if s.min_p else []
    scores, ids = torch.tensor(logits, dtype=torch.float64)[None], torch.tensor([before])
    for step in steps:
        scores = step(ids, scores)
    return scores[0].softmax(-1).numpy()


@pytest.mark.parametrize("given", SETTINGS, ids=str)
@pytest.mark.parametrize("size, spread", [(50, 1.0), (3000, 3.0), (3000, 0.1)])
def test_probabilities_are_those_of_transformers(given, size, spread):
    chance = np.random.default_rng(size)
    logits = (chance.standard_normal(size) * spread).astype(np.float32)
    before = chance.integers(0, size, 30).tolist()
    settings = Sampling(**{"temperature": 1.0, **given})
    token = Sampler(settings).choose(logits, before)
    if settings.repetition_penalty != 1.0:
        logits = penalized(logits, before, settings.repetition_penalty)
    wanted = theirs(logits, before, replace(settings, repetition_penalty=1.0))
    found = Sampler(settings).probabilities(logits)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-12)
    assert wanted[token] > 0


@pytest.mark.parametrize("given", [{}, {"top_p": 0.9}, {"top_k": 40}, {"min_p": 0.01}], ids=str)
@pytest.mark.parametrize("size", [3, 256, 257, 3000])
def test_ids_are_drawn_as_often_as_they_are_likely(given, size):
    logits = np.random.default_rng(size).standard_normal(size).astype(np.float32)
    sampler = Sampler(Sampling(temperature=1.0, **given))
    points = iter((np.arange(4_000) + 0.5) / 4_000)  # all in turn: counts must be right to 1
    sampler._random = SimpleNamespace(random=lambda: next(points))
    counts = np.bincount([sampler.choose(logits, []) for _ in range(4_000)], minlength=size)
    np.testing.assert_allclose(counts, sampler.probabilities(logits) * 4_000, atol=1.5)


def test_only_what_is_allowed_is_chosen():
    logits = np.array([5.0, 1.0, 2.0, 0.0], np.float32)
    allowed = np.array([False, True, True, False])
    assert Sampler(Sampling()).choose(logits, [], allowed) == 2
    for how in ({}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.1}, {"repetition_penalty": 1.5}):
        drawn = [Sampler(Sampling(temperature=3.0, seed=s, **how)).choose(logits, [1, 2], allowed)
                 for s in range(20)]  # fmt: skip
        assert set(drawn) == {1, 2}


@pytest.mark.parametrize("size", [96, 256, 1000])
@pytest.mark.parametrize("given", [{}, {"top_k": 7}, {"top_p": 0.8}, {"min_p": 0.1}])
def test_weights_of_many_rows_choose_what_each_row_chooses(rng, size, given):
    logits = rng.standard_normal((50, size)).astype(np.float32) * 3
    logits[0, :] = 2.0
    warmth = np.linspace(0.2, 2.0, 50, dtype=np.float32)
    each, sums, low, high = (t.numpy() for t in weights(Tensor(logits), Tensor(warmth)))
    np.testing.assert_array_equal(low, logits.min(-1))
    np.testing.assert_array_equal(high, logits.max(-1))
    assert each.shape == logits.shape
    for i, t in enumerate(warmth.tolist()):
        alone, beside = (Sampler(Sampling(temperature=t, seed=i, **given)) for _ in range(2))
        known = Weights(each[i], sums[i].cumsum(dtype=np.float64), low[i], high[i])
        assert alone.choose(logits[i], []) == beside.choose(logits[i], [], None, known)
