"""The schedule a kernel gets without searching."""
from __future__ import annotations

from muladd.device.machine import Machine
from muladd.loop.kernel import Kernel
from muladd.loop.plan import Plan, plain


def schedule(kernel: Kernel, machine: Machine) -> Plan:
    """A plan for a kernel on a machine."""
    return plain(kernel)
