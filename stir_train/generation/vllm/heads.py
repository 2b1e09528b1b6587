"""Which attention heads vLLM computes; it finds out at the first request. Without importing vLLM."""

from __future__ import annotations

from stir_train.errors import ModelError

NARROWEST_ON_CPUS = 32
"""Of vLLM 0.32."""


def require_heads(name: str, head_width: int | None, device: str) -> None:
    """Refuse a model with which vLLM could answer nothing.

    Args:
        name: The model's.
        head_width: Of an attention head; None of a model without attention.
        device: Type of the device, as ``cpu``.

    Raises:
        ModelError: If it has no attention, or vLLM's attention there takes no heads so narrow.
    """
    if head_width is None:
        raise ModelError(
            f"generation.backend=vllm: {name} has no attention heads, and we steer no other blocks"
        )
    if device == "cpu" and head_width < NARROWEST_ON_CPUS:
        raise ModelError(
            f"model.name: vLLM's attention on CPUs takes heads of {NARROWEST_ON_CPUS} and more, and those of "
            f"{name} are {head_width} wide, as the embedded models' are: use another model, or our own engine "
            "(generation.backend=transformers, stir-train generate)"
        )
