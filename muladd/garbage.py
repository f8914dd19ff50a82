"""Python's garbage collector, put off while many objects are made that stay.

A graph is all small objects that refer to each other: the collector looks at them again and again
as they grow, and finds nothing. With a large library loaded one look costs as much as compiling
five kernels.
"""
from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """No collection inside, neither of this thread nor of others; also as a decorator."""
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_collecting:
            gc.enable()
