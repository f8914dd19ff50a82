"""Files of weights: safetensors (read, written) and torch's own (read, without running them)."""
from __future__ import annotations

from muladd.formats import quant, safetensors, torch_file
from muladd.formats.stored import StoredArray

__all__ = ["StoredArray", "quant", "safetensors", "torch_file"]
