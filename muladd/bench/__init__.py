"""Measuring muladd beside its peers: `muladd bench`.

command.py is the loop; case.py says what a benchmark is; cases.py and models.py list them;
measure.py times; roofline.py measures the machine; table.py prints.
"""
from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Run `muladd bench` with these arguments; gives the exit code."""
    from muladd.bench import command

    return command.main(arguments)
