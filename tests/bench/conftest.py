"""Benchmarks are tested on the CPU, beside the peers that are installed."""
from __future__ import annotations

import pytest

from muladd import config
from muladd.bench.peers import NAMES, Peers, installed


@pytest.fixture(autouse=True)
def cpu():
    with config.context(DEVICE="CPU"):
        yield


@pytest.fixture
def peers() -> Peers:
    """All but torch.compile, which compiles for half a minute."""
    return installed([name for name in NAMES if name != "torch.compile"], 1)
