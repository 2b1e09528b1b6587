"""Where a vector is added along a rollout, by name, and which tokens that comes to.

Token indices count from the completion's first token, 0; the prompt's last token, which is control
point 0, is -1, and the prompt's first is ``-len(prompt)``. A completion's last token is never fed, so
nothing is added at it.
"""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.config.places import Place as Place

PLACES_AT_PROMPT = frozenset({"prompt_end", "everywhere", "every_token"})
"""Places whose vector is decided at the prompt's last token; at the others, at control points."""
HELD_PLACES = frozenset({"segment", "everywhere", "every_token"})
"""Places whose vector goes on being added at the tokens that follow."""
PROMPT_END = -1
"""Token index of the prompt's last token."""


def tokens_of(
    place: Place,
    token_index: int,
    control_points: Sequence[int],
    *,
    num_prompt_tokens: int,
    last: int,
) -> tuple[int, int]:
    """The first and the last token at which a vector decided at a token is added.

    Args:
        place: Where it acts.
        token_index: Where it was decided.
        control_points: Token indices of the rollout's control points, ascending.
        num_prompt_tokens: Length of the prompt.
        last: Token index of the last token that is fed.
    """
    if place not in HELD_PLACES:
        return token_index, token_index
    if place == "segment":
        following = next((point for point in control_points if point > token_index), last + 1)
        return token_index, min(last, following - 1)
    return (-num_prompt_tokens if place == "every_token" else token_index), last
