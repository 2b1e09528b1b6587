"""What generates: requests and results, the protocol of a backend, and what a backend is able to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.errors import StageError
from stir_train.generation.controller import (
    Steering,
    controllers_of,
    previewing,
    reads_uncertainty,
)
from stir_train.generation.noise import row_keys
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.steering import SteeringDecision
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen, and when to stop.

    Attributes:
        temperature: 0 is greedy.
        top_p: Nucleus mass; 1 keeps all.
        top_k: Keep the k likeliest; 0 keeps all.
        repetition_penalty: Divides (or multiplies, when negative) the logits of seen tokens.
        max_new_tokens: Token budget.
        stop_token_ids: A completion ends with one of these, which is kept.
    """

    max_new_tokens: int
    stop_token_ids: tuple[int, ...] = ()
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


@dataclass(frozen=True)
class PlannedImpulse:
    """A recorded injection to replay: ``h[block] += delta`` at the tokens of a place.

    Attributes:
        token_index: Where it was decided; -1 is the prompt's last token.
        block: Decoder block.
        delta: What is added.
        place: That token alone, or others too. What is held goes on after the prefix.
    """

    token_index: int
    block: int
    delta: Float[Tensor, "D"]
    place: Place = "control_point"


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to make.

    Attributes:
        prompt: The problem.
        sample: Which of its samples; with the seed and the prompt it determines the noise.
        prefix_token_ids: Completion tokens that are already there and are continued. A controller is
            asked about what follows them alone; what was added before is ``planned``.
        planned: Impulses to replay in the prompt and the prefix.
    """

    prompt: Prompt
    sample: int = 0
    prefix_token_ids: tuple[int, ...] = ()
    planned: tuple[PlannedImpulse, ...] = ()


@dataclass(frozen=True)
class ControlSpec:
    """Where control points are, and which blocks to capture there.

    Attributes:
        automaton: Finds the control-point tokens.
        max_points: Later control points are recorded but neither captured nor steered.
        capture_blocks: Blocks whose state is kept; empty captures nothing.
    """

    automaton: ControlPointAutomaton
    max_points: int
    capture_blocks: tuple[int, ...] = ()


TokenListener = Callable[[int, int], None]
"""Called with (index of the request, token id) for every sampled token, in order."""


@dataclass(frozen=True)
class GenerationCall:
    """The arguments of one `GenerationBackend.generate`."""

    requests: Sequence[GenerationRequest]
    sampling: SamplingParams
    seed: int
    control: ControlSpec | None = None
    controller: Steering | None = None
    listener: TokenListener | None = None

    def noise_keys(self) -> list[int]:
        """The key of each request's random numbers."""
        rows = [(request.prompt.prompt_id, request.sample) for request in self.requests]
        return row_keys(self.seed, rows).tolist()


@dataclass
class GenerationCost:
    """What a call cost. Passes are model calls; token-forwards are rows times tokens in them."""

    forward_passes: int = 0
    prefill_passes: int = 0
    preview_passes: int = 0
    token_forwards: int = 0

    def add(self, other: GenerationCost) -> None:
        """Add another call's cost, in place."""
        self.forward_passes += other.forward_passes
        self.prefill_passes += other.prefill_passes
        self.preview_passes += other.preview_passes
        self.token_forwards += other.token_forwards


@dataclass(frozen=True)
class GenerationResult:
    """Completions in request order, what belongs to them in the same order, and the cost.

    Attributes:
        rollouts: Completions.
        states: Captured at their control points; None if none were asked for.
        cost: Of the call.
        decisions: What the controllers decided along each completion; one that never acts decides
            nothing.
    """

    rollouts: tuple[Rollout, ...]
    states: CapturedStates | None
    cost: GenerationCost = field(default_factory=GenerationCost)
    decisions: tuple[SteeringDecision, ...] = ()


class Ability(StrEnum):
    """What a backend may be able to do besides completing prompts."""

    CAPTURE_STATES = "capture states"
    REPLAY_IMPULSES = "replay impulses"
    PREVIEW = "preview"
    EDIT_WEIGHTS = "run under edited weights, logits or activations"
    STREAM = "stream tokens"
    ACT_AT_PROMPT_END = "act at the prompt's end"
    ACT_AT_CONTROL_POINTS = "act at control points"
    HOLD_OVER_SEGMENTS = "hold a vector over a segment"
    HOLD_EVERYWHERE = "hold a vector over the completion"
    ACT_AT_EVERY_TOKEN = "act at every token, the prompt's too"
    TELL_UNCERTAINTY = "tell a controller how uncertain steps were"


ABILITY_OF_PLACE: dict[Place, Ability] = {
    "prompt_end": Ability.ACT_AT_PROMPT_END,
    "control_point": Ability.ACT_AT_CONTROL_POINTS,
    "segment": Ability.HOLD_OVER_SEGMENTS,
    "everywhere": Ability.HOLD_EVERYWHERE,
    "every_token": Ability.ACT_AT_EVERY_TOKEN,
}
"""What a controller needs a backend to do, by its place."""


@runtime_checkable
class GenerationBackend(Protocol):
    """Anything that can complete requests, under a controller or without.

    Attributes:
        name: Its value of ``generation.backend``.
        abilities: What it can do; ``generate`` refuses, by name, what is not among them.
        collective_forward: Keeps ranks in step that can run the model only together; None otherwise.
    """

    @property
    def name(self) -> str:
        """Its value of ``generation.backend``."""
        ...

    @property
    def abilities(self) -> frozenset[Ability]:
        """What its ``generate`` accepts; whatever needs another ability is refused before anything runs."""
        ...

    @property
    def collective_forward(self) -> CollectiveForward | None:
        """Keeps ranks in step that can run the model only together."""
        ...

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingParams,
        *,
        seed: int,
        control: ControlSpec | None = None,
        controller: Steering | None = None,
        listener: TokenListener | None = None,
    ) -> GenerationResult:
        """Complete every request.

        Args:
            requests: In the order of the result.
            sampling: How tokens are chosen.
            seed: Of the noise, with each request's prompt and sample.
            control: Where control points are, and what to capture there.
            controller: Who steers; several act in the same passes.
            listener: Called with every sampled token.
        """
        ...

    def close(self) -> None:
        """Give memory back; a later call takes it again."""
        ...


def abilities_for(steering: Steering | None) -> frozenset[Ability]:
    """What a backend must be able to do for one or several controllers."""
    needs = {ABILITY_OF_PLACE[controller.place] for controller in controllers_of(steering)}
    if previewing(steering):
        needs.add(Ability.PREVIEW)
    if reads_uncertainty(steering):
        needs.add(Ability.TELL_UNCERTAINTY)
    return frozenset(needs)


def require_abilities(
    backend: str, abilities: frozenset[Ability], needs: frozenset[str], method: str
) -> None:
    """Refuse a method that needs what a backend lacks.

    Args:
        backend: Its name.
        abilities: What it can do.
        needs: What the method needs.
        method: What is refused, as a user knows it.

    Raises:
        StageError: If anything is missing.
    """
    missing = sorted(needs - abilities)
    if missing:
        raise StageError(
            f"{method} needs a backend that can {' and '.join(missing)}, and "
            f"generation.backend={backend} cannot; choose another backend, or leave it out"
        )
