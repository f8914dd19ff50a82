"""What clients may ask for: OpenAI's requests, read field by field; and its form of errors."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from muladd.errors import ArgumentError
from muladd.llm.sampling import Sampling
from muladd.llm.writing import Options

MOST_CHOICES = 64
MOST_PROMPTS = 256
MOST_STOPS = 16
MOST_LOGPROBS = 20

# Fields of the API that change nothing here; any other unknown field is refused, as it is a typo.
_TOOL = re.compile("[A-Za-z0-9_-]{1,64}")
_IGNORED = frozenset((
    "user", "store", "metadata", "service_tier", "parallel_tool_calls", "safety_identifier",
    "prompt_cache_key", "prompt_cache_retention", "prediction", "verbosity", "reasoning_effort",
    "web_search_options", "encoding_format", "dimensions",
))  # fmt: skip


class ApiError(Exception):
    """A request that is not answered, with what OpenAI's clients expect to be told."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None,
        code: str | None = None, kind: str = "invalid_request_error",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.message, self.status, self.param, self.code, self.kind = (
            message, status, param, code, kind)  # fmt: skip

    def body(self) -> dict[str, Any]:
        """{"error": {...}}"""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param,
                          "code": self.code}}  # fmt: skip


class Fields:
    """The fields of a JSON object, each taken once and of the type that is wanted."""

    def __init__(self, body: Any, where: str = "") -> None:
        if not isinstance(body, Mapping):
            raise ApiError(f"{where or 'the body'} is {_name(body)}; expected a JSON object",
                           param=where or None)  # fmt: skip
        self._left, self._where = dict(body), where

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it is; null counts as absent."""
        value = self._left.pop(name, None)
        return default if value is None else value

    def drop(self, *names: str) -> None:
        """Take what makes no difference here."""
        for name in names:
            self._left.pop(name, None)

    def place(self, name: str) -> str:
        """A field by its whole name."""
        return f"{self._where}.{name}" if self._where else name

    def wrong(self, name: str, value: Any, expected: str) -> ApiError:
        param = self.place(name)
        return ApiError(f"{param} is {_name(value)}; expected {expected}", param=param)

    def text(self, name: str, default: str | None = None, among: tuple[str, ...] = ()) -> str:
        value = self.take(name, default)
        expected = "one of " + ", ".join(among) if among else "text"
        if not isinstance(value, str) or among and value not in among:
            raise self.wrong(name, value, expected)
        check_text(value, self.place(name))
        return value

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.take(name, default)
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or not low <= value <= high:
            raise self.wrong(name, value, f"a number from {low:g} to {high:g}")
        return value

    def whole(self, name: str, low: int, high: int, default: int | None) -> Any:
        value = self.take(name, default)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(name, value, f"a whole number from {low} to {high}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.take(name, default)
        if not isinstance(value, bool):
            raise self.wrong(name, value, "true or false")
        return value

    def end(self) -> None:
        """Raises ApiError for what nobody took and the API has not."""
        for name in self._left:
            if name not in _IGNORED:
                param = self.place(name)
                raise ApiError(f"there is no field {param!r}", param=param, code="unknown_field")


@dataclass
class Asked:
    """What requests of both kinds have in common."""

    model: str
    options: Options
    count: int = 1  # choices of each prompt
    stream: bool = False
    usage_in_stream: bool = False


@dataclass
class ChatAsked(Asked):
    messages: list[dict[str, Any]] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    tool_choice: str = "auto"  # none, auto, required, or the name of a tool
    schema: Any = None  # of response_format; True: any object

    @property
    def offered(self) -> list[dict[str, Any]]:
        """The tools that may be called."""
        return [] if self.tool_choice == "none" else self.tools


@dataclass
class CompletionAsked(Asked):
    prompts: list[str | list[int]] = field(default_factory=list)
    echo: bool = False


@dataclass
class EmbeddingAsked:
    model: str
    inputs: list[str | list[int]]
    base64: bool


def parsed(data: bytes) -> Any:
    """JSON as the body of a request. Raises ApiError that says where it is not."""
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ApiError(f"byte {error.start} of the body is no UTF-8: {error.reason}") from None
    except json.JSONDecodeError as error:
        raise ApiError(f"the body is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        what = "nests too deep" if isinstance(error, RecursionError) else "has too long a number"
        raise ApiError(f"the body is not JSON that is read here: it {what}") from None


def chat(body: Any) -> ChatAsked:
    """The request of /v1/chat/completions. Raises ApiError."""
    fields = Fields(body)
    messages = fields.take("messages")
    if not isinstance(messages, list) or not messages:
        raise fields.wrong("messages", messages, "a list of messages, at least one")
    found = [_message(m, f"messages.{i}") for i, m in enumerate(messages)]
    tools, choice = _tools(fields)
    schema = _format(fields)
    if (kinds := fields.take("modalities", ["text"])) != ["text"]:
        raise fields.wrong("modalities", kinds, "['text']")
    count = fields.whole("top_logprobs", 0, MOST_LOGPROBS, 0)
    logprobs = count if fields.flag("logprobs") else None
    if count and logprobs is None:
        raise ApiError("top_logprobs needs logprobs to be true", param="top_logprobs")
    most = fields.whole("max_completion_tokens", 1, 1 << 31, None)
    asked = ChatAsked(
        **_common(fields, logprobs, most, None, 1), messages=found, tools=tools, tool_choice=choice,
        schema=schema,
    )  # fmt: skip
    fields.end()
    return asked


def completion(body: Any) -> CompletionAsked:
    """The request of /v1/completions. Raises ApiError."""
    fields = Fields(body)
    prompts = _texts(fields, "prompt")
    logprobs = fields.whole("logprobs", 0, MOST_LOGPROBS, None)
    best = fields.whole("best_of", 1, MOST_CHOICES, None)
    if fields.take("suffix", "") != "":
        raise ApiError("suffix is not supported; expected none", param="suffix")
    asked = CompletionAsked(**_common(fields, logprobs, None, 16, 0), prompts=prompts,
                            echo=fields.flag("echo"))  # fmt: skip
    if best not in (None, asked.count):
        raise ApiError("best_of is not supported; give n", param="best_of")
    fields.end()
    return asked


def embedding(body: Any) -> EmbeddingAsked:
    """The request of /v1/embeddings. Raises ApiError."""
    fields = Fields(body)
    inputs = _texts(fields, "input")
    form = fields.text("encoding_format", "float", ("float", "base64"))
    if fields.take("dimensions") is not None:
        raise ApiError("dimensions is not supported: vectors have the model's width",
                       param="dimensions")  # fmt: skip
    asked = EmbeddingAsked(fields.text("model"), inputs, form == "base64")
    fields.end()
    return asked


def _common(
    fields: Fields, logprobs: int | None, most: int | None, default: int | None, least: int
) -> dict[str, Any]:
    """`most`, or else max_tokens (`least` or more), is how many tokens may be written."""
    count = fields.whole("n", 1, MOST_CHOICES, 1)
    stream = fields.flag("stream")
    more = Fields(fields.take("stream_options", {}), "stream_options")
    usage = more.flag("include_usage")
    more.flag("include_obfuscation")
    more.end()
    older = fields.whole("max_tokens", least, 1 << 31, default)
    if most is not None and older not in (None, most):
        raise ApiError(f"max_tokens is {older} and max_completion_tokens {most}; give one of them",
                       param="max_tokens")  # fmt: skip
    return {"model": fields.text("model"), "count": count, "stream": stream,
            "usage_in_stream": usage, "options": _options(fields, logprobs, most or older)}


def _options(fields: Fields, logprobs: int | None, most: int | None) -> Options:
    stop = fields.take("stop", [])
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise fields.wrong("stop", stop, f"a text or up to {MOST_STOPS} of them")
    for i, text in enumerate(stops):
        if not isinstance(text, str) or not text:
            raise fields.wrong(f"stop.{i}", text, "text that is not empty")
    bias = fields.take("logit_bias", {})
    if not isinstance(bias, Mapping):
        raise fields.wrong("logit_bias", bias, "an object of ids and numbers")
    biases = {}
    for i, number in bias.items():
        right = isinstance(number, int | float) and not isinstance(number, bool)
        if not i.removeprefix("-").isdecimal() or not right or not -100 <= number <= 100:
            raise ApiError(f"logit_bias has {_name(i)}: {_name(number)}; expected an id and a "
                           "number from -100 to 100", param="logit_bias")  # fmt: skip
        biases[int(i)] = float(number)
    seed = fields.whole("seed", -(1 << 63), (1 << 63) - 1, None)
    try:
        sampling = Sampling(
            temperature=fields.number("temperature", 0, 2, 1.0),
            top_p=fields.number("top_p", 0, 1, 1.0), min_p=fields.number("min_p", 0, 1, 0.0),
            top_k=max(0, fields.whole("top_k", -1, 1 << 30, 0)),
            repetition_penalty=fields.number("repetition_penalty", 0.01, 100, 1.0),
            seed=None if seed is None else seed % (1 << 63),
        )  # fmt: skip
    except ArgumentError as error:
        raise ApiError(str(error)) from None
    return Options(
        sampling=sampling, max_tokens=most, stop=tuple(stops), logprobs=logprobs,
        frequency_penalty=fields.number("frequency_penalty", -2, 2, 0.0),
        presence_penalty=fields.number("presence_penalty", -2, 2, 0.0), logit_bias=biases,
        ignore_stops=fields.flag("ignore_eos"),
    )  # fmt: skip


def _message(given: Any, where: str) -> dict[str, Any]:
    """A message with its content as one text."""
    fields = Fields(given, where)
    role = fields.text("role", None, ("system", "developer", "user", "assistant", "tool"))
    content = fields.take("content")
    if isinstance(content, list):
        parts = []
        for i, part in enumerate(content):
            inner = Fields(part, f"{where}.content.{i}")
            kind = inner.text("type")
            if kind not in ("text", "refusal"):
                raise ApiError(f"{where}.content.{i} is of type {kind!r}; this model reads texts",
                               param=f"{where}.content.{i}.type")  # fmt: skip
            parts.append(inner.text(kind))
        content = "".join(parts)
    calls = fields.take("tool_calls", [])
    if not isinstance(content, str) and not (content is None and role == "assistant"):
        raise fields.wrong("content", content, "text, or a list of parts")
    check_text(content or "", f"{where}.content")
    found: dict[str, Any] = {"role": "system" if role == "developer" else role,
                             "content": content or ""}  # fmt: skip
    if calls:
        if not isinstance(calls, list):
            raise fields.wrong("tool_calls", calls, "a list")
        found["tool_calls"] = [_call(c, f"{where}.tool_calls.{i}") for i, c in enumerate(calls)]
    for name in ("name", "tool_call_id"):
        if (value := fields.take(name)) is not None:
            found[name] = value
    # what clients send back of an answer they got
    fields.drop("refusal", "annotations", "audio", "function_call", "reasoning",
                "reasoning_content")  # fmt: skip
    fields.end()
    return found


def _call(given: Any, where: str) -> dict[str, Any]:
    """A call of a tool, its arguments as an object, which is what templates expect."""
    fields = Fields(given, where)
    inner = Fields(fields.take("function"), f"{where}.function")
    text = inner.text("arguments", "{}")
    try:
        arguments = json.loads(text)
    except (ValueError, RecursionError):
        raise inner.wrong("arguments", text, "JSON as text") from None
    return {"type": "function", "id": fields.take("id", ""),
            "function": {"name": inner.text("name"), "arguments": arguments}}


def _tools(fields: Fields) -> tuple[list[dict[str, Any]], str]:
    tools = fields.take("tools", [])
    if not isinstance(tools, list):
        raise fields.wrong("tools", tools, "a list of tools")
    for i, tool in enumerate(tools):
        outer = Fields(tool, f"tools.{i}")
        outer.text("type", None, ("function",))
        inner = Fields(outer.take("function"), f"tools.{i}.function")
        if not _TOOL.fullmatch(name := inner.text("name")):
            raise inner.wrong("name", name, "1 to 64 letters, digits, _ and -")
        inner.text("description", "")
        if not isinstance(parameters := inner.take("parameters", {}), Mapping):
            raise inner.wrong("parameters", parameters, "a JSON schema")
        inner.drop("strict")
        inner.end()
        outer.end()
    names = [tool["function"]["name"] for tool in tools]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ApiError(f"tools.{i}.function.name is {_name(name)} like that of another; "
                           "expected each name once", param=f"tools.{i}.function.name")
    choice = fields.take("tool_choice", "auto")
    if isinstance(choice, Mapping):
        outer = Fields(choice, "tool_choice")
        outer.text("type", None, ("function",))
        choice = Fields(outer.take("function"), "tool_choice.function").text("name")
        if choice not in names:
            raise ApiError(f"tool_choice names {choice!r}, which is none of the tools",
                           param="tool_choice")  # fmt: skip
        return [t for t in tools if t["function"]["name"] == choice], "required"
    if choice not in ("none", "auto", "required"):
        raise fields.wrong("tool_choice", choice, "none, auto, required, or a function")
    if choice == "required" and not tools:
        raise ApiError("tool_choice is required, and there are no tools", param="tool_choice")
    return tools, choice


def _format(fields: Fields) -> Any:
    """The schema of response_format: None for text, True for any object."""
    given = Fields(fields.take("response_format", {"type": "text"}), "response_format")
    kind = given.text("type", None, ("text", "json_object", "json_schema"))
    described = given.take("json_schema") if kind == "json_schema" else None
    given.end()
    if kind != "json_schema":
        return None if kind == "text" else True
    inner = Fields(described, "response_format.json_schema")
    inner.drop("name", "strict", "description")
    schema = inner.take("schema")
    inner.end()
    if not isinstance(schema, Mapping):
        raise inner.wrong("schema", schema, "a JSON schema")
    return schema


def _texts(fields: Fields, name: str) -> list[str | list[int]]:
    """A text, ids, or a list of either, as a list."""
    given = fields.take(name)
    texts = [given] if isinstance(given, str) or _is_ids(given) else given
    if not isinstance(texts, list) or not texts:
        raise fields.wrong(name, given, f"a text, ids, or up to {MOST_PROMPTS} of either")
    if len(texts) > MOST_PROMPTS:
        raise ApiError(f"{name} has {len(texts)} texts; expected at most {MOST_PROMPTS}",
                       param=name)  # fmt: skip
    for i, text in enumerate(texts):
        if not isinstance(text, str) and not _is_ids(text):
            raise fields.wrong(f"{name}.{i}", text, "text, or ids")
        if not text:
            raise ApiError(f"{name} is empty; give some text", param=name)
        if isinstance(text, str):
            check_text(text, name)
    return texts


def check_text(text: str, param: str) -> None:
    """Raises ApiError for half of a surrogate pair, which JSON can write and no text has."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ApiError(f"{param} has half of a surrogate pair at character {error.start}; expected "
                       "text", param=param) from None  # fmt: skip


def _is_ids(given: Any) -> bool:
    return isinstance(given, list) and set(map(type, given)) == {int}  # (quick: there may be many)


def _name(value: Any) -> str:
    """A value for a message: its beginning, or what it is."""
    if value is None:
        return "absent, or null"
    if isinstance(value, str | int | float | bool):
        text = json.dumps(value)
        return text if len(text) <= 60 else text[:57] + "..."
    kind = "list" if isinstance(value, list) else "object"
    return f"a{'n' * (kind == 'object')} {kind}" if value else f"an empty {kind}"
