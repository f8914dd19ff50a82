"""Models from GGUF files: a `Config` and weights by name, one matrix each."""
from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

from muladd.errors import FormatError
from muladd.formats import gguf
from muladd.llm.model import FAMILIES, Config
from muladd.llm.weights import Stored, parts

_WINDOW_PERIODS = {"gemma2": 2, "gemma3": 6}  # of so many layers, the last sees everything


def known(architecture: str, where: str) -> str:
    """The architecture, if there is one of that name. Raises FormatError."""
    if architecture not in FAMILIES:
        raise FormatError(f"{where}: the architecture {architecture!r} is not known; expected one "
                          f"of {', '.join(FAMILIES)}")  # fmt: skip
    return architecture


class Facts:
    """Metadata of one architecture, each value of the type that is wanted."""

    def __init__(self, values: Mapping[str, Any], prefix: str, where: str) -> None:
        self.values, self.prefix, self.where = values, prefix, where

    def number(self, name: str, default: float | None = None) -> float:
        """A number. Raises FormatError where there is none and no default."""
        value = self.values.get(self.prefix + name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise FormatError(f"{self.where}: {self.prefix}{name} is {value!r:.40}; expected a "
                              "number")  # fmt: skip
        if not math.isfinite(value):
            raise FormatError(f"{self.where}: {self.prefix}{name} is {value}")
        return value

    def count(self, name: str, default: int | None = None) -> int:
        """A whole number from 1 on (or the default). Raises FormatError."""
        value = self.number(name, default)
        if value == default:
            return int(value)
        if value != int(value) or not 1 <= value < 1 << 31:
            raise FormatError(f"{self.where}: {self.prefix}{name} is {value}; expected a whole "
                              "number from 1 to 2147483647")  # fmt: skip
        return int(value)


def from_gguf(path: str | os.PathLike[str]) -> tuple[Config, dict[str, Stored], gguf.GGUF]:
    """(config, weights, the file). Raises FormatError for what is not known or not whole."""
    found = gguf.load(path)
    where = os.fspath(path)
    name = known(found.architecture, where)
    facts = Facts(found.metadata, f"{name}.", where)
    width, heads = facts.count("embedding_length"), facts.count("attention.head_count")
    head_width = facts.count("attention.key_length", max(1, width // heads))
    layers = facts.count("block_count")
    scaling = found.metadata.get(f"{name}.rope.scaling.type", "none")
    if scaling not in ("none", "linear", "longrope"):
        raise FormatError(f"{where}: rope.scaling.type is {scaling!r:.40}; expected none, linear "
                          "or longrope")  # fmt: skip
    config = Config(
        architecture=name, layers=layers, width=width, heads=heads,
        key_heads=facts.count("attention.head_count_kv", heads), head_width=head_width,
        context=facts.count("context_length"),
        eps=facts.number(f"attention.layer_norm_{'' if FAMILIES[name].norm == 'layer' else 'rms_'}"
                         "epsilon"),
        rope_base=facts.number("rope.freq_base", 10000.0),
        rope_width=facts.count("rope.dimension_count", head_width),
        rope_divisor=facts.number("rope.scaling.factor", 1.0) if scaling == "linear" else 1.0,
        rope_amplitude=facts.number("rope.scaling.attn_factor", 1.0),
        rope_local_base=10000.0 if name == "gemma3" else 0.0,
        halves=FAMILIES[name].halves,
        scale=_scale(name, layers, width / heads, head_width),
        score_cap=facts.number("attn_logit_softcapping", 0.0),
        logit_cap=facts.number("final_logit_softcapping", 0.0),
        experts=facts.count("expert_count", 0), experts_used=facts.count("expert_used_count", 0),
        experts_normalized=name != "qwen2moe", **_window(name, layers, facts),
    )  # fmt: skip
    consistent(config, where)
    tensors = single(dict(found.tensors), config, where)
    told = found.metadata.get(f"{name}.feed_forward_length")
    up = tensors.get("blk.0.ffn_up.weight")
    if isinstance(told, int) and up is not None and not config.experts and told != up.shape[0]:
        raise FormatError(f"{where}: {name}.feed_forward_length is {told}, and blk.0.ffn_up.weight "
                          f"has {up.shape[0]} rows")  # fmt: skip
    return config, tensors, found


def _window(name: str, layers: int, facts: Facts) -> dict[str, Any]:
    if name not in _WINDOW_PERIODS:
        return {}
    size = facts.count("attention.sliding_window", 4096)
    return {"window": size, "windowed": windowed(name, layers)}


def windowed(name: str, layers: int) -> tuple[bool, ...]:
    """Which layers see a window only: all but one of a period, or all."""
    period = _WINDOW_PERIODS.get(name)
    return tuple(period is None or (i + 1) % period != 0 for i in range(layers))


def _scale(name: str, layers: int, width_per_head: float, head_width: int) -> float:
    """Scores are scaled by the head's width; those of gemma's 27B models by the width per head,
    which is another."""
    large = (name, layers) in (("gemma2", 46), ("gemma3", 62))
    return 1 / math.sqrt(width_per_head if large else head_width)


def consistent(c: Config, where: str) -> None:
    """Raises FormatError where sizes contradict each other."""
    if c.heads % c.key_heads:
        raise FormatError(f"{where}: {c.heads} heads do not share {c.key_heads} heads of keys")
    if c.rope_width % 2 or c.rope_width > c.head_width:
        raise FormatError(f"{where}: {c.rope_width} of a head's {c.head_width} numbers are to be "
                          "rotated; expected an even number, at most all")  # fmt: skip
    for name, value in (("base of rotations", c.rope_base), ("epsilon of norms", c.eps),
                        ("scaling factor of rotations", c.rope_divisor)):  # fmt: skip
        if not value > 0:
            raise FormatError(f"{where}: the {name} is {value:g}; expected a number above 0")
    if c.experts_used > c.experts or c.experts and not c.experts_used:
        raise FormatError(f"{where}: {c.experts_used} experts of {c.experts} are to be used")
    if c.layers > 4096:
        raise FormatError(f"{where}: {c.layers} layers; expected at most 4096")


def inside(name: str, rows: int, c: Config) -> dict[str, int]:
    """The weights that lie in one of a file below each other, by name, and how many rows each has:
    query, key and value; gate and up. Most are one."""
    head, _, kind = name.rpartition(".")
    block, _, part = head.rpartition(".")
    found = {part: rows}
    if part == "attn_qkv":
        keys = c.key_heads * c.head_width
        found = {"attn_q": c.heads * c.head_width, "attn_k": keys, "attn_v": keys}
    elif part == "ffn_up" and c.architecture == "phi3":
        found = {"ffn_gate": rows // 2, "ffn_up": rows // 2}
    return {f"{block}.{n}.{kind}" if block else name: count for n, count in found.items()}


def single(tensors: dict[str, Stored], c: Config, where: str) -> dict[str, Stored]:
    """Weights with what lies together taken apart."""
    found: dict[str, Stored] = {}
    for name, stored in tensors.items():
        names = inside(name, stored.shape[0] if stored.shape else 0, c)
        if len(names) == 1:
            found[name] = stored
            continue
        pieces = parts(stored, list(names.values()), f"{where}: {name}")
        found |= dict(zip(names, pieces))
    short = found.pop("rope_factors_short.weight", None)
    found.pop("rope_factors_long.weight", None)
    if short is not None:  # of contexts as long as those it was first trained for
        found["rope_freqs.weight"] = short
    return found
