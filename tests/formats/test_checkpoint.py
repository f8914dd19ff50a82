"""Folders of safetensors: one file or many, what is wrong with them, and where paths may lead."""
from __future__ import annotations

import json
import random

import numpy as np
import pytest

from muladd.errors import FormatError
from muladd.formats import StoredArray, checkpoint, safetensors
from muladd.ir import dtype as dt

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def array(value):
    return StoredArray(dt.float32, np.full(3, value, np.float32))


def folder(tmp_path, config='{"hidden_size": 3}', places=None):
    (tmp_path / "config.json").write_text(config)
    if places is None:
        safetensors.write_file(tmp_path / "model.safetensors", {"a": array(1), "b": array(2)})
        return tmp_path
    safetensors.write_file(tmp_path / FIRST, {"a": array(1)})
    safetensors.write_file(tmp_path / SECOND, {"b": array(2), "c": array(3)})
    index = {"metadata": {"total_size": 36}, "weight_map": places}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_one_file(tmp_path):
    found = checkpoint.load(folder(tmp_path))
    assert found.config == {"hidden_size": 3} and sorted(found) == ["a", "b"]
    assert found["b"].numpy().tolist() == [2, 2, 2] and len(found) == 2
    assert not found["a"].stored.flags.owndata


def test_many_files(tmp_path):
    found = checkpoint.load(folder(tmp_path, places={"c": SECOND, "a": FIRST, "b": SECOND}))
    assert {name: found[name].numpy()[0] for name in found} == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize("file", [
    "../secret.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors",
    "C:x.safetensors", ".hidden.safetensors", "x.bin", "", "a\0.safetensors", 7, None, ["x"],
])  # fmt: skip
def test_no_path_leads_out_of_the_folder(file, tmp_path):
    with pytest.raises(FormatError, match="index.json: names the file.*in the same folder"):
        checkpoint.load(folder(tmp_path, places={"a": file}))


def test_what_is_wrong_is_named(tmp_path):
    with pytest.raises(FormatError, match="nowhere: is no folder"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="cannot read.*config.json"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FormatError, match="has neither model.safetensors nor"):
        checkpoint.load(tmp_path)
    for text, wanted in (("[1]", "holds a list"), ("{", "is not JSON"), ("[" * 10**5, "not JSON"),
                         ('{"a": ' + "9" * 10**5 + "}", "is not JSON")):  # fmt: skip
        with pytest.raises(FormatError, match=wanted):
            checkpoint.load(folder(tmp_path, config=text))


def test_a_wrong_index_is_named(tmp_path):
    (tmp_path / "more").mkdir()
    here = tmp_path / "more"
    with pytest.raises(FormatError, match="weight_map is list"):
        checkpoint.load(folder(here, places=["a"]))
    with pytest.raises(FormatError, match="'a' should lie in 'model-00002-of-00002.safetensors'"):
        checkpoint.load(folder(here, places={"a": SECOND}))
    with pytest.raises(FormatError, match="cannot read.*gone.safetensors"):
        checkpoint.load(folder(here, places={"a": "gone.safetensors"}))
    (folder(here, places={"a": FIRST}) / FIRST).write_bytes(b"1234")
    with pytest.raises(FormatError, match="00001-of-00002.safetensors: has 4 bytes"):
        checkpoint.load(here)


def test_thousands_of_damaged_safetensors_are_read_or_refused():
    arrays = {"a": array(1), "größe": StoredArray(dt.int8, np.arange(6, dtype=np.int8))}
    data = safetensors.to_bytes(arrays, {"made by": "hand"})
    chance = random.Random(0)
    read = refused = 0
    for _ in range(5000):
        given = bytearray(data)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(len(given))
            wound = chance.randrange(4)
            if wound == 0:
                given[at] = chance.randrange(256)
            elif wound == 1:
                given[at : at + 1] = chance.choice([b"9" * 30, b"[" * 2000, b"-", b'"', b"{}"])
            elif wound == 2:
                del given[at : at + chance.randint(1, 20)]
            else:
                given[at : at + 8] = chance.choice([0, 7, 1 << 31, 1 << 63]).to_bytes(8, "little")
            if not given:
                break
        try:
            for value in safetensors.parse(bytes(given)).values():
                value.numpy()
            read += 1
        except FormatError:
            refused += 1
    assert read > 100 and refused > 1000
