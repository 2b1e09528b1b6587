"""Stores read what a stage left by its directory alone, in part or in full, and refuse what is not whole."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from stir_train.artifacts import run_dir
from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import save_table
from stir_train.artifacts.tensors import TensorFile, save_tensors
from stir_train.errors import ArtifactError
from stir_train.stores import gathered
from stir_train.stores.contrasts import ContrastStore, save_contrasts
from stir_train.stores.rollouts import RolloutStore, rollouts_file, save_decisions, save_rollouts
from stir_train.stores.states import StateStore, save_states, states_file
from stir_train.types.steering import (
    Candidates,
    PlannedTrial,
    SteeringDecision,
)
from stir_train.types.trajectory import CapturedStates, StateLabel
from tests.support.stored import (
    BLOCKS,
    CHUNK,
    NUM_CHUNKS,
    WIDTH,
    begin_stage,
    captured_states,
    chunks_of_rollouts,
    write_chunk,
)


@pytest.fixture(params=["finished", "unfinished"])
def stage(request: pytest.FixtureRequest, tmp_path: Path) -> StageDir:
    made = begin_stage(tmp_path)
    for name in ("", "null", "round-01/block-3"):
        for number, rollouts in enumerate(chunks_of_rollouts()):
            write_chunk(made, name, number, rollouts)
    if request.param == "finished":
        made.finish({})
    return StageDir(made.path)


def test_sets_and_their_rollouts_are_found_without_being_told_of_the_job(stage: StageDir) -> None:
    store = RolloutStore(stage)
    assert store.sets() == ["", "null", "round-01/block-3"]
    assert store.chunks("null") == [rollouts_file("null", n) for n in range(NUM_CHUNKS)]
    everything = [graded for chunk in chunks_of_rollouts() for graded in chunk]
    assert store.read("round-01/block-3") == everything
    assert [
        (o.prompt_id, o.sample, o.num_tokens, o.correct, o.truncated, o.reward)
        for o in store.outcomes()
    ] == [
        (
            g.rollout.prompt_id,
            g.rollout.sample,
            len(g.rollout.token_ids),
            g.grade.correct,
            g.rollout.truncated,
            g.reward,
        )
        for g in everything
    ]
    with pytest.raises(ArtifactError, match=r"no rollouts in set 'greedy'; sets there: .*'null'"):
        store.read("greedy")


def test_rows_and_blocks_equal_the_full_read_and_labels_match(stage: StageDir) -> None:
    store = StateStore(stage)
    parts = [captured for _, captured in store.chunks("null")]
    full = CapturedStates.concatenate(parts)
    expected = CapturedStates.concatenate(
        [captured_states(chunk) for chunk in chunks_of_rollouts()]
    )
    assert full.labels == expected.labels
    assert torch.equal(full.states, expected.states)
    assert store.blocks("null") == BLOCKS

    labels, rollouts = store.labels("null"), RolloutStore(stage).read("null")
    assert [
        StateLabel(rollouts[r].rollout.prompt_id, rollouts[r].rollout.sample, p, i, t)
        for r, p, i, t in zip(
            *(getattr(labels, f.name).tolist() for f in dataclasses.fields(labels)), strict=True
        )
    ] == list(expected.labels)

    shuffled = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    index = torch.cat([shuffled[:17], shuffled[:3]])  # any order, rows more than once
    found = store.rows("null", blocks=(9, 2), where=index)
    assert torch.equal(found, expected.states[index][:, [2, 0]])
    mask = labels.point == 2
    assert torch.equal(store.rows("null", where=mask), expected.states[mask])
    assert store.rows("null", where=torch.zeros(0, dtype=torch.long)).shape == (0, 3, WIDTH)
    lazy = store.lazy("null", mask)
    assert torch.equal(torch.cat(list(lazy.pieces((5,)))), expected.states[mask][:, [1]])
    assert len(lazy) == int(mask.sum())


def test_a_block_is_read_without_the_others(
    stage: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    rows = TensorFile.rows
    monkeypatch.setattr(TensorFile, "rows", lambda *a: read.append(a[1]) or rows(*a))
    StateStore(stage).labels()
    assert not [name for name in read if name.startswith("states")]
    StateStore(stage).rows(blocks=(5,), where=torch.tensor([0, 20]))
    assert {name for name in read if name.startswith("states")} == {"states.block_5"}


def test_a_file_is_hashed_once_and_again_when_it_was_written_since(
    stage: StageDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    digest = run_dir.file_sha256
    monkeypatch.setattr(run_dir, "file_sha256", lambda p: hashed.append(p.name) or digest(p))
    store = RolloutStore(stage)
    for _ in range(3):
        store.read("null")
    assert sorted(hashed) == [Path(rollouts_file("", n)).name for n in range(NUM_CHUNKS)]
    path = stage.path / rollouts_file("null", 1)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="damaged"):
        store.read("null")


@pytest.mark.parametrize("kind", ["rollouts", "states"])
@pytest.mark.parametrize("harm", ["delete", "flip"])
def test_missing_and_damaged_files_are_errors_that_say_what_to_do(
    stage: StageDir, kind: str, harm: str
) -> None:
    file = rollouts_file if kind == "rollouts" else states_file
    path = stage.path / file("null", 1)
    if harm == "delete":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"(missing|damaged).*(run the|remake the stage)"):
        list(StateStore(stage).chunks("null"))
    assert RolloutStore(stage).read(""), "another set is as it was"


def test_an_unfinished_stage_reads_what_is_whole(tmp_path: Path) -> None:
    stage, chunks = begin_stage(tmp_path), chunks_of_rollouts()
    store = RolloutStore(stage)
    assert store.sets() == []
    write_chunk(stage, "", 0, chunks[0])
    save_states(
        stage,
        ("", 1),
        [g.rollout for g in chunks[1]],
        captured_states(chunks[1]),
        block_convention="output",
    )
    assert store.read() == chunks[0], "a chunk without its rollout table is not made yet"
    assert len(StateStore(stage).labels()) == 2 * CHUNK
    write_chunk(stage, "", 2, chunks[2])
    with pytest.raises(ArtifactError, match=r"chunk 1 of the unnamed set is missing.*run"):
        store.read()
    write_chunk(stage, "", 1, chunks[1])
    assert len(store.read()) == NUM_CHUNKS * CHUNK
    with pytest.raises(ArtifactError, match="missing; run it first"):
        RolloutStore(StageDir(tmp_path / "nothing")).read()


def test_tables_that_a_stage_did_not_write_are_refused(stage: StageDir) -> None:
    source = stage.path / rollouts_file("null", 0)
    (stage.path / rollouts_file("null", 7)).write_bytes(source.read_bytes())
    with pytest.raises(ArtifactError, match=r"rollouts-00007.parquet was not written by"):
        RolloutStore(stage).read("null")


def test_states_of_other_rollouts_are_refused(tmp_path: Path) -> None:
    stage, (first, *_) = begin_stage(tmp_path), chunks_of_rollouts()
    write_chunk(stage, "", 0, first)
    save_rollouts(stage, "", 0, first[:2])
    with pytest.raises(ArtifactError, match="do not belong together"):
        StateStore(stage).labels()


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    stage = begin_stage(tmp_path)
    save_table(stage, rollouts_file("", 0), PlannedTrial, [PlannedTrial(0, 5, 0, 1.0, 0.5)])
    for read in (RolloutStore(stage).read, RolloutStore(stage).outcomes):
        with pytest.raises(ArtifactError, match=r"expected columns|table of rollouts"):
            read()


def test_decisions_read_back(tmp_path: Path) -> None:
    stage, (first, *_) = begin_stage(tmp_path), chunks_of_rollouts()
    decision = SteeringDecision("p", 0, 1, 4, 5, (3, 1), (0.5, 0.25), 0.1, 3, 2.0)
    write_chunk(stage, "greedy", 0, first)
    save_decisions(stage, "greedy", 0, [decision])
    assert RolloutStore(stage).decisions("greedy") == [decision]


@pytest.mark.parametrize(
    "columns", [slice(0, 2 * WIDTH), slice(WIDTH, 2 * WIDTH), slice(0, 3 * WIDTH)]
)
def test_gathered_states_are_the_same_in_memory_and_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: slice
) -> None:
    stage = begin_stage(tmp_path)
    for number, rollouts in enumerate(chunks_of_rollouts()):
        write_chunk(stage, "", number, rollouts)
    lazy = StateStore(stage).lazy()
    held, mixed = gathered.GatheredStates(tmp_path / "none"), gathered.GatheredStates(tmp_path)
    held.add(lazy)
    held.add(lazy)
    assert not (tmp_path / "none").exists()
    mixed.add(lazy)
    monkeypatch.setattr(gathered, "HELD_BYTES", 0)
    mixed.write(lazy)
    mixed.add(lazy)
    index = torch.tensor([5, 6, 7, 29, 0, 6])
    for chosen in (index, index + 30, torch.cat([index, index + 30])):
        expected = StateStore(stage).rows(where=chosen % 30).flatten(1)[:, columns]
        assert torch.equal(held.rows(chosen, columns), expected)
        assert torch.equal(mixed.rows(chosen, columns), expected)
    (scratch,) = tmp_path.glob("states-*")
    scratch.write_bytes(scratch.read_bytes()[:100])
    with pytest.raises(ArtifactError, match="truncated"):
        mixed.rows(index + 30, columns)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"[]"])
def test_a_file_that_is_no_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ArtifactError, match="cannot be read as safetensors"):
        TensorFile(tmp_path / "x")


def test_a_tensor_of_another_name_or_dtype_is_refused(tmp_path: Path) -> None:
    stage = begin_stage(tmp_path)
    save_tensors(stage, "x", {"half": torch.zeros(2, dtype=torch.float16)}, {"a": "1"})
    file = TensorFile(stage.verified("x"))
    assert file.metadata == {"a": "1"}
    with pytest.raises(ArtifactError, match="no tensor 'whole'; it holds half"):
        file.tensor("whole")
    with pytest.raises(ArtifactError, match="is F16"):
        file.tensor("half")


def _contrasts(seed: int, count: int) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(2, count, len(BLOCKS), WIDTH, generator=generator)
    return Candidates(
        prompt_ids=tuple(f"{seed}{i}" for i in range(count)),
        points=torch.arange(count) % 3 + 1,
        quality=torch.rand(count, generator=generator),
        mean_right=means[0],
        mean_wrong=means[1],
        saves_tokens=torch.arange(count) >= count // 2,
        blocks=BLOCKS,
    )


def test_contrasts_read_by_block_and_kind_equal_what_was_written(tmp_path: Path) -> None:
    stage = begin_stage(tmp_path)
    written = [_contrasts(seed, count) for seed, count in enumerate((5, 0, 8))]
    for number in (0, 2):
        save_contrasts(stage, number, written[number])
    with pytest.raises(ArtifactError, match=r"candidates-00001.safetensors is missing; run"):
        ContrastStore(stage).read()
    save_contrasts(stage, 1, written[1])
    for found, expected in zip(ContrastStore(stage).read(), written, strict=True):
        assert found.prompt_ids == expected.prompt_ids
        assert (found.blocks, found.width, len(found)) == (BLOCKS, WIDTH, len(expected))
        for column in ("points", "quality", "saves_tokens"):
            assert torch.equal(getattr(found, column), getattr(expected, column))
        for block in BLOCKS:
            for where in (None, expected.saves_tokens, torch.arange(len(expected)).flip(0)):
                for one, other in zip(
                    found.means(block, where), expected.means(block, where), strict=True
                ):
                    assert torch.equal(one, other)
