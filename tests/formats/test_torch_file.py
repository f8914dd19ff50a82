"""torch's files: everything torch.save writes for tensors is read; nothing that it names is run."""
from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from muladd.errors import FormatError
from muladd.formats import StoredArray, torch_file

torch = pytest.importorskip("torch")


def saved(value, tmp_path, **options):
    path = tmp_path / "file.pt"
    torch.save(value, path, **options)
    return torch_file.open_file(path)


TYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
         "float16", "bfloat16", "float32", "float64", "float8_e4m3fn", "float8_e5m2"]  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_every_dtype(name, tmp_path):
    given = (torch.arange(12).reshape(3, 4) % 2).to(getattr(torch, name))
    read = saved({"x": given}, tmp_path)["x"]
    assert read.dtype.name == name.removesuffix("fn")
    assert read.shape == (3, 4)
    assert np.array_equal(read.numpy().astype(np.float64), given.to(torch.float64).numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict(zipped, tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    read = saved(model.state_dict(), tmp_path, _use_new_zipfile_serialization=zipped)
    assert isinstance(read, OrderedDict)
    assert list(read) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert np.array_equal(read[name].numpy(), value.numpy())


@pytest.mark.parametrize("zipped", [True, False])
def test_windows_on_one_storage(zipped, tmp_path):
    base = torch.randn(6, 8)
    views = {"base": base, "turned": base.t(), "part": base[1:4, 2:8:3], "row": base[2]}
    read = saved(views, tmp_path, _use_new_zipfile_serialization=zipped)
    for name, value in views.items():
        assert np.array_equal(read[name].numpy(), value.numpy())


def test_tied_tensors_stay_one_object(tmp_path):
    weight = torch.nn.Parameter(torch.randn(3))
    read = saved({"a": weight, "b": weight}, tmp_path)
    assert read["a"] is read["b"]
    assert read["a"].requires_grad


def test_plain_values_and_containers(tmp_path):
    given = {
        "epoch": 3, "loss": 0.5, "big": 1 << 70, "names": ["a", ("b", None, True, False)],
        "unicode": "größe", "bytes": b"\x00\xff", "set": {1, 2}, "size": torch.Size([2, 3]),
        "minus": -5, "empty": [(), [], {}], "dtype": torch.float32, "many": tuple(range(300)),
    }  # fmt: skip
    read = saved(given, tmp_path)
    assert read.pop("dtype").name == "float32"
    given.pop("dtype")
    assert read == given


def test_an_optimiser_checkpoint(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    read = saved({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path)
    moment = optimizer.state_dict()["state"][0]["exp_avg"]
    assert np.array_equal(read["optimizer"]["state"][0]["exp_avg"].numpy(), moment.numpy())
    assert read["optimizer"]["param_groups"][0]["lr"] == 1e-3


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (1, 1)])
def test_odd_shapes(shape, tmp_path):
    read = saved(torch.full(shape, 2.5), tmp_path)
    assert read.shape == shape
    assert (read.numpy() == 2.5).all()


def test_expanded_tensor(tmp_path):
    read = saved(torch.tensor([1.0, 2.0]).expand(3, 2), tmp_path)
    assert np.array_equal(read.numpy(), [[1, 2]] * 3)


# --- refused -----------------------------------------------------------------------------------


class Attack:
    def __reduce__(self):
        return (eval, ("__import__('os').environ.__setitem__('ATTACKED', '1')",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_refused_and_not_run(zipped, tmp_path, monkeypatch):
    monkeypatch.delenv("ATTACKED", raising=False)
    with pytest.raises(FormatError, match="eval.*was not run"):
        saved({"x": Attack()}, tmp_path, _use_new_zipfile_serialization=zipped)
    import os

    assert "ATTACKED" not in os.environ


@pytest.mark.parametrize("given", [
    torch.nn.Linear(2, 2), print, np.float64(3), np.arange(3), io.StringIO,
], ids=["module", "function", "scalar", "array", "class"])  # fmt: skip
def test_other_objects_are_named(given, tmp_path):
    with pytest.raises(FormatError, match="state_dict|asks for"):
        saved({"x": given}, tmp_path)


def test_complex_tensors_are_refused(tmp_path):
    with pytest.raises(FormatError, match="Complex"):
        saved(torch.zeros(2, dtype=torch.complex64), tmp_path)


def test_missing_and_foreign_files(tmp_path):
    with pytest.raises(FormatError, match=r"cannot read.*No such file"):
        torch_file.open_file(tmp_path / "nothing.pt")
    for content in (b"", b"hello", pickle.dumps([1, 2]), b"PK\x03\x04 and no archive"):
        (tmp_path / "x.pt").write_bytes(content)
        with pytest.raises(FormatError):
            torch_file.open_file(tmp_path / "x.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_never_crash(zipped, tmp_path):
    """Any flipped byte gives FormatError or a value of the same form; nothing else escapes."""
    torch.save({"w": torch.randn(4, 5), "n": [1, "a"]}, tmp_path / "a.pt",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    whole = (tmp_path / "a.pt").read_bytes()
    random = np.random.default_rng(0)
    path = tmp_path / "b.pt"
    for cut in range(0, len(whole), 61):
        path.write_bytes(whole[:cut])
        with pytest.raises(FormatError):
            torch_file.open_file(path)
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[random.integers(len(whole))] ^= 1 << random.integers(8)
        path.write_bytes(damaged)
        try:
            torch_file.open_file(path)
        except FormatError:
            pass


def test_a_window_outside_its_storage_is_refused(tmp_path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = next(n for n in members if n.endswith("data.pkl"))
    size = members[name].replace(b"K\x04\x85", b"K\x05\x85")  # the size (4,) becomes (5,)
    assert size != members[name]
    members[name] = size
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    with pytest.raises(FormatError, match=r"reaches element 4 of a storage of 4"):
        torch_file.open_file(tmp_path / "b.pt")


def test_stored_arrays_are_lazy_views(tmp_path):
    read = saved(torch.arange(1000.0), tmp_path)
    assert isinstance(read, StoredArray)
    assert not read.stored.flags.owndata
    assert not read.stored.flags.writeable
