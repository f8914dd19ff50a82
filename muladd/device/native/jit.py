"""Object files into memory by LLVM: all formats and processors, where `linker` knows too little."""
from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Sequence
from typing import Any

from muladd.errors import DeviceError

_numbers = itertools.count(1)


@functools.cache
def _compiler() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    made = llvm.create_lljit_compiler(use_jit_link=True)
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(made))  # threads may run code while Python ends
    return made


class Linked:
    """Machine code in memory, which is given back with this object."""

    def __init__(self, blob: bytes, exports: Sequence[str]) -> None:
        """Raises DeviceError for what cannot be linked, and if it has not what it is to export."""
        import llvmlite.binding as llvm

        builder = llvm.JITLibraryBuilder().add_object_img(blob).add_current_process()
        for export in exports:
            builder.export_symbol(export)
        try:
            self._tracker = builder.link(_compiler(), f"muladd {next(_numbers)}")
        except RuntimeError as error:
            raise DeviceError(str(error)) from None
        self.addresses = {export: self._tracker[export] for export in exports}
