"""The value head learns, is calibrated, and never trains on a prompt it is judged on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stir_train.config.stages import ValueConfig
from stir_train.distributed.engine import PlainEngine
from stir_train.distributed.world import alone
from stir_train.errors import StageError
from stir_train.models.value_head import ValueHead
from stir_train.stores.gathered import StateMatrix
from stir_train.train import loop
from stir_train.train.loop import (
    EarlyStopping,
    FitPlan,
    warmup_then_cosine,
    warmup_then_linear,
)
from stir_train.value import fit, targets
from stir_train.value.calibration import auroc, calibration, reliability
from stir_train.value.fit import fit_value_head, moments, predict
from tests.support import bases


def test_prompts_are_never_on_both_sides_and_targets_are_right() -> None:
    graded, captured = bases.harvest()
    examples = bases.examples()
    train, validation = examples.split_by_prompt(0.25, torch.Generator().manual_seed(0))
    assert not set(train.prompt.tolist()) & set(validation.prompt.tolist())
    assert len(train.correct) + len(validation.correct) == len(captured.labels)
    outcome = {(g.rollout.prompt_id, g.rollout.sample): g for g in graded}
    for i in range(0, len(captured.labels), 37):
        label = captured.labels[i]
        item = outcome[label.prompt_id, label.sample]
        assert float(examples.correct[i]) == item.grade.correct
        left = len(item.rollout.token_ids) - label.token_index - 1
        assert float(examples.log_tokens_left[i].exp()) == pytest.approx(max(1, left), rel=1e-4)


def test_it_predicts_held_out_outcomes_better_than_length_does() -> None:
    examples = bases.examples()
    _, validation = examples.split_by_prompt(0.2, torch.Generator().manual_seed(0))
    head, batch = bases.value_head(), validation.batch()
    predicted, deviation = head.p_correct(batch.states, batch.points)
    found = calibration(predicted, validation.correct)
    by_length = auroc(-validation.tokens_so_far, validation.correct)
    assert found.auroc > max(by_length, 1 - by_length) + 0.1
    assert found.brier < float((validation.correct - validation.correct.mean()).square().mean())
    assert bool((deviation >= 0).all())
    expected_left = head.tokens_left(batch.states, batch.points).log()
    correlation = torch.corrcoef(torch.stack([expected_left, validation.log_tokens_left]))[0, 1]
    assert float(correlation) > 0.5


def test_a_head_knows_states_like_its_own_from_others() -> None:
    examples = bases.examples()
    _, validation = examples.split_by_prompt(0.2, torch.Generator().manual_seed(0))
    head, states = bases.value_head(), validation.batch().states
    assert float(head.is_familiar(states).float().mean()) > 0.99
    typical = head.mahalanobis_distance(examples.batch().states).median()
    assert float(typical) == pytest.approx(2, abs=0.5)
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(states.shape, generator=generator).argsort(0)
    shuffled = states.gather(0, order)  # every value occurs, no state does
    assert float(head.is_familiar(shuffled).float().mean()) < 0.05


def test_where_every_rollout_is_right_the_head_is_sure_and_still_tells_lengths_apart() -> None:
    examples = bases.examples()
    always = dataclasses.replace(examples, correct=torch.ones_like(examples.correct))
    head, _ = fit_value_head(
        always,
        always,
        ValueConfig(num_steps=200, hidden_width=32, num_members=2),
        reads=bases.READS,
        max_points=8,
        max_new_tokens=128,
        seed=0,
    )
    batch = always.batch()
    assert float(head.p_correct(batch.states, batch.points)[0].min()) > 0.95
    left = head.tokens_left(batch.states, batch.points).log()
    assert float(torch.corrcoef(torch.stack([left, always.log_tokens_left]))[0, 1]) > 0.5
    nothing = always.select(torch.zeros(len(always.correct), dtype=torch.bool))
    with pytest.raises(StageError, match="no states to learn from"):
        fit_value_head(
            nothing,
            always,
            ValueConfig(),
            reads=bases.READS,
            max_points=8,
            max_new_tokens=128,
            seed=0,
        )


def test_moments_of_pieces_are_those_of_the_whole() -> None:
    rows = torch.randn(1000, 6, generator=torch.Generator().manual_seed(0)) * 3 + 5
    mean, deviation = moments([rows])
    assert torch.equal(mean, rows.mean(0))
    assert torch.equal(deviation, rows.std(0))
    mean, deviation = moments(rows.split(170))
    torch.testing.assert_close(mean, rows.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(deviation, rows.std(0), rtol=1e-6, atol=0)


def test_a_head_fitted_piece_by_piece_is_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    train, validation = bases.examples().split_by_prompt(0.2, torch.Generator().manual_seed(0))

    def fitted() -> ValueHead:
        head, _ = fit_value_head(
            train,
            validation,
            ValueConfig(num_steps=20, hidden_width=8, num_members=2),
            reads=bases.READS,
            max_points=bases.MAX_POINTS,
            max_new_tokens=bases.BUDGET,
            seed=0,
        )
        return head

    whole = fitted()
    expected = predict(whole, validation)
    monkeypatch.setattr(targets, "PIECE_BYTES", 100 * 4 * train.inputs.width)
    assert len(list(validation.pieces())) > 1
    assert torch.equal(torch.cat([batch.states for batch in train.pieces()]), train.batch().states)
    torch.testing.assert_close(predict(whole, validation), expected)
    # Rounding of the standardisation and of the validation loss, through 20 steps of Adam.
    torch.testing.assert_close(predict(fitted(), validation), expected, rtol=0, atol=1e-3)


@dataclasses.dataclass
class _Counting:
    """A matrix of states that counts the rows read of it."""

    states: StateMatrix
    num_read: int = 0

    def rows(self, index: torch.Tensor, columns: slice) -> torch.Tensor:
        self.num_read += len(index)
        return self.states.rows(index, columns)


def test_of_many_states_a_sample_is_gone_through_and_says_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    examples = bases.examples()

    def fitted() -> tuple[ValueHead, int]:
        counting = _Counting(examples.inputs.states)
        inputs = dataclasses.replace(examples.inputs, states=counting)
        train, validation = dataclasses.replace(examples, inputs=inputs).split_by_prompt(
            0.5, torch.Generator().manual_seed(0)
        )
        head, _ = fit_value_head(
            train,
            validation,
            ValueConfig(num_steps=40, batch_size=1, hidden_width=8, num_members=2),
            reads=bases.READS,
            max_points=bases.MAX_POINTS,
            max_new_tokens=bases.BUDGET,
            seed=0,
        )
        return head, counting.num_read

    every, read_of_all = fitted()
    sampled = examples.sample(300, torch.Generator().manual_seed(1))
    assert len(sampled) == 300 < len(examples) / 4
    assert bool((sampled.row[1:] > sampled.row[:-1]).all())
    assert len(set(sampled.points.tolist())) > 3, "of all places in a completion"
    assert examples.sample(len(examples), torch.Generator()) is examples
    monkeypatch.setattr(fit, "MOST_SAMPLED_INPUTS", 300 * every.width)
    some, read = fitted()
    # Once for the moments, the temperature and the limit of what is familiar; a sample for the rest.
    assert read_of_all > 2.5 * len(examples)
    assert read < 1.5 * len(examples) + 300 + 3 * 300 + 40 + 10
    states = examples.batch().states
    torch.testing.assert_close(
        some.mahalanobis_distance(states).median(),
        every.mahalanobis_distance(states).median(),
        rtol=0.2,
        atol=0,
    )
    agreed = some.is_familiar(states) == every.is_familiar(states)
    assert float(agreed.float().mean()) > 0.97


def test_auroc_and_reliability_on_cases_done_by_hand() -> None:
    correct = torch.tensor([0.0, 0.0, 1.0, 1.0])
    assert auroc(torch.tensor([0.1, 0.4, 0.35, 0.8]), correct) == pytest.approx(0.75)
    assert auroc(torch.tensor([0.5, 0.5, 0.5, 0.5]), correct) == pytest.approx(0.5)
    assert auroc(torch.tensor([0.1, 0.2, 0.8, 0.9]), torch.ones(4)) == 0.5
    bins = reliability(torch.tensor([0.05, 0.07, 0.95, 1.0]), correct)
    assert [(b.count, b.mean_observed) for b in bins] == [(2, 0.0), (2, 1.0)]


def test_early_stopping_keeps_the_best_parameters() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
    scores = iter([3.0, 1.0, 2.0, 2.5])
    seen: list[float] = []

    def evaluate() -> float:
        seen.append(model.weight.item())
        return next(scores)

    result = loop.fit(
        PlainEngine(model, [torch.optim.SGD(model.parameters(), lr=0.1)], alone()),
        lambda _: iter(lambda: [None], 0),
        lambda _: (model.weight - 5).square().sum(),
        FitPlan(
            num_steps=100,
            schedule=lambda _: 1.0,
            seed=0,
            early_stopping=EarlyStopping(evaluate, every_steps=2, patience=2),
        ),
    )
    assert result.best_step == 4
    assert result.num_steps == 8
    assert model.weight.item() == seen[1]


def test_schedules_rise_hold_and_fall() -> None:
    linear = warmup_then_linear(100, warmup_steps=10, decay_from=0.5)
    assert linear(0) == pytest.approx(0.1)
    assert linear(30) == 1
    assert linear(75) == pytest.approx(0.5)
    cosine = warmup_then_cosine(100, warmup_steps=10)
    assert cosine(9) == 1
    assert cosine(55) == pytest.approx(0.5)
    assert cosine(99) < 0.01
