"""Sentence embeddings: texts to vectors, whose cosine says how much alike they are.

`load(folder).embed(texts)` gives what the `sentence-transformers` package gives for the same folder
(Reimers and Gurevych, 2019): the encoder's vectors, averaged over each text's tokens.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from muladd.errors import ArgumentError, FormatError
from muladd.formats.checkpoint import read_json
from muladd.llm import encoder, hub
from muladd.llm.encoder import Encoder
from muladd.llm.tokenizer import Tokenizer
from muladd.tensor import Tensor, no_grad
from muladd.tensor.jit import jit

# length of rows -> how many there are at a time; texts longer than 256 lie in rows of the greatest
# length that the model reads
_SHAPES = {128: (8, 3, 1), 256: (4, 1), 0: (2, 1)}
_SMALLEST = 32  # the length of a row by itself, if that is enough
_TEXTS = 16  # at most so many to a row
_PLAIN = re.compile(r"\w[\w.-]*")


class Embedded(NamedTuple):
    """Vectors of texts, float32 (texts, width), and how many tokens were read."""

    vectors: np.ndarray
    tokens: int


class EmbeddingModel:
    """An encoder, its tokenizer, and how a text's vector is made of its tokens'.

    `pooling` is mean or cls; `length` how many tokens of a text are read; with `normalized`,
    vectors have the norm 1.
    """

    def __init__(
        self, model: Encoder, tokenizer: Tokenizer, *, pooling: str = "mean",
        normalized: bool = True, length: int = 512,
    ) -> None:  # fmt: skip
        if pooling not in ("mean", "cls"):
            raise ArgumentError(f"embeddings: pooling is {pooling!r:.40}; expected mean or cls")
        self.encoder, self.tokenizer = model, tokenizer
        self.pooling, self.normalized = pooling, normalized
        self.length = min(length, model.config.positions)
        self._run = jit(self._vectors)

    @property
    def width(self) -> int:
        """How many numbers a vector has."""
        return self.encoder.config.width

    def embed(self, texts: str | Sequence[str], *, cut: bool = True) -> np.ndarray:
        """The vectors of texts, float32 (texts, width); of one text (width,).

        A text longer than `length` tokens is cut at its end, or refused if not `cut`. Raises
        ArgumentError for what is no text, and for one that is too long.
        """
        if isinstance(texts, str):
            return self.read([texts], cut=cut).vectors[0]
        return self.read(texts, cut=cut).vectors

    def read(self, texts: Sequence[str], *, cut: bool = True) -> Embedded:
        """As `embed`, with the number of tokens."""
        if isinstance(texts, str | bytes) or not isinstance(texts, Sequence | np.ndarray):
            raise ArgumentError(f"embed: expected texts, got {type(texts).__name__}")
        ids = [self._ids(text, i, cut) for i, text in enumerate(texts)]
        vectors = np.empty((len(ids), self.width), np.float32)
        for shape, rows in _batches([len(some) for some in ids], self.length):
            batch = _Batch(shape, rows, ids, self.pooling)
            vectors[batch.members] = self._vectors_of(batch)[: len(batch.members)]
        return Embedded(vectors, sum(map(len, ids)))

    def warm(self) -> None:
        """Make the programs that most texts need, which otherwise are made as texts come."""
        room = min(128, self.length)
        for shape in ((1, min(_SMALLEST, room)), *((rows, room) for rows in _SHAPES[128])):
            batch = _Batch(shape, [], [], self.pooling)
            for _ in range(2):
                self._vectors_of(batch)

    def _vectors_of(self, batch: _Batch) -> np.ndarray:
        with no_grad():
            return self._run(*(Tensor(a) for a in batch.arrays)).numpy()

    def _ids(self, text: Any, i: int, cut: bool) -> list[int]:
        if not isinstance(text, str):
            raise ArgumentError(f"embed: text {i} is {type(text).__name__}; expected text")
        ids, whole = self.tokenizer.encode_up_to(text, self.length)
        if len(ids) <= self.length:
            return ids
        if not cut:
            count = f"{len(ids)} tokens" if whole else f"over {self.length} tokens"
            raise ArgumentError(f"embed: text {i} has {count} and there is room for "
                                f"{self.length}; shorten it")  # fmt: skip
        tail = self.tokenizer.encode("")[1:]  # what stands at the end of every text
        return [*ids[: self.length - len(tail)], *tail]

    def _vectors(
        self, ids: Tensor, positions: Tensor, texts: Tensor, owners: Tensor, shares: Tensor
    ) -> Tensor:
        """(slots, width): slot s is the sum of the tokens it owns, each times its share."""
        x = self.encoder(ids, positions, texts)
        slots = shares.shape[0]
        own = Tensor.arange(slots, dtype="int32").unsqueeze(1) == owners.reshape(1, -1)
        y = own.cast("float32") @ x * shares.unsqueeze(1)
        if self.normalized:
            y = y / (y * y).sum(-1, keepdim=True).sqrt().maximum(1e-12)
        return y

    def __repr__(self) -> str:
        c = self.encoder.config
        return f"EmbeddingModel(bert, {c.layers} layers of width {c.width}, {self.length} tokens)"


class _Batch:
    """Texts in rows: int32 arrays for the encoder, and of which text each token is."""

    def __init__(
        self, shape: tuple[int, int], rows: list[list[int]], ids: list[list[int]], pooling: str
    ) -> None:
        self.members = [i for row in rows for i in row]
        tokens, positions = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        texts, owners = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        shares = np.zeros(_TEXTS * shape[0], np.float32)
        slot = 0
        for r, row in enumerate(rows):
            at = 0
            for i in row:
                count = len(ids[i])
                span = slice(at, at + count)
                tokens[r, span], positions[r, span] = ids[i], np.arange(count)
                texts[r, span] = slot
                owned = count if pooling == "mean" else 1
                owners[r, at : at + owned], shares[slot] = slot, 1 / owned
                at, slot = at + count, slot + 1
        self.arrays = (tokens, positions, texts, owners, shares)


Rows = list[list[int]]  # which texts lie in which row


def _batches(lengths: Sequence[int], longest: int) -> Iterator[tuple[tuple[int, int], Rows]]:
    """(rows and their length, texts in them) that together hold all texts."""
    least = 0
    for usual, counts in _SHAPES.items():
        room = min(usual or longest, longest)
        rows = _packed([i for i, n in enumerate(lengths) if least < n <= room], lengths, room)
        least = room
        while rows:
            count = next((n for n in counts if len(rows) > n // 2), 1)
            some, rows = rows[:count], rows[count:]
            small = count == 1 and sum(lengths[i] for i in some[0]) <= _SMALLEST
            yield (count, min(_SMALLEST, room) if small else room), some


def _packed(chosen: list[int], lengths: Sequence[int], room: int) -> Rows:
    """Longest first, each into the row that it fills best."""
    rows: Rows = []
    open_rows: dict[int, list[int]] = {}  # room left -> rows
    for i in sorted(chosen, key=lambda i: -lengths[i]):
        left = next((n for n in range(lengths[i], room + 1) if open_rows.get(n)), None)
        if left is None:
            rows.append([])
            row, left = len(rows) - 1, room
        else:
            row = open_rows[left].pop()
        rows[row].append(i)
        if len(rows[row]) < _TEXTS:
            open_rows.setdefault(left - lengths[i], []).append(row)
    return rows


# --- from files ----------------------------------------------------------------------------------


def load(folder: str | os.PathLike[str]) -> EmbeddingModel:
    """The embedding model in a folder, as `sentence-transformers` saves it: config.json and
    safetensors of a BERT, tokenizer.json, and modules.json, which says how vectors are made
    (without it: the mean, not normalised). Raises FormatError naming what is missing, damaged or
    not known. hub:OWNER/NAME is downloaded, as `llm.load` does.
    """
    here = hub.located(folder)
    if not here.is_dir():
        raise FormatError(f"embeddings: {here}: is no folder; expected one with config.json, "
                          "safetensors and tokenizer.json")  # fmt: skip
    model = encoder.from_folder(here)
    tokenizer = Tokenizer.from_file(here)
    if len(tokenizer) > model.config.vocabulary:
        raise FormatError(f"embeddings: {here}: the tokenizer has {len(tokenizer)} tokens and "
                          f"the model {model.config.vocabulary}: they do not belong together")
    beside = here / "sentence_bert_config.json"
    told = read_json(beside, "embeddings").get("max_seq_length") if beside.exists() else None
    if told is not None and (type(told) is not int or told < 3):
        raise FormatError(f"embeddings: {beside}: max_seq_length is {told!r:.40}; expected a "
                          "number of tokens from 3 on")  # fmt: skip
    pooling, normalized = _modules(here)
    return EmbeddingModel(model, tokenizer, pooling=pooling, normalized=normalized,
                          length=told or model.config.positions)  # fmt: skip


def _modules(here: Path) -> tuple[str, bool]:
    """(pooling, whether vectors are normalised) by modules.json."""
    path = here / "modules.json"
    if not path.exists():
        return "mean", False
    pooling, normalized = "mean", False
    for module in read_json(path, "embeddings", list):
        if not isinstance(module, dict):
            raise FormatError(f"embeddings: {path}: expected a list of modules")
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(here, module)
        elif kind == "Normalize":
            normalized = True
        elif kind != "Transformer":
            raise FormatError(f"embeddings: {path}: has the module {kind!r:.40}; expected "
                              "Transformer, Pooling and Normalize")  # fmt: skip
    return pooling, normalized


def _pooling(here: Path, module: Mapping[str, Any]) -> str:
    """The one way of pooling that a module's own folder names."""
    name = module.get("path")
    if not isinstance(name, str) or not _PLAIN.fullmatch(name):
        raise FormatError(f"embeddings: {here}: a module's path is {name!r:.40}; expected the name "
                          "of a folder in it")  # fmt: skip
    told = read_json(here / name / "config.json", "embeddings")
    modes = [n.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token")
             for n, value in told.items() if n.startswith("pooling_mode_") and value is True]
    if isinstance(told.get("pooling_mode"), str):
        modes = [told["pooling_mode"]]
    if modes not in (["mean"], ["cls"]):
        raise FormatError(f"embeddings: {here / name}: pools by {' and '.join(modes) or 'none'}; "
                          "expected mean or cls")  # fmt: skip
    return modes[0]
