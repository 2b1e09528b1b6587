"""Distillation: the teacher is replayed exactly, and each objective measures what it says."""

from __future__ import annotations

import dataclasses
from functools import cache

import pytest
import torch
from pydantic import ValidationError

from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.config.stages import ModelConfig, SteeringConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.distill.objective import DistillLoss, divergence
from stir_train.distill.replay import steered_block
from stir_train.distill.samples import IGNORED, BatchConfig, SequenceBatch, sequence_batches
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.errors import StageError
from stir_train.evals.retention import compare_students
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.models.lora import Student, make_whole_student
from stir_train.steering.controller import BasisController
from stir_train.train.loop import sum_of
from stir_train.types.rollout import Grade, GradedRollout, Impulse, Prompt, Rollout
from tests.support import bases

LOGITS = ObjectiveConfig(sequence=0.0, logits=1.0, beta=0.0)
STATES = ObjectiveConfig(sequence=0.0, states=1.0)


@pytest.fixture(scope="module")
def steered(
    loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> list[Rollout]:
    """Sampled completions under a controller, most of them with impulses."""
    settings = SteeringConfig(mode="similarity", strength=3.0)
    controller = BasisController(bases.basis(), settings, block=bases.BLOCK)
    result = DecodeEngine(loaded, max_rows=12).generate(
        [GenerationRequest(prompt) for prompt in prompts[:12]],
        SamplingParams(96, loaded.stop_token_ids, temperature=0.7, top_p=0.95),
        seed=0,
        control=ControlSpec(automaton, bases.MAX_POINTS),
        controller=controller,
    )
    assert sum(bool(r.impulses) for r in result.rollouts) >= 8
    assert any(len(r.control_points) > len(r.impulses) for r in result.rollouts)
    return list(result.rollouts)


@cache
def _student() -> Student:
    student = make_whole_student(
        ModelConfig(name="embedded/addition"), DistillConfig(rank=8), seed=0
    )
    student.model.eval()
    return student


def _engine(num_parts: int = 1) -> PlainEngine:
    model = _student().model
    trainable = [p for p in model.parameters() if p.requires_grad]
    return PlainEngine(model, [torch.optim.AdamW(trainable)], alone(), num_parts=num_parts)


def _batch(samples: list[Rollout], num_parts: int = 1) -> list[SequenceBatch]:
    batching = BatchConfig(len(samples), pad_token_id=0, seed=0)
    directions = bases.basis().directions
    return next(sequence_batches(samples, _engine(num_parts), 0, batching, directions))


def _loss(objective: ObjectiveConfig) -> DistillLoss:
    return DistillLoss(_student().model, _student(), objective)


def _logprobs(logits: torch.Tensor, batch: SequenceBatch) -> torch.Tensor:
    """Of the labels, in order."""
    labels = batch.labels[:, 1:]
    counted = labels != IGNORED
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return chosen[counted]


def test_the_replayed_teacher_is_the_one_that_decoded(steered: list[Rollout]) -> None:
    """Its log-probabilities are those recorded in decoding, token by token."""
    for sample in steered:
        (batch,) = _batch([sample])
        with torch.no_grad():
            taught, _ = _loss(LOGITS)._teach(batch)
            plain = _student().model(input_ids=batch.token_ids).logits
        recorded = torch.tensor(sample.logprobs)
        torch.testing.assert_close(_logprobs(taught, batch), recorded, atol=2e-4, rtol=0)
        changed = (_logprobs(plain, batch) - recorded).abs() > 2e-4
        if sample.impulses:
            first = sample.impulses[0].token_index
            assert not changed[: first + 1].any(), "nothing differs before the first impulse"
            assert changed[first + 1 :].any(), "an impulse that changes nothing shows nothing"
        else:
            assert not changed.any()


def test_an_untrained_student_is_as_far_from_its_teacher_as_the_base(
    steered: list[Rollout],
) -> None:
    (batch,) = _batch(steered)
    points = batch.replayed
    moved = points.deltas.norm(dim=-1) > 0
    assert 0 < int(moved.sum()) < len(moved)
    loss = _loss(STATES)
    with torch.no_grad():
        _, target = loss._teach(batch)
        assert target is not None
        expected = (points.deltas.square().sum(-1) / target.square().sum(-1)).sum() / points.count
        torch.testing.assert_close(loss(batch)["states"], expected)
        # With the impulses taken away there is nothing left to learn.
        still = dataclasses.replace(points, deltas=torch.zeros_like(points.deltas))
        for objective in (LOGITS, STATES):
            value = sum_of(_loss(objective)(dataclasses.replace(batch, points=still)))
            assert float(value) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("objective", [LOGITS, STATES, ObjectiveConfig(logits=0.5, states=2.0)])
def test_parts_add_up_to_the_batch_and_gradients_reach_the_adapter_alone(
    steered: list[Rollout], objective: ObjectiveConfig
) -> None:
    loss = _loss(objective)
    (whole,) = _batch(steered)
    parts = _batch(steered, num_parts=5)
    assert len(parts) == 5
    values = [sum_of(loss(part)) for part in parts]
    torch.testing.assert_close(sum(values), sum_of(loss(whole)), rtol=1e-5, atol=1e-6)
    model = _student().model
    model.zero_grad()
    values[0].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all("lora_B" in name for name in reached), "at the start A gets no gradient: B is zero"


def test_divergence_is_the_named_one_at_each_end_and_zero_between_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 11, generator=generator) for _ in range(2))
    counted = torch.tensor([[True, True, False], [True, False, False]])
    own, target = (x[counted].log_softmax(-1) for x in (student, teacher))

    def of(**settings: object) -> torch.Tensor:
        return divergence(student, teacher, counted, ObjectiveConfig(logits=1.0, **settings))

    forward = torch.nn.functional.kl_div(own, target, log_target=True, reduction="sum")
    reverse = torch.nn.functional.kl_div(target, own, log_target=True, reduction="sum")
    torch.testing.assert_close(of(beta=0.0), forward)
    torch.testing.assert_close(of(beta=1.0), reverse)
    middle = torch.log((own.exp() + target.exp()) / 2)
    expected = sum((x.exp() * (x - middle)).sum() / 2 for x in (own, target))
    torch.testing.assert_close(of(beta=0.5), expected)
    for beta in (0.0, 0.3, 1.0):
        config = ObjectiveConfig(logits=1.0, beta=beta)
        assert float(divergence(teacher, teacher, counted, config)) == pytest.approx(0.0, abs=1e-6)
        assert float(of(beta=beta, top_k=4)) <= float(of(beta=beta)), "merging tokens loses some"
        torch.testing.assert_close(of(beta=beta, top_k=10), of(beta=beta), rtol=1e-4, atol=1e-5)


def test_objectives_without_meaning_are_refused(steered: list[Rollout]) -> None:
    with pytest.raises(ValidationError, match="nothing to learn"):
        ObjectiveConfig(sequence=0.0)
    with pytest.raises(ValidationError, match="no steered teacher"):
        ObjectiveConfig(samples="plain", states=1.0)
    static = dataclasses.replace(steered[0], impulses=(Impulse(3, 4, -1, 1.0),))
    with pytest.raises(StageError, match="use the sequence objective alone"):
        steered_block([static])
    two = dataclasses.replace(steered[0], impulses=(Impulse(3, 4, 0, 1.0), Impulse(9, 2, 0, 1.0)))
    with pytest.raises(StageError, match=r"blocks \[2, 4\]"):
        steered_block([two])


def _answers(correct: list[bool], num_tokens: list[int]) -> list[GradedRollout]:
    return [
        GradedRollout(
            Rollout(str(i), 0, (1,), (2,) * tokens, (0.0,) * tokens, (), "stop"),
            "",
            Grade(right, "1", ""),
            float(right),
        )
        for i, (right, tokens) in enumerate(zip(correct, num_tokens, strict=True))
    ]


def test_retention_is_the_share_of_the_teachers_gain_where_it_has_one() -> None:
    size = 40
    answers = {
        "greedy": _answers([False] * 20 + [True] * 20, [10] * size),
        "stir": _answers([True] * size, [10] * size),
        "half": _answers([True] * 10 + [False] * 10 + [True] * 20, [5] * size),
    }
    names = {"base": "greedy", "teacher": "stir", "other": "stir"}
    (half,) = compare_students(answers, ["half"], **names, num_resamples=200)
    assert half.retention_accuracy == pytest.approx(0.5)
    assert half.retention_tokens is None, "the teacher saves nothing"
    assert half.delta_accuracy == pytest.approx(-0.25)
    assert half.delta_accuracy_ci95[1] < 0
    assert half.delta_tokens_fraction == pytest.approx(-0.5)
