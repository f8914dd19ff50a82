"""Kinds of blocks: bit for bit what the gguf package decodes, as NumPy and as a graph."""
from __future__ import annotations

import ctypes

import numpy as np
import pytest

from muladd import Tensor, config
from muladd.errors import ArgumentError, DTypeError, ShapeError
from muladd.formats import quant
from muladd.formats.quant.codebooks import table

BLOCKS = [k for k in quant.KINDS.values() if k.dtype is None]
NOT_IN_THE_PACKAGE = {"Q8_1", "Q8_K", "Q1_0", "Q2_0"}  # which at best names them


def random_bytes(kind, rows=5, blocks=3):
    """Any bytes at all are blocks; so scales are subnormal, infinite and NaN, too."""
    random = np.random.default_rng(kind.number)
    return random.integers(0, 256, (rows, blocks * kind.bytes), dtype=np.uint8)


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def same_bits(a, b):
    assert a.dtype == b.dtype == np.float32 and a.shape == b.shape
    assert np.array_equal(np.isnan(a), np.isnan(b))
    numbers = ~np.isnan(a)
    assert np.array_equal(a[numbers].view(np.uint32), b[numbers].view(np.uint32))


def test_sizes_are_those_of_the_package():
    constants = pytest.importorskip("gguf.constants")
    names = {t.name: t for t in constants.GGMLQuantizationType}
    assert names.keys() <= quant.KINDS.keys()
    for name, number in names.items():
        kind = quant.KINDS[name]
        assert kind.number == number
        if name != "Q8_1":  # there still with float32 scales; files have float16 ones
            assert (kind.elements, kind.bytes) == constants.GGML_QUANT_SIZES[number]


@pytest.mark.filterwarnings("ignore:.*encountered:RuntimeWarning")
@pytest.mark.parametrize("kind", [k for k in BLOCKS if k.name not in NOT_IN_THE_PACKAGE], ids=str)
def test_decoding_equals_the_package_bit_for_bit(kind):
    gguf = pytest.importorskip("gguf")
    raw = random_bytes(kind, 64, 32)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind.number))
    same_bits(quant.decode(raw, kind), theirs)


@pytest.mark.parametrize("kind", [k for k in BLOCKS if k.name != "Q8_1"], ids=str)
def test_decoding_equals_llama_cpp_bit_for_bit(kind, ggml):
    raw = random_bytes(kind, 64, 8)
    out = np.empty(64 * 8 * kind.elements, np.float32)
    name = kind.name.lower().replace("_k", "_K")
    ggml[f"dequantize_row_{name}"](pointer(raw), pointer(out), ctypes.c_int64(out.size))
    same_bits(quant.decode(raw, kind).reshape(-1), out)


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K"])
def test_quantising_loses_no_more_than_llama_cpp(kind, ggml):
    kind = quant.kind(kind)
    x = np.random.default_rng(5).standard_normal((64, 2048)).astype(np.float32)
    x[32:] *= np.random.default_rng(6).standard_normal((32, 2048)).astype(np.float32)
    theirs = np.empty((64, kind.size(2048)), np.uint8)
    function = ggml[f"quantize_{kind.name.lower().replace('_k', '_K')}"]
    function.restype = ctypes.c_size_t
    sizes = ctypes.c_int64(64), ctypes.c_int64(2048)
    assert function(pointer(x), pointer(theirs), *sizes, None) == theirs.nbytes
    ours = quant.quantize(x, kind)
    assert (ours == theirs).mean() > (0.99 if kind.name.endswith("K") else 0.9999)
    for half in (slice(32), slice(32, None)):
        before, after = (np.mean((quant.decode(r, kind)[half] - x[half]) ** 2)
                         for r in (theirs, ours))  # fmt: skip
        assert after <= before * 1.001


@pytest.mark.parametrize("kind", [*BLOCKS, *map(quant.kind, ("F32", "F16", "BF16"))], ids=str)
def test_the_graph_equals_the_decoder_bit_for_bit(kind):
    raw = random_bytes(kind)
    for device in ("CPU", "INTERP"):
        with config.context(PROFILE="exact", DEVICE=device):
            same_bits(quant.dequantize(Tensor(raw), kind).numpy(), quant.decode(raw, kind))


@pytest.mark.parametrize("kind", ["Q4_0", "Q6_K", "IQ2_S"])
def test_a_product_with_blocks_is_one_kernel(kind):
    kind = quant.kind(kind)
    raw = np.random.default_rng(0).integers(0, 64, (8, 2 * kind.bytes), dtype=np.uint8)
    x = Tensor(np.random.default_rng(1).standard_normal(2 * kind.elements).astype(np.float32))
    y = (quant.dequantize(Tensor(raw), kind) * x).sum(-1)
    assert len(y.kernels()) == 1
    exact = quant.decode(raw, kind).astype(np.float64)
    scale = np.abs(exact) @ np.abs(x.numpy())
    assert np.all(np.abs(y.numpy() - exact @ x.numpy()) <= 1e-6 * scale)


@pytest.mark.parametrize("kind", BLOCKS, ids=str)
def test_elements_are_scale_times_code_plus_offset(kind):
    raw = np.random.default_rng(3).integers(0, 100, (7, kind.bytes), dtype=np.uint8)
    codes, (scale, offset) = quant.codes(raw, kind), quant.scales(raw, kind)
    assert codes.dtype == np.int8 and codes.shape == (7, kind.elements)
    groups = codes.reshape(7, scale.shape[-1], -1).astype(np.float32)
    values = groups * scale[..., None] + (0 if offset is None else offset[..., None])
    np.testing.assert_array_equal(values.reshape(7, -1), quant.decode(raw, kind))


def test_kinds_that_no_package_decodes():
    half = np.float16(0.5).tobytes()
    q8_1 = np.frombuffer(half + half + np.arange(-16, 16, dtype=np.int8).tobytes(), np.uint8)
    np.testing.assert_array_equal(quant.decode(q8_1, "Q8_1"), np.arange(-16, 16) / 2)
    quarter = np.float32(0.25).tobytes()
    codes = np.arange(-128, 128).astype(np.int8).tobytes()
    q8_k = np.frombuffer(quarter + codes + bytes(32), np.uint8)
    np.testing.assert_array_equal(quant.decode(q8_k, "Q8_K"), np.arange(-128, 128) / 4)
    q1_0 = np.frombuffer(half + bytes([0b101] + [255] * 15), np.uint8)
    values = quant.decode(q1_0, "Q1_0")
    assert values[:8].tolist() == [0.5, -0.5, 0.5] + [-0.5] * 5 and (values[8:] == 0.5).all()


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"])
def test_plain_kinds(name):
    kind = quant.kind(name)
    values = np.array([0, 1, -2, 100], kind.dtype.numpy)
    raw = np.frombuffer({"BF16": values.view(np.uint32) >> 16}.get(name, values).astype(
        kind.dtype.storage).tobytes(), np.uint8)  # fmt: skip
    decoded = quant.decode(raw, name)
    np.testing.assert_array_equal(decoded, values)
    wanted = {"F16": np.float32, "BF16": np.float32}.get(name, kind.dtype.numpy)
    assert decoded.dtype == wanted


def test_codebooks_are_read_only_and_ascending():
    for name, size in (("IQ1_S", 2048), ("IQ2_XXS", 256), ("IQ2_XS", 512), ("IQ2_S", 1024),
                       ("IQ3_XXS", 256), ("IQ3_S", 512)):  # fmt: skip
        points = table(name)
        assert len(points) == size == len(np.unique(points, axis=0))
        with pytest.raises(ValueError, match="read-only"):
            points[0] = 0


def test_misuse_is_named():
    with pytest.raises(ArgumentError, match="'Q9_Z' is no kind.*Q4_K"):
        quant.decode(np.zeros(4, np.uint8), "Q9_Z")
    with pytest.raises(DTypeError, match="decode: expected the stored bytes as uint8, got float32"):
        quant.decode(np.zeros(18, np.float32), "Q4_0")
    with pytest.raises(DTypeError, match="dequantize.*list"):
        quant.dequantize([1, 2], "Q4_0")
    with pytest.raises(ShapeError, match=r"\[2, 19\] bytes.*18 bytes for 32"):
        quant.dequantize(Tensor(np.zeros((2, 19), np.uint8)), "Q4_0")
    with pytest.raises(ArgumentError, match="I32 is a plain kind"):
        quant.dequantize(Tensor(np.zeros(4, np.uint8)), "I32")
    with pytest.raises(ArgumentError, match="F32 is a plain kind"):
        quant.codes(np.zeros((1, 4), np.uint8), "F32")
    with pytest.raises(ShapeError, match="blocks of 18 bytes"):
        quant.codes(np.zeros((1, 36), np.uint8), "Q4_0")
