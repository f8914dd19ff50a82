"""Which token comes next: logits to an id, with NumPy, once per token."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from muladd.llm.checks import check_number

_RANGES = {
    "temperature": (0.0, 100.0), "top_k": (0, 1 << 31), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0), "seed": (0, 1 << 63),
}  # fmt: skip


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


class Sampler:
    """Chooses tokens for one text; its random numbers go on from token to token."""

    def __init__(self, settings: Sampling) -> None:
        self.settings = settings
        self._random = np.random.default_rng(settings.seed)

    def choose(
        self, logits: np.ndarray, before: Sequence[int], allowed: np.ndarray | None = None
    ) -> int:
        """The id chosen by logits (vocabulary,) after the ids before it, out of those `allowed`
        (bool (vocabulary,), one at least)."""
        s = self.settings
        if allowed is not None:
            logits = np.where(allowed, logits, -np.inf)
        if s.repetition_penalty != 1.0 and len(before):
            logits = penalized(logits, before, s.repetition_penalty)
        if s.temperature == 0.0:
            return int(logits.argmax())
        probabilities = self.probabilities(logits)
        return int(self._random.choice(len(probabilities), p=probabilities))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """The probabilities that tokens are drawn with, float64 (vocabulary,)."""
        s = self.settings
        scores = logits.astype(np.float64) / s.temperature
        if 0 < s.top_k < len(scores):
            least = np.partition(scores, -s.top_k)[-s.top_k]
            scores = np.where(scores >= least, scores, -np.inf)
        probabilities = np.exp(scores - scores.max())
        probabilities /= probabilities.sum()
        if s.top_p < 1.0:
            order = _likeliest(probabilities, s.top_p)
            before = np.cumsum(probabilities[order]) - probabilities[order]
            kept = order[: max(1, int(np.searchsorted(before, s.top_p)))]
            alone = np.zeros_like(probabilities)
            alone[kept] = probabilities[kept]
            probabilities = alone
        if s.min_p > 0.0:
            probabilities[probabilities < s.min_p * probabilities.max()] = 0.0
        return probabilities / probabilities.sum()


def _likeliest(probabilities: np.ndarray, total: float) -> np.ndarray:
    """The likeliest ids in order, at least so many that they reach the total together. All are put
    in order only if a few do not."""
    size = 512
    if len(probabilities) > 2 * size:
        some = np.flatnonzero(probabilities >= np.partition(probabilities, -size)[-size])
        if len(some) < 2 * size and probabilities[some].sum() > total:
            return some[np.argsort(-probabilities[some], kind="stable")]
    return np.argsort(-probabilities, kind="stable")


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
