"""Losses: each compares a prediction with a target and reduces by mean, sum or none."""
from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from muladd.errors import DTypeError, ShapeError
from muladd.ir import dtype as dt
from muladd.ir import iota
from muladd.ir.ops import equal_dims
from muladd.tensor import graph as g
from muladd.tensor import precision
from muladd.tensor.handle import Handle
from muladd.tensor.indexing import check_index
from muladd.tensor.operands import check_floating

if TYPE_CHECKING:
    from muladd.tensor.tensor import Tensor


class Loss(Handle):
    """torch.nn.functional's losses as methods of the prediction."""

    __slots__ = ()

    def cross_entropy(
        self, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> Tensor:  # fmt: skip
        """-log softmax of the target class. Classes lie on axis 1 (of a vector: axis 0).

        The target holds class numbers, or (with this tensor's shape, as floats) probabilities.
        """
        check_floating("cross_entropy", self)
        axis = 1 if self.ndim > 1 else 0
        logs = self.log_softmax(axis)
        if target.dtype.is_float:
            return _soft_cross_entropy(logs, target, axis, weight, reduction, label_smoothing)
        if not label_smoothing:
            return logs.nll_loss(target, weight, ignore_index, reduction)
        classes = self.shape[axis]
        wide = logs if weight is None else logs * _channel(weight, self.ndim, axis)
        kept = target != ignore_index
        smooth = kept.where(-wide.sum(axis), 0.0)
        hard = logs.nll_loss(target, weight, ignore_index, "none")
        share = label_smoothing / classes  # type: ignore[operator]
        losses = hard * (1 - label_smoothing) + smooth * share
        if reduction != "mean":
            return reduced("cross_entropy", losses, reduction)
        count = _class_weights(logs, target, weight, ignore_index).sum()
        return losses.sum() / count

    def sparse_categorical_crossentropy(
        self, target: Any, ignore_index: int = -100, label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> Tensor:  # fmt: skip
        """cross_entropy with the classes on the last axis."""
        logits = self.reshape(-1, self.shape[-1])
        loss = logits.cross_entropy(target.reshape(-1), None, ignore_index, reduction,
                                    label_smoothing)  # fmt: skip
        return loss.reshape(target.shape) if reduction == "none" else loss

    def nll_loss(
        self, target: Any, weight: Any = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> Tensor:
        """Minus the entry of the target class; classes lie on axis 1 (of a vector: axis 0)."""
        axis = 1 if self.ndim > 1 else 0
        expected = (*self.shape[:axis], *self.shape[axis + 1 :])
        if target.shape != expected or target.dtype.is_float:
            raise ShapeError(
                f"nll_loss: the target is {g.describe(target._raw)}; expected class numbers of "
                f"shape {list(expected)} for predictions {list(self.shape)}"
            )
        check_index("nll_loss", target, self.shape[axis], 0, ignore_index)
        picked = -_pick(self, target, axis)
        weights = _class_weights(self, target, weight, ignore_index)
        losses = (target != ignore_index).where(picked * weights if weight is not None else picked,
                                                0.0)  # fmt: skip
        if reduction != "mean":
            return reduced("nll_loss", losses, reduction)
        return losses.sum() / weights.sum()

    def mse_loss(self, target: Any, reduction: str = "mean") -> Tensor:
        """The square of the difference."""
        difference = _difference("mse_loss", self, target)
        return reduced("mse_loss", difference * difference, reduction)

    def l1_loss(self, target: Any, reduction: str = "mean") -> Tensor:
        """The magnitude of the difference."""
        return reduced("l1_loss", _difference("l1_loss", self, target).abs(), reduction)

    def smooth_l1_loss(self, target: Any, reduction: str = "mean", beta: float = 1.0) -> Tensor:
        """Squared below beta (over 2 beta), linear above (minus beta / 2)."""
        d = _difference("smooth_l1_loss", self, target).abs()
        if beta == 0:
            return reduced("smooth_l1_loss", d, reduction)
        return reduced("smooth_l1_loss",
                       (d < beta).where(d * d * (0.5 / beta), d - beta / 2), reduction)  # fmt: skip

    def huber_loss(self, target: Any, reduction: str = "mean", delta: float = 1.0) -> Tensor:
        """Half the square below delta, delta (|d| - delta / 2) above."""
        d = _difference("huber_loss", self, target).abs()
        losses = (d < delta).where(d * d * 0.5, (d - delta / 2) * delta)
        return reduced("huber_loss", losses, reduction)

    def binary_cross_entropy(
        self, target: Any, weight: Any = None, reduction: str = "mean"
    ) -> Tensor:
        """-(t log p + (1 - t) log(1 - p)) of probabilities; logarithms are at least -100."""
        _difference("binary_cross_entropy", self, target)
        self = precision.raised(self)
        logs, others = _bounded_log(self), _bounded_log(1 - self)
        losses = -(target * logs + (1 - target) * others)
        losses = losses if weight is None else losses * weight
        return reduced("binary_cross_entropy", losses, reduction)

    def binary_cross_entropy_with_logits(
        self, target: Any, weight: Any = None, reduction: str = "mean", pos_weight: Any = None
    ) -> Tensor:
        """binary_cross_entropy of sigmoid(x), without overflow."""
        _difference("binary_cross_entropy_with_logits", self, target)
        self = precision.raised(self)
        off = (-self).softplus(threshold=math.inf)  # -log sigmoid(x)
        if pos_weight is None:
            losses = (1 - target) * self + off
        else:
            losses = (1 - target) * self + off * (target * (pos_weight - 1) + 1)
        losses = losses if weight is None else losses * weight
        return reduced("binary_cross_entropy_with_logits", losses, reduction)

    def kl_div(self, target: Any, reduction: str = "mean", log_target: bool = False) -> Tensor:
        """target (log target - x); x is a log probability. 'batchmean' divides by the batch."""
        _difference("kl_div", self, target)
        losses = target.exp() * (target - self) if log_target \
            else target.xlogy(target) - target * self  # fmt: skip
        if reduction == "batchmean":
            return losses.sum() / self.shape[0]
        return reduced("kl_div", losses, reduction)

    def poisson_nll_loss(
        self, target: Any, log_input: bool = True, full: bool = False, eps: float = 1e-8,
        reduction: str = "mean",
    ) -> Tensor:  # fmt: skip
        """exp(x) - t x (or x - t log x); `full` adds Stirling's approximation of log t!."""
        losses = self.exp() - target * self if log_input \
            else self - target * (self + eps).log()  # fmt: skip
        if full:
            safe = (target > 1).where(target, 2.0)
            stirling = safe * safe.log() - safe + (safe * (2 * math.pi)).log() * 0.5
            losses = losses + (target > 1).where(stirling, 0.0)
        return reduced("poisson_nll_loss", losses, reduction)

    def gaussian_nll_loss(
        self, target: Any, var: Any, full: bool = False, eps: float = 1e-6,
        reduction: str = "mean",
    ) -> Tensor:  # fmt: skip
        """(log var + (x - t)^2 / var) / 2, with var at least eps."""
        spread = var + (var.detach().clamp(min=eps) - var.detach())
        losses = (spread.log() + (self - target).square() / spread) * 0.5
        losses = losses + 0.5 * math.log(2 * math.pi) if full else losses
        return reduced("gaussian_nll_loss", losses, reduction)

    def hinge_embedding_loss(
        self, target: Any, margin: float = 1.0, reduction: str = "mean"
    ) -> Tensor:
        """x where the target is 1, max(0, margin - x) where it is -1."""
        losses = (target == 1).where(self, (margin - self).clamp(min=0))
        return reduced("hinge_embedding_loss", losses, reduction)

    def soft_margin_loss(self, target: Any, reduction: str = "mean") -> Tensor:
        """log(1 + exp(-t x))."""
        losses = (-(target * self)).softplus(threshold=math.inf)
        return reduced("soft_margin_loss", losses, reduction)

    def multilabel_soft_margin_loss(self, target: Any, reduction: str = "mean") -> Tensor:
        """binary_cross_entropy_with_logits averaged over classes (the last axis)."""
        losses = self.binary_cross_entropy_with_logits(target, reduction="none").mean(-1)
        return reduced("multilabel_soft_margin_loss", losses, reduction)

    def margin_ranking_loss(
        self, other: Any, target: Any, margin: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """max(0, -t (x - other) + margin)."""
        losses = (-(target * (self - other)) + margin).relu()
        return reduced("margin_ranking_loss", losses, reduction)

    def cosine_embedding_loss(
        self, other: Any, target: Any, margin: float = 0.0, reduction: str = "mean"
    ) -> Tensor:
        """1 - cos where the target is 1, max(0, cos - margin) where it is -1."""
        cosine = self.cosine_similarity(other, -1)
        losses = (target == 1).where(1 - cosine, (cosine - margin).relu())
        return reduced("cosine_embedding_loss", losses, reduction)

    def triplet_margin_loss(
        self, positive: Any, negative: Any, margin: float = 1.0, p: float = 2.0, eps: float = 1e-6,
        swap: bool = False, reduction: str = "mean",
    ) -> Tensor:  # fmt: skip
        """max(0, |a - positive| - |a - negative| + margin)."""
        near = self.pairwise_distance(positive, p, eps)
        far = self.pairwise_distance(negative, p, eps)
        if swap:
            far = far.minimum(positive.pairwise_distance(negative, p, eps))
        return reduced("triplet_margin_loss", (near - far + margin).relu(), reduction)

    def multi_margin_loss(
        self, target: Any, p: int = 1, margin: float = 1.0, reduction: str = "mean"
    ) -> Tensor:
        """The mean over wrong classes of max(0, margin - x[t] + x[c]) ** p."""
        right = self.gather(1, target.unsqueeze(1))
        each = (self - right + margin).relu() ** p
        classes = g.along(iota(self.shape[1]), 1, self.shape)
        wrong = self._result(classes) != target.unsqueeze(1)
        losses = wrong.where(each, 0.0).sum(1) / self.shape[1]
        return reduced("multi_margin_loss", losses, reduction)


    def multilabel_margin_loss(self, target: Tensor, reduction: str = "mean") -> Tensor:
        """max(0, 1 - (x[t] - x[c])) over right classes t and wrong c; targets end at the first -1.
        """
        count: Any = self.shape[-1]
        named = (target < 0).long().cumsum(-1) == 0
        hits = (named & (target >= 0)).unsqueeze(-1) & (
            target.unsqueeze(-1) == self.arange(count, device=self.device))  # fmt: skip
        right = hits.any(-2)
        scores = (hits.where(self.unsqueeze(-2), 0.0)).sum(-1)
        each = (1 - scores.unsqueeze(-1) + self.unsqueeze(-2)).relu()
        counted = named.unsqueeze(-1) & ~right.unsqueeze(-2)
        losses = counted.where(each, 0.0).sum((-2, -1)) / count
        return reduced("multilabel_margin_loss", losses, reduction)


def reduced(who: str, losses: Any, reduction: str) -> Any:
    """Losses by 'mean', 'sum' or 'none'."""
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ShapeError(f"{who}: reduction={reduction!r}, expected 'mean', 'sum' or 'none'")


def _difference(who: str, x: Any, target: Any) -> Any:
    if not isinstance(target, Handle):
        raise DTypeError(f"{who}: the target is a Tensor, got {type(target).__name__}")
    if x.ndim != target.ndim or any(not equal_dims(n, m) for n, m in zip(x.shape, target.shape)):
        raise ShapeError(
            f"{who}: prediction {list(x.shape)} and target {list(target.shape)} must have one shape"
        )
    return precision.raised(x) - precision.raised(target)


def _bounded_log(x: Any) -> Any:
    """log(x), at least -100, and without derivative there."""
    small = x.abs() < math.exp(-100)
    return small.where(-100.0, small.where(1.0, x).log())


def _channel(weight: Any, rank: int, axis: int) -> Any:
    return weight.reshape((-1, *[1] * (rank - axis - 1)))


def _pick(x: Any, target: Any, axis: int) -> Any:
    """x at the target class along an axis, which disappears (0 for a class that does not exist)."""
    wide = g.expand(g.unsqueeze(g.cast(target.node, dt.int64), axis), x.shape)
    position = g.along(iota(x.shape[axis]), axis, x.shape)
    return x._result(g.total(g.where(g.eq(wide, position), x.node, 0), (axis,)))


def _class_weights(x: Any, target: Any, weight: Any, ignore_index: int) -> Any:
    """The weight of each target's class, 0 where ignored."""
    kept = target != ignore_index
    if weight is None:
        return kept.cast(x.dtype)
    chosen = weight._result(g.select_rows(weight.node, g.cast(target.node, dt.int64)))
    return kept.where(chosen, 0.0)


def _soft_cross_entropy(
    logs: Any, target: Any, axis: int, weight: Any, reduction: str, smoothing: float
) -> Any:
    if target.shape != logs.shape:
        raise ShapeError(
            f"cross_entropy: probabilities {list(target.shape)} need the shape {list(logs.shape)}"
        )
    classes = logs.shape[axis]
    if smoothing:
        target = target * (1 - smoothing) + smoothing / classes
    terms = logs * target
    terms = terms if weight is None else terms * _channel(weight, logs.ndim, axis)
    losses = -terms.sum(axis)
    if reduction == "mean":
        return losses.sum() / (logs.numel() // classes)
    return reduced("cross_entropy", losses, reduction)
