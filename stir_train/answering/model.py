"""A model answers: plainly, under a controller, or with its states captured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    SamplingParams,
    TokenListener,
)
from stir_train.generation.controller import Steering
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt


@dataclass(frozen=True)
class ModelAnswerer:
    """An `Answerer` over one model.

    Attributes:
        model: Its name; a student's is not the base's.
        open_backend: Gives what decodes with it, loaded when it is first asked for.
        control: Where control points are, and which blocks are captured there.
        seed: Of the sampling noise.
        make_controller: Makes what steers it, once; None decodes plainly.
        needs: What it needs the backend to be able to do.
        is_fixed_from_the_prompt_on: Whether the controller is `FixedVector`s alone, or none at all, each at a place
            that begins with the prompt, and no states are captured: then it can share its batches (`side_by_side`).
    """

    model: str
    open_backend: Callable[[], GenerationBackend]
    control: ControlSpec
    seed: int
    make_controller: Callable[[], Steering] | None = None
    needs: frozenset[Ability] = frozenset()
    is_fixed_from_the_prompt_on: bool = False

    @cached_property
    def controller(self) -> Steering | None:
        """What steers, made when it is first asked for; it keeps nothing, so every call shares it."""
        return self.make_controller() if self.make_controller else None

    def without_states(self) -> ModelAnswerer:
        """The same, but no states are kept; without a controller it can share its batches."""
        return dataclasses.replace(
            self,
            control=dataclasses.replace(self.control, capture_blocks=()),
            needs=self.needs - {Ability.CAPTURE_STATES},
            is_fixed_from_the_prompt_on=self.is_fixed_from_the_prompt_on
            or self.make_controller is None,
        )

    def open(self) -> GenerationBackend:
        """The backend over its model, loaded now if nothing needed it before."""
        return self.open_backend()

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingParams,
        listener: TokenListener | None = None,
    ) -> Answers:
        """Answer every prompt, one request per prompt and sample.

        Args:
            prompts: Problems.
            num_samples: Answers to each, told apart by their sampling noise.
            sampling: Greedy or sampled, and the token budget.
            listener: Called with every sampled token as it comes.

        Returns:
            Rollouts prompt by prompt, samples of a prompt together; decisions if something steers.
        """
        made = self.open().generate(
            [GenerationRequest(prompt, k) for prompt in prompts for k in range(num_samples)],
            sampling,
            seed=self.seed,
            control=self.control,
            controller=self.controller,
            listener=listener,
        )
        return Answers(
            made.rollouts,
            made.cost.forward_passes,
            made.states,
            None if self.controller is None else made.decisions,
        )
