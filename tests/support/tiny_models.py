"""Tiny randomly initialised models of many architectures, sharing one vocabulary size."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen3Config,
)

from stir_train.config.inputs import ModelConfig
from stir_train.models.blocks import find_blocks
from stir_train.models.describe import load_tokenizer
from stir_train.models.identity import ModelIdentity
from stir_train.models.load import LoadedModel

VOCABULARY = 97
SHARED = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    max_position_embeddings=256,
    pad_token_id=0,
    eos_token_id=1,
    bos_token_id=None,
)
GROUPED = dict(**SHARED, num_key_value_heads=2)

CONFIGS: dict[str, PreTrainedConfig] = {
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED, head_dim=8),
    "llama": LlamaConfig(**GROUPED),
    "mistral-full": MistralConfig(**GROUPED, sliding_window=None, head_dim=8),
    "mistral-sliding": MistralConfig(**GROUPED, sliding_window=8, head_dim=8),
    "gemma2-hybrid": Gemma2Config(**GROUPED, head_dim=8, sliding_window=8, query_pre_attn_scalar=8),
    "gemma3-hybrid": Gemma3TextConfig(
        **GROUPED,
        head_dim=8,
        sliding_window=8,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
    ),
    "phi": PhiConfig(**GROUPED, partial_rotary_factor=0.5),
    "phi3": Phi3Config(**GROUPED),
    "gpt-neox": GPTNeoXConfig(**SHARED),
    "olmo": OlmoConfig(**GROUPED),
    "olmo2": Olmo2Config(**GROUPED),
}


def build(name: str, *, attention: str = "sdpa") -> LoadedModel:
    """A seeded model with weights large enough for its greedy path to vary."""
    config = CONFIGS[name]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(11)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
    model.eval().requires_grad_(requires_grad=False)
    model.generation_config.pad_token_id = 0
    model.generation_config.eos_token_id = 1
    identity = ModelIdentity(name, "", type(model).__name__, "", "", "", (1,), 32, 4)
    return LoadedModel(model, _tokenizer(), find_blocks(model), identity)


def double(name: str) -> LoadedModel:
    """As `build` makes it, in float64 for finite differences."""
    loaded = build(name, attention="eager" if name == "gemma2-hybrid" else "sdpa")
    loaded.model.double()
    return loaded


@cache
def _tokenizer() -> PreTrainedTokenizerBase:
    """Any tokenizer: these tests feed ids."""
    return load_tokenizer(ModelConfig(name="embedded/addition"))
