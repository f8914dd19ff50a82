"""A language model at hand: load a file, complete texts, hold conversations."""
from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, wraps
from operator import index
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np

from muladd.errors import ArgumentError, FormatError, IndexingError
from muladd.garbage import uncollected
from muladd.llm import adapters
from muladd.llm.checks import check_number
from muladd.llm.constrain import Constraint, json_constraint
from muladd.llm.model import Config, Decoder
from muladd.llm.opening import opened
from muladd.llm.pages import CHUNK, PAGE, Pool, Text
from muladd.llm.sampling import Sampling, log_total
from muladd.llm.speculate import Ahead, Draft, ahead
from muladd.llm.template import Message
from muladd.llm.tokenizer import Tokenizer
from muladd.llm.weights import ARITHMETICS
from muladd.llm.writing import Options, Piece, Writer

ROOM = 4096  # positions a conversation has, where the model was trained for as many
CACHES = ("float32", "float16", "bfloat16", "int8")  # dtypes of keys and values
_STEPS = 8  # so many tokens are run one by one rather than as a page
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _alone(
    method: Callable[Concatenate[LanguageModel, _P], _R],
) -> Callable[Concatenate[LanguageModel, _P], _R]:
    """Of several threads, one at a time: what was read last is kept for whoever comes next."""

    @wraps(method)
    def waits(self: LanguageModel, *args: _P.args, **named: _P.kwargs) -> _R:
        with self._turn:
            return method(self, *args, **named)

    return waits


class LanguageModel:
    """A decoder, its tokenizer, and the keys and values of what it read last.

    What a new prompt has in common with the text before is not computed again. Iterators may be
    mixed, and threads take turns, token by token: each then reads its text anew, so many at once
    are a server's work. `file` is what it came from, for errors.
    """

    def __init__(
        self, decoder: Decoder, tokenizer: Tokenizer | None = None, cache: str = "float32",
        file: str = "model",
    ) -> None:  # fmt: skip
        self.decoder, self.tokenizer, self.cache, self.file = decoder, tokenizer, cache, file
        self.context = decoder.room
        self._text = Text(list(range(-(-decoder.room // PAGE))))
        self._held: list[int] = []  # the ids whose keys and values are there
        self._turn = threading.RLock()

    @cached_property
    def _pool(self) -> Pool:
        """Made when it is first needed: a server has one of its own."""
        return Pool(self.decoder, len(self._text.pages), self.cache)

    @property
    def config(self) -> Config:
        """Its sizes."""
        return self.decoder.config

    @_alone
    def forget(self) -> None:
        """Let go of the text that was read last: the next prompt is computed from its beginning."""
        self._held = []

    @_alone
    def warm(self, guesses: int = 0) -> None:
        """Make what reads prompts and writes answers now, rather than within the first answer, and
        what reads so many guesses along, if any. Forgets what was read."""
        for rows in (CHUNK, 1, *([guesses + 1] if guesses else ())):
            self.forget()
            self._run([0], rows, rows not in (CHUNK, 1))
        self.forget()

    # --- ids to logits ---------------------------------------------------------------------------

    @_alone
    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of the token after each of the ids: float32 (len(ids), vocabulary)."""
        ids = self._checked(ids)
        self.forget()
        rows = [self._run(ids[at : at + CHUNK], CHUNK, True) for at in range(0, len(ids), CHUNK)]
        return np.concatenate(rows)[: len(ids)]

    def next_logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits of the token after the ids: float32 (vocabulary,)."""
        return self.after(self._checked(ids))

    @_alone
    def log_likelihoods(self, ids: Sequence[int]) -> np.ndarray:
        """The natural logarithm of each id's probability after those before it: float64
        (len(ids) - 1,)."""
        ids = self._checked(ids)
        self.forget()
        found = [np.empty(0)]
        for at in range(0, len(ids) - 1, CHUNK):
            logits = self._run(ids[at : at + CHUNK], CHUNK, True)
            following = ids[at + 1 : at + CHUNK + 1]
            logits = self.sound(logits[: len(following)])
            found.append(logits[np.arange(len(following)), following] - log_total(logits))
        return np.concatenate(found)

    @_alone
    def logits_along(self, ids: Sequence[int], more: Sequence[int], rows: int) -> np.ndarray:
        """Logits after the ids, and after each of `more` (which are less than `rows`, the size a
        program is compiled for), all of which are known to be ids: float32 (1 + len(more),
        vocabulary)."""
        whole = [*ids, *more]
        first = len(ids) - 1
        if _common(self._held, whole) < first:
            self.after(whole[:first])
        del self._held[first:]
        return self._run(whole[first:], rows, True)[: len(more) + 1]

    @_alone
    def after(self, ids: list[int]) -> np.ndarray:
        """As `next_logits`, of what is known to be ids."""
        del self._held[min(_common(self._held, ids), len(ids) - 1) :]
        logits = None
        while (at := len(self._held)) < len(ids):
            rows = CHUNK if len(ids) - at > _STEPS else 1
            logits = self._run(ids[at : at + rows], rows)
        assert logits is not None
        return logits[0]

    def _run(self, new: list[int], rows: int, every: bool = False) -> np.ndarray:
        """The text that is held goes on: logits after the last of the new ids, or after each."""
        self._text.length = len(self._held)
        logits = self._pool.read([self._text], [new], rows, every=every)
        self._held += new  # last: whoever interrupts finds what is held to be there
        return logits[0] if every else logits

    def _checked(self, ids: Sequence[int]) -> list[int]:
        whole = isinstance(ids, Iterable) and not isinstance(ids, str | bytes | Mapping)
        try:
            found = [index(i) for i in ids] if whole else None
        except TypeError:
            found = None
        if found is None:
            raise ArgumentError(f"generate: the prompt is {ids!r:.40}; expected text, or ids "
                                "(whole numbers)")  # fmt: skip
        if not found:
            raise ArgumentError("generate: the prompt is empty; give at least one token")
        if len(found) > self.context:
            raise ArgumentError(
                f"generate: the prompt has {len(found)} tokens and there is room for "
                f"{self.context}; shorten it, or load the model with a larger context"
            )
        count = self.decoder.embedding.shape[0]
        if wrong := [i for i in found if not 0 <= i < count]:
            raise IndexingError(f"generate: {wrong[0]} is no id; expected 0 to {count - 1}")
        return found

    def sound(self, values: np.ndarray) -> np.ndarray:
        """The same logits (or sums of what the last layer gives). Raises FormatError for what sound
        weights never give: NaN, infinity, one number for all."""
        self.check_sound(values.min(), values.max())
        return values

    def check_sound(self, low: float, high: float) -> None:
        """The same by the least and the greatest of them."""
        if not -np.inf < low < high < np.inf:
            raise FormatError(f"{self.file}: gives logits from {low} to {high}; expected different "
                              "numbers: its weights are damaged, bring the file anew")  # fmt: skip

    # --- text ------------------------------------------------------------------------------------

    def generate(
        self, prompt: str | Sequence[int], *, max_tokens: int | None = None,
        stop: str | Sequence[str] = (), logprobs: int = 0, json_schema: Any = None,
        json: bool = False, constraint: Constraint | None = None,
        draft: str | LanguageModel | Draft | None = None, draft_tokens: int | None = None,
        **sampling: Any,
    ) -> Iterator[Piece]:  # fmt: skip
        """The continuation of a prompt, a Piece for each token, as they come.

        It ends after `max_tokens` or where the context is full (finish = length), at a token by
        which the model ends its texts, or before one of the `stop` strings (finish = stop).
        `sampling` are the fields of `Sampling`. Each piece tells the `logprobs` likeliest tokens.
        With `json_schema` the text is JSON that the schema finds valid, with `json` a JSON object,
        with `constraint` what that lets through; it ends when nothing can follow (finish = stop).
        `draft` guesses tokens, `draft_tokens` at a time, which changes the speed, and not how the
        text is chosen: "ngram" from the text itself, a smaller model by what it would say.
        Raises ArgumentError for settings that are none, an empty prompt or one longer than the
        context, IndexingError for ids that are none: at the call, not at the first piece.
        """
        chosen = _sampling(sampling)
        stops = (stop,) if isinstance(stop, str) else \
            tuple(stop) if isinstance(stop, list | tuple) else (None,)
        if not all(isinstance(s, str) and s for s in stops):
            raise ArgumentError(f"generate: stop is {stop!r:.60}; expected texts, none empty")
        for name, value, least in (("max_tokens", max_tokens, 1), ("logprobs", logprobs, 0)):
            if value is not None:
                check_number("generate", name, value, least)
        limits = self._constraint(json_schema, json, constraint)
        ids = self._checked(self._encoded(prompt) if isinstance(prompt, str) else prompt)
        options = Options(chosen, max_tokens, stops, logprobs, constraint=limits)
        guesses = ahead(self, draft, draft_tokens)
        return self._generated(Writer(ids, self.tokenizer, self.context, options), guesses)

    def _constraint(self, schema: Any, any_object: Any, given: Any) -> Constraint | None:
        if not isinstance(any_object, bool):
            raise ArgumentError(f"generate: json is {any_object!r:.40}; expected True or False")
        if (schema is not None) + any_object + (given is not None) > 1:
            raise ArgumentError("generate: give one of json_schema, json and constraint")
        if schema is not None or any_object:
            given = json_constraint(self.tokens(), schema)
        if given is None:
            return None
        if not isinstance(given, Constraint):
            raise ArgumentError(f"generate: constraint is {given!r:.40}; expected a Constraint")
        tokens = self.tokenizer
        count = self.decoder.embedding.shape[0] if tokens is None else len(tokens)
        if given.size != count:
            raise ArgumentError(f"generate: the constraint knows {given.size} tokens, and the "
                                f"model has {count}; make it with its tokenizer")  # fmt: skip
        return given

    def chat(self, messages: Sequence[Message], **options: Any) -> Iterator[Piece]:
        """The answer to a conversation, as `generate` gives it. Raises also what the tokenizer's
        `chat` does."""
        prompt = self.tokens().chat(messages)
        if not messages:
            raise ArgumentError("chat: there are no messages; give one at least, such as "
                                "{'role': 'user', 'content': 'Hi'}")  # fmt: skip
        return self.generate(prompt, **options)

    def complete(self, prompt: str | Sequence[int], **options: Any) -> str:
        """All text that `generate` gives."""
        return "".join(piece.text for piece in self.generate(prompt, **options))

    def _generated(self, writer: Writer, ahead: Ahead | None) -> Iterator[Piece]:
        finish = None
        while finish is None:
            logits = self.after(writer.ids) if ahead is None else ahead.logits(writer)
            piece = writer.put(self.sound(logits))
            finish = piece.finish
            yield piece

    def _encoded(self, prompt: str) -> list[int]:
        ids = self.tokens().encode(prompt)
        if not prompt and not ids:
            raise ArgumentError("generate: the prompt is empty; give some text")
        return ids

    def tokens(self) -> Tokenizer:
        """Its tokenizer. Raises ArgumentError if it came without one."""
        if self.tokenizer is None:
            raise ArgumentError("generate: this model came without a tokenizer; give ids")
        return self.tokenizer

    def __repr__(self) -> str:
        c = self.config
        return (f"LanguageModel({c.architecture}, {c.layers} layers of width {c.width}, "
                f"context {self.context})")  # fmt: skip


@uncollected()
def load(
    path: str | os.PathLike[str], *, context: int | None = None, cache: str | None = None,
    adapter: str | os.PathLike[str] | None = None, arithmetic: str = "int8",
) -> LanguageModel:  # fmt: skip
    """The model in a GGUF file, or in a folder with config.json and safetensors.

    `context` is how many tokens a conversation may have (default: as many as the model was trained
    for, at most 4096); `cache` the dtype of keys and values: float32, float16, bfloat16, or int8 (a
    quarter of float32; codes, and a scale for each position and head), by default float16 beside
    products in int8, and float32 beside others; `adapter` a folder with
    adapters for it (`muladd finetune` and the `peft` package write such); `arithmetic` that of
    products with quantised weights: int8 quantises what they are multiplied by as well (32
    neighbours have one scale), which is several times as fast; float32 does not. Raises FormatError
    for an architecture that is not known and for weights that are missing or do not fit, and what
    the readers of these formats raise; ArgumentError for a context that the model has not.
    """
    if cache is not None and cache not in CACHES:
        raise ArgumentError(f"load: cache is {cache!r:.40}; expected one of {', '.join(CACHES)}")
    if arithmetic not in ARITHMETICS:
        raise ArgumentError(f"load: arithmetic is {arithmetic!r:.40}; expected "
                            f"{' or '.join(ARITHMETICS)}")  # fmt: skip
    _, config, tensors, tokenizer, _ = opened(path)
    room = min(config.context, ROOM) if context is None else context
    if not isinstance(room, int) or not 1 <= room <= config.context:
        raise ArgumentError(f"load: context is {context!r:.40}; this model was trained for 1 to "
                            f"{config.context} tokens")  # fmt: skip
    try:
        decoder = Decoder(config, tensors, room, arithmetic)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    if adapter is not None:
        adapters.Adapter.load(adapter, decoder).attach(decoder)
    if cache is None:
        cache = "float16" if any(m.by_bytes for m in decoder.matrices.values()) else "float32"
    return LanguageModel(decoder, tokenizer, cache, os.fspath(path))


def _sampling(given: dict[str, Any]) -> Sampling:
    known = Sampling.__dataclass_fields__
    if unknown := given.keys() - known.keys():
        raise ArgumentError(f"generate: {min(unknown)!r} is no setting; expected max_tokens, stop, "
                            "logprobs, json_schema, json, constraint, draft, draft_tokens, "
                            f"{', '.join(known)}")  # fmt: skip
    return Sampling(**given)


def _common(a: list[int], b: list[int]) -> int:
    """How many ids two texts begin with alike."""
    if b[: len(a)] == a:
        return len(a)
    return next(i for i, (x, y) in enumerate(zip([*a, -1], [*b, -2])) if x != y)

