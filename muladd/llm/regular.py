"""Regular expressions of schemas as expressions over JSON's characters.

What is read is what ECMA-262 and Python's `re` have in common. Where they differ (which letters
outside ASCII are \\w, say), a text is written only if it matches by both.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from muladd.errors import ArgumentError
from muladd.llm.expressions import Expression
from muladd.llm.json_text import ANY, SURROGATES, JSONText, Ranges, joined, without

_MOST_REPEATS = 10_000
_DEEPEST = 40
_BEYOND: Ranges = ((0x80, 0x10FFFF),)
_DIGITS: Ranges = ((0x30, 0x39),)
_WORD = joined([(0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A)])
_SPACE: Ranges = ((9, 13), (32, 32))
_SPACES = joined([*_SPACE, (0x1C, 0x1F), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680),
                  (0x2000, 0x200A), (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F),
                  (0x3000, 0x3000), (0xFEFF, 0xFEFF)])  # fmt: skip
_LINE_ENDS: Ranges = ((10, 10), (13, 13), (0x2028, 0x2029))
_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13, "0": 0}


@dataclass(frozen=True)
class Set:
    """Characters that are surely meant, and those that some dialect may mean."""

    sure: Ranges
    possible: Ranges

    def other(self) -> Set:
        """All that are not meant."""
        return Set(without(self.possible), without(self.sure))

    def plus(self, more: Set) -> Set:
        """Those of both together."""
        return Set(joined([*self.sure, *more.sure]), joined([*self.possible, *more.possible]))


_CLASSES = {"d": Set(_DIGITS, joined([*_DIGITS, *_BEYOND])), "s": Set(_SPACE, _SPACES),
            "w": Set(_WORD, joined([*_WORD, *_BEYOND]))}  # fmt: skip


def _one(character: int) -> Set:
    return Set(((character, character),), ((character, character),))


def pattern(source: str, json: JSONText, where: str) -> Expression:
    """The contents of strings in which the pattern is found somewhere, as JSON writes them.

    Anchors may stand at the ends of its alternatives only. Raises ArgumentError for what is no
    pattern, and for what cannot be done: look-around, references back, \\b, \\p.
    """
    return _Reader(source, json, where).searched()


class _Reader:
    """One pass over a pattern."""

    def __init__(self, source: str, json: JSONText, where: str) -> None:
        self.source, self.json, self.where = source, json, where
        self.make, self.at, self.depth = json.make, 0, 0

    def fail(self, what: str) -> NoReturn:
        raise ArgumentError(f"json_schema: {self.where}: pattern {self.source!r:.80} at character "
                            f"{self.at}: {what}")  # fmt: skip

    def peek(self) -> str:
        return self.source[self.at : self.at + 1]

    def take(self, what: str) -> bool:
        """Whether this comes next; then it is read."""
        found = self.source.startswith(what, self.at)
        self.at += len(what) if found else 0
        return found

    # --- structure -------------------------------------------------------------------------------

    def searched(self) -> Expression:
        """All of the pattern: anything may stand before and after what is not anchored."""
        anything = self.make.repeat(self.json.character(ANY))
        parts = []
        while True:
            before = self.make.empty if self.take("^") else anything
            body, ended = self.row(outermost=True)
            parts.append(self.make.sequence(before, body, self.make.empty if ended else anything))
            if not self.take("|"):
                break
        if self.at < len(self.source):
            self.fail("this ')' closes nothing")
        return self.make.either(*parts)

    def alternatives(self) -> Expression:
        parts = [self.row()[0]]
        while self.take("|"):
            parts.append(self.row()[0])
        return self.make.either(*parts)

    def row(self, outermost: bool = False) -> tuple[Expression, bool]:
        """One alternative, and whether it ends with '$'."""
        parts: list[Expression] = []
        while (c := self.peek()) and c not in "|)":
            if c == "^":
                self.fail("'^' is understood at the beginning of the pattern or of one of its "
                          "outermost alternatives only")  # fmt: skip
            if c == "$":
                if not outermost or self.source[self.at + 1 : self.at + 2] not in ("", "|"):
                    self.fail("'$' is understood at the end of the pattern or of one of its "
                              "outermost alternatives only")  # fmt: skip
                self.at += 1
                return self.make.sequence(*parts), True
            parts.append(self.repeated(self.atom()))
        return self.make.sequence(*parts), False

    def atom(self) -> Expression:
        c = self.peek()
        if c in "*+?":
            self.fail(f"{c!r} repeats nothing")
        self.at += 1
        if c == "(":
            return self.group()
        if c == "[":
            found = self.set()
        elif c == ".":
            found = Set(without(_LINE_ENDS), ANY)
        elif c == "\\":
            found = self.escape()
        else:
            found = _one(ord(c))
        return self.json.character(found.sure)

    def group(self) -> Expression:
        if self.take("?") and not self.take(":"):
            named = self.take("P<") or (self.source[self.at + 1 : self.at + 2] not in ("=", "!")
                                        and self.take("<"))  # fmt: skip
            if not named:
                self.fail("only groups (...), (?:...) and (?<name>...) are understood")
            while (c := self.peek()) and (c.isalnum() or c == "_"):
                self.at += 1
            if not self.take(">"):
                self.fail("the group's name does not end with '>'")
        self.depth += 1
        if self.depth > _DEEPEST:
            self.fail(f"groups nest deeper than {_DEEPEST}")
        found = self.alternatives()
        if not self.take(")"):
            self.fail("a '(' is not closed")
        self.depth -= 1
        return found

    def repeated(self, a: Expression) -> Expression:
        c, least, most = self.peek(), 0, None
        if c in ("*", "+", "?"):
            self.at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[c]
        elif c == "{":
            self.at += 1
            least, most = self.bounds()
        else:
            return a
        self.take("?")  # which of several matches is found makes no difference
        if self.peek() in ("*", "+", "?", "{"):
            self.fail("a repetition is repeated; put it into a group")
        return self.make.repeat(a, least, most)

    def bounds(self) -> tuple[int, int | None]:
        least = self.number()
        most: int | None = least
        if self.take(","):
            most = None if self.peek() == "}" else self.number()
        if not self.take("}"):
            self.fail("expected {n}, {n,} or {n,m}; write \\{ for a brace")
        if most is not None and most < least:
            self.fail(f"repeats {least} to {most} times")
        return least, most

    def number(self) -> int:
        start = self.at
        while self.peek().isascii() and self.peek().isdigit():
            self.at += 1
        if start == self.at:
            self.fail("expected {n}, {n,} or {n,m}; write \\{ for a brace")
        text = self.source[start : self.at]
        if len(text) > 6 or int(text) > _MOST_REPEATS:
            self.fail(f"repeats more than {_MOST_REPEATS} times")
        return int(text)

    # --- sets of characters ----------------------------------------------------------------------

    def set(self) -> Set:
        other = self.take("^")
        found = Set((), ())
        if self.peek() == "]":
            self.fail("the set is empty; write \\] for a bracket")
        while not self.take("]"):
            if not self.peek():
                self.fail("a '[' is not closed")
            low = self.member()
            if self.peek() == "-" and self.source[self.at + 1 : self.at + 2] not in ("]", ""):
                self.at += 1
                low = self.range(low, self.member())
            found = found.plus(low)
        return found.other() if other else found

    def member(self) -> Set:
        c = self.peek()
        self.at += 1
        if c == "\\":
            return _one(8) if self.take("b") else self.escape()
        return _one(ord(c))

    def range(self, low: Set, high: Set) -> Set:
        ends = [s.sure[0] for s in (low, high) if len(s.sure) == 1 and s.sure == s.possible]
        if len(ends) != 2 or any(a != b for a, b in ends) or ends[0][0] > ends[1][0]:
            self.fail("expected a range from a character to a later one")
        both = joined([(ends[0][0], ends[1][0])])
        return Set(both, both)

    def escape(self) -> Set:
        c = self.peek()
        self.at += 1
        if c and c in "dswDSW":
            found = _CLASSES[c.lower()]
            return found if c.islower() else found.other()
        if c == "x" or c == "u":
            return _one(self.code(2 if c == "x" else 4))
        if c and c in _CONTROLS and not (c == "0" and self.peek().isdigit()):
            return _one(_CONTROLS[c])
        if not c or c.isalnum() or ord(c) > 0x7F:
            self.fail(f"\\{c} is not understood")
        return _one(ord(c))

    def code(self, size: int) -> int:
        if size == 4 and self.take("{"):
            size = self.source.find("}", self.at) - self.at
            found = self.hexadecimal(size)
            self.at += 1
        else:
            found = self.hexadecimal(size)
        first, last = SURROGATES
        if first <= found < 0xDC00 and self.take("\\u"):
            found = 0x10000 + (found - first << 10) + (self.hexadecimal(4) - 0xDC00)
        if first <= found <= last or not 0 <= found <= 0x10FFFF:
            self.fail("expected a character's number")
        return found

    def hexadecimal(self, size: int) -> int:
        text = self.source[self.at : self.at + max(size, 0)]
        if not 1 <= len(text) <= 6 or len(text) != size or not all(c in _HEX for c in text):
            self.fail("expected hexadecimal digits")
        self.at += size
        return int(text, 16)


_HEX = frozenset("0123456789abcdefABCDEF")

__all__ = ["pattern"]
