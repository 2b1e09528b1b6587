"""The generation backends: what a configuration calls each, and where it is. Torch-free.

To add one, write its package in ``stir_train/generation`` and a line here.
"""

from __future__ import annotations

BACKENDS: dict[str, str] = {
    "transformers": "stir_train.generation.transformers.engine:DecodeEngine",
    "vllm": "stir_train.generation.vllm.engine:VLLMEngine",
}
"""Import paths by their value of ``generation.backend``; imported only where one is asked for."""


def require_backend(name: str) -> str:
    """The name itself, if there is such a backend.

    Raises:
        ValueError: If there is none.
    """
    if name not in BACKENDS:
        raise ValueError(f"expected {' or '.join(BACKENDS)}")
    return name
