"""What functions of functions are given: functions that can be traced, numbers as tensors."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from muladd.errors import ArgumentError, TraceError
from muladd.tensor import backend
from muladd.tensor.tensor import Tensor
from muladd.tensor.tree import Structure, flatten


def check_function(who: str, function: Any) -> None:
    """ArgumentError for what cannot be called, TraceError for what returns before it has run."""
    if not callable(function):
        given = type(function).__name__
        raise ArgumentError(f"{who}: expected a function, got {given} {function!r}")
    for code in (function, type(function).__call__):
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            kind = "a generator function"
        elif inspect.iscoroutinefunction(code):
            kind = "an async function"
        else:
            continue
        raise TraceError(
            f"{who} of {name_of(function)}: {kind} returns before it has run; give a function that "
            "returns its tensors"
        )


def name_of(function: Any) -> str:
    """How errors call a function."""
    return getattr(function, "__qualname__", type(function).__name__)


def tensors_of(tree: Any) -> tuple[list[Any], Structure]:
    """The tensors of a tree, and its structure; a number by itself is a tensor."""
    number = isinstance(tree, int | float) and not isinstance(tree, bool)
    return flatten(Tensor(tree) if number else tree)


def device_of(tensors: Sequence[Tensor]) -> str:
    """Where the first of some tensors is; the default device if there is none."""
    return tensors[0].device if tensors else backend.default_device()


__all__ = ["check_function", "device_of", "name_of", "tensors_of"]
