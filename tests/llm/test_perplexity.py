"""Perplexity: windows, rounding to kinds, and llama.cpp's probabilities of the same text."""
from __future__ import annotations

import json
import math

import numpy as np
import pytest
from support.llama_cpp import llama_cpp
from support.small_llama import small_decoder, write_speaking

from muladd import cli, llm
from muladd.errors import ArgumentError
from muladd.formats import gguf
from muladd.llm.generate import LanguageModel
from muladd.llm.opening import opened
from muladd.llm.perplexity import bits, measure, requantized


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return LanguageModel(small_decoder(tmp_path_factory.mktemp("m")))


IDS = np.random.default_rng(5).integers(0, 96, 150).tolist()


def log_softmax(logits):
    return logits - np.logaddexp.reduce(logits.astype(np.float64))


def wanted(model, seen, tokens):
    """Log-probabilities of IDS[i] for i in tokens, after seen(i) before it."""
    return [log_softmax(model.next_logits(IDS[seen(i) : i]))[IDS[i]] for i in tokens]


def test_each_token_is_foreseen_from_its_window(model):
    whole = measure(model, IDS, context=200)
    np.testing.assert_allclose(whole.log_likelihoods[[0, 1, 70, 148]],
                               wanted(model, lambda i: 0, [1, 2, 71, 149]), atol=1e-4)  # fmt: skip
    assert len(whole.log_likelihoods) == 149
    assert math.isclose(whole.perplexity, np.exp(-whole.log_likelihoods.mean()))
    assert 0 < whole.error < whole.perplexity
    told = []
    parts = measure(model, IDS, context=40, stride=15,
                    report=lambda *now: told.append(now))  # fmt: skip
    assert len(parts.log_likelihoods) == 149 and [t[0] for t in told] == [*range(40, 150, 15), 150]
    np.testing.assert_allclose(told[-1][2], parts.perplexity)
    # token 39 is the last of the first window, 40 the first new one of the second, from 15 on
    np.testing.assert_allclose(parts.log_likelihoods[38:41], wanted(
        model, lambda i: 0 if i < 40 else 15, [39, 40, 41]), atol=1e-4)  # fmt: skip


def test_every_window_begins_with_bos(model):
    found = measure(model, IDS, context=40, stride=39, first=7)
    assert len(found.log_likelihoods) == 150  # the first one too
    expected = [log_softmax(model.next_logits([7, *IDS[s:i]]))[IDS[i]]
                for s, i in ((0, 0), (0, 38), (39, 39), (39, 50))]  # fmt: skip
    np.testing.assert_allclose(found.log_likelihoods[[0, 38, 39, 50]], expected, atol=1e-4)


def test_misuse(model):
    for given, words in (({"context": 1}, "context is 1"), ({"context": 999}, "from 2 to 256"),
                         ({"stride": 0}, "stride is 0"),
                         ({"context": 20, "stride": 20}, "1 to 19")):  # fmt: skip
        with pytest.raises(ArgumentError, match=words):
            measure(model, IDS, **given)
    with pytest.raises(ArgumentError, match="has 1 tokens"):
        measure(model, [3])


@pytest.mark.slow
def test_kinds_lose_more_the_fewer_bits_they_have(tmp_path, capsys):
    path, text = write_speaking(tmp_path / "m.gguf"), tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 6)
    source = opened(path)
    sizes = {k: bits(requantized(source.tensors, k)) for k in ("F32", "F16", "Q8_0", "Q4_K")}
    assert sizes["F32"] == 32 and sizes["F16"] == 16
    mixed = bits(requantized(source.tensors, "Q4_0", "Q8_0"))
    assert 4.5 < mixed < 8.5 and bits(requantized(source.tensors, "file", "Q8_0")) == 32
    assert sizes["Q8_0"] == 8.5 and sizes["Q4_K"] == 5  # rows of 32 and 64: as Q4_1
    assert cli.main(["perplexity", str(path), str(text), "--tokens", "120", "--context", "64",
                     "--kinds", "F32", "Q8_0", "Q4_0", "--json"]) == 0  # fmt: skip
    rows = {r["kind"]: r for r in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["F32"]["difference"] == 0 < abs(rows["Q8_0"]["difference"])
    assert rows["Q8_0"]["difference_error"] < rows["Q4_0"]["difference_error"]
    assert rows["F32"]["tokens"] == 119


def test_the_command(tmp_path, capsys):
    path, text = write_speaking(tmp_path / "m.gguf"), tmp_path / "text.txt"
    text.write_text("hello there")
    assert cli.main(["perplexity", str(path), str(text), "--json"]) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["tokens"] == 10 and found["perplexity"] > 1 and "perplexity" in told.err
    assert "10 tokens" in told.err
    (tmp_path / "wrong").write_bytes(b"ab\xff")
    (tmp_path / "short").write_bytes(b"a")
    for name, words, code in (("wrong", "byte 2 is no UTF-8", 1), ("none", "No such file", 1),
                              ("short", "two or more", 2)):  # fmt: skip
        assert cli.main(["perplexity", str(path), str(tmp_path / name)]) == code
        assert words in capsys.readouterr().err


def test_options_that_do_not_fit(capsys):
    assert cli.main(["perplexity", "m.gguf", "text.txt", "--embedding", "Q8_0"]) == 2
    assert "--embedding is one of --kinds' matrices" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["perplexity", "m.gguf", "text.txt", "--context", "2"])
    assert "'2' is given; expected 3 tokens or more" in capsys.readouterr().err


@pytest.mark.slow
def test_probabilities_are_those_of_llama_cpp(smollm, tmp_path):
    """Both get the same weights as floats; llama.cpp is asked for all probabilities of each next
    token."""
    found = gguf.load(smollm)
    plain = tmp_path / "plain.gguf"
    gguf.save(plain, found.metadata, found.tensors,
              {n: "F32" for n, t in found.tensors.items() if len(t.shape) > 1})  # fmt: skip
    model = llm.load(smollm, context=256, arithmetic="float32")
    text = ("The tide is the rise and fall of the level of the sea, which is caused by the moon "
            "and the sun. In most places there are two high tides a day.")  # fmt: skip
    ids = model.tokenizer.encode(text)
    ours = measure(model, ids)
    theirs = []
    with llama_cpp(plain, context=256) as ask:
        for i in range(1, len(ids)):
            answer = ask("/completion", {"prompt": ids[:i], "n_predict": 1, "temperature": 0,
                                         "n_probs": 49152, "cache_prompt": True})  # fmt: skip
            step = answer["completion_probabilities"][0]["top_logprobs"]
            theirs.append(next(t["logprob"] for t in step if t["id"] == ids[i]))
    np.testing.assert_allclose(ours.log_likelihoods, theirs, atol=0.02)
    perplexity = math.exp(-np.mean(theirs))
    print(f"{len(theirs)} tokens: ours {ours.perplexity:.4f}, theirs {perplexity:.4f}")
    assert abs(ours.perplexity / perplexity - 1) < 0.002
