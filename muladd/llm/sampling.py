"""Which token comes next: logits to an id, with NumPy, once per token.

What costs most of it, how likely each token is, can be computed for many texts at once before.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from muladd.llm.checks import check_number
from muladd.llm.weights import sizes
from muladd.tensor import Tensor

_RANGES = {
    "temperature": (0.0, 100.0), "top_k": (0, 1 << 31), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0), "seed": (0, 1 << 63),
}  # fmt: skip

_COLDEST = 1e-30  # a temperature that can be divided by in float32
_BLOCK = 256  # weights that are added up at a time


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 takes the likeliest one.

    Otherwise, in this order: logits of tokens that stand in the text already are divided by
    `repetition_penalty` (multiplied, if negative; Keskar et al., 2019); all are divided by
    `temperature`; the `top_k` likeliest stay (0: all); of them the likeliest that together reach
    `top_p` (Holtzman et al., 2020); of them those at least `min_p` as likely as the likeliest
    (Nguyen et al., 2024). `seed` None: other numbers in every run.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value, (low, high) = getattr(self, field.name), _RANGES[field.name]
            if field.name == "seed" and value is None:
                continue
            whole = field.name in ("top_k", "seed")
            check_number("sampling", field.name, value, low, high, whole)


@dataclass(frozen=True)
class Weights:
    """How likely tokens are, of which the likeliest is 1, at some temperature: float32
    (vocabulary,); the sums up to the end of each block of them, float64; and the least and the
    greatest of the logits."""

    each: np.ndarray
    ends: np.ndarray
    low: float
    high: float


def weights(logits: Tensor, temperature: Tensor) -> list[Tensor]:
    """What Weights are made of, for many rows at once: weights, sums of blocks, least and greatest
    logit; logits (n, vocabulary), temperature (n,), all float32. A graph."""
    rows, vocabulary = sizes(logits)
    cold = temperature.maximum(_COLDEST).unsqueeze(1)
    high = logits.amax(-1, keepdim=True)
    each = ((logits - high) / cold).exp()
    blocks = each.pad((0, -vocabulary % _BLOCK)).reshape(rows, -1, _BLOCK)
    return [each, blocks.sum(-1), logits.amin(-1), high.squeeze(-1)]


class Sampler:
    """Chooses tokens for one text; its random numbers go on from token to token."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self._random = np.random.default_rng(settings.seed)

    def choose(
        self, logits: np.ndarray, before: Sequence[int], allowed: np.ndarray | None = None,
        known: Weights | None = None,
    ) -> int:  # fmt: skip
        """The id chosen by logits (vocabulary,) after the ids before it, out of those `allowed`
        (bool (vocabulary,), one at least). `known` are weights of these logits at this
        temperature, where nothing else is asked for."""
        s = self.settings
        if allowed is not None:
            logits = np.where(allowed, logits, -np.inf)
        if s.repetition_penalty != 1.0 and len(before):
            logits = penalized(logits, before, s.repetition_penalty)
        if s.temperature == 0.0:
            return int(logits.argmax())
        ids, kept = self._kept(self._weights(logits) if known is None else known.each)
        ends = known.ends if known is not None and ids is None else None
        at = _drawn(kept, self._random.random(), ends)
        return at if ids is None else int(ids[at])

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The probabilities that tokens are drawn with, float64 (vocabulary,)."""
        ids, kept = self._kept(self._weights(logits))
        found = np.zeros(len(logits))
        found[slice(None) if ids is None else ids] = kept
        return found / found.sum()

    def _weights(self, logits: np.ndarray) -> np.ndarray:
        scores = np.subtract(logits, logits.max(), dtype=np.float32)
        scores /= np.float32(max(self.settings.temperature, _COLDEST))
        return np.exp(scores, out=scores)

    def _kept(self, weights: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """(ids, weights) of those that stay; None: all."""
        s = self.settings
        if not (0 < s.top_k < len(weights) or s.top_p < 1.0):
            if s.min_p == 0.0:
                return None, weights
            ids = np.flatnonzero(weights >= s.min_p)
            return ids, weights[ids]
        ids, kept = _likeliest(weights, s.top_k, s.top_p)
        if s.top_k:
            kept = kept[: np.searchsorted(-kept, -kept[min(s.top_k, len(kept)) - 1], "right")]
        if s.top_p < 1.0:
            total = kept.sum() if s.top_k else weights.sum(dtype=np.float64)
            before = np.cumsum(kept) - kept
            kept = kept[: max(1, int(np.searchsorted(before, s.top_p * total)))]
        kept = kept[kept >= s.min_p]
        return ids[: len(kept)], kept


def _likeliest(weights: np.ndarray, count: int, part: float) -> tuple[np.ndarray, np.ndarray]:
    """(ids, weights in float64) of the likeliest, in order: at least `count`, or if that is 0 so
    many that they have this part of all. Seldom are more than a few looked at."""
    wanted = part * weights.sum(dtype=np.float64)
    least = 1e-3
    while True:
        ids = np.flatnonzero(weights >= least)
        found = weights[ids].astype(np.float64)
        if least == 0.0 or (len(ids) >= count if count else found.sum() > wanted):
            order = np.argsort(-found, kind="stable")
            return ids[order], found[order]
        least = least * least if least > 1e-20 else 0.0


def _drawn(weights: np.ndarray, point: float, ends: np.ndarray | None = None) -> int:
    """The place that a point of [0, 1) falls on, where each has as much room as its weight; `ends`
    are the sums up to the end of each block, if they are known."""
    if ends is None:
        starts = np.arange(0, len(weights), _BLOCK)
        ends = np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))
    point *= ends[-1]
    block = min(int(ends.searchsorted(point, "right")), len(ends) - 1)
    start = block * _BLOCK
    inside = weights[start : start + _BLOCK].cumsum(dtype=np.float64)
    before = ends[block - 1] if block else 0.0
    at = start + int(inside.searchsorted(point - before, "right"))
    if at == start + len(inside):  # what was rounded between the two sums
        at = int(np.flatnonzero(weights[:at])[-1])
    return at


def penalized(logits: np.ndarray, before: Sequence[int], penalty: float) -> np.ndarray:
    """Logits of ids that stand in the text already, made less by a penalty above 1."""
    seen = np.unique(np.asarray(before, np.int64))
    found = logits.copy()
    found[seen] = np.where(found[seen] > 0, found[seen] / penalty, found[seen] * penalty)
    return found


def log_total(logits: np.ndarray) -> np.ndarray:
    """The logarithm of the sum of exp along the last axis, float64."""
    top = logits.max(-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(-1, dtype=np.float64)) + top[..., 0]
