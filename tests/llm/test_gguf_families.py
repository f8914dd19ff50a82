"""GGUF files of other architectures than llama say what llama.cpp says of them."""
from __future__ import annotations

import numpy as np
import pytest
from support.llama_cpp import llama_cpp

from muladd import llm
from muladd.formats import gguf

WIDTH, HIDDEN, HEADS, KEYS, HEAD = 64, 128, 4, 2, 16
NORM = "attention.layer_norm_rms_epsilon"
FAMILIES = {
    "qwen2": {}, "qwen3": {}, "phi3": {}, "olmo2": {},
    "gemma2": {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
               "attention.sliding_window": 24},
    "gpt2": {},
}  # fmt: skip


def shapes(name):
    """The weights of one layer."""
    keys = KEYS * HEAD if name != "gpt2" else WIDTH
    found = {"attn_q": (WIDTH, WIDTH), "attn_k": (keys, WIDTH), "attn_v": (keys, WIDTH),
             "attn_output": (WIDTH, WIDTH), "ffn_gate": (HIDDEN, WIDTH), "ffn_up": (HIDDEN, WIDTH),
             "ffn_down": (WIDTH, HIDDEN), "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,)}  # fmt: skip
    after = {"post_attention_norm": (WIDTH,), "post_ffw_norm": (WIDTH,)}
    if name == "qwen3":
        found |= {"attn_q_norm": (HEAD,), "attn_k_norm": (HEAD,)}
    if name == "gemma2":
        found |= after
    if name == "olmo2":
        found |= after | {"attn_q_norm": (WIDTH,), "attn_k_norm": (keys,)}
        del found["attn_norm"], found["ffn_norm"]
    if name in ("phi3", "gpt2"):
        found["attn_qkv"] = (WIDTH + 2 * keys, WIDTH)
        del found["attn_q"], found["attn_k"], found["attn_v"], found["ffn_gate"]
    if name == "phi3":
        found["ffn_up"] = (2 * HIDDEN, WIDTH)
    return found


def write(name, path, vocabulary):
    chance = np.random.default_rng(0)
    count = len(vocabulary["tokenizer.ggml.tokens"])
    kept = gguf.Metadata({k: v for k, v in vocabulary.items() if k.startswith("tokenizer.")})
    sizes = {"block_count": 2, "context_length": 128, "embedding_length": WIDTH,
             "feed_forward_length": HIDDEN, "attention.head_count": HEADS,
             "attention.head_count_kv": KEYS if name != "gpt2" else HEADS,
             "attention.layer_norm_epsilon" if name == "gpt2" else NORM: 1e-5,
             "rope.dimension_count": HEAD, **FAMILIES[name]}  # fmt: skip
    if name != "gpt2":
        sizes |= {"attention.key_length": HEAD, "attention.value_length": HEAD}
    kept.update({"general.architecture": name, **{f"{name}.{k}": v for k, v in sizes.items()}})
    wanted = {"token_embd.weight": (count, WIDTH), "output_norm.weight": (WIDTH,)}
    if name == "gpt2":
        wanted |= {"position_embd.weight": (128, WIDTH), "output_norm.bias": (WIDTH,)}
    if name in ("phi3", "olmo2"):
        wanted["output.weight"] = (count, WIDTH)
    biased = {"qwen2": ("attn_q", "attn_k", "attn_v"), "gpt2": tuple(shapes(name))}.get(name, ())
    for i in range(2):
        wanted |= {f"blk.{i}.{n}.weight": s for n, s in shapes(name).items()}
        wanted |= {f"blk.{i}.{n}.bias": shapes(name)[n][:1] for n in biased}
    gguf.save(path, kept, {n: (chance.standard_normal(s) * 0.3).astype(np.float32)
                           for n, s in wanted.items()})  # fmt: skip
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_says_what_llama_cpp_says(name, smollm, tmp_path):
    path = write(name, tmp_path / "small.gguf", gguf.load(smollm).metadata)
    ids = np.random.default_rng(1).integers(100, 49000, 40).tolist()
    with llama_cpp(path) as ask:
        answer = ask("/completion", {"prompt": ids, "n_predict": 6, "temperature": 0, "n_probs": 6,
                                     "return_tokens": True})  # fmt: skip
    pieces = list(llm.load(path).generate(ids, max_tokens=6, logprobs=6))
    assert [p.token for p in pieces][: len(answer["tokens"])] == answer["tokens"]
    for piece, step in zip(pieces, answer["completion_probabilities"]):
        theirs = [t["logprob"] for t in step["top_logprobs"]]
        np.testing.assert_allclose([chance for _, chance in piece.top], theirs, atol=0.02)
