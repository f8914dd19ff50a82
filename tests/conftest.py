"""What all tests share: the devices they run on, and one thread for the oracle."""
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for `from oracle import compare`

DEVICES = os.environ.get("MULADD_TEST_DEVICES", "CPU").split(",")


def pytest_configure(config):
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(params=DEVICES)
def device(request):
    """The name of a device; tensors made in the test live there unless told otherwise."""
    from muladd import config

    with config.context(DEVICE=request.param):
        yield request.param


@pytest.fixture
def rng():
    """Numbers that are the same in every run."""
    return np.random.default_rng(7)
