"""safetensors: the reference library and ours read each other; every damage is named."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import muladd
from muladd.errors import FormatError
from muladd.formats import StoredArray, safetensors
from muladd.ir import dtype as dt

ALL = list(safetensors.NAMES)


def stored(values, dtype=dt.float32):
    return StoredArray(dtype, dt.encode(np.asarray(values, dtype.numpy), dtype))


def raw(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def line(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("dtype", ALL, ids=lambda d: d.name)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (5, 7)])
def test_round_trip(dtype, shape, tmp_path):
    random = np.random.default_rng(0)
    given = stored(random.integers(0, 2, shape) * 3, dtype)
    path = tmp_path / "a.safetensors"
    safetensors.write_file(path, {"x": given, "y": given}, {"author": "größe"})
    file = safetensors.open_file(path)
    assert file.metadata == {"author": "größe"}
    assert set(file) == {"x", "y"}
    assert file["x"].dtype is dtype
    assert file["x"].shape == shape
    assert np.array_equal(file["y"].stored, given.stored)


def test_the_reference_library_agrees():
    reference = pytest.importorskip("safetensors.numpy")
    random = np.random.default_rng(1)
    arrays = {
        "half": random.standard_normal((3, 2)).astype(np.float16),
        "bytes": random.integers(0, 255, 3).astype(np.uint8),
        "bool": np.array([True, False]),
        "double": random.standard_normal((2, 2)),
        "long": np.array(7),
    }
    ours = safetensors.to_bytes({k: stored(v, dt.dtype(v.dtype)) for k, v in arrays.items()})
    theirs = reference.save(arrays)
    assert ours == theirs
    for name, array in reference.load(ours).items():
        assert np.array_equal(array, arrays[name])
        assert np.array_equal(safetensors.parse(theirs)[name].numpy(), array)


def test_arrays_lie_aligned_and_equal_input_gives_equal_bytes():
    a = {"b": stored([1], dt.uint8), "a": stored([1.0], dt.float64), "c": stored([2], dt.int16)}
    b = dict(reversed(a.items()))
    assert safetensors.to_bytes(a) == safetensors.to_bytes(b)
    for array in safetensors.parse(safetensors.to_bytes(a)).values():
        assert array.stored.flags.aligned


def test_reading_is_lazy(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.write_file(path, {"x": stored(np.zeros(1 << 20))})
    array = safetensors.open_file(path)["x"]
    assert not array.stored.flags.owndata
    assert not array.numpy().flags.owndata


def test_non_contiguous_arrays_are_written_in_row_major_order():
    given = np.arange(12, dtype=np.float32).reshape(3, 4)
    data = safetensors.to_bytes({"x": StoredArray(dt.float32, given.T)})
    assert np.array_equal(safetensors.parse(data)["x"].numpy(), given.T)


DAMAGED = {
    "empty": (b"", "8 are needed"),
    "short": (b"\x02\0\0", "8 are needed"),
    "header beyond the file": ((1 << 40).to_bytes(8, "little") + b"{}", "says its header has"),
    "header one byte too long": ((3).to_bytes(8, "little") + b"{}", "says its header has"),
    "not json": (raw(b"{nope}"), "not JSON"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not JSON"),
    "not an object": (raw(b"[1]"), "not a JSON object"),
    "leading space": (raw(b" {}"), "not a JSON object"),
    "deep": (raw(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not JSON|not dtype"),
    "infinity": (raw(b'{"a": Infinity}'), "Infinity"),
    "twice": (raw(b'{"a": 1, "a": 2}'), "'a' twice"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "text to text"),
    "entry": (raw({"a": 5}), "'a' is 5"),
    "missing key": (raw({"a": {"dtype": "F32", "shape": []}}), "'a' is"),
    "unknown dtype": (raw({"a": line("F4")}, bytes(8)), "dtype 'F4'"),
    "dtype of another type": (raw({"a": line(["F32"])}, bytes(8)), "dtype"),
    "negative size": (raw({"a": line(shape=(-2,))}, bytes(8)), "not a list of sizes"),
    "size is a float": (raw({"a": line(shape=(2.0,))}, bytes(8)), "not a list of sizes"),
    "size is a bool": (raw({"a": line(shape=(True, 2))}, bytes(8)), "not a list of sizes"),
    "backwards": (raw({"a": line(offsets=(8, 0))}, bytes(8)), "data_offsets"),
    "beyond the end": (raw({"a": line(offsets=(4, 12))}, bytes(8)), "data_offsets"),
    "too few bytes": (raw({"a": line(shape=(3,))}, bytes(8)), "of 12 bytes, and is given 8"),
    "huge": (raw({"a": line(shape=(1 << 62, 1 << 62))}, bytes(8)), "and is given 8"),
    "overlap": (raw({"a": line(), "b": line(offsets=(4, 12))}, bytes(12)), "'b' overlaps 'a'"),
    "hole": (raw({"a": line(offsets=(4, 12))}, bytes(12)), "4 bytes before 'a'"),
    "rest": (raw({"a": line()}, bytes(9)), "1 bytes at the end"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name, tmp_path):
    data, message = DAMAGED[name]
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(FormatError, match=message):
        safetensors.open_file(tmp_path / "a.safetensors")


def test_every_truncation_and_many_flips_are_survived():
    whole = safetensors.to_bytes({"x": stored(np.arange(6.0)), "y": stored([1, 2], dt.int8)})
    for cut in range(len(whole)):
        with pytest.raises(FormatError):
            safetensors.parse(whole[:cut])
    random = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        try:
            safetensors.parse(bytes(damaged))
        except FormatError:
            pass


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FormatError, match="cannot read"):
        safetensors.open_file(tmp_path / "nothing")
    with pytest.raises(FormatError, match="cannot read"):
        safetensors.open_file(tmp_path)
    with pytest.raises(FormatError, match="cannot write"):
        safetensors.write_file(tmp_path / "no" / "folder", {})


def test_bad_names_and_metadata(tmp_path):
    with pytest.raises(FormatError, match="named"):
        safetensors.to_bytes({"__metadata__": stored([1.0])})
    with pytest.raises(FormatError, match="text to text"):
        safetensors.to_bytes({}, {"epoch": 3})  # type: ignore[dict-item]


def test_saving_over_a_file_in_use_leaves_what_was_loaded(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.save({"a": np.arange(100_000.0)}, path)
    loaded = safetensors.load(path)
    safetensors.save({"a": np.zeros(1)}, path)  # shorter: a page behind its end would be fatal
    assert loaded["a"].numpy()[-1] == 99_999 and safetensors.load(path)["a"].shape == (1,)
    whole = safetensors.parse(path.read_bytes())
    assert whole["a"].numpy().tolist() == [0.0]


def test_a_file_cut_short_is_refused_when_it_is_opened(tmp_path):
    path = tmp_path / "weights.safetensors"
    safetensors.save({"a": np.arange(100_000.0)}, path)
    os.truncate(path, 5000)
    with pytest.raises(FormatError, match="'a' has data_offsets .* in .* bytes of data"):
        safetensors.load(path)


def test_a_failing_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.write_file(path, {"x": stored([1.0])})
    before = path.read_bytes()
    with pytest.raises(FormatError):
        safetensors.write_file(path, {"x": stored([2.0]), "__metadata__": stored([2.0])})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


def test_a_killed_write_leaves_the_old_file(tmp_path):
    """A process that dies in the middle of writing: the old file is whole."""
    path = tmp_path / "a.safetensors"
    safetensors.write_file(path, {"x": stored([1.0])})
    before = path.read_bytes()
    script = f"""
import os
import subprocess
import sys
from pathlib import Path
from muladd.formats.stored import write_atomically

def pieces():
    yield b"half of a new file"
    os.kill(os.getpid(), 9)

write_atomically({str(path)!r}, pieces(), "test")
"""
    here = {**os.environ, "PYTHONPATH": str(Path(muladd.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", script], env=here, timeout=60)
    assert done.returncode == -9
    assert len(os.listdir(tmp_path)) == 2, "the unfinished file is beside it"
    assert path.read_bytes() == before
    safetensors.write_file(path, {"x": stored([3.0])})
    assert safetensors.open_file(path)["x"].numpy()[0] == 3.0
