"""What any backend refuses of a call before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from stir_train.errors import DataError, StageError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationBackend,
    GenerationCall,
    GenerationRequest,
    SamplingParams,
    abilities_for,
    require_abilities,
)
from stir_train.generation.controller import (
    Steering,
    controllers_of,
    previewing,
    reads_uncertainty,
)
from stir_train.types.places import PLACES_AT_PROMPT


def require_possible(backend: GenerationBackend, call: GenerationCall, *, max_tokens: int) -> None:
    """Refuse a call that the backend cannot answer as asked.

    Args:
        backend: What is asked.
        call: All that it is asked.
        max_tokens: The model's context.

    Raises:
        DataError: If a prompt is empty, its prefix fills the budget, or both exceed the context.
        StageError: If a controller needs what the backend lacks, or lacks what it needs at its place.
    """
    needs = abilities_for(call.controller)
    require_abilities(backend.name, backend.abilities, needs, "this controller")
    _require_places(call.requests, call.control, call.controller)
    _require_lengths(call.requests, call.sampling, max_tokens)


def _require_lengths(
    requests: Sequence[GenerationRequest], sampling: SamplingParams, max_tokens: int
) -> None:
    """Refuse requests that cannot be completed within their budget."""
    for request in requests:
        prompt = request.prompt
        needed = len(prompt.token_ids) + sampling.max_new_tokens
        if not prompt.token_ids:
            raise DataError(f"prompt {prompt.prompt_id} has no tokens")
        if len(request.prefix_token_ids) >= sampling.max_new_tokens:
            raise DataError(f"prompt {prompt.prompt_id}: the prefix fills the budget")
        if needed > max_tokens:
            raise DataError(
                f"prompt {prompt.prompt_id}: {len(prompt.token_ids)} tokens and "
                f"generation.max_new_tokens={sampling.max_new_tokens} exceed the model's context "
                f"of {max_tokens}; lower the budget or drop the prompt"
            )


def _require_places(
    requests: Sequence[GenerationRequest], control: ControlSpec | None, steering: Steering | None
) -> None:
    """Refuse what would silently not be steered, or not as asked."""
    controllers = controllers_of(steering)
    at_points = [c for c in controllers if c.place not in PLACES_AT_PROMPT]
    if at_points and control is None:
        raise StageError("a controller needs to know where control points are")
    if (proposer := previewing(steering)) is not None:
        if len(controllers) > 1:
            raise StageError("a controller that previews acts alone, not beside others")
        if proposer.place != "control_point":
            raise StageError(
                f"a controller that previews acts at control points, not at place {proposer.place!r}"
            )
    continued = [request for request in requests if request.prefix_token_ids]
    if continued and reads_uncertainty(steering):
        raise StageError(
            f"prompt {continued[0].prompt.prompt_id}: a controller that reads how uncertain steps were needs a "
            "completion from its beginning; the tokens that this one goes on from have no log-probabilities"
        )
    for controller in controllers:
        if controller.place not in ("everywhere", "every_token"):
            continue
        for request in requests:
            planned = {(p.place, p.block) for p in request.planned}
            if request.prefix_token_ids and (controller.place, controller.block) not in planned:
                raise StageError(
                    f"prompt {request.prompt.prompt_id}: a controller at place {controller.place!r} is "
                    "asked at the prompt's end, which a completion that is continued has behind it; "
                    "plan what it held there"
                )
