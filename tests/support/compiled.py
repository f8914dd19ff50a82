"""Runs a graph on a device through the compiler, in the form that the differential checks take.

    from muladd.interp.differential import fuzz
    print(fuzz(on("CPU"), seconds=60))            or: python tests/support/compiled.py CPU fast 60
"""
from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np

from muladd import config
from muladd import device as devices
from muladd.compile.pipeline import compile_graph, parameters
from muladd.interp.differential import Report, Run, fuzz
from muladd.ir import dtype as dt
from muladd.ir import sym
from muladd.rewrite.transcendental import expand


def on(name: str) -> Run:
    """A runner for `muladd.interp.differential` on the device of this name."""
    device = devices.get(name)

    def run(outputs, inputs, variables):
        graph, storages = parameters(tuple(outputs))
        values = {node.arg: value for node, value in inputs.items()}
        buffers = []
        for storage in storages:
            stored = np.ascontiguousarray(dt.encode(values[storage], storage.dtype))
            buffers.append(device.allocate(stored.nbytes))
            device.copy_in(buffers[-1], stored.reshape(-1).view(np.uint8))
        program = compile_graph(graph, name)
        found = program.run(buffers, [variables[n] for n in program.variables])
        results = []
        for node, buffer in zip(outputs, found):
            shape = tuple(sym.evaluate(d, variables) for d in node.shape)
            stored = np.empty(shape, node.dtype.storage)
            device.copy_out(buffer, stored.reshape(-1).view(np.uint8))
            results.append(np.asarray(dt.decode(stored, node.dtype)).reshape(shape))
        return results

    return run


def fuzzed(name: str, profile: str, seconds: float, seed: int = 0, **options) -> Report:
    """Random graphs on a device in a profile."""
    with config.context(PROFILE=profile):
        return fuzz(on(name), seconds, seed, profile=profile,
                    expand=expand if profile == "exact" else None, **options)  # fmt: skip


def summary(report: Report) -> str:
    """Failures that begin alike together, the shortest of each in full."""
    kinds = defaultdict(list)
    for failure in report.failures:
        first = failure.message.split("\n")[0]
        wrong = first.startswith("output") and "<" in first
        kinds[first.split("<")[1].split()[0] if wrong else first[:40]].append(failure)
    parts = [str(report).split("\n")[0]]
    for kind, failures in sorted(kinds.items(), key=lambda item: -len(item[1])):
        least = min(failures, key=lambda f: len(f.message))
        parts.append(f"=== {kind}: {len(failures)} times; seed {least.seed}\n{least.message}")
    return "\n".join(parts)


if __name__ == "__main__":
    device, profile, seconds, *seed = sys.argv[1:]
    found = fuzzed(device, profile, float(seconds), int(seed[0]) if seed else 0, size=12,
                   most_failures=100)  # fmt: skip
    print(summary(found))
