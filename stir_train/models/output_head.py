"""The output layer of a model, apart from its blocks: logits of a few rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from stir_train.errors import ModelError
from stir_train.models.load import LoadedModel

LOGITS_AT_ONCE = 1 << 25
"""Logits held at a time: 128 MiB in float32."""
HEAD_TOLERANCE = 0.02
"""Difference from the model's own logits, relative to the largest, that rounding explains."""


class OutputHead:
    """The output layer of a model, apart from its blocks: full logits of a batch are never held.

    Attributes:
        rows_at_once: States whose logits fill the bound.
    """

    def __init__(self, loaded: LoadedModel, *, logits_at_once: int = LOGITS_AT_ONCE) -> None:
        """Find the layer, and what the architecture does to its logits.

        Raises:
            ModelError: If the model has no output layer.
        """
        layer = loaded.model.get_output_embeddings()
        if layer is None:
            raise ModelError(f"{loaded.identity.architecture} has no output embeddings")
        self._layer: nn.Module = layer
        self._architecture = loaded.identity.architecture
        config = loaded.model.config.get_text_config()
        self.rows_at_once = max(1, logits_at_once // int(config.vocab_size))
        self._scale = float(getattr(config, "logit_scale", None) or 1)
        self._scale /= float(getattr(config, "logits_scaling", None) or 1)
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)

    @property
    def is_trained(self) -> bool:
        """Whether the layer has weights to learn, as a LoRA on it."""
        return any(parameter.requires_grad for parameter in self._layer.parameters())

    def logits(self, states: Float[Tensor, "R D"], *, adapted: bool = True) -> Float[Tensor, "R V"]:
        """The model's logits, in float32 or better.

        Args:
            states: What the layer is fed.
            adapted: By a LoRA on the layer, if there is one.
        """
        layer = self._layer
        if not adapted and isinstance(layer, BaseTunerLayer):
            layer = layer.get_base_layer()
        raw = layer(states)
        logits = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self._scale != 1:
            logits = logits * self._scale
        return logits if self._softcap is None else (logits / self._softcap).tanh() * self._softcap

    @contextmanager
    def apart(self, num_through: int = 0) -> Iterator[list[Float[Tensor, "B T D"]]]:
        """Collect what passes would feed to the layer, and let that many positions of it through."""
        seen: list[Tensor] = []

        def hook(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            seen.append(inputs[0])
            # Contiguous, or the product would copy the whole weight.
            return (inputs[0][:1, :num_through].detach().contiguous(), *inputs[1:])

        handle = self._layer.register_forward_pre_hook(hook)
        try:
            yield seen
        finally:
            handle.remove()

    def require_equal(
        self, states: Float[Tensor, "B T D"], model_logits: Float[Tensor, "1 1 V"]
    ) -> None:
        """Check the logits of the first position, which `apart` let through, against the model's.

        Raises:
            ModelError: If the architecture does something to logits that is not known here.
        """
        wanted = model_logits[0].to(torch.promote_types(model_logits.dtype, torch.float32))
        with torch.no_grad():
            error = (self.logits(states[:1, 0]) - wanted).abs().max()
        if error > HEAD_TOLERANCE * wanted.abs().max():
            raise ModelError(
                f"{self._architecture} changes logits after its output layer in a way that is not "
                f"known: they differ by up to {float(error):.3g}; gradients of it would be wrong"
            )
