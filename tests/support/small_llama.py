"""A GGUF file of a small llama with random weights."""
from __future__ import annotations

import numpy as np

from muladd.formats import gguf


def write_small(path, vocabulary=96, width=32, layers=2, **other):
    """A llama of random weights, of which nothing but ids goes in and out."""
    chance = np.random.default_rng(0)
    sizes = {"block_count": layers, "context_length": 512, "embedding_length": width,
             "feed_forward_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
             "attention.layer_norm_rms_epsilon": 1e-5, **other}  # fmt: skip
    shapes = {"attn_q": (width, width), "attn_k": (width // 2, width), "attn_norm": (width,),
              "attn_v": (width // 2, width), "attn_output": (width, width), "ffn_norm": (width,),
              "ffn_gate": (64, width), "ffn_up": (64, width), "ffn_down": (width, 64)}  # fmt: skip
    tensors = {"token_embd.weight": (vocabulary, width), "output_norm.weight": (width,)}
    tensors |= {f"blk.{i}.{n}.weight": s for i in range(layers) for n, s in shapes.items()}
    head = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in sizes.items()}}
    weights = {n: chance.standard_normal(s).astype(np.float32) / 4 for n, s in tensors.items()}
    gguf.save(path, head, weights)
    return path
