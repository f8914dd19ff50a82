"""A GGUF file of a small model that talks: random weights over bytes, and a chat template."""
from __future__ import annotations

import numpy as np

from muladd.formats import gguf
from muladd.llm.vocabulary import byte_letters

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}" \
    "{% if add_generation_prompt %}assistant:{% endif %}"


def write_talker(path):
    """A model of random weights over bytes, with a chat template."""
    letters = sorted(byte_letters(), key=byte_letters().get)
    chance, width = np.random.default_rng(0), 32
    metadata = {
        "general.architecture": "llama", "llama.block_count": 1, "llama.context_length": 256,
        "llama.embedding_length": width, "llama.attention.head_count": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": [*letters, "ab", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3], "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.ggml.merges": ["a b"], "tokenizer.chat_template": TEMPLATE,
    }  # fmt: skip
    tensors = {"token_embd.weight": (258, width), "output_norm.weight": (width,)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = (width, width)
    for name in ("attn_norm", "ffn_norm"):
        tensors[f"blk.0.{name}.weight"] = (width,)
    gguf.save(path, metadata, {n: chance.standard_normal(s).astype(np.float32) / 4
                               for n, s in tensors.items()})  # fmt: skip
    return path
