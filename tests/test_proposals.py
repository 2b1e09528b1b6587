"""What --dry-run proposes to spend less: smaller chunks, a smaller token budget."""

from __future__ import annotations

import dataclasses

import pytest

from stir_train.launch.estimate import shape_of
from stir_train.launch.proposals import chunk_costs, smaller_budget
from stir_train.tools.costs import budget_advice, chunk_advice
from tests.support.rates import QWEN, QWEN_RATES, config_of


def test_a_chunk_size_of_about_a_minute_is_proposed_where_it_costs_nothing() -> None:
    config = config_of()
    held, proposed = chunk_costs(config, QWEN_RATES)
    assert (held.num_completions, held.slowdown) == (256, 1.0)
    assert held.seconds > 150
    assert proposed.num_completions == 64
    assert proposed.seconds < 60
    assert proposed.slowdown == pytest.approx(1, abs=0.02)
    assert "generation.chunk_completions=64" in chunk_advice(config, QWEN_RATES)


def test_no_chunk_size_is_proposed_that_slows_the_rollouts_down() -> None:
    # Every step reads the weights, however few rows it has: half as many rows, twice the time.
    rates = dataclasses.replace(QWEN_RATES, step_seconds=2.0, row_seconds=0.0)
    config = config_of()
    held, proposed = chunk_costs(config, rates)
    assert held == proposed
    assert "slower" in chunk_advice(config, rates)
    assert "generation.chunk_completions=" not in chunk_advice(config, rates)


def test_a_size_that_changes_no_chunk_is_not_proposed() -> None:
    # Eight shares of 160 problems are of 20 each, with 80 completions: 128 is no limit to them.
    config = config_of("generation.num_shares=8", "splits.num_harvest=160", "rollout.num_samples=4")
    rates = dataclasses.replace(QWEN_RATES, step_seconds=2.0, row_seconds=0.0)
    held, proposed = chunk_costs(config, rates)
    assert held == proposed


def test_chunks_that_are_short_need_no_word() -> None:
    rates = dataclasses.replace(QWEN_RATES, row_seconds=1e-4)
    assert chunk_advice(config_of(), rates) == ""
    # A prompt's samples stay together, whatever a chunk takes.
    slow = dataclasses.replace(QWEN_RATES, row_seconds=10.0)
    _, proposed = chunk_costs(config_of("rollout.num_samples=8"), slow)
    assert proposed.num_completions == 8


def test_a_smaller_budget_is_proposed_where_chunks_would_wait_for_what_never_ends() -> None:
    shape = shape_of(QWEN, bytes_per_weight=4)
    rates = dataclasses.replace(QWEN_RATES, step_seconds=0.25)
    config = config_of("tune.modes=[vector]", "generation.max_new_tokens=512", effort="quick")
    found = smaller_budget(config, shape, rates)
    assert found is not None
    assert found.max_new_tokens == 256
    assert 0.05 < found.saved_share < 0.5
    said = budget_advice(config, shape, rates, 1)
    assert "longer than 230 tokens; generation.max_new_tokens=256" in said
    enough = config_of("tune.modes=[vector]", "generation.max_new_tokens=256", effort="quick")
    assert budget_advice(enough, shape, rates, 1) == ""
    # Where a step costs nothing by itself, those few tokens are all that is spared.
    alike = dataclasses.replace(rates, step_seconds=0.0)
    few = config_of("tune.modes=[vector]", "generation.max_new_tokens=320", effort="quick")
    assert budget_advice(few, shape, alike, 1) == ""
