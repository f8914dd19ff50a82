"""Language models from files: tokenizers and chat templates (architectures and serving follow)."""
from __future__ import annotations

from muladd.llm.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
