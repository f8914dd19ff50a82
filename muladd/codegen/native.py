"""LLVM IR text to an object file for a machine, with three passes instead of a pipeline.

The IR that comes here is already vectorised, unrolled and hoisted; LLVM's own loop passes cost ten
times the compile time and gain nothing on it.
"""
from __future__ import annotations

import functools
import os
import threading

from muladd.codegen.llvm import ATTRIBUTES, CLEAR
from muladd.device.machine import Machine
from muladd.errors import DeviceError

_lock = threading.RLock()  # of this module's use of LLVM; whoever forks does so between uses
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release,
                        after_in_child=_lock.release)  # fmt: skip


@functools.cache
def _target(machine: Machine):  # type: ignore[no-untyped-def]
    import llvmlite.binding as llvm

    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.set_option("muladd", "-disable-lsr")
    target = llvm.Target.from_triple(machine.triple)
    return target.create_target_machine(
        cpu=machine.cpu, features=machine.features, opt=2, reloc="pic", codemodel="small"
    )


def _clear(machine: Machine) -> str:
    """An instruction of no length that, so LLVM is told, overwrites all vector registers."""
    family = machine.triple.split("-")[0]
    letters = {"x86_64": "xmm", "aarch64": "v", "arm64": "v"}.get(family)
    if letters is None:
        return CLEAR
    names = ",".join(f"~{{{letters}{i}}}" for i in range(machine.vector_registers))
    return f'call void asm sideeffect "", "{names}"()'


def fitted(source: str, machine: Machine) -> str:
    """The text with what it leaves open for a machine to say."""
    scale = machine.scale
    if scale:  # vectors of more than 128 bits are then one register, not several of NEON's
        source = source.replace(ATTRIBUTES, f"{ATTRIBUTES} vscale_range({scale},{scale})")
    return source.replace(CLEAR, _clear(machine))


def _module(source: str, machine: Machine):  # type: ignore[no-untyped-def]
    import llvmlite.binding as llvm

    target = _target(machine)
    try:
        module = llvm.parse_assembly(fitted(source, machine))
        module.verify()
    except RuntimeError as error:
        raise DeviceError(f"codegen: the generated LLVM IR is refused: {error}") from None
    module.triple, module.data_layout = machine.triple, str(target.target_data)
    passes = llvm.create_new_module_pass_manager()
    passes.add_sroa_pass()
    passes.add_instruction_combine_pass()
    passes.add_simplify_cfg_pass()
    passes.run(module, llvm.create_pass_builder(target, llvm.create_pipeline_tuning_options(1)))
    return module


def compile_object(source: str, machine: Machine) -> bytes:
    """The object file of LLVM IR text."""
    with _lock:
        return _target(machine).emit_object(_module(source, machine))


def assembly(source: str, machine: Machine) -> str:
    """The machine code of LLVM IR text, as people read it."""
    with _lock:
        return _target(machine).emit_assembly(_module(source, machine))
