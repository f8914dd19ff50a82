"""Nested containers of tensors, taken apart into a list and put together again.

A container is a dict, list, tuple, named tuple, dataclass, or a module (an object whose class has
a `parameters` method: its attributes). Everything else that is no tensor belongs to the structure.
"""
from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from muladd.errors import ShapeError
from muladd.tensor.handle import Handle


@dataclass(frozen=True)
class Leaf:
    """Where a tensor stands: its number in the list of leaves."""

    index: int


@dataclass(frozen=True)
class Static:
    """A value that is no tensor."""

    value: Any


@dataclass(frozen=True)
class Branch:
    """A container: its type, its keys in order, its children, and (for modules) the original."""

    kind: type
    keys: tuple
    children: tuple[Structure, ...]
    original: Any = None


Structure = Leaf | Static | Branch


def is_module(x: Any) -> bool:
    """Whether x is a module: an instance with attributes whose class offers `parameters`."""
    return hasattr(type(x), "parameters") and hasattr(x, "__dict__") and not isinstance(x, type)


def _children(x: Any) -> tuple[tuple, list[Any]] | None:
    if isinstance(x, dict):
        return tuple(x), list(x.values())
    if isinstance(x, list | tuple):
        return tuple(range(len(x))), list(x)
    if dataclasses.is_dataclass(x) and not isinstance(x, type):
        names = [f.name for f in dataclasses.fields(x)]
        return tuple(names), [getattr(x, n) for n in names]
    if is_module(x):
        return tuple(vars(x)), list(vars(x).values())
    return None


def flatten(tree: Any) -> tuple[list[Any], Structure]:
    """(the distinct tensors in order, the structure). A tensor that occurs twice is one leaf."""
    leaves: list[Any] = []
    try:
        return leaves, _structure(tree, leaves, {})
    except RecursionError:
        raise ShapeError(
            "flatten: a tree of tensors holds itself, or is nested a thousand deep; take out "
            "the way back (a child's reference to its parent, say)"
        ) from None


def _structure(x: Any, leaves: list[Any], numbers: dict[int, int]) -> Structure:
    """The structure of x; its tensors are added to the leaves, and numbered by identity."""
    if isinstance(x, Handle):
        if id(x) not in numbers:
            numbers[id(x)] = len(leaves)
            leaves.append(x)
        return Leaf(numbers[id(x)])
    found = _children(x)
    if found is None:
        return Static(x)
    keys, children = found
    plain = isinstance(x, dict | list | tuple)
    inside = tuple([_structure(c, leaves, numbers) for c in children])
    return Branch(type(x), keys, inside, None if plain else x)


def unflatten(structure: Structure, leaves: Sequence[Any]) -> Any:
    """The inverse of flatten, with other leaves in the same places."""
    if isinstance(structure, Leaf):
        return leaves[structure.index]
    if isinstance(structure, Static):
        return structure.value
    children = [unflatten(c, leaves) for c in structure.children]
    kind = structure.kind
    if issubclass(kind, dict):
        return _dictionary(kind, dict(zip(structure.keys, children)))
    if issubclass(kind, list):
        return list(children)
    if issubclass(kind, tuple):
        return kind(*children) if hasattr(kind, "_fields") else tuple(children)
    new = copy.copy(structure.original)
    for key, child in zip(structure.keys, children):
        object.__setattr__(new, key, child)
    return new


def _dictionary(kind: type, items: dict) -> Any:
    return items if kind is dict else kind(items)


def tree_map(function: Callable[..., Any], tree: Any, *others: Any) -> Any:
    """The tree with function(leaf, leaves of the others...) in place of each leaf."""
    leaves, structure = flatten(tree)
    rest = [flatten(other)[0] for other in others]
    if any(len(r) != len(leaves) for r in rest):
        raise ShapeError(
            f"tree_map: trees of {len(leaves)} and {[len(r) for r in rest]} tensors do not match"
        )
    return unflatten(structure, [function(*group) for group in zip(leaves, *rest)])


def tree_leaves(tree: Any) -> list[Any]:
    """The distinct tensors of a tree."""
    return flatten(tree)[0]
