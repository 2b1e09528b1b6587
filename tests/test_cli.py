"""The command line as a user meets it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stir_train import __version__
from stir_train.artifacts.run_dir import RunDir, StageInputs
from stir_train.types.rollout import Prompt
from tests.support.commands import stir_train

ROOT = Path(__file__).resolve().parent.parent
DEMO = str(ROOT / "configs" / "demo.yaml")
VERBS = [
    "rollout",
    "harvest",
    "basis",
    "value",
    "tune",
    "steer",
    "distill",
    "evaluate",
    "report",
    "run",
    "verify",
    "push",
    "export",
    "generate",
    "serve",
    "trace",
    "diagnose",
    "lm-eval",
    "init",
    "data",
    "inspect",
    "doctor",
    "settings",
    "tiny",
]


def _process(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "stir_train", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_lists_every_verb_and_every_verb_has_help() -> None:
    shown = _process("--help")
    assert shown.returncode == 0
    for verb in VERBS:
        assert f"  {verb} " in shown.stdout, verb


@pytest.mark.parametrize("verb", ["run", "rollout", "export", "tiny"])
def test_verbs_explain_themselves(verb: str) -> None:
    shown = stir_train(verb, "--help")
    assert shown.returncode == 0
    assert "Usage" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "beginning"),
    [
        (("--version",), f"stir-train {__version__}\n"),
        (("-h",), "Usage: "),
        (("run", "-h"), "Usage: "),
        (("serve", "-h"), "Usage: "),
        (("tiny", "check", "-h"), "Usage: "),
    ],
)
def test_version_and_help_are_answered_without_torch(
    arguments: tuple[str, ...], beginning: str
) -> None:
    code = (
        "import sys; from stir_train.cli import main\n"
        f"sys.argv = {['stir-train', *arguments]}\n"
        "try: main()\n"
        "finally: print('torch' in sys.modules)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(beginning)
    assert shown.stdout.endswith("False\n")


def test_dry_run_shows_the_work_and_touches_nothing(tmp_path: Path) -> None:
    shown = stir_train("run", DEMO, f"output_dir={tmp_path / 'runs'}", "--dry-run", "--no-measure")
    assert shown.returncode == 0, shown.stderr
    assert "2048 rollouts" in " ".join(shown.stdout.split())
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("verb", "override", "expected"),
    [
        ("run", "model.name=/no/such/dir", "no directory '/no/such/dir'"),
        ("run", "task.source=/no/such/file.jsonl", "no file or folder /no/such/file.jsonl"),
        ("run", "splits.num_test=100000", "the source has 3000 distinct ones"),
        ("run", "distill.targets=[nowhere]", "{'nowhere'} not found in the base model"),
        ("harvest", "seed=1", "rollout stage is missing; run it first"),
    ],
)
def test_a_dry_run_finds_what_the_run_would_stop_at(
    tmp_path: Path, verb: str, override: str, expected: str
) -> None:
    shown = stir_train(verb, DEMO, f"output_dir={tmp_path / 'runs'}", override, "--dry-run")
    assert shown.returncode == 1
    assert "to do" in shown.stdout, "the plan comes first"
    assert "measuring" not in shown.stdout
    assert "the run would stop: " in shown.stderr
    assert expected in shown.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nowhere.yaml"), "no such configuration file"),
        (("run", DEMO, "rollout.num_sampels=3"), "did you mean 'num_samples'"),
        (("run", DEMO, "model.name=embedded/nothing"), "embedded models: addition"),
        (("run", DEMO, "model.name=/no/such/dir"), "no directory"),
        (("run", DEMO, "task.name=chess"), "no embedded family"),
        (("run", DEMO, "--submit", "--redo"), "--redo with --submit"),
        (("rollout", DEMO, "--worker", "--redo"), "--worker --redo"),
        (("tune", DEMO, "--submit", "--redo"), "--redo with --submit"),
        (("run", DEMO, "splits.num_test=100000"), "distinct"),
        (("harvest", DEMO), "rollout stage is missing; run it first"),
        (("inspect", "nothing"), "nothing: no such file or directory"),
        (("settings", "nothing"), "sections: model"),
        (("grade", "nowhere.jsonl"), "nowhere.jsonl: no such file or directory\n"),
        (("grade", "nowhere.jsonl", "--task", "gsm9k"), "did you mean 'gsm8k'?"),
    ],
)
def test_mistakes_are_answered(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    extra = (
        (f"output_dir={tmp_path}",)
        if DEMO in arguments[1:] and arguments[0] not in ("inspect", "status")
        else ()
    )
    failed = stir_train(*arguments, *extra)
    assert failed.returncode == 1
    assert expected in failed.stderr
    assert not list(tmp_path.rglob("complete"))


def test_inspect_shows_hashes_by_their_beginning_and_the_rest_whole(tmp_path: Path) -> None:
    stage = RunDir(tmp_path).stage("basis")
    sentence = "h[b] is the residual stream after decoder block b"
    sources = {"model": "ab" * 32, "chat template": "", "block convention": sentence}
    stage.begin(StageInputs(config={}, sources=sources))
    stage.finish({"num_entries": 3})
    shown = stir_train("inspect", str(stage.path))
    assert shown.returncode == 0, shown.stderr
    for line in (
        f"model: {'ab' * 8}\n",
        "chat template: none\n",
        f"block convention: {sentence}\n",
    ):
        assert line in shown.stdout


def test_a_refused_attempt_leaves_the_record_of_what_made_the_run(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "demo")
    run.stage("rollout").begin(StageInputs(config={"seed": 1}, sources={}))
    (run.path / "config.yaml").write_text("name: kept\n")
    refused = stir_train("rollout", DEMO, f"output_dir={tmp_path}")
    assert refused.returncode == 1
    assert "made with other settings" in refused.stderr
    assert (run.path / "config.yaml").read_text() == "name: kept\n"
    asked = (run.path / "logs/attempt_1/config.yaml").read_text()
    assert "name: demo" in asked


def _run_of(folder: Path) -> tuple[Path, Path]:
    """A configuration and the directory of its run, which holds the same and more."""
    config, run = folder / "mine.yaml", folder / "runs" / "mine"
    config.write_text(f"name: mine\noutput_dir: {folder / 'runs'}\n")
    run.mkdir(parents=True)
    text = config.read_text() + "rollout: {num_samples: 5}\ndistill: {enabled: false}\n"
    (run / "config.yaml").write_text(text)
    return config, run


def test_a_verb_that_takes_a_configuration_takes_a_run_with_its_own_settings(
    tmp_path: Path,
) -> None:
    _, run = _run_of(tmp_path)
    plan = ("--dry-run", "--no-measure")
    shown = stir_train("run", str(run), *plan)
    assert shown.returncode == 0, shown.stderr
    said = " ".join(shown.stdout.split())
    assert "x 5 samples" in said
    assert f"in {run}" in said
    moved = run.rename(tmp_path / "elsewhere")
    assert f"in {moved}" in " ".join(stir_train("run", str(moved), *plan).stdout.split())


@pytest.mark.parametrize("verb", ["status", "inspect"])
def test_a_verb_that_takes_a_run_takes_its_configuration(tmp_path: Path, verb: str) -> None:
    config, run = _run_of(tmp_path)
    answers = [stir_train(verb, str(given)) for given in (config, run)]
    assert {answer.returncode for answer in answers} == {0}
    assert answers[0].stdout == answers[1].stdout
    assert "rollout" in answers[0].stdout
    assert "off" in answers[0].stdout, "both name stages that are left out alike"


@pytest.mark.parametrize("verb", ["run", "trace", "status", "explain", "compare"])
def test_what_is_neither_run_nor_configuration_is_told_what_was_expected(
    tmp_path: Path, verb: str
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    failed = stir_train(verb, str(empty))
    assert failed.returncode == 1
    assert "no config.yaml" in failed.stderr or "evaluate stage is missing" in failed.stderr
    failed = stir_train("status", str(tmp_path / "none"))
    assert "expected the directory of a run, or a configuration" in failed.stderr


@pytest.mark.parametrize("verb", ["verify", "export", "generate", "trace", "diagnose"])
def test_what_reads_a_run_begins_none(tmp_path: Path, verb: str) -> None:
    prompt = ("--prompt", "a6") if verb == "generate" else ()
    failed = stir_train(verb, DEMO, f"output_dir={tmp_path / 'runs'}", *prompt)
    assert failed.returncode == 1
    assert "no run here" in failed.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["directions", "harvest", "value", "evaluate", "report"])
def test_a_stage_without_what_it_reads_begins_no_run(tmp_path: Path, verb: str) -> None:
    arguments = (DEMO, f"output_dir={tmp_path / 'runs'}", "tune.modes=[value, vector]")
    failed = stir_train(verb, *arguments)
    assert failed.returncode == 1
    assert "demo/rollout: the rollout stage is missing; run it first" in failed.stderr
    assert not (tmp_path / "runs").exists()


def test_a_mistake_ends_the_process_without_a_traceback() -> None:
    failed = _process("run", DEMO, "rollout.num_sampels=3")
    assert failed.returncode == 1
    assert "did you mean 'num_samples'" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_an_interrupted_run_says_that_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_given: object, **_named: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stir_train.runtime.driver.run_stages", interrupted)
    ended = stir_train("run", DEMO, f"output_dir={tmp_path}")
    assert ended.returncode == 130
    assert "the same command goes on" in ended.stderr


def test_a_directory_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    failed = stir_train("run", DEMO, f"output_dir={blocker}")
    assert failed.returncode == 1
    assert "error:" in failed.stderr


def test_data_settings_and_doctor_print_what_they_promise() -> None:
    shown = stir_train("data", DEMO)
    assert shown.returncode == 0, shown.stderr
    assert "gold answer" in shown.stdout
    assert " sum, " in shown.stdout
    settings = stir_train("settings", "rollout")
    assert "rollout.num_samples = 8" in settings.stdout
    doctor = stir_train("doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "torch" in doctor.stdout


def test_offline_wandb_writes_one_run_whose_id_is_kept(tmp_path: Path) -> None:
    from wandb.proto import wandb_internal_pb2  # noqa: F401 - the format test below needs it

    from stir_train.monitoring.metrics import WandbLabels, open_metrics

    for _ in range(2):
        with open_metrics(
            tmp_path,
            wandb_mode="offline",
            labels=WandbLabels("p", "n"),
            config={"a": 1},
            warn=print,
        ) as metrics:
            metrics.log("rollout", {"correct_rate": 0.5}, step=3)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    assert lines[0]["stage"] == "rollout"
    assert lines[0]["step"] == 3
    identity = (tmp_path / "wandb_id").read_text()
    offline = list((tmp_path / "wandb").glob("offline-run-*"))
    assert offline
    assert all(identity in path.name for path in offline)
    content = b"".join(p.read_bytes() for path in offline for p in path.glob("*.wandb"))
    assert b"rollout/correct_rate" in content


def test_a_prompt_is_answered_as_typed_also_where_latex_looks_like_a_newline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Prompt] = []

    def answer(_context: object, prompt: Prompt, *_rest: object) -> None:
        asked.append(prompt)

    monkeypatch.setattr("stir_train.tools.trace._answer", answer)
    typed = r"Let $a \neq b$.\nabla" + "\n"
    _, run = _run_of(tmp_path)
    done = stir_train("generate", str(run), "--prompt", typed)
    assert done.returncode == 0, done.stderr
    assert [(prompt.question, prompt.text) for prompt in asked] == [(typed, typed)]
