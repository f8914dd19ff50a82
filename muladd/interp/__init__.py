"""The NumPy interpreter of the language: slow and obvious, the oracle of every device."""
from muladd.interp.evaluate import evaluate

__all__ = ["evaluate"]
