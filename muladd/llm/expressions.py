"""Languages of bytes as expressions that are read one byte at a time (Brzozowski, 1964).

An expression stands for a set of byte strings. Reading a byte leads to another expression, which
stands for what may follow. Unlike in an ordinary regular expression, what follows may lie behind a
name that is looked up when it is reached (nested JSON), and two expressions may both have to hold
(a pattern and a length). Equal expressions of one `Expressions` are one object, so that a reader
that remembers what it computed for an object has a finite automaton where there is one.
"""
from __future__ import annotations

import os.path
from collections import deque
from collections.abc import Callable, Iterable
from functools import reduce
from typing import Any

from muladd.errors import ArgumentError

ALL_BYTES = (1 << 256) - 1
_MOST_ALTERNATIVES = 4096  # of one expression: beyond it, reading a byte would take too long
_MOST_SEARCHED = 25_000  # steps, to find out whether something satisfies two at once
_SPINE = 64  # parts of a sequence that are looked at for counts

Moves = list[tuple["int", "Expression"]]  # disjoint sets of bytes (256 bits), and what follows


class Expression:
    """A node; made by `Expressions` only. `nullable`: nothing more is needed."""

    __slots__ = ("alive", "arg", "kind", "moves", "nullable", "number", "parts")

    def __init__(
        self, number: int, kind: str, parts: tuple[Expression, ...], arg: Any, nullable: bool
    ) -> None:
        self.number, self.kind, self.parts, self.arg = number, kind, parts, arg
        self.nullable = nullable
        self.moves: Moves | None = None
        self.alive: bool | None = None  # whether any string at all satisfies it

    def __repr__(self) -> str:
        return f"{self.kind}{list(self.parts) if self.parts else ''}"


class Expressions:
    """Makes expressions, and computes what follows them."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], Expression] = {}
        self._later: dict[int, Callable[[], Expression]] = {}
        self.never = self._make("never", (), None, False)
        self.empty = self._make("empty", (), None, True)
        self.never.moves = self.empty.moves = []
        self.never.alive, self.empty.alive = False, True

    def _make(
        self, kind: str, parts: tuple[Expression, ...], arg: Any, nullable: bool
    ) -> Expression:
        key = (kind, arg, *(p.number for p in parts))
        found = self._made.get(key)
        if found is None:
            found = Expression(len(self._made), kind, parts, arg, nullable)
            self._made[key] = found
        return found

    # --- expressions -----------------------------------------------------------------------------

    def byte(self, allowed: int | Iterable[int]) -> Expression:
        """One byte of a set (its 256 bits, or its members)."""
        mask = allowed if isinstance(allowed, int) else reduce(lambda m, b: m | 1 << b, allowed, 0)
        return self._make("bytes", (), mask, False) if mask else self.never

    def literal(self, text: bytes | str) -> Expression:
        """These bytes and no others."""
        raw = text.encode() if isinstance(text, str) else text
        found = self.empty
        for byte in reversed(raw):
            found = self.sequence(self.byte(1 << byte), found)
        return found

    def words(self, texts: Iterable[bytes]) -> Expression:
        """Any of these texts; what several begin with is there once."""
        some = sorted(set(texts))
        if len(some) <= 1:
            return self.literal(some[0]) if some else self.never
        prefix = os.path.commonprefix(some)
        groups: dict[bytes, list[bytes]] = {}
        for text in some:
            rest = text[len(prefix) :]
            groups.setdefault(rest[:1], []).append(rest[1:])
        parts = (self.sequence(self.literal(first), self.words(rests))
                 for first, rests in groups.items())  # fmt: skip
        return self.sequence(self.literal(prefix), self.either(*parts))

    def sequence(self, *parts: Expression) -> Expression:
        """One after the other."""
        found = self.empty
        for part in reversed(parts):
            found = self._pair(part, found)
        return found

    def _pair(self, a: Expression, b: Expression) -> Expression:
        if a is self.never or b is self.never:
            return self.never
        if a is self.empty:
            return b
        if b is self.empty:
            return a
        spine = []
        while a.kind == "sequence":  # always nested to the right
            spine.append(a.parts[0])
            a = a.parts[1]
        for part in (a, *reversed(spine)):
            b = self._make("sequence", (part, b), None, part.nullable and b.nullable)
        return b

    def either(self, *parts: Expression) -> Expression:
        """Any of them."""
        mask, kept = 0, {}
        for part in parts:
            for one in part.parts if part.kind == "either" else (part,):
                if one.kind == "bytes":
                    assert isinstance(one.arg, int)
                    mask |= one.arg
                elif one is not self.never:
                    kept[one.number] = one
        if mask:
            one = self.byte(mask)
            kept[one.number] = one
        if len(kept) > _MOST_ALTERNATIVES:
            raise ArgumentError(f"json_schema: {len(kept)} ways to go on at one place; expected at "
                                f"most {_MOST_ALTERNATIVES}: simplify its patterns or lists of "
                                "values")  # fmt: skip
        found = tuple(kept[number] for number in sorted(kept))
        if len(found) <= 1:
            return found[0] if found else self.never
        return self._make("either", found, None, any(p.nullable for p in found))

    def maybe(self, a: Expression) -> Expression:
        """It or nothing."""
        return self.either(self.empty, a)

    def repeat(self, a: Expression, least: int = 0, most: int | None = None) -> Expression:
        """It again and again: `least` to `most` times."""
        if most == 0 or a is self.empty:
            return self.empty
        least = 0 if a.nullable else least
        if a is self.never:
            return self.never if least else self.empty
        if least == most == 1:
            return a
        if most is not None and least > most:
            return self.never
        return self._make("repeat", (a,), (least, most), least == 0)

    def both(self, a: Expression, b: Expression) -> Expression:
        """What satisfies one and the other. Neither may have a `later` in it."""
        if a is b:
            return a
        if a is self.never or b is self.never:
            return self.never
        first, second = sorted((a, b), key=lambda e: e.number)
        return self._make("both", (first, second), None, a.nullable and b.nullable)

    def other(self, a: Expression) -> Expression:
        """Any bytes but those of this expression."""
        return a.parts[0] if a.kind == "other" else self._make("other", (a,), None, not a.nullable)

    def multiple(self, of: int, rest: int = 0) -> Expression:
        """Decimal digits, also none, which make a multiple of `of` after digits that left `rest`
        when divided by it."""
        return self._make("multiple", (), (of, rest), rest == 0)

    def later(self, name: object, what: Callable[[], Expression]) -> Expression:
        """What `what()` gives when it is reached; equal names mean the same. It is never nothing
        (a JSON value is some bytes)."""
        found = self._make("later", (), name, False)
        self._later.setdefault(found.number, what)
        return found

    # --- what follows ----------------------------------------------------------------------------

    def moves(self, a: Expression) -> Moves:
        """Disjoint sets of bytes with what follows each; other bytes are not allowed."""
        if a.moves is None:
            a.moves = getattr(self, f"_moves_{a.kind}")(a)
        return a.moves

    def _moves_bytes(self, a: Expression) -> Moves:
        assert isinstance(a.arg, int)
        return [(a.arg, self.empty)]

    def _moves_sequence(self, a: Expression) -> Moves:
        first, rest = a.parts
        found = [(mask, self._pair(x, rest)) for mask, x in self.moves(first)]
        return self._joined([found, self.moves(rest)]) if first.nullable else found

    def _moves_either(self, a: Expression) -> Moves:
        return self._joined([self.moves(p) for p in a.parts])

    def _moves_repeat(self, a: Expression) -> Moves:
        part = a.parts[0]
        least, most = a.arg
        rest = self.repeat(part, max(least - 1, 0), None if most is None else most - 1)
        return [(mask, self._pair(x, rest)) for mask, x in self.moves(part)]

    def _moves_both(self, a: Expression) -> Moves:
        first, second = (self.moves(p) for p in a.parts)
        found = ((m & n, self.both(x, y)) for m, x in first for n, y in second if m & n)
        return [(mask, x) for mask, x in found if x is not self.never]

    def _moves_other(self, a: Expression) -> Moves:
        found = self.moves(a.parts[0])
        left = ALL_BYTES & ~reduce(lambda m, move: m | move[0], found, 0)
        rest = [(left, self.other(self.never))] if left else []
        return [*((mask, self.other(x)) for mask, x in found), *rest]

    def _moves_multiple(self, a: Expression) -> Moves:
        of, rest = a.arg
        return self._joined([[(1 << ord(str(d)), self.multiple(of, (rest * 10 + d) % of))]
                             for d in range(10)])  # fmt: skip

    def _moves_later(self, a: Expression) -> Moves:
        return self.moves(self._later[a.number]())

    def _joined(self, lists: Iterable[Moves]) -> Moves:
        """Moves of alternatives as one: what follows a byte is either of what followed it."""
        parts: list[tuple[int, list[Expression]]] = []
        for moves in lists:
            for mask, x in moves:
                cut: list[tuple[int, list[Expression]]] = []
                for held, xs in parts:
                    if common := held & mask:
                        cut.append((common, [*xs, x]))
                        mask ^= common
                    if held ^ common:
                        cut.append((held ^ common, xs))
                if mask:
                    cut.append((mask, [x]))
                parts = cut
        together: dict[int, tuple[int, Expression]] = {}
        for mask, xs in parts:
            x = self.either(*xs)
            together[x.number] = (together.get(x.number, (0, x))[0] | mask, x)
        return list(together.values())

    # --- whether anything is left ----------------------------------------------------------------

    def alive(self, a: Expression) -> bool:
        """Whether any string satisfies it. Where finding out takes too long, it counts as none: an
        expression that is alive has a way on all of whose steps are."""
        while a.kind == "sequence" and a.alive is None:
            if not self.alive(a.parts[0]):
                a.alive = False
                break
            a = a.parts[1]
        if a.alive is None:
            a.alive = a.nullable or self._alive(a)
        return a.alive

    def _alive(self, a: Expression) -> bool:
        if a.kind in ("either", "repeat"):
            return any(map(self.alive, a.parts))
        if a.kind == "later":
            return self.alive(self._later[a.number]())
        return a.kind == "bytes" or self._reaches_end(a)

    def _reaches_end(self, start: Expression) -> bool:
        """Search what follows for an expression that needs nothing more: straight on first (which
        finds an end soon if there are many), then the nearest first."""
        return self._searched(start, nearest=False) or self._searched(start, nearest=True)

    def _searched(self, start: Expression, nearest: bool) -> bool:
        came: dict[Expression, Expression | None] = {start: None}
        waiting, cost = deque([start]), 0
        while waiting and cost < _MOST_SEARCHED:
            here = waiting.popleft() if nearest else waiting.pop()
            for _, x in self.moves(here):
                cost += 1 + sum(len(part.parts) for part in x.parts)
                if x in came or x.alive is False:
                    continue
                came[x] = here
                if x.nullable or x.alive:
                    step: Expression | None = x
                    while step is not None:
                        step.alive = True
                        step = came[step]
                    return True
                waiting.append(x)
        if not waiting:  # all that follows was seen
            for x in came:
                x.alive = False
        return False

    # --- counts that a few bytes do not reach the end of -----------------------------------------

    def outlasting(self, a: Expression, size: int) -> Expression:
        """An expression that allows the same next `size` bytes, and that is the same for all counts
        above size."""
        if a.kind == "repeat":
            part = a.parts[0]
            least, most = a.arg
            least = min(least, size + 1)
            return self.repeat(part, least, None if most is not None and most > size else most)
        if a.kind == "either" and len(a.parts) <= 16:
            return self.either(*(self.outlasting(part, size) for part in a.parts))
        if a.kind != "sequence":
            return a
        spine: list[Expression] = []
        while a.kind == "sequence" and len(spine) < _SPINE:
            spine.append(self.outlasting(a.parts[0], size))
            a = a.parts[1]
        return self.sequence(*spine, a if a.kind == "sequence" else self.outlasting(a, size))
