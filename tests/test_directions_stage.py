"""The stage that makes directions, and runs that steer by them: resumed, abstaining, to the report."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
from gguf import GGUFReader

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.inputs import ModelConfig
from stir_train.config.load import load_config
from stir_train.config.pipeline import STAGES, stages_off
from stir_train.config.run import RunConfig
from stir_train.config.steering import VectorAction, VectorSteering
from stir_train.directions.controls import permuted_directions
from stir_train.errors import ConfigError
from stir_train.generation.controller import controllers_of
from stir_train.generation.fixed import FixedVector
from stir_train.models.load import load_model
from stir_train.monitoring.console import make_console
from stir_train.recipes import directions as recipe
from stir_train.runtime.attempt import read_run
from stir_train.runtime.direction_steps import (
    VECTORS_FILE,
    shuffled_vectors,
    step_files,
    step_gradients,
)
from stir_train.runtime.directions import advantages_of
from stir_train.steering.artifacts import open_run_artifacts
from stir_train.stores.directions import DIRECTIONS_FILE, load_directions
from stir_train.stores.reports import load_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.tools.compare import read_results
from stir_train.types.reports import DirectionsReport
from stir_train.types.results import TuneReport
from tests.support.commands import stir_train
from tests.support.ranks import outputs, run_ranks
from tests.support.smoke import ONE_VECTOR, SMOKE, run_smoke, smoke_arguments

HELD = 27.9
"""The norm that such a run chooses: a tenth of the typical norm of a state there."""
WITHOUT = ("harvest", "basis", "validate", "value")


def _run(output: Path, *more: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
    return run_smoke(output, *ONE_VECTOR, *more, verb=verb)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("vectors")
    done = _run(output)
    assert done.returncode == 0, done.stderr
    assert "above" in done.stderr
    assert "passes" in done.stderr
    return output


def _digests(stage: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(stage.glob("*"))
        if path.is_file() and path.name not in ("complete", "manifest.json")
    }


def test_a_run_of_vectors_makes_no_basis_and_ends_with_a_report(finished: Path) -> None:
    run = RunDir(finished / "smoke")
    assert not [name for name in WITHOUT if run.stage(name).path.exists()]
    results = read_results(run.path)
    assert [row.name for row in results.methods] == [
        "greedy",
        "stir",
        "control-random-0",
        "control-random-1",
        "control-random-2",
        "control-shuffled-rewards",
        "control-mean-difference",
    ]
    chosen = results.find("stir")
    assert chosen is not None
    assert chosen.steering == VectorSteering(
        actions=(VectorAction(place="every_token", depth=0.8, strength=HELD),)
    )
    page = (run.path / "report" / "report.html").read_text()
    assert "Is there anything to steer?" in page
    assert "Value head" not in page
    again = _run(finished)
    assert again.stderr.count("nothing to do") == len(STAGES) - len(WITHOUT) - 3


def test_the_report_says_what_was_used_and_what_it_cost(finished: Path) -> None:
    stage = RunDir(finished / "smoke").stage("directions")
    report = load_report(stage, DirectionsReport)
    assert {row.place for row in report.table} == {"prompt_end", "everywhere"}
    assert [row.place for row in report.passing] == ["everywhere"]
    rewards: dict[str, set[bool]] = {}
    graded = RolloutStore(RunDir(finished / "smoke").stage("rollout")).read()
    for item in graded:
        rewards.setdefault(item.rollout.prompt_id, set()).add(item.grade.correct)
    mixed = {prompt for prompt, seen in rewards.items() if len(seen) == 2}
    used = [item.rollout for item in graded if item.rollout.prompt_id in mixed]
    assert (report.num_rollouts, report.num_problems) == (len(graded), len(rewards))
    assert (report.num_used, report.num_mixed) == (len(used), len(mixed))
    assert report.recorded_tokens == sum(
        len(rollout.prompt_token_ids) + len(rollout.token_ids) for rollout in used
    )
    assert report.token_forwards < 2 * report.recorded_tokens


def test_a_strength_is_the_norm_along_the_saved_direction(finished: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stir_train.models.identity import identify_model
    from stir_train.models.locate import EMBEDDED_ROOT
    from stir_train.steering.attach import steering

    run = finished / "smoke"
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_ROOT / "addition", padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED_ROOT / "addition")
    identity = identify_model(model, tokenizer)
    artifacts = open_run_artifacts(run, identity)
    made = artifacts.controller(artifacts.choice(), device=model.device)
    assert isinstance(made, tuple)
    (vector,) = made
    assert isinstance(vector, FixedVector)
    saved = load_directions(run / "directions" / DIRECTIONS_FILE, identity)
    torch.testing.assert_close(vector.vector, saved.vector(vector.block, "everywhere"))
    torch.testing.assert_close(vector.vector.norm(), torch.tensor(1.0))
    assert (vector.place, vector.strength) == ("every_token", HELD)

    graded = RolloutStore(RunDir(run).stage("evaluate")).read("stir")
    inputs = tokenizer(
        [tokenizer.decode(g.rollout.prompt_token_ids) for g in graded],
        return_tensors="pt",
        padding=True,
    )
    inputs.pop("token_type_ids", None)
    with steering(model, tokenizer, run):
        output = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    width = inputs["input_ids"].shape[1]
    for row, item in zip(output[:, width:].tolist(), graded, strict=True):
        assert row[: len(item.rollout.token_ids)] == list(item.rollout.token_ids)
    plain = RolloutStore(RunDir(run).stage("evaluate")).read("greedy")
    assert [g.rollout.token_ids for g in graded] != [g.rollout.token_ids for g in plain]
    nowhere = VectorSteering(actions=(VectorAction(place="segment", depth=0.8, strength=1),))
    with pytest.raises(ConfigError, match="no direction for segment"):
        artifacts.controller(nowhere, device=model.device)


def test_the_chosen_vector_is_what_is_exported(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "lm-eval"
    done = _run(finished, "--format", "lm-eval", "--to", str(target), verb="export")
    assert done.returncode == 0, done.stderr
    assert "the chosen controller itself" in done.stderr
    (held,) = torch.load(target / "steer.pt", weights_only=True).values()
    vector = held["steering_vector"].flatten()
    torch.testing.assert_close(vector.norm(), torch.tensor(HELD))
    row = read_results(finished / "smoke").find("stir")
    assert row is not None
    card = (target / "README.md").read_text()
    assert f"{100 * row.metrics.accuracy:.1f} %" in card
    asked = _run(finished, "--format", "gguf", "--to", str(tmp_path / "gguf"), verb="export")
    assert asked.returncode == 0, asked.stderr
    fields = GGUFReader(tmp_path / "gguf" / "control-vector.gguf").fields
    assert fields["general.description"].contents() in card


def test_a_vector_run_is_published_with_its_directions(finished: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from stir_train.steering.loaded import load_run

    folder = tmp_path / "run"
    done = _run(finished, "--format", "run", "--to", str(folder), verb="export")
    assert done.returncode == 0, done.stderr
    assert "no licence" in done.stderr
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "directions.safetensors",
        "steering.json",
    }
    run = load_run(folder)
    assert run.adapter is None
    tokenizer = AutoTokenizer.from_pretrained(run.base_model)
    model = AutoModelForCausalLM.from_pretrained(run.base_model)
    (vector,) = controllers_of(
        run.artifacts(model, tokenizer).controller(run.choice, device=model.device)
    )
    assert isinstance(vector, FixedVector)
    assert (vector.place, vector.strength) == ("every_token", HELD)


def test_a_vector_that_was_not_evaluated_is_not_exported(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "copy")
    for stage in ("evaluate", "report"):
        shutil.rmtree(tmp_path / "copy" / "smoke" / stage)
    to = str(tmp_path / "lm-eval")
    refused = _run(tmp_path / "copy", "--format", "lm-eval", "--to", to, verb="export")
    assert refused.returncode == 1
    assert "the run is not evaluated yet" in refused.stderr


def test_a_stage_stopped_between_chunks_goes_on_to_the_same_bytes(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "smoke" / "rollout", tmp_path / "smoke" / "rollout")
    whole, num_made = recipe.rollout_gradients, 0

    def stop_at_the_third(*arguments: object, **named: object) -> object:
        nonlocal num_made
        num_made += 1
        if num_made == 3:
            raise KeyboardInterrupt
        return whole(*arguments, **named)  # type: ignore[arg-type]

    with mock.patch.object(recipe, "rollout_gradients", stop_at_the_third):
        assert _run(tmp_path, verb="directions").returncode != 0
    stage = tmp_path / "smoke" / "directions"
    assert len(list(stage.glob("gradients-*"))) == 2
    resumed = _run(tmp_path, verb="directions")
    assert resumed.returncode == 0, resumed.stderr
    assert _digests(stage) == _digests(finished / "smoke" / "directions")


def test_a_second_step_goes_from_where_the_first_came_to(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "smoke" / "rollout", tmp_path / "smoke" / "rollout")
    done = _run(tmp_path, "directions.num_steps=2", verb="directions")
    assert done.returncode == 0, done.stderr
    assert "step 2: samples" in " ".join(done.stderr.split())
    stage = RunDir(tmp_path / "smoke").stage("directions")
    first, second = load_report(stage, DirectionsReport).steps
    assert (first.number, first.acting, second.number) == (1, (), 2)
    (acting,) = second.acting
    assert (acting.place, acting.norm) == ("every_token", 0.05 * first.table[0].state_norm)
    assert (
        first.table
        == load_report(RunDir(finished / "smoke").stage("directions"), DirectionsReport).table
    )
    made = RolloutStore(stage).read("step-2")
    plain = RolloutStore(RunDir(tmp_path / "smoke").stage("rollout")).read()
    assert [g.rollout.prompt_id for g in made] == [g.rollout.prompt_id for g in plain]
    impulses = [one for g in made for one in g.rollout.impulses]
    assert len(impulses) == len(made)
    assert {one.place for one in impulses} == {"every_token"}
    assert [one.strength for one in impulses] == pytest.approx([acting.norm] * len(made))
    assert [g.rollout.token_ids for g in made] != [g.rollout.token_ids for g in plain]

    identity = load_model(ModelConfig(name="embedded/addition")).identity
    before = load_directions(stage.file(VECTORS_FILE), identity)
    after = load_directions(stage.file(f"step-2/{VECTORS_FILE}"), identity)
    final = load_directions(stage.file(DIRECTIONS_FILE), identity)
    assert torch.equal(final.directions, after.directions)
    at = after.places.index("everywhere")
    passed = any(row.passes(0.05) for row in second.table if row.place == "everywhere")
    assert torch.equal(before.directions[at], after.directions[at]) is not passed
    torch.testing.assert_close(after.directions[at].norm(), torch.tensor(1.0))
    other = after.places.index("prompt_end")
    assert torch.equal(before.directions[other], after.directions[other])
    # The control from shuffled rewards goes the same way, from both steps' gradients.
    config = load_config(RunConfig, tmp_path / "smoke" / "config.yaml", [])
    with read_run(config, make_console()) as context:
        shuffled = shuffled_vectors(context)
        gradients = step_gradients(context, stage, step_files(context, stage, 1))
        worth = advantages_of(context, list(plain))
    one = permuted_directions(gradients, worth, seed=config.seed).directions
    block = acting.block
    assert torch.equal(shuffled.vector(block, "prompt_end"), one.vector(block, "prompt_end"))
    both = shuffled.vector(block, "everywhere"), one.vector(block, "everywhere")
    assert torch.equal(*both) is not passed
    torch.testing.assert_close(both[0].norm(), torch.tensor(1.0))


def test_one_lost_file_of_answers_side_by_side_is_made_again_and_no_other(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "smoke", tmp_path / "smoke")
    stage = tmp_path / "smoke" / "evaluate"
    answers = sorted(stage.glob("*/rollouts-*.parquet"))
    assert len(answers) > 4
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in answers}
    lost = stage / "control-random-1" / "rollouts-00000.parquet"
    for path in (lost, stage / "complete"):
        path.unlink()
    done = _run(tmp_path, verb="evaluate")
    assert done.returncode == 0, done.stderr
    assert {path: path.read_bytes() for path in answers} == {p: b for p, (b, _) in before.items()}
    made = [path for path in answers if path.stat().st_mtime_ns != before[path][1]]
    assert made == [lost]


@pytest.mark.slow
def test_two_ranks_make_what_one_process_makes(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "smoke" / "rollout", tmp_path / "smoke" / "rollout")
    arguments = smoke_arguments(tmp_path, *ONE_VECTOR, verb="directions")
    log = tmp_path / "log"
    assert run_ranks(2, ["-m", "stir_train", *arguments], log) == [0, 0], outputs(2, log)
    made = _digests(tmp_path / "smoke" / "directions")
    assert made == _digests(finished / "smoke" / "directions")


@pytest.fixture
def coin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A grader that looks at nothing but a hash."""
    (tmp_path / "coin_grader.py").write_text(
        "import hashlib\n\n\ndef toss(response, gold):\n"
        "    digest = hashlib.sha256(f'{gold.answer}{response}'.encode()).digest()\n"
        "    return digest[0] % 2 == 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield "coin_grader:toss"
    sys.modules.pop("coin_grader", None)


def test_rewards_that_mean_nothing_end_the_run_with_the_reason(coin: str, tmp_path: Path) -> None:
    done = _run(tmp_path, f"task.grader={coin}", "splits.num_harvest=32")
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "no direction beats those from rewards shuffled within problems" in said
    assert "splits.num_harvest" in said
    assert not (tmp_path / "smoke" / "tune").exists()
    report = load_report(RunDir(tmp_path / "smoke").stage("directions"), DirectionsReport)
    assert report.table
    assert not report.passing


def test_directions_where_no_vector_is_tried_end_the_run_with_their_place(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "smoke" / "rollout", tmp_path / "smoke" / "rollout")
    elsewhere = "tune={modes: [vector], vectors: {prompt_end: [0.025]}}"
    places = "directions.places=[prompt_end, every_token]"
    done = _run(tmp_path, elsewhere, places)
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stderr.split())
    assert "no effect at prompt_end" in said
    assert "Some at everywhere do: add norms for them to tune.vectors" in said
    assert not (tmp_path / "smoke" / "evaluate").exists()
    run = RunDir(tmp_path / "smoke")
    report = load_report(run.stage("directions"), DirectionsReport)
    assert [row.place for row in report.passing] == ["everywhere"]
    assert "no effect at prompt_end" in " ".join(stir_train("status", str(run.path)).stdout.split())
    assert load_report(run.stage("tune"), TuneReport).abstains, "verbs that read it can"
    # What it advises is enough: the directions are there.
    both = "tune={modes: [vector], vectors: {prompt_end: [0.025], every_token: [0.1]}, max_accuracy_loss: 1}"
    again = _run(tmp_path, both, places, "--only", "tune", "--redo")
    assert again.returncode == 0, again.stderr
    assert "chosen: vector-every_token" in " ".join(again.stderr.split())


def test_places_are_those_that_are_tried_and_their_directions_are_made_anew(
    finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished / "smoke", tmp_path / "smoke")
    held = "tune={modes: [vector], vectors: {every_token: [0.1]}, max_accuracy_loss: 1, num_halvings: 0}"
    refused = _run(tmp_path, held, verb="directions")
    assert refused.returncode == 1
    assert "directions.places" in refused.stderr
    done = _run(tmp_path, held, "--redo", verb="directions")
    assert done.returncode == 0, done.stderr
    report = load_report(RunDir(tmp_path / "smoke").stage("directions"), DirectionsReport)
    assert {row.place for row in report.table} == {"everywhere"}


def test_a_place_without_directions_is_refused(tmp_path: Path) -> None:
    done = _run(tmp_path, "directions.places=[every_token]")
    assert done.returncode == 1
    assert "tune.vectors: no direction is estimated at prompt_end" in " ".join(done.stderr.split())


def test_what_a_run_makes_follows_from_the_modes_that_it_tries() -> None:
    def off(*overrides: str) -> set[str]:
        return set(stages_off(load_config(RunConfig, SMOKE, list(overrides))))

    assert off() == {"directions", "baselines"}
    assert off("tune.modes=[vector]") == {*WITHOUT, "baselines"}
    assert off("tune.modes=[vector, value]") == {"baselines"}
    given = json.dumps(
        {"mode": "vector", "actions": [dict(place="segment", depth=0.6, strength=2)]}
    )
    assert off(f"steering={given}", "tune.enabled=false") == {*WITHOUT, "baselines"}
    with pytest.raises(ConfigError, match=r"no directions at depths \[0.6\]"):
        off(f"steering={given}", "tune.enabled=false", "directions.depths=[0.5]")
