"""What a run will need of time, disk and memory, from its configuration and the model's config.json.

A plan, not a measurement: decoding is taken to be bound by memory bandwidth, every completion to use
its whole token budget, so that time and disk are upper bounds for the bandwidth assumed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stir_train.config.run import RunConfig
from stir_train.errors import ModelError

GIB = 2**30
GPU_BANDWIDTH, CPU_BANDWIDTH = 3.3e12, 4e10
"""Bytes a second of an H100's memory, and of a server socket's share that a process can draw."""
BANDWIDTH_SHARE = 0.4
"""What decoding reaches of it."""
PROMPT_TOKENS = 256
"""Taken for the length of a prompt, which is not tokenised here."""
OVERHEAD_GIB = 1.5
"""CUDA context, workspaces, fragmentation."""
ADAM_BYTES = 16
"""A trained parameter's weight, gradient and two moments in float32."""
ACTIVATION_BYTES = 34
"""Kept for the backward pass per token, layer and unit of width, in 16-bit training; twice as many in float32."""
BASELINE_COMPLETIONS = 10
"""A problem of the tune split, for each other method: settings of its grid, or samples of a vote."""
KEPT_PER_LINEAR = 2
"""Numbers kept per input and output of a layer's linear maps, where activations alone are differentiated."""
KEPT_PROMPTS = 3 * 4
"""Tokens of `directions.max_batch_tokens` whose keys and values are held: prompts that batches share, a batch's rows of
them, and those again with what follows them, four times that setting each (`directions.batches`)."""
LOGIT_BYTES = 3 * 4 * 2**25
"""Logits of the chunk that the output layer is applied to, their log-probabilities and gradients."""
INPUT_BYTES = 2
"""Of those, for the layer's input alone."""
PACKED_BYTES = 4
"""Of a weight's copy."""
TOKEN_BYTES = 24
"""On disk per token: its id, log-probability and text."""


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder.

    Attributes:
        num_params: Weights.
        num_layers, width, vocab_size: As in its config.
        kv_width: Width of the keys of one layer, and of the values.
        num_linear: Input plus output widths of a layer's linear maps, which LoRA's size follows.
        bytes_per_weight: In memory.
    """

    num_params: int
    num_layers: int
    width: int
    vocab_size: int
    kv_width: int
    num_linear: int
    bytes_per_weight: int

    @property
    def kv_token_bytes(self) -> int:
        """Of a token's keys and values in all layers."""
        return 2 * self.num_layers * self.kv_width * self.bytes_per_weight


@dataclass(frozen=True)
class Estimate:
    """Upper bounds for a run.

    Attributes:
        num_tokens: Decoded over all stages.
        hours: On all replicas together.
        disk_gib: Of the run directory.
        generate_gib, train_gib: Memory of a process that decodes, and of one that distils.
        gradient_gib: Memory of a process that differentiates rollouts; 0 without that stage.
        weights_gib: Of the model.
        num_replicas: Copies of the model that generate side by side.
    """

    num_tokens: int
    hours: float
    disk_gib: float
    generate_gib: float
    train_gib: float
    gradient_gib: float
    weights_gib: float
    num_replicas: int


def read_shape(directory: Path, *, bytes_per_weight: int) -> ModelShape:
    """A model directory's shape.

    Raises:
        ModelError: If its config.json is missing or lacks a size.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.name: {path} cannot be read: {error}") from error
    try:
        return shape_of(config.get("text_config", config), bytes_per_weight=bytes_per_weight)
    except KeyError as error:
        raise ModelError(f"model.name: {path} has no {error}") from error


def shape_of(config: Mapping[str, Any], *, bytes_per_weight: int) -> ModelShape:
    """The shape that a transformers config of a decoder with gated feed-forward blocks describes.

    Raises:
        KeyError: If a size is missing.
    """
    width, layers = int(config["hidden_size"]), int(config["num_hidden_layers"])
    heads, vocab = int(config["num_attention_heads"]), int(config["vocab_size"])
    head_dim = int(config.get("head_dim") or width // heads)
    kv_width = int(config.get("num_key_value_heads") or heads) * head_dim
    inner = int(config["intermediate_size"])
    query = heads * head_dim
    attention = 2 * width * query + 2 * width * kv_width
    feed_forward = 3 * width * inner
    biases = query + 2 * kv_width if config.get("model_type") == "qwen2" else 0
    embeddings = vocab * width * (1 if config.get("tie_word_embeddings") else 2)
    total = embeddings + layers * (attention + feed_forward + biases + 2 * width) + width
    linear = 2 * (width + query) + 2 * (width + kv_width) + 3 * (width + inner)
    return ModelShape(total, layers, width, vocab, kv_width, linear, bytes_per_weight)


def estimate(config: RunConfig, shape: ModelShape, *, num_ranks: int, on_gpu: bool) -> Estimate:
    """Bound what a run needs on ``num_ranks`` processes."""
    budget, splits = config.generation.max_new_tokens, config.splits
    completions = _completions(config)
    tokens = sum(completions.values()) * budget
    rows = min(config.generation.max_rows, config.generation.chunk_completions)
    weights = shape.num_params * shape.bytes_per_weight
    # On a CPU decoding reads a copy in float32, laid out for products (`models.packed_weights`).
    is_packed = not on_gpu and config.generation.backend == "transformers"
    kv_token = shape.kv_token_bytes
    context = PROMPT_TOKENS + budget
    if config.generation.max_cache_tokens is not None:
        rows = max(1, min(rows, config.generation.max_cache_tokens // context))
    bandwidth = (GPU_BANDWIDTH if on_gpu else CPU_BANDWIDTH) * BANDWIDTH_SHARE
    read = PACKED_BYTES * shape.num_params if is_packed else weights
    step_seconds = (read + rows * kv_token * context / 2) / bandwidth
    shards, replicas = _copies(config, num_ranks)
    hours = tokens / rows * step_seconds / (shards * replicas) / 3600
    states = (
        splits.num_harvest * (config.rollout.num_samples + 1) * config.control_points.max_points
    )
    state_bytes = states * len(config.harvest.depths) * shape.width * 4
    lora = config.distill.rank * shape.num_layers * shape.num_linear
    share = -(-config.distill.batch_size // num_ranks // config.train.gradient_accumulation)
    layer_bytes = shape.num_layers * ACTIVATION_BYTES
    if config.train.activation_checkpointing:
        layer_bytes = shape.num_layers * INPUT_BYTES + ACTIVATION_BYTES  # one layer at a time
    layer_bytes *= 1 if config.train.dtype == "bfloat16" else 2
    activations = share * context * shape.width * layer_bytes
    activations += share * context * shape.vocab_size * 4
    sharded = num_ranks if config.train.zero_stage == 3 else 1
    generation_shards = num_ranks if config.model.sharding == "zero3" else shards
    training = shape.num_params * (2 if config.train.dtype == "bfloat16" else 4) / sharded
    generation = weights / generation_shards + rows * kv_token * context / shards
    if is_packed and shards == generation_shards == 1:
        generation += PACKED_BYTES * shape.num_params
    return Estimate(
        num_tokens=tokens,
        hours=hours,
        disk_gib=(3 * state_bytes + tokens * TOKEN_BYTES + lora * 4) / GIB,
        generate_gib=(generation + rows * shape.vocab_size * 4) / GIB + OVERHEAD_GIB,
        train_gib=(training + lora * ADAM_BYTES + activations) / GIB + OVERHEAD_GIB,
        gradient_gib=_gradient_gib(config, shape) if config.makes_directions else 0.0,
        weights_gib=weights / GIB,
        num_replicas=replicas,
    )


def _gradient_gib(config: RunConfig, shape: ModelShape) -> float:
    """Of the weights, and of what a backward pass down to the lowest wanted block keeps."""
    layers = shape.num_layers * (1 - min(config.direction_depths))
    kept = KEPT_PER_LINEAR * shape.num_linear * shape.bytes_per_weight
    activations = config.directions.max_batch_tokens * layers * kept
    weights = shape.num_params * shape.bytes_per_weight
    prompts = KEPT_PROMPTS * config.directions.max_batch_tokens * shape.kv_token_bytes
    return (weights + activations + prompts + LOGIT_BYTES) / GIB + OVERHEAD_GIB


def _copies(config: RunConfig, num_ranks: int) -> tuple[int, int]:
    """Ranks that share a copy's reading of weights, and copies that decode side by side.

    Under ZeRO-3 every rank decodes rows of its own and reads all weights, from the others; the network
    that they cross is not in the estimate.
    """
    shards = config.model.shards
    return shards, max(1, num_ranks // shards)


def _completions(config: RunConfig) -> dict[str, int]:
    """Completions of each stage, at most."""
    splits = config.splits
    settings = config.num_tried_settings
    trials = config.validation.num_completions(len(config.harvest.depths))
    methods = 1 + config.num_steered_methods
    methods += config.distill.enabled * (1 + len(config.distill.also))
    others = len(config.baselines.names)
    deployable = 2 + config.distill.enabled * (1 + len(config.distill.also))
    sampled = splits.num_test * (config.evaluate.num_samples or 0)
    controls = config.num_controls
    out_of_domain = sum(task.num_problems for task in config.evaluate.out_of_domain.values())
    rollouts = splits.num_harvest * config.rollout.num_samples
    return {
        "rollout": rollouts,
        "directions": config.makes_directions * (config.directions.num_steps - 1) * rollouts,
        "validate": config.needs_basis * config.validation.enabled * (splits.num_harvest + trials),
        "tune": splits.num_tune * (settings + 1),
        "steer": config.distill.enabled * splits.num_harvest * config.distill.num_samples,
        "baselines": splits.num_tune * others * BASELINE_COMPLETIONS,
        "evaluate": splits.num_test * (methods + others)
        + deployable * sampled
        + (deployable + controls + others) * out_of_domain,
    }
