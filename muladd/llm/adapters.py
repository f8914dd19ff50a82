"""Low-rank adapters: small matrices beside a model's own, kept in files as the `peft` package does.

A projection W x becomes W x + B A x * scale, A of few rows and B of few columns, and only these two
are trained (Hu et al., 2021). The file names projections as `transformers` does, joins those that
are one matrix there (`qkv_proj`), and has the rows of queries and keys in its order; so an adapter
that was trained on a GGUF file fits the same model as a folder, and the other way round.
"""
from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from muladd.errors import ArgumentError, FormatError
from muladd.formats import safetensors
from muladd.formats.checkpoint import read_json
from muladd.formats.stored import write_atomically
from muladd.llm.checks import check_number
from muladd.llm.model import Config, Decoder
from muladd.llm.weights import numbers
from muladd.llm.weights import sizes as sizes_of
from muladd.tensor import Tensor

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

# part of a layer in the file -> matrices here, which lie in it one after another
_PARTS: dict[str, tuple[str, ...]] = {
    "self_attn.q_proj": ("attn_q",), "self_attn.k_proj": ("attn_k",),
    "self_attn.v_proj": ("attn_v",), "self_attn.o_proj": ("attn_output",),
    "mlp.gate_proj": ("ffn_gate",), "mlp.up_proj": ("ffn_up",), "mlp.down_proj": ("ffn_down",),
}  # fmt: skip
_QKV = ("attn_q", "attn_k", "attn_v")
_OTHER_PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "phi3": {"self_attn.qkv_proj": _QKV, "self_attn.o_proj": ("attn_output",),
             "mlp.gate_up_proj": ("ffn_gate", "ffn_up"), "mlp.down_proj": ("ffn_down",)},
    "gpt2": {"attn.c_attn": _QKV, "attn.c_proj": ("attn_output",), "mlp.c_fc": ("ffn_up",),
             "mlp.c_proj": ("ffn_down",)},
}  # fmt: skip
_KEY = re.compile(
    r"base_model\.model\.(?:(?:model|transformer)\.)?(?:layers|h)\.(\d+)\.(.+)\.lora_([AB])\.weight"
)
# what a file may ask for that is not done here -> the value that means no
_REFUSED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None), "bias": ("none", None), "modules_to_save": (None, []),
    "trainable_token_indices": (None, []), "lora_bias": (False, None),
    "layer_replication": (None, []), "target_parameters": (None, []),
}  # fmt: skip


@dataclass(frozen=True)
class LoRA:
    """What adapters there shall be: `rank` rows of A; the scale is alpha / rank (alpha: twice the
    rank, if not given); `dropout` is the part of A's input that is left out in training; `targets`
    are the projections, by the names of `transformers` or of GGUF files (none: all)."""

    rank: int = 8
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_number("LoRA", "rank", self.rank, 1)
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ArgumentError(f"LoRA: alpha is {self.alpha!r:.40}; expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ArgumentError(f"LoRA: dropout is {self.dropout!r:.40}; expected 0 to below 1")

    @property
    def scale(self) -> float:
        """What B A x is multiplied by."""
        return (2.0 * self.rank if self.alpha is None else self.alpha) / self.rank


@dataclass(frozen=True, eq=False)
class Pair:
    """The adapter of one matrix (out, in): a (rank, in), b (out, rank)."""

    a: Tensor
    b: Tensor
    scale: float

    def __call__(self, x: Tensor) -> Tensor:
        """What is added to the product: x (..., in) to (..., out)."""
        return ((x @ self.a.transpose(0, 1)) @ self.b.transpose(0, 1)) * self.scale

    @property
    def rank(self) -> int:
        """Rows of a."""
        return sizes_of(self.a)[0]

    @property
    def rows(self) -> int:
        """Rows of the matrix."""
        return sizes_of(self.b)[0]

    def delta(self) -> Tensor:
        """What is added to the matrix: (out, in)."""
        return (self.b @ self.a) * self.scale


class Adapter:
    """Adapters of a model's matrices by name (`blk.0.attn_q`)."""

    def __init__(self, config: Config, pairs: Mapping[str, Pair], dropout: float = 0.0) -> None:
        self.config, self.pairs, self.dropout = config, dict(pairs), dropout

    @classmethod
    def new(cls, decoder: Decoder, lora: LoRA, seed: int = 0) -> Adapter:
        """Adapters that add nothing yet: B is 0, A uniform as linear layers begin. Raises
        ArgumentError for targets that the model has not."""
        chance = np.random.default_rng(seed)
        pairs: dict[str, Pair] = {}
        sizes = _adaptable(decoder)
        chosen = _targets(decoder.config, lora.targets, sizes)
        for name, (rows, columns) in sizes.items():
            if name.rpartition(".")[2] not in chosen:
                continue
            if lora.rank > min(rows, columns):
                raise ArgumentError(f"lora: the rank is {lora.rank}, and {name} is {rows} x "
                                    f"{columns}; expected {min(rows, columns)} or less")
            bound = 1 / math.sqrt(columns)
            a = chance.uniform(-bound, bound, (lora.rank, columns)).astype(np.float32)
            b = np.zeros((rows, lora.rank), np.float32)
            pairs[name] = Pair(Tensor(a), Tensor(b), lora.scale)
        return cls(decoder.config, pairs, lora.dropout)

    def tensors(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        return {f"{name}.{kind}": tensor for name, pair in self.pairs.items()
                for kind, tensor in (("a", pair.a), ("b", pair.b))}  # fmt: skip

    def attach(self, decoder: Decoder) -> None:
        """Let the decoder's products add what the adapters say."""
        for name, pair in self.pairs.items():
            decoder.matrices[f"{name}.weight"].adapter = pair

    # --- files -----------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike[str], base: str = "") -> None:
        """Write adapter_config.json and adapter_model.safetensors; `base` names the model."""
        here = Path(folder)
        here.mkdir(parents=True, exist_ok=True)
        parts = _parts(self.config)
        arrays: dict[str, np.ndarray] = {}
        modules: dict[str, tuple[int, float]] = {}  # part -> its rank and alpha in the file
        for i in range(self.config.layers):
            for part, names in parts.items():
                found = [self.pairs.get(f"blk.{i}.{name}") for name in names]
                if not any(found):
                    continue
                a, b, scale = self._joined(i, names, found)
                arrays[f"{_prefix(self.config)}.{i}.{part}.lora_A.weight"] = a
                arrays[f"{_prefix(self.config)}.{i}.{part}.lora_B.weight"] = b
                modules[part] = (len(a), scale * len(a))
        told = _described(modules, self.dropout, base)
        safetensors.save(arrays, here / WEIGHTS, {"format": "pt"})
        text = json.dumps(told, indent=2, sort_keys=True) + "\n"
        write_atomically(here / CONFIG, [text.encode()], "adapter")

    def _joined(
        self, i: int, names: Sequence[str], found: Sequence[Pair | None]
    ) -> tuple[np.ndarray, np.ndarray, float]:
        """(A, B, scale) of matrices that are one in the file: A's below each other, and B's on a
        diagonal, of which each reads its own A."""
        scale = next(p.scale for p in found if p)
        sizes = [p.rows if p else self._rows(name) for name, p in zip(names, found)]
        used = [p for p in found if p]
        a = np.concatenate([p.a.numpy() for p in used])
        b = np.zeros((sum(sizes), len(a)), np.float32)
        row = column = 0
        for name, size, pair in zip(names, sizes, found):
            if pair is not None:
                rank = pair.rank
                block = pair.b.numpy() * np.float32(pair.scale / scale)
                b[row : row + size, column : column + rank] = self._in_file(name, block)
                column += rank
            row += size
        return a, b, scale

    def _rows(self, name: str) -> int:
        c = self.config
        if name in _QKV:
            return (c.heads if name == "attn_q" else c.key_heads) * c.head_width
        for found, pair in self.pairs.items():  # gate and up are of one size
            if found.rpartition(".")[2] in ("ffn_gate", "ffn_up"):
                return pair.rows
        raise ArgumentError(f"adapter: {name} has no adapter and no size")

    def _in_file(self, name: str, b: np.ndarray) -> np.ndarray:
        return b if self.config.halves else _reordered(self.config, name, b, to_file=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], decoder: Decoder) -> Adapter:
        """The adapters in a folder, for this model. Raises FormatError for files that are missing
        or damaged, for what is not LoRA as it is known here, and for adapters of another model."""
        here = Path(folder)
        if not here.is_dir():
            raise FormatError(f"adapter: {here}: is no folder; expected one with {CONFIG} and "
                              f"{WEIGHTS}")  # fmt: skip
        told = read_json(here / CONFIG, "adapter")
        _check_config(told, here)
        arrays = safetensors.open_file(here / WEIGHTS)
        adapter = cls(decoder.config, {}, float(told.get("lora_dropout") or 0.0))
        halves: dict[tuple[int, str], dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            named = _KEY.fullmatch(key)
            if named is None:
                raise FormatError(f"adapter: {here / WEIGHTS}: {key!r:.80} is not the A or B of a "
                                  "layer's projection")  # fmt: skip
            halves.setdefault((int(named[1]), named[2]), {})[named[3]] = numbers(array)
        sizes = _adaptable(decoder)
        for (i, part), both in halves.items():
            adapter._take(i, part, both, told, sizes, here)
        if not adapter.pairs:
            raise FormatError(f"adapter: {here / WEIGHTS}: has no adapter")
        return adapter

    def _take(
        self, i: int, part: str, both: Mapping[str, np.ndarray], told: Mapping[str, Any],
        sizes: Mapping[str, tuple[int, int]], here: Path,
    ) -> None:  # fmt: skip
        names = [f"blk.{i}.{name}" for name in _parts(self.config).get(part, ())]
        if not names or any(name not in sizes for name in names):
            raise FormatError(f"adapter: {here}: adapts layer {i}, {part}, which this model "
                              f"({_told(self.config)}) has not: it is another's")  # fmt: skip
        rows, columns = sum(sizes[n][0] for n in names), sizes[names[0]][1]
        a, b = both.get("A"), both.get("B")
        if a is None or b is None:
            raise FormatError(f"adapter: {here / WEIGHTS}: layer {i}, {part} has only one of A, B")
        rank = a.shape[0] if a.ndim == 2 else 0
        if a.shape != (rank, columns) or b.shape != (rows, rank) or not rank:
            raise FormatError(
                f"adapter: {here}: layer {i}, {part} is of {list(a.shape)} and {list(b.shape)}; "
                f"this model ({_told(self.config)}) takes [r, {columns}] and [{rows}, r]: the "
                "adapter is of another model"
            )
        said = _by_pattern(told, "rank_pattern", "r", f"{i}.{part}", rank)
        if said != rank:
            raise FormatError(f"adapter: {here}: {CONFIG} has the rank {said!r:.40}, and layer "
                              f"{i}, {part} has {rank}")  # fmt: skip
        scale = _scale(told, f"{i}.{part}", rank, here)
        start = 0
        for name in names:
            block = b[start : start + sizes[name][0]]
            start += len(block)
            if not self.config.halves:
                block = _reordered(self.config, name.rpartition(".")[2], block, to_file=False)
            self.pairs[name] = Pair(Tensor(a), Tensor(np.ascontiguousarray(block)), scale)

    def __repr__(self) -> str:
        ranks = sorted({pair.rank for pair in self.pairs.values()})
        return f"Adapter({len(self.pairs)} matrices, rank {', '.join(map(str, ranks))})"


def _adaptable(decoder: Decoder) -> dict[str, tuple[int, int]]:
    """(rows, columns) of each matrix that may have an adapter."""
    known = {name for names in _parts(decoder.config).values() for name in names}
    found: dict[str, tuple[int, int]] = {}
    for full, matrix in decoder.matrices.items():
        name, _, kind = full.rpartition(".")
        if kind == "weight" and name.rpartition(".")[2] in known and len(matrix.shape) == 2:
            found[name] = (matrix.shape[0], matrix.shape[1])
    return found


def _targets(config: Config, wanted: Iterable[str], there: Iterable[str]) -> set[str]:
    """The matrices' names in a layer that are meant by names of either kind."""
    present = {name.rpartition(".")[2] for name in there}
    parts = _parts(config)
    chosen: set[str] = set()
    for target in wanted:
        names = {n for part, ns in parts.items() for n in ns
                 if target in (part, part.rpartition(".")[2], n)}  # fmt: skip
        if not names & present:
            expected = [p.rpartition(".")[2] for p, ns in parts.items() if set(ns) & present]
            raise ArgumentError(f"LoRA: {target!r:.40} is no projection of this model; expected "
                                f"some of {', '.join(dict.fromkeys(expected))}")  # fmt: skip
        chosen |= names
    return chosen & present if chosen else present


def _parts(config: Config) -> dict[str, tuple[str, ...]]:
    return _OTHER_PARTS.get(config.architecture, _PARTS)


def _prefix(config: Config) -> str:
    inside = "transformer.h" if config.architecture == "gpt2" else "model.layers"
    return f"base_model.model.{inside}"


def _told(config: Config) -> str:
    return f"{config.architecture}, {config.layers} layers of width {config.width}"


def _reordered(config: Config, name: str, b: np.ndarray, to_file: bool) -> np.ndarray:
    """Rows of queries and keys: a head's pairs lie together in GGUF files of llama, and half a head
    apart in the other files."""
    if name not in ("attn_q", "attn_k"):
        return b
    half = config.head_width // 2
    shape = (-1, half, 2, b.shape[1]) if to_file else (-1, 2, half, b.shape[1])
    return b.reshape(shape).swapaxes(1, 2).reshape(b.shape)


def _described(
    modules: Mapping[str, tuple[int, float]], dropout: float, base: str
) -> dict[str, Any]:
    """adapter_config.json."""
    short = [part.rpartition(".")[2] for part in modules]
    names = [part if short.count(s) > 1 else s for part, s in zip(modules, short)]
    ranks = [rank for rank, _ in modules.values()]
    usual = min(set(ranks), key=lambda r: (-ranks.count(r), r))
    alpha = next(alpha for rank, alpha in modules.values() if rank == usual)
    others = {n: m for n, m in zip(names, modules.values()) if m != (usual, alpha)}
    return {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": usual, "lora_alpha": _plain(alpha),
        "lora_dropout": dropout, "target_modules": names, "bias": "none",
        "rank_pattern": {n: rank for n, (rank, _) in others.items()},
        "alpha_pattern": {n: _plain(a) for n, (_, a) in others.items()},
        "fan_in_fan_out": "c_attn" in names, "use_rslora": False, "use_dora": False,
        "inference_mode": True, "base_model_name_or_path": base or None,
    }  # fmt: skip


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value


def _check_config(told: Mapping[str, Any], here: Path) -> None:
    kind = told.get("peft_type")
    if kind != "LORA":
        raise FormatError(f"adapter: {here / CONFIG}: peft_type is {kind!r:.40}; expected LORA")
    for name, plain in _REFUSED.items():
        if told.get(name) not in plain:
            raise FormatError(f"adapter: {here / CONFIG}: {name} is {told[name]!r:.40}, which "
                              "muladd does not know; expected plain LoRA")  # fmt: skip


def _by_pattern(
    told: Mapping[str, Any], patterns: str, name: str, place: str, default: int
) -> Any:
    """What a configuration says of a place: by the last pattern that fits it, or for all."""
    found = told.get(name, default)
    for pattern, value in (told.get(patterns) or {}).items():
        if re.search(rf"(?:^|\.){pattern}$", place):
            found = value
    return found


def _scale(told: Mapping[str, Any], place: str, rank: int, here: Path) -> float:
    alpha = _by_pattern(told, "alpha_pattern", "lora_alpha", place, rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        raise FormatError(f"adapter: {here / CONFIG}: lora_alpha is {alpha!r:.40}; expected a "
                          "number")  # fmt: skip
    return alpha / math.sqrt(rank) if told.get("use_rslora") else alpha / rank
