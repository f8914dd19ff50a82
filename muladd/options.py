"""Commands' parsers, and what their options take: a type each, with an error that says it."""
from __future__ import annotations

import argparse
import math
import os
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from muladd.errors import FormatError


def command(
    name: str, description: str, epilog: str | None = None,
    told: str = "one JSON object on the last line",
) -> argparse.ArgumentParser:  # fmt: skip
    """The parser of `muladd NAME`, which has --json, as all commands have."""
    parser = _Parser(
        prog=f"muladd {name}", description=textwrap.fill(description, 80), epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help=told)
    return parser


class _Parser(argparse.ArgumentParser):
    """Options may stand anywhere, also between several words of one argument."""

    parse_args = argparse.ArgumentParser.parse_intermixed_args  # type: ignore[assignment]


def lines() -> Iterator[str]:
    """The lines of standard input, as they come. Raises FormatError for what is no text."""
    count = 0
    try:
        for line in sys.stdin:
            count += 1
            line.encode()  # some locales let any byte in
            yield line.removesuffix("\n")
    except UnicodeEncodeError:
        raise FormatError(f"standard input: line {count} is no UTF-8; convert it first") from None
    except UnicodeDecodeError as error:
        raise FormatError(f"standard input: is no UTF-8 (byte {error.object[error.start]:#04x} "
                          f"after line {count}); convert it first") from None


def number(kind: type, right: Callable[[Any], bool], expected: str) -> Callable[[str], Any]:
    """What reads a number of a kind; of others, and those that are not right, it says what was
    expected."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not right(value):
            raise argparse.ArgumentTypeError(f"{text!r:.40} is given; expected {expected}")
        return value

    return read


positive = number(int, lambda n: n > 0, "a whole number from 1 on")
seconds = number(float, lambda x: 0 < x < math.inf, "a number of seconds above 0")


def new_file(text: str) -> Path:
    """A path that a file can be written to: known before the work whose result it is to hold."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; give a file's name")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {path.parent}; make it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"nothing can be written to {path.parent}")
    return path
