"""What validation tried, read by its directory alone."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.artifacts.tensors import TensorFile
from stir_train.errors import ArtifactError, StageError
from stir_train.stores import gathered
from stir_train.stores.interventions import (
    GREEDY_SET,
    InterventionStore,
    round_set,
    save_plan,
    save_trials,
)
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.rollout import GradedRollout, Impulse
from stir_train.types.steering import (
    UNSTEERED,
    ControlBasis,
    Intervention,
    PlannedTrial,
)
from stir_train.value.examples import HeadData
from tests.support.stored import (
    BLOCKS,
    CHUNK,
    NUM_CHUNKS,
    WIDTH,
    begin_stage,
    captured_states,
    chunks_of_rollouts,
    stored_rollout,
    write_chunk,
)


def _steered(number: int, sample: int) -> GradedRollout:
    graded = stored_rollout(number, (Impulse(2, 5, 0, 1.0),))
    return dataclasses.replace(graded, rollout=dataclasses.replace(graded.rollout, sample=sample))


def _trial(state: int, item: GradedRollout) -> Intervention:
    length = len(item.rollout.token_ids)
    return Intervention(
        item.rollout.prompt_id, state, 1, 2, 5, 0, 1.0, 0.5, True, True, length, False, length
    )


@pytest.fixture
def validation(tmp_path: Path) -> StageDir:
    stage = begin_stage(tmp_path)
    for number, rollouts in enumerate(chunks_of_rollouts()):
        write_chunk(stage, GREEDY_SET, number, rollouts)
    for number in range(2):
        trials = [_steered(i, 100 + 10 * number + i) for i in range(6)]
        save_plan(stage, number, [PlannedTrial(i, 5, 0, 1.0, 0.5) for i in range(len(trials))])
        for chunk, part in enumerate((trials[:4], trials[4:])):
            write_chunk(stage, round_set(number), chunk, part)
            save_trials(stage, number, chunk, [_trial(i, item) for i, item in enumerate(part)])
    return stage


def test_what_validation_tried_is_read_by_its_directory(validation: StageDir) -> None:
    store = InterventionStore(validation)
    assert store.num_rounds() == 2
    data, greedy = store.read(), store.read(0)
    num_greedy = NUM_CHUNKS * CHUNK
    assert len(greedy.graded) == num_greedy
    assert len(data.graded) == num_greedy + 12
    assert (len(greedy.trials), len(store.read(1).trials), len(data.trials)) == (0, 6, 12)
    # Trials were steered at token 2, so that of their control points (2, 4) one comes after.
    assert len(data.labels) == len(data.states) == 2 * num_greedy + 12
    assert set(data.labels.token_index[2 * num_greedy :].tolist()) == {4}
    assert data.labels.rollout[2 * num_greedy :].tolist() == list(
        range(num_greedy, num_greedy + 12)
    )
    assert data.steered().tolist() == [UNSTEERED] * 2 * num_greedy + [5] * 12
    last = data.states.gather(torch.tensor([len(data.states) - 1]))[0]
    made = RolloutStore(validation).read_chunk(round_set(1), 1)
    assert torch.equal(last, captured_states(made).states[-1])


def test_states_are_gathered_once_for_all_heads_and_rounds(
    validation: StageDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = StageDir(tmp_path / "sampled")
    sampled.begin(StageInputs({}, {}))
    for number, rollouts in enumerate(chunks_of_rollouts()):
        write_chunk(sampled, "", number, rollouts)
    read: Counter[tuple[str, str]] = Counter()
    rows = TensorFile.rows

    def counted(file: TensorFile, name: str, index: torch.Tensor) -> torch.Tensor:
        read[str(file.path), name] += name.startswith("states")
        return rows(file, name, index)

    monkeypatch.setattr(TensorFile, "rows", counted)
    basis = ControlBasis(
        keys=torch.ones(1, WIDTH),
        directions=torch.full((1, WIDTH), 2.0),
        blocks=torch.tensor([5]),
        points=torch.tensor([1]),
        quality=torch.ones(1),
        is_anchor=torch.zeros(1, dtype=torch.bool),
        saves_tokens=torch.zeros(1, dtype=torch.bool),
        contrast=torch.zeros(1, dtype=torch.long),
    )
    made = []
    for held in (1 << 28, 0):
        monkeypatch.setattr(gathered, "HELD_BYTES", held)
        head_data = HeadData(RolloutStore(sampled), tmp_path / "scratch", reads_below=True)
        read.clear()
        for num_rounds in (1, 2):
            data = InterventionStore(validation).read(num_rounds)
            for states in head_data.missing(data):
                head_data.states.write(states)
                head_data.states.add(states)
            assert not list(head_data.missing(data))
            made.append([])
            for block in BLOCKS:
                observed, caused = head_data.examples(data, basis, block)
                assert caused is not None
                made[-1] += [observed.batch(), caused.batch()]
        assert set(read.values()) == {0, 1}, "columns are not counted, states are read once"
    for held_batches, scratch_batches in zip(made[:2], made[2:], strict=True):
        for one, other in zip(held_batches, scratch_batches, strict=True):
            assert all(torch.equal(vars(one)[name], vars(other)[name]) for name in vars(one))
    (_, _, _, of_five, *_) = made[1]
    assert [batch.states.shape[1] for batch in made[1][::2]] == [WIDTH, 2 * WIDTH, 3 * WIDTH]
    # All 30 greedy states, the 12 that trials of block 5 reached, and 12 with an impulse there.
    assert len(of_five.points) == 30 + 12 + 12
    assert of_five.impulses.sum(1).tolist() == [0] * 42 + [2 * WIDTH] * 12


@pytest.mark.parametrize("suffix", ["trials-00001.parquet", "rollouts-00001.parquet"])
def test_a_round_that_lacks_trials_is_an_error(validation: StageDir, suffix: str) -> None:
    (validation.path / round_set(1) / suffix).unlink()
    with pytest.raises(ArtifactError, match=r"round 1 planned 6 trials, 4 are there; run"):
        InterventionStore(validation).read()
    assert len(InterventionStore(validation).read(1).trials) == 6


def test_greedy_rollouts_without_a_control_point_are_nowhere_to_steer(tmp_path: Path) -> None:
    stage = begin_stage(tmp_path)
    rollouts = [
        dataclasses.replace(g, rollout=dataclasses.replace(g.rollout, control_points=()))
        for g in chunks_of_rollouts()[0]
    ]
    write_chunk(stage, GREEDY_SET, 0, rollouts)
    with pytest.raises(StageError, match="nowhere to steer"):
        InterventionStore(stage).read()
