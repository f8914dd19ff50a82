"""How far long work is: one line that is overwritten on a terminal, elsewhere a line per tenth."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO


class Bar:
    """Call it with (done, total, what to say beside); a total of 0 is not known. A line is the last
    once done is total."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.clock = out, clock
        self.live = out.isatty() and os.environ.get("TERM") != "dumb"
        self.start = clock()
        self._shown, self._tenth = float("-inf"), 0
        self._first: int | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = self.clock()
        self._first = done if self._first is None else self._first  # what was there before
        part = done / total if total else 0.0
        tenth = int(part * 10)
        if self.live and now - self._shown < 0.1 and done != total:
            return
        if not self.live and tenth == self._tenth:
            return
        self._shown, self._tenth = now, tenth
        took = now - self.start
        left = took * (total - done) / (done - self._first) if done > self._first else 0.0
        bar = f"{'█' * int(part * 30):░<30}" if self.live else f"{part:4.0%}"
        told = f"  {left:,.0f} s left" if total and left >= 1 else ""
        line = f"{bar} {note}{told}"
        end = "\n" if not self.live or done == total else ""
        print(("\r" + line.ljust(99) if self.live else line), end=end, file=self.out, flush=True)
