"""lm-evaluation-harness with the run's own controller: every item is answered and graded as in our evaluation."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from stir_train.artifacts.run_dir import RunDir
from stir_train.errors import StirError
from stir_train.models.locate import resolve_model_path
from stir_train.stores.rollouts import RolloutStore
from tests.support.commands import stir_train
from tests.support.smoke import ONE_VECTOR, run_smoke

needs_lm_eval = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-eval is an extra: pip install '.[lm-eval]'",
)
SETTINGS = (
    "steering={mode: value, strength: 3.0, doubt: 0.0, num_candidates: 4}",
    "tune.enabled=false",
    "validation.enabled=false",
    "distill.enabled=false",
    "value.num_steps=50",
    "evaluate.controls=false",
    "generation.max_new_tokens=80",
)
"""The shortest way to a controller that acts; some answers are cut off."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("lm-eval")
    done = run_smoke(output, *SETTINGS)
    assert done.returncode == 0, done.stderr
    return output / "smoke"


@pytest.fixture(scope="module")
def task(run: Path) -> Path:
    folder = run.parent / "task"
    done = stir_train("export", str(run), "--format", "lm-eval-task", "--to", str(folder))
    assert done.returncode == 0, done.stderr
    assert "stir-train lm-eval run --model stir" in " ".join(done.stderr.split())
    return folder


def test_the_task_is_the_test_split_with_its_budget(run: Path, task: Path) -> None:
    items = [json.loads(line) for line in (task / "items.jsonl").read_text().splitlines()]
    asked = RolloutStore(RunDir(run).stage("evaluate")).read("greedy")
    assert [item["prompt_id"] for item in items] == [g.rollout.prompt_id for g in asked]
    text = (task / "stir-smoke.yaml").read_text()
    values = yaml.safe_load(text.replace("!function ", ""))
    assert values["generation_kwargs"] == {"until": [], "max_gen_toks": 80, "do_sample": False}


def test_a_task_grades_as_the_run_does(run: Path, task: Path) -> None:
    from stir_train.tools.lm_eval_task import process_results

    items = [json.loads(line) for line in (task / "items.jsonl").read_text().splitlines()]
    graded = RolloutStore(RunDir(run).stage("evaluate")).read("greedy")
    for item, answer in zip(items, graded, strict=True):
        text = "" if answer.rollout.truncated else answer.text
        assert process_results(item, [text]) == {"acc": float(answer.grade.correct)}


def test_without_lm_eval_the_verb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.__main__", None)
    done = stir_train("lm-eval", "run", "--model", "stir")
    assert done.returncode == 1
    assert "pip install '.[lm-eval]'" in done.stderr


@needs_lm_eval
@pytest.mark.parametrize("method", ["greedy", "stir"])
def test_every_item_is_answered_and_scored_as_in_our_evaluation(
    run: Path, task: Path, tmp_path: Path, method: str
) -> None:
    done = stir_train(
        *("lm-eval", "run", "--model", "stir", "--model_args", f"run={run},method={method}"),
        *("--tasks", "stir-smoke", "--include_path", str(task)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("samples_*.jsonl")
    samples = {
        sample["doc"]["prompt_id"]: sample
        for sample in map(json.loads, file.read_text().splitlines())
    }
    graded = RolloutStore(RunDir(run).stage("evaluate")).read(method)
    assert len(samples) == len(graded) == 24
    for answer in graded:
        sample = samples[answer.rollout.prompt_id]
        assert sample["acc"] == float(answer.grade.correct)
        assert sample["resps"] == [["" if answer.rollout.truncated else answer.text]]
    (results,) = tmp_path.rglob("results_*.json")
    scores = json.loads(results.read_text())["results"]["stir-smoke"]
    assert scores["acc,none"] == sum(answer.grade.correct for answer in graded) / len(graded)
    if method == "stir":
        assert any(answer.rollout.impulses for answer in graded)


@needs_lm_eval
def test_an_exported_vector_answers_in_their_steered_model_as_in_our_evaluation(
    tmp_path: Path,
) -> None:
    done = run_smoke(tmp_path, *ONE_VECTOR)
    assert done.returncode == 0, done.stderr
    run, items = tmp_path / "smoke", tmp_path / "items"
    for form, to in (("lm-eval", tmp_path / "vector"), ("lm-eval-task", items)):
        done = stir_train("export", str(run), "--format", form, "--to", str(to))
        assert done.returncode == 0, done.stderr
    model = f"pretrained={resolve_model_path('embedded/addition')},dtype=float32"
    done = stir_train(
        *("lm-eval", "run", "--model", "steered", "--device", "cpu", "--batch_size", "24"),
        *("--model_args", f"{model},steer_path={tmp_path / 'vector' / 'steer.pt'}"),
        *("--tasks", "stir-smoke", "--include_path", str(items)),
        *("--output_path", str(tmp_path / "out"), "--log_samples"),
    )
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("samples_*.jsonl")
    answered = {
        sample["doc"]["prompt_id"]: sample["resps"][0][0]
        for sample in map(json.loads, file.read_text().splitlines())
    }
    steered, plain = (
        RolloutStore(RunDir(run).stage("evaluate")).read(name) for name in ("stir", "greedy")
    )
    assert answered == {item.rollout.prompt_id: item.text for item in steered}
    assert [item.text for item in steered] != [item.text for item in plain]


@needs_lm_eval
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("method=stri", "expected one of greedy"),
        ("cut_off=never", "expected wrong or graded"),
    ],
)
def test_arguments_are_checked(run: Path, arguments: str, reason: str) -> None:
    done = stir_train(
        *("lm-eval", "run", "--model", "stir", "--model_args", f"run={run},{arguments}"),
        *("--tasks", "arc_easy"),
    )
    assert done.returncode == 1
    assert reason in done.stderr


@needs_lm_eval
def test_log_likelihoods_are_refused_with_a_reason(run: Path) -> None:
    from stir_train.tools.lm_eval_model import StirModel

    model = StirModel(str(run), "greedy")
    try:
        for refused in (model.loglikelihood, model.loglikelihood_rolling):
            with pytest.raises(StirError, match="generate_until"):
                refused([])
    finally:
        model.close()


@needs_lm_eval
def test_texts_end_a_response_and_budgets_and_cut_off_answers_are_as_asked(run: Path) -> None:
    from stir_train.tools.lm_eval_model import StirModel

    def request(**wanted: Any) -> Any:
        return SimpleNamespace(args=("Q: 1+2=?\n", wanted))

    model, graded = StirModel(str(run), "greedy"), StirModel(str(run), "greedy", "graded")
    try:
        (whole,) = graded.generate_until([request(max_gen_toks=8)])
        assert whole
        assert model.generate_until([request(max_gen_toks=8)]) == [""]
        ended = request(max_gen_toks=8, until=[whole[2:4], whole[-1]])
        place = min(whole.index(whole[2:4]), whole.index(whole[-1]))
        assert model.generate_until([ended, request(max_gen_toks=8)]) == [whole[:place], ""]
        for wanted in ({"do_sample": True}, {"num_beams": 3}):
            with pytest.raises(StirError, match="generation_kwargs"):
                model.generate_until([request(**wanted)])
    finally:
        model.close()
        graded.close()
