"""What a run holds is looked at again: by a finished run, by a single verb, by `inspect`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.artifacts.verification import SMALL_BYTES, damage_of
from tests.support.commands import stir_train
from tests.support.smoke import run_smoke

VERBS = ("rollout", "harvest", "basis")


@pytest.fixture(scope="module")
def made(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three stages of one seed, and of another beside them."""
    output = tmp_path_factory.mktemp("made")
    for stage in VERBS:
        shutil.copytree(finished / "smoke" / stage, output / "smoke" / stage)
    shutil.copy(finished / "smoke" / "config.yaml", output / "smoke")
    for verb in VERBS:
        done = run_smoke(output, "name=other", "seed=1", verb=verb)
        assert done.returncode == 0, done.stderr
    return output


@pytest.fixture
def output(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "runs"))


def _damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])


def _a_file_of(stage: Path) -> Path:
    names = json.loads((stage / "manifest.json").read_text())["files"]
    return stage / max(names, key=lambda name: names[name]["bytes"])


@pytest.mark.parametrize("how", ["deleted", "truncated", "flipped"])
@pytest.mark.parametrize("stage", ["rollout", "basis"])
def test_inspect_and_the_run_itself_find_a_damaged_file(output: Path, stage: str, how: str) -> None:
    run = output / "smoke"
    whole = stir_train("inspect", str(run), "--deep")
    assert whole.returncode == 0, whole.stderr
    file = _a_file_of(run / stage)
    assert file.stat().st_size <= SMALL_BYTES, "a quick look hashes it"
    _damage(file, how)
    looked = stir_train("inspect", str(run))
    assert looked.returncode == 1
    assert str(file) in looked.stderr
    assert "damaged" in looked.stdout
    again = run_smoke(output, verb=stage)
    assert again.returncode == 1
    assert str(file) in again.stderr, again.stderr
    # The verb after it does not read this file, perhaps, but is made from the stage.
    following = run_smoke(output, verb="validate")
    assert following.returncode == 1
    assert str(file) in following.stderr, following.stderr


def test_a_large_file_is_known_by_its_size_quickly_and_by_its_bytes_deeply(tmp_path: Path) -> None:
    stage = StageDir(tmp_path / "rollout")
    stage.begin(StageInputs({}, {}))
    with stage.writing("large.bin") as path:
        path.write_bytes(bytes(SMALL_BYTES + 1))
    stage.finish({})
    assert damage_of(stage, deep=True) == []
    (stage.path / "large.bin").write_bytes(bytes(SMALL_BYTES) + b"1")
    assert damage_of(stage, deep=False) == []
    assert "sha256" in damage_of(stage, deep=True)[0]
    (stage.path / "large.bin").write_bytes(bytes(SMALL_BYTES))
    assert "bytes" in damage_of(stage, deep=False)[0]


def test_settings_that_were_altered_after_a_stage_finished_are_found(output: Path) -> None:
    file = output / "smoke" / "harvest" / "stage.json"
    file.write_text(file.read_text().replace('"num_positive": 4', '"num_positive": 5') + " ")
    values = json.loads(file.read_text())
    file.write_text(json.dumps({**values, "sources": {}}))
    looked = stir_train("inspect", str(output / "smoke"))
    assert looked.returncode == 1
    assert "stage.json was altered" in looked.stderr


@pytest.mark.parametrize("swapped", [("rollout",), ("harvest",), ("basis",), VERBS])
def test_a_single_verb_refuses_what_another_seed_made(
    output: Path, swapped: tuple[str, ...]
) -> None:
    for stage in swapped:
        shutil.rmtree(output / "smoke" / stage)
        shutil.copytree(output / "other" / stage, output / "smoke" / stage)
    done = run_smoke(output, verb="validate")
    assert done.returncode == 1
    assert "made with other settings" in done.stderr, done.stderr
    assert not (output / "smoke" / "validate").exists()
    discarded = run_smoke(output, "--redo", verb="basis")
    assert (discarded.returncode == 1) is (swapped != ("basis",)), discarded.stderr
    assert (output / "smoke" / "basis").exists()
    if len(swapped) == 1 and swapped != ("basis",):
        looked = stir_train("inspect", str(output / "smoke"))
        assert "was made from another" in looked.stderr


def test_a_single_verb_refuses_what_another_model_made(output: Path, tmp_path: Path) -> None:
    from stir_train.models.locate import EMBEDDED_ROOT

    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_ROOT / "addition-blind", model)
    done = run_smoke(output, f"model.name={model}", verb="validate")
    assert done.returncode == 1
    assert "model weights has changed since" in done.stderr, done.stderr
    assert not (output / "smoke" / "validate").exists()


def test_a_single_verb_of_the_runs_own_settings_goes_on(output: Path) -> None:
    done = run_smoke(output, verb="basis")
    assert done.returncode == 0, done.stderr
    assert "nothing to do" in done.stderr


def _reads(run: Path, *arguments: str) -> None:
    """Check the lineage of the basis, as a verb does that only reads."""
    from stir_train.cli.arguments import load
    from stir_train.monitoring.console import make_console
    from stir_train.runtime.attempt import read_run
    from stir_train.runtime.lineage import require_lineage

    with read_run(load(run, list(arguments)), make_console()) as context:
        require_lineage(context, "basis")


def test_a_verb_that_reads_goes_by_the_runs_own_lineage(output: Path, tmp_path: Path) -> None:
    from stir_train.errors import ArtifactError
    from stir_train.models.locate import EMBEDDED_ROOT

    run = output / "smoke"
    _reads(run)
    _reads(run, "generation.max_new_tokens=16")
    model = tmp_path / "model"
    shutil.copytree(EMBEDDED_ROOT / "addition-blind", model)
    with pytest.raises(ArtifactError, match="basis was made with another model weights"):
        _reads(run, f"model.name={model}")
    with pytest.raises(ArtifactError, match="rollout was made with seed 0, not 7"):
        _reads(run, "seed=7")


@pytest.mark.parametrize("swapped", [("rollout",), ("harvest",), ("basis",), VERBS])
def test_a_verb_that_reads_refuses_what_another_seed_made(
    output: Path, swapped: tuple[str, ...]
) -> None:
    from stir_train.errors import ArtifactError

    for stage in swapped:
        shutil.rmtree(output / "smoke" / stage)
        shutil.copytree(output / "other" / stage, output / "smoke" / stage)
    with pytest.raises(ArtifactError, match="was made with seed 1, not 0"):
        _reads(output / "smoke")


def test_a_verb_that_reads_refuses_a_damaged_source(output: Path) -> None:
    from stir_train.errors import ArtifactError

    file = _a_file_of(output / "smoke" / "rollout")
    _damage(file, "flipped")
    with pytest.raises(ArtifactError, match=file.name):
        _reads(output / "smoke")


def test_redo_that_is_only_shown_says_what_it_would_remake(output: Path) -> None:
    before = {path: path.lstat().st_mtime_ns for path in (output / "smoke").rglob("*")}
    shown = run_smoke(output, "--redo", "--dry-run", "--no-measure", verb="harvest")
    assert shown.returncode == 0, shown.stderr
    said = {line.split()[0]: line for line in shown.stdout.splitlines() if line.split()}
    assert "to remake" in said["harvest"]
    whole = run_smoke(output, "--redo", "--dry-run", "--no-measure")
    said = {line.split()[0]: line for line in whole.stdout.splitlines() if line.split()}
    assert all("to remake" in said[name] for name in VERBS)
    assert "to do" in said["validate"]
    assert not [line for line in whole.stdout.splitlines() if " done " in line]
    assert {path: path.lstat().st_mtime_ns for path in (output / "smoke").rglob("*")} == before
