"""A run whose tuning chose `none`, and one that ended early: said everywhere, and nothing made as if it steered."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from stir_train.artifacts.run_dir import RunDir
from stir_train.recipes import directions
from stir_train.stores.rollouts import RolloutStore
from stir_train.tools.compare import read_results
from stir_train.types.reports import DirectionsReport
from tests.support.commands import stir_train
from tests.support.smoke import run_smoke

SETTINGS = (
    "steering.mode=none",
    "tune.enabled=false",
    "splits={num_harvest: 16, num_tune: 12, num_test: 12}",
    "evaluate.num_samples=2",
)
"""The shortest way to a choice of `none`: nothing else is tried."""
ONLY_STEERED = "distill={rank: 8, num_samples: 2, num_steps: 4, batch_size: 8, also: {}}"


def _run(output: Path, *more: str, verb: str = "run") -> subprocess.CompletedProcess[str]:
    return run_smoke(output, *SETTINGS, *more, verb=verb)


def _said(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def abstained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("abstained")
    return output, _said(_run(output, ONLY_STEERED))


def test_the_console_says_so_at_tuning_and_at_the_end(abstained: tuple[Path, str]) -> None:
    _, said = abstained
    assert said.count("The run abstains from steering") == 2
    assert "steer: skipped: tuning chose `none`" in said
    assert "distill: skipped: tuning chose `none`" in said
    assert "distill.objective.samples=plain" in said
    assert "rollouts under none" not in said
    assert " abstains +0.0" in said, "the word of its row of the table"


def test_nothing_is_answered_twice_or_made_as_if_steered(abstained: tuple[Path, str]) -> None:
    run = RunDir(abstained[0] / "smoke")
    assert not run.stage("steer").path.exists()
    assert not run.stage("distill").path.exists()
    assert RolloutStore(run.stage("evaluate")).sets() == ["greedy", "sampled/greedy"]
    results = read_results(run.path)
    assert [row.name for row in results.methods] == ["greedy", "stir"]
    greedy, stir = (row.metrics for row in results.methods)
    assert (stir.accuracy, stir.tokens_mean) == (greedy.accuracy, greedy.tokens_mean)
    assert [row.name for row in results.sampled] == ["greedy", "stir"]


def test_the_reports_first_line_says_so(abstained: tuple[Path, str]) -> None:
    page = (abstained[0] / "smoke" / "report" / "report.html").read_text()
    body = page[page.index("<h1>") :]
    first = body[body.index("<p") :]
    assert first.startswith('<p class="verdict">The run abstains from steering')
    assert "<code>stir</code> is greedy decoding" in first
    assert page.count(">abstains<") == 1
    assert "What did steering change?" not in page


def test_verbs_that_read_it_say_so(abstained: tuple[Path, str], tmp_path: Path) -> None:
    output = abstained[0]
    answered = _run(output, ONLY_STEERED, "--prompt", "a6, b5: ones sum, exam", verb="generate")
    assert "this is greedy decoding" in _said(answered)
    explained = stir_train("explain", str(output / "smoke"))
    assert explained.returncode == 1
    assert "stir never acts" in explained.stderr
    status = stir_train("status", str(output / "smoke"))
    assert status.stdout.startswith("abstained\n")
    assert status.stdout.count("not made") == 2
    assert "`stir` is greedy decoding" in status.stdout
    for verb, *options in (("verify",), ("export", "--to", str(tmp_path / "lora"))):
        refused = _run(output, ONLY_STEERED, *options, verb=verb)
        assert refused.returncode == 1
        assert "no student was trained" in refused.stderr
        assert "tuning chose `none`" in refused.stderr
    planned = _run(output, ONLY_STEERED, "--dry-run")
    assert planned.stdout.count("not made") == 2
    redone = _run(output, ONLY_STEERED, "--redo", verb="steer")
    assert redone.returncode == 1
    assert "there is nothing to remake" in redone.stderr


def test_a_second_run_does_nothing(abstained: tuple[Path, str]) -> None:
    assert _said(_run(abstained[0], ONLY_STEERED)).count("nothing to do") == 4


def test_a_plain_student_is_trained_if_asked_and_its_card_claims_no_steering(
    abstained: tuple[Path, str], tmp_path: Path
) -> None:
    for stage in ("rollout", "tune", "config.yaml"):
        source, target = abstained[0] / "smoke" / stage, tmp_path / "smoke" / stage
        target.parent.mkdir(exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    plain = ONLY_STEERED.replace("also: {}", "objective: {samples: plain}")
    said = _said(_run(tmp_path, plain))
    assert "steer: skipped" in said
    assert "distill: skipped" not in said
    rows = [row.name for row in read_results(tmp_path / "smoke").methods]
    assert rows == ["greedy", "stir", "lora-student"]
    to = tmp_path / "lora"
    _said(_run(tmp_path, plain, "--to", str(to), verb="export"))
    card = (to / "README.md").read_text()
    assert "The run abstained from steering" in card
    assert "distils a steered" not in card
    assert "base_model: embedded/addition" not in card
    manifest = json.loads((tmp_path / "smoke" / "evaluate" / "manifest.json").read_text())
    assert "stage distill" in manifest["sources"]
    assert "stage steer" not in manifest["sources"]


NOTHING = "no effect: nothing to steer with"


def test_a_run_that_ends_early_ends_with_a_report_that_says_why(
    abstained: tuple[Path, str], tmp_path: Path
) -> None:
    """A table of directions in which nothing passes, beside rollouts that are there."""
    vectors = ("tune={modes: [vector]}", "splits={num_harvest: 16, num_tune: 12, num_test: 12}")
    shutil.copytree(abstained[0] / "smoke" / "rollout", tmp_path / "smoke" / "rollout")
    with (
        mock.patch.object(directions, "_nothing", return_value=NOTHING),
        mock.patch.object(DirectionsReport, "passing", ()),
    ):
        said = _said(run_smoke(tmp_path, *vectors, "directions.num_permutations=20"))
    assert NOTHING in said
    page = (tmp_path / "smoke" / "report" / "report.html").read_text()
    assert f"The run ended at directions: {NOTHING}." in page
    assert "Held-out results" not in page
    status = stir_train("status", str(tmp_path / "smoke"))
    assert status.stdout.startswith("ended\n")
    assert NOTHING in status.stdout
    assert "report.html" in " ".join(status.stdout.split())
    verbs = {"generate": ("--prompt", "a3, b4"), "export": ("--to", str(tmp_path / "to"))}
    for verb in ("generate", "trace", "verify", "export", "explain", "compare", "serve"):
        refused = stir_train(verb, str(tmp_path / "smoke"), *verbs.get(verb, ()))
        assert refused.returncode == 1, verb
        assert "the run ended at directions, so it has no" in refused.stderr, verb
        assert NOTHING in refused.stderr, verb


def test_it_is_served_plain(abstained: tuple[Path, str]) -> None:
    run = str(abstained[0] / "smoke")
    shown = stir_train("serve", run, "--dry-run", "--", "--max-num-seqs", "4")
    assert shown.returncode == 0, shown.stderr
    assert "the base model, plain: tuning chose `none`" in shown.stdout
    assert "no student: the run trains none" in shown.stdout
    assert "--max-num-seqs 4" in shown.stdout
    assert "stir_train." not in shown.stdout, "nothing of ours is in vLLM's passes"
