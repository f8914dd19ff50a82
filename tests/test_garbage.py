"""Collections put off: not inside, and afterwards as before."""
from __future__ import annotations

import gc

import pytest

from muladd.garbage import uncollected


def test_nothing_is_collected_inside():
    assert gc.isenabled()
    with uncollected():
        assert not gc.isenabled()
        with uncollected():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()


def test_an_error_ends_it_and_a_collector_that_was_off_stays_off():
    @uncollected()
    def fails():
        assert not gc.isenabled()
        raise ValueError

    with pytest.raises(ValueError):
        fails()
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
