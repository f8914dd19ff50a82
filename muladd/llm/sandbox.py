"""The sandbox in which chat templates run: plain values, a few functions, bounded repetition."""
from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_REPEATED = 1 << 20  # elements of what a template may make with `*`
MOST_POWER = 1 << 12  # bits of what it may make with `**`


class Refused(Exception):
    """What a template says through raise_exception."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Jinja as the `transformers` library runs templates, with its settings and functions."""

    intercepted_binops = frozenset(["*", "**"])

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
        )
        self.globals.pop("lipsum", None)
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = lambda form: now().strftime(form)
        self.filters["tojson"] = _to_json

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "*":
            for a, n in ((left, right), (right, left)):
                if hasattr(a, "__len__") and isinstance(n, int) and len(a) * n > MOST_REPEATED:
                    raise SecurityError(f"{len(a)} elements times {n}")
        elif isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > MOST_POWER:
                raise SecurityError(f"{left} ** {right}")
        return super().call_binop(context, operator, left, right)


class Generation(Extension):
    """{% generation %} marks what an assistant said, for training; here it changes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _refuse(message: str) -> None:
    raise Refused(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
    sort_keys: bool = False,
) -> str:  # fmt: skip
    """JSON as it is, where Jinja's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)  # fmt: skip
