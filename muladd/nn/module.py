"""Module: a part of a network, found through its attributes, that owns parameters and state.

There is nothing to register. Every Tensor that is an attribute of a module (or lies in a list,
tuple or dict that is one) belongs to it: a *parameter* if it requires a gradient, else a *buffer*.
A name that starts with an underscore is private: it is neither saved nor trained.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from muladd.errors import ArgumentError, FormatError, ShapeError
from muladd.tensor import Tensor, no_grad
from muladd.tensor.handle import changes

Self = TypeVar("Self", bound="Module")


def Parameter(data: Any, requires_grad: bool = True, **options: Any) -> Tensor:
    """A tensor to be trained: `Tensor(data)` that requires a gradient."""
    tensor = data.detach() if isinstance(data, Tensor) else Tensor(data, **options)
    return tensor.requires_grad_(requires_grad)


def static_shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a parameter, whose sizes are numbers and never symbolic."""
    if any(not isinstance(n, int) for n in tensor.shape):
        raise ShapeError(f"nn: a parameter has fixed sizes, got {list(tensor.shape)}")
    return tensor.shape  # type: ignore[return-value]


class Module:
    """A part of a network. Subclasses set attributes in `__init__` and write `forward`."""

    training: bool = True

    def __setattr__(self, name: str, value: Any) -> None:
        changes[0] += 1  # a compiled function looks again at what it was traced with
        object.__setattr__(self, name, value)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"{type(self).__name__} has no forward(); write one to call the module")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    # --- what belongs to it --------------------------------------------------------------------

    def _own(self) -> Iterator[tuple[str, Any]]:
        """(name, Tensor or Module) of the direct attributes, containers unfolded, in order."""
        for name, value in vars(self).items():
            if not name.startswith("_"):
                yield from _unfold(name, value)

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """(name, module) of the modules directly inside."""
        for name, value in self._own():
            if isinstance(value, Module):
                yield name, value

    def children(self) -> Iterator[Module]:
        for _, child in self.named_children():
            yield child

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """(dotted name, module) of this module and all inside it, each object once."""
        yield from _walk(self, prefix, set())

    def modules(self) -> Iterator[Module]:
        for _, module in self.named_modules():
            yield module

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of what is trained; a tensor used twice comes once."""
        seen: set[int] = set()
        for name, tensor in self._named_tensors(parameters=True):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                yield name, tensor

    def parameters(self) -> list[Tensor]:
        return [tensor for _, tensor in self.named_parameters()]

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """(dotted name, tensor) of state that is kept but not trained."""
        yield from self._named_tensors(parameters=False)

    def buffers(self) -> list[Tensor]:
        return [tensor for _, tensor in self.named_buffers()]

    def _named_tensors(self, parameters: bool | None = None) -> Iterator[tuple[str, Tensor]]:
        """Tensors by dotted name; in each module parameters come before buffers, as in torch."""
        for prefix, module in _walk(self, "", None):
            own = [(n, t) for n, t in module._own() if isinstance(t, Tensor)]
            own.sort(key=lambda item: not item[1].requires_grad)
            for name, tensor in own:
                if parameters is None or tensor.requires_grad == parameters:
                    yield _join(prefix, name), tensor

    # --- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Tensor]:
        """Every tensor by its dotted name. The tensors are the module's own, not copies."""
        return dict(self._named_tensors())

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Take over values by name, in place, so that optimisers keep their hold on the tensors.

        `state` maps names to Tensors or arrays (a file of `muladd.formats` as it is). Values are
        cast to the dtype of the tensor they fill. With `strict`, names must match exactly.
        Raises ArgumentError for what is no mapping, FormatError for names and ShapeError for
        shapes that do not fit, before anything is changed.
        """
        if not isinstance(state, Mapping):
            raise ArgumentError(
                f"{type(self).__name__}.load_state_dict: expected a mapping from name to tensor, "
                f"such as safetensors.load(path) gives, got {type(state).__name__}"
            )
        own = self.state_dict()
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        if strict and (missing or unexpected):
            raise FormatError(
                f"{type(self).__name__}.load_state_dict: "
                + "; ".join(
                    f"{what} {_some(names)}"
                    for what, names in (("missing", missing), ("unexpected", unexpected))
                    if names
                )
                + ". Pass strict=False to load what fits by name"
            )
        values = {name: state[name] for name in own if name in state}
        wrong = [
            f"{name}: {tuple(own[name].shape)} here, {np.shape(value)} given"
            for name, value in values.items()
            if np.shape(value) != tuple(own[name].shape)
        ]
        if wrong:
            raise ShapeError(
                f"{type(self).__name__}.load_state_dict: shapes differ for {_some(wrong)}; "
                "is the state of a network of other sizes?"
            )
        with no_grad():
            for name, value in values.items():
                tensor = own[name]
                given = value if isinstance(value, Tensor) else Tensor(np.asarray(value))
                tensor.assign(given.cast(tensor.dtype).to(tensor.device))

    # --- modes ---------------------------------------------------------------------------------

    def train(self: Self, mode: bool = True) -> Self:
        """Behave as in training (dropout on, batch statistics used), here and in all inside."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self: Self) -> Self:
        return self.train(False)

    def requires_grad_(self: Self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze every floating-point tensor that is or was a parameter."""
        for tensor in self.parameters() if not requires_grad else self.state_dict().values():
            if tensor.dtype.is_float:
                tensor.requires_grad_(requires_grad)
        return self

    def zero_grad(self) -> None:
        for tensor in self.parameters():
            tensor.grad = None

    def apply(self: Self, function: Callable[[Module], Any]) -> Self:
        """Call `function` on every module inside, and last on this one."""
        for module in reversed(list(self.modules())):
            function(module)
        return self

    def to(self: Self, device: str | None = None, dtype: Any = None) -> Self:
        """Move to a device, and cast floating-point tensors to a dtype, keeping tied tensors tied.

        The tensors are exchanged, so make the optimiser afterwards.
        """
        moved: dict[int, Tensor] = {}

        def change(tensor: Tensor) -> Tensor:
            if id(tensor) not in moved:
                new = tensor.detach()
                if dtype is not None and tensor.dtype.is_float:
                    new = new.cast(dtype)
                if device is not None:
                    new = new.to(device)
                moved[id(tensor)] = new.requires_grad_(tensor.requires_grad)
            return moved[id(tensor)]

        changes[0] += 1
        for module in self.modules():
            for name, value in list(vars(module).items()):
                vars(module)[name] = _exchange(value, change)
        return self

    def float(self: Self) -> Self:
        return self.to(dtype="float32")

    def half(self: Self) -> Self:
        return self.to(dtype="float16")

    def bfloat16(self: Self) -> Self:
        return self.to(dtype="bfloat16")

    # --- people --------------------------------------------------------------------------------

    def extra_repr(self) -> str:
        """What stands in the brackets of `repr`: the sizes that matter."""
        return ""

    def __repr__(self) -> str:
        inside = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not inside:
            return f"{type(self).__name__}({self.extra_repr()})"
        lines = "\n".join(inside).replace("\n", "\n  ")
        return f"{type(self).__name__}({self.extra_repr()}\n  {lines}\n)"


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _some(names: list[str], most: int = 6) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _unfold(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor | Module):
        yield name, value
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            yield from _unfold(f"{name}.{i}", item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unfold(f"{name}.{key}", item)


def _walk(module: Module, prefix: str, seen: set[int] | None) -> Iterator[tuple[str, Module]]:
    """A module and all inside; with `seen`, each object once."""
    if seen is not None:
        if id(module) in seen:
            return
        seen.add(id(module))
    yield prefix, module
    for name, child in module.named_children():
        yield from _walk(child, _join(prefix, name), seen)


def _exchange(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, list | tuple) and type(value) in (list, tuple):
        return type(value)(_exchange(item, change) for item in value)
    if type(value) is dict:
        return {key: _exchange(item, change) for key, item in value.items()}
    return value
