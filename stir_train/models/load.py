"""Load a frozen causal language model, and identify it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from stir_train.config.inputs import SPREAD, ModelConfig
from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.distributed.world import World, alone
from stir_train.errors import ModelError
from stir_train.models.blocks import find_blocks
from stir_train.models.describe import load_tokenizer, max_tokens_of
from stir_train.models.identity import ModelIdentity, identify_model
from stir_train.models.locate import explained, locate_model, pretrained_arguments
from stir_train.models.pretrained import read_config
from stir_train.models.sharding import (
    load_partitioned,
    load_spread,
    load_tensor_parallel,
    load_zero3,
)

_BLOCK_NUMBER = re.compile(r"\.[0-9]+\.")


@dataclass(frozen=True)
class LoadedModel:
    """A frozen model in evaluation mode with its tokenizer, blocks and identity.

    ``is_sharded`` if ranks can run it only together, and ``collective_forward`` if they do so on work of
    their own. ``stored_dtype`` is that of its files, whatever it was loaded in. ``adapter`` is the directory
    of the adapter on it, if it has one.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    blocks: nn.ModuleList
    identity: ModelIdentity
    is_sharded: bool = False
    collective_forward: CollectiveForward | None = None
    input_device: torch.device | None = None
    stored_dtype: torch.dtype | None = None
    adapter: Path | None = None

    @property
    def device(self) -> torch.device:
        """Where the model's inputs go."""
        return self.input_device or self.model.device

    @property
    def vocab_size(self) -> int:
        """Rows of the output layer, which may be more than the tokenizer has tokens."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def pad_token_id(self) -> int:
        """What masked positions are fed: any row of the embedding, so 0 where padding has none."""
        pad = self.tokenizer.pad_token_id
        return int(pad) if pad is not None and pad < self.vocab_size else 0

    @property
    def max_tokens(self) -> int:
        """Context length in tokens."""
        return max_tokens_of(self.model.config)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a completion."""
        return self.identity.stop_token_ids


def load_model(config: ModelConfig, world: World | None = None) -> LoadedModel:
    """Load and freeze the configured model. Collective if it is sharded.

    Args:
        config: Which model, and how to hold it; device ``auto`` takes the GPU of the local rank.
        world: The processes of the launch; None if this one is by itself.

    Raises:
        ModelError: If it cannot be found or read, its blocks are not recognised, or the launch cannot
            hold it as configured.
    """
    world = world or alone()
    path, settings = pretrained_arguments(config)
    spread = config.device == SPREAD
    device = resolve_device("auto" if spread else config.device, world.launch.local_rank)
    settings["dtype"] = resolve_dtype(config.dtype, device)
    collective_forward = None
    with explained(config):
        tokenizer = load_tokenizer(config)
        if config.sharding == "tensor":
            model = load_tensor_parallel(path, settings, world, config.shards, device)
        elif config.sharding == "zero3":
            model, collective_forward = load_zero3(path, settings, world, settings["dtype"])
        elif spread:
            model, device = load_spread(path, settings, world, config.max_memory)
        else:
            model = _load_whole(path, settings, device)
    model.eval().requires_grad_(requires_grad=False)
    loaded = _as_loaded(config, model, tokenizer, collective_forward)
    return replace(loaded, input_device=device) if spread else loaded


def _load_whole(path: str, settings: dict[str, Any], device: torch.device) -> PreTrainedModel:
    """Load in this process, and make sure that every weight came from the files and is a number.

    Raises:
        ModelError: If not: transformers fills what is missing with random numbers and warns at most.
    """
    if "gguf_file" in settings:
        settings = settings | {"config": read_config(path, settings)}
    loaded: Any = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **settings)
    model: PreTrainedModel = loaded[0]
    found: dict[str, Any] = loaded[1]
    wrong = [
        f"{what}: {', '.join(sorted(map(str, names))[:4])} ({len(names)} in all)"
        for what, names in (
            ("missing from its files", found["missing_keys"]),
            ("of another shape than its config says", found["mismatched_keys"]),
            ("of blocks that its config leaves out", _left_out(model, found["unexpected_keys"])),
        )
        if names
    ]
    if wrong:
        raise ModelError(
            f"model.name: the weights in {path} are not those of the model that its config "
            f"describes; {'; '.join(wrong)}. Get the checkpoint again, or mend config.json"
        )
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            raise ModelError(
                f"model.name: {name} in {path} holds values that are not finite numbers; the "
                "checkpoint is damaged, or was saved from a training that diverged"
            )
    return model.to(device)  # type: ignore[arg-type]  # transformers wraps the signature


def _left_out(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Those of some names that would be weights of one more block: layers.7 of a model with layers.0 to 6."""
    held = {name for name, _ in model.named_parameters()}
    return [name for name in names if _BLOCK_NUMBER.sub(".0.", name, count=1) in held]


def load_trainable(config: ModelConfig, world: World, deepspeed: dict[str, Any]) -> LoadedModel:
    """Load a base for training, in float32: whole, or if the model is sharded by ZeRO-3. Collective.

    Args:
        config: Which model.
        world: The processes that will train it.
        deepspeed: The configuration of the engine that is opened on it afterwards.
    """
    config = config.model_copy(update={"dtype": "float32"})
    if config.sharding == "none":
        return load_model(config, world)
    path, settings = pretrained_arguments(config)
    with explained(config):
        tokenizer = load_tokenizer(config)
        model = load_partitioned(path, settings | {"dtype": torch.float32}, world, deepspeed)
    model.eval().requires_grad_(requires_grad=False)
    return _as_loaded(config, model, tokenizer, None)


def unsharded(config: ModelConfig) -> ModelConfig:
    """The settings for one process that needs the model whole: in its own memory, if it is sharded."""
    if config.sharding == "none" and config.device != SPREAD:
        return config
    return config.model_copy(update={"sharding": "none", "shards": 1, "device": "cpu"})


def _as_loaded(
    config: ModelConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    collective_forward: CollectiveForward | None,
) -> LoadedModel:
    blocks = find_blocks(model, path=config.blocks_path)
    revision = "" if Path(locate_model(config)[0]).is_dir() else config.revision or ""
    identity = identify_model(
        model,
        tokenizer,
        name=config.name,
        revision=revision,
        gguf_file=locate_model(config)[1],
    )
    path, settings = pretrained_arguments(config)
    described: Any = read_config(path, settings)
    return LoadedModel(
        model,
        tokenizer,
        blocks,
        identity,
        is_sharded=config.sharding != "none",
        collective_forward=collective_forward,
        stored_dtype=described.dtype,
    )


def resolve_device(device: str, local_rank: int = 0) -> torch.device:
    """Resolve ``auto`` to this rank's GPU when there is one.

    Raises:
        ModelError: If a GPU is named that is not here.
    """
    if device != "auto":
        found = torch.device(device)
        if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
            raise ModelError(
                f"model.device: there is no {device} here: torch finds {torch.cuda.device_count()} GPUs; "
                "use auto, or cpu"
            )
        return found
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank % torch.cuda.device_count())


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Resolve ``auto``: bfloat16 on a GPU, float32 on a CPU."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[dtype]
