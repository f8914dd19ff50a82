"""JSON as expressions: characters, strings, numbers, and values of any kind.

Each value is written in one way only: no escape where none is needed, no number that a double
would round to infinity. So what is forbidden (a key that is taken) cannot come back in disguise.
"""
from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache

from muladd.llm.expressions import Expression, Expressions

Ranges = tuple[tuple[int, int], ...]  # code points, ascending, both ends inclusive

SURROGATES = (0xD800, 0xDFFF)
ANY: Ranges = ((0, 0xD7FF), (0xE000, 0x10FFFF))
DEPTH = 16  # how deep values nest of which a schema says nothing
_INDENT = 32  # spaces at the beginning of a line
_DIGITS = 15  # of numbers without bounds: all of them are exact as doubles
_SHORT = {0x22: '\\"', 0x5C: "\\\\", 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r"}


def joined(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Ranges in order, without overlaps and without surrogates."""
    found: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], high))
        else:
            found.append((low, high))
    return common(tuple(found), ANY)


def without(ranges: Ranges) -> Ranges:
    """All characters but these."""
    edges = [-1, *(edge for low, high in ranges for edge in (low, high)), 0x110000]
    return joined((a + 1, b - 1) for a, b in zip(edges[::2], edges[1::2]) if a + 1 <= b - 1)


def common(a: Ranges, b: Ranges) -> Ranges:
    """The characters in both."""
    found = ((max(x, u), min(y, v)) for x, y in a for u, v in b)
    return tuple((low, high) for low, high in found if low <= high)


@lru_cache(4096)
def utf8(low: int, high: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Code points low to high as sequences of ranges of bytes."""
    for last in (0x7F, 0x7FF, 0xFFFF):  # of one length each
        if low <= last < high:
            return utf8(low, last) + utf8(last + 1, high)
    first, end = chr(low).encode(), chr(high).encode()
    for i in range(1, len(first)):  # where the last bytes do not run from least to greatest
        size = 1 << 6 * i
        if low // size != high // size:
            if low % size:
                cut = low - low % size + size
                return utf8(low, cut - 1) + utf8(cut, high)
            if high % size != size - 1:
                cut = high - high % size
                return utf8(low, cut - 1) + utf8(cut, high)
    return (tuple(zip(first, end)),)


class JSONText:
    """Expressions of JSON's parts. `alphabet`: the characters that may be written at all."""

    def __init__(self, make: Expressions, alphabet: Ranges = ANY) -> None:
        self.make, self.alphabet = make, alphabet
        self._characters: dict[Ranges, Expression] = {}
        space, tab = make.literal(" "), make.literal("\t")
        line = make.sequence(make.literal("\n"), make.either(
            make.repeat(space, 0, _INDENT), make.repeat(tab, 0, _INDENT // 4)))  # fmt: skip
        self.space = self.writable(make.either(make.empty, space, line), " \n\t")
        self.after_colon = self.writable(make.maybe(space), " ")
        self.digit = make.byte(range(0x30, 0x3A))
        self.any_string = self.quoted(make.repeat(self.character(ANY)))
        self.any_number = self._any_number()

    def writable(self, a: Expression, characters: str) -> Expression:
        """It, or nothing where the alphabet lacks one of the characters."""
        held = all(common(((ord(c), ord(c)),), self.alphabet) for c in characters)
        return a if held else self.make.empty

    # --- strings ---------------------------------------------------------------------------------

    def character(self, ranges: Ranges) -> Expression:
        """One of these characters, as it is written inside a string."""
        found = self._characters.get(ranges)
        if found is None:
            found = self._characters[ranges] = self._written(common(ranges, self.alphabet))
        return found

    def _written(self, ranges: Ranges) -> Expression:
        make, parts = self.make, []
        for low, high in ranges:
            for c in (*range(low, min(high, 0x1F) + 1), 0x22, 0x5C):
                if low <= c <= high:
                    parts.append(make.literal(_SHORT.get(c) or f"\\u{c:04x}"))
        plain = common(ranges, ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0x10FFFF)))
        for low, high in plain:
            for bytewise in utf8(low, high):
                parts.append(make.sequence(*(make.byte(range(a, b + 1)) for a, b in bytewise)))
        return make.either(*parts)

    def text(self, text: str) -> Expression:
        """This text, as it is written inside a string."""
        return self.make.sequence(*(self.character(((ord(c), ord(c)),)) for c in text))

    def quoted(self, content: Expression) -> Expression:
        """A string with this content."""
        quote = self.make.literal('"')
        return self.make.sequence(quote, content, quote)

    # --- numbers ---------------------------------------------------------------------------------

    def _any_number(self) -> Expression:
        make, digit = self.make, self.digit
        whole = make.either(make.literal("0"), self._digits("1", "9" * _DIGITS))
        fraction = make.sequence(make.literal("."), make.repeat(digit, 1, _DIGITS))
        power = make.sequence(make.byte(b"eE"), make.maybe(make.byte(b"+-")),
                              make.repeat(digit, 1, 2))  # fmt: skip
        return make.sequence(make.maybe(make.literal("-")), whole, make.maybe(fraction),
                             make.maybe(power))  # fmt: skip

    def integers(
        self, low: Decimal | None, high: Decimal | None, open_low: bool, open_high: bool,
        multiple: int,
    ) -> Expression:  # fmt: skip
        """Whole numbers from low to high (not these themselves, where open)."""
        numbers = self._units(low, high, open_low, open_high, 0)
        if multiple == 1:
            return numbers
        sign = self.make.maybe(self.make.literal("-"))
        return self.make.both(numbers, self.make.sequence(sign, self.make.multiple(multiple)))

    def _digits(self, low: str, high: str) -> Expression:
        """Whole numbers from low to high, neither with zeros in front."""
        parts = []
        for size in range(len(low), len(high) + 1):
            first = low if size == len(low) else "1" + "0" * (size - 1)
            last = high if size == len(high) else "9" * size
            parts.append(self._between(first, last, ends=False))
        return self.make.either(*parts)

    def _between(self, low: str, high: str, ends: bool) -> Expression:
        """Digits from low to high, which are as many. `ends`: zeros at the end may be left out (at
        least one digit stays)."""
        if low > high:
            return self.make.never
        if not low:
            return self.make.empty
        size = len(low) - 1

        def rest(a: str, b: str) -> Expression:
            found = self._between(a, b, ends)
            return self.make.maybe(found) if ends and not a.strip("0") else found

        def digits(a: int, b: int) -> Expression:
            return self.make.byte(range(0x30 + a, 0x31 + b))

        a, b, least, most = int(low[0]), int(high[0]), "0" * size, "9" * size
        if not low.strip("0") and not high.strip("9"):  # all there are
            some = self.make.repeat(self.digit, 1 if ends else size + 1, size + 1)
            return some
        if a == b:
            return self.make.sequence(digits(a, a), rest(low[1:], high[1:]))
        parts = [self.make.sequence(digits(a, a), rest(low[1:], most)),
                 self.make.sequence(digits(b, b), rest(least, high[1:]))]  # fmt: skip
        if a + 1 < b:
            parts.append(self.make.sequence(digits(a + 1, b - 1), rest(least, most)))
        return self.make.either(*parts)

    def decimals(
        self, low: Decimal | None, high: Decimal | None, open_low: bool, open_high: bool
    ) -> Expression:
        """Numbers from low to high (not these themselves, where open), without exponents.

        No two of them round to one double where a bound is open: so a number above it stays above.
        """
        bounds = [b for b in (low, high) if b is not None]
        wanted = max((max(0, -int(b.normalize().as_tuple().exponent)) for b in bounds), default=0)
        whole = max((len(str(abs(int(b)))) for b in bounds), default=1)
        places = max(wanted, min(6, max(1, _DIGITS - whole)))
        return self._units(low, high, open_low, open_high, places)

    def _units(
        self, low: Decimal | None, high: Decimal | None, open_low: bool, open_high: bool,
        places: int,
    ) -> Expression:  # fmt: skip
        """Numbers of at most so many places; without a bound, of 15 digits beyond the other one."""
        unit, room = 10**places, 10 ** (_DIGITS + places) - 1
        least = most = None  # in units of the last place
        if low is not None:
            exact = Fraction(low) * unit
            least = math.floor(exact) + 1 if open_low else math.ceil(exact)
        if high is not None:
            exact = Fraction(high) * unit
            most = math.ceil(exact) - 1 if open_high else math.floor(exact)
        first = min(-room, (most or 0) - room) if least is None else least
        last = max(room, (least or 0) + room) if most is None else most
        parts = []
        if last >= max(first, 0):
            parts.append(self._scaled(max(first, 0), last, places))
        if first < 0 and first <= last:
            minus = self.make.literal("-")
            parts.append(self.make.sequence(minus, self._scaled(max(1, -last), -first, places)))
        return self.make.either(*parts)

    def _scaled(self, low: int, high: int, places: int) -> Expression:
        """Numbers from low to high, from 0 on, in units of the last of so many places."""
        if not places:
            return self._digits(str(low), str(high))
        unit = 10**places
        (a, first), (b, last) = divmod(low, unit), divmod(high, unit)

        def tail(least: int, most: int) -> Expression:
            texts = (str(least).zfill(places), str(most).zfill(places))
            found = self.make.sequence(self.make.literal("."), self._between(*texts, ends=True))
            return self.make.maybe(found) if least == 0 else found

        if a == b:
            return self.make.sequence(self.make.literal(str(a)), tail(first, last))
        parts = [self.make.sequence(self.make.literal(str(a)), tail(first, unit - 1)),
                 self.make.sequence(self.make.literal(str(b)), tail(0, last))]  # fmt: skip
        if a + 1 < b:
            inside = self._digits(str(a + 1), str(b - 1))
            parts.append(self.make.sequence(inside, tail(0, unit - 1)))
        return self.make.either(*parts)

    # --- values ----------------------------------------------------------------------------------

    def any_value(self, depth: int = DEPTH) -> Expression:
        """Any value; arrays and objects nest `depth` deep at most."""
        return self.make.later(("any value", depth), lambda: self._any_value(depth))

    def _any_value(self, depth: int) -> Expression:
        words = map(self.make.literal, ("true", "false", "null"))
        deep = [self.any_array(depth), self.any_object(depth)] if depth else []
        return self.make.either(self.any_string, self.any_number, *words, *deep)

    def any_array(self, depth: int = DEPTH) -> Expression:
        """Any array, of values that nest one less deep."""
        return self.array([], self.any_value(depth - 1), 0, None)

    def any_object(self, depth: int = DEPTH) -> Expression:
        """Any object, of values that nest one less deep."""
        return self.members([], self.member(self.any_string, self.any_value(depth - 1)))

    def array(
        self, first: Sequence[Expression], rest: Expression, least: int, most: int | None
    ) -> Expression:
        """An array: items of their own at its beginning, then others, `least` to `most` in all."""
        make = self.make
        if most is not None and least > most:
            return make.never
        comma = make.sequence(make.literal(","), self.space)
        first = list(first if most is None else first[:most]) or [rest]
        known = len(first)  # after these, all are alike
        after = make.repeat(make.sequence(comma, rest), max(0, least - known),
                            None if most is None else max(0, most - known))  # fmt: skip
        for i in reversed(range(known)):  # what comes after i items
            more = make.sequence(comma if i else make.empty, first[i], after)
            after = more if i < least else make.maybe(more)
        content = make.empty if most == 0 else make.sequence(self.space, after, self.space)
        return make.sequence(make.literal("["), content, make.literal("]"))

    def member(self, key: Expression, value: Expression) -> Expression:
        """A key and its value."""
        return self.make.sequence(key, self.make.literal(":"), self.after_colon, value)

    def members(
        self, known: Sequence[tuple[Expression, bool]], other: Expression, most: int | None = None
    ) -> Expression:
        """An object: members in this order, each with whether it must be there, then `most`
        others."""
        make = self.make
        comma = make.sequence(make.literal(","), self.space)
        more = make.sequence(comma, other)
        after = make.repeat(more, 0, most)  # what follows a member
        first = make.sequence(other, make.repeat(more, 0, None if most is None else most - 1))
        start = make.empty if most == 0 else make.maybe(first)  # what an object begins with
        for member, needed in reversed(known):
            begun, gone_on = make.sequence(member, after), make.sequence(comma, member, after)
            start = begun if needed else make.either(begun, start)
            after = gone_on if needed else make.either(gone_on, after)
        content = make.sequence(self.space, start, self.space)
        return make.sequence(make.literal("{"), content, make.literal("}"))
