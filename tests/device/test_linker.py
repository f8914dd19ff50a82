"""Object files into memory: by our own linker what it knows, by LLVM the rest; none crashes."""
from __future__ import annotations

import ctypes
import os
import platform
import struct
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest

from muladd.device.native import jit, linker
from muladd.errors import DeviceError

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="elsewhere LLVM links everything")  # fmt: skip

TEXT = """
@table = private constant [3 x double] [double 1.5, double 2.5, double 4.0]
declare ptr @memmove(ptr, ptr, i64)
declare i64 @PyBytes_Size(ptr)
define double @pick(i64 %i) {
  %p = getelementptr double, ptr @table, i64 %i
  %x = load double, ptr %p
  ret double %x
}
define ptr @copy(ptr %to, ptr %from, i64 %n) {
  %r = call ptr @memmove(ptr %to, ptr %from, i64 %n)
  ret ptr %r
}
define i64 @size(ptr %x) {
  %n = call i64 @PyBytes_Size(ptr %x)
  ret i64 %n
}
define ptr @where() {
  ret ptr @PyBytes_Size
}
"""


def made(text=TEXT, model="small"):
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    module = llvm.parse_assembly(text)
    return target.create_target_machine(reloc="pic", codemodel=model).emit_object(module)


def test_code_reaches_its_constants_and_functions_of_the_process():
    library = linker.Linked(made())
    pick = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)(library.addresses["pick"])
    assert [pick(i) for i in range(3)] == [1.5, 2.5, 4.0]
    copy = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)(
        library.addresses["copy"])  # fmt: skip
    a, b = np.arange(1000), np.zeros(1000, int)
    assert copy(b.ctypes.data, a.ctypes.data, a.nbytes) == b.ctypes.data and (a == b).all()
    size = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.py_object)(library.addresses["size"])
    assert size(b"five!") == 5
    where = ctypes.CFUNCTYPE(ctypes.c_void_p)(library.addresses["where"])()
    assert where == ctypes.cast(ctypes.pythonapi.PyBytes_Size, ctypes.c_void_p).value


@pytest.mark.parametrize("blob", [
    made("@x = global i64 7\ndefine ptr @kernel() {\n ret ptr @x\n}"), made(model="large"),
    made("@far = private constant [8 x i8] c\"12345678\", align 65536\n"
         "define ptr @kernel() {\n ret ptr @far\n}"),
    made("declare extern_weak i32 @perhaps()\ndefine ptr @kernel() {\n ret ptr @perhaps\n}"),
    b"\xcf\xfa\xed\xfe" + bytes(100),
], ids=["writable", "far", "aligned", "weak", "other"])  # fmt: skip
def test_what_is_not_known_is_left_to_llvm(blob):
    with pytest.raises(linker.NotKnown):
        linker.Linked(blob)


def test_code_for_another_machine_is_left_to_llvm(monkeypatch):
    blob = made()
    monkeypatch.setattr(linker.platform, "machine", lambda: "aarch64")
    with pytest.raises(linker.NotKnown):
        linker.Linked(blob)


def test_llvm_links_the_same():
    library = jit.Linked(made(), ["pick"])
    assert ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_int64)(library.addresses["pick"])(1) == 2.5


def test_a_symbol_that_nobody_has_is_named():
    blob = made("declare void @nobody_has_it()\n"
                "define void @kernel() {\n call void @nobody_has_it()\n ret void\n}")  # fmt: skip
    with pytest.raises(DeviceError, match="nobody_has_it"):
        linker.Linked(blob)


def test_damaged_objects_are_refused_or_linked_but_nothing_crashes(rng):
    blob = made()
    for n in range(0, len(blob), 11):
        with pytest.raises((DeviceError, linker.NotKnown)):
            linker.Linked(blob[:n])
    refused = 0
    for _ in range(1000):
        wrong = bytearray(blob)
        at = int(rng.integers(len(blob) - 8))
        struct.pack_into("<q", wrong, at, int(rng.integers(-(1 << 40), 1 << 40)))
        try:
            linker.Linked(bytes(wrong))
        except (DeviceError, linker.NotKnown):
            refused += 1
    assert refused > 100


def test_what_is_compiled_already_runs_without_llvm(tmp_path):
    text = ("import sys, numpy, muladd\n"
            "x = muladd.Tensor(numpy.arange(6.0, dtype='f').reshape(2, 3))\n"
            "print((x @ x.T).exp().log().sum().item(), 'llvmlite.binding' in sys.modules)")
    said = []
    for _ in range(2):
        out = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True,
                             env={**os.environ, "DEVICE": "CPU", "MULADD_CACHE_DIR": str(tmp_path)})
        assert out.returncode == 0, out.stderr
        said.append(out.stdout.split())
    assert said[0] == ["83.0", "True"] and said[1] == ["83.0", "False"]
