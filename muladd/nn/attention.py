"""Attention as layers: several heads, and the transformer's block of attention and perceptron."""
from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

from muladd.errors import ShapeError
from muladd.nn import amp, init
from muladd.nn.layers import Dropout, Linear, linear
from muladd.nn.module import Module, Parameter
from muladd.nn.norm import LayerNorm
from muladd.tensor import Tensor


class MultiheadAttention(Module):
    """Scaled dot-product attention in `num_heads` subspaces. Vaswani et al., 2017.

    query (time, batch, embed_dim), key and value (source, batch, ...); batch first with
    batch_first. Weights, names, masks and results are torch's: a bool mask is true where attention
    is *forbidden*; the result is (output, attention weights or None).
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True,
        kdim: int | None = None, vdim: int | None = None, batch_first: bool = False,
        **options: Any,
    ) -> None:  # fmt: skip
        if embed_dim % num_heads:
            raise ShapeError(
                f"MultiheadAttention: embed_dim {embed_dim} does not divide into {num_heads} heads"
            )
        self.embed_dim, self.num_heads, self.dropout = embed_dim, num_heads, dropout
        self.batch_first = batch_first
        widths = (embed_dim, kdim or embed_dim, vdim or embed_dim)
        if widths == (embed_dim,) * 3:
            bound = sqrt(6 / (4 * embed_dim))
            self.in_proj_weight = Parameter(
                init.uniform((3 * embed_dim, embed_dim), bound, **options)
            )
        else:
            for name, width in zip(("q", "k", "v"), widths):
                bound = sqrt(6 / (embed_dim + width))
                weight = Parameter(init.uniform((embed_dim, width), bound, **options))
                setattr(self, f"{name}_proj_weight", weight)
        self.in_proj_bias = (
            Parameter(Tensor.zeros(3 * embed_dim, **options)) if bias else None
        )
        self.out_proj = Linear(embed_dim, embed_dim, bias, **options)
        if bias:
            self.out_proj.bias = Parameter(Tensor.zeros(embed_dim, **options))

    def _projected(self, given: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        """query, key and value as (batch, heads, time, head width)."""
        width = self.embed_dim
        packed = getattr(self, "in_proj_weight", None)
        together = packed is not None and given[0] is given[1] and given[1] is given[2]
        if together and packed is not None:
            parts = linear(given[0], packed, self.in_proj_bias).chunk(3, dim=-1)
        else:
            parts = tuple(
                linear(
                    x,
                    getattr(self, f"{name}_proj_weight") if packed is None
                    else packed[i * width : (i + 1) * width],
                    None if self.in_proj_bias is None
                    else self.in_proj_bias[i * width : (i + 1) * width],
                )
                for i, (name, x) in enumerate(zip("qkv", given))
            )  # fmt: skip
        heads, size = self.num_heads, width // self.num_heads
        return tuple(
            p.reshape(p.shape[0], p.shape[1], heads, size).transpose(1, 2) for p in parts
        )

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None = None,
        need_weights: bool = True, attn_mask: Tensor | None = None,
        average_attn_weights: bool = True, is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        given = (query, key, value)
        if any(t.ndim != 3 for t in given):
            raise ShapeError(
                f"MultiheadAttention: takes three axes each, got {[list(t.shape) for t in given]}"
            )
        if not self.batch_first:
            turned = {id(t): t.transpose(0, 1) for t in given}
            query, key, value = (turned[id(t)] for t in given)
        q, k, v = self._projected((query, key, value))
        mask = _allowed(attn_mask, key_padding_mask, self.num_heads)
        dropout = self.dropout if self.training else 0.0
        weights: Tensor | None = None
        if need_weights:
            weights = _attention_weights(
                q, k, mask, is_causal, self.embed_dim // self.num_heads
            )
            kept = weights.dropout(dropout, training=True) if dropout else weights
            (kept, v) = amp.lower(kept, v)
            out = kept @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            out = q.scaled_dot_product_attention(
                k, v, attn_mask=mask, dropout_p=dropout, is_causal=is_causal and mask is None
            )
        batch, _, time, _ = out.shape
        y = self.out_proj(out.transpose(1, 2).reshape(batch, time, self.embed_dim))
        return (y if self.batch_first else y.transpose(0, 1)), weights

    def extra_repr(self) -> str:
        return f"{self.embed_dim}, {self.num_heads}"


def _allowed(mask: Tensor | None, padding: Tensor | None, heads: int) -> Tensor | None:
    """torch's two masks as one: true (or finite) where attention is allowed, 4 axes."""
    out: Tensor | None = None
    if mask is not None:
        if mask.ndim == 3:
            mask = mask.reshape(-1, heads, mask.shape[-2], mask.shape[-1])
        out = mask if mask.dtype.is_float else ~mask
    if padding is None:
        return out
    pads = padding.reshape(padding.shape[0], 1, 1, padding.shape[1])
    if pads.dtype.is_float:
        return pads if out is None else out + pads if out.dtype.is_float else out.where(
            pads, float("-inf")
        )
    if out is None:
        return ~pads
    return pads.where(float("-inf"), out) if out.dtype.is_float else ~pads & out


def _attention_weights(
    q: Tensor, k: Tensor, mask: Tensor | None, causal: bool, width: int
) -> Tensor:
    """(batch, heads, time, source), rows sum to 1."""
    scores = (q / sqrt(width)) @ k.transpose(-2, -1)
    (scores,) = amp.raise_(scores)
    if causal and mask is None:
        mask = Tensor.ones(q.shape[-2], k.shape[-2], dtype="bool").tril()
    if mask is not None:
        scores = scores + mask if mask.dtype.is_float else mask.where(scores, float("-inf"))
    return scores.softmax(-1)


class TransformerBlock(Module):
    """Attention and a perceptron, each added to its input. x is (batch, time, width).

    norm_first (the default) normalises before each part: Xiong et al., 2020; otherwise after the
    addition, as in the first transformer. Parameter names are those of torch's
    TransformerEncoderLayer.
    """

    def __init__(
        self, width: int, heads: int, hidden: int | None = None, dropout: float = 0.0,
        causal: bool = False, norm_first: bool = True, bias: bool = True,
        activation: Callable[[Tensor], Tensor] = Tensor.gelu, eps: float = 1e-5, **options: Any,
    ) -> None:  # fmt: skip
        self.self_attn = MultiheadAttention(
            width, heads, dropout, bias, batch_first=True, **options
        )
        self.linear1 = Linear(width, hidden or 4 * width, bias, **options)
        self.linear2 = Linear(hidden or 4 * width, width, bias, **options)
        self.norm1 = LayerNorm(width, eps, bias=bias, **options)
        self.norm2 = LayerNorm(width, eps, bias=bias, **options)
        self.dropout = Dropout(dropout)
        self.causal, self.norm_first, self.activation = causal, norm_first, activation

    def attend(self, x: Tensor, mask: Tensor | None) -> Tensor:
        out, _ = self.self_attn(
            x, x, x, need_weights=False, attn_mask=mask, is_causal=self.causal
        )
        return self.dropout(out)

    def think(self, x: Tensor) -> Tensor:
        hidden = self.dropout(self.activation(self.linear1(x)))
        return self.dropout(self.linear2(hidden))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.norm_first:
            x = x + self.attend(self.norm1(x), mask)
            return x + self.think(self.norm2(x))
        x = self.norm1(x + self.attend(x, mask))
        return self.norm2(x + self.think(x))
