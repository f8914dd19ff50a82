"""SIGTERM unwinds; what must not be half done is finished first."""
from __future__ import annotations

import os
import signal
import threading

import pytest

from muladd import cli
from muladd.signals import Terminated, held, terminable


def send(number):
    os.kill(os.getpid(), number)


def test_sigterm_unwinds_a_command(capsys, monkeypatch):
    done = []

    def command(_):
        try:
            send(signal.SIGTERM)
        finally:
            done.append("saved")
        pytest.fail("it goes on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(cli, "_version", command)
    assert cli.main(["version"]) == 143 and done == ["saved"]
    assert capsys.readouterr().err == "muladd: ended by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("number, error", [
    (signal.SIGTERM, Terminated), (signal.SIGINT, KeyboardInterrupt),
])  # fmt: skip
def test_signals_wait_for_the_end_of_what_is_held(number, error):
    done = []
    with terminable(), pytest.raises(error), held():
        send(number)
        done.append("whole")
    assert done == ["whole"]


def test_threads_that_get_no_signals_go_on():
    done = []

    def work():
        with terminable(), held():
            done.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [1]
