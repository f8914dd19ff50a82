"""Who holds which page of a pool; equal beginnings of texts hold the same pages.

A full page is known by its tokens and by the page before it. It stays after its text is gone, until
the room is needed: whoever begins like an earlier text (the same system prompt, the next turn of a
conversation) finds its pages there and computes nothing of them.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from muladd.llm.pages import PAGE, Text

_Key = tuple[int, tuple[int, ...]]  # the page before (-1: none), and the tokens


class Sharing:
    """Hands out the pages 0 to count - 1. Not for several threads at once."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._empty = list(range(count - 1, -1, -1))
        self._users = [0] * count
        self._known: dict[_Key, int] = {}
        self._key: dict[int, _Key] = {}
        self._unused: OrderedDict[int, None] = OrderedDict()  # known, held by nobody; oldest first

    @property
    def held(self) -> int:
        """How many pages texts hold now."""
        return self.count - len(self._empty) - len(self._unused)

    def begin(self, ids: Sequence[int]) -> Text:
        """A text whose length says how many of the ids are there already: whole pages, and never
        all of them, as something must be left to compute."""
        text = Text()
        while text.length + PAGE < len(ids):
            page = self._known.get(self._key_after(text, ids))
            if page is None:
                break
            self._unused.pop(page, None)
            self._users[page] += 1
            text.pages.append(page)
            text.length += PAGE
        return text

    def grow(self, text: Text, length: int) -> bool:
        """Give a text pages for so many positions; False, and none, if there are too few."""
        need = -(-length // PAGE) - len(text.pages)
        if need > len(self._empty) + len(self._unused):
            return False
        for _ in range(need):
            page = self._empty.pop() if self._empty else self._forgotten()
            self._users[page] = 1
            text.pages.append(page)
        return True

    def seal(self, text: Text, ids: Sequence[int]) -> None:
        """Pages of the text may have become full (ids are all of the text): they are known from now
        on. Where an equal one is known already, the text holds that instead."""
        full = text.length // PAGE
        first = full
        while first and text.pages[first - 1] not in self._key:
            first -= 1
        for n in range(first, full):
            self._seal(text, n, ids)

    def _seal(self, text: Text, n: int, ids: Sequence[int]) -> None:
        page = text.pages[n]
        key = self._key_after(Text(text.pages[:n], n * PAGE), ids)
        known = self._known.setdefault(key, page)
        self._key[known] = key
        if known != page:
            self._unused.pop(known, None)
            self._users[known] += 1
            text.pages[n] = known
            self._give_back(page)

    def end(self, text: Text) -> None:
        """Take a text's pages back. Those that are known stay as long as there is room."""
        for page in reversed(text.pages):
            self._give_back(page)
        text.pages, text.length = [], 0

    def forget(self, text: Text) -> list[int]:
        """Nobody begins any more as this text did. Gives the pages that no other text holds."""
        gone = set(text.pages)
        while more := {p for (before, _), p in self._known.items() if before in gone} - gone:
            gone |= more
        for page in gone & self._key.keys():
            del self._known[self._key.pop(page)]
            if page in self._unused:
                del self._unused[page]
                self._empty.append(page)
        return [p for p in gone if self._users[p] == (p in text.pages)]

    def _key_after(self, text: Text, ids: Sequence[int]) -> _Key:
        before = text.pages[-1] if text.pages else -1
        return before, tuple(ids[text.length : text.length + PAGE])

    def _give_back(self, page: int) -> None:
        self._users[page] -= 1
        if not self._users[page]:
            if page in self._key:
                self._unused[page] = None
            else:
                self._empty.append(page)

    def _forgotten(self) -> int:
        """The page that nobody has held for the longest time. No known page stands after it: who
        held one of these held this one too, and gave it back last."""
        page, _ = self._unused.popitem(last=False)
        del self._known[self._key.pop(page)]
        return page
