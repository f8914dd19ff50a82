"""A few lines that evaluate elementwise graphs, so that these tests wait for nobody."""
from __future__ import annotations

import numpy as np

from muladd.ir import ops, toposort
from muladd.ir.dtype import DType
from muladd.ir.node import Node


def cast(a: np.ndarray, to: DType) -> np.ndarray:
    if to.is_int and a.dtype.kind == "f":
        whole = np.clip(np.nan_to_num(a), float(to.min), float(to.max))
        return whole.astype(to.numpy)
    return a.astype(to.numpy)


def elementwise(
    output: Node, inputs: dict[Node, np.ndarray], contract: bool = False
) -> np.ndarray:
    """The value of an elementwise graph; `contract` computes every a*b + c with one rounding
    (float32 through float64, which is that rounding but for rare ties; float64 through longdouble)."""
    done = dict(inputs)
    for n in toposort((output,)):
        if n in done:
            continue
        if n.op is ops.CONST:
            done[n] = np.array(n.arg, n.dtype.numpy)
        elif n.op is ops.EXPAND:
            done[n] = done[n.srcs[0]]
        elif n.op is ops.CAST:
            done[n] = cast(done[n.srcs[0]], n.dtype)
        elif n.op is ops.BITCAST:
            done[n] = np.ascontiguousarray(done[n.srcs[0]]).view(n.dtype.numpy)
        elif n.op is ops.DIV and n.dtype.is_int:
            done[n] = done[n.srcs[0]] >> int(np.log2(float(done[n.srcs[1]])))
        elif contract and n.op is ops.ADD and n.dtype.is_float and _product(n) is not None:
            product, other = _product(n)
            wide = np.float64 if n.dtype.bits == 32 else np.longdouble
            a, b, c = (done[s].astype(wide) for s in (*product.srcs, other))
            done[n] = (a * b + c).astype(n.dtype.numpy)
        else:
            done[n] = n.op.numpy(*(done[s] for s in n.srcs))
    return done[output]


def _product(n: Node) -> tuple[Node, Node] | None:
    a, b = n.srcs
    if a.op is ops.MUL:
        return a, b
    return (b, a) if b.op is ops.MUL else None


def ulps(got: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """The distance to the exact value (wider floats) in units of the last place of got's type.

    The unit is that of the binade of the exact value. Where the exact value is NaN, or overflows,
    equality is asked for: any difference counts as infinitely many units.
    """
    info = np.finfo(got.dtype)
    expected = exact.astype(got.dtype)
    special = ~np.isfinite(expected) | ~np.isfinite(got)
    safe = np.where(special, 1.0, exact)
    tiny = exact.dtype.type(info.smallest_normal)
    exponent = np.frexp(np.maximum(np.abs(safe), tiny))[1]
    unit = np.ldexp(exact.dtype.type(1), exponent - 1 - info.nmant)
    distance = np.abs(np.where(special, 0, got).astype(exact.dtype) - np.where(special, 0, exact))
    same = (got == expected) | (np.isnan(got) & np.isnan(expected))
    return np.where(special, np.where(same, 0.0, np.inf), (distance / unit).astype(float))
