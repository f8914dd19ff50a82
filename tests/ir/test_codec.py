"""Canonical bytes: the same everywhere, small, and read back only when exactly canonical."""
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from muladd.errors import FormatError, GraphError, MuladdError
from muladd.interp.generate import generate
from muladd.ir import (
    Body,
    CallArg,
    ScanArg,
    Storage,
    const,
    decode,
    encode,
    hash_graph,
    iota,
    make,
    ops,
    param,
    sym,
    var,
)
from muladd.ir import dtype as dt
from muladd.ir.codec import storages

ROOT = Path(__file__).resolve().parents[2]


def array(shape=(2, 3), d=dt.float32):
    return make(ops.INPUT, (), Storage(shape, d))


def small():
    """One node of most kinds, a body used twice, a scan of it, and a symbolic size."""
    n = var("n", 1, 9)
    p = [param(0, (2, n), dt.float32), param(1, (), dt.float32)]
    step = Body((make(ops.ADD, (p[0], make(ops.EXPAND, (p[1],), (2, n)))),
                 make(ops.SUM, (p[0],), (0,))), tuple(p), "step")  # fmt: skip
    x, y = array((2, n)), array((sym.add(n, 2),))
    final, rows = (make(ops.SCAN, (x, y), ScanArg(step, sym.add(n, 2), 1, 1, True, i))
                   for i in (0, 1))  # fmt: skip
    again = make(ops.CALL, (final, const(-2, dt.float32)), CallArg(step))
    padded = make(ops.PAD, (again,), (((0, 0, 0), (1, n, 0)), float("-inf")))
    flipped = make(ops.SLICE, (rows,), ((0, sym.add(n, 2), 1), (sym.sub(n, 1), n, -1)))
    return [padded, flipped, make(ops.CAST, (iota(7, dt.int32),), None, dt.bfloat16)]


# what `small` must give for ever: a change here is a new version of the format
SMALL_HASH = "455a08c77d0fb58e1089a713f4ba3ff1c3727b970b3258efedfc125536e713e5"


def test_the_bytes_of_a_graph_never_change():
    assert hash_graph(small()) == SMALL_HASH


def test_a_graph_comes_back_as_the_same_nodes():
    outputs = small()
    assert list(decode(encode(outputs), storages(outputs))) == outputs


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs_come_back(seed):
    outputs = generate(np.random.default_rng(seed), 30)[0]
    data = encode(outputs)
    assert list(decode(data, storages(outputs))) == outputs
    fresh = decode(data)
    assert encode(fresh) == data
    assert [(o.shape, o.dtype) for o in fresh] == [(o.shape, o.dtype) for o in outputs]


def test_bytes_depend_on_structure_and_not_on_the_order_of_building():
    a, b = array(), array()
    c, d = array(), array()
    right = make(ops.SQRT, (d,))
    left = make(ops.SIN, (c,))
    forward = make(ops.MUL, (make(ops.SIN, (a,)), make(ops.SQRT, (b,))))
    assert encode([forward]) == encode([make(ops.MUL, (left, right))])
    assert encode([forward]) != encode([make(ops.MUL, (right, left))])
    assert encode([make(ops.ADD, (a, a))]) != encode([make(ops.ADD, (a, b))])


def test_bytes_are_the_same_in_every_process():
    program = (
        "import numpy as np\n"
        "from muladd.interp.generate import generate\n"
        "from muladd.ir import hash_graph\n"
        "print([hash_graph(generate(np.random.default_rng(s), 30)[0]) for s in range(20)])"
    )
    answers = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", program], env=environment,
                              capture_output=True, text=True, check=True)  # fmt: skip
        answers.add(done.stdout)
    here = [hash_graph(generate(np.random.default_rng(s), 30)[0]) for s in range(20)]
    assert answers == {f"{here}\n"}


def test_repeated_structure_is_small():
    p, w = param(0, (64, 64), dt.float32), param(1, (64, 64), dt.float32)
    y = p
    for _ in range(40):
        y = make(ops.SIN, (make(ops.MUL, (y, w)),))
    layer = Body((y,), (p, w), "layer")
    x = array((64, 64))
    for _ in range(126):
        x = make(ops.CALL, (x, array((64, 64))), CallArg(layer))
    assert len(encode([x])) < 126 * 12 + 600


def test_a_million_nodes_deep_is_no_recursion():
    x = array()
    for _ in range(100_000):
        x = make(ops.SQRT, (x,))
    data = encode([x])
    assert len(data) < 210_000
    assert encode(decode(data)) == data


@pytest.mark.parametrize("d", dt.ALL, ids=lambda d: d.name)
def test_constants_of_every_dtype(d):
    values = [0, 1, d.min, d.max]
    if d.is_float:
        values += [-0.0, 0.1, 1e-3, float("nan"), -1.5]
    outputs = [const(v, d) for v in values]
    assert list(decode(encode(outputs))) == outputs


def test_storages_must_fit():
    outputs = [make(ops.ADD, (array(), array()))]
    data = encode(outputs)
    with pytest.raises(FormatError, match=r"storage 1 is float32\[2, 3\]"):
        decode(data, [Storage((2, 3), dt.float32), Storage((3, 2), dt.float32)])
    with pytest.raises(FormatError, match="more than the 1 storages"):
        decode(data, [Storage((2, 3), dt.float32)])
    with pytest.raises(FormatError, match="reads 2 storages, and 3 were given"):
        decode(data, [Storage((2, 3), dt.float32) for _ in range(3)])


def test_kernel_operations_have_no_bytes():
    with pytest.raises(GraphError, match="inside of kernels"):
        encode([sym.axis("i", 4)])


# --- what is refused -----------------------------------------------------------------------------


def test_every_truncation_is_refused():
    data = encode(small())
    for end in range(len(data)):
        with pytest.raises(FormatError):
            decode(data[:end])


def test_trailing_bytes_are_refused():
    with pytest.raises(FormatError, match="1 bytes follow the end"):
        decode(encode(small()) + b"\0")


def test_every_change_of_one_byte_gives_another_graph_or_is_refused():
    data = encode(small())
    rng = np.random.default_rng(0)
    for position in range(len(data)):
        for byte in {0, 1, 0x7F, 0x80, 0xFF, int(rng.integers(256)), data[position] ^ 1}:
            changed = data[:position] + bytes([byte]) + data[position + 1 :]
            try:
                outputs = decode(changed)
            except FormatError:
                continue
            assert encode(outputs) == changed


@pytest.mark.parametrize("seed", range(40))
def test_random_damage_is_refused_or_canonical(seed):
    """Bytes cut, doubled, exchanged: FormatError or a graph, and never any other exception."""
    rng = np.random.default_rng(seed)
    data = encode(generate(rng, 25)[0])
    other = encode(generate(rng, 25)[0])
    for _ in range(60):
        damaged = bytearray(data)
        for _ in range(int(rng.integers(1, 4))):
            i, j = sorted(int(k) for k in rng.integers(0, len(damaged), 2))
            kind = int(rng.integers(5))
            if kind == 0:
                damaged[i] = int(rng.integers(256))
            elif kind == 1:
                del damaged[i : i + int(rng.integers(1, 4))]
            elif kind == 2:
                damaged[i:i] = rng.bytes(int(rng.integers(1, 12)))
            elif kind == 3:
                damaged[i:j] = other[i:j]
            else:
                damaged[i:i] = b"\xff" * int(rng.integers(1, 11)) + b"\x01"
        try:
            outputs = decode(bytes(damaged))
        except FormatError as error:
            assert len(str(error)) > 20
            continue
        assert encode(outputs) == bytes(damaged)


def written(ops_, dtypes, texts, items, outputs=b"\x01\x01", count=None):
    """A file put together by hand."""
    def table(names):
        out = bytes([len(names)])
        for name in names:
            out += bytes([len(name)]) + name.encode()
        return out

    count = len(items) if count is None else count
    return (b"muladd\x01" + table(ops_) + table(dtypes) + table(texts) + bytes([count])
            + b"".join(items) + outputs)  # fmt: skip


ONE = b"\x01\x00\x00\x00\x80\x3f"  # CONST float32 1.0, where CONST is operation 0
HUGE = b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"
HOSTILE = {
    "empty": b"",
    "another file": b"\x7fELF" + bytes(60),
    "another version": b"muladd\x02",
    "unknown op": written(["CONVOLVE"], [], [], []),
    "kernel op": written(["LOAD"], [], [], []),
    "unknown dtype": written(["CONST"], ["int4"], [], []),
    "a name that is no text": b"muladd\x01\x01\x02\xff\xfe",
    "a very long name": b"muladd\x01\x01" + HUGE,
    "more items than bytes": b"muladd\x01\x00\x00\x00" + HUGE,
    "unused table entries": written(["CONST", "ADD"], ["float32"], [], [ONE]),
    "duplicate items": written(["CONST"], ["float32"], [], [ONE, ONE]),
    "unread items": written(["CONST"], ["float32"], [], [ONE, b"\x01\x00\x00\x00\x00\x40"]),
    "a forward reference": written(["CONST", "ADD"], ["float32"], [], [ONE, b"\x02\x01\x02"]),
    "a reference to itself": written(["CONST", "ADD"], ["float32"], [], [ONE, b"\x02\x00\x01"]),
    "overlong number": written(["CONST"], ["float32"], [], [b"\x81\x00\x00\x00\x00\x80\x3f"]),
    "a number of 11 bytes": written(["IOTA"], ["int32"], [], [b"\x01\x00" + b"\xff" * 11]),
    "negative size": written(["IOTA"], ["int32"], [], [b"\x01\x00\x02"]),
    "too many elements": written(["IOTA"], ["int32"], [], [b"\x01\x00" + HUGE]),
    "rank 65": written(["INPUT"], ["int8"], [], [b"\x01\x00\x00\x00\x41" + b"\x04" * 65]),
    "unused dtype number": written(["IOTA"], ["int32"], [], [b"\x01\x01\x04"]),
    "an int8 of 300": written(["CONST"], ["int8"], [], [b"\x01\x00\xd8\x04"]),
    "a size of two kinds": written(
        ["INPUT"], [], ["n"], [b"\x01\x02\x00\x01\x05", b"\x01\x02\x00\x01\x06"], b"\x02\x01\x02"
    ),
    "least above greatest": written(["INPUT"], [], ["n"], [b"\x01\x02\x00\x05\x01"]),
    "a float as a size": written(
        ["CONST", "IOTA"], ["float32", "int32"], [], [ONE, b"\x02\x01\x03"]),
    "a call of no body": written(["CALL"], [], [], [b"\x01\x01\x00"]),
    "a body without results": written([], [], [""], [b"\x00\x00\x00\x00\x00\x00"], b"\x00"),
    "a body of a foreign parameter": written(
        ["INPUT"], ["int8"], [""],
        [b"\x01\x01\x00\x00\x00\x00", b"\x00\x00\x00\x01\x01\x00\x00"]),
    "a parameter that is a constant": written(
        ["CONST"], ["float32"], [""], [ONE, b"\x00\x00\x01\x01\x01\x01\x00\x00"]),
    "a gradient that is not there": written(
        ["CONST"], ["float32"], [""], [ONE, b"\x00\x00\x00\x01\x01\x01\x00"]),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bytes_are_refused(name):
    with pytest.raises(FormatError, match="graph: .{10}"):
        decode(HOSTILE[name])


def test_a_size_cannot_explode_as_a_polynomial():
    """Thirty squarings of (n + 1) are 200 bytes, and would be a billion terms."""
    add = b"\x03\x02\x01"
    items = [b"\x01\x02\x00\x01\x05", b"\x02\x00\x02", add]  # n, 1, n + 1
    items += [b"\x04\x01\x01"] * 30
    items += [b"\x05\x00\x03"]  # IOTA of that many
    data = written(["INPUT", "CONST", "ADD", "MUL", "IOTA"], ["int64"], ["n"], items)
    with pytest.raises(FormatError, match="too long"):
        decode(data)


def test_bodies_nest_only_so_deep():
    def nested(depth):
        p = param(0, (2,), dt.float32)
        body = Body((make(ops.SQRT, (p,)),), (p,))
        for _ in range(depth):
            body = Body((make(ops.CALL, (p,), CallArg(body)),), (p,))
        return [make(ops.CALL, (array((2,)),), CallArg(body))]

    assert encode(decode(encode(nested(20)))) == encode(nested(20))
    with pytest.raises(FormatError, match="nested too deeply"):
        decode(encode(nested(40)))


def test_errors_are_in_the_tree():
    assert issubclass(FormatError, MuladdError)
