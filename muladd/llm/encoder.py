"""The encoder of BERT: texts to a vector for each token (Devlin et al., 2019).

Texts of any lengths lie one after another in rows of one length, and see only themselves. So there
is next to no filling, and a few shapes serve all texts: of the work per token attention is a small
part, however long the row.
"""
from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from muladd.errors import FormatError
from muladd.formats import checkpoint
from muladd.formats.stored import StoredArray
from muladd.llm.sources import Facts
from muladd.llm.weights import fits, numbers
from muladd.tensor import Tensor

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x.gelu(), "gelu_new": lambda x: x.gelu("tanh"),
    "gelu_pytorch_tanh": lambda x: x.gelu("tanh"), "relu": lambda x: x.relu(),
    "silu": lambda x: x.silu(),
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """The sizes of one encoder."""

    layers: int
    width: int
    heads: int
    hidden: int
    positions: int
    vocabulary: int
    eps: float
    activation: str = "gelu"


class Encoder:
    """BERT without its heads. Raises FormatError for weights that are missing or do not fit.

    `arrays` are those of a folder, by the names of `transformers`; they are read once, here.
    """

    def __init__(self, config: Config, arrays: Mapping[str, StoredArray], where: str) -> None:
        self.config = config
        self._arrays, self._where = arrays, where
        self._first = "bert." if "bert.embeddings.word_embeddings.weight" in arrays else ""
        c = config
        width = (c.width,)
        self.words = self._weight("embeddings.word_embeddings.weight", (c.vocabulary, c.width))
        self.places = self._weight("embeddings.position_embeddings.weight", (c.positions, c.width))
        self.kind = self._weight("embeddings.token_type_embeddings.weight", (0, c.width))[0:1]
        self.norm = self._pair("embeddings.LayerNorm", width, width)
        self.layers: list[dict[str, tuple[Tensor, Tensor]]] = []
        for i in range(c.layers):
            at = f"encoder.layer.{i}"
            square, up, down = (c.width, c.width), (c.hidden, c.width), (c.width, c.hidden)
            three = [self._pair(f"{at}.attention.self.{n}", square, width)
                     for n in ("query", "key", "value")]  # fmt: skip
            together = tuple(parts[0].cat(*parts[1:], dim=0).realize() for parts in zip(*three))
            self.layers.append({
                "qkv": together,  # type: ignore[dict-item]
                "out": self._pair(f"{at}.attention.output.dense", square, width),
                "norm": self._pair(f"{at}.attention.output.LayerNorm", width, width),
                "up": self._pair(f"{at}.intermediate.dense", up, (c.hidden,)),
                "down": self._pair(f"{at}.output.dense", down, width),
                "last": self._pair(f"{at}.output.LayerNorm", width, width),
            })  # fmt: skip

    def _weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        full = self._first + name
        if full not in self._arrays:
            raise FormatError(f"{self._where}: {full} is missing; the model is not whole, or is no "
                              "BERT")  # fmt: skip
        found = self._arrays[full]
        if not fits(found, shape):
            raise FormatError(f"{self._where}: {full} has the shape {list(found.shape)}; its sizes "
                              f"ask for {list(shape)}")  # fmt: skip
        return Tensor(numbers(found))

    def _pair(
        self, name: str, weight: tuple[int, ...], bias: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        return self._weight(f"{name}.weight", weight), self._weight(f"{name}.bias", bias)

    def __call__(self, ids: Tensor, positions: Tensor, texts: Tensor) -> Tensor:
        """What the layers make of tokens: int32 (rows, length) each to (rows * length, width).

        `positions` are those within a text, and `texts` tells the texts in a row apart.
        """
        rows, length = ids.shape
        flat, places = ids.reshape(-1), positions.reshape(-1)
        x = self._normed(self.words[flat] + self.places[places] + self.kind, self.norm)
        mask = (texts.unsqueeze(2) == texts.unsqueeze(1)).unsqueeze(1)  # (rows, 1, length, length)
        active = _ACTIVATIONS[self.config.activation]
        for layer in self.layers:
            qkv = _linear(x, layer["qkv"]).reshape(rows, length, 3, self.config.heads, -1)
            q, k, v = (qkv[:, :, i].permute(0, 2, 1, 3) for i in range(3))
            y = q.scaled_dot_product_attention(k, v, attn_mask=mask)
            y = y.permute(0, 2, 1, 3).reshape(rows * length, self.config.width)
            x = self._normed(x + _linear(y, layer["out"]), layer["norm"])
            y = _linear(active(_linear(x, layer["up"])), layer["down"])
            x = self._normed(x + y, layer["last"])
        return x

    def _normed(self, x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
        return x.layer_norm((self.config.width,), *pair, self.config.eps)


def _linear(x: Tensor, pair: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = pair
    return x @ weight.transpose(0, 1) + bias


def from_folder(folder: str | os.PathLike[str]) -> Encoder:
    """The encoder in a folder with config.json and safetensors. Raises FormatError for what is not
    known or not whole."""
    found = checkpoint.load(folder)
    where = os.fspath(folder)
    return Encoder(_config(found.config, where), found, where)


def _config(values: Mapping[str, Any], where: str) -> Config:
    kind = values.get("model_type")
    if kind != "bert":
        raise FormatError(f"{where}: the model_type {kind!r:.40} is no encoder that is known; "
                          "expected bert")  # fmt: skip
    positions = values.get("position_embedding_type", "absolute")
    if positions != "absolute":
        raise FormatError(f"{where}: position_embedding_type is {positions!r:.40}; expected "
                          "absolute")  # fmt: skip
    activation = values.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise FormatError(f"{where}: hidden_act is {activation!r:.40}; expected one of "
                          f"{', '.join(_ACTIVATIONS)}")  # fmt: skip
    facts = Facts(values, "", where)
    config = Config(
        layers=facts.count("num_hidden_layers"), width=facts.count("hidden_size"),
        heads=facts.count("num_attention_heads"), hidden=facts.count("intermediate_size"),
        positions=facts.count("max_position_embeddings"), vocabulary=facts.count("vocab_size"),
        eps=facts.number("layer_norm_eps", 1e-12), activation=activation,
    )  # fmt: skip
    if config.width % config.heads:
        raise FormatError(f"{where}: a width of {config.width} does not divide into "
                          f"{config.heads} heads")  # fmt: skip
    return config


__all__ = ["Config", "Encoder", "from_folder"]
