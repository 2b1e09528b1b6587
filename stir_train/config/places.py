"""Where a vector is added along a rollout, by name: as settings say it, and as controllers act. Torch-free."""

from __future__ import annotations

from typing import Literal

Place = Literal["prompt_end", "control_point", "segment", "everywhere", "every_token"]
"""``prompt_end``: the prompt's last token. ``control_point``: the control-point tokens (published).
``segment``: each control-point token and every token after it, up to the next control point.
``everywhere``: the prompt's last token and every completion token. ``every_token``: the same and the
rest of the prompt too, as control vectors in llama.cpp and `steered` in lm-eval act."""


def estimated_at(place: Place) -> Place:
    """The place whose gradient gives the direction of a place."""
    return "everywhere" if place == "every_token" else place
