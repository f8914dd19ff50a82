"""Conversations that share a pool are read as if each were alone."""
from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from support.small_llama import write_small

from muladd.llm.generate import LanguageModel
from muladd.llm.model import Decoder
from muladd.llm.pages import CHUNK, PAGE, Pool, Text
from muladd.llm.sources import from_gguf


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_conversations_side_by_side(tmp_path, rng, dtype):
    config, tensors, _ = from_gguf(write_small(tmp_path / "small.gguf"))
    decoder = Decoder(config, tensors, 256)
    pool = Pool(decoder, 9, dtype)
    texts = [Text([7, 2]), Text([0, 8, 4, 3]), Text([5])]
    ids = [rng.integers(0, 96, n).tolist() for n in (100, 200, 30)]
    counts = [60, 130, 0]  # the third begins while the others are in the middle
    for text, all_ids, count in zip(texts, ids, counts):
        for at in range(0, count, CHUNK):
            pool.read([text], [all_ids[at : min(at + CHUNK, count)]], CHUNK)
    for step in range(30):
        new = [[all_ids[n + step]] for all_ids, n in zip(ids, counts)]
        found = pool.read(texts, new, 1, slots=4)
    assert found.shape == (3, 96) and [t.length for t in texts] == [90, 160, 30]
    close = 1e-4 if dtype == "float32" else 2e-2
    for logits, all_ids, text in zip(found, ids, texts):
        alone = LanguageModel(decoder).next_logits(all_ids[: text.length])
        np.testing.assert_allclose(logits, alone, rtol=close, atol=close)


@pytest.mark.parametrize("window", [0, 40])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_parts_of_several_texts_in_one_step(tmp_path, rng, dtype, window):
    """Each in runs of 4 tokens; some end within one, some go on, one begins."""
    config, tensors, _ = from_gguf(write_small(tmp_path / "small.gguf"))
    config = dataclasses.replace(config, window=window, windowed=(window > 0, False),
                                 rope_local_base=10000.0)
    decoder = Decoder(config, tensors, 256)
    pool = Pool(decoder, 9, dtype)
    texts = [Text([7, 2]), Text([0, 8, 4, 3]), Text([5])]
    ids = [rng.integers(0, 96, n).tolist() for n in (100, 200, 30)]
    for text, all_ids, count in zip(texts, ids, (61, 129, 0)):
        for at in range(0, count, CHUNK):
            pool.read([text], [all_ids[at : min(at + CHUNK, count)]], CHUNK)
    for counts in ((9, 14, 4), (1, 27, 25)):
        new = [all_ids[t.length :][:n] for all_ids, t, n in zip(ids, texts, counts)]
        found = pool.read(texts, new, 4, slots=16, answers=4)
        close = 1e-4 if dtype == "float32" else 1e-1
        for logits, all_ids, text in zip(found, ids, texts):
            alone = LanguageModel(decoder).next_logits(all_ids[: text.length])
            np.testing.assert_allclose(logits, alone, rtol=close, atol=close)
    assert pool.step.traces == 2 and [t.length for t in texts] == [71, 170, 29]


def test_what_is_not_written_to_stays(tmp_path, rng):
    """Rows beyond a text's own, and slots without a text, leave nothing behind."""
    config, tensors, _ = from_gguf(write_small(tmp_path / "small.gguf"))
    pool = Pool(Decoder(config, tensors, 128), 3)
    pool.read([Text([1])], [[1, 2, 3]], CHUNK, slots=1)
    pool.read([Text([1], 3)], [[4]], 1, slots=4)
    for i, array in enumerate(pool.arrays):
        values = array.numpy()
        if not i % 2:  # keys lie (..., head width, PAGE)
            values = values.swapaxes(-1, -2)
        assert values[1, :, :4].any(-1).all() and not values[1, :, 4:].any()
        assert not values[0].any() and not values[2].any()
    assert pool.nbytes == 4 * PAGE * 2 * 2 * 16 * 4


def test_cleared_pages_hold_nothing_and_are_used_again(tmp_path, device):
    config, tensors, _ = from_gguf(write_small(tmp_path / "small.gguf"))
    pool = Pool(Decoder(config, tensors, 128), 3)
    before = pool.read([Text([1])], [[1, 2, 3]], CHUNK)
    assert all(array.numpy()[1].any() for array in pool.arrays)
    pool.clear([1])
    assert not any(array.numpy().any() for array in pool.arrays)
    after = pool.read([Text([1])], [[1, 2, 3]], CHUNK)
    np.testing.assert_array_equal(before, after)
    assert all(array.numpy()[1].any() for array in pool.arrays)
