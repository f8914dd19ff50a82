"""One answer on its way: logits go in one row at a time, pieces of text come out."""
from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from muladd.errors import ArgumentError
from muladd.llm.constrain import Constraint, State
from muladd.llm.sampling import Sampler, Sampling, Weights, log_total
from muladd.llm.tokenizer import Tokenizer


@dataclass(frozen=True)
class Piece:
    """A token of an answer and the text that is certain by now ('' inside of a character, or where
    a stop string may have begun). The last piece says why it is the last: `finish` is stop or
    length. `logprob` is the natural logarithm of the token's probability by the model itself,
    before any sampling setting; `top` the likeliest (id, logprob)."""

    text: str
    token: int | None = None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    finish: str | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Options:
    """What an answer shall be like. `logprobs` None: none are computed; n: those of the token and
    of the n likeliest. Penalties are subtracted from the logits of tokens that the answer has:
    `frequency_penalty` once for each time, `presence_penalty` once; `logit_bias` (by id) is added.
    """

    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    ignore_stops: bool = False  # tokens by which the model ends its texts are like others
    constraint: Constraint | None = None

    @property
    def draws(self) -> bool:
        """Whether tokens are drawn by the logits as they are, divided by the temperature."""
        s = self.sampling
        changed = self.frequency_penalty or self.presence_penalty or self.logit_bias
        return (s.temperature > 0 and s.repetition_penalty == 1.0 and self.constraint is None
                and not changed)  # fmt: skip


class Writer:
    """Writes what follows `ids`, up to a context of so many tokens.

    `put(logits)` chooses the next token and gives its Piece, of which the last one says why it is;
    `ids` grows by every token but one that ends the text. A character whose bytes are not all there
    at the end is left out.
    """

    def __init__(
        self, ids: list[int], tokenizer: Tokenizer | None, context: int, options: Options
    ) -> None:
        self.ids, self.options, self.context = list(ids), options, context
        self.tokens = 0  # chosen so far
        self._stream = None if tokenizer is None else tokenizer.stream()
        ends = frozenset() if tokenizer is None or options.ignore_stops else tokenizer.stops
        self._ends: frozenset[int] = ends
        self._sampler = Sampler(options.sampling)
        self._state = None if options.constraint is None else options.constraint.start()
        self._held = ""  # text that may be the beginning of a stop string
        self._used: Counter[int] = Counter()

    def put(self, logits: np.ndarray, known: Weights | None = None) -> Piece:
        """The next token by logits (vocabulary,), and the text that is certain with it. `known` are
        their weights at the temperature asked for, if it `draws`."""
        token = self._choose(logits, known)
        self.tokens += 1
        chance, top = (None, ()) if self.options.logprobs is None \
            else likelihood(logits, token, self.options.logprobs)  # fmt: skip
        if token in self._ends:
            return Piece(self._held, token, chance, top, "stop")
        self.ids.append(token)
        self._used[token] += 1
        if self._state is not None:
            self._state = self._state.advance(token)
        whole = self._state is not None and self._state.finished
        full = self.tokens == self.options.max_tokens or len(self.ids) >= self.context
        if self._stream is not None:
            self._held += self._stream.put(token)
        stops = self.options.stop
        found = [at for at in (self._held.find(s) for s in stops) if at >= 0]
        if found:
            return Piece(self._held[: min(found)], token, chance, top, "stop")
        keep = 0 if full or whole else beginning(self._held, stops)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        finish = "stop" if whole else "length" if full else None
        return Piece(text, token, chance, top, finish)

    def fork(self) -> Writer:
        """One that goes on as this one will, of which this one knows nothing."""
        found = copy.copy(self)
        found.ids, found._used = list(self.ids), Counter(self._used)
        found._sampler = copy.deepcopy(self._sampler)
        found._stream = None  # no text comes of it
        found.options = replace(self.options, logprobs=None, stop=())
        return found

    def _choose(self, logits: np.ndarray, known: Weights | None) -> int:
        o = self.options
        if o.frequency_penalty or o.presence_penalty or o.logit_bias:
            logits = logits.copy()
            for token, times in self._used.items():
                logits[token] -= o.frequency_penalty * times + o.presence_penalty
            for token, bias in o.logit_bias.items():
                logits[token] += bias
        allowed = None if self._state is None else _allowed(self._state, logits)
        return self._sampler.choose(logits, self.ids, allowed, known)


def beginning(text: str, stops: tuple[str, ...]) -> int:
    """How many characters at the end of a text may be the beginning of a stop string."""
    longest = max((len(s) - 1 for s in stops), default=0)
    for n in range(min(longest, len(text)), 0, -1):
        if any(s.startswith(text[-n:]) for s in stops):
            return n
    return 0


Likelihood = tuple[float, tuple[tuple[int, float], ...]]


def likelihood(logits: np.ndarray, token: int, count: int) -> Likelihood:
    """(log-probability of a token, the `count` likeliest as (id, log-probability))."""
    total = float(log_total(logits))
    top: tuple[tuple[int, float], ...] = ()
    if count:
        some = np.argpartition(-logits, min(count, len(logits)) - 1)[:count]
        some = some[np.lexsort((some, -logits[some]))]
        top = tuple((int(i), float(logits[i]) - total) for i in some)
    return float(logits[token]) - total, top


def _allowed(state: State, logits: np.ndarray) -> np.ndarray:
    """The mask of a state, as long as the logits. Raises ArgumentError where nothing is allowed."""
    allowed = state.allowed()
    if not allowed.any():
        raise ArgumentError("generate: no token can go on as the constraint asks; the vocabulary "
                            "lacks characters that it needs")  # fmt: skip
    left = len(logits) - len(allowed)  # ids that no token has
    return np.pad(allowed, (0, left)) if left else allowed
