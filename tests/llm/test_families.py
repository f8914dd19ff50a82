"""Each architecture, with small random weights, gives the logits that `transformers` gives."""
from __future__ import annotations

import json
import shutil

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


@pytest.mark.filterwarnings("ignore")
def test_folders_whose_parts_contradict_each_other(tmp_path):
    """What is said and not done, or held and not read, would be answers that look like answers."""
    from muladd.formats import safetensors

    write("llama", tmp_path / "good")
    plain = json.loads((tmp_path / "good" / "config.json").read_text())
    arrays = {n: np.asarray(a) for n, a in
              safetensors.open_file(tmp_path / "good" / "model.safetensors").items()}  # fmt: skip

    def refused(words, less=(), more=None, **told):
        here = tmp_path / "bad"
        shutil.copytree(tmp_path / "good", here, dirs_exist_ok=True)
        kept = {n: a for n, a in arrays.items() if n not in less}
        safetensors.save({**kept, **(more or {})}, here / "model.safetensors")
        (here / "config.json").write_text(json.dumps({**plain, **told}))
        with pytest.raises(FormatError, match=words):
            llm.load(here)

    up = "model.layers.0.mlp.up_proj.weight"
    refused(r"model_type \['llama'\] is not known", model_type=["llama"])
    refused("rope_scaling is list; expected an object", rope_parameters=None, rope_scaling=[1])
    refused("quantised in the way 'fp8'", quantization_config={"quant_method": "fp8"})
    refused("ffn_up.weight holds int8; expected floating", more={up: arrays[up].astype(np.int8)})
    refused("activation 'gelu'; expected silu or swish", hidden_act="gelu")
    refused("activation -1", hidden_act=-1)
    refused("lm_head.weight is missing", less=("lm_head.weight",), tie_word_embeddings=False)
    refused("says attention_bias, and the weights have none", attention_bias=True)
    refused("says mlp_bias", mlp_bias=True)
    refused("vocab_size 7, and token_embd.weight has", vocab_size=7)
    refused("vocab_size is 'x'; expected a number", vocab_size="x")
    refused("intermediate_size 7, and blk.0.ffn_up.weight has", intermediate_size=7)
    beyond = f"model.layers.{plain['num_hidden_layers']}.mlp.up_proj.weight"
    refused("there is blk.*, and the model has", more={beyond: arrays[up]})
