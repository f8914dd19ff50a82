"""Probabilities that tokens are drawn with are those of transformers' logits processors."""
from __future__ import annotations

import numpy as np
import pytest

from muladd.llm.sampling import Sampler, Sampling

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
    seen = []

    class Watched(Sampler):
        def probabilities(self, scores):
            seen.append(super().probabilities(scores))
            return seen[-1]

    token = Watched(settings).choose(logits, before)
    wanted = theirs(logits, before, settings)
    np.testing.assert_allclose(seen[0], wanted, rtol=1e-5, atol=1e-12)
    assert wanted[token] > 0


def test_only_what_is_allowed_is_chosen():
    logits = np.array([5.0, 1.0, 2.0, 0.0], np.float32)
    allowed = np.array([False, True, True, False])
    assert Sampler(Sampling()).choose(logits, [], allowed) == 2
    for how in ({}, {"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.1}, {"repetition_penalty": 1.5}):
        drawn = [Sampler(Sampling(temperature=3.0, seed=s, **how)).choose(logits, [1, 2], allowed)
                 for s in range(20)]  # fmt: skip
        assert set(drawn) == {1, 2}
