"""Layers that see a window only, and texts that go on where others ended."""
from __future__ import annotations

import numpy as np
import pytest
from support.families import FAMILIES, SIZES, write
from support.small_llama import small_decoder

from muladd import llm
from muladd.llm.generate import LanguageModel


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, window", [
    ("mistral", 70), ("gemma2", 65), pytest.param("gemma3", 5, marks=pytest.mark.slow),
])  # fmt: skip
def test_answers_beyond_a_window_are_those_of_transformers(name, window, tmp_path, monkeypatch):
    """A prompt of several pages, and greedy tokens one by one, with a window that ends in one."""
    import torch

    kind, more = FAMILIES[name]
    monkeypatch.setitem(SIZES, "max_position_embeddings", 256)
    monkeypatch.setitem(FAMILIES, name, (kind, {**more, "sliding_window": window}))
    theirs = write(name, tmp_path)
    ours = llm.load(tmp_path)
    ids = np.random.default_rng(1).integers(3, 64, 150).tolist()
    with torch.no_grad():
        found = theirs.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False,
                                output_logits=True, return_dict_in_generate=True,
                                eos_token_id=None)  # fmt: skip
    wanted = found.sequences[0, 150:].tolist()
    assert [p.token for p in ours.generate(ids, max_tokens=12)] == wanted
    for i in (0, 11):
        logits = found.logits[i][0].numpy()
        here = ours.next_logits([*ids, *wanted[:i]])
        np.testing.assert_allclose(here / np.abs(logits).max(), logits / np.abs(logits).max(),
                                   atol=2e-5)  # fmt: skip
    # far away is out of sight only through windows: all layers of mistral have one
    changed = ours.next_logits([ids[0] ^ 1, *ids[1:]])
    assert (np.abs(changed - ours.next_logits(ids)).max() < 1e-6) == (name == "mistral"
                                                                     and 2 * window < 150)


def test_a_turn_costs_what_is_new(tmp_path):
    decoder = small_decoder(tmp_path)
    model, steps = LanguageModel(decoder), []
    read = model._pool.read

    def counted(texts, ids, rows, **more):
        steps.append(len(ids[0]))
        return read(texts, ids, rows, **more)

    model._pool.read = counted
    chance = np.random.default_rng(2)

    def turn(ids, tokens=5):
        steps.clear()
        said = [p.token for p in model.generate(ids, max_tokens=tokens)]
        logits = model.next_logits([*ids, *said])
        fresh = LanguageModel(decoder).next_logits([*ids, *said])
        np.testing.assert_allclose(logits, fresh, rtol=1e-4, atol=1e-4)
        return [*ids, *said], sum(steps)

    first, cost = turn(chance.integers(0, 96, 100).tolist())
    assert cost == 100 + 5
    second, cost = turn([*first, *chance.integers(0, 96, 20).tolist()])
    assert cost == 20 + 5
    # another question in the second turn: what both have in common stays
    _, cost = turn([*first, *chance.integers(0, 96, 30).tolist()])
    assert cost <= 30 + 5
    _, cost = turn(second[:50])  # all of it is held, and only the last one's logits are wanted
    assert cost == 1 + 5
    model.forget()
    _, cost = turn(second[:50])
    assert cost == 50 + 5
