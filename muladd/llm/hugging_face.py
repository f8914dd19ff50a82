"""Models in folders with config.json and safetensors, as the `transformers` package writes them.

Names and shapes become those of GGUF files; rotation pairs i with i + half in all of them.
"""
from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from muladd.errors import FormatError
from muladd.formats import checkpoint
from muladd.formats.stored import StoredArray
from muladd.ir import dtype as dt
from muladd.llm.model import FAMILIES, Config
from muladd.llm.sources import Facts, consistent, known, single, windowed
from muladd.llm.weights import Stored, numbers, stacked

# model_type -> architecture
TYPES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "smollm": "llama", "qwen2": "qwen2",
    "qwen2_moe": "qwen2moe", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "gemma2": "gemma2",
    "gemma3_text": "gemma3", "phi3": "phi3", "gpt2": "gpt2", "olmo2": "olmo2",
}  # fmt: skip

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm", "wte": "token_embd", "wpe": "position_embd",
        "ln_f": "output_norm"}  # fmt: skip
_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate_up_proj": "ffn_up", "mlp.gate": "ffn_gate_inp",
    "block_sparse_moe.gate": "ffn_gate_inp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm", "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}  # fmt: skip
_AFTER = {"post_attention_layernorm": "post_attention_norm",
          "pre_feedforward_layernorm": "ffn_norm",
          "post_feedforward_layernorm": "post_ffw_norm"}  # fmt: skip
_ACTIVATIONS = {"silu": ("silu", "swish"), "gelu_tanh": ("gelu_pytorch_tanh", "gelu_new")}
_EXPERT = re.compile(r"(?:mlp|block_sparse_moe)\.experts\.(\d+)\.(\w+)")
_EXPERT_NAMES = {"w1": "ffn_gate", "w2": "ffn_down", "w3": "ffn_up", "gate_proj": "ffn_gate",
                 "up_proj": "ffn_up", "down_proj": "ffn_down"}  # fmt: skip
_PLACE = re.compile(r"(?:(?:model|transformer)\.)?(?:layers|h)\.(\d+)\.(.+)")


def from_folder(
    folder: str | os.PathLike[str],
) -> tuple[Config, dict[str, Stored], checkpoint.Checkpoint]:
    """(config, weights, the folder). Raises FormatError for what is not known or not whole."""
    found = checkpoint.load(folder)
    where = os.fspath(folder)
    kind = found.config.get("model_type")
    if not isinstance(kind, str) or kind not in TYPES:
        raise FormatError(f"{where}: the model_type {kind!r:.40} is not known; expected one of "
                          f"{', '.join(TYPES)}")  # fmt: skip
    name = known(TYPES[kind], where)
    how = found.config.get("quantization_config")
    if how is not None:
        method = how.get("quant_method") if isinstance(how, dict) else how
        raise FormatError(f"{where}: its weights are quantised in the way {method!r:.40}, which is "
                          "not known here; expected plain weights, or a GGUF file")  # fmt: skip
    config, divisors = _config(name, found.config, where)
    tensors = single(_renamed(found, name, where), config, where)
    _agrees(found.config, config, tensors, where)
    if divisors is not None:
        tensors["rope_freqs.weight"] = StoredArray(dt.float32, divisors.astype(np.float32))
    return config, tensors, found


def _config(name: str, values: Mapping[str, Any], where: str) -> tuple[Config, np.ndarray | None]:
    facts = Facts(values, "", where)
    old = name == "gpt2"  # whose names are its own
    width = facts.count("n_embd" if old else "hidden_size")
    heads = facts.count("n_head" if old else "num_attention_heads")
    layers = facts.count("n_layer" if old else "num_hidden_layers")
    head_width = max(1, width // heads)
    if values.get("head_dim") is not None:
        head_width = facts.count("head_dim")
    rope = _rope(values, facts, head_width)
    experts = next((facts.count(n) for n in ("num_local_experts", "num_experts") if n in values), 0)
    scaled: float = head_width
    if name.startswith("gemma"):
        scaled = facts.number("query_pre_attn_scalar", head_width)
    config = Config(
        architecture=name, layers=layers, width=width, heads=heads,
        key_heads=heads if old else facts.count("num_key_value_heads", heads),
        head_width=head_width,
        context=facts.count("n_positions" if old else "max_position_embeddings"),
        eps=facts.number("layer_norm_epsilon" if old else "rms_norm_eps"),
        scale=1 / math.sqrt(scaled),
        score_cap=_or_zero(facts, "attn_logit_softcapping"),
        logit_cap=_or_zero(facts, "final_logit_softcapping"), experts=experts,
        experts_used=facts.count("num_experts_per_tok") if experts else 0,
        experts_normalized=bool(values.get("norm_topk_prob", name == "llama")),
        **rope[0], **_window(values, facts, layers, name),
    )  # fmt: skip
    consistent(config, where)
    return config, rope[1]


def _agrees(
    values: Mapping[str, Any], config: Config, tensors: Mapping[str, Stored], where: str
) -> None:
    """Raises FormatError where config.json says what the weights or the architecture do not."""
    said = ("hidden_activation", "hidden_act", "activation_function")
    given = next((values[n] for n in said if values.get(n) is not None), None)
    fits = _ACTIVATIONS[FAMILIES[config.architecture].activation]
    if given is not None and given not in fits:
        raise FormatError(f"{where}: config.json has the activation {given!r:.40}; expected "
                          f"{' or '.join(fits)} of {config.architecture}")  # fmt: skip
    if values.get("tie_word_embeddings") is False and "output.weight" not in tensors:
        raise FormatError(f"{where}: lm_head.weight is missing, and config.json says that it is "
                          "not the embedding")  # fmt: skip
    for name, part in (("attention_bias", "attn_q"), ("mlp_bias", "ffn_up")):
        if values.get(name) is True and f"blk.0.{part}.bias" not in tensors:
            raise FormatError(f"{where}: config.json says {name}, and the weights have none")
    facts = Facts(values, "", where)
    sizes = {"vocab_size": "token_embd.weight"}
    if not config.experts and config.architecture != "gpt2":
        sizes["intermediate_size"] = "blk.0.ffn_up.weight"
    for name, tensor in sizes.items():
        if name in values and tensor in tensors and tensors[tensor].shape:
            count, rows = facts.count(name), tensors[tensor].shape[0]
            if count != rows:
                raise FormatError(f"{where}: config.json has {name} {count}, and {tensor} has "
                                  f"{rows} rows")  # fmt: skip


def _or_zero(facts: Facts, name: str) -> float:
    return 0.0 if facts.values.get(name) is None else facts.number(name)


def _window(values: Mapping[str, Any], facts: Facts, layers: int, name: str) -> dict[str, Any]:
    kinds = values.get("layer_types")
    if not values.get("sliding_window") or values.get("use_sliding_window") is False:
        return {}
    if isinstance(kinds, list) and len(kinds) == layers:
        narrow = tuple(kind == "sliding_attention" for kind in kinds)
    else:
        narrow = windowed(name, layers)
    return {"window": facts.count("sliding_window"), "windowed": narrow}


def _rope(
    values: Mapping[str, Any], facts: Facts, head_width: int
) -> tuple[dict[str, Any], np.ndarray | None]:
    """(fields of Config, what frequencies are divided by), from either way of writing it."""
    given = values.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise FormatError(f"{facts.where}: rope_parameters is {type(given).__name__}")
    local = given.get("sliding_attention")
    given = given.get("full_attention", given)
    old = values.get("rope_scaling") or {}
    if not isinstance(old, dict):
        raise FormatError(f"{facts.where}: rope_scaling is {type(old).__name__}; expected an "
                          "object")  # fmt: skip
    given = {"rope_theta": values.get("rope_theta", 10000.0), **old, **given}
    rope = Facts(given, "", facts.where)
    kind = given.get("rope_type", given.get("type", "default"))
    part = given.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0))
    width = int(head_width * part)
    fields = {"rope_base": rope.number("rope_theta"), "rope_width": width}
    if isinstance(local, dict):
        fields["rope_local_base"] = Facts(local, "", facts.where).number("rope_theta")
    elif "rope_local_base_freq" in values:
        fields["rope_local_base"] = facts.number("rope_local_base_freq")
    if kind == "default":
        return fields, None
    if kind == "linear":
        return fields | {"rope_divisor": rope.number("factor")}, None
    if kind == "llama3":
        return fields, llama3_divisors(
            fields["rope_base"], width, rope.number("factor"), rope.number("low_freq_factor"),
            rope.number("high_freq_factor"), rope.number("original_max_position_embeddings"),
        )  # fmt: skip
    raise FormatError(f"{facts.where}: rope_type is {kind!r:.40}; expected default, linear or "
                      "llama3")  # fmt: skip


def llama3_divisors(
    base: float, width: int, factor: float, low: float, high: float, trained: float
) -> np.ndarray:
    """What llama 3 divides its frequencies by: `factor` where a turn takes more than trained / low
    positions, 1 where less than trained / high, and between them a smooth passage."""
    turn = 2 * math.pi * base ** (np.arange(0, width, 2) / width)
    smooth = np.clip((trained / turn - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def placed(full: str, name: str) -> tuple[str, int | None] | None:
    """(name here, which expert of it) of an array of an architecture's file; None for buffers of
    other times."""
    head, _, kind = full.rpartition(".")
    place = _PLACE.fullmatch(head)
    if place is None:
        return (f"{_TOP[head]}.{kind}", None) if head in _TOP else None
    block, part = f"blk.{place[1]}", place[2]
    if expert := _EXPERT.fullmatch(part):
        to = f"{block}.{_EXPERT_NAMES.get(expert[2], expert[2])}_exps.{kind}"
        return to, int(expert[1])
    layer = {**_LAYER, **(_AFTER if name in ("gemma2", "gemma3", "olmo2") else {})}
    return (f"{block}.{layer[part]}.{kind}", None) if part in layer else None


def _renamed(arrays: Mapping[str, StoredArray], name: str, where: str) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    experts: dict[str, dict[int, Stored]] = {}
    for full, array in arrays.items():
        place = placed(full, name)
        if place is None:
            continue
        to, expert = place
        stored: Stored = array
        if expert is not None:
            experts.setdefault(to, {})[expert] = stored
            continue
        if is_turned(to, array.shape, name):
            stored = StoredArray(array.dtype, np.ascontiguousarray(array.stored.T))
        if to.endswith("ffn_gate_inp_shexp.weight"):
            stored = StoredArray(array.dtype, array.stored.reshape(-1))
        if is_less_one(to, name):
            stored = StoredArray(dt.float32, numbers(stored) + np.float32(1))
        found[to] = stored
    for to, members in experts.items():
        if sorted(members) != list(range(len(members))):
            raise FormatError(f"{where}: experts {sorted(members)[:8]} of {to}; expected 0, 1, ...")
        found[to] = stacked([members[i] for i in range(len(members))])
    return found


def is_turned(to: str, shape: tuple[int, ...], name: str) -> bool:
    """Whether the file holds a matrix as (in, out)."""
    return name == "gpt2" and len(shape) == 2 and to.startswith("blk.")


def is_less_one(to: str, name: str) -> bool:
    """Whether the file holds what is multiplied by less 1, as gemma's do of norms."""
    return name.startswith("gemma") and to.rpartition(".")[0].endswith("norm")
