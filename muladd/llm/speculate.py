"""Several tokens of an answer in one step: guesses are read along, and the right ones are kept.

What is said does not hang on the guesses: every token is chosen from the model's own logits after
the text before it, with its own random numbers, and a guess that equals it saves the step that
would have been needed for the next one (Leviathan et al., 2023). Guesses come from the text itself
(what followed the last few tokens when they stood there before; Saxena, 2023) or from a smaller
model, which chooses with the random numbers that the large one is going to use.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from muladd.errors import ArgumentError
from muladd.llm.checks import check_number
from muladd.llm.writing import Writer

if TYPE_CHECKING:
    from muladd.llm.generate import LanguageModel

GUESSES = 3  # tokens that are guessed at a time
_MOST_WAIT = 32  # tokens without guesses after many that were wrong


class Draft(Protocol):
    """What guesses the tokens after a text."""

    def guess(self, writer: Writer, count: int) -> list[int]:
        """At most `count` ids that may follow `writer.ids`. It must be left as it is; a fork of it
        chooses as it will."""


class Lookup:
    """Guesses what followed the last tokens when they stood in the text before: the last `longest`
    of them if they did, else fewer, down to `shortest`."""

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ArgumentError(f"draft: looks for {shortest} to {longest} tokens; expected at "
                                "least 1, and no less at most")  # fmt: skip
        self.sizes = range(longest, shortest - 1, -1)
        self._ids: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}  # some neighbours -> where they ended last

    def guess(self, writer: Writer, count: int) -> list[int]:
        """See Draft."""
        ids = writer.ids
        if ids[: len(self._ids)] != self._ids:
            self._ids, self._after = [], {}
        for end in range(len(self._ids) + 1, len(ids)):  # all but those that end the text
            for size in self.sizes:
                if size <= end:
                    self._after[tuple(ids[end - size : end])] = end
        self._ids = ids[:-1]
        for size in self.sizes:
            start = self._after.get(tuple(ids[-size:]))
            if start is not None:
                period = len(ids) - start  # what is said over and over is guessed to go on
                return [ids[start + i % period] for i in range(count)]
        return []


class Smaller:
    """Guesses what another model with the same vocabulary would say."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = model

    def guess(self, writer: Writer, count: int) -> list[int]:
        """See Draft."""
        fork, found = writer.fork(), []
        for _ in range(min(count, self.model.context - len(writer.ids))):
            piece = fork.put(self.model.after(fork.ids))
            found.append(piece.token)
            if piece.finish is not None:
                break
        return [token for token in found if token is not None]


class Ahead:
    """Logits for a text that grows token by token, with guesses read along.

    After guesses that were wrong there are none for some tokens, longer each time.
    """

    def __init__(self, model: LanguageModel, draft: Draft, guesses: int) -> None:
        self.model, self.draft, self.guesses = model, draft, guesses
        self.guessed = self.right = 0  # so far
        self._text: list[int] = []  # with guesses
        self._first = 0  # _logits[i] are those after self._text[: self._first + i]
        self._logits = np.empty((0, 0), np.float32)
        self._wait, self._pause = 0, 1

    def logits(self, writer: Writer) -> np.ndarray:
        """Logits of the token after its ids: float32 (vocabulary,)."""
        ids = writer.ids
        row = len(ids) - self._first
        if 0 < row < len(self._logits) and ids == self._text[: len(ids)]:
            self.right += 1
            self._wait, self._pause = 0, 1
            return self._logits[row]
        guesses = self._guessed(writer)
        if not guesses:
            return self.model.after(ids)
        self._logits = self.model.logits_along(ids, guesses, self.guesses + 1)
        self._text, self._first = [*ids, *guesses], len(ids)
        return self._logits[0]

    def _guessed(self, writer: Writer) -> list[int]:
        """Guesses, unless the last ones were wrong too often."""
        if self._wait:
            self._wait -= 1
            return []
        count = min(self.guesses, self.model.context - len(writer.ids))
        found = self.draft.guess(writer, count) if count > 0 else []
        vocabulary = self.model.decoder.embedding.shape[0]
        found = [i for i in found[:count] if 0 <= i < vocabulary]
        self.guessed += len(found)
        if found:
            self._wait, self._pause = self._pause, min(2 * self._pause, _MOST_WAIT)
        return found


def ahead(model: LanguageModel, draft: Any, guesses: int | None) -> Ahead | None:
    """What options ask for: `draft` is None, or as in `drafting`."""
    if guesses is not None:
        check_number("generate", "draft_tokens", guesses, 1, 63)
    return None if draft is None else Ahead(model, drafting(model, draft), guesses or GUESSES)


def drafting(model: LanguageModel, given: Any) -> Draft:
    """What guesses for a model: "ngram", a smaller model, or a Draft. Raises ArgumentError."""
    from muladd.llm.generate import LanguageModel

    if given == "ngram":
        return Lookup()
    if isinstance(given, LanguageModel):
        _check_vocabulary(model, given)
        return Smaller(given)
    if not callable(getattr(given, "guess", None)):
        raise ArgumentError(f"generate: draft is {given!r:.40}; expected 'ngram' or a model")
    return given


def _check_vocabulary(model: LanguageModel, draft: LanguageModel) -> None:
    if draft is model:
        raise ArgumentError("generate: draft is the model itself; expected a smaller one")
    tokenizers = [m.tokenizer for m in (model, draft) if m.tokenizer is not None]
    known: list[Sequence[Any]] = [t.pieces for t in tokenizers]
    if len(known) < 2:
        known = [range(m.decoder.embedding.shape[0]) for m in (model, draft)]
    if known[0] != known[1]:
        raise ArgumentError(f"generate: draft has another vocabulary, of {len(known[1])} tokens; "
                            f"expected the model's, of {len(known[0])}")  # fmt: skip


__all__ = ["Ahead", "Draft", "Lookup", "Smaller", "ahead", "drafting"]
