"""Tools: how a model is told of them, and what it says when it calls one.

A model whose template knows tools is told its own way. Any other is told in a system message, in
the words that most templates use. A call is {"name": ..., "arguments": ...}, alone or between the
marks <tool_call> and </tool_call>.
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from muladd.llm.writing import beginning

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}


def told(messages: list[dict[str, Any]], tools: Sequence[Any]) -> list[dict[str, Any]]:
    """Messages for a template that knows nothing of tools."""
    found: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls", ())
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            found.append({"role": "user", "content": text})
        elif calls:
            written = [f"{OPEN}\n{json.dumps(c['function'], ensure_ascii=False)}\n{CLOSE}"
                       for c in calls]  # fmt: skip
            text = "\n".join(([message["content"]] if message["content"] else []) + written)
            found.append({"role": "assistant", "content": text})
        else:
            found.append(message)
    if not tools:
        return found
    lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = (
        "You may call functions. Their signatures, one per line:\n"
        f"<tools>\n{lines}\n</tools>\n"
        "For each call write a JSON object with its name and arguments between these marks:\n"
        f'{OPEN}\n{{"name": "...", "arguments": {{...}}}}\n{CLOSE}'
    )
    first = found[0] if found[0]["role"] == "system" else None
    if first is None:
        return [{"role": "system", "content": text}, *found]
    return [{"role": "system", "content": f"{first['content']}\n\n{text}"}, *found[1:]]


def schema(
    tools: Sequence[Mapping[str, Any]], other: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The JSON schema of a call of one of the tools, or of the other that may be written."""
    found = []
    for i, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or _NOTHING
        parameters = _moved(parameters, f"#/anyOf/{i}/properties/arguments")
        found.append({
            "type": "object", "required": ["name", "arguments"], "additionalProperties": False,
            "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        })  # fmt: skip
    if other is not None:
        found.append(_moved(other, f"#/anyOf/{len(found)}"))
    return {"anyOf": found}


def _moved(schema: Any, root: str) -> Any:
    """A schema that becomes part of another, at `root`: its references lead where they did."""
    if isinstance(schema, list):
        return [_moved(part, root) for part in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {name: root + part[1:] if name == "$ref" and isinstance(part, str) and part[:1] == "#"
            else _moved(part, root) for name, part in schema.items()}  # fmt: skip


class Reader:
    """Takes calls out of an answer's text as it comes: `put` gives what is no call, `end` the rest
    and the calls, [(name, arguments as JSON), ...]."""

    def __init__(self) -> None:
        self._text = ""
        self._calling = False  # what is held began like a call
        self._said = False

    def put(self, text: str) -> str:
        """What is certain to be no call by now."""
        self._text += text
        if self._calling:
            return ""
        start = self._text.find(OPEN)
        if start < 0 and not self._said and self._text.lstrip()[:1] in ("", "{"):
            return ""  # perhaps all of it is a call
        if start >= 0:
            self._calling = True
            given, self._text = self._text[:start], self._text[start:]
        else:
            keep = beginning(self._text, (OPEN,))
            cut = len(self._text) - keep
            given, self._text = self._text[:cut], self._text[cut:]
        self._said = self._said or bool(given.strip())
        return given

    def end(self) -> tuple[str, list[tuple[str, str]]]:
        """(the rest of the text, the calls). What was begun like a call and is none is text."""
        text, self._text = self._text, ""
        if not self._calling:
            call = _call(text)
            return ("", [call]) if call else (text, [])
        calls = []
        for part in text.split(OPEN)[1:]:
            inside = part.split(CLOSE)[0]
            call = _call(inside)
            if call is None:
                return text, []
            calls.append(call)
        return "", calls


def _call(text: str) -> tuple[str, str] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if not isinstance(arguments, dict):
        return None
    return found["name"], json.dumps(arguments, ensure_ascii=False)
