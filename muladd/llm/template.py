"""Chat templates: Jinja from a model's file, run in a sandbox."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from muladd.errors import ArgumentError, FormatError
from muladd.llm.extras import wanted

Message = Mapping[str, Any]


class Template:
    """A template and the names it may use besides messages: bos_token, eos_token, ...

    A template comes with a model, from anybody. It sees plain values only: attributes of Python's
    objects are out of its reach, and it changes nothing. It can still take long.
    """

    def __init__(
        self, source: str, names: Mapping[str, Any], now: Callable[[], datetime] = datetime.now
    ) -> None:
        jinja2 = wanted("jinja2")
        from muladd.llm import sandbox

        try:
            self._template = sandbox.Sandbox(now).from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise FormatError(f"chat template: {error}; the model's template is damaged") from None
        self._names = dict(names)
        self.source = source

    def render(
        self, messages: Sequence[Message], tools: Sequence[Any] | None = None,
        add_generation_prompt: bool = True, **more: Any,
    ) -> str:  # fmt: skip
        """The text of a conversation. `more` are names that some templates know, such as
        enable_thinking. Raises ArgumentError for messages that are none, or that the template
        refuses (in its own words)."""
        check_messages(messages)
        jinja2, sandbox = wanted("jinja2"), wanted("muladd.llm.sandbox")
        given = {"messages": list(messages), "tools": list(tools) if tools else None,
                 "add_generation_prompt": add_generation_prompt, **more}  # fmt: skip
        try:
            return self._template.render({**self._names, **given})
        except sandbox.Refused as error:
            raise ArgumentError(f"chat: the model's template refuses: {error}") from None
        except jinja2.exceptions.SecurityError as error:
            raise FormatError(f"chat template: leaves the sandbox: {error}") from None
        except (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError,
                ValueError, RecursionError, MemoryError) as error:  # fmt: skip
            raise ArgumentError(
                f"chat: the model's template cannot render these messages: {error}"
            ) from None


def check_messages(messages: Any) -> None:
    """Raises ArgumentError for what is no conversation."""
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ArgumentError(f"chat: messages are {type(messages).__name__}; expected a list of "
                            "{'role': ..., 'content': ...}")  # fmt: skip
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise ArgumentError(f"chat: message {i} is {message!r:.60}; expected "
                                "{'role': ..., 'content': ...}")  # fmt: skip
