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
        """The run's own."""
        return BASE

    @property
    def needs(self) -> frozenset[Ability]:
        """As the baseline says."""
        return self.method.needs

    def open(self) -> GenerationBackend:
        """What decodes."""
        return self.open_context().engine

    def answer(
        self, prompts: Sequence[Prompt], *, num_samples: int, sampling: SamplingParams
    ) -> Answers:
        """Answer every prompt once, within the token budget of ``sampling``.

        Raises:
            ValueError: If more than one answer is asked for.
        """
        if num_samples != 1:
            raise ValueError(f"a baseline answers each problem once, not {num_samples} times")
        context = self.open_context()
        if sampling.max_new_tokens != context.greedy.max_new_tokens:
            raise ValueError("a baseline answers within the run's own token budget")
        rollouts = self.method.answer(context, self.load_parameters(), self.setting, prompts)
        return Answers(tuple(rollouts), sum(rollout.forward_passes for rollout in rollouts))
