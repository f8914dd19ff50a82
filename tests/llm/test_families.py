"""Each architecture, with small random weights, gives the logits that `transformers` gives."""
from __future__ import annotations

import numpy as np
import pytest
from support.families import FAMILIES, write

from muladd import llm
from muladd.errors import FormatError
from muladd.llm.hugging_face import TYPES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_transformers(name, tmp_path):
    import torch

    theirs = write(name, tmp_path)
    ours = llm.load(tmp_path)
    ids = np.random.default_rng(0).integers(3, 64, 100).tolist()
    with torch.no_grad():
        wanted = theirs(torch.tensor([ids])).logits[0].numpy()
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(ours.logits(ids) / scale, wanted / scale, atol=2e-5)
    np.testing.assert_allclose(ours.next_logits(ids[:67]) / scale, wanted[66] / scale, atol=2e-5)


def test_every_type_is_tested():
    assert TYPES.keys() - {"smollm", "gemma3_text"} <= FAMILIES.keys()


def test_folders_that_are_no_model(tmp_path):
    from muladd.formats import safetensors

    safetensors.save({"x": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    for config, words in (
        ('{"model_type": "magic"}', "model_type 'magic' is not known"),
        ('{"model_type": "llama"}', "hidden_size is None"),
        ('{"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1, "n_positions": 9, '
         '"layer_norm_epsilon": 1e-5}', "token_embd.weight and .* more is missing"),
    ):  # fmt: skip
        (tmp_path / "config.json").write_text(config)
        with pytest.raises(FormatError, match=words):
            llm.load(tmp_path)
