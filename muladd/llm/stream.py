"""Ids to text one at a time: a character that is split over tokens appears when it is whole."""
from __future__ import annotations

import codecs
from collections.abc import Iterable

from muladd.errors import IndexingError
from muladd.llm.vocabulary import Vocabulary


class Stream:
    """Text from ids, as they come: `put(id)` gives the characters that are certain by now, `end()`
    what was left over. Bytes that are no UTF-8 become U+FFFD. `marks`: control tokens are written
    by name; otherwise they are left out.

    All text given is what `Tokenizer.decode` gives for all ids.
    """

    def __init__(self, vocabulary: Vocabulary, marks: bool = False) -> None:
        self._vocabulary, self._marks = vocabulary, marks
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._fresh = vocabulary.space_prefix  # the next piece may begin with a space to drop

    def put(self, token: int) -> str:
        """The text that this id completes ('' in the middle of a character)."""
        return self._decoder.decode(self._bytes(token))

    def end(self) -> str:
        """What is left: U+FFFD if the ids end inside a character. The stream starts afresh."""
        rest = self._decoder.decode(b"", final=True)
        self._fresh = self._vocabulary.space_prefix
        return rest

    def _bytes(self, token: int) -> bytes:
        pieces = self._vocabulary.pieces
        if not isinstance(token, int) or not 0 <= token < len(pieces):
            try:
                token = token.__index__()  # NumPy's whole numbers
                inside = 0 <= token < len(pieces)
            except (AttributeError, TypeError):
                inside = False
            if not inside:
                raise IndexingError(f"tokenizer: {token!r:.40} is no id; expected 0 to "
                                    f"{len(pieces) - 1}")  # fmt: skip
        if token in self._vocabulary.control:
            self._fresh = self._vocabulary.space_prefix
            return pieces[token] if self._marks else b""
        piece = pieces[token]
        if self._fresh and piece:
            self._fresh = False
            return piece[1:] if piece[:1] == b" " else piece
        return piece


def text_of(vocabulary: Vocabulary, ids: Iterable[int], marks: bool = False) -> str:
    """All ids as one text."""
    stream = Stream(vocabulary, marks)
    data = b"".join(map(stream._bytes, ids))
    return data.decode("utf-8", "replace")
