"""The embedded model with heads that vLLM has kernels for: the same function, 32 wide instead of 16."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from stir_train.config.inputs import ModelConfig
from stir_train.models.load import LoadedModel, load_model

NARROW, WIDE = 16, 32


def widened(name: str = "embedded/addition") -> LoadedModel:
    """The embedded model with wider heads, in memory; its identity stays that of the embedded one."""
    narrow = load_model(ModelConfig(name=name))
    model = _widen(narrow.model)
    return LoadedModel(model, narrow.tokenizer, model.model.layers, narrow.identity)


def save_widened(
    directory: Path, name: str = "embedded/addition", *, num_tokens: int | None = None
) -> Path:
    """The same as a directory that any tool loads.

    Args:
        directory: To be made.
        name: Of the embedded model.
        num_tokens: Rows of its embedding, if it is to have more; those are the padding's again, which is
            never sampled.
    """
    loaded = widened(name)
    if num_tokens is not None:
        model = loaded.model
        rows = model.get_input_embeddings().weight.detach()
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
        model.get_input_embeddings().weight.data[len(rows) :] = rows[model.config.pad_token_id]
    loaded.model.save_pretrained(directory)
    loaded.tokenizer.save_pretrained(directory)
    return directory


def _widen(narrow: LlamaForCausalLM) -> LlamaForCausalLM:
    """Pad each head's pairs of rotated dimensions with zeros.

    The rotation's frequencies fall off with the dimension's share of the head: with the base squared, the
    first half of them in a head twice as wide is what all of them were. Scores are divided by the root of the
    width, so that queries are multiplied by the root of two.
    """
    config = copy.deepcopy(narrow.config)
    config.head_dim = WIDE
    config.rope_parameters = {
        **config.rope_parameters,
        "rope_theta": config.rope_parameters["rope_theta"] ** 2,
    }
    weights = narrow.state_dict()
    for block in range(config.num_hidden_layers):
        prefix = f"model.layers.{block}.self_attn."
        for part, factor in (("q_proj", 2**0.5), ("k_proj", 1.0), ("v_proj", 1.0)):
            name = f"{prefix}{part}.weight"
            weights[name] = _pad(weights[name] * factor)
        name = f"{prefix}o_proj.weight"
        weights[name] = _pad(weights[name].T).T.contiguous()
    with torch.random.fork_rng():
        model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    model.generation_config = narrow.generation_config
    return model.eval().requires_grad_(requires_grad=False)


def _pad(weight: torch.Tensor) -> torch.Tensor:
    """``[H * 16, D]`` to ``[H * 32, D]``: each half of a head followed by zeros."""
    halves = weight.view(-1, 2, NARROW // 2, weight.shape[1])
    return torch.cat([halves, torch.zeros_like(halves)], dim=2).reshape(-1, weight.shape[1])
