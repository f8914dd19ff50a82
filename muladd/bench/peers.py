"""The libraries muladd is measured beside, if they are installed: PyTorch, ONNX Runtime and JAX.

One expression serves both sides of most cases, `lambda f, x: f.softmax(x, -1)`: for muladd `f` is
the Tensor class, for PyTorch its functional module, whose names and arguments agree.
"""
from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# by name, the modules that each needs
NEEDS = {"torch": ("torch",), "torch.compile": ("torch",), "onnxruntime": ("onnxruntime", "onnx"),
         "jax": ("jax",)}  # fmt: skip
NAMES = tuple(NEEDS)
_SLOW = ("torch.compile", "jax")  # which compile for half a minute: not for `--quick`
_COMPILERS = ("g++", "clang++", "c++", "cl")


@dataclass
class Peers:
    """The peers taking part, and the number of threads that everybody is given.

    absent: those that were asked for and cannot take part, and why.
    """

    names: tuple[str, ...]
    threads: int
    versions: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @property
    def torch(self) -> Any:
        """The torch module with its threads set, or None if it does not take part."""
        return self._torch() if "torch" in self.names else None

    @property
    def torch_compile(self) -> Any:
        """The torch module, or None if torch.compile does not take part."""
        return self._torch() if "torch.compile" in self.names else None

    def _torch(self) -> Any:
        # workers that wait for something to compile would take part in the measuring
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
        import torch

        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        self.versions["torch"] = torch.__version__
        return torch

    @property
    def jax(self) -> Any:
        """The jax module, or None if it does not take part. Its threads are those of the first."""
        if "jax" not in self.names:
            return None
        os.environ.setdefault("NPROC", str(self.threads))  # what XLA takes for the number of cores
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
        import jax

        self.versions["jax"] = jax.__version__
        return jax

    @property
    def onnxruntime(self) -> Any:
        """The onnxruntime module, or None if it does not take part."""
        if "onnxruntime" not in self.names:
            return None
        import onnxruntime

        self.versions["onnxruntime"] = onnxruntime.__version__
        return onnxruntime


def installed(wanted: Sequence[str] | None, threads: int, quick: bool = False) -> Peers:
    """The wanted peers that can be imported. None: all, with `quick` without those that compile."""
    everybody = [n for n in NAMES if not quick or n not in _SLOW]
    names = everybody if wanted is None else [n for n in NAMES if n in wanted]
    absent = {name: reason for name in names if (reason := _missing(name))}
    return Peers(tuple(n for n in names if n not in absent), threads, absent=absent)


def _missing(name: str) -> str:
    """Why a peer cannot take part, or nothing."""
    modules = [m for m in NEEDS[name] if importlib.util.find_spec(m) is None]
    if modules:
        return f"{' and '.join(modules)} not installed"
    compilers = (os.environ.get("CXX", ""), *_COMPILERS)
    if name == "torch.compile" and not any(c and shutil.which(c) for c in compilers):
        return "no C++ compiler"
    return ""


class Functional:
    """torch.nn.functional, then torch: where one expression finds its functions."""

    def __init__(self, torch: Any) -> None:
        self._places = (torch.nn.functional, torch)

    def __getattr__(self, name: str) -> Any:
        for place in self._places:
            if hasattr(place, name):
                return getattr(place, name)
        raise AttributeError(name)


def torch_tensors(torch: Any, arrays: Sequence[np.ndarray], dtypes: Sequence[str]) -> list[Any]:
    """The same values as PyTorch's tensors."""
    return [torch.from_numpy(a).to(getattr(torch, d)) for a, d in zip(arrays, dtypes)]


def torch_call(
    torch: Any, function: Callable[..., Any], tensors: Sequence[Any], backward: bool
) -> tuple[Callable[[], Any], Callable[[], list[np.ndarray]]]:
    """(a call of the function, its values): with `backward` also the gradients of its inputs."""
    functional = Functional(torch)
    leaves = [t for t in tensors if backward and t.is_floating_point()]

    def forward() -> Any:
        with torch.no_grad():
            return function(functional, *tensors)

    def forward_and_backward() -> Any:
        for leaf in leaves:
            leaf.grad = None
        y = function(functional, *tensors)
        y.backward(ones)
        return [y, *(leaf.grad for leaf in leaves)]

    ones = None
    for leaf in leaves:
        leaf.requires_grad_()
    if leaves:
        ones = torch.ones_like(function(functional, *tensors))
    call = forward_and_backward if leaves else forward

    def values() -> list[np.ndarray]:
        found = call()
        several = found if isinstance(found, (tuple, list)) else [found]
        return [_array(torch, t) for t in several]

    return call, values


def _array(torch: Any, t: Any) -> np.ndarray:
    t = t.detach()
    return np.asarray((t.float() if t.dtype is torch.bfloat16 else t).numpy())
