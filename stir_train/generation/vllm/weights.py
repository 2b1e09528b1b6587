"""vLLM takes the weights of the model that is loaded already: the same, whatever file they came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import BaseModelLoader, register_model_loader

from stir_train.errors import ModelError

LOAD_FORMAT = "stir_train"
"""Our name among vLLM's ways of loading a model."""
BASE_LAYER, ADAPTER = ".base_layer.", ".lora_"
"""How PEFT names a layer that it has wrapped, and the parts of the adapter in it."""


def load_weights_from(model: PreTrainedModel) -> None:
    """Let vLLM's models of `LOAD_FORMAT` have the weights of a model; its adapter is left out.

    Raises:
        ModelError: While vLLM loads it, if vLLM's model lacks a weight or has more.
    """

    class Loader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not installed where types are checked
        """Gives vLLM the weights of the model that is loaded, instead of reading files."""

        def download_model(self, model_config: ModelConfig) -> None:
            """There is nothing to download."""

        def load_weights(self, model_: nn.Module, model_config: ModelConfig) -> None:  # noqa: ARG002
            """Copy every weight into vLLM's model.

            Raises:
                ModelError: If vLLM's version of the model has other weights.
            """
            load: Any = model_.load_weights
            try:
                loaded = load(_weights(model))
            except (KeyError, ValueError) as error:
                raise ModelError(_refusal(model, f"it knows no weight {error}")) from error
            left = {name for name, _ in model_.named_parameters()} - set(loaded or ())
            if left:
                raise ModelError(_refusal(model, f"it also has {', '.join(sorted(left)[:4])}"))

    register_model_loader(LOAD_FORMAT)(Loader)


def _weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names as in checkpoints; of weights that share their memory, the first."""
    known: set[int] = set()
    for name, tensor in model.state_dict().items():
        if ADAPTER in name:
            continue
        place = _part(tensor).data_ptr()
        # One at a time: a rank may have no memory for all that others hold. Whether a weight shares its
        # memory, ranks may see differently; they gather it together all the same.
        whole = _whole(tensor)
        if place not in known:
            known.add(place)
            yield name.replace(BASE_LAYER, "."), whole


def _part(tensor: Tensor) -> Tensor:
    """What this rank holds of a weight."""
    to_local = getattr(tensor, "to_local", None)
    return to_local() if to_local else tensor


def _whole(tensor: Tensor) -> Tensor:
    """A weight, gathered where ranks hold it together."""
    full_tensor = getattr(tensor, "full_tensor", None)
    return full_tensor() if full_tensor else tensor


def _refusal(model: PreTrainedModel, why: str) -> str:
    return (
        f"generation.backend=vllm: vLLM's {type(model).__name__} takes other weights than that of "
        f"transformers: {why}; use generation.backend=transformers for this model"
    )
