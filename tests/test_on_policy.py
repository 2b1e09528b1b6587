"""Distillation from what the student itself samples, and from a teacher that reads an instruction."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.data.prompts import Wording, reword
from stir_train.distill.objective import DistillLoss
from stir_train.distill.on_policy import StudentSampling, on_policy_batches
from stir_train.distill.replay import DecidedAgain
from stir_train.distill.samples import (
    IGNORED,
    BatchConfig,
    SequenceBatch,
    batch_indices,
    num_tokens,
    sequence_batches,
)
from stir_train.distill.terms import divergence
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.generation.backend import ControlSpec, SamplingParams
from stir_train.models.load import LoadedModel
from stir_train.models.lora import make_whole_student
from stir_train.train.checkpoint import CheckpointFile
from stir_train.train.loop import FitPlan, StepRecord, fit
from stir_train.types.rollout import Prompt, Rollout
from tests.support import bases
from tests.support.distilling import (
    CONCISE,
    INSTRUCTION,
    LOGITS,
    batch_of,
    fresh_student,
    loss_of,
    places_of_points,
    plain_engine,
    recorded,
    steered_rollouts,
    value_teacher,
)


@pytest.fixture(scope="module")
def steered(
    loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> list[Rollout]:
    return steered_rollouts(loaded, prompts, automaton)


def _instructed(prompts: list[Prompt], instruction: str) -> dict[str, tuple[int, ...]]:
    tokenizer = fresh_student().base.tokenizer
    worded = reword(prompts, Wording(instruction=instruction), TaskConfig(), tokenizer)
    return {prompt.prompt_id: prompt.token_ids for prompt in worded}


def test_a_teacher_under_an_instruction_judges_the_same_completions(
    loaded: LoadedModel, prompts: list[Prompt], steered: list[Rollout]
) -> None:
    samples, losses = steered[:3], []
    for instruction in ("", INSTRUCTION):
        instructed = _instructed(prompts, instruction)
        batching = BatchConfig(3, pad_token_id=0, seed=0, instructed=instructed)
        (batch,) = next(sequence_batches(samples, plain_engine(), 0, batching))
        with torch.no_grad():
            losses.append(float(loss_of(CONCISE)(batch)["logits"]))
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
        _sampling(automaton, prompts, loaded.stop_token_ids), replay=None
    )
    samples, engine = steered[:4], plain_engine(num_parts=3)
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
            summed += float(loss_of(CONCISE)(part)["logits"])
    assert summed > 0


def _sampling(
    automaton: ControlPointAutomaton, prompts: list[Prompt], stop: tuple[int, ...]
) -> StudentSampling:
    return StudentSampling(
        student=fresh_student(),
        prompts={prompt.prompt_id: prompt for prompt in prompts},
        sampling=SamplingParams(40, stop, temperature=0.7, top_p=0.95),
        control=ControlSpec(automaton, bases.MAX_POINTS),
        replay=DecidedAgain(value_teacher(), bases.MAX_POINTS, torch.device("cpu")),
        seed=0,
        share=1.0,
    )


def test_the_teacher_decides_in_one_pass_what_it_decided_in_decoding(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    steered: list[Rollout],
) -> None:
    replay = DecidedAgain(value_teacher(), bases.MAX_POINTS, torch.device("cpu"))
    (batch,) = batch_of(steered)
    by_record = batch.replayed
    order = {place: i for i, place in enumerate(places_of_points(by_record))}
    decided = replay.points_of([steered[i] for i in _order(steered)], count=by_record.count)
    assert set(places_of_points(decided)) <= set(order)
    judged = dataclasses.replace(batch, points=decided)
    with torch.no_grad():
        loss = loss_of(LOGITS)
        replayed, asked = (loss.head.logits(loss._teach(b).hidden) for b in (batch, judged))
    torch.testing.assert_close(asked, replayed, atol=2e-3, rtol=0)
    assert any(bool(edit.deltas.any()) for edit in by_record.plan.edits)


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
        given = sequence_batches(samples, engine, start, batching, recorded())
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
    engine, batching = plain_engine(num_parts=5), BatchConfig(12, 0, seed=0)
    given = sequence_batches(steered, engine, 0, batching, recorded())
    batches = on_policy_batches(steered, engine, 0, batching, given, sampling)
    first, second = next(batches), next(batches)
    assert len(first) == 5
    rows = [
        [tuple(row) for part in parts for row in part.token_ids.tolist()]
        for parts in (first, second)
    ]
    assert set(rows[0]) != set(rows[1]), "the same prompts, other noise"
    loss = loss_of(ObjectiveConfig(logits=1.0))
    with torch.no_grad():
        assert [set(loss(part)) for part in first] == [{"logits"}] * 5
    tokens = sum(int((part.labels != IGNORED).sum()) for part in first)
    assert all(part.num_targets == tokens for part in first)
