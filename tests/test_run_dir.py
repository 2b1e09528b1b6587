"""Stage directories: whole, checked and traceable, or refused."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from stir_train.artifacts.run_dir import RunDir, StageDir, StageInputs
from stir_train.artifacts.tables import load_table, save_table
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.errors import ArtifactError
from stir_train.types.rollout import Grade, GradedRollout, Impulse, Rollout

INPUTS = StageInputs(config={"basis": {"size": 4}}, sources={"stage harvest": "abc"})


def _stage(tmp_path: Path) -> StageDir:
    stage = StageDir(tmp_path / "basis")
    assert stage.begin(INPUTS)
    save_tensors(stage, "part/a.safetensors", {"x": torch.arange(6.0)}, {"b": "1", "a": "2"})
    return stage


def test_a_finished_stage_reads_back_and_is_not_redone(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    assert not stage.is_complete
    with pytest.raises(ArtifactError, match="unfinished"):
        stage.file("part/a.safetensors")
    stage.finish({"num": 6})
    tensors, metadata = load_tensors(stage.file("part/a.safetensors"))
    assert torch.equal(tensors["x"], torch.arange(6.0))
    assert metadata == {"a": "2", "b": "1"}
    assert not StageDir(stage.path).begin(INPUTS)
    with pytest.raises(ArtifactError, match="no file 'b'"):
        stage.file("b")


def test_other_inputs_are_refused_by_name(tmp_path: Path) -> None:
    _stage(tmp_path).finish({})
    for changed, message in (
        (StageInputs({"basis": {"size": 5}}, INPUTS.sources), "basis.size: 4 then, 5 now"),
        (StageInputs(INPUTS.config, {"stage harvest": "xyz"}), "stage harvest has changed since"),
    ):
        with pytest.raises(ArtifactError, match=message):
            StageDir(tmp_path / "basis").begin(changed)
    StageDir(tmp_path / "none").require_settings({"basis": {"size": 5}})
    StageDir(tmp_path / "basis").require_settings(INPUTS.config)
    with pytest.raises(ArtifactError, match=r"basis.size: 4 then, 5 now"):
        StageDir(tmp_path / "basis").require_settings({"basis": {"size": 5}})


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "manifest", "schema", "marker"])
def test_damage_is_found(tmp_path: Path, damage: str) -> None:
    stage = _stage(tmp_path)
    stage.finish({})
    file, manifest = stage.path / "part" / "a.safetensors", stage.path / "manifest.json"
    content = bytearray(file.read_bytes())
    if damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "flip":
        content[-1] ^= 1
        file.write_bytes(content)
    elif damage == "delete":
        file.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace("abc", "abd"))
    elif damage == "marker":
        (stage.path / "complete").write_bytes(b"\x80\x02")
    else:
        values = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**values, "schema": 99}))
    with pytest.raises(ArtifactError, match=r"damaged|missing|altered|schema version"):
        stage.file("part/a.safetensors")


def test_damaged_records_of_an_unfinished_stage_are_named_or_made_again(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    assert stage.has("part/a.safetensors")
    for checksum in (file for file in (stage.path / ".checksums").rglob("*") if file.is_file()):
        checksum.write_bytes(b"\x80\x02")
    assert not stage.has("part/a.safetensors")
    for content in (b"{}", b'{"config": []}', b"[]", b"\x80"):
        (stage.path / "stage.json").write_bytes(content)
        with pytest.raises(ArtifactError, match=r"stage\.json"):
            stage.settings()


def test_what_a_killed_writer_left_is_gone_when_the_stage_goes_on(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    left = [stage.path / "b.host-1.partial", stage.path / "part" / ".tmpA1b2C3"]
    for path in left:
        path.write_text("half")
    assert stage.begin(INPUTS)
    assert not any(path.exists() for path in left)
    assert stage.has("part/a.safetensors")


def test_what_one_killed_while_opening_a_stage_left_is_gone_too(tmp_path: Path) -> None:
    left = tmp_path / "basis" / "stage.json.host-1.partial"
    left.parent.mkdir()
    left.write_text("{")
    assert StageDir(left.parent).begin(INPUTS)
    assert not left.exists()


def test_a_failed_write_leaves_nothing_and_a_damaged_chunk_is_made_again(tmp_path: Path) -> None:
    stage = _stage(tmp_path)

    def fail() -> None:
        with stage.writing("b") as path:
            path.write_text("half")
            raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert not (stage.path / "b").exists()
    assert not list(stage.path.rglob("*.partial"))
    assert not stage.has("b")
    assert stage.has("part/a.safetensors")
    (stage.path / "part" / "a.safetensors").write_bytes(b"junk")
    assert not stage.has("part/a.safetensors")


def test_values_that_are_not_finite_are_never_stored(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    bad = torch.tensor([1.0, float("nan"), float("inf")])
    with pytest.raises(ArtifactError, match="2 of 3 values of 'states' are not finite"):
        save_tensors(stage, "bad.safetensors", {"states": bad}, {})
    assert not stage.has("bad.safetensors")


def test_records_survive_a_table(tmp_path: Path) -> None:
    stage = _stage(tmp_path)
    rollout = Rollout(
        "p", 1, (1, 2), (3, 4), (-0.5, float("nan")), (0,), "stop", (Impulse(0, 4, 7, 1.5),), 8, 2
    )
    rows = [GradedRollout(rollout, "text\n\n§", Grade(True, "4", "equal"), 0.99)]
    save_table(stage, "rows.parquet", GradedRollout, rows)
    (back,) = load_table(stage.path / "rows.parquet", GradedRollout)
    assert repr(back) == repr(rows[0])  # NaN is not equal to itself

    @dataclass(frozen=True)
    class Other:
        x: int

    with pytest.raises(ArtifactError, match="expected columns"):
        load_table(stage.path / "rows.parquet", Other)
    (stage.path / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ArtifactError, match="cannot be read as Parquet"):
        load_table(stage.path / "rows.parquet", GradedRollout)


def test_two_processes_cannot_hold_one_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    second = RunDir(run.path)
    with run.locked(), pytest.raises(ArtifactError, match="in use by another"), second.locked():
        pass
    with run.locked():
        assert run.new_attempt().name == "attempt_1"
        assert run.new_attempt().name == "attempt_2"
