"""What JSON schemas may say: the keywords that are known, what they hold, and formats of text."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NoReturn

from muladd.errors import ArgumentError

KEYWORDS = {
    "object": {"properties", "required", "additionalProperties", "unevaluatedProperties",
               "minProperties", "maxProperties"},
    "array": {"items", "prefixItems", "minItems", "maxItems", "uniqueItems"},
    "string": {"minLength", "maxLength", "pattern", "format"},
    "number": {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"},
}  # fmt: skip
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_NOTES = {  # which ask for nothing
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default",
    "examples", "example", "deprecated", "readOnly", "writeOnly", "discriminator",
    "contentEncoding", "contentMediaType", "contentSchema",
}  # fmt: skip
_WHOLE = {"$ref", "type", "enum", "const", "anyOf", "oneOf", "allOf"}
KNOWN = _WHOLE.union(*KEYWORDS.values())

_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf")  # of schemas
_SCHEMA, _LIST, _NUMBER = (dict, bool), (list,), (int, float)
_FORMS: dict[str, tuple[tuple[type, ...], str]] = {  # what keywords hold
    **dict.fromkeys(("additionalProperties", "unevaluatedProperties"), (_SCHEMA, "a schema")),
    **dict.fromkeys(_LISTS, (_LIST, "a list of schemas, not empty")),
    **dict.fromkeys(("pattern", "format", "$ref"), ((str,), "text")),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
                    (_NUMBER, "a number")),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties",
                     "maxProperties"), (_NUMBER, "a whole number from 0 on")),
    "properties": ((dict,), "an object of schemas"), "required": (_LIST, "a list of names"),
    "enum": (_LIST, "a list"),
    "items": ((dict, bool, list), "a schema"), "uniqueItems": ((bool,), "true or false"),
    "type": ((str, list), ", ".join(TYPES)),
}  # fmt: skip

_DAY = r"([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)" \
       r"|02-(0[1-9]|1[0-9]|2[0-8])))"  # fmt: skip
_YEAR = _DAY.replace("[0-9]{4}", "([1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])", 1)
_HOUR = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"{_HOUR}:[0-5][0-9](\.[0-9]{{1,6}})?(Z|[+-]{_HOUR})"
_LABEL = "[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
FORMATS = {
    "date": f"^{_YEAR}$", "time": f"^{_TIME}$", "date-time": f"^{_YEAR}T{_TIME}$",
    "uuid": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$",
    "email": rf"^[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*@{_LABEL}(\.{_LABEL})+$",
    "ipv4": rf"^{_BYTE}(\.{_BYTE}){{3}}$",
    "hostname": rf"^{_LABEL}(\.{_LABEL}){{0,4}}$",
    "uri": rf"^https?://{_LABEL}(\.{_LABEL}){{0,4}}(/[A-Za-z0-9._~-]*)*(\?[A-Za-z0-9=&._~-]*)?$",
}  # fmt: skip


def check(schema: Any, where: str) -> None:
    """Raises ArgumentError for what is no schema, or says what is not supported."""
    if not isinstance(schema, dict):
        fail(where, f"is {type(schema).__name__}; expected a schema: an object, true or false")
    for word, value in schema.items():
        if word not in KNOWN and word not in _NOTES and not str(word).startswith("x-"):
            fail(where, f"{word!r:.40} is not supported; expected {', '.join(sorted(KNOWN))}")
        if word in _FORMS:
            classes, expected = _FORMS[word]
            fits = isinstance(value, classes) and (bool in classes or not isinstance(value, bool))
            if not fits or word in _LISTS and not value:
                fail(where, f"{word} is {value!r:.40}; expected {expected}")
    for word in ("required", "properties"):
        for name in schema.get(word, ()):
            if not isinstance(name, str):
                fail(where, f"{word} has {name!r:.40}; expected {_FORMS[word][1]}")
    for name in types(schema):
        if name not in TYPES:
            fail(where, f"type is {name!r:.40}; expected {_FORMS['type'][1]}")


def fail(where: str, what: str) -> NoReturn:
    """Raise for a place in the schema."""
    raise ArgumentError(f"json_schema: {where:.200}: {what}")


def types(schema: Mapping[str, Any]) -> list[Any]:
    """The types that it names."""
    given = schema.get("type", [])
    return given if isinstance(given, list) else [given]


def kinds(schema: Mapping[str, Any]) -> list[str]:
    """The types that are written: where none is said, those that its keywords are about."""
    if "type" not in schema:
        about = [kind for kind, words in KEYWORDS.items() if words & schema.keys()]
        return about or ["object", "array", "string", "number", "boolean", "null"]
    names = types(schema)
    return [n for n in dict.fromkeys(names) if n != "integer" or "number" not in names]


def listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """The values that enum and const list, if they do."""
    enum = schema.get("enum")
    if "const" in schema:
        const = schema["const"]
        return [const] if enum is None or key(const) in map(key, enum) else []
    return enum


def kind_of(value: Any) -> str:
    """The JSON type of a value."""
    if value is None:
        return "null"
    names = ((bool, "boolean"), (int | float, "number"), (str, "string"), (list, "array"))
    return next((name for kind, name in names if isinstance(value, kind)), "object")


def broad(kind: str) -> str:
    """The type of the same values and more."""
    return "number" if kind == "integer" else kind


def key(value: Any) -> str:
    """Equal for values that JSON finds equal: 1 and 1.0, but not true."""
    if isinstance(value, list):
        return f"[{','.join(map(key, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{k!r}:{key(v)}' for k, v in sorted(value.items()))}}}"
    if isinstance(value, float) and value.is_integer():
        return repr(int(value))
    return repr(value)
