"""Distillation: the teacher is replayed exactly, and each objective measures what it says."""

from __future__ import annotations

import dataclasses
from itertools import islice

import pytest
import torch
from pydantic import ValidationError

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.distill.objective import DistillLoss
from stir_train.distill.replay import DecidedAgain, steered_block
from stir_train.distill.samples import (
    IGNORED,
    BatchConfig,
    batch_indices,
)
from stir_train.distill.terms import divergence, replays_steering
from stir_train.distill.validation import validation_loss
from stir_train.errors import StageError
from stir_train.generation.control_hook import PassPlan
from stir_train.generation.fixed import FixedVector
from stir_train.models.load import LoadedModel
from stir_train.models.lora import make_whole_student
from stir_train.train.loop import sum_of
from stir_train.types.places import Place
from stir_train.types.rollout import Impulse, Prompt, Rollout
from tests.support import bases
from tests.support.distilling import (
    CONCISE,
    INSTRUCTION,
    LOGITS,
    STATES,
    batch_of,
    fresh_student,
    label_logprobs,
    loss_of,
    points_that_moved,
    rollouts_under,
    steered_rollouts,
)


@pytest.fixture(scope="module")
def steered(
    loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> list[Rollout]:
    return steered_rollouts(loaded, prompts, automaton)


def test_the_replayed_teacher_is_the_one_that_decoded(steered: list[Rollout]) -> None:
    """Its log-probabilities are those recorded in decoding, token by token."""
    for sample in steered:
        (batch,) = batch_of([sample])
        with torch.no_grad():
            loss = loss_of(LOGITS)
            taught = loss.head.logits(loss._teach(batch).hidden)
            plain = fresh_student().model(input_ids=batch.token_ids).logits[:, :-1]
            plain = plain[batch.labels[:, 1:] != IGNORED]
        recorded = torch.tensor(sample.logprobs)
        torch.testing.assert_close(label_logprobs(taught, batch), recorded, atol=2e-4, rtol=0)
        changed = (label_logprobs(plain, batch) - recorded).abs() > 2e-4
        if sample.impulses:
            first = sample.impulses[0].token_index
            assert not changed[: first + 1].any(), "nothing differs before the first impulse"
            assert changed[first + 1 :].any(), "an impulse that changes nothing shows nothing"
        else:
            assert not changed.any()


@pytest.mark.parametrize(
    "places",
    [("every_token",), ("control_point",), ("segment", "prompt_end"), ("everywhere", "segment")],
)
def test_a_teacher_under_vectors_of_no_basis_is_the_one_that_decoded(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    places: tuple[Place, ...],
) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = (bases.BLOCK, 1)
    vectors = [
        FixedVector(place, block, torch.randn(loaded.identity.width, generator=generator), 1.0)
        for place, block in zip(places, blocks, strict=False)
    ]
    samples = rollouts_under(vectors, loaded, prompts, automaton)
    assert all(impulse.entry < 0 for sample in samples for impulse in sample.impulses)
    replay = DecidedAgain(vectors, bases.MAX_POINTS, torch.device("cpu"))
    (batch,) = batch_of(samples, replay=replay)
    with torch.no_grad():
        loss = loss_of(LOGITS)
        taught = label_logprobs(loss.head.logits(loss._teach(batch).hidden), batch)
        plain = dataclasses.replace(
            batch, points=dataclasses.replace(batch.replayed, plan=PassPlan())
        )
        untaught = label_logprobs(loss.head.logits(loss._teach(plain).hidden), plain)
    order = next(batch_indices(samples, 0, BatchConfig(len(samples), 0, seed=0)))
    decoded = torch.tensor([value for i in order for value in samples[i].logprobs])
    torch.testing.assert_close(taught, decoded, atol=2e-4, rtol=0)
    assert ((untaught - decoded).abs() > 2e-3).float().mean() > 0.05


def test_an_untrained_student_is_as_far_from_its_teacher_as_the_base(
    steered: list[Rollout],
) -> None:
    (batch,) = batch_of(steered)
    points = batch.replayed
    moved = points_that_moved(points)
    assert 0 < int(moved.sum()) < len(moved)
    loss = loss_of(STATES)
    with torch.no_grad():
        target = loss._teach(batch).at_points
        assert target is not None
        (edit,) = points.plan.edits
        added = torch.zeros_like(target)
        added[moved] = edit.deltas
        expected = (added.square().sum(-1) / target.square().sum(-1)).sum() / points.count
        torch.testing.assert_close(loss(batch)["states"], expected)
        # With the impulses taken away there is nothing left to learn.
        still = dataclasses.replace(points, plan=PassPlan())
        for objective in (LOGITS, STATES):
            value = sum_of(loss_of(objective)(dataclasses.replace(batch, points=still)))
            assert float(value) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("objective", [LOGITS, STATES, ObjectiveConfig(logits=0.5, states=2.0)])
def test_parts_add_up_to_the_batch_and_gradients_reach_the_adapter_alone(
    steered: list[Rollout], objective: ObjectiveConfig
) -> None:
    loss = loss_of(objective)
    (whole,) = batch_of(steered)
    parts = batch_of(steered, num_parts=5)
    assert len(parts) == 5
    values = [sum_of(loss(part)) for part in parts]
    torch.testing.assert_close(sum(values), sum_of(loss(whole)), rtol=1e-5, atol=1e-6)
    model = fresh_student().model
    model.zero_grad()
    values[0].backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached
    assert all("lora_B" in name for name in reached), "at the start A gets no gradient: B is zero"


def test_recomputed_activations_give_the_same_gradients(steered: list[Rollout]) -> None:
    (batch,) = batch_of(steered)
    objective = ObjectiveConfig(logits=1.0, states=1.0)
    gradients, passes = [], []
    for recompute in (False, True):
        student = make_whole_student(
            ModelConfig(name="embedded/addition"), DistillConfig(rank=8), seed=0
        )
        if recompute:
            student.recompute_activations()
        student.model.train()
        loss = DistillLoss(student.model, student, objective)
        assert loss.head.rows_at_once > 0, "made before passes are counted"
        calls: list[int] = []
        handle = student.base.blocks[0].mlp.register_forward_pre_hook(
            lambda *_, calls=calls: calls.append(1)
        )
        sum_of(loss(batch)).backward()
        handle.remove()
        passes.append(len(calls))
        gradients.append(
            {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}
        )
    assert passes == [2, 3], "teacher, student, and the student's blocks again"
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_divergence_is_the_named_one_at_each_end_and_zero_between_equals() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 11, generator=generator) for _ in range(2))
    own, target = (x.log_softmax(-1) for x in (student, teacher))

    def of(**settings: object) -> torch.Tensor:
        return divergence(student, teacher, ObjectiveConfig(logits=1.0, **settings))

    forward = torch.nn.functional.kl_div(own, target, log_target=True, reduction="sum")
    reverse = torch.nn.functional.kl_div(target, own, log_target=True, reduction="sum")
    torch.testing.assert_close(of(beta=0.0), forward)
    torch.testing.assert_close(of(beta=1.0), reverse)
    middle = torch.log((own.exp() + target.exp()) / 2)
    expected = sum((x.exp() * (x - middle)).sum() / 2 for x in (own, target))
    torch.testing.assert_close(of(beta=0.5), expected)
    for beta in (0.0, 0.3, 1.0):
        config = ObjectiveConfig(logits=1.0, beta=beta)
        assert float(divergence(teacher, teacher, config)) == pytest.approx(0.0, abs=1e-6)
        assert float(of(beta=beta, top_k=4)) <= float(of(beta=beta)), "merging tokens loses some"
        torch.testing.assert_close(of(beta=beta, top_k=10), of(beta=beta), rtol=1e-4, atol=1e-5)


def test_objectives_without_meaning_are_refused(steered: list[Rollout]) -> None:
    with pytest.raises(ValidationError, match="nothing to learn"):
        ObjectiveConfig(sequence=0.0)
    with pytest.raises(ValidationError, match="no steered teacher"):
        ObjectiveConfig(samples="plain", states=1.0)
    with pytest.raises(ValidationError, match="unverified samples have no steered teacher"):
        ObjectiveConfig(samples="unverified", logits=1.0)
    for settings in ({}, {"logits": 1.0, "states": 1.0}):
        with pytest.raises(ValidationError, match="distributions alone"):
            ObjectiveConfig(instruction=INSTRUCTION, **settings)
    assert replays_steering(LOGITS)
    assert not replays_steering(CONCISE)
    with pytest.raises(ValidationError, match="a teacher to judge"):
        ObjectiveConfig(on_policy=0.5)
    two = dataclasses.replace(steered[0], impulses=(Impulse(3, 4, 0, 1.0), Impulse(9, 2, 0, 1.0)))
    with pytest.raises(StageError, match=r"blocks \[2, 4\]"):
        steered_block([two])


def test_buckets_hold_sequences_of_like_length_and_every_sample_once(
    steered: list[Rollout],
) -> None:
    def width(i: int) -> int:
        return len(steered[i].prompt_token_ids) + len(steered[i].token_ids)

    def padding(bucket_batches: int) -> int:
        config = BatchConfig(3, 0, seed=0, bucket_batches=bucket_batches)
        epoch = list(islice(batch_indices(steered, 0, config), 4))
        assert sorted(i for batch in epoch for i in batch) == list(range(12))
        resumed = islice(batch_indices(steered, 2, config), 2)
        assert list(resumed) == epoch[2:]
        return sum(max(map(width, b)) * len(b) - sum(map(width, b)) for b in epoch)

    assert padding(4) < padding(1)


def test_validation_is_the_mean_over_tokens_however_they_are_batched(
    steered: list[Rollout],
) -> None:
    loss = loss_of(ObjectiveConfig())
    alone_ = validation_loss(loss, steered, BatchConfig(1, 0, seed=0))
    together = validation_loss(loss, steered, BatchConfig(5, 0, seed=0))
    assert alone_ == pytest.approx(together, abs=1e-5)
    plain = [s for s in steered if not s.impulses]
    if plain:
        recorded = [p for s in plain for p in s.logprobs]
        mean = -sum(recorded) / len(recorded)
        assert validation_loss(loss, plain, BatchConfig(4, 0, seed=0)) == pytest.approx(
            mean, abs=1e-4
        )
