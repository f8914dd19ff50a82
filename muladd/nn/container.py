"""Modules that hold modules: one after another, or by number."""
from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from muladd.errors import ArgumentError
from muladd.nn.module import Module


class ModuleList(Module):
    """A list of modules, which are named by their place: `layers.0.weight`."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        for module in modules:
            self.append(module)

    def append(self, module: Module) -> ModuleList:
        if not callable(module):
            raise ArgumentError(
                f"{type(self).__name__}: expected modules, got {module!r} at place {len(self)}"
            )
        setattr(self, str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> ModuleList:
        for module in modules:
            self.append(module)
        return self

    def __len__(self) -> int:
        return sum(name.isdigit() for name in vars(self))

    def __iter__(self) -> Iterator[Any]:
        return (vars(self)[str(i)] for i in range(len(self)))

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return type(self)(*self._pick(index)) if isinstance(self, Sequential) else type(self)(
                self._pick(index)
            )
        if not -len(self) <= index < len(self):
            raise IndexError(f"{type(self).__name__}: index {index} of {len(self)} modules")
        return vars(self)[str(index % len(self))]

    def _pick(self, index: slice) -> list[Module]:
        return [self[i] for i in range(*index.indices(len(self)))]

    def __setitem__(self, index: int, module: Module) -> None:
        self[index]  # raises for an index that is not there
        setattr(self, str(index % len(self)), module)


class Sequential(ModuleList):
    """Modules (or functions of one tensor) applied one after another."""

    def __init__(self, *modules: Any) -> None:
        super().__init__(modules)

    def forward(self, x: Any) -> Any:
        for module in self:
            x = module(x)
        return x
