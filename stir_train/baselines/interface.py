"""What a method of comparison is: it learns from harvest problems, has settings, and answers prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from stir_train.data.prompts import Wording
from stir_train.generation.backend import (
    Ability,
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    SamplingParams,
)
from stir_train.generation.controller import Steering
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import GradedRollout, Prompt, Rollout
from stir_train.types.steering import ControlBasis
from stir_train.types.trajectory import CapturedStates

Setting = Mapping[str, float | int | str]
"""One point of a method's grid, JSON-ready."""
Parameters = Mapping[str, Tensor]
"""What a method took from the harvest problems, by name."""
STEERS = frozenset({Ability.ACT_AT_CONTROL_POINTS})
"""Of a method that steers at control points."""
EDITS = frozenset({Ability.EDIT_WEIGHTS})
"""Of a method that hooks the model's modules or changes its weights."""


class NotApplicable(Exception):  # noqa: N818 - a finding, not an error
    """The method has nothing to work with on this model and task; the message says what is missing."""


@dataclass(frozen=True)
class HarvestData:
    """What methods may learn from: harvest problems, never those of tune or test.

    Attributes:
        loaded: The frozen model.
        prompts: The problems as the run renders them.
        graded: Sampled completions without steering, graded.
        captured: Their states at control points.
        basis: The run's control basis, for methods that fold impulses into weights; None if it made none.
        blocks: Harvested decoder blocks, which methods that act in one block choose among.
    """

    loaded: LoadedModel
    prompts: Sequence[Prompt]
    graded: Sequence[GradedRollout]
    captured: CapturedStates
    basis: ControlBasis | None
    blocks: tuple[int, ...]

    def by_prompt(self) -> list[list[GradedRollout]]:
        """Completions that ended by themselves, by problem."""
        groups: dict[str, list[GradedRollout]] = {}
        for item in self.graded:
            if not item.rollout.truncated:
                groups.setdefault(item.rollout.prompt_id, []).append(item)
        return list(groups.values())


@dataclass(frozen=True)
class AnsweringContext:
    """What methods answer with.

    Attributes:
        loaded: The frozen model.
        engine: Decodes with it.
        greedy, sampled: The run's limits, greedy and at the rollout temperature.
        control: Where control points are; captures nothing.
        seed: Of the noise.
        answers_of: Responses' extracted answers as the grader reads them, empty where there is none;
            the prompts tell it of options, and whether an answer is right it does not say.
        reword: Renders the same problems in other words. What a completion was given is recorded with it, and
            its hash and length are in the results.
        answer_prompt: Token ids that ask for the answer at once.
        delimiter_ids: Vocabulary items that contain a delimiter.
    """

    loaded: LoadedModel
    engine: GenerationBackend
    greedy: SamplingParams
    sampled: SamplingParams
    control: ControlSpec
    seed: int
    answers_of: Callable[[Sequence[Prompt], Sequence[str]], list[str]]
    reword: Callable[[Sequence[Prompt], Wording], list[Prompt]]
    answer_prompt: tuple[int, ...]
    delimiter_ids: tuple[int, ...]

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        edit: AbstractContextManager[None] | None = None,
        controller: Steering | None = None,
    ) -> list[Rollout]:
        """Greedy completions, with the model edited or a controller at its control points."""
        with edit or nullcontext():
            made = self.engine.generate(
                [GenerationRequest(prompt) for prompt in prompts],
                self.greedy,
                seed=self.seed,
                control=self.control,
                controller=controller,
            )
        return list(made.rollouts)


@runtime_checkable
class Baseline(Protocol):
    """One method.

    Attributes:
        name: Its row of the results, and its directory.
        needs: What it needs the generation backend to be able to do.
    """

    name: str
    needs: frozenset[Ability]

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Learn from harvest problems.

        Raises:
            NotApplicable: If there is nothing to learn.
        """
        ...

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """The grid that is searched on the tune split."""
        ...

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Answer prompts, in order; tokens that are thrown away go to ``preview_tokens``."""
        ...


def label_of(setting: Setting) -> str:
    """A short name of a setting, also of its directory."""
    parts = [f"{k}{v:g}" if isinstance(v, float) else f"{k}{v}" for k, v in setting.items()]
    return "-".join(parts) or "only"
