"""Another method answers, under one of its settings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stir_train.answering.interface import BASE
from stir_train.baselines.interface import AnsweringContext, Baseline, Parameters, Setting
from stir_train.generation.backend import Ability, GenerationBackend, SamplingParams
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt


@dataclass(frozen=True)
class BaselineAnswerer:
    """An `Answerer` by a baseline, which samples as its paper says and answers each problem once.

    Attributes:
        method: The baseline.
        setting: A point of its grid.
        load_parameters: Reads what it took from the harvest split.
        open_context: Gives what it answers with; loads the model when it is first called.
    """

    method: Baseline
    setting: Setting
    load_parameters: Callable[[], Parameters]
    open_context: Callable[[], AnsweringContext]

    @property
    def model(self) -> str:
        """`BASE`: baselines answer with the run's own model."""
        return BASE

    @property
    def needs(self) -> frozenset[Ability]:
        """What the baseline needs of the backend to steer or read as its paper says."""
        return self.method.needs

    def open(self) -> GenerationBackend:
        """The backend over the run's own model, loaded now if nothing needed it before."""
        return self.open_context().engine

    def answer(
        self, prompts: Sequence[Prompt], *, num_samples: int, sampling: SamplingParams
    ) -> Answers:
        """Answer every prompt once, within the token budget of ``sampling``.

        Args:
            prompts: Problems, in the order of the answers.
            num_samples: 1.
            sampling: Gives the token budget; how the method samples is its paper's.

        Raises:
            ValueError: If more than one answer is asked for, or another budget than the run's.
        """
        if num_samples != 1:
            raise ValueError(f"a baseline answers each problem once, not {num_samples} times")
        context = self.open_context()
        if sampling.max_new_tokens != context.greedy.max_new_tokens:
            raise ValueError("a baseline answers within the run's own token budget")
        rollouts = self.method.answer(context, self.load_parameters(), self.setting, prompts)
        return Answers(tuple(rollouts), sum(rollout.forward_passes for rollout in rollouts))
