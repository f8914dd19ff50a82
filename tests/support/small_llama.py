"""A GGUF file of a small llama with random weights."""
from __future__ import annotations

import numpy as np

from muladd.formats import gguf
from muladd.llm.model import Decoder
from muladd.llm.sources import from_gguf
from muladd.llm.vocabulary import byte_letters


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


def write_speaking(path, context=2048, endless=False):
    """The same with a vocabulary of bytes and the usual template: it speaks, if nonsense. One that
    is endless likes letters best, and never to end."""
    write_small(path, vocabulary=258, layers=1, context_length=context)
    found = gguf.load(path)
    letters = sorted(byte_letters(), key=byte_letters().get)
    names = {"model": "gpt2", "pre": "smollm", "tokens": [*letters, "ab", "<|im_end|>"],
             "token_type": [1] * 257 + [3], "eos_token_id": 257, "merges": ["a b"],
             "chat_template": "{% for m in messages %}{{ m.role }}: {{ m.content }}<|im_end|>"
                              "{% endfor %}"}  # fmt: skip
    head = {**found.metadata, **{f"tokenizer.{k}" if k == "chat_template" else
                                 f"tokenizer.ggml.{k}": v for k, v in names.items()}}
    weights = {n: t.dequantize().copy() for n, t in found.tensors.items()}
    if endless:
        weights["token_embd.weight"][: ord("a")] = weights["token_embd.weight"][ord("z") + 1 :] = 0
    gguf.save(path, head, weights)
    return path


def small_decoder(folder, room=256):
    """Such a model, written to a folder and read again."""
    config, tensors, _ = from_gguf(write_small(folder / "small.gguf"))
    return Decoder(config, tensors, room)
