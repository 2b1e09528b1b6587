"""Gains estimated from the log of replays: exact where they must be, and who is left out for them."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.run import RunConfig
from stir_train.config.steering import (
    HybridSteering,
    NoSteering,
    PreviewSteering,
    SimilaritySteering,
    StaticSteering,
    ValueSteering,
)
from stir_train.evals.halving import Candidate
from stir_train.evals.shortlist import MIN_EFFECTIVE, worth_trying
from stir_train.generation.controller import ControlBatch, Decision
from stir_train.runtime.shortlist import has_estimate
from stir_train.steering.off_policy import (
    ReplayLog,
    estimate_gain,
    estimate_gains,
)
from stir_train.stores.reports import load_report
from stir_train.types.places import Place
from stir_train.types.results import TuneReport
from stir_train.types.shortlist import GainEstimate
from stir_train.types.steering import UNSTEERED
from tests.support.smoke import run_smoke

BLOCK, OTHER = 4, 3
UPLIFTS = ((0.5, -0.25, 0.0), (-1.0, 1.0, 0.125), (0.25, 0.75, -0.5), (1.0, 0.0, 0.25))
"""Of three actions at each of four states: without any, utility is lower by that."""
ROUNDS = (
    ((2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 2)),
    ((1, 1, 2), (1, 1, 2), (2, 1, 1), (2, 1, 1)),
)
"""In two rounds, how often of four times a state's actions are tried."""


def _population(policy: tuple[int | None, ...]) -> dict[str, Tensor]:
    """A log in which every action comes up as often as its probability says; the policy's action by state."""
    rows = [
        (UPLIFTS[state][action], times[action] / 4, policy[state] == action, state)
        for counts in ROUNDS
        for state, times in enumerate(counts)
        for action in range(3)
        for _ in range(times[action])
    ]
    uplift, propensity, matches, states = (
        torch.tensor(column) for column in zip(*rows, strict=True)
    )
    acts = torch.tensor([policy[state] is not None for state in states.tolist()])
    return {
        "uplift": uplift,
        "propensity": propensity,
        "matches": matches,
        "acts": acts,
        "problem": states,
    }


def test_every_policys_gain_is_exact_where_each_action_is_logged_as_often_as_its_probability_says() -> (
    None
):
    for policy in itertools.product((None, 0, 1, 2), repeat=4):
        truth = sum(UPLIFTS[s][action] for s, action in enumerate(policy) if action is not None)
        found = estimate_gain(**_population(policy))
        assert found is not None
        assert found.gain == pytest.approx(truth / 4), policy
        assert found.share_steered == sum(action is not None for action in policy) / 4


def test_both_sums_are_unbiased_over_every_log_that_could_have_come_up() -> None:
    """Their quotient is the mean gain where the policy acts, so the estimate is consistent."""
    policy, counts = (0, None, 1, 0), ROUNDS[0]
    expected_gain, expected_weight = 0.0, 0.0
    for drawn in itertools.product(range(3), repeat=4):
        chance = 1.0
        for state, action in enumerate(drawn):
            chance *= counts[state][action] / 4
        matched = [state for state, action in enumerate(drawn) if policy[state] == action]
        made = estimate_gain(
            torch.tensor([UPLIFTS[s][a] for s, a in enumerate(drawn)]),
            torch.tensor([counts[s][a] / 4 for s, a in enumerate(drawn)]),
            torch.tensor([policy[s] == a for s, a in enumerate(drawn)]),
            torch.tensor([action is not None for action in policy]),
            torch.arange(4),
        )
        weight = sum(4 / counts[s][drawn[s]] for s in matched)
        expected_weight += chance * weight
        expected_gain += chance * weight * (made.gain / 0.75 if made else 0.0)
        assert (made is None) == (not matched)
    assert expected_weight == pytest.approx(3)
    assert expected_gain == pytest.approx(0.5 + 0.75 + 1.0)


@given(
    st.lists(
        st.tuples(st.floats(-1, 1), st.floats(0.01, 1), st.integers(0, 3)), min_size=1, max_size=20
    )
)
def test_a_candidate_that_is_the_logging_policy_gains_the_logs_mean(
    rows: list[tuple[float, float, int]],
) -> None:
    uplift, propensity, problem = (torch.tensor(column) for column in zip(*rows, strict=True))
    found = estimate_gain(uplift, propensity, propensity, torch.ones(len(rows)), problem)
    assert found is not None
    assert found.gain == pytest.approx(float(uplift.double().mean()), abs=1e-6)
    assert found.num_effective == pytest.approx(len(rows))


def test_a_candidate_that_never_acts_gains_nothing_and_that_is_known() -> None:
    found = estimate_gain(**_population((None,) * 4))
    assert found == GainEstimate(0.0, 0.0, 32.0, 0.0)


def test_a_candidate_whose_actions_nothing_tried_has_no_estimate() -> None:
    log = _population((0, 0, 0, 0))
    log["matches"] = torch.zeros_like(log["matches"])
    assert estimate_gain(**log) is None
    empty = torch.zeros(0)
    assert estimate_gain(empty, empty, empty, empty, empty.long()) is None


def test_the_standard_error_counts_a_problems_replays_as_one() -> None:
    uplift = torch.tensor([1.0, 1.0, 0.0, 0.0])
    ones, pairs = torch.ones(4), torch.tensor([0, 0, 1, 1])
    alone = estimate_gain(uplift, ones, ones, ones, torch.arange(4))
    together = estimate_gain(uplift, ones, ones, ones, pairs)
    assert alone is not None
    assert together is not None
    assert together.standard_error == pytest.approx(2**0.5 * alone.standard_error)


class _Fixed:
    """A controller that adds an entry where the state is above 0."""

    place: Place = "control_point"
    reads = (BLOCK,)
    block = BLOCK

    def __init__(self, entry: int, strength: float) -> None:
        self.entry, self.strength = entry, strength

    def decide(self, states: Tensor, batch: ControlBatch) -> Decision:
        assert batch.points.tolist() == [1] * len(states)
        strengths = self.strength * (states[:, 0] > 0)
        made = Decision.unscored(states * 0, strengths)
        return dataclasses.replace(made, chosen=torch.where(made.fires, self.entry, -1))


class _States:
    """States in memory, of one block alone."""

    def __init__(self, *values: float) -> None:
        self.values = torch.tensor(values)

    def gather(self, index: Tensor, blocks: Sequence[int] | None = None) -> Tensor:
        assert blocks == (BLOCK,)
        return self.values[index][:, None, None]


def _log(*rows: tuple[int, int, int, int, float, float]) -> ReplayLog:
    """Of rows (round, state, block, entry, strength, uplift), each drawn once in two times."""
    number, state, block, entry, strength, uplift = (
        torch.tensor(c) for c in zip(*rows, strict=True)
    )
    return ReplayLog(
        problem=state,
        number=number,
        state=state,
        point=torch.ones_like(state),
        token_index=state,
        steered=torch.full_like(state, UNSTEERED),
        block=block,
        entry=entry,
        strength=strength,
        propensity=torch.full((len(rows),), 0.5),
        uplift=uplift,
    )


def test_a_replay_counts_where_block_entry_and_strength_are_what_is_decided() -> None:
    states = _States(1.0, 1.0, -1.0)
    log = _log(
        (0, 0, BLOCK, 7, 2.0, 0.5),
        (0, 1, BLOCK, 7, 3.0, 0.9),
        (0, 1, BLOCK, 8, 2.0, 0.9),
        (0, 1, OTHER, 7, 2.0, 0.9),
        (0, 2, BLOCK, 7, 2.0, 0.9),
    )
    chosen, stronger, other, never = estimate_gains(
        log, states, [_Fixed(7, 2.0), _Fixed(7, 3.0), _Fixed(9, 2.0), _Fixed(7, 0.0)]
    )
    assert chosen is not None
    assert stronger is not None
    # It acts at four of the five logged states.
    assert (chosen.gain, stronger.gain) == pytest.approx((0.8 * 0.5, 0.8 * 0.9))
    assert other is None
    assert never == GainEstimate(0.0, 0.0, 5.0, 0.0)


def test_rounds_without_the_block_and_states_that_others_steered_say_nothing() -> None:
    log = _log(
        (0, 0, BLOCK, 7, 2.0, 0.5),
        (0, 1, BLOCK, 8, 2.0, 0.9),
        (1, 2, OTHER, 7, 2.0, 0.9),
        (2, 0, OTHER, 7, 2.0, 0.9),
    )
    assert log.of_block(BLOCK).state.tolist() == [0, 1]
    elsewhere = dataclasses.replace(
        log, steered=torch.tensor([UNSTEERED, OTHER, UNSTEERED, UNSTEERED])
    )
    assert elsewhere.of_block(BLOCK).state.tolist() == [0]
    assert elsewhere.of_block(OTHER).state.tolist() == [2, 0]


def _known(gain: float, num_effective: float = 100.0) -> GainEstimate:
    return GainEstimate(gain, 0.1, num_effective, 0.5)


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.sampled_from([0.1, 0.2, 0.3, None]), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 4),
)
def test_no_group_disappears_and_what_is_unknown_stays(
    rows: list[tuple[str, float | None, bool]], num_best: int
) -> None:
    candidates = [Candidate(f"{i}", group) for i, (group, _, _) in enumerate(rows)]
    estimates = [
        None if gain is None else _known(gain, MIN_EFFECTIVE * (1 if is_known else 0.9))
        for _, gain, is_known in rows
    ]
    tried = worth_trying(candidates, estimates, num_best)
    for group in {c.group for c in candidates}:
        mine = [i for i, c in enumerate(candidates) if c.group == group]
        known = [i for i in mine if rows[i][1] is not None and rows[i][2]]
        assert all(tried[i] for i in set(mine) - set(known))
        kept, out = [i for i in known if tried[i]], [i for i in known if not tried[i]]
        assert len(kept) == min(num_best, len(known))
        assert all((-rows[i][1], i) < (-rows[j][1], j) for i in kept for j in out)  # type: ignore[operator]


def test_only_modes_that_choose_entries_by_the_state_are_ranked() -> None:
    assert has_estimate(ValueSteering())
    assert has_estimate(SimilaritySteering())
    assert not has_estimate(ValueSteering(momentum_gate=0.9))
    for settings in (PreviewSteering(), HybridSteering(), StaticSteering(), NoSteering()):
        assert not has_estimate(settings)


def test_ranking_by_replays_needs_replays() -> None:
    asked = {"name": "a", "tune": {"num_shortlisted": 2}}
    assert RunConfig.model_validate(asked).ranks_by_replays
    assert not RunConfig(name="a").ranks_by_replays
    with pytest.raises(ValidationError, match=r"validation\.enabled is false"):
        RunConfig.model_validate({**asked, "validation": {"enabled": False}})


SETTINGS = (
    "splits={num_harvest: 16, num_tune: 12, num_test: 8}",
    "rollout.num_samples=3",
    "validation={num_rounds: 1, trials_per_round: 60, strengths: [3.0]}",
    "value.num_steps=30",
    # A margin that no gain exceeds: that such settings add nothing is known without a match.
    "tune={modes: [value, static], doubts: [1.0], candidates: [4], strengths: [3.0], margins: [0.0, 9.0, 10.0], "
    "num_halvings: 0, num_shortlisted: 1}",
    "generation={max_new_tokens: 80, max_rows: 64, chunk_completions: 12}",
    "distill.enabled=false",
)


def test_a_run_leaves_out_what_gains_least_and_comes_to_the_same_bytes_when_it_goes_on(
    tmp_path: Path,
) -> None:
    for verb in ("rollout", "harvest", "basis", "validate", "value", "tune"):
        done = run_smoke(tmp_path, *SETTINGS, verb=verb)
        assert done.returncode == 0, done.stderr
    stage = tmp_path / "smoke" / "tune"
    report = load_report(RunDir(tmp_path / "smoke").stage("tune"), TuneReport)
    shortlist = report.shortlist
    assert shortlist is not None
    assert len(shortlist.ranked) == 6, "a margin and a depth each; static has no estimate"
    silent = [s for s in shortlist.ranked if "margin9" in s.name or "margin10" in s.name]
    assert [s.estimate and s.estimate.gain for s in silent] == [0.0] * 4
    assert 3 <= shortlist.num_left_out <= 5
    tried = {trial.metrics.name for trial in report.trials}
    assert tried >= {setting.name for setting in shortlist.ranked if setting.is_tried}
    assert not tried & {setting.name for setting in shortlist.ranked if not setting.is_tried}
    assert {trial.settings.mode for trial in report.trials} == {"value", "static"}
    said = f"6 settings ranked by {shortlist.num_replays} replays, {6 - shortlist.num_left_out} decoded: saved"
    assert said in done.stdout + done.stderr
    manifest = json.loads((stage / "manifest.json").read_text())["files"]
    for name in ("complete", "manifest.json", "report.json"):
        (stage / name).unlink()
    next(stage.glob("value*/part-0/rollouts-00000.parquet")).unlink()
    again = run_smoke(tmp_path, *SETTINGS, verb="tune")
    assert again.returncode == 0, again.stderr
    assert json.loads((stage / "manifest.json").read_text())["files"] == manifest
