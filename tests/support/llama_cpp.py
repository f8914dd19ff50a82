"""llama.cpp as a reference (package xllamacpp), and small models for it with any vocabulary."""
from __future__ import annotations

import json
import urllib.request
from contextlib import contextmanager

import numpy as np
import pytest

from muladd.formats import gguf


def write_model(path, metadata):
    """A model of one tiny layer of zeros with a given vocabulary, which llama.cpp loads."""
    count, width = len(metadata["tokenizer.ggml.tokens"]), 32
    kept = gguf.Metadata({k: v for k, v in metadata.items() if k.startswith("tokenizer.")})
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": width,
             "feed_forward_length": width, "attention.head_count": 1, "vocab_size": count,
             "attention.layer_norm_rms_epsilon": 1e-5}  # fmt: skip
    head = {"general.architecture": "llama", **{f"llama.{k}": v for k, v in sizes.items()}}
    tensors = {"token_embd.weight": np.zeros((count, width), np.float16)}
    for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        tensors[f"blk.0.{name}.weight"] = np.zeros((width, width), np.float32)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        tensors[f"{name}.weight"] = np.zeros(width, np.float32)
    kept.update(head)
    gguf.save(path, kept, tensors)
    return path


@contextmanager
def llama_cpp(path, context=64):
    """`with llama_cpp(path) as ask: ask("/tokenize", {...})`: llama.cpp's server, in this process.

    The test is skipped where the package is missing.
    """
    package = pytest.importorskip("xllamacpp")
    settings = package.CommonParams()
    settings.model.path = str(path)
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = context, 1, 0
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.warmup, settings.fit_params, settings.verbosity = False, False, -1
    settings.hostnames, settings.port = ["127.0.0.1"], 0
    server = package.Server(settings)

    address = server.listening_address

    def ask(what, body):
        request = urllib.request.Request(
            address + what, json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    yield ask
    del server  # which stops it
