"""A user's own model and problems; a model with nothing to win; the next generation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from stir_train.stores.results import load_run_results
from tests.support.commands import stir_train
from tests.support.smoke import run_smoke


def test_a_users_own_model_and_problems_need_no_code(tmp_path: Path) -> None:
    from stir_train.models.locate import EMBEDDED_ROOT

    model, problems = tmp_path / "model", tmp_path / "problems.jsonl"
    shutil.copytree(EMBEDDED_ROOT / "sorting", model)
    made = stir_train("tiny", "problems", str(problems), "--family=sorting", "--problems=80")
    assert made.returncode == 0, made.stderr
    assert f"wrote 80 problems of sorting to {problems}" in made.stderr
    renamed = problems.read_text().replace('"question"', '"prompt"').replace('"answer"', '"gold"')
    problems.write_text(renamed)
    settings = [
        f"model.name={model}",
        "task.name=custom",
        f"task.source={problems}",
        "task.question_fields=[prompt]",
        "task.answer_fields=[gold]",
        "generation.max_new_tokens=320",
    ]
    for verb in ("rollout", "harvest"):
        done = run_smoke(tmp_path, *settings, verb=verb)
        assert done.returncode == 0, done.stderr
    assert "contrasts" in done.stderr
    used = json.loads((tmp_path / "smoke" / "rollout" / "problems.json").read_text())
    assert len(used["harvest"]) == 24


def test_a_model_that_never_solves_anything_ends_in_a_sentence_not_an_error(tmp_path: Path) -> None:
    from stir_train.tasks.families import FAMILIES
    from stir_train.tasks.tiny_model import TinyRecipe, build_model
    from stir_train.tasks.tokenizer import build_tokenizer

    tokenizer = build_tokenizer([FAMILIES["addition"]], max_tokens=512)
    build_model(TinyRecipe(), tokenizer).save_pretrained(tmp_path / "untrained")
    tokenizer.save_pretrained(tmp_path / "untrained")
    settings = (f"model.name={tmp_path / 'untrained'}", "distill.enabled=false")
    for _ in range(2):  # the second time finds the harvest done
        done = run_smoke(tmp_path, *settings)
        assert done.returncode == 0, done.stderr
        said = " ".join(done.stderr.split())
        assert "no effect: of 96 rollouts 0.0% are correct" in said
        assert "nothing to steer with" in said
    assert not (tmp_path / "smoke" / "evaluate").exists()


@pytest.mark.slow
def test_generations_start_from_the_last_student_and_the_test_split_comes_last(
    tmp_path: Path,
) -> None:
    # Enough steps to learn the harvest, enough tune problems to see it.
    enough = ("distill.num_steps=120", "splits.num_tune=32")
    settings = (*enough, "distill.also={}", "iterate.max_generations=2")
    done = run_smoke(tmp_path, *settings, verb="iterate")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "smoke"
    second = json.loads((run / "generation-2/rollout/stage.json").read_text())
    first = json.loads((run / "generation-1/rollout/stage.json").read_text())
    assert second["sources"]["model weights"] != first["sources"]["model weights"]
    assert second["sources"]["split harvest"] == first["sources"]["split harvest"]
    config = (run / "generation-2/config.yaml").read_text()
    assert f"name: {run}/students/1" in config
    # The first student is right every time here: the second generation ends at its rollouts.
    assert "nothing is left to learn" in done.stderr
    assert not (run / "generation-2/distill").exists()
    assert not (run / "generation-1/evaluate").exists(), "the test split is for the end"
    results = load_run_results(run, "test")
    rows = {row.name: row.metrics for row in results.methods}
    assert list(rows) == ["greedy", "generation-1"]
    assert results.chosen == "generation-1"
    assert rows[results.chosen].accuracy > rows["greedy"].accuracy
    order = [json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert max(i for i, stage in enumerate(order) if stage.startswith("tune-")) < min(
        i for i, stage in enumerate(order) if stage.startswith("test-")
    )
    again = run_smoke(tmp_path, *settings, verb="iterate")
    assert again.returncode == 0, again.stderr
    assert "rollouts," not in again.stderr, "everything was there"
    assert load_run_results(run, "test") == results
