"""Block-quantised numbers as GGUF files hold them: kinds, decoding, quantising."""
from __future__ import annotations

from muladd.formats.quant.decode import codes, decode, dequantize, kind, scales
from muladd.formats.quant.encode import quantize
from muladd.formats.quant.kinds import KINDS, Kind

__all__ = ["KINDS", "Kind", "codes", "decode", "dequantize", "kind", "quantize", "scales"]
