"""Benchmarks are tested on the CPU, beside the peers that are installed."""
from __future__ import annotations

import pytest

from muladd import config
from muladd.bench.peers import Peers, installed


@pytest.fixture(autouse=True)
def cpu():
    with config.context(DEVICE="CPU"):
        yield


@pytest.fixture
def peers() -> Peers:
    return installed(None, 1)
