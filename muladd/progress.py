"""How far long work is: one line that is overwritten on a terminal, elsewhere a line per tenth."""
from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO


class Bar:
    """Call it with (done, total, what to say beside), in any unit; a total of 0 is not known. A
    line is the last once done is total. What time is left is by the pace since the first call."""

    def __init__(self, out: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.out, self.clock = out, clock
        self.live = out.isatty() and os.environ.get("TERM") != "dumb"
        self._shown, self._tenth = float("-inf"), 0
        self._first: tuple[float, float] | None = None  # when the first call was, and its done

    def __call__(self, done: float, total: float, note: str = "") -> None:
        now = self.clock()
        start, before = self._first = self._first or (now, done)
        part = done / total if total else 0.0
        tenth = int(part * 10)
        if self.live and now - self._shown < 0.1 and done != total:
            return
        if not self.live and tenth == self._tenth:
            return
        self._shown, self._tenth = now, tenth
        left = (now - start) * (total - done) / (done - before) if done > before else 0.0
        bar = f"{'█' * int(part * 30):░<30}" if self.live else f"{part:4.0%}"
        told = f"  {left:,.0f} s left" if total and left >= 1 else ""
        line = f"{bar} {note}{told}"
        end = "\n" if not self.live or done == total else ""
        print(("\r" + line.ljust(99) if self.live else line), end=end, file=self.out, flush=True)
