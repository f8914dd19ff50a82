"""Guesses change how fast an answer comes, and nothing else."""
from __future__ import annotations

import json
import time

import numpy as np
import pytest
from support.small_llama import small_decoder, write_small

from muladd import llm
from muladd.errors import ArgumentError
from muladd.llm.constrain import json_constraint
from muladd.llm.generate import LanguageModel
from muladd.llm.sampling import Sampler, Sampling
from muladd.llm.speculate import Ahead, Lookup, Smaller
from muladd.llm.writing import Options, Writer


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    return small_decoder(tmp_path_factory.mktemp("m"))


class Fixed:
    """Guesses given tokens after the first ones, right or wrong."""

    def __init__(self, answer, first, wrong=()):
        self.answer, self.first, self.wrong = answer, first, wrong

    def guess(self, writer, count):
        done = len(writer.ids) - self.first
        return [t + (i in self.wrong) for i, t in enumerate(self.answer)][done : done + count]


def writer(ids, **sampling):
    return Writer(ids, None, 10**6, Options(Sampling(**sampling)))


def said(model, prompt, **how):
    pieces = list(model.generate(prompt, **how))
    return [p.token for p in pieces], [p.logprob for p in pieces]


def test_what_is_looked_up():
    look = Lookup(3, 2)
    assert look.guess(writer([1, 2, 3, 4, 1, 2]), 3) == [3, 4, 1]
    assert look.guess(writer([1, 2, 3, 4, 1, 2, 3]), 2) == [4, 1]
    assert look.guess(writer([1, 2, 3, 4, 1, 2, 9]), 3) == []
    assert look.guess(writer([7, 7, 7]), 4) == [7, 7, 7, 7]  # another text, of one period
    assert look.guess(writer([1]), 4) == look.guess(writer([]), 4) == []
    # the latest, and of the most tokens
    assert Lookup(3, 1).guess(writer([1, 2, 5, 1, 2, 6, 0, 1, 2]), 1) == [6]
    assert Lookup(3, 1).guess(writer([3, 1, 5, 1, 6, 3, 1]), 1) == [5]


@pytest.mark.parametrize("how", [
    {}, {"temperature": 1.0, "seed": 4}, {"temperature": 2.0, "top_k": 5, "seed": 1},
    {"repetition_penalty": 1.3, "temperature": 0.8, "top_p": 0.9, "seed": 9},
])  # fmt: skip
def test_the_same_text_with_any_guesses(decoder, how):
    prompt = [5, 6, 7, 8] * 6
    model = LanguageModel(decoder)
    wanted, chances = said(model, prompt, max_tokens=40, **how)
    other = LanguageModel(small_model(decoder))
    for draft in ("ngram", other, Lookup(2, 1), Fixed(wanted, 24), Fixed(wanted, 24, {2, 9, 10}),
                  Fixed([999] * 40, 24)):  # fmt: skip
        found, others = said(model, prompt, max_tokens=40, draft=draft, **how)
        assert found == wanted
        np.testing.assert_allclose(others, chances, atol=1e-4)


def small_model(decoder):
    """Another decoder, of which some weights differ: it guesses right at times."""
    import copy

    found = copy.copy(decoder)
    found.vectors = dict(decoder.vectors)
    name = "output_norm.weight"
    noise = np.random.default_rng(0).normal(1, 0.1, decoder.vectors[name].shape).astype(np.float32)
    found.vectors[name] = decoder.vectors[name] * noise
    return found


def test_right_guesses_save_steps(decoder):
    model = LanguageModel(decoder)
    wanted, _ = said(model, [1, 2, 3], max_tokens=24)
    steps = []
    read = model._pool.read

    def counted(texts, ids, rows, **more):
        steps.append(rows)
        return read(texts, ids, rows, **more)

    model._pool.read = counted
    model.forget()
    found, _ = said(model, [1, 2, 3], max_tokens=24, draft=Fixed(wanted, 3), draft_tokens=5)
    assert found == wanted and len(steps) <= 1 + 4 + 2
    model.forget()
    steps.clear()
    said(model, [1, 2, 3], max_tokens=24, draft=Fixed(wanted, 3, range(24)), draft_tokens=5)
    assert sum(rows > 1 for rows in steps) <= 5  # who guesses wrong is asked less and less


def test_samples_follow_the_models_distribution(decoder):
    """Two tokens out of three each: how often each pair comes, against its probability."""
    model, other = LanguageModel(decoder), LanguageModel(small_model(decoder))
    prompt, how = [3, 1, 3, 1, 3], {"temperature": 1.5, "top_k": 3}
    chances = {}
    measure = Sampler(Sampling(**how))
    first = measure.probabilities(model.next_logits(prompt))
    for a in np.flatnonzero(first):
        second = measure.probabilities(model.next_logits([*prompt, int(a)]))
        chances |= {(int(a), int(b)): first[a] * second[b] for b in np.flatnonzero(second)}
    assert len(chances) == 9
    for draft in (other, Lookup(1, 1)):
        counts = dict.fromkeys(chances, 0)
        for seed in range(250):
            pair, _ = said(model, prompt, max_tokens=2, draft=draft, seed=seed, **how)
            counts[tuple(pair)] += 1
        square = sum((counts[k] - 250 * p) ** 2 / (250 * p) for k, p in chances.items())
        assert square < 26.1  # 8 degrees of freedom: exceeded by one sampler in a thousand


def test_a_smaller_model_is_asked_with_the_same_random_numbers(decoder):
    """A draft that is the model itself guesses all of a sampled text."""
    model, twin = LanguageModel(decoder), LanguageModel(decoder)
    ahead, said = Ahead(model, Smaller(twin), 4), writer([1, 2, 3], temperature=1.0, seed=3)
    for _ in range(20):
        said.put(ahead.logits(said))
    assert ahead.guessed == 16 and ahead.right == 16


def test_the_context_ends_with_guesses_too(tmp_path):
    model = LanguageModel(small_decoder(tmp_path, room=20))
    plain = said(model, list(range(12)))[0]
    assert said(model, list(range(12)), draft=Fixed([*plain, 1, 1, 1], 12))[0] == plain
    assert len(plain) == 8


def test_misuse(decoder, tmp_path):
    model = LanguageModel(decoder)
    from muladd.llm.model import Decoder
    from muladd.llm.sources import from_gguf

    config, tensors, _ = from_gguf(write_small(tmp_path / "m.gguf", vocabulary=50))
    other = LanguageModel(Decoder(config, tensors, 64))
    for given, words in (({"draft": "magic"}, "expected 'ngram' or a model"),
                         ({"draft": other}, "another vocabulary, of 50 tokens; .* of 96"),
                         ({"draft": model}, "the model itself"),
                         ({"draft": "ngram", "draft_tokens": 0}, "draft_tokens is 0")):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            model.generate([1], **given)
    with pytest.raises(ArgumentError, match="looks for 3 to 2"):
        Lookup(2, 3)


@pytest.mark.slow
def test_the_real_model_repeats_a_list_and_json(smollm):
    model = llm.load(smollm, context=512)
    text = "apple, pear, plum, fig, cherry, grape, lemon, melon, "
    prompt = model.tokenizer.encode(text * 4)
    plain, _ = said(model, prompt, max_tokens=32)
    start = time.perf_counter()
    assert said(model, prompt, max_tokens=32, draft="ngram")[0] == plain
    assert time.perf_counter() - start < 60
    constraint = json_constraint(model.tokenizer, {"type": "array", "minItems": 3, "maxItems": 3,
                                                   "items": {"const": "an apple a day"}})
    for draft in (None, "ngram"):
        found = model.complete("A list: ", constraint=constraint, draft=draft)
        assert json.loads(found) == ["an apple a day"] * 3
