"""The bar: one line on a terminal, ten in a log, and how long it will take."""
from __future__ import annotations

import io

from muladd.progress import Bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_says_how_far_it_is():
    now = [0.0]
    for out, lines in ((io.StringIO(), 10), (Terminal(), 1)):
        now[0] = 0.0
        bar = Bar(out, lambda: now[0])
        for i in range(101):
            now[0] = i * 0.5
            bar(i, 100, f"{i} things")
        text = out.getvalue()
        assert text.count("\n") == lines and "100 things" in text and "s left" in text


def test_what_came_before_the_first_call_does_not_count_for_the_pace():
    now, out = [0.0], io.StringIO()
    bar = Bar(out, lambda: now[0])
    for done, time in ((1, 1000.0), (5, 1004.0)):  # the first step compiles
        now[0] = time
        bar(done, 10, "steps")
    assert out.getvalue().splitlines()[-1] == " 50% steps  5 s left"
