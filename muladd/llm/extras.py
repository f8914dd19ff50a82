"""Packages that language models need and the rest of muladd does not: the extras llm and serve."""
from __future__ import annotations

import importlib
from typing import Any

from muladd.errors import MuladdError


class MissingPackage(MuladdError, ImportError):
    """A package of an extra is not installed."""


def wanted(name: str, extra: str = "llm") -> Any:
    """A package of an extra. Raises MissingPackage that says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackage(
            f"muladd.llm needs the package {name} ({error}): pip install 'muladd[{extra}]'"
        ) from None
