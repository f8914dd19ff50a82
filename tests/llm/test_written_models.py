"""What we write, llama.cpp loads and runs: every kind of block, and the real model anew."""
from __future__ import annotations

import numpy as np
import pytest
from support.llama_cpp import llama_cpp

from muladd.formats import gguf

KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"]


def small_model(path, metadata, kind, width=256, layers=2):
    """A model of small random weights with SmolLM2's vocabulary, its matrices of one kind."""
    chance = np.random.default_rng(0)
    count = len(metadata["tokenizer.ggml.tokens"])
    kept = gguf.Metadata({k: v for k, v in metadata.items() if k.startswith("tokenizer.")})
    sizes = {"block_count": layers, "context_length": 64, "embedding_length": width,
             "feed_forward_length": width, "attention.head_count": 4, "vocab_size": count,
             "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    kept.update({"general.architecture": "llama", **{f"llama.{k}": v for k, v in sizes.items()}})
    embedding = 0.1 * chance.standard_normal((count, width)).astype(np.float32)
    tensors = {"token_embd.weight": embedding, "output_norm.weight": np.ones(width, np.float32)}
    matrices = ["token_embd.weight"]
    for i in range(layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            matrices.append(f"blk.{i}.{name}.weight")
            tensors[matrices[-1]] = chance.standard_normal((width, width)).astype(np.float32) / 16
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{i}.{name}.weight"] = np.ones(width, np.float32)
    gguf.save(path, kept, tensors, dict.fromkeys(matrices, kind))
    return path


def continuation(path, prompt, count):
    with llama_cpp(path) as ask:
        body = {"prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": 1,
                "return_tokens": True}  # fmt: skip
        return ask("/completion", body)


def chances(answer):
    return np.array([step["logprob"] for step in answer["completion_probabilities"]])


@pytest.mark.slow
def test_llama_cpp_runs_every_kind(smollm, tmp_path):
    """Its answers from quantised weights are near those from the weights themselves."""
    metadata = gguf.load(smollm).metadata
    prompt = "The capital of France is"
    wanted = None
    for kind in KINDS:
        path = small_model(tmp_path / "model.gguf", metadata, kind)
        answer = continuation(path, prompt, 4)
        assert len(answer["tokens"]) == 4 and np.isfinite(chances(answer)).all(), kind
        first = chances(answer)[0]
        wanted = first if wanted is None else wanted
        near = {"F": 0.01, "B": 0.05, "Q8": 0.1, "Q6": 0.4}
        most = next((v for k, v in near.items() if kind.startswith(k)), 1.5)
        assert abs(first - wanted) < most, (kind, first, wanted)


@pytest.mark.slow
def test_the_real_model_in_eight_bits_says_the_same(smollm, tmp_path):
    model = gguf.load(smollm)
    matrices = [n for n, t in model.tensors.items() if t.kind.name == "Q4_1"]
    path = tmp_path / "eight.gguf"
    gguf.save(path, model.metadata, model.tensors, dict.fromkeys(matrices, "Q8_0"))
    for prompt in ("The capital of France is", "Once upon a time", "2 + 2 ="):
        before, after = continuation(smollm, prompt, 3), continuation(path, prompt, 3)
        assert before["tokens"] == after["tokens"]
        np.testing.assert_allclose(chances(before), chances(after), atol=0.2)
