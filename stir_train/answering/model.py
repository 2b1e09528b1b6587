"""A model answers: plainly, under a controller, or with its states captured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    SamplingParams,
    TokenListener,
)
from stir_train.generation.engine import DecodeEngine
from stir_train.steering.interface import SteeringController
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt


@dataclass(frozen=True)
class ModelAnswerer:
    """An `Answerer` over one model.

    Attributes:
        model: Its name; a student's is not the base's.
        open_engine: Gives what decodes with it, loaded when it is first asked for.
        control: Where control points are, and which blocks are captured there.
        seed: Of the sampling noise.
        make_controller: Makes what steers it; None decodes plainly.
        needs: What it needs the backend to be able to do.
    """

    model: str
    open_engine: Callable[[], DecodeEngine]
    control: ControlSpec
    seed: int
    make_controller: Callable[[], SteeringController] | None = None
    needs: frozenset[str] = frozenset()

    def open(self) -> DecodeEngine:
        """What decodes."""
        return self.open_engine()

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingParams,
        listener: TokenListener | None = None,
    ) -> Answers:
        """Answer every prompt; ``listener`` is called with every sampled token."""
        controller = self.make_controller() if self.make_controller else None
        made = self.open().generate(
            [GenerationRequest(prompt, k) for prompt in prompts for k in range(num_samples)],
            sampling,
            seed=self.seed,
            control=self.control,
            controller=controller,
            listener=listener,
        )
        return Answers(
            made.rollouts,
            made.cost.forward_passes,
            made.states,
            None if controller is None else tuple(controller.decisions),
        )
