"""A steered model answers, given what it answers unsteered: decoded is what follows its first impulse."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stir_train.answering.interface import Answerer
from stir_train.answering.model import ModelAnswerer
from stir_train.generation.backend import (
    Ability,
    GenerationBackend,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
    TokenListener,
)
from stir_train.generation.foresight import Foresight, foresee, is_foreseeable
from stir_train.types.answers import Answers
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.steering import SteeringDecision
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class GreedyAnswers:
    """Greedy answers to some problems, a rollout each, and their states at control points."""

    rollouts: tuple[Rollout, ...]
    states: CapturedStates


@dataclass(frozen=True)
class ContinuedAnswerer:
    """An `Answerer` by a controller that takes over greedy answers up to where it first acts.

    A completion goes on from before that control point: the engine feeds its token, asks the controller and
    steers as it always does. A controller that acts elsewhere, or reads other blocks than those whose states
    there are, answers from the beginning; fixed vectors that act from the prompt on do not ask for greedy answers at all.

    Attributes:
        steered: Answers from the beginning.
        greedy: Gives the same model's greedy answers under the same token budget, states on the device where the
            controller expects them.
    """

    steered: ModelAnswerer
    greedy: Callable[[Sequence[Prompt]], GreedyAnswers]

    @property
    def model(self) -> str:
        """The steered model's name."""
        return self.steered.model

    @property
    def needs(self) -> frozenset[Ability]:
        """What the controller needs the backend to be able to do."""
        return self.steered.needs

    def open(self) -> GenerationBackend:
        """The backend over the model."""
        return self.steered.open()

    def answer(
        self,
        prompts: Sequence[Prompt],
        *,
        num_samples: int,
        sampling: SamplingParams,
        listener: TokenListener | None = None,
    ) -> Answers:
        """Answer every prompt once, greedily.

        Args:
            prompts: Problems that there are greedy answers to.
            num_samples: 1.
            sampling: Greedy, with the token budget of the greedy answers.
            listener: Called with every token that is decoded.

        Returns:
            Rollouts as if decoded from the beginning, and how many tokens of each were not.

        Raises:
            ValueError: If several answers are asked for, or sampled ones.
        """
        if num_samples != 1 or sampling.temperature > 0:
            raise ValueError("only one greedy answer can be taken over from a greedy one")
        steered = self.steered
        if steered.is_fixed_from_the_prompt_on:
            # It acts before their first token, and nobody waits for greedy answers: there may be none yet.
            return steered.answer(prompts, num_samples=1, sampling=sampling, listener=listener)
        known = self.greedy(prompts)
        if not is_foreseeable(steered.controller, known.states.blocks):
            return steered.answer(prompts, num_samples=1, sampling=sampling, listener=listener)
        foreseen = foresee(steered.controller, known.states)
        pairs = list(zip(prompts, known.rollouts, strict=True))
        result = self._continue(pairs, foreseen, sampling, listener)
        made = {rollout.prompt_id: rollout for rollout in result.rollouts}
        decided: dict[str, list[SteeringDecision]] = {
            at: list(before) for at, before in foreseen.before.items()
        }
        for decision in result.decisions:
            decided.setdefault(decision.prompt_id, []).append(decision)
        num_reused = [
            foreseen.first.get(greedy.prompt_id, len(greedy.token_ids)) for _, greedy in pairs
        ]
        return Answers(
            tuple(
                _whole(made[greedy.prompt_id], greedy, reused)
                if greedy.prompt_id in made
                else greedy
                for (_, greedy), reused in zip(pairs, num_reused, strict=True)
            ),
            result.cost.forward_passes,
            decisions=tuple(d for prompt in prompts for d in decided.get(prompt.prompt_id, ())),
            num_reused=tuple(num_reused),
        )

    def _continue(
        self,
        pairs: Sequence[tuple[Prompt, Rollout]],
        foreseen: Foresight,
        sampling: SamplingParams,
        listener: TokenListener | None,
    ) -> GenerationResult:
        """Decode what follows the first impulse of each answer that gets one."""
        requests = [
            GenerationRequest(prompt, prefix_token_ids=greedy.token_ids[: foreseen.first[at]])
            for prompt, greedy in pairs
            if (at := prompt.prompt_id) in foreseen.first
        ]
        if not requests:
            return GenerationResult((), None)
        return self.open().generate(
            requests,
            sampling,
            seed=self.steered.seed,
            control=self.steered.control,
            controller=self.steered.controller,
            listener=listener,
        )


def waits_for_greedy(answerer: Answerer) -> bool:
    """Whether there must be greedy answers before it answers, since it goes on from them."""
    return (
        isinstance(answerer, ContinuedAnswerer) and not answerer.steered.is_fixed_from_the_prompt_on
    )


def _whole(continued: Rollout, greedy: Rollout, num_reused: int) -> Rollout:
    """A continued completion as if decoded from the beginning: each of its tokens took a pass."""
    return dataclasses.replace(
        continued,
        logprobs=(*greedy.logprobs[:num_reused], *continued.logprobs[num_reused:]),
        forward_passes=num_reused + continued.forward_passes,
    )
