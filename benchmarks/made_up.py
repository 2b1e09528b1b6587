"""Models, prompts, bases and value heads with random weights, for benchmarks of speed."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from stir_train.config.inputs import ModelConfig
from stir_train.config.steering import (
    PreviewSteering,
    RetrievingSteering,
    SimilaritySteering,
    ValueSteering,
)
from stir_train.models.blocks import find_blocks
from stir_train.models.identity import ModelIdentity
from stir_train.models.load import LoadedModel, load_model
from stir_train.models.value_head import ValueHead
from stir_train.tasks.families import FAMILIES
from stir_train.tasks.problem import held_out_problems
from stir_train.types.rollout import Prompt
from stir_train.types.steering import ControlBasis

VOCABULARY = 2048
STEERING: dict[str, RetrievingSteering] = {
    "similarity": SimilaritySteering(),
    "value": ValueSteering(margin=0.0),
    "preview": PreviewSteering(),
}


def random_model(width: int, num_blocks: int, max_tokens: int, device: str) -> LoadedModel:
    """A randomly initialised Llama; its tokenizer is never used."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=num_blocks,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=max_tokens,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model = LlamaForCausalLM(config)
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    model.to(device, dtype).eval().requires_grad_(False)
    tokenizer = load_model(ModelConfig(name="embedded/addition", device="cpu")).tokenizer
    identity = ModelIdentity("random", "", "LlamaForCausalLM", "", "", "", (), width, num_blocks)
    return LoadedModel(model, tokenizer, find_blocks(model), identity)


def random_prompts(count: int, length: int) -> list[Prompt]:
    """Prompts of one length."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, VOCABULARY, (count, length), generator=generator)
    return [Prompt(str(i), "", "", tuple(row), "") for i, row in enumerate(ids.tolist())]


def addition_prompts(loaded: LoadedModel, count: int) -> list[Prompt]:
    """Problems of the embedded task."""
    problems = held_out_problems(FAMILIES["addition"], count, seed=2)
    return [
        Prompt(str(i), p.question, p.question, tuple(loaded.tokenizer(p.question)["input_ids"]), "")
        for i, p in enumerate(problems)
    ]


def random_basis(width: int, block: int, num_points: int) -> ControlBasis:
    """256 random entries spread over the control points, half of them anchors."""
    generator = torch.Generator().manual_seed(0)
    count = 256
    keys = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=-1)
    return ControlBasis(
        keys=keys,
        directions=0.01 * torch.randn(count, width, generator=generator),
        blocks=torch.full((count,), block),
        points=torch.arange(count) % num_points + 1,
        quality=torch.ones(count),
        is_anchor=torch.arange(count) // num_points % 2 == 1,
        saves_tokens=torch.zeros(count, dtype=torch.bool),
        contrast=torch.arange(count),
    )


def random_head(width: int, block: int) -> ValueHead:
    """An untrained head that reads three blocks; one member, so that its lower bound is its mean and impulses happen."""
    generator = torch.Generator().manual_seed(0)
    head = ValueHead(
        reads=range(block + 1),
        width=width,
        hidden_width=256,
        num_members=1,
        max_points=8,
        max_new_tokens=64,
        generator=generator,
    )
    return head.requires_grad_(False)
