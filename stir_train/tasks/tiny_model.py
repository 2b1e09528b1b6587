"""The recipe of the embedded tiny reasoning model: architecture, corpus batches, optimizers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from stir_train.tasks.problem import TaskFamily, corpus

IGNORED = -100
"""Label of positions outside the loss (PyTorch's ``cross_entropy`` default)."""


@dataclass(frozen=True)
class TinyRecipe:
    """How to train the embedded model from scratch on two cores in minutes.

    Attributes:
        hidden_size, intermediate_size, num_blocks, num_heads: Llama dimensions.
        max_tokens: Context length.
        num_steps, batch_size: Length of training; a batch is this many solutions.
        adam_rate, muon_rate: Learning rates for embeddings and norms, and for matrices.
        warmup_steps, decay_from: The schedule: rise, hold, then fall to zero.
        seed: Seeds the initial weights and the corpus.
    """

    hidden_size: int = 64
    intermediate_size: int = 128
    num_blocks: int = 6
    num_heads: int = 4
    max_tokens: int = 512
    num_steps: int = 2400
    batch_size: int = 24
    adam_rate: float = 8e-3
    muon_rate: float = 0.04
    warmup_steps: int = 50
    decay_from: float = 0.5
    seed: int = 1


@dataclass(frozen=True)
class CorpusBatch:
    """Right-padded ``token_ids Int[B T]`` and ``labels Int[B T]``, the prompt masked out."""

    token_ids: torch.Tensor
    labels: torch.Tensor


def build_model(recipe: TinyRecipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Initialise the model; the same recipe gives the same weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=recipe.intermediate_size,
        num_hidden_layers=recipe.num_blocks,
        num_attention_heads=recipe.num_heads,
        num_key_value_heads=recipe.num_heads,
        max_position_embeddings=recipe.max_tokens,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(recipe.seed)
        return LlamaForCausalLM(config)


def build_optimizers(model: LlamaForCausalLM, recipe: TinyRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside blocks, AdamW for embeddings, norms and biases."""
    matrices: list[torch.nn.Parameter] = []
    others: list[torch.nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "embed" not in name else others).append(parameter)
    return [
        torch.optim.AdamW(others, lr=recipe.adam_rate, betas=(0.9, 0.98), weight_decay=0.0),
        torch.optim.Muon(matrices, lr=recipe.muon_rate, weight_decay=0.05),
    ]


def corpus_batches(
    families: list[TaskFamily], tokenizer: PreTrainedTokenizerFast, recipe: TinyRecipe
) -> Iterator[CorpusBatch]:
    """Yield batches for ever, solutions of similar length together to waste little padding."""
    rng = random.Random(f"corpus/{recipe.seed}")
    streams = [corpus(family, rng) for family in families]
    while True:
        pool: list[tuple[list[int], int]] = []
        for i in range(16 * recipe.batch_size):
            problem, solution = next(streams[i % len(streams)])
            prompt = tokenizer(problem.question)["input_ids"]
            response = tokenizer(solution)["input_ids"]
            pool.append(([*prompt, *response, tokenizer.eos_token_id], len(prompt)))
        pool.sort(key=lambda item: len(item[0]))
        groups = [pool[i : i + recipe.batch_size] for i in range(0, len(pool), recipe.batch_size)]
        rng.shuffle(groups)
        yield from (_collate(group, int(tokenizer.pad_token_id)) for group in groups)


def corpus_loss(model: LlamaForCausalLM, batch: CorpusBatch) -> torch.Tensor:
    """Mean next-token cross-entropy (nats) over response tokens."""
    states = model.model(input_ids=batch.token_ids, use_cache=False).last_hidden_state
    labels = batch.labels[:, 1:]
    kept = labels != IGNORED
    logits = model.lm_head(states[:, :-1][kept])
    return torch.nn.functional.cross_entropy(logits, labels[kept])


def _collate(group: list[tuple[list[int], int]], pad: int) -> CorpusBatch:
    width = max(len(ids) for ids, _ in group)
    token_ids = torch.full((len(group), width), pad)
    labels = torch.full((len(group), width), IGNORED)
    for row, (ids, num_prompt) in enumerate(group):
        token_ids[row, : len(ids)] = torch.tensor(ids)
        labels[row, num_prompt : len(ids)] = torch.tensor(ids[num_prompt:])
    return CorpusBatch(token_ids, labels)
