"""Put LoRA layers on a loaded model, or load an exported adapter onto one."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig
from stir_train.distributed.world import World
from stir_train.errors import ArtifactError, ModelError
from stir_train.models.load import LoadedModel, load_model, load_trainable, unsharded


@dataclass(frozen=True)
class Student:
    """A base model of its own with a fresh, trainable adapter on it."""

    base: LoadedModel
    model: PeftModel

    def recompute_activations(self) -> None:
        """Keep only each block's input for the backward pass."""
        model = base_of(self.model)
        # transformers before 5.23 has it by its older name, of which the newer ones warn.
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})

    def without_adapter(self) -> AbstractContextManager[None]:
        """Switch the adapter off: inside, it is the frozen base."""
        manager: AbstractContextManager[None] = self.model.disable_adapter()
        return manager


def make_student(
    model: ModelConfig,
    config: DistillConfig,
    *,
    seed: int,
    world: World,
    deepspeed: dict[str, Any],
) -> Student:
    """Load the base once more, in float32, and put an adapter on it. Collective if it is sharded."""
    base = load_trainable(model, world, deepspeed)
    return Student(base, add_lora(base, config, seed=seed))


def make_whole_student(model: ModelConfig, config: DistillConfig, *, seed: int) -> Student:
    """The same in this process alone, never sharded."""
    base = load_model(unsharded(model).model_copy(update={"dtype": "float32"}))
    return Student(base, add_lora(base, config, seed=seed))


def add_lora(loaded: LoadedModel, config: DistillConfig, *, seed: int) -> PeftModel:
    """Wrap the model in place with a fresh, trainable adapter named ``default``.

    Raises:
        ModelError: If no module matches ``distill.targets``.
    """
    lora = lora_config(config)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)
        try:
            with known_deprecations():
                return get_peft_model(loaded.model, lora)
        except ValueError as error:
            raise ModelError(f"distill.targets: {error}") from error


def lora_config(config: DistillConfig) -> LoraConfig:
    """PEFT's settings of an adapter."""
    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.use_rslora,
        target_modules=targets,
        bias="none",
        task_type="CAUSAL_LM",
    )


def load_adapter(loaded: LoadedModel, directory: Path) -> LoadedModel:
    """Load an exported adapter onto a freshly loaded base model, in place, frozen.

    Raises:
        ArtifactError: If PEFT cannot read it.
    """
    try:
        with known_deprecations():
            peft_model = PeftModel.from_pretrained(loaded.model, str(directory))
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{directory} cannot be loaded as a PEFT adapter: {error}") from error
    peft_model.eval().requires_grad_(requires_grad=False)
    return dataclasses.replace(loaded, model=base_of(peft_model), adapter=directory)


def adapter_rank(directory: Path) -> int:
    """The rank of an exported adapter's matrices."""
    return int(json.loads((directory / "adapter_config.json").read_text(encoding="utf-8"))["r"])


def base_of(peft_model: PeftModel) -> PreTrainedModel:
    """The transformers model inside, its LoRA layers active."""
    model = peft_model.get_base_model()
    assert isinstance(model, PreTrainedModel)
    return model


@contextmanager
def known_deprecations() -> Iterator[None]:
    """PEFT 0.21 reads a property that transformers 5.23 renames; users can do nothing about it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is dep", FutureWarning)
        yield
