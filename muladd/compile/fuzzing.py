"""Holds compiled programs against the interpreter on random graphs: every device, both profiles.

    report = run(minutes=5, seed=0, devices=["CPU"])
    print(report)

A device gets each graph as bytes, through `compile_graph` and a fresh program, so whatever is
between the graph and the results is checked.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from muladd import config
from muladd import device as devices_of_machine
from muladd.compile.pipeline import compile_graph
from muladd.device import Device
from muladd.errors import MuladdError
from muladd.interp.differential import Report, fuzz
from muladd.ir import DType, Node, Storage, Var, dtype, ops, param, substitute, sym, toposort
from muladd.rewrite.transcendental import expand

PROFILES = ("fast", "exact")


@dataclass
class Comparison:
    """What a run of the fuzzer found, for each device and profile; printing it tells all."""

    reports: dict[tuple[str, str], Report] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        return sum(len(r.failures) for r in self.reports.values())

    def again(self) -> list[str]:
        """For each failure, the command that runs that one program once more."""
        return [
            f"muladd fuzz --seed {f.seed[0]} --program {f.seed[1]} --devices {name} "
            f"--profiles {profile}"
            for (name, profile), report in self.reports.items() for f in report.failures
        ]  # fmt: skip

    @property
    def graphs(self) -> int:
        return sum(r.graphs for r in self.reports.values())

    def __str__(self) -> str:
        return "\n".join(
            f"{name} {profile}: {report}" for (name, profile), report in self.reports.items()
        )


def run(
    minutes: float = 1.0, seed: int | None = None, devices: Sequence[str] | None = None,
    progress: Callable[[str, str, Report], None] | None = None,
    profiles: Sequence[str] = PROFILES, **options: Any,
) -> Comparison:  # fmt: skip
    """Random graphs for `minutes`, shared out evenly over devices and profiles.

    devices: names as in `muladd.device.get` (default: CPU). progress(device, profile, report) is
    called after each graph. Other options go to `interp.differential.fuzz` (size, most_graphs,
    first, most_failures, ...). Equal seeds give equal graphs.
    """
    names = [n.upper() for n in (devices or ["CPU"])]
    for name in names:
        devices_of_machine.get(name)  # an unknown one is refused before the first graph
    found = Comparison()
    seconds = minutes * 60 / (len(names) * len(profiles))
    for name in names:
        for profile in profiles:
            tell = None
            if progress is not None:
                tell = lambda r, n=name, p=profile: progress(n, p, r)  # noqa: E731
            found.reports[name, profile] = fuzz(
                runner(name, profile), seconds, seed or 0, tell, profile=profile,
                expand=expand if profile == "exact" else None, **options,
            )  # fmt: skip
    return found


def available() -> list[str]:
    """The devices of this machine that compute: CPU, and OPENCL where a driver is found."""
    found = []
    for name in ("CPU", "OPENCL"):
        with suppress(MuladdError):
            devices_of_machine.get(name)
            found.append(name)
    return found


def runner(name: str, profile: str = "fast") -> Callable[..., list[np.ndarray]]:
    """What `interp.differential` calls a device: run(outputs, inputs, variables) -> arrays."""

    def compiled(
        outputs: Sequence[Node], inputs: dict[Node, np.ndarray], variables: dict[str, int]
    ) -> list[np.ndarray]:
        with config.context(PROFILE=profile):
            return compute(outputs, inputs, variables, name)

    return compiled


def compute(
    outputs: Sequence[Node], inputs: dict[Node, np.ndarray], variables: dict[str, int], name: str
) -> list[np.ndarray]:
    """The values of a graph whose inputs are given as arrays, by the compiler on a device."""
    device = devices_of_machine.get(name)
    leaves = [n for n in toposort(outputs)
              if n.op is ops.INPUT and not isinstance(n.arg, Var)]  # fmt: skip
    params = {n: param(i, n.shape, n.dtype) for i, n in enumerate(leaves)}
    graph = substitute(tuple(outputs), params)
    program = compile_graph(graph, name)
    missing = [v for v in program.variables if v not in variables]
    if missing:
        raise MuladdError(f"fuzzing: no number was given for {', '.join(missing)}")
    values = [variables[v] for v in program.variables]
    buffers = [upload(device, given(n, inputs), n.dtype) for n in leaves]
    results = program.run(buffers, values)
    return [download(device, b, n, variables) for n, b in zip(outputs, results)]


def given(node: Node, inputs: dict[Node, np.ndarray]) -> np.ndarray:
    value = inputs.get(node)
    if value is None and isinstance(node.arg, Storage):
        value = node.arg.buffer  # type: ignore[assignment]
    if value is None:
        raise MuladdError(f"fuzzing: no value was given for {node!r}")
    return np.asarray(value)


def upload(device: Device, values: np.ndarray, d: DType) -> Any:
    """A buffer of the device with these values, in the dtype's storage form."""
    stored = values if values.dtype == d.storage else dtype.encode(values, d)
    stored = np.ascontiguousarray(stored)
    buffer = device.allocate(stored.nbytes)
    device.copy_in(buffer, stored)
    return buffer


def download(device: Device, buffer: Any, node: Node, variables: dict[str, int]) -> np.ndarray:
    shape = tuple(sym.evaluate(n, variables) for n in node.shape)
    stored = np.empty(shape, node.dtype.storage)
    device.copy_out(buffer, stored)
    return dtype.decode(stored, node.dtype)


__all__ = ["Comparison", "PROFILES", "available", "compute", "run", "runner"]
