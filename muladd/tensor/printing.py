"""How a tensor prints: its values, abridged, then what is not float32, plain and a constant."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from muladd.errors import TraceError
from muladd.ir import dtype as dt
from muladd.tensor import backend

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


def text(t: Tensor) -> str:
    """Tensor([[1., 2.]], dtype=float32). Runs, except while tracing or where a size is symbolic."""
    notes = [] if t.dtype is dt.float32 else [f"dtype={t.dtype.name}"]
    if t._leaf:
        notes.append("requires_grad=True")
    try:
        values = t.numpy() if all(isinstance(n, int) for n in t.shape) else None
    except TraceError:
        values = None
    if values is None:
        return f"Tensor(shape={list(t.shape)}, {', '.join([*notes, 'not computed'])})"
    body = np.array2string(
        values, separator=", ", prefix="Tensor(", precision=4, threshold=200, edgeitems=3
    )
    if 0 in t.shape:
        notes.insert(0, f"shape={list(t.shape)}")
    return f"Tensor({', '.join([body, *notes])})"


def explain(t: Tensor) -> str:
    """The graph's cost, and on a compiling device each kernel with its stages and its schedule."""
    from muladd.ir import cost, toposort

    nodes, _ = backend.expand([t._value()], t.device)
    price = cost.cost(nodes)
    lines = [
        f"{t.dtype.name}{list(t.shape)} on {t.device}: {len(toposort(nodes))} nodes, "
        f"{price.flops} FLOPs, {price.bytes_read} bytes read, {price.bytes_written} written, "
        f"peak {price.peak_bytes} bytes"
    ]
    if t.device != backend.INTERPRETER and nodes[0].srcs:
        from muladd import compile as compiler

        graph, _ = compiler.parameters(tuple(nodes))
        kernels = compiler.compile_graph(graph, t.device).kernels()
        for number, kernel in enumerate(kernels, 1):
            lines += ["", f"kernel {number} of {len(kernels)}: {kernel.name}"]
            lines += ["  " + line for line in kernel.kernel.text().splitlines()]
            lines += ["  | " + line for line in kernel.plan.text().splitlines()]
    return "\n".join(lines)
