"""What a device does not have: element types, memory, itself. One clear error; nothing is lost."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import muladd
from muladd import Tensor, config, nn
from muladd import device as devices
from muladd.errors import DeviceError, OutOfMemory


def test_an_unknown_device():
    with pytest.raises(DeviceError, match="TPU"):
        Tensor.ones(3, device="TPU").numpy()
    with pytest.raises(DeviceError, match="a name such as 'CPU'"):
        Tensor.ones(3, device=3)


def test_two_devices_do_not_meet():
    with pytest.raises(DeviceError, match="add.*CPU and OPENCL"):
        Tensor.ones(3, device="CPU") + Tensor.ones(3, device="OPENCL")


def test_float64_on_a_device_without_it(monkeypatch):
    opencl = devices.get("OPENCL")
    monkeypatch.setattr(opencl, "has_float64", False)
    with config.context(NOCACHE=1):
        with pytest.raises(DeviceError, match="OPENCL.*has no float64"):
            (Tensor(np.ones(7), device="OPENCL") * 1.25).numpy()
        with pytest.raises(DeviceError, match="OPENCL.*has no float64"):  # in between, too
            (Tensor(np.ones(7, np.float32), device="OPENCL").double() / 3).sum().float().numpy()
        assert (Tensor.ones(7, device="OPENCL") * 1.125).tolist() == [1.125] * 7


def test_more_than_the_memory_is_one_error_and_state_is_kept():
    layer = nn.Linear(4, 4)
    optimizer = nn.optim.Adam(layer.parameters(), lr=0.1)
    before = layer.weight.numpy()
    free = Tensor.ones(3).realize()
    with pytest.raises(OutOfMemory, match="CPU.*bytes"):
        (Tensor.ones(1 << 21, 1 << 21) * layer.weight.sum()).realize()
    np.testing.assert_array_equal(layer.weight.numpy(), before)
    assert free.tolist() == [1, 1, 1]
    layer(Tensor.ones(2, 4)).sum().backward()
    optimizer.step()
    assert np.isfinite(layer.weight.numpy()).all() and (layer.weight.numpy() != before).any()


@pytest.mark.parametrize("done", [0, 1])
def test_a_step_that_does_not_fit_keeps_the_parameters_and_may_be_repeated(done, monkeypatch):
    layer = nn.Linear(256, 256)
    optimizer = nn.optim.SGD(layer.parameters(), lr=0.1)
    x = Tensor.ones(256, 256).realize()
    for _ in range(done):
        (layer(x) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    before = layer.weight.numpy()
    loss = (layer(x) ** 2).mean()
    loss.backward()
    memory = devices.get("CPU").memory  # type: ignore[attr-defined]
    monkeypatch.setattr(memory, "limit", 0)
    with pytest.raises(OutOfMemory, match="limit"):
        optimizer.step()
    monkeypatch.undo()
    if not done:  # there was no room for the state, before the step began
        np.testing.assert_array_equal(layer.weight.numpy(), before)
        optimizer.step()
    after = layer.weight.numpy()  # now there is room
    assert np.isfinite(after).all() and (after != before).any()


PROGRAM = """
import numpy as np
from muladd import Tensor
x = Tensor(np.arange(12, dtype=np.float32).reshape(3, 4))
print((x.softmax(1) @ x.T).sum().item())
"""


def program(folder: Path, **settings: str) -> subprocess.Popen:
    here = {**os.environ, "PYTHONPATH": str(Path(muladd.__file__).parent.parent),
            "MULADD_CACHE_DIR": str(folder), **settings}  # fmt: skip
    return subprocess.Popen([sys.executable, "-c", PROGRAM], env=here, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def results(*running: subprocess.Popen) -> set[str]:
    found = set()
    for p in running:
        out, err = p.communicate(timeout=120)
        assert p.returncode == 0, err
        found.add(out)
    return found


@pytest.mark.slow
def test_programs_share_a_cache_heal_a_damaged_one_and_survive_a_killed_one(tmp_path):
    expected = results(program(tmp_path, NOCACHE="1"))
    assert results(*[program(tmp_path) for _ in range(3)]) == expected  # all write at once
    (store,) = [f for f in tmp_path.rglob("*") if f.is_file() and f.suffix in (".db", ".sqlite")]
    store.write_bytes(b"not a database" * 1000)
    assert results(program(tmp_path)) == expected
    for wait in (0.3, 0.6, 0.9):
        killed = program(tmp_path / "another")
        try:
            killed.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            killed.kill()
        killed.communicate()
    assert results(program(tmp_path / "another")) == expected
    readonly = tmp_path / "readonly"
    readonly.write_text("a file where the folder should be")
    assert results(program(readonly)) == expected
