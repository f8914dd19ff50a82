"""Language models from files: load one, complete texts, hold conversations."""
from __future__ import annotations

from muladd.llm.generate import LanguageModel, load
from muladd.llm.sampling import Sampling
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.writing import Piece

__all__ = ["LanguageModel", "Piece", "Sampling", "Tokenizer", "load"]
