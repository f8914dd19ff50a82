"""Training a decoder: its layers over whole texts, the loss, and the step as one program.

The layers are those of `model.py`; only attention is another, since nothing is kept from call to
call. Each product stands alone: matrices stay as they are stored, and are numbers only while their
product is computed (Dettmers et al., 2023).
"""
from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from muladd import nn
from muladd.errors import ArgumentError
from muladd.llm.adapters import Adapter, Pair
from muladd.llm.dataset import IGNORED
from muladd.llm.model import Decoder, Layer
from muladd.llm.weights import Matrix
from muladd.tensor import Tensor, no_grad
from muladd.tensor.functional import checkpoint
from muladd.tensor.jit import jit

_HEAD_ROWS = 512  # tokens whose logits are computed at a time, and not kept if there are more


class Trained(Matrix):
    """A matrix in training: its products have derivatives, for x and for what is trained."""

    def __init__(self, matrix: Matrix, pair: Pair | None = None, dropout: float = 0.0) -> None:
        vars(self).update(vars(matrix))  # the same weight, in whatever layout
        self.pair, self.dropout, self.noisy = pair, dropout, False

    def __call__(self, x: Tensor) -> Tensor:
        y = checkpoint(lambda x: x @ self.numbers().transpose(-2, -1))(x)
        if self.pair is None:
            return y
        return y + self.pair(x.dropout(self.dropout) if self.noisy and self.dropout else x)


class Training:
    """A decoder, what of it is trained, and the loss of rows of tokens.

    With an adapter, its matrices are trained and nothing else; without, all weights are, which
    become float32. With `recompute`, a layer is computed again for its derivative, else what it
    computed is kept. The decoder is changed for good.
    """

    def __init__(
        self, decoder: Decoder, adapter: Adapter | None = None, recompute: bool = True
    ) -> None:
        self.decoder, self.adapter = decoder, adapter
        self._around: Callable[[Layer], Layer] = checkpoint if recompute else _as_it_is
        if adapter is None:
            self.parameters = _all_weights(decoder)
        else:
            self.parameters = adapter.tensors()
        for tensor in self.parameters.values():
            tensor.requires_grad_()
        pairs = {} if adapter is None else adapter.pairs
        dropout = 0.0 if adapter is None else adapter.dropout
        tied = decoder.output is decoder.embedding
        decoder.embedding = Trained(decoder.embedding)
        decoder.output = decoder.embedding if tied else Trained(decoder.output)
        for name, matrix in decoder.matrices.items():
            pair = pairs.get(name.removesuffix(".weight"))
            decoder.matrices[name] = Trained(matrix, pair, dropout)

    def loss(
        self, ids: Tensor, targets: Tensor, positions: Tensor, texts: Tensor, noisy: bool = False
    ) -> Tensor:
        """The sum of -log p of all targets that count; all are int32 (rows, length), as in
        `dataset.Rows`. `noisy`: with dropout."""
        attend = partial(_attend, self.decoder, texts)
        self._set_noisy(noisy)
        x = self.decoder.hidden(ids.reshape(-1), positions.reshape(-1), attend, self._around)
        self._set_noisy(False)
        flat = targets.reshape(-1)
        count = flat.shape[0]
        assert isinstance(count, int)
        head = checkpoint(self._head) if count > _HEAD_ROWS else self._head
        parts = [head(x[i : i + _HEAD_ROWS], flat[i : i + _HEAD_ROWS])
                 for i in range(0, count, _HEAD_ROWS)]  # fmt: skip
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total

    def _set_noisy(self, noisy: bool) -> None:
        for matrix in self.decoder.matrices.values():
            if isinstance(matrix, Trained):
                matrix.noisy = noisy

    def _head(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.decoder.logits(x).cross_entropy(
            targets, ignore_index=IGNORED, reduction="sum"
        )


def _as_it_is(layer: Layer) -> Layer:
    return layer


def _all_weights(decoder: Decoder) -> dict[str, Tensor]:
    """Every weight as float32, by its name."""
    found: dict[str, Tensor] = {}
    tied = decoder.output is decoder.embedding

    def plain(name: str, matrix: Matrix) -> Matrix:
        with no_grad():
            found[name] = matrix.numbers().detach().realize()
        return Matrix(found[name])

    decoder.embedding = plain("token_embd.weight", decoder.embedding)
    decoder.output = decoder.embedding if tied else plain("output.weight", decoder.output)
    for name, matrix in decoder.matrices.items():
        decoder.matrices[name] = plain(name, matrix)
    for name, vector in decoder.vectors.items():
        if name != "rope_freqs.weight":
            found[name] = decoder.vectors[name] = vector.detach()
    return found


def _attend(decoder: Decoder, texts: Tensor, i: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention within each text: q (heads, rows * length, head width) to the same."""
    c = decoder.config
    rows, length = texts.shape
    groups = c.heads // c.key_heads
    q = q.reshape(c.heads, rows, length, c.head_width).permute(1, 0, 2, 3)
    k, v = (t.reshape(c.key_heads, 1, rows, length, c.head_width)
             .expand(c.key_heads, groups, rows, length, c.head_width)
             .reshape(c.heads, rows, length, c.head_width).permute(1, 0, 2, 3)
            for t in (k, v))  # fmt: skip
    place = Tensor.arange(length, dtype="int32")
    query, key = place.unsqueeze(1), place.unsqueeze(0)
    mask = (key <= query) & (texts.unsqueeze(2) == texts.unsqueeze(1))
    if decoder.is_windowed(i):
        mask = mask & (key > query - c.window)
    mask = mask.unsqueeze(1)
    if c.score_cap:
        scores = decoder.scores(q @ k.transpose(-2, -1))
        y = mask.where(scores, -math.inf).softmax(-1) @ v
    else:
        y = q.scaled_dot_product_attention(k, v, attn_mask=mask, scale=c.scale)
    return y.permute(1, 0, 2, 3).reshape(c.heads, rows * length, c.head_width)


class Step:
    """An optimiser's step over several batches, as one program that each batch is given to.

    Gradients are of the mean over all targets of all batches of a step: `share` is one over their
    count.
    """

    def __init__(
        self, training: Training, optimizer: nn.optim.Optimizer, clip: float, accumulate: int
    ) -> None:
        self.training, self.optimizer, self.clip = training, optimizer, clip
        self._sums: dict[str, Tensor] = {}
        if accumulate > 1:
            self._sums = {name: Tensor.zeros(*t.shape).realize()
                          for name, t in training.parameters.items()}  # fmt: skip
        self._run = jit(self._step, at_once=True)  # a resumed training gives the same bytes
        self._measured = jit(self._loss)

    def __call__(
        self, batch: tuple[Tensor, ...], share: float, first: bool, last: bool
    ) -> tuple[float, float]:
        """(the batch's part of the mean loss, the norm of the gradient so far)."""
        how = Tensor([share, float(first), float(last)])
        loss, norm = self._run(*batch, how)
        return loss.item(), norm.item()

    def loss(self, batch: tuple[Tensor, ...]) -> float:
        """The sum of the loss over a batch, without training."""
        with no_grad():
            return self._measured(*batch).item()

    def _loss(self, ids: Tensor, targets: Tensor, positions: Tensor, texts: Tensor) -> Tensor:
        return self.training.loss(ids, targets, positions, texts)

    def _step(
        self, ids: Tensor, targets: Tensor, positions: Tensor, texts: Tensor, how: Tensor
    ) -> tuple[Tensor, Tensor]:
        parameters = self.training.parameters
        loss = self.training.loss(ids, targets, positions, texts, noisy=True) * how[0]
        self.optimizer.zero_grad()
        loss.backward()
        for name, total in self._sums.items():
            with no_grad():
                fresh = parameters[name].grad
                assert fresh is not None
                total.assign((how[1] > 0).where(0.0, total) + fresh)
                parameters[name].grad = total
        norm = nn.clip_grad_norm_(parameters.values(), self.clip or math.inf)
        self.optimizer.step(skip=(how[2] <= 0) if self._sums else None)
        return loss.detach(), norm


def optimizer(
    training: Training, rate: float, steps: int, warmup: int, decay: float
) -> nn.optim.AdamW:
    """AdamW whose rate rises along a line and falls along half a cosine to a tenth. Weights of one
    axis do not decay. Raises ArgumentError for numbers out of range."""
    if not 0 < rate < math.inf:
        raise ArgumentError(f"finetune: the rate is {rate!r:.40}; expected a number above 0")
    warmup = min(warmup, steps - 1)
    schedule = nn.schedule.cosine(rate, steps, warmup, end=rate / 10)
    matrices = [t for t in training.parameters.values() if t.ndim > 1]
    vectors = [t for t in training.parameters.values() if t.ndim == 1]
    groups = [{"params": matrices, "weight_decay": decay}]
    groups += [{"params": vectors, "weight_decay": 0.0}] if vectors else []
    return nn.optim.AdamW(groups, lr=schedule)


__all__ = ["Step", "Trained", "Training", "optimizer"]
