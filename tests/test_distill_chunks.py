"""The distillation loss in chunks: the plain definition's gradients, with few logits alive at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.distill.objective import DistillLoss
from stir_train.distill.replay import ControlPoints, RecordedImpulses, steered_block
from stir_train.distill.samples import IGNORED, BatchConfig, SequenceBatch, sequence_batches
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.errors import ModelError
from stir_train.generation.control_hook import ControlHook
from stir_train.models.lora import Student, make_whole_student
from stir_train.train.loop import sum_of
from stir_train.types.rollout import Rollout
from tests.support.fit_ranks import sample

VOCABULARY = 65
OBJECTIVE = ObjectiveConfig(sequence=1.0, logits=0.7, beta=0.3, states=0.5)
EVERY_LAYER = DistillConfig(rank=8)
HEAD_TOO = DistillConfig(rank=8, targets=("q_proj", "lm_head"))


def _student(config: DistillConfig = EVERY_LAYER) -> Student:
    """In double precision, its adapter no longer zero."""
    student = make_whole_student(ModelConfig(name="embedded/addition"), config, seed=0)
    student.model.double().eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.model.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.double)
                parameter.add_(0.05 * noise)
    return student


def _parts(student: Student, num_samples: int, num_parts: int = 1) -> list[SequenceBatch]:
    samples: Sequence[Rollout] = [sample(index) for index in range(num_samples)]
    trainable = [p for p in student.model.parameters() if p.requires_grad]
    engine = PlainEngine(
        student.model, [torch.optim.AdamW(trainable)], alone(), num_parts=num_parts
    )
    directions = torch.randn(
        1, student.base.identity.width, generator=torch.Generator().manual_seed(2)
    ).double()
    replay = RecordedImpulses(directions, steered_block(samples))
    return next(sequence_batches(samples, engine, 0, BatchConfig(num_samples, 0, seed=0), replay))


def _gradients(student: Student, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    student.model.zero_grad()
    loss.backward()
    return {n: p.grad for n, p in student.model.named_parameters() if p.grad is not None}


def _logits_and_states(
    student: Student, batch: SequenceBatch, points: ControlPoints, hook: ControlHook | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """A whole pass, head and all."""
    blocks = student.base.blocks
    found: list[torch.Tensor] = []

    @contextmanager
    def steering() -> Iterator[None]:
        if hook is None:
            yield
            return
        with hook.attached(blocks, frozenset({points.block})), hook.carrying_out(points.plan):
            yield

    with steering():
        handle = blocks[points.block].register_forward_hook(lambda _m, _i, out: found.append(out))
        logits = student.model(input_ids=batch.token_ids, attention_mask=batch.mask).logits
        handle.remove()
    return logits, found[0][points.rows, points.columns]


def _plain_loss(student: Student, batch: SequenceBatch) -> torch.Tensor:
    """The objective by its definition, over the logits of every position."""
    points = batch.replayed
    with torch.no_grad(), student.model.disable_adapter():
        taught, target = _logits_and_states(student, batch, points, ControlHook())
    logits, states = _logits_and_states(student, batch, points, None)
    counted = batch.labels[:, 1:] != IGNORED
    own, theirs = (x[:, :-1][counted].log_softmax(-1) for x in (logits, taught))
    chosen = own.gather(-1, batch.labels[:, 1:][counted][:, None])
    beta = OBJECTIVE.beta
    mixture = (beta * theirs.exp() + (1 - beta) * own.exp()).log()
    apart = (beta * theirs.exp() * (theirs - mixture)).sum()
    apart = apart + ((1 - beta) * own.exp() * (own - mixture)).sum()
    error = ((states - target).square().sum(-1) / target.square().sum(-1)).sum()
    return (
        OBJECTIVE.sequence * -chosen.sum() / batch.num_targets
        + OBJECTIVE.logits * apart / batch.num_targets
        + OBJECTIVE.states * error / points.count
    )


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings")
@pytest.mark.parametrize("config", [EVERY_LAYER, HEAD_TOO], ids=["every_layer", "head_too"])
def test_gradients_in_chunks_are_those_of_the_plain_definition(config: DistillConfig) -> None:
    student = _student(config)
    (batch,) = _parts(student, 6)
    expected_loss = _plain_loss(student, batch)
    expected = _gradients(student, expected_loss)
    for rows in (1, 7, 10_000):
        loss = DistillLoss(student.model, student, OBJECTIVE, logits_at_once=rows * VOCABULARY)
        value = sum_of(loss(batch))
        torch.testing.assert_close(value, expected_loss)
        found = _gradients(student, value)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, msg=name)


class LiveRows(TorchDispatchMode):
    """Counts rows of the vocabulary's width that are alive, in forward and backward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Do the operation, and note what it made."""
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor) and one.ndim and one.shape[-1] == VOCABULARY:
                storage = one.untyped_storage()
                rows = storage.nbytes() // (one.element_size() * VOCABULARY)
                self._alive[storage.data_ptr()] = (StorageWeakRef(storage), rows)
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(rows for _, rows in self._alive.values()))
        return made


def test_few_logits_are_alive_whatever_the_size_of_a_batch() -> None:
    student = _student()
    peaks = {}
    for num_samples, rows in ((6, 8), (16, 8), (16, 10_000)):
        (batch,) = _parts(student, num_samples)
        loss = DistillLoss(student.model, student, OBJECTIVE, logits_at_once=rows * VOCABULARY)
        assert loss.head.rows_at_once == rows
        with LiveRows() as live:
            sum_of(loss(batch)).backward()
        peaks[num_samples, rows] = live.peak
        assert batch.num_targets > 10 * 8
    assert peaks[16, 8] == peaks[6, 8]
    # Teacher's and student's logits, log-probabilities, the mixture, their products and gradients.
    assert peaks[16, 8] <= 24 * 8 < 5 * batch.num_targets < peaks[16, 10_000]


def test_the_head_is_fed_response_positions_alone() -> None:
    student = _student()
    (batch,) = _parts(student, 5)
    fed: list[int] = []
    loss = DistillLoss(student.model, student, ObjectiveConfig(), logits_at_once=9 * VOCABULARY)
    assert loss.head.rows_at_once == 9
    handle = student.base.model.get_output_embeddings().register_forward_hook(
        lambda _m, _i, out: fed.append(out.numel() // VOCABULARY)
    )
    sum_of(loss(batch)).backward()
    handle.remove()
    num_responses = int((batch.labels != IGNORED).sum())
    assert batch.token_ids.numel() > 1.5 * num_responses
    assert sum(fed) == num_responses, "once each"
    assert max(fed) <= 9


def test_every_part_calls_the_head_as_often_as_the_largest() -> None:
    """Ranks that gather the layer's weights together would wait for each other otherwise."""
    student = _student()
    loss = DistillLoss(student.model, student, ObjectiveConfig(), logits_at_once=9 * VOCABULARY)
    assert loss.head.rows_at_once == 9
    calls: list[int] = []
    student.base.model.get_output_embeddings().register_forward_hook(lambda *_: calls.append(1))
    counts, sizes = set(), set()
    for part in _parts(student, 5, num_parts=6):
        calls.clear()
        sum_of(loss(part)).backward()
        counts.add(len(calls))
        sizes.add(int((part.labels != IGNORED).sum()))
    assert 0 in sizes
    assert len(sizes) > 3
    assert len(counts) == 1


def test_an_unknown_change_of_logits_is_refused() -> None:
    student = _student()
    student.base.model.register_forward_hook(
        lambda _m, _i, out: dataclasses.replace(out, logits=out.logits * 1.5)
    )
    loss = DistillLoss(student.model, student, ObjectiveConfig())
    with pytest.raises(ModelError, match="changes logits after its output layer"):
        loss(_parts(student, 2)[0])
