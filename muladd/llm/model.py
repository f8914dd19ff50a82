"""The family of decoder models: one graph for llama, qwen, gemma, phi, gpt2, olmo and their kin.

What tells one architecture from another is a row of `FAMILIES`; what tells two sizes apart, a
`Config`. Weights have the names of GGUF files (`blk.3.attn_q.weight`), wherever they come from.

Nothing here knows of conversations: what a token sees of others is a function that is handed in
(`Attend`), so that texts may be read with a cache (pages.py) or trained on without one.
"""
from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from muladd.errors import FormatError
from muladd.llm.weights import Matrix, Stored, fits, is_of_numbers, kind_of, matrix, numbers
from muladd.tensor import Tensor


@dataclass(frozen=True)
class Family:
    """How an architecture differs from llama."""

    norm: str = "rms"  # or layer
    norm_before: bool = True  # of attention and perceptron
    norm_after: bool = False
    query_norms: bool = False  # queries and keys are normalised
    biases: tuple[str, ...] = ()  # which projections must have one (others may)
    activation: str = "silu"
    gated: bool = True
    learned_positions: bool = False  # added to embeddings, in place of rotation
    embedding_root: bool = False  # embeddings are multiplied by the root of the width
    halves: bool = True  # GGUF: rotation pairs i with i + half, not 2i with 2i + 1


_BLOCK = re.compile(r"blk\.(\d{1,9})\.")
_QKV = ("attn_q", "attn_k", "attn_v")
_ALL = (*_QKV, "attn_output", "ffn_up", "ffn_down")
FAMILIES: dict[str, Family] = {
    "llama": Family(halves=False),  # mistral, mixtral and smollm too
    "qwen2": Family(biases=_QKV),
    "qwen2moe": Family(biases=_QKV),
    "qwen3": Family(query_norms=True),
    "qwen3moe": Family(query_norms=True),
    "gemma2": Family(norm_after=True, activation="gelu_tanh", embedding_root=True),
    "gemma3": Family(norm_after=True, query_norms=True, activation="gelu_tanh",
                     embedding_root=True),  # fmt: skip
    "phi3": Family(),
    "gpt2": Family(norm="layer", biases=_ALL, activation="gelu_tanh", gated=False,
                   learned_positions=True),  # fmt: skip
    "olmo2": Family(norm_before=False, norm_after=True, query_norms=True),
}


@dataclass(frozen=True)
class Config:
    """The sizes and constants of one model."""

    architecture: str
    layers: int
    width: int
    heads: int
    key_heads: int
    head_width: int
    context: int  # positions that it was trained for
    eps: float
    scale: float  # of scores
    rope_base: float = 10000.0
    rope_width: int = 0  # how much of a head is rotated
    rope_divisor: float = 1.0  # of all positions
    rope_amplitude: float = 1.0
    rope_local_base: float = 0.0  # of layers with a window, if another
    halves: bool = True
    score_cap: float = 0.0
    logit_cap: float = 0.0
    window: int = 0  # how many positions windowed layers see
    windowed: tuple[bool, ...] = ()
    experts: int = 0
    experts_used: int = 0
    experts_normalized: bool = True  # the weights of those used add up to 1

    @property
    def family(self) -> Family:
        """The row of its architecture. Raises FormatError for one that is not known."""
        if self.architecture not in FAMILIES:
            raise FormatError(f"model: the architecture {self.architecture!r} is not known; "
                              f"expected one of {', '.join(FAMILIES)}")  # fmt: skip
        return FAMILIES[self.architecture]


# Attention of layer i: q (heads, n, head width), k and v (key heads, n, ...) to q's shape.
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
Layer = Callable[[Tensor], Tensor]


class Decoder:
    """A model that gives the next token's logits. Raises FormatError for weights that do not fit.

    `tensors` maps names to stored weights; they are read once, here. `arithmetic` is that of
    products with quantised weights: see `weights`.
    """

    def __init__(
        self, config: Config, tensors: Mapping[str, Stored], room: int, arithmetic: str = "float32"
    ) -> None:
        self.config, self.family, self.room = config, config.family, room
        self._check(tensors)

        def laid(name: str) -> Matrix:
            try:
                return matrix(tensors[name], arithmetic)
            except FormatError as error:
                raise FormatError(f"model: {name} {error}") from None

        self.embedding = laid("token_embd.weight")
        tied = "output.weight" not in tensors
        self.output = self.embedding if tied else laid("output.weight")
        self.vectors: dict[str, Tensor] = {}
        self.matrices: dict[str, Matrix] = {}
        for name, stored in tensors.items():
            if name in ("token_embd.weight", "output.weight"):
                continue
            if len(stored.shape) == 1:
                self.vectors[name] = Tensor(numbers(stored))
            else:
                self.matrices[name] = laid(name)
        self.turns = [self._turns(False), self._turns(True)]

    # --- what a file must have -------------------------------------------------------------------

    def _wanted(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights without which it is not this model; 0 is any size."""
        c, f = self.config, self.family
        inner, keys = c.heads * c.head_width, c.key_heads * c.head_width
        lead = (c.experts,) if c.experts else ()
        end = "_exps" if c.experts else ""
        layer = {"attn_q": (inner, c.width), "attn_k": (keys, c.width), "attn_v": (keys, c.width),
                 "attn_output": (c.width, inner), f"ffn_up{end}": (*lead, 0, c.width),
                 f"ffn_down{end}": (*lead, c.width, 0)}  # fmt: skip
        if f.gated:
            layer[f"ffn_gate{end}"] = (*lead, 0, c.width)
        if c.experts:
            layer["ffn_gate_inp"] = (c.experts, c.width)
        norms = ["attn_norm", "ffn_norm"] if f.norm_before else []
        norms += ["post_attention_norm", "post_ffw_norm"] if f.norm_after else []
        layer |= dict.fromkeys(norms, (c.width,))
        layer |= dict.fromkeys(["attn_q_norm", "attn_k_norm"] if f.query_norms else [], (0,))
        found: dict[str, tuple[int, ...]] = {"token_embd.weight": (0, c.width),
                                             "output_norm.weight": (c.width,)}  # fmt: skip
        for i in range(c.layers):
            found |= {f"blk.{i}.{name}.weight": shape for name, shape in layer.items()}
            found |= {f"blk.{i}.{name}.bias": layer[name][:1] for name in f.biases}
        if f.learned_positions:
            found["position_embd.weight"] = (0, c.width)
        return found

    def _check(self, tensors: Mapping[str, Stored]) -> None:
        wanted = self._wanted()
        missing = [name for name in wanted if name not in tensors]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FormatError(f"model: {self.config.architecture}: {missing[0]}{more} is missing "
                              "(as GGUF names weights); the file is not whole, or is of another "
                              "architecture")  # fmt: skip
        places = {name: _BLOCK.match(name) for name in tensors}
        over = [name for name, p in places.items() if p and int(p[1]) >= self.config.layers]
        if over:
            raise FormatError(f"model: {self.config.architecture}: there is {over[0]}, and the "
                              f"model has {self.config.layers} layers")  # fmt: skip
        for name, shape in wanted.items():
            if not is_of_numbers(tensors[name]):
                raise FormatError(f"model: {self.config.architecture}: {name} holds "
                                  f"{kind_of(tensors[name])}; expected floating-point numbers, or "
                                  "a quantised kind of GGUF with its scales")  # fmt: skip
            if not fits(tensors[name], shape):
                given, text = tensors[name].shape, ", ".join(str(n or "any") for n in shape)
                raise FormatError(f"model: {self.config.architecture}: {name} has the shape "
                                  f"{list(given)}; its sizes ask for [{text}]")  # fmt: skip

        for i in range(self.config.layers):
            self._check_inner(i, tensors)

    def _check_inner(self, i: int, tensors: Mapping[str, Stored]) -> None:
        """Raises FormatError unless the parts of a layer's feed-forward have one inner size."""
        end = "_exps" if self.config.experts else ""
        names = [f"blk.{i}.ffn_{part}{end}.weight" for part in ("down", "up", "gate")]
        sizes = {name: tensors[name].shape[-1 if "down" in name else -2]
                 for name in names if name in tensors}  # fmt: skip
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise FormatError(f"model: {self.config.architecture}: the inner sizes differ: {told}")

    def _turns(self, local: bool) -> tuple[Tensor, Tensor]:
        """cos and sin by position, as each number and its partner in a pair are multiplied by them:
        two tables (room, rotated width). Su et al., 2021."""
        c = self.config
        base = c.rope_local_base if local and c.rope_local_base else c.rope_base
        width = c.rope_width or c.head_width
        frequency = base ** -(np.arange(0, width, 2, dtype=np.float64) / width)
        if not (local and c.rope_local_base):
            frequency = frequency / c.rope_divisor
            if "rope_freqs.weight" in self.vectors:  # llama 3 and longrope
                frequency = frequency / self.vectors["rope_freqs.weight"].numpy()
        angle = np.arange(self.room)[:, None] * frequency
        cos, sin = np.cos(angle) * c.rope_amplitude, np.sin(angle) * c.rope_amplitude
        axis = 1 if c.halves else 2
        own, partner = (np.stack(pair, axis).reshape(self.room, width).astype(np.float32)
                        for pair in ((cos, cos), (-sin, sin)))  # fmt: skip
        return Tensor(own), Tensor(partner)

    # --- the graph -------------------------------------------------------------------------------

    def hidden(
        self, ids: Tensor, positions: Tensor, attend: Attend,
        around: Callable[[Layer], Layer] = lambda layer: layer,
    ) -> Tensor:  # fmt: skip
        """What the layers make of tokens: ids and positions (n,) int32 to (n, width).

        Only `attend` looks from one token to another, so tokens of several texts may lie side by
        side. `around` is what is done with each layer, a function of x alone.
        """
        x = self.embedding.rows(ids)
        if self.family.learned_positions:
            x = x + self.matrices["position_embd.weight"].rows(positions)
        if self.family.embedding_root:
            x = x * math.sqrt(self.config.width)
        turns = [[t[positions] for t in tables] for tables in self.turns]
        for i in range(self.config.layers):
            turned = turns[self.is_windowed(i)]
            x = around(partial(self.layer, i, turns=turned, attend=attend))(x)
        return x

    def layer(self, i: int, x: Tensor, turns: list[Tensor], attend: Attend) -> Tensor:
        """Layer i of (n, width); turns are cosines and sines of the tokens' positions."""
        seen = self._normed(x, f"blk.{i}.attn_norm") if self.family.norm_before else x
        y = self._attention(i, seen, turns, attend)
        x = x + (self._normed(y, f"blk.{i}.post_attention_norm")
                 if self.family.norm_after else y)  # fmt: skip
        seen = self._normed(x, f"blk.{i}.ffn_norm") if self.family.norm_before else x
        y = self._experts(i, seen) if self.config.experts else self._perceptron(i, seen)
        return x + (self._normed(y, f"blk.{i}.post_ffw_norm") if self.family.norm_after else y)

    def logits(self, x: Tensor) -> Tensor:
        """Logits (n, vocabulary) of what `hidden` gives."""
        return self.head(self.last(x))

    def head(self, x: Tensor) -> Tensor:
        """Logits (n, vocabulary) of what `last` gives."""
        return self._capped(self.output(x), self.config.logit_cap)

    def last(self, x: Tensor) -> Tensor:
        """What `hidden` gives, normalised (n, width): logits are products of this."""
        return self._normed(x, "output_norm")

    def is_windowed(self, i: int) -> bool:
        """Whether layer i sees a window only."""
        return bool(self.config.windowed) and self.config.windowed[i]

    def _attention(self, i: int, x: Tensor, turns: list[Tensor], attend: Attend) -> Tensor:
        """(n, width) to (n, width)."""
        c, n = self.config, x.shape[0]
        q, k, v = (self._projected(i, name, x) for name in _QKV)
        if self.family.query_norms:
            q, k = self._normed_heads(i, "attn_q", q), self._normed_heads(i, "attn_k", k)
        q = q.reshape(n, c.heads, c.head_width).permute(1, 0, 2)
        k, v = (t.reshape(n, c.key_heads, c.head_width).permute(1, 0, 2) for t in (k, v))
        if not self.family.learned_positions:
            q, k = self._turned(q, turns), self._turned(k, turns)
        y = attend(i, q, k, v).permute(1, 0, 2).reshape(n, -1)
        return self._projected(i, "attn_output", y)

    def _turned(self, x: Tensor, turns: list[Tensor]) -> Tensor:
        """Pairs of (heads, n, width) rotated by their positions' angles: (a, b) to (a cos - b sin,
        b cos + a sin)."""
        cos, sin = turns
        width = cos.shape[-1]
        turned, rest = x[..., :width], x[..., width:]
        shape = (*x.shape[:-1], 2, -1) if self.config.halves else (*x.shape[:-1], -1, 2)
        partner = turned.reshape(*shape).flip(-2 if self.config.halves else -1)
        out = turned * cos + partner.reshape(*turned.shape) * sin
        return out if width == x.shape[-1] else out.cat(rest, dim=-1)

    def _perceptron(self, i: int, x: Tensor) -> Tensor:
        up = self._projected(i, "ffn_up", x)
        if self.family.gated:
            up = self._active(self._projected(i, "ffn_gate", x)) * up
        else:
            up = self._active(up)
        return self._projected(i, "ffn_down", up)

    def _experts(self, i: int, x: Tensor) -> Tensor:
        """A mixture of perceptrons, weighted per token. Shazeer et al., 2017.

        All experts run; those that are not chosen count 0.
        """
        c = self.config
        chance = self.matrices[f"blk.{i}.ffn_gate_inp.weight"](x).softmax(-1)  # (n, experts)
        best = chance.topk(c.experts_used)[0]
        weight = (chance >= best[:, -1:]).where(chance, 0.0)
        if c.experts_normalized:
            weight = weight / weight.sum(-1, keepdim=True)
        gate, up, down = (self.matrices[f"blk.{i}.ffn_{name}_exps.weight"]
                          for name in ("gate", "up", "down"))  # fmt: skip
        inner = self._active(gate(x)) * up(x)  # (experts, n, hidden)
        y = (down(inner) * weight.transpose(0, 1).unsqueeze(2)).sum(0)
        if f"blk.{i}.ffn_up_shexp.weight" in self.matrices:  # an expert that always runs
            inner = self._active(self._projected(i, "ffn_gate_shexp", x))
            always = self._projected(i, "ffn_down_shexp",
                                     inner * self._projected(i, "ffn_up_shexp", x))  # fmt: skip
            share = self.vectors.get(f"blk.{i}.ffn_gate_inp_shexp.weight")
            y = y + (always if share is None
                     else always * (x * share).sum(-1, keepdim=True).sigmoid())  # fmt: skip
        return y

    def _projected(self, i: int, name: str, x: Tensor) -> Tensor:
        y = self.matrices[f"blk.{i}.{name}.weight"](x)
        bias = self.vectors.get(f"blk.{i}.{name}.bias")
        return y if bias is None else y + bias

    def _normed(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self.vectors[f"{name}.weight"], self.vectors.get(f"{name}.bias")
        if self.family.norm == "layer":
            return x.layer_norm(x.shape[-1:], weight, bias, self.config.eps)
        return x.rms_norm(x.shape[-1:], weight, self.config.eps)

    def _normed_heads(self, i: int, name: str, x: Tensor) -> Tensor:
        """Each head by itself, or all together: as wide as the weight is."""
        width = self.vectors[f"blk.{i}.{name}_norm.weight"].shape[0]
        y = x.reshape(x.shape[0], -1, width)
        return self._normed(y, f"blk.{i}.{name}_norm").reshape(*x.shape)

    def _active(self, x: Tensor) -> Tensor:
        return x.silu() if self.family.activation == "silu" else x.gelu("tanh")

    def scores(self, products: Tensor) -> Tensor:
        """Products of queries and keys, scaled and capped: what attention takes the softmax of."""
        return self._capped(products * self.config.scale, self.config.score_cap)

    @staticmethod
    def _capped(x: Tensor, cap: float) -> Tensor:
        return (x / cap).tanh() * cap if cap else x


__all__ = ["FAMILIES", "Config", "Decoder", "Family"]
