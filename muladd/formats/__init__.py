"""Files of weights: safetensors and GGUF (read, written), torch's own (read, without running)."""
from __future__ import annotations

from muladd.formats import checkpoint, gguf, quant, safetensors, torch_file
from muladd.formats.stored import StoredArray

__all__ = ["StoredArray", "checkpoint", "gguf", "quant", "safetensors", "torch_file"]
