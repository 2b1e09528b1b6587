"""Settings whose defaults fit the embedded models, and what they are for every other model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stir_train.config.filling import filled_in

EMBEDDED_PREFIX = "embedded/"
"""Before the name of a model that comes with the package."""
PRETRAINED: Mapping[str, Any] = {
    # Usual for LoRA on a pretrained model; the embedded ones are a thousand times smaller, and learn at ten times that.
    "distill.learning_rate": 2e-4,
    # Logits of a pretrained model run to tens, and rounding grows with them and with depth.
    "distill.logit_tolerance": 0.05,
}
"""Values of settings by dotted key."""


def with_pretrained(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fill in what the values leave out, if they name a model that is not embedded."""
    model = values.get("model")
    name = model.get("name") if isinstance(model, Mapping) else getattr(model, "name", None)
    if not isinstance(name, str) or name.startswith(EMBEDDED_PREFIX):
        return dict(values)
    return filled_in(values, PRETRAINED)
