"""SmolLM2 says what llama.cpp says; small models show what settings, stops and caches do."""
from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from support.llama_cpp import llama_cpp
from support.small_llama import small_decoder, write_small, write_speaking
from support.talker import write_talker

from muladd import llm
from muladd.errors import ArgumentError, FormatError, IndexingError
from muladd.formats import gguf
from muladd.llm.generate import LanguageModel
from muladd.llm.model import Config, Decoder
from muladd.llm.pages import CHUNK
from muladd.llm.sampling import Sampler, Sampling
from muladd.llm.sources import from_gguf
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.writing import Options, Writer

PROMPT = "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n"


def test_a_prompt_in_any_order_of_reading_gives_the_same_logits(tmp_path):
    """Whole pages, single tokens, and what is kept of a text before: one and the same."""
    decoder = small_decoder(tmp_path)
    model = LanguageModel(decoder)
    ids = np.random.default_rng(1).integers(0, 96, 150).tolist()
    wanted = model.logits(ids)
    assert wanted.shape == (150, 96)
    close = {"rtol": 1e-4, "atol": 1e-4}
    for n in (1, 3, 63, 64, 65, 70, 128, 130, 150, 140, 20, 64, 62, 150):
        np.testing.assert_allclose(model.next_logits(ids[:n]), wanted[n - 1], **close)
    for n in range(60, 70):  # one by one over the end of a page
        np.testing.assert_allclose(model.next_logits(ids[:n]), wanted[n - 1], **close)
    changed = [*ids[:66], 5, *ids[67:]]
    other = LanguageModel(decoder).next_logits(changed)
    np.testing.assert_allclose(model.next_logits(changed), other, **close)
    assert model._pool.step.traces == 3  # a chunk with all its rows, a chunk, a token


def test_threads_take_turns(tmp_path):
    model = LanguageModel(small_decoder(tmp_path))
    prompts = [[i, 5, 2 * i, 7] for i in range(4)]

    def told(ids):
        return [piece.token for piece in model.generate(ids, max_tokens=30)]

    wanted = list(map(told, prompts))
    model.warm(guesses=1)
    assert model.logits(ids=[1]).shape == (1, 96)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(told, prompts)) == wanted


def test_keys_and_values_have_no_room_before_something_is_read(tmp_path):
    model = LanguageModel(small_decoder(tmp_path))  # as a server's, which has a pool of its own
    assert "_pool" not in vars(model)
    model.next_logits([1])
    assert model._pool.pages == 4


def test_no_compilation_while_chatting(tmp_path):
    decoder = small_decoder(tmp_path)
    model = LanguageModel(decoder)
    ids = np.random.default_rng(1).integers(0, 96, 200).tolist()
    for n in (CHUNK, CHUNK + 2):
        model.next_logits(ids[:n])
    before = model._pool.step.traces
    for n in (10, 33, 150, 151, 160, 200, 7):
        model.next_logits(ids[:n])
    assert model._pool.step.traces == before == 2


@pytest.mark.parametrize("dtype, error", [("float16", 0.01), ("bfloat16", 0.05), ("int8", 0.05)])
def test_keys_and_values_in_fewer_bits_are_near(tmp_path, dtype, error):
    decoder = small_decoder(tmp_path)
    ids = np.random.default_rng(1).integers(0, 96, 100).tolist()
    plain, model = LanguageModel(decoder), LanguageModel(decoder, cache=dtype)
    a, b = plain.logits(ids), model.logits(ids)
    assert 0 < np.abs(a - b).max() < error * np.abs(a).max()
    # whoever reads them later finds what was seen at once
    for n in (60, 63, 65, 100):
        np.testing.assert_allclose(model.next_logits(ids[:n]), b[n - 1], rtol=1e-4, atol=1e-4)
    if dtype == "int8":  # heads of this model are 8 wide, and a scale is 4 bytes
        assert model._pool.nbytes == plain._pool.nbytes * (8 + 4) // (4 * 8)


@pytest.mark.parametrize("cache", ["float32", "int8"])
def test_another_device_holds_the_pool(tmp_path, device, cache):
    """Where memory is not the host's, new keys and values are scattered into it."""
    model = LanguageModel(small_decoder(tmp_path, room=128), cache=cache)
    ids = np.random.default_rng(1).integers(0, 96, 70).tolist()
    wanted = model.logits(ids)
    for n in (66, 67, 70):
        np.testing.assert_allclose(model.next_logits(ids[:n]), wanted[n - 1], rtol=1e-4, atol=1e-4)


def test_greedy_sampled_and_penalised(tmp_path):
    model = LanguageModel(small_decoder(tmp_path))
    greedy = [p.token for p in model.generate([1, 2, 3], max_tokens=8)]
    ids = [1, 2, 3]
    for token in greedy:
        assert token == model.next_logits(ids).argmax()
        ids.append(token)

    def drawn(**how):
        return [p.token for p in model.generate([1, 2, 3], max_tokens=8, **how)]

    assert drawn(temperature=1.0, seed=3) == drawn(temperature=1.0, seed=3)
    assert len({tuple(drawn(temperature=3.0, seed=s)) for s in range(4)}) > 1
    assert drawn(temperature=5.0, top_k=1) == drawn(temperature=5.0, top_p=0.0) == greedy
    assert drawn(temperature=1.0, min_p=1.0) == greedy
    punished = drawn(repetition_penalty=100.0)
    assert len(set(punished)) == 8 and not {1, 2, 3} & set(punished)


def test_probabilities_of_sampling():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))

    def probabilities(**how):
        return Sampler(Sampling(temperature=1.0, **how)).probabilities(logits).round(4).tolist()

    assert probabilities() == [0.5, 0.25, 0.15, 0.1]
    assert probabilities(top_k=2) == [0.6667, 0.3333, 0, 0]
    assert probabilities(top_p=0.7) == [0.6667, 0.3333, 0, 0]  # the second reaches 0.7
    assert probabilities(min_p=0.25) == [0.5556, 0.2778, 0.1667, 0]
    colder = Sampler(Sampling(temperature=0.5)).probabilities(logits)
    np.testing.assert_allclose(colder[0] / colder[1], 4, rtol=1e-5)


def test_the_context_ends(tmp_path):
    model = LanguageModel(small_decoder(tmp_path, room=20))
    pieces = list(model.generate(list(range(15))))
    assert len(pieces) == 5 and [p.finish for p in pieces] == [None] * 4 + ["length"]
    with pytest.raises(ArgumentError, match="21 tokens and there is room for 20"):
        model.generate([1] * 21)


@pytest.mark.parametrize("last", ["length", "stop"])
def test_half_a_character_at_the_end_is_left_out(tmp_path, last):
    """Not shown as U+FFFD: what follows was cut off, nothing is damaged."""
    tokenizer = Tokenizer.from_gguf(write_talker(tmp_path / "talker.gguf"))
    ids = tokenizer.encode("a\N{GRINNING FACE}b\N{GRINNING FACE}", marks=False)[:-1]
    ids += [tokenizer.eos] if last == "stop" else []
    writer = Writer([0], tokenizer, 100, Options(max_tokens=len(ids)))
    pieces = [writer.put(np.eye(258, dtype=np.float32)[i]) for i in ids]
    assert "".join(p.text for p in pieces) == "a\N{GRINNING FACE}b" and pieces[-1].finish == last


MISUSE = [
    ({"prompt": []}, ArgumentError, "prompt is empty"),
    ({"prompt": [96]}, IndexingError, "96 is no id; expected 0 to 95"),
    ({"prompt": [-1]}, IndexingError, "-1 is no id"),
    ({"prompt": "hello"}, ArgumentError, "without a tokenizer"),
    ({"temperature": -1.0}, ArgumentError, "temperature is -1.0"),
    ({"temperature": float("nan")}, ArgumentError, "temperature is nan"),
    ({"top_k": 0.5}, ArgumentError, "top_k is 0.5"),
    ({"max_tokens": 0}, ArgumentError, "max_tokens is 0; expected a whole number from 1 on"),
    ({"max_tokens": True}, ArgumentError, "max_tokens is True"),
    ({"stop": [""]}, ArgumentError, "none empty"),
    ({"prompt": None}, ArgumentError, "prompt is None; expected text, or ids"),
    ({"prompt": b"abc"}, ArgumentError, "expected text, or ids"),
    ({"prompt": [1.5]}, ArgumentError, "expected text, or ids"),
    ({"stop": 3}, ArgumentError, "stop is 3; expected texts"),
    ({"heat": 1}, ArgumentError, "'heat' is no setting"),
]


@pytest.mark.parametrize("given, error, words", MISUSE)
def test_misuse_says_what_to_do(tmp_path, given, error, words):
    model = LanguageModel(small_decoder(tmp_path, room=20))
    with pytest.raises(error, match=words):
        model.generate(**{"prompt": [1], **given})


def test_files_that_are_no_model(tmp_path):
    path = write_small(tmp_path / "m.gguf")
    found = gguf.load(path)
    weights = {n: t.dequantize().copy() for n, t in found.tensors.items()}

    def refused(words, metadata=None, tensors=None):
        damaged = tmp_path / "damaged.gguf"
        gguf.save(damaged, {**found.metadata, **(metadata or {})}, tensors or weights)
        with pytest.raises(FormatError, match=words):
            config, stored, _ = from_gguf(damaged)
            Decoder(config, stored, 64)

    refused("architecture 'magic' is not known", {"general.architecture": "magic"})
    refused("3 heads of keys", {"llama.attention.head_count_kv": 3})
    refused("base of rotations is 0", {"llama.rope.freq_base": 0.0})
    refused("epsilon of norms is -1", {"llama.attention.layer_norm_rms_epsilon": -1.0})
    uneven = {**weights, "blk.1.ffn_up.weight": np.zeros((33, 32), np.float32)}
    refused("inner sizes differ: blk.1.ffn_down.weight .*, blk.1.ffn_up.weight 33", tensors=uneven)
    refused("block_count is 'many'", {"llama.block_count": "many"})
    refused("rope.scaling.type is 'yarn'", {"llama.rope.scaling.type": "yarn"})
    refused("blk.2.attn_q.weight and .* more is missing", {"llama.block_count": 3})
    less = {n: w for n, w in weights.items() if n != "blk.1.ffn_up.weight"}
    refused("blk.1.ffn_up.weight is missing", tensors=less)
    refused(r"blk.0.attn_k.weight has the shape \[16, 32\]; its sizes ask for \[32, 32\]",
            {"llama.attention.head_count_kv": 4})  # fmt: skip
    with pytest.raises(FormatError, match="not known"):
        _ = Config("magic", 1, 8, 1, 1, 8, 8, 1e-5, 0.35).family


def damaged_file(path, kind, value):
    """A small model that speaks; all numbers of one of its matrices (or its scales) are `value`."""
    write_speaking(path)
    found = gguf.load(path)
    weights = {n: gguf.quantized(t.dequantize(), kind if len(t.shape) > 1 else "F32")
               for n, t in found.tensors.items()}  # fmt: skip
    name = "blk.0.ffn_up.weight" if value else "token_embd.weight"
    raw = weights[name].raw.copy()
    raw.reshape(-1, weights[name].kind.bytes)[:, :2] = np.frombuffer(np.float16(value), np.uint8)
    if kind == "F16":
        raw.view(np.float16)[:] = value
    elif not value:
        raw[:] = 0
    weights[name] = gguf.GGUFTensor(weights[name].kind, weights[name].shape, raw)
    gguf.save(path, found.metadata, weights)
    return path


@pytest.mark.parametrize("kind, value", [
    ("Q8_0", np.nan), ("Q4_1", np.inf), ("F16", np.nan), ("F16", 0), ("Q8_0", 0),
])  # fmt: skip
def test_damaged_weights_are_told(tmp_path, kind, value):
    """Scales at load; what only shows in logits, when there are some."""
    path = damaged_file(tmp_path / "m.gguf", kind, value)
    words = "m.gguf: gives logits from (nan to nan|0.0 to 0.0)"
    if value and kind != "F16":
        words = "m.gguf: model: blk.0.ffn_up.weight has scales that are no numbers"
    with pytest.raises(FormatError, match=words):
        model = llm.load(path, context=64)
        with pytest.raises(FormatError, match=words):
            model.log_likelihoods([1, 2, 3])
        model.complete("hi", max_tokens=2, temperature=1.0)


# --- the real model ------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_real_model_talks(smollm):
    model = llm.load(smollm, context=256)
    pieces = list(model.chat([{"role": "user", "content": "What is 2 + 2?"}], max_tokens=24))
    text = "".join(p.text for p in pieces)
    assert "4" in text and all(p.logprob <= 0 for p in pieces)
    prompt = model.tokenizer.encode(PROMPT)
    whole = model.complete(prompt, max_tokens=12)
    cut = list(model.generate(prompt, max_tokens=12, stop=["concept", " in physics"]))
    assert "".join(p.text for p in cut) == whole[: whole.index("concept")]
    assert cut[-1].finish == "stop"
    likely = list(model.generate(prompt, max_tokens=1, logprobs=3))[0]
    logits = model.next_logits(prompt).astype(np.float64)
    assert likely.top[0] == (likely.token, likely.logprob) and len(likely.top) == 3
    highest = logits.max() - np.logaddexp.reduce(logits)
    np.testing.assert_allclose(likely.logprob, highest, atol=1e-4)
    with pytest.raises(ArgumentError, match="empty"):
        model.generate("")
    with pytest.raises(ArgumentError, match="trained for 1 to 8192"):
        llm.load(smollm, context=9000)


@pytest.mark.slow
def test_the_real_model_in_float32_says_what_llama_cpp_says(smollm, tmp_path):
    """llama.cpp gets the same weights as floats: with quantised ones it rounds activations too."""
    found = gguf.load(smollm)
    plain = tmp_path / "plain.gguf"
    gguf.save(plain, found.metadata, found.tensors,
              {n: "F32" for n, t in found.tensors.items() if len(t.shape) > 1})  # fmt: skip
    model = llm.load(smollm, context=512, arithmetic="float32")
    for prompt in (PROMPT, "Once upon a time", "def main("):
        ids = model.tokenizer.encode(prompt)
        with llama_cpp(plain, context=256) as ask:
            body = {"prompt": ids, "n_predict": 64, "temperature": 0, "n_probs": 8,
                    "return_tokens": True}  # fmt: skip
            answer = ask("/completion", body)
        pieces = list(model.generate(ids, max_tokens=64, logprobs=8))
        ended = pieces[-1].finish == "stop"
        assert len(answer["tokens"]) == 64 or ended
        assert [p.token for p in pieces][: len(answer["tokens"])] == answer["tokens"]
        for piece, step in zip(pieces, answer["completion_probabilities"]):
            theirs = [t["logprob"] for t in step["top_logprobs"]]
            np.testing.assert_allclose([chance for _, chance in piece.top], theirs, atol=0.02)
