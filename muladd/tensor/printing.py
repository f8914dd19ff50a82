"""How a tensor prints: its values, abridged, then what is not float32, plain and a constant."""
from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from muladd.ir import dtype as dt
from muladd.tensor import backend

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


def text(t: Tensor) -> str:
    """Tensor([[1., 2.]], dtype=float32). Runs, except while tracing or where a size is symbolic."""
    notes = [] if t.dtype is dt.float32 else [f"dtype={t.dtype.name}"]
    if t._leaf:
        notes.append("requires_grad=True")
    if backend.is_tracing() or not all(isinstance(n, int) for n in t.shape):
        return f"Tensor(shape={list(t.shape)}, {', '.join([*notes, 'not computed'])})"
    body = np.array2string(
        t.numpy(), separator=", ", prefix="Tensor(", precision=4, threshold=200, edgeitems=3
    )
    if 0 in t.shape:
        notes.insert(0, f"shape={list(t.shape)}")
    return f"Tensor({', '.join([body, *notes])})"
