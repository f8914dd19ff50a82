"""The NumPy interpreter of the language: slow and obvious, the oracle every device is held against."""
from muladd.interp.evaluate import evaluate

__all__ = ["evaluate"]
