"""Small models of random weights by the `transformers` package, one of each architecture."""
from __future__ import annotations

import pytest

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 48, "max_position_embeddings": 128,
         "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
          "high_freq_factor": 4.0, "original_max_position_embeddings": 64}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True,
                         "attention_bias": True, "head_dim": 16}),
    "linear": ("Llama", {"rope_parameters": LINEAR}),
    "mistral": ("Mistral", {"sliding_window": 40}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("Qwen2", {}),
    "qwen2_moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 16}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_moe": ("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True, "head_dim": 8}),
    "gemma2": ("Gemma2", {"head_dim": 8, "sliding_window": 40, "query_pre_attn_scalar": 12}),
    "gemma3": ("Gemma3Text", {"head_dim": 8, "sliding_window": 40, "num_hidden_layers": 6}),
    "phi3": ("Phi3", {}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}),
    "olmo2": ("Olmo2", {}),
}  # fmt: skip


def write(name, folder):
    """The model of transformers, which is saved in a folder too."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, more = FAMILIES[name]
    sizes = {k: v for k, v in SIZES.items() if name != "gpt2" or "_id" in k or k == "vocab_size"}
    config = getattr(transformers, f"{kind}Config")(**{**sizes, **more})
    torch.manual_seed(0)
    ends = {"GPT2": "GPT2LMHeadModel", "Gemma3Text": "Gemma3ForCausalLM"}
    model = getattr(transformers, ends.get(kind, f"{kind}ForCausalLM"))(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * (0.5 if weight.ndim == 1 else 0.2))
    model.save_pretrained(folder)
    return model
