"""Which attention heads vLLM computes; it finds out at the first request. Without importing vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NARROWEST_ON_CPUS = 32
"""Of vLLM 0.32."""


def too_narrow(name: str, config: Mapping[str, Any], device: str) -> str | None:
    """Why vLLM could answer nothing with a model, if it could not.

    Args:
        name: The model's, for the message.
        config: Its ``config.json``.
        device: Type of the device, as ``cpu``.
    """
    text = config.get("text_config", config)
    width = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    if device != "cpu" or width >= NARROWEST_ON_CPUS:
        return None
    return (
        f"model.name: vLLM's attention on CPUs takes heads of {NARROWEST_ON_CPUS} and more, and those of {name} "
        f"are {width} wide, as the embedded models' are: use another model, or generation.backend=transformers"
    )
