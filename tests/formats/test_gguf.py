"""GGUF: the gguf package and ours read each other; every damage is named; fuzzed."""
from __future__ import annotations

import os
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest

from muladd import Tensor
from muladd.errors import ArgumentError, DTypeError, FormatError, ShapeError
from muladd.formats import gguf, quant
from muladd.formats.gguf_values import Metadata

QUANTIZED = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"]
METADATA = {
    "general.architecture": "llama", "a.byte": np.uint8(200), "a.small": np.int8(-3),
    "a.short": np.uint16(60000), "a.signed": np.int16(-300), "a.count": 30, "a.negative": -30,
    "a.float": 0.5, "a.double": np.float64(0.1), "a.yes": True, "a.long": 1 << 40,
    "a.unsigned": np.uint64(2**64 - 1), "a.name": "größe 水 🙂", "a.empty": "",
    "a.texts": ["", "a", "é"], "a.ints": [1, -2, 3], "a.floats": np.float32([0.5, 1.5]),
    "a.bools": [True, False], "a.nested": [[1, 2], [3]], "a.bytes": np.arange(5, dtype=np.uint8),
}  # fmt: skip


def values(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def written(tmp_path, metadata, tensors, kinds=None):
    path = tmp_path / "a.gguf"
    gguf.save(path, metadata, tensors, kinds)
    return path


def same(a, b):
    if isinstance(a, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b))
    return np.array_equal(a, b)


# --- round trips ---------------------------------------------------------------------------------


def test_what_is_written_is_read(tmp_path):
    tensors = {
        "f32": values((3, 5)), "f16": values(7).astype(np.float16), "scalar": np.float32(2.5),
        "f64": values((1, 2)).astype(np.float64), "i8": np.arange(-3, 3, dtype=np.int8),
        "i64": np.arange(4).reshape(2, 1, 2), "none": np.zeros((0, 32), np.float32),
        "bf16": Tensor(values((2, 8))).cast("bfloat16"), "lazy": Tensor(values((2, 2))) * 2,
        "blocks": gguf.quantized(values((4, 64)), "Q8_0"),
    }  # fmt: skip
    found = gguf.load(written(tmp_path, METADATA, tensors))
    assert list(found.metadata) == list(METADATA) and found.architecture == "llama"
    for key, value in METADATA.items():
        assert same(found.metadata[key], value), key
    assert found.metadata.types["a.small"] == "INT8"
    assert found.metadata.types["a.nested"] == "ARRAY[ARRAY[INT32]]"
    assert list(found.tensors) == list(tensors)
    for name, value in tensors.items():
        read = found.tensors[name]
        if isinstance(value, Tensor):
            value = value.cast("float32").numpy()
        wanted = value.dequantize() if name == "blocks" else np.asarray(value)
        np.testing.assert_array_equal(read.dequantize(), wanted)
        assert read.shape == wanted.shape
    assert found.tensors["i64"].kind is quant.kind("I64")
    again = tmp_path / "b.gguf"
    gguf.save(again, found.metadata, found.tensors)
    assert again.read_bytes() == (tmp_path / "a.gguf").read_bytes()


def test_the_package_reads_what_we_write(tmp_path):
    package = pytest.importorskip("gguf")
    kinds = {name: name for name in QUANTIZED}
    tensors = {name: values((3, 512), seed) for seed, name in enumerate(QUANTIZED)}
    plain = {"matrix": values((2, 3)), "half": values((4, 2)).astype(np.float16)}
    given = {k: v for k, v in METADATA.items() if k != "a.nested"}  # which the package flattens
    path = written(tmp_path, given, {**tensors, **plain}, kinds)
    reader = package.GGUFReader(path)
    for key, value in given.items():
        read = reader.get_field(key).contents()
        assert read == pytest.approx(value) if "float" in key else same(read, value), key
    found = {t.name: t for t in reader.tensors}
    for name, kind in kinds.items():
        assert found[name].tensor_type.name == kind
        theirs = package.quants.dequantize(found[name].data, found[name].tensor_type)
        np.testing.assert_array_equal(theirs, gguf.load(path).tensors[name].dequantize())
    for name, value in plain.items():
        np.testing.assert_array_equal(found[name].data, value)


def test_we_read_what_the_package_writes(tmp_path):
    package = pytest.importorskip("gguf")
    path = tmp_path / "theirs.gguf"
    writer = package.GGUFWriter(path, "llama")
    writer.add_uint32("a.count", 7)
    writer.add_float64("a.double", 0.1)
    writer.add_array("a.texts", ["x", "水"])
    writer.add_array("a.ints", [1, 2, 3])
    writer.add_custom_alignment(64)
    x = values((4, 256))
    writer.add_tensor("plain", x)
    raw = package.quants.quantize(x, package.GGMLQuantizationType.Q5_1)
    writer.add_tensor("blocks", raw, raw_dtype=package.GGMLQuantizationType.Q5_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = gguf.load(path)
    assert found.metadata["a.texts"] == ["x", "水"] and found.metadata["a.double"] == 0.1
    assert found.metadata["a.ints"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.tensors["plain"].dequantize(), x)
    assert found.tensors["blocks"].shape == (4, 256)
    np.testing.assert_array_equal(found.tensors["blocks"].raw, raw)


def test_reading_copies_nothing_and_touches_no_tensor(tmp_path):
    path = written(tmp_path, {}, {"x": np.zeros((1 << 12, 1 << 12), np.float32)})
    tracemalloc.start()
    try:
        found = gguf.load(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert not found.tensors["x"].raw.flags.owndata
    assert not found.tensors["x"].dequantize().flags.owndata
    assert not found.tensors["x"].raw.flags.writeable


def test_the_real_model(smollm, tmp_path):
    """SmolLM2-135M-Instruct: what is read and written again is the same file."""
    found = gguf.load(smollm)
    assert found.metadata["llama.block_count"] == 30 and len(found.tensors) == 272
    assert len(found.metadata["tokenizer.ggml.tokens"]) == 49152
    assert found.tensors["token_embd.weight"].shape == (49152, 576)
    gate = found.tensors["blk.0.ffn_gate.weight"]
    assert gate.kind.name == "Q4_1" and np.isfinite(gate.dequantize()).all()
    again = tmp_path / "again.gguf"
    gguf.save(again, found.metadata, found.tensors)
    assert again.read_bytes() == smollm.read_bytes()


def test_the_real_model_quantized_anew_is_near(smollm, tmp_path):
    found = gguf.load(smollm)
    name = "blk.3.ffn_gate.weight"
    before = found.tensors[name].dequantize()[:64]
    for kind, most in (("Q8_0", 0.006), ("Q4_0", 0.09), ("Q4_1", 0.06)):
        path = written(tmp_path, {}, {name: before}, {name: kind})
        after = gguf.load(path).tensors[name].dequantize()
        assert np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2)) < most


# --- quantising ----------------------------------------------------------------------------------


def rows():
    """Rows of many sizes, and the awkward ones: zeros, one number, tiny, one sign."""
    x = values((64, 1024), 5) * np.exp(values((64, 1), 6))
    x[0], x[1, :64], x[2], x[3], x[4] = 0, 0, 1e-30, 5, x[4] * 1e-3
    x[5], x[6] = np.abs(x[5]), -np.abs(x[6])
    return x


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantising_equals_the_package_in_every_byte(kind):
    package = pytest.importorskip("gguf")
    theirs = package.quants.quantize(rows(), package.GGMLQuantizationType[kind])
    np.testing.assert_array_equal(gguf.quantized(rows(), kind).raw, theirs)


# Relative errors (root mean square) of normally distributed weights. Q8_0 and Q4_0 are ggml's own
# rounding (equal in every byte, above); of the K kinds ggml's reference reaches 0.0714 and 0.0177.
@pytest.mark.parametrize("kind, most", [
    ("Q8_0", 0.0054), ("Q4_0", 0.0865), ("Q4_1", 0.0785), ("Q4_K", 0.0725), ("Q6_K", 0.0178),
])  # fmt: skip
def test_the_error_of_a_round_trip(kind, most):
    x = values((64, 4096), 9)
    y = gguf.quantized(x, kind).dequantize()
    assert 0.9 * most < np.sqrt(np.mean((x - y) ** 2)) < most


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K"])
def test_awkward_rows_survive(kind):
    x = rows()
    y = gguf.quantized(x, kind).dequantize()
    assert np.isfinite(y).all() and not y[0].any()
    np.testing.assert_allclose(y[3], 5, rtol=1e-3)
    for i in range(4, 64):
        assert np.sqrt(np.mean((x[i] - y[i]) ** 2) / np.mean(x[i] ** 2)) < 0.13, i


def test_what_cannot_be_quantised_is_refused():
    x = values((2, 256))
    with pytest.raises(ArgumentError, match="IQ2_S is read only; expected one of Q4_0"):
        gguf.quantized(x, "IQ2_S")
    with pytest.raises(ShapeError, match="Q4_K stores blocks of 256 elements"):
        gguf.quantized(values((2, 100)), "Q4_K")
    x[1, 7] = np.nan
    with pytest.raises(ArgumentError, match="block 15 holds NaN|block 8 holds NaN"):
        gguf.quantized(x, "Q8_0")
    with pytest.raises(ArgumentError, match="exceeds float16"):
        gguf.quantized(np.full((1, 32), 1e9, np.float32), "Q8_0")


# --- split files ---------------------------------------------------------------------------------


def split(tmp_path, parts=3, **changes):
    paths = []
    for i in range(parts):
        metadata = Metadata({"split.no": np.uint16(i), "split.count": np.uint16(parts),
                             "split.tensors.count": np.int32(parts)})  # fmt: skip
        if i == 0:
            metadata["general.architecture"] = "llama"
        metadata.update(changes.get(f"part{i}", {}))
        path = tmp_path / f"model-{i + 1:05}-of-{parts:05}.gguf"
        name = changes.get("names", [f"t{n}" for n in range(parts)])[i]
        gguf.save(path, metadata, {name: np.full(4, i, np.float32)})
        paths.append(path)
    return paths


def test_split_files_are_one_model(tmp_path):
    for path in split(tmp_path):
        found = gguf.load(path)
        assert found.architecture == "llama" and list(found.tensors) == ["t0", "t1", "t2"]
        assert found.tensors["t2"].dequantize().tolist() == [2, 2, 2, 2]


def test_split_files_of_the_package(tmp_path):
    package = pytest.importorskip("gguf")
    writer = package.GGUFWriter(tmp_path / "theirs.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full(4, i, np.float32))
    writer.write_header_to_file(path=tmp_path / "theirs.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first = next(iter(sorted(tmp_path.glob("theirs-00001-of-*.gguf"))))
    assert list(gguf.load(first).tensors) == [f"t{i}" for i in range(5)]


def test_broken_splits_are_named(tmp_path):
    one, two, three = split(tmp_path)
    two.rename(tmp_path / "elsewhere.gguf")
    with pytest.raises(FormatError, match="cannot read.*model-00002-of-00003.gguf"):
        gguf.load(one)
    with pytest.raises(FormatError, match="elsewhere.gguf: is a part of 3 files.*named"):
        gguf.load(tmp_path / "elsewhere.gguf")
    (tmp_path / "elsewhere.gguf").write_bytes(three.read_bytes())
    (tmp_path / "elsewhere.gguf").rename(two)
    with pytest.raises(FormatError, match=r"00002-of-00003.gguf: split.no is 2; expected 1"):
        gguf.load(one)
    split(tmp_path, names=["t", "u", "t"])
    with pytest.raises(FormatError, match="00003-of-00003.gguf: tensor 't' is in an earlier part"):
        gguf.load(one)
    split(tmp_path, part0={"split.tensors.count": 4})
    with pytest.raises(FormatError, match="hold 3 tensors; expected 4"):
        gguf.load(one)
    split(tmp_path, part0={"split.count": 60000})
    with pytest.raises(FormatError, match="split.count is 60000"):
        gguf.load(one)
    split(tmp_path, part0={"split.count": "../../../etc/passwd"})
    with pytest.raises(FormatError, match="split.count is '../.*expected a number"):
        gguf.load(one)


# --- damage --------------------------------------------------------------------------------------


def text(value):
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def pair(key, kind, body):
    return text(key) + struct.pack("<I", kind) + body


def line(name="t", sizes=(4,), kind=0, offset=0):
    axes = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def file(pairs=(), lines=(), data=b"", version=3, counts=None):
    head = b"GGUF" + struct.pack("<IQQ", version, *(counts or (len(lines), len(pairs))))
    front = head + b"".join(pairs) + b"".join(lines)
    return front + (bytes(-len(front) % 32) + data if lines else b"")


def array(kind, count, body=b""):
    return struct.pack("<IQ", kind, count) + body


HUGE = 1 << 62
DAMAGED = {
    "nothing": (b"", "first bytes b''"),
    "another format": (b"PK\3\4" + bytes(40), "first bytes.*expected b'GGUF'"),
    "ends in the header": (b"GGUF\3\0\0\0\1", "at byte 8: the number of tensors of 8 bytes"),
    "version 1": (file(version=1), "at byte 4: version 1; expected version 2 or 3"),
    "big-endian": (b"GGUF\0\0\0\3" + bytes(16), "is big-endian"),
    "many tensors": (file(counts=(HUGE, 0)), "at byte 8: [0-9]+ tensors; expected at most"),
    "too many tensors": (file(counts=(9, 0)), "9 tensors; expected at most 0 in the 8 bytes"),
    "many keys": (file(counts=(0, HUGE)), "at byte 16: [0-9]+ keys; expected at most"),
    "long key": (file([struct.pack("<Q", 1 << 40) + bytes(99)]), "a key of 1099511627776 bytes"),
    "key past the end": (file([struct.pack("<Q", 999) + bytes(99)]), "at byte 32.*at most the 99"),
    "key not UTF-8": (file([pair(b"\xff\xfe", 7, b"\1")]), "a key is not text.*expected UTF-8"),
    "key twice": (file([pair("a", 7, b"\1")] * 2), "the key 'a' a second time"),
    "unknown type": (file([pair("a", 13, bytes(8))]), "'a' has type 13; expected a type 0 to 12"),
    "value missing": (file([pair("a", 12, b"\0")]), "'a' of 8 bytes; expected at most the 1"),
    "bool of 2": (file([pair("a", 7, b"\2")]), "'a' is a bool of 2; expected 0 or 1"),
    "text past the end": (
        file([pair("a", 8, struct.pack("<Q", 1 << 63))]), "'a' of [0-9]+ bytes.*the 0 bytes left"
    ),
    "array past the end": (
        file([pair("a", 9, array(10, HUGE, bytes(64)))]), "'a' has [0-9]+ elements.*at most 8"
    ),
    "array of nothing": (file([pair("a", 9, array(99, 0))]), "'a' is an array of type 99"),
    "array of many texts": (
        file([pair("a", 9, array(8, 1 << 23))]), "'a' has 8388608 elements.*at most 4194304"
    ),
    "texts past the end": (
        file([pair("a", 9, array(8, 2, text("b") + struct.pack("<Q", 50)))]),
        "element 1 of 'a' of 50 bytes",
    ),
    "texts missing": (file([pair("a", 9, array(8, 2, text("0123456789")))]), "element 1 of 'a'"),
    "texts not UTF-8": (file([pair("a", 9, array(8, 1, text(b"\xc3")))]), "element 0.*not text"),
    "bools of 3": (file([pair("a", 9, array(7, 2, b"\1\3"))]), "a bool of 3"),
    "nested too deep": (
        file([pair("a", 9, array(9, 1) * 6 + array(0, 0))]), "nested deeper; expected at most 4"
    ),
    "nested of two types": (
        file([pair("a", 9, array(9, 2, array(0, 1, b"\1") + array(1, 1, b"\1")))]),
        r"holds \['ARRAY\[INT8\]', 'ARRAY\[UINT8\]'\]",
    ),
    "alignment 0": (
        file([pair("general.alignment", 4, bytes(4))]), "general.alignment is 0; expected a power"
    ),
    "alignment 48": (file([pair("general.alignment", 4, b"\x30\0\0\0")]), "alignment is 48"),
    "alignment of text": (file([pair("general.alignment", 8, text("32"))]), "alignment is '32'"),
    "vast alignment": (
        file([pair("general.alignment", 4, b"\0\0\0\x80")], [line()], bytes(16)),
        "takes bytes 0 to 16 of the data; expected at most 0 bytes",
    ),
    "tensor twice": (file((), [line(), line()], bytes(64)), "tensor 't' a second time"),
    "five axes": (file((), [line(sizes=(1,) * 5)], bytes(64)), "'t' has 5 axes; expected at"),
    "axes past the end": (file(counts=(1, 0)) + text("t") + b"\4\0\0\0" + bytes(20), "a size of"),
    "unknown kind": (file((), [line(kind=77)], bytes(64)), r"of kind 77; expected one of 0"),
    "retired kind": (file((), [line(kind=31)], bytes(64)), "the retired Q4_0_4_4"),
    "half a block": (file((), [line(sizes=(48,), kind=2)], bytes(64)), "Q4_0 in rows of 48.* 32"),
    "off the grid": (file((), [line(offset=4)], bytes(64)), "at offset 4; expected a multiple of"),
    "cut off": (file((), [line()], bytes(15)), "bytes 0 to 16 of the data; expected at most 15"),
    "offset past the end": (file((), [line(offset=HUGE)], bytes(64)), "takes bytes [0-9]+ to"),
    "vast": (file((), [line(sizes=(HUGE, HUGE, HUGE))], bytes(64)), "takes bytes 0 to [0-9]{50}"),
    "vast and empty": (
        file((), [line(sizes=(HUGE, HUGE, 0))], bytes(64)), r"sizes \[0, [0-9]+, [0-9]+\]"
    ),
    "sizes of 64 bits": (file((), [line(sizes=(1 << 63, 0))], bytes(64)), r"sizes below 2\*\*63"),
    "overlap": (
        file((), [line("a", (16,)), line("b", offset=32)], bytes(64)),
        "'b' begins at 32 of the data, inside 'a'; expected at least 64",
    ),
    "the same place": (file((), [line("a"), line("b")], bytes(64)), "inside 'a'"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name, tmp_path):
    data, wanted = DAMAGED[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=wanted) as error:
        gguf.load(path)
    assert str(path) in str(error.value)


def test_a_missing_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FormatError, match="pipe' is a pipe; expected a file"):
        gguf.load(tmp_path / "pipe")
    with pytest.raises(FormatError, match="cannot read.*no.gguf.*check the path"):
        gguf.load(tmp_path / "no.gguf")


def small_file(tmp_path):
    tensors = {"a": values((2, 64)), "b": values(256), "c": np.arange(5, dtype=np.int32)}
    return written(tmp_path, METADATA, tensors, {"a": "Q4_0", "b": "Q6_K"}).read_bytes()


TELLING = [0, 1, 2, 7, 8, 9, 31, 255, 256, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, 1 << 62,
           1 << 63, (1 << 64) - 1]  # fmt: skip


def mutated(data, chance):
    """The bytes with one to three wounds: other bytes, telling numbers, cuts, moves."""
    out = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(max(1, min(len(out), 1200 if chance.random() < 0.8 else len(out))))
        wound = chance.randrange(6)
        if wound == 0:
            out[at : at + 1] = bytes([chance.randrange(256)])
        elif wound == 1:
            out[at : at + 8] = struct.pack("<Q", chance.choice(TELLING))
        elif wound == 2:
            out[at : at + 4] = struct.pack("<I", chance.choice(TELLING) & 0xFFFFFFFF)
        elif wound == 3:
            del out[at : at + chance.randint(1, 40)]
        elif wound == 4:
            out[at:at] = chance.randbytes(chance.randint(1, 40))
        else:
            del out[at:]
    return bytes(out)


def test_thousands_of_damaged_files_are_read_or_refused(tmp_path):
    """Never another exception, never more memory than a small multiple, never long."""
    data = small_file(tmp_path)
    chance = random.Random(0)
    read = refused = 0
    tracemalloc.start()
    try:
        for number in range(5000):
            given = mutated(data, chance)
            tracemalloc.reset_peak()
            before, start = tracemalloc.get_traced_memory()[0], time.monotonic()
            try:
                found = gguf.parse(given)
                for tensor in found.tensors.values():
                    tensor.dequantize()
                read += 1
            except FormatError:
                refused += 1
            assert tracemalloc.get_traced_memory()[1] - before < 1 << 20, number
            assert time.monotonic() - start < 2, number
    finally:
        tracemalloc.stop()
    assert read > 300 and refused > 1000


def test_every_cut_is_refused(tmp_path):
    data = small_file(tmp_path)
    end = len(data) - 12  # the last tensor has 20 bytes of 32
    for size in range(end):
        with pytest.raises(FormatError):
            gguf.parse(data[:size])
    gguf.parse(data[:end])


# --- misuse of save ------------------------------------------------------------------------------


def test_what_the_format_cannot_hold_is_refused_before_writing(tmp_path):
    path = tmp_path / "a.gguf"
    x = np.zeros(4, np.float32)
    cases = [
        ({"a": None}, {}, None, ArgumentError, "'a' is NoneType; expected bool"),
        ({"a": {"b": 1}}, {}, None, ArgumentError, "'a' is dict"),
        ({"a": [1, "b"]}, {}, None, ArgumentError, "'a' is a list of int, str"),
        ({"a": [True, 2]}, {}, None, ArgumentError, "'a' is a list of bool, int"),
        ({"a": 1 << 70}, {}, None, ArgumentError, "expected at most 64 bits"),
        ({"a": [1 << 63, -1]}, {}, None, ArgumentError, "no one type holds"),
        ({"a": [[1], ["b"]]}, {}, None, ArgumentError, "mixes lists"),
        ({"a": np.zeros(2, np.complex64)}, {}, None, ArgumentError, "complex64"),
        ({"": 1}, {}, None, ArgumentError, "'' is no key"),
        ({"general.alignment": 3}, {}, None, ArgumentError, "alignment is 3; expected a power"),
        ({}, {"x" * 64: x}, None, ArgumentError, "at most 63 bytes"),
        ({}, {"x": np.zeros(3, np.uint8)}, None, DTypeError, "'x' is uint8; the format has"),
        ({}, {"x": np.zeros((1,) * 5, np.float32)}, None, ShapeError, "5 axes; expected at most 4"),
        ({}, {"x": x}, {"x": "Q4_0"}, ShapeError, "Q4_0 stores blocks of 32 elements"),
        ({}, {"x": x}, {"x": "Q4_X"}, ArgumentError, "'Q4_X' is no kind"),
        ({}, {"x": x}, {"y": "Q4_0"}, ArgumentError, "kinds names 'y'"),
    ]  # fmt: skip
    for metadata, tensors, kinds, error, wanted in cases:
        with pytest.raises(error, match=wanted):
            gguf.save(path, metadata, tensors, kinds)
    assert not list(tmp_path.iterdir())


def test_types_follow_the_values_or_what_was_read(tmp_path):
    given = Metadata({"a": 7, "b": [5], "c": 1.5, "d": []})
    given.types.update(a="UINT16", b="ARRAY[UINT8]", c="FLOAT64", d="ARRAY[STRING]")
    types = gguf.load(written(tmp_path, given, {})).metadata.types
    assert types == {"a": "UINT16", "b": "ARRAY[UINT8]", "c": "FLOAT64", "d": "ARRAY[STRING]"}
    given.update(a=1 << 20, b=[-5], c=2)
    types = gguf.load(written(tmp_path, given, {})).metadata.types
    assert types["a"] == "UINT32" and types["b"] == "ARRAY[INT32]" and types["c"] == "FLOAT64"
    plain = gguf.load(written(tmp_path, {"a": [1, 1 << 40], "b": [1, 0.5], "d": []}, {}))
    assert plain.metadata.types["a"] == "ARRAY[INT64]"
    assert plain.metadata.types["b"] == "ARRAY[FLOAT32]"
    assert plain.metadata["b"].tolist() == [1, 0.5] and not len(plain.metadata["d"])
    assert plain.metadata.copy().types == plain.metadata.types
