"""Prompts, sampled completions, and what a grader says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stir_train.types.places import Place

CHECKER_FAILURES = ("timed out", "crashed")
"""Reasons of a grade that say nothing about the answer."""

MUCH_CUT_OFF = 0.5
"""Share of rollouts cut off from which on the budget, and not the model, is what failed."""
FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Gold:
    """What a grader compares a response with.

    Attributes:
        answer: The gold answer, for multiple choice a letter.
        choices: The texts of the options, in the order of their letters.
        question: The problem as its source states it; empty where it is not known.
    """

    answer: str
    choices: tuple[str, ...] = ()
    question: str = ""


@dataclass(frozen=True)
class Prompt:
    """One problem as the model sees it.

    Attributes:
        prompt_id: Hash of the normalised question; equal questions have equal ids.
        question: The problem as the dataset states it.
        text: The rendered prompt.
        token_ids: ``Int[T]``, what is fed.
        answer: The gold answer.
        kind: A label for breakdowns (sub-family, level); may be empty.
        choices: The texts of the options of a multiple-choice problem.
    """

    prompt_id: str
    question: str
    text: str
    token_ids: tuple[int, ...]
    answer: str
    kind: str = ""
    choices: tuple[str, ...] = ()

    @property
    def gold(self) -> Gold:
        """What its responses are graded against."""
        return Gold(self.answer, self.choices, self.question)


@dataclass(frozen=True)
class Impulse:
    """One committed injection: ``h[block] += strength * direction`` at the tokens of its place.

    Attributes:
        token_index: Index in the completion of the control-point token at which it was decided; -1 is the
            prompt's last token.
        block: 0-based decoder block.
        entry: Row of the control basis, or -1 for a vector that is in no basis.
        strength: The multiplier of the entry's direction.
        place: That token alone, or others too; see `tokens_of`.
    """

    token_index: int
    block: int
    entry: int
    strength: float
    place: Place = "control_point"


@dataclass(frozen=True)
class Rollout:
    """One completion.

    Attributes:
        prompt_id: Which problem.
        sample: Which of its ``N`` samples, from 0.
        prompt_token_ids: ``Int[T]``.
        token_ids: ``Int[T']``, the completion, its stop token included when there is one.
        logprobs: ``Float[T']`` nats, under the model's own distribution at temperature 1.
        control_points: ``Int[S]``, index in ``token_ids`` of each control point.
        finish_reason: ``stop``, or ``length`` when the token budget cut it off.
        impulses: What a controller injected, in order.
        preview_tokens: Tokens decoded in previews and thrown away.
        forward_passes: Model calls that this completion took part in.
    """

    prompt_id: str
    sample: int
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    control_points: tuple[int, ...]
    finish_reason: FinishReason
    impulses: tuple[Impulse, ...] = ()
    preview_tokens: int = 0
    forward_passes: int = 0

    @property
    def truncated(self) -> bool:
        """Whether the token budget cut the completion off."""
        return self.finish_reason == "length"

    @property
    def total_tokens(self) -> int:
        """Every generated token, previews included."""
        return len(self.token_ids) + self.preview_tokens


@dataclass(frozen=True)
class Grade:
    """A grader's word on one completion.

    Attributes:
        correct: Whether it answers as the gold answer does.
        extracted: The answer found; empty when there was none.
        reason: Why, in a word or two.
        had_marker: Whether an answer stands where the task asked for it (`task.answer_marker`).
    """

    correct: bool
    extracted: str
    reason: str
    had_marker: bool = False


@dataclass(frozen=True)
class RolloutOutcome:
    """How a rollout ended, without its tokens; ``num_tokens`` are of the completion."""

    prompt_id: str
    sample: int
    num_tokens: int
    correct: bool
    truncated: bool
    reward: float


@dataclass(frozen=True)
class GradedRollout:
    """A completion with its text, grade and reward ``R = 1[correct] - penalty * length share``."""

    rollout: Rollout
    text: str
    grade: Grade
    reward: float

    @property
    def outcome(self) -> RolloutOutcome:
        """What statistics over rollouts need of it, without its tokens."""
        made = self.rollout
        return RolloutOutcome(
            made.prompt_id,
            made.sample,
            len(made.token_ids),
            self.grade.correct,
            made.truncated,
            self.reward,
        )
