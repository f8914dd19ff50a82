"""Devices: allocate, copy, load, launch, time. Found by file name; knows bytes, not ops."""
from __future__ import annotations

import importlib
import pkgutil
import threading

from muladd.device.base import (
    Arg,
    Buffer,
    Copy,
    Device,
    Executable,
    Launch,
    LaunchTime,
    Quantity,
    Repeat,
    Step,
    Variable,
    leaves,
)
from muladd.device.machine import Machine
from muladd.errors import DeviceError

__all__ = [
    "Arg", "Buffer", "Copy", "Device", "Executable", "Launch", "LaunchTime", "Machine",
    "Quantity", "Repeat", "Step", "Variable", "get", "leaves", "names",
]  # fmt: skip

_open: dict[str, Device] = {}
_lock = threading.RLock()
_NO_DEVICES = ("base", "machine", "queue")  # the modules of this room which are no device


def names() -> list[str]:
    """The devices that exist, by the names `get` takes. Their drivers may still be missing."""
    return [
        module.name.upper()
        for module in pkgutil.iter_modules(__path__)
        if not module.ispkg and module.name not in _NO_DEVICES
    ]


def get(name: str) -> Device:
    """The device with this name, opened at its first use. `CPU` and `cpu` are the same."""
    device = _open.get(name)
    if device is not None:
        return device
    with _lock:
        known = names()
        upper = name.upper() if isinstance(name, str) else name
        if upper not in known:
            raise DeviceError(f"device: given {name!r}, expected one of {', '.join(known)}; "
                              "set DEVICE or pass device=")  # fmt: skip
        if upper not in _open:
            module = importlib.import_module(f"{__name__}.{upper.lower()}")
            _open[upper] = module.open_device()
        return _open[upper]
