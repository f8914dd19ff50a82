"""Ctrl-C and SIGTERM: both unwind a command, and neither comes where work would be half done."""
from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Terminated(SystemExit):
    """SIGTERM came."""


@contextmanager
def terminable() -> Iterator[None]:
    """In this block SIGTERM raises Terminated, as Ctrl-C raises KeyboardInterrupt."""

    def end(*_: object) -> NoReturn:
        raise Terminated(128 + signal.SIGTERM)

    with _handled(end, signal.SIGTERM):
        yield


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C and SIGTERM that come in this block have their effect at its end."""
    waiting: list[int] = []
    try:
        with _handled(lambda number, _: waiting.append(number), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for number in waiting:
            signal.raise_signal(number)


@contextmanager
def _handled(handler: Any, *numbers: int) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # signals never come to others
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, signal.SIG_DFL if old is None else old)
