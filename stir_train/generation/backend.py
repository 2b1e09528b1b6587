"""What generates: requests and results, and the protocols of a backend and of a controller."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.types.rollout import Prompt, Rollout
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
    """A recorded injection to replay: ``h[block] += delta`` at one completion token."""

    token_index: int
    block: int
    delta: Float[Tensor, "D"]


@dataclass(frozen=True)
class GenerationRequest:
    """One completion to make.

    Attributes:
        prompt: The problem.
        sample: Which of its samples; with the seed and the prompt it determines the noise.
        prefix_token_ids: Completion tokens that are already there and are continued.
        planned: Impulses to replay inside the prefix.
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


@dataclass(frozen=True)
class ControlBatch:
    """The rows of the current pass that feed a control-point token.

    Attributes:
        prompt_ids, samples: ``[R]``, which rollouts.
        points: ``Int[R]``, 1-based control point ``m``.
        token_indices: ``[R]``, index of the token in the completion.
    """

    prompt_ids: tuple[str, ...]
    samples: tuple[int, ...]
    points: Int[Tensor, "R"]
    token_indices: tuple[int, ...]


@dataclass(frozen=True)
class ImpulseBatch:
    """What a controller injects into the rows of a `ControlBatch`.

    Attributes:
        fires: ``Bool[R]``; rows that are left alone stay bitwise untouched.
        deltas: ``Float[R D]``, added to the state where ``fires``.
        entries: ``Int[R]``, basis row or -1.
        strengths: ``Float[R]``.
    """

    fires: Bool[Tensor, "R"]
    deltas: Float[Tensor, "R D"]
    entries: Int[Tensor, "R"]
    strengths: Float[Tensor, "R"]


@dataclass(frozen=True)
class Proposal:
    """Candidates to preview before deciding.

    Attributes:
        deltas: ``Float[R L D]``, what each preview injects.
        valid: ``Bool[R L]``; a row without a valid candidate is not previewed.
    """

    deltas: Float[Tensor, "R L D"]
    valid: Bool[Tensor, "R L"]


TokenListener = Callable[[int, int], None]
"""Called with (index of the request, token id) for every sampled token, in order."""


@runtime_checkable
class Controller(Protocol):
    """Decides at control points, inside the pass: at no extra pass.

    Attributes:
        block: The block it injects into.
        reads: The blocks whose states it is given, ascending; the last is ``block``. ``Float[R W]``
            holds them side by side, so of one that reads its own block alone ``W`` is ``D``.
    """

    block: int
    reads: tuple[int, ...]

    def reset(self) -> None:
        """Forget what was decided: the same requests are about to be started again."""
        ...

    def decide(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> ImpulseBatch:
        """Choose impulses from the states alone."""
        ...


@runtime_checkable
class PreviewingController(Controller, Protocol):
    """A controller that may decide after previews of what it proposes."""

    preview_tokens: int
    """Tokens per preview; 0 means that ``decide`` is called, as for any other controller."""

    def propose(self, states: Float[Tensor, "R W"], batch: ControlBatch) -> Proposal:
        """Choose what to preview."""
        ...

    def commit(
        self,
        states: Float[Tensor, "R W"],
        batch: ControlBatch,
        gains: Float[Tensor, "R L"],
    ) -> ImpulseBatch:
        """Choose impulses, given each preview's mean token log-probability over the null's."""
        ...


def previewing(controller: Controller | None) -> PreviewingController | None:
    """The controller, if it wants to see previews before it decides."""
    if isinstance(controller, PreviewingController) and controller.preview_tokens:
        return controller
    return None


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
    """Completions in request order, captured states in the same order, and the cost."""

    rollouts: tuple[Rollout, ...]
    states: CapturedStates | None
    cost: GenerationCost = field(default_factory=GenerationCost)


@runtime_checkable
class GenerationBackend(Protocol):
    """Anything that can complete requests under a controller."""

    def generate(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingParams,
        *,
        seed: int,
        control: ControlSpec | None = None,
        controller: Controller | None = None,
        listener: TokenListener | None = None,
    ) -> GenerationResult:
        """Complete every request."""
        ...


def no_impulses(states: Float[Tensor, "R D"]) -> ImpulseBatch:
    """The batch that leaves every row alone."""
    num_rows = states.shape[0]
    return ImpulseBatch(
        fires=torch.zeros(num_rows, dtype=torch.bool, device=states.device),
        deltas=torch.zeros_like(states),
        entries=torch.full((num_rows,), -1, device=states.device),
        strengths=torch.zeros(num_rows, device=states.device),
    )
