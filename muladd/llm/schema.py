"""JSON schemas as expressions of the texts whose values satisfy them.

Properties are written in the schema's order; those that are not required may be missing. An object
whose schema lists properties has no others, unless `additionalProperties` says that it has.
So not every value that is valid can be written, but every one that is written is valid.
"""
from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from muladd.errors import ArgumentError
from muladd.llm import keywords
from muladd.llm.expressions import Expression, Expressions
from muladd.llm.json_text import ANY, JSONText, Ranges
from muladd.llm.keywords import fail
from muladd.llm.regular import pattern

REFERENCES = 32  # how deep references may nest in a value
_DEEPEST = 64  # of schemas without references
_MOST_REFERENCES = 1000  # that are looked at before anything is written
_MOST_PROPERTIES = 512  # of an object
_LARGEST = 10**18  # of a length or count
_BOUND_DIGITS = 400
_MULTIPLES = 10_000


def expression(schema: Any, make: Expressions, alphabet: Ranges = ANY) -> Expression:
    """The texts that satisfy a schema (as `json.loads` gives it), of characters of the alphabet.

    Raises ArgumentError, with the place in the schema, for what is no schema, for keywords that are
    not supported, and if no text satisfies it.
    """
    reader = _Reader(schema, make, JSONText(make, alphabet))
    try:
        found = reader.value(schema, "$", REFERENCES)
        reader.check_references()
        alive = make.alive(found)
    except RecursionError:
        raise ArgumentError("json_schema: it nests too deep, or $ref leads in a circle") \
            from None
    if not alive:
        raise ArgumentError("json_schema: no value satisfies it (or none is found soon): what it "
                            "asks for contradicts itself")  # fmt: skip
    return found


def any_object(make: Expressions, alphabet: Ranges = ANY) -> Expression:
    """The texts of all objects."""
    return JSONText(make, alphabet).any_object()


class _Reader:
    """Turns a schema into expressions. `where` is the place in the schema, for errors."""

    def __init__(self, root: Any, make: Expressions, text: JSONText) -> None:
        self.root, self.make, self.text = root, make, text
        self.level = 0
        self.seen: set[str] = set()  # references that are, or will be, looked at
        self.unread: list[tuple[Any, str]] = []  # schemas that only later steps would reach

    # --- any schema ------------------------------------------------------------------------------

    def value(self, schema: Any, where: str, depth: int) -> Expression:
        """The values of a schema; references nest `depth` deep."""
        if schema is False:
            return self.make.never
        if schema is True or schema == {}:
            return self.text.any_value()
        keywords.check(schema, where)
        self.level += 1
        if self.level > _DEEPEST:
            fail(where, f"it nests deeper than {_DEEPEST}")
        try:
            return self._value(schema, where, depth)
        finally:
            self.level -= 1

    def _value(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        asked = {word: v for word, v in schema.items() if word in keywords.KNOWN}
        if "$ref" in asked:
            return self.reference(asked.pop("$ref"), asked, where, depth)
        if "allOf" in asked:
            for part in asked.pop("allOf"):
                asked = self.merged(asked, part, where)
                if asked is False:
                    return self.make.never
            return self.value(asked, where, depth)
        for word in ("anyOf", "oneOf"):
            if word in asked:
                parts = asked.pop(word)
                whole = [self.merged(asked, part, where) for part in parts]
                if word == "oneOf":
                    self.check_apart(whole, f"{where}.oneOf")
                if not asked:  # a reference may lead to what it is a part of
                    whole = parts
                return self.make.either(*(self.value(part, f"{where}.{word}[{i}]", depth)
                                          for i, part in enumerate(whole)))  # fmt: skip
        if "enum" in asked or "const" in asked:
            return self.listed(asked, where, depth)
        return self.make.either(*(getattr(self, f"_{kind}")(asked, where, depth)
                                  for kind in keywords.kinds(asked)))  # fmt: skip

    # --- references ------------------------------------------------------------------------------

    def reference(
        self, name: str, asked: dict[str, Any], where: str, depth: int
    ) -> Expression:
        """What a reference means, and what is asked for beside it."""
        target = self.target(name, where)
        if not asked:
            if name not in self.seen:
                self.unread.append((target, name))
            self.seen.add(name)
            if not depth:
                return self.make.never
            return self.make.later((name, depth), lambda: self.value(target, name, depth - 1))
        whole = self.merged(target, asked, where)
        known = json.dumps(whole, sort_keys=True, default=repr)
        if known not in self.seen:
            self.unread.append((whole, where))
        self.seen.add(known)
        if not depth:
            return self.make.never
        return self.make.later((name, where, id(whole)),
                               lambda: self.value(whole, where, depth - 1))  # fmt: skip

    def target(self, reference: str, where: str) -> Any:
        """The schema that a reference means."""
        if not (reference == "#" or reference.startswith("#/")):
            fail(where, f"$ref is {reference!r:.60}; expected '#/...', a place in this schema")
        found = self.root
        for part in unquote(reference).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            if isinstance(found, dict) and name in found:
                found = found[name]
            elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
                found = found[int(name)]
            else:
                fail(where, f"$ref is {reference!r:.60}, and there is no {name!r:.40}")
        return found

    def check_references(self) -> None:
        """Look at what references mean now: errors are wanted before anything is written."""
        for _ in range(_MOST_REFERENCES):
            if not self.unread:
                return
            self.value(*self.unread.pop(), 0)

    def resolved(self, schema: Any, where: str) -> Any:
        """A schema, checked, without references and allOf at its outermost place."""
        for _ in range(REFERENCES):
            if isinstance(schema, bool):
                return schema
            keywords.check(schema, where)
            if not schema.keys() & {"$ref", "allOf"}:
                return schema
            parts = [self.target(schema["$ref"], where)] if "$ref" in schema else []
            parts += schema.get("allOf", [])
            schema = {k: v for k, v in schema.items() if k not in ("$ref", "allOf")}
            for part in parts:
                schema = self.merged(schema, part, where)
        fail(where, "$ref leads in a circle")

    # --- two schemas at once ---------------------------------------------------------------------

    def merged(self, a: Any, b: Any, where: str) -> Any:
        """One schema that asks for what both ask for. Raises ArgumentError where none is found."""
        a, b = self.resolved(a, where), self.resolved(b, where)
        if a is False or b is False:
            return False
        if a is True or b is True:
            return b if a is True else a
        found = {k: v for k, v in a.items() if k in keywords.KNOWN}
        for word, value in b.items():
            if word not in keywords.KNOWN:
                continue
            if word not in found or found[word] == value:
                found[word] = value
            elif word not in ("properties", "additionalProperties"):
                found[word] = self._merged_word(word, found[word], value, where)
        if "properties" in found or "additionalProperties" in found:
            self._merge_properties(found, a, b)
        return found

    def _merged_word(self, word: str, a: Any, b: Any, where: str) -> Any:
        if word.startswith(("min", "exclusiveMin")):
            return max(a, b)
        if word.startswith(("max", "exclusiveMax")):
            return min(a, b)
        if word == "required":
            return [*a, *(name for name in b if name not in a)]
        if word == "enum":
            return [x for x in a if keywords.key(x) in set(map(keywords.key, b))]
        if word == "type":
            first, second = ([x] if isinstance(x, str) else x for x in (a, b))
            wide = {"number", "integer"}
            return [t for t in keywords.TYPES
                    if (t in first or t == "integer" and wide & set(first))
                    and (t in second or t == "integer" and wide & set(second))]  # fmt: skip
        if word == "items":
            return {"allOf": [a, b]}
        fail(where, f"{word} is asked for twice, as {a!r:.40} and as {b!r:.40}; write one")

    def _merge_properties(
        self, found: dict[str, Any], a: Mapping[str, Any], b: Mapping[str, Any]
    ) -> None:
        """A property of one schema is an additional one of the other, which may forbid it."""
        sides = [(s.get("properties", {}), s.get("additionalProperties")) for s in (a, b)]
        together: dict[str, Any] = {}
        for name in [*sides[0][0], *(n for n in sides[1][0] if n not in sides[0][0])]:
            parts = [own.get(name, other) for own, other in sides]
            parts = [part for part in parts if part is not None]
            together[name] = parts[0] if len(parts) == 1 else {"allOf": parts}
        if together:
            found["properties"] = together
        others = [other for _, other in sides if other is not None]
        if others:
            found["additionalProperties"] = \
                False if False in others else others[0] if len(others) == 1 else {"allOf": others}

    # --- exactly one of several ------------------------------------------------------------------

    def check_apart(self, parts: Sequence[Any], where: str) -> None:
        """Raises ArgumentError unless no value can satisfy two of the schemas."""
        if len(parts) > 200:
            fail(where, f"has {len(parts)} schemas; expected at most 200")
        for i, a in enumerate(parts):
            for j in range(i):
                if not self.apart(a, parts[j], where):
                    fail(where, f"[{j}] and [{i}] may hold for one value, which must not be; make "
                         "them differ by type, or by a required property with another const, or "
                         "write anyOf")  # fmt: skip

    def apart(self, a: Any, b: Any, where: str, depth: int = 4) -> bool:
        """Whether what is written for one is certainly refused by the other."""
        a, b = self.resolved(a, where), self.resolved(b, where)
        if a is False or b is False:
            return True
        if a is True or b is True or not depth:
            return False
        first, second = keywords.listed(a), keywords.listed(b)
        if first is not None and second is not None:
            return not set(map(keywords.key, first)) & set(map(keywords.key, second))
        sides = [({keywords.kind_of(v) for v in values} if values is not None
                  else set(keywords.kinds(s)) if "type" in s else set(keywords.TYPES))
                 for s, values in ((a, first), (b, second))]  # fmt: skip
        if not set(map(keywords.broad, sides[0])) & set(map(keywords.broad, sides[1])):
            return True
        if a.get("type") != "object" or b.get("type") != "object":
            return False
        for one, two in ((a, b), (b, a)):
            others = two.get("properties", {})
            for name in one.get("required", ()):
                if name not in others:
                    if two.get("additionalProperties") is False:
                        return True
                elif name in two.get("required", ()) and self.apart(
                    one.get("properties", {}).get(name, True), others[name], where, depth - 1
                ):
                    return True
        return False

    # --- listed values ---------------------------------------------------------------------------

    def listed(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        """The values of enum and const that satisfy the rest of the schema."""
        values = keywords.listed(schema) or []
        rest = {k: v for k, v in schema.items() if k not in ("enum", "const")}
        if rest:
            allowed = self.value(rest, where, depth)
            values = [v for v in values if self.reads(allowed, self.plain(v, where))]
        words = [v for v in values if isinstance(v, str)]
        others = (self.literal(v, where) for v in values if not isinstance(v, str))
        return self.make.either(self.text.quoted(self.words(words, where)), *others)

    def words(self, texts: Iterable[str], where: str) -> Expression:
        """Any of some texts, as they are written inside a string."""
        return self.make.words(self.plain(text, where)[1:-1] for text in texts
                               if self.text.text(text) is not self.make.never)  # fmt: skip

    def plain(self, value: Any, where: str) -> bytes:
        """A value as text."""
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False,
                              separators=(",", ":")).encode()  # fmt: skip
        except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
            fail(where, f"the value {value!r:.40} cannot be written as JSON: {error}")

    def reads(self, a: Expression, text: bytes) -> bool:
        """Whether a text satisfies an expression."""
        for byte in text:
            following = [x for mask, x in self.make.moves(a) if mask >> byte & 1]
            if not following:
                return False
            a = following[0]
        return a.nullable

    def literal(self, value: Any, where: str) -> Expression:
        """One value; between its parts may be spaces."""
        if isinstance(value, dict):
            members = [(self.member(str(k), self.literal(v, where)), True)
                       for k, v in value.items()]  # fmt: skip
            return self.text.members(members, self.make.never)
        if isinstance(value, list):
            items = [self.literal(v, where) for v in value]
            return self.text.array(items, self.make.never, len(items), len(items))
        if isinstance(value, str):
            return self.text.quoted(self.text.text(value))
        return self.make.literal(self.plain(value, where))

    # --- by type ---------------------------------------------------------------------------------

    def _null(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        return self.make.literal("null")

    def _boolean(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        return self.make.either(self.make.literal("true"), self.make.literal("false"))

    def _string(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        least, most = self.counts(schema, "Length", where)
        found = self.make.repeat(self.text.character(ANY), least, most)
        bounded = least > 0 or most is not None
        for word in ("pattern", "format"):
            source = schema.get(word)
            if source is None:
                continue
            if word == "format" and source not in keywords.FORMATS:
                fail(where, f"format {source!r:.40} is not supported; expected one of "
                     f"{', '.join(keywords.FORMATS)}")  # fmt: skip
            source = keywords.FORMATS[source] if word == "format" else source
            matches = pattern(source, self.text, where)
            found = self.make.both(found, matches) if bounded else matches
            bounded = True
        return self.text.quoted(found)

    def _integer(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        return self.text.integers(*self.bounds(schema, where), self.multiple(schema, where))

    def _number(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        if "multipleOf" in schema:
            return self._integer(schema, where, depth)
        low, high, above, below = self.bounds(schema, where)
        if low is None and high is None:
            return self.text.any_number
        return self.text.decimals(low, high, above, below)

    def bounds(
        self, schema: Mapping[str, Any], where: str
    ) -> tuple[Decimal | None, Decimal | None, bool, bool]:
        """The bounds, and whether they are no part themselves."""
        found: list[Decimal | None] = []
        opened = []
        for word, exclusive, sign in (("minimum", "exclusiveMinimum", 1),
                                      ("maximum", "exclusiveMaximum", -1)):  # fmt: skip
            ends = [(self.bound(schema[w], w, where), w == exclusive)
                    for w in (word, exclusive) if w in schema]  # fmt: skip
            end, is_open = max(ends, key=lambda e: (e[0] * sign, e[1]), default=(None, False))
            found.append(end)
            opened.append(is_open)
        return found[0], found[1], opened[0], opened[1]

    def bound(self, value: float, word: str, where: str) -> Decimal:
        if isinstance(value, float) and not math.isfinite(value):
            fail(where, f"{word} is {value!r:.40}; expected a number")
        if isinstance(value, int) and value.bit_length() > 3 * _BOUND_DIGITS:
            fail(where, f"{word} has more than {_BOUND_DIGITS} digits")
        whole = isinstance(value, float) and value.is_integer()  # exactly: 1e300 is not 10**300
        found = Decimal(int(value)) if whole else Decimal(repr(value))
        if -int(found.normalize().as_tuple().exponent) > 30:
            fail(where, f"{word} is {value!r:.40}; expected at most 30 places after the point")
        return found

    def multiple(self, schema: Mapping[str, Any], where: str) -> int:
        given = schema.get("multipleOf", 1)
        if given != given // 1 or not 1 <= given <= _MULTIPLES:
            fail(where, f"multipleOf is {given!r:.40}; expected a whole number from 1 to "
                 f"{_MULTIPLES}")  # fmt: skip
        return int(given)

    def counts(self, schema: Mapping[str, Any], what: str, where: str) -> tuple[int, int | None]:
        """The least and greatest length or count."""
        found: list[int | None] = []
        for word in (f"min{what}", f"max{what}"):
            given = schema.get(word)
            if given is not None and (not 0 <= given <= _LARGEST or given != given // 1):
                fail(where, f"{word} is {given!r:.40}; expected a whole number from 0 on")
            found.append(None if given is None else int(given))
        return found[0] or 0, found[1]

    def _array(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        least, most = self.counts(schema, "Items", where)
        if schema.get("uniqueItems") and (most is None or most > 1):
            fail(where, "uniqueItems is not supported where there may be two items")
        items = schema.get("items", True)
        if isinstance(items, list):
            fail(where, "items is a list; write prefixItems")
        first = [self.value(item, f"{where}.prefixItems[{i}]", depth)
                 for i, item in enumerate(schema.get("prefixItems", ()))]  # fmt: skip
        return self.text.array(first, self.value(items, f"{where}.items", depth), least, most)

    def _object(self, schema: dict[str, Any], where: str, depth: int) -> Expression:
        given, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", schema.get("unevaluatedProperties"))
        unnamed = [name for name in required if name not in given]
        absent = True if others is None else others
        known = [*given.items(), *((name, absent) for name in dict.fromkeys(unnamed))]
        if others is None:
            others = not given
        if len(known) > _MOST_PROPERTIES:
            fail(where, f"has {len(known)} properties; expected at most {_MOST_PROPERTIES}")
        members = []
        for name, value in known:
            held = self.value(value, f"{where}.{name}", depth)
            if held is not self.make.never or name in required:
                members.append((self.member(name, held), name in required))
        other = self.make.never
        if others is not False:
            other = self.text.member(self.free_key([name for name, _ in known], where),
                                     self.value(others, f"{where}.additionalProperties", depth))
        least, most = self.counts(schema, "Properties", where)
        if least > len(set(required)):
            fail(where, f"minProperties is {least}; expected at most as many as are required")
        if most is not None and most < len(members):
            fail(where, f"maxProperties is {most}, and {len(members)} have names; expected as many")
        return self.text.members(members, other, None if most is None else most - len(members))

    def member(self, name: str, value: Expression) -> Expression:
        return self.text.member(self.text.quoted(self.text.text(name)), value)

    def free_key(self, taken: Sequence[str], where: str) -> Expression:
        """A key that is none of these."""
        any_key = self.make.repeat(self.text.character(ANY))
        if not taken:
            return self.text.any_string
        others = self.make.other(self.words(taken, where))
        return self.text.quoted(self.make.both(any_key, others))
