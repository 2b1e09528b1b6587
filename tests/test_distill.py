"""Distillation: the teacher is replayed exactly, and each objective measures what it says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.config.steering import ValueSteering
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.data.prompts import Wording, reword
from stir_train.distill.objective import DistillLoss
from stir_train.distill.on_policy import StudentSampling, on_policy_batches
from stir_train.distill.replay import ControlPoints, steered_block
from stir_train.distill.samples import (
    IGNORED,
    BatchConfig,
    SequenceBatch,
    batch_indices,
    num_tokens,
    sequence_batches,
)
from stir_train.distill.terms import divergence, replays_steering
from stir_train.distill.validation import validation_loss
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.errors import StageError
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.control_hook import PassPlan
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.models.lora import Student, make_whole_student
from stir_train.steering.controller import BasisController
from stir_train.train.checkpoint import CheckpointFile
from stir_train.train.loop import FitPlan, StepRecord, fit, sum_of
from stir_train.types.rollout import Impulse, Prompt, Rollout
from tests.support import bases

LOGITS = ObjectiveConfig(sequence=0.0, logits=1.0, beta=0.0)
STATES = ObjectiveConfig(sequence=0.0, states=1.0)


def _teacher() -> BasisController:
    """Decides by states of two blocks."""
    settings = ValueSteering(strength=3.0, doubt=0.0)
    return BasisController(bases.basis(), settings, block=bases.BLOCK, head=bases.value_head())


@pytest.fixture(scope="module")
def steered(
    loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> list[Rollout]:
    """Sampled completions under a controller, most of them with impulses."""
    result = DecodeEngine(loaded, max_rows=12).generate(
        [GenerationRequest(prompt) for prompt in prompts[:12]],
        SamplingParams(96, loaded.stop_token_ids, temperature=0.7, top_p=0.95),
        seed=0,
        control=ControlSpec(automaton, bases.MAX_POINTS),
        controller=_teacher(),
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
    labels = batch.labels[batch.labels != IGNORED]
    return logits.log_softmax(-1).gather(-1, labels[:, None])[:, 0]


def test_the_replayed_teacher_is_the_one_that_decoded(steered: list[Rollout]) -> None:
    """Its log-probabilities are those recorded in decoding, token by token."""
    for sample in steered:
        (batch,) = _batch([sample])
        with torch.no_grad():
            loss = _loss(LOGITS)
            taught = loss.head.logits(loss._teach(batch).hidden)
            plain = _student().model(input_ids=batch.token_ids).logits[:, :-1]
            plain = plain[batch.labels[:, 1:] != IGNORED]
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
    moved = _moved(points)
    assert 0 < int(moved.sum()) < len(moved)
    loss = _loss(STATES)
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


def test_recomputed_activations_give_the_same_gradients(steered: list[Rollout]) -> None:
    (batch,) = _batch(steered)
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


INSTRUCTION = "Easy, just add."
"""Words that the embedded model knows."""
CONCISE = ObjectiveConfig(
    samples="unverified", sequence=0.0, logits=1.0, beta=1.0, on_policy=1.0, instruction=INSTRUCTION
)


def _instructed(prompts: list[Prompt], instruction: str) -> dict[str, tuple[int, ...]]:
    tokenizer = _student().base.tokenizer
    worded = reword(prompts, Wording(instruction=instruction), TaskConfig(), tokenizer)
    return {prompt.prompt_id: prompt.token_ids for prompt in worded}


def test_a_teacher_under_an_instruction_judges_the_same_completions(
    loaded: LoadedModel, prompts: list[Prompt], steered: list[Rollout]
) -> None:
    samples, losses = steered[:3], []
    for instruction in ("", INSTRUCTION):
        instructed = _instructed(prompts, instruction)
        batching = BatchConfig(3, pad_token_id=0, seed=0, instructed=instructed)
        (batch,) = next(sequence_batches(samples, _engine(), 0, batching))
        with torch.no_grad():
            losses.append(float(_loss(CONCISE)(batch)["logits"]))
    assert losses[0] == pytest.approx(0.0, abs=1e-5), "told nothing, it is the untrained student"
    by_hand = 0.0
    for sample in samples:
        logits = []
        for prompt in (sample.prompt_token_ids, instructed[sample.prompt_id]):
            with torch.no_grad():
                found = loaded.model(input_ids=torch.tensor([[*prompt, *sample.token_ids]])).logits
            logits.append(found[0, len(prompt) - 1 : -1])
        by_hand += float(divergence(logits[0], logits[1], CONCISE))
    assert losses[1] == pytest.approx(by_hand / num_tokens(samples), rel=1e-3)
    assert losses[1] > 0.01


def test_a_student_samples_for_a_teacher_under_an_instruction(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    steered: list[Rollout],
) -> None:
    sampling = dataclasses.replace(
        _sampling(automaton, prompts, loaded.stop_token_ids), controller=None
    )
    samples, engine = steered[:4], _engine(num_parts=3)
    batching = BatchConfig(2, 0, seed=0, instructed=_instructed(prompts, INSTRUCTION))
    given = sequence_batches(samples, engine, 0, batching)
    parts = next(on_policy_batches(samples, engine, 0, batching, given, sampling))
    summed = 0.0
    for part in parts:  # two sequences in three parts: one is a filler
        assert part.points is None
        assert part.instructed is not None
        assert part.by_student
        counted = [(b.labels != IGNORED).sum() for b in (part, part.instructed)]
        assert counted[0] == counted[1]
        with torch.no_grad():
            summed += float(_loss(CONCISE)(part)["logits"])
    assert summed > 0


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
    static = dataclasses.replace(steered[0], impulses=(Impulse(3, 4, -1, 1.0),))
    with pytest.raises(StageError, match="use the sequence objective alone"):
        steered_block([static])
    two = dataclasses.replace(steered[0], impulses=(Impulse(3, 4, 0, 1.0), Impulse(9, 2, 0, 1.0)))
    with pytest.raises(StageError, match=r"blocks \[2, 4\]"):
        steered_block([two])


def _sampling(
    automaton: ControlPointAutomaton, prompts: list[Prompt], stop: tuple[int, ...]
) -> StudentSampling:
    return StudentSampling(
        student=_student(),
        prompts={prompt.prompt_id: prompt for prompt in prompts},
        sampling=SamplingParams(40, stop, temperature=0.7, top_p=0.95),
        control=ControlSpec(automaton, bases.MAX_POINTS),
        controller=_teacher(),
        seed=0,
        share=1.0,
    )


def test_the_teacher_decides_in_one_pass_what_it_decided_in_decoding(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    steered: list[Rollout],
) -> None:
    sampling = _sampling(automaton, prompts, loaded.stop_token_ids)
    (batch,) = _batch(steered)
    recorded = batch.replayed
    order = {place: i for i, place in enumerate(_places(recorded))}
    decided = sampling.points_of([steered[i] for i in _order(steered)], count=recorded.count)
    assert set(_places(decided)) <= set(order)
    judged = dataclasses.replace(batch, points=decided)
    with torch.no_grad():
        loss = _loss(LOGITS)
        by_record, by_pass = (loss.head.logits(loss._teach(b).hidden) for b in (batch, judged))
    torch.testing.assert_close(by_pass, by_record, atol=2e-3, rtol=0)
    assert any(bool(edit.deltas.any()) for edit in recorded.plan.edits)


def _moved(points: ControlPoints) -> torch.Tensor:
    """Which control points something was added at."""
    edited = {
        place
        for edit in points.plan.edits
        for place in zip(edit.rows.tolist(), edit.columns.tolist(), strict=True)
    }
    return torch.tensor([place in edited for place in _places(points)])


def _places(points: ControlPoints) -> list[tuple[int, int]]:
    return list(zip(points.rows.tolist(), points.columns.tolist(), strict=True))


def _order(samples: list[Rollout]) -> list[int]:
    """How `_batch` shuffles."""
    return next(batch_indices(samples, 0, BatchConfig(len(samples), 0, seed=0)))


def _fit_on_policy(
    sampling: StudentSampling, samples: list[Rollout], checkpoints: Path, cut_at: int | None
) -> list[float]:
    """Losses of six steps, or as far as the process lives."""
    student = make_whole_student(
        ModelConfig(name="embedded/addition"), DistillConfig(rank=8), seed=0
    )
    sampling = dataclasses.replace(sampling, student=student)
    trainable = [p for p in student.model.parameters() if p.requires_grad]
    engine = PlainEngine(
        student.model, [torch.optim.AdamW(trainable, lr=5e-3)], alone(), num_parts=2
    )
    batching = BatchConfig(6, 0, seed=0)

    def batches(start: int) -> Iterator[list[SequenceBatch]]:
        given = sequence_batches(samples, engine, start, batching, bases.basis().directions)
        return on_policy_batches(samples, engine, start, batching, given, sampling)

    def on_step(record: StepRecord) -> None:
        if record.step == cut_at:
            raise KeyboardInterrupt

    student.model.train()
    fitted = fit(
        engine,
        batches,
        DistillLoss(student.model, student, LOGITS),
        FitPlan(
            num_steps=6,
            schedule=lambda _: 1.0,
            seed=0,
            checkpoints=CheckpointFile(checkpoints, 2, "test"),
            on_step=on_step,
        ),
    )
    return fitted.losses


def test_a_student_that_samples_itself_learns_and_resumes_to_the_same_losses(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    steered: list[Rollout],
    tmp_path: Path,
) -> None:
    sampling = dataclasses.replace(_sampling(automaton, prompts, loaded.stop_token_ids), share=0.7)
    taken = [sampling.takes(step) for step in range(6)]
    assert {True, False} == set(taken)
    whole = _fit_on_policy(sampling, steered, tmp_path / "whole", None)
    assert min(whole[-2:]) < min(whole[:2])
    with pytest.raises(KeyboardInterrupt):
        _fit_on_policy(sampling, steered, tmp_path / "cut", 5)
    assert _fit_on_policy(sampling, steered, tmp_path / "cut", None) == whole


def test_a_batch_by_the_student_is_fresh_and_none_of_its_tokens_is_a_target(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    steered: list[Rollout],
) -> None:
    sampling = _sampling(automaton, prompts, loaded.stop_token_ids)
    engine, batching = _engine(num_parts=5), BatchConfig(12, 0, seed=0)
    given = sequence_batches(steered, engine, 0, batching, bases.basis().directions)
    batches = on_policy_batches(steered, engine, 0, batching, given, sampling)
    first, second = next(batches), next(batches)
    assert len(first) == 5
    rows = [
        [tuple(row) for part in parts for row in part.token_ids.tolist()]
        for parts in (first, second)
    ]
    assert set(rows[0]) != set(rows[1]), "the same prompts, other noise"
    loss = _loss(ObjectiveConfig(logits=1.0))
    with torch.no_grad():
        assert [set(loss(part)) for part in first] == [{"logits"}] * 5
    tokens = sum(int((part.labels != IGNORED).sum()) for part in first)
    assert all(part.num_targets == tokens for part in first)


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
    loss = _loss(ObjectiveConfig())
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
