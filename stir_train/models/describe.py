"""Describe a model by its files, its weights unread but for their hash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from stir_train.config.inputs import ModelConfig
from stir_train.models.identity import ModelIdentity, identify, stop_token_ids_of, weights_sha256
from stir_train.models.locate import explained, pretrained_arguments
from stir_train.models.pretrained import read_config, read_tokenizer

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True)
class ModelDescription:
    """A model as its files describe it, its weights unread but for their hash.

    Attributes:
        identity: The same that it has when it is loaded.
        tokenizer: Its tokenizer.
        vocab_size: Rows of its output layer.
        max_tokens: Context length in tokens.
        head_width: Of an attention head; None of a model without attention.
    """

    identity: ModelIdentity
    tokenizer: PreTrainedTokenizerBase
    vocab_size: int
    max_tokens: int
    head_width: int | None

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a completion."""
        return self.identity.stop_token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of a completion, special tokens left out."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """Load the configured model's tokenizer alone.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = pretrained_arguments(config)
    with explained(config):
        return read_tokenizer(path, settings)


def describe_model(config: ModelConfig) -> ModelDescription:
    """Describe the configured model without loading it.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = pretrained_arguments(config)
    tokenizer = load_tokenizer(config)
    revision = "" if Path(path).is_dir() else config.revision or ""
    with explained(config):
        model_config = read_config(path, settings)
        try:
            generation = GenerationConfig.from_pretrained(
                path, revision=settings["revision"], trust_remote_code=config.trust_remote_code
            )
        except OSError:
            if (Path(path) / GENERATION_CONFIG).exists():
                raise  # it is there, and cannot be read: without it, other tokens would stop
            generation = GenerationConfig.from_model_config(model_config)
        text_config = model_config.get_text_config()
        hashed = weights_sha256(
            path,
            getattr(model_config, "_commit_hash", None) or revision,
            gguf_file=settings.get("gguf_file"),
        )
    identity = identify(
        name=config.name,
        revision=revision,
        architecture=_architecture(model_config),
        weights_sha256=hashed,
        tokenizer=tokenizer,
        stop_token_ids=stop_token_ids_of(generation, tokenizer),
        size=(text_config.hidden_size, text_config.num_hidden_layers),
    )
    return ModelDescription(
        identity,
        tokenizer,
        text_config.vocab_size,
        max_tokens_of(model_config),
        head_width_of(model_config),
    )


def decoder_config(config: ModelConfig) -> dict[str, Any]:
    """The sizes of the configured model's decoder, as transformers names them.

    Raises:
        ModelError: If its files cannot be found or read.
    """
    path, settings = pretrained_arguments(config)
    with explained(config):
        found = read_config(path, settings)
    return dict(found.get_text_config().to_dict())


def max_tokens_of(config: PretrainedConfig) -> int:
    """Context length in tokens; a million where the model names none."""
    return int(getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 20)


def head_width_of(config: PretrainedConfig) -> int | None:
    """Width of an attention head; None of a model without attention."""
    text = config.get_text_config()
    num_heads = getattr(text, "num_attention_heads", None)
    width = getattr(text, "head_dim", None) or (num_heads and text.hidden_size // num_heads)
    return int(width) if width else None


def _architecture(config: PretrainedConfig) -> str:
    """The class that the model is loaded as."""
    try:
        # There is no public look-up of the class.
        found: Any = AutoModelForCausalLM._model_mapping[type(config)]  # noqa: SLF001
    except KeyError:  # its repository's own code
        return str((config.architectures or ["unknown"])[0])
    return str((found[0] if isinstance(found, tuple) else found).__name__)
