"""The language: dtypes, the op table, interned nodes, symbolic sizes. Knows nothing of devices."""
from muladd.ir import dtype, node, ops, sym
from muladd.ir.codec import decode, encode, hash_graph
from muladd.ir.dtype import DType
from muladd.ir.node import (
    Body,
    CallArg,
    Dim,
    Node,
    Param,
    ScanArg,
    Shape,
    Storage,
    Var,
    const,
    iota,
    is_const,
    make,
    param,
    rebuild,
    substitute,
    toposort,
    var,
    variables,
)
from muladd.ir.ops import Op

__all__ = [
    "Body", "CallArg", "DType", "Dim", "Node", "Op", "Param", "ScanArg", "Shape", "Storage", "Var",
    "const", "decode", "dtype", "encode", "hash_graph", "iota", "is_const", "make",
    "node", "ops", "param", "rebuild", "substitute", "sym", "toposort", "var", "variables",
]  # fmt: skip
