"""A controller's answers that go on from greedy ones are those decoded from the beginning."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch

from stir_train.answering.continued import ContinuedAnswerer, GreedyAnswers
from stir_train.answering.model import ModelAnswerer
from stir_train.config.steering import (
    HybridSteering,
    PreviewSteering,
    SimilaritySteering,
    StaticSteering,
    ValueSteering,
)
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import ControlSpec, SamplingParams
from stir_train.generation.controller import ControlBatch, Decision, Steering
from stir_train.generation.fixed import FixedVector
from stir_train.generation.foresight import is_foreseeable
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.steering.controller import BasisController, IdleController
from stir_train.steering.controls import empty_basis
from stir_train.steering.static import StaticController
from stir_train.types.answers import Answers
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.steering import SteeringDecision
from tests.support import bases

CPU = torch.device("cpu")
BUDGET, WIDTH = 96, 64


def _fixed(place: Place, block: int = bases.BLOCK, strength: float = 1.0) -> FixedVector:
    vector = torch.randn(WIDTH, generator=torch.Generator().manual_seed(0))
    return FixedVector(place, block, vector, strength)


@dataclasses.dataclass(frozen=True)
class SomeProblems:
    """Steers every other problem, from the second control point on."""

    always: FixedVector
    place: Place = "control_point"
    block: int = bases.BLOCK
    reads: tuple[int, ...] = (bases.BLOCK,)

    def decide(self, states: torch.Tensor, batch: ControlBatch) -> Decision:
        odd = torch.tensor([int(name[:8], 16) % 2 == 1 for name in batch.prompt_ids])
        strengths = (odd & (batch.points >= 2)).float()
        return Decision.unscored(strengths[:, None] * self.always.vector, strengths)


def _over(settings: object) -> Steering:
    assert isinstance(
        settings, ValueSteering | SimilaritySteering | PreviewSteering | HybridSteering
    )
    head = bases.value_head()
    return BasisController(bases.basis(), settings, block=bases.BLOCK, head=head)


@cache
def _steerings() -> dict[str, Steering]:
    void = BasisController(
        empty_basis(bases.basis()), ValueSteering(), block=bases.BLOCK, head=bases.value_head()
    )
    return {
        "value": _over(ValueSteering(strength=2.0)),
        "some problems": SomeProblems(_fixed("control_point")),
        "value, never": _over(ValueSteering(margin=10.0)),
        "similarity": _over(SimilaritySteering(strength=0.75)),
        "first point only": _over(SimilaritySteering(strength=2.0, first_point_only=True)),
        "static": StaticController(
            bases.basis(), StaticSteering(strength=2.0), block=bases.BLOCK, device=CPU
        ),
        "preview": _over(PreviewSteering(strength=2.0)),
        "hybrid": _over(HybridSteering(strength=2.0)),
        "empty basis": void,
        "idle": IdleController(bases.BLOCK),
        "segment": _fixed("segment"),
        "nothing of a vector": _fixed("control_point", strength=0.0),
        "two": (_over(ValueSteering(strength=2.0)), _fixed("segment", block=3)),
        "prompt_end": _fixed("prompt_end"),
        "everywhere": _fixed("everywhere"),
        "another block": _fixed("control_point", block=1),
    }


NAMES = [
    "value",
    "some problems",
    "value, never",
    "similarity",
    "first point only",
    "static",
    "preview",
    "hybrid",
    "empty basis",
    "idle",
    "segment",
    "nothing of a vector",
    "two",
    "prompt_end",
    "everywhere",
    "another block",
]
NOT_FORESEEN = {"prompt_end", "everywhere", "another block"}
NEVER = {"value, never", "empty basis", "idle", "nothing of a vector"}


@dataclasses.dataclass
class Setup:
    """Answers both ways over one engine, and how many tokens were decoded."""

    loaded: LoadedModel
    automaton: ControlPointAutomaton
    engine: DecodeEngine
    num_decoded: int = 0

    def _listen(self, _index: int, _token: int) -> None:
        self.num_decoded += 1

    def _answerer(self, steering: Steering | None, blocks: tuple[int, ...] = ()) -> ModelAnswerer:
        control = ControlSpec(self.automaton, bases.MAX_POINTS, blocks)
        make = None if steering is None else lambda: steering
        return ModelAnswerer("base", lambda: self.engine, control, 0, make)

    def greedy(self, prompts: list[Prompt]) -> GreedyAnswers:
        made = self._ask(self._answerer(None, bases.READS), prompts)
        assert made.states is not None
        return GreedyAnswers(made.rollouts, made.states)

    def whole(self, steering: Steering, prompts: list[Prompt]) -> Answers:
        return self._ask(self._answerer(steering), prompts)

    def continued(
        self, steering: Steering, prompts: list[Prompt], greedy: GreedyAnswers
    ) -> Answers:
        answerer = ContinuedAnswerer(self._answerer(steering), lambda _prompts: greedy)
        return self._ask(answerer, prompts)

    def _ask(self, answerer: ModelAnswerer | ContinuedAnswerer, prompts: list[Prompt]) -> Answers:
        self.num_decoded = 0
        sampling = SamplingParams(BUDGET, self.loaded.stop_token_ids)
        return answerer.answer(prompts, num_samples=1, sampling=sampling, listener=self._listen)


@pytest.fixture
def setup(loaded: LoadedModel, automaton: ControlPointAutomaton) -> Setup:
    return Setup(loaded, automaton, DecodeEngine(loaded, max_rows=16))


@pytest.mark.parametrize("name", NAMES)
def test_answers_decisions_and_counts_are_those_decoded_from_the_beginning(
    name: str, setup: Setup, prompts: list[Prompt]
) -> None:
    prompts = prompts[:12]
    steering = _steerings()[name]
    greedy = setup.greedy(prompts)
    whole = setup.whole(steering, prompts)
    made = setup.continued(steering, prompts, greedy)
    assert is_foreseeable(steering, bases.READS) == (name not in NOT_FORESEEN)

    for expected, found in zip(whole.rollouts, made.rollouts, strict=True):
        assert found.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
        assert [i.strength for i in found.impulses] == pytest.approx(
            [i.strength for i in expected.impulses], abs=1e-3
        )
        assert _without_figures(found) == _without_figures(expected)
    assert whole.decisions is not None
    assert made.decisions is not None
    for old, new in zip(whole.decisions, made.decisions, strict=True):
        assert new.scores == pytest.approx(old.scores, abs=1e-3)
        assert new.null_score == pytest.approx(old.null_score, abs=1e-3)
        assert new.strength == pytest.approx(old.strength, abs=1e-3)
        assert _without_scores(new) == _without_scores(old)

    if name in NOT_FORESEEN:
        assert made.num_reused is None
        return
    assert made.num_reused is not None
    num_tokens = sum(rollout.total_tokens for rollout in made.rollouts)
    num_previewed = sum(rollout.preview_tokens for rollout in made.rollouts)
    assert setup.num_decoded == num_tokens - num_previewed - sum(made.num_reused)
    if name in NEVER:
        assert setup.num_decoded == made.forward_passes == 0
        assert made.rollouts == greedy.rollouts
    else:
        assert 0 < setup.num_decoded < num_tokens - num_previewed


def _without_figures(rollout: Rollout) -> Rollout:
    """What must be the same to the bit."""
    impulses = tuple(dataclasses.replace(impulse, strength=0.0) for impulse in rollout.impulses)
    return dataclasses.replace(rollout, logprobs=(), impulses=impulses)


def _without_scores(decision: SteeringDecision) -> SteeringDecision:
    return dataclasses.replace(decision, scores=(), null_score=0.0, strength=0.0)


def test_what_is_taken_over_ends_where_the_first_impulse_goes_in(
    setup: Setup, prompts: list[Prompt]
) -> None:
    greedy = setup.greedy(prompts)
    made = setup.continued(_steerings()["some problems"], prompts, greedy)
    assert made.num_reused is not None
    some = 0
    for rollout, reused in zip(made.rollouts, made.num_reused, strict=True):
        at = rollout.impulses[0].token_index if rollout.impulses else len(rollout.token_ids)
        assert reused == at
        some += bool(rollout.impulses)
    assert 0 < some < len(prompts), "some are steered and some are not"


def test_a_part_of_the_problems_is_answered_as_all_of_them(
    setup: Setup, prompts: list[Prompt]
) -> None:
    steering, greedy = _steerings()["value"], setup.greedy(prompts)
    every = setup.continued(steering, prompts, greedy)
    part = prompts[5:9]
    kept = [i for i, label in enumerate(greedy.states.labels) if label.prompt_id in _ids(part)]
    states = dataclasses.replace(
        greedy.states,
        labels=tuple(greedy.states.labels[i] for i in kept),
        states=greedy.states.states[kept],
    )
    some = setup.continued(steering, part, GreedyAnswers(greedy.rollouts[5:9], states))
    assert [r.token_ids for r in some.rollouts] == [r.token_ids for r in every.rollouts[5:9]]
    assert every.decisions is not None
    assert some.decisions is not None
    ours = [_without_scores(d) for d in every.decisions if d.prompt_id in _ids(part)]
    assert [_without_scores(d) for d in some.decisions] == ours


def _ids(prompts: list[Prompt]) -> set[str]:
    return {prompt.prompt_id for prompt in prompts}


def test_samples_are_not_taken_over_from_greedy_answers(
    setup: Setup, prompts: list[Prompt]
) -> None:
    greedy = setup.greedy(prompts[:2])
    answerer = ContinuedAnswerer(setup._answerer(_fixed("segment")), lambda _prompts: greedy)
    sampled = SamplingParams(BUDGET, temperature=0.7)
    for num_samples, sampling in ((2, SamplingParams(BUDGET)), (1, sampled)):
        with pytest.raises(ValueError, match="greedy"):
            answerer.answer(prompts[:2], num_samples=num_samples, sampling=sampling)
