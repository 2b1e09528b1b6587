"""`stir-train init`: a first configuration that runs, with reasons, asking nothing it can find out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from stir_train.config.commented import Decision, commented_yaml
from stir_train.config.load import load_config, parse_config
from stir_train.config.run import RunConfig
from stir_train.config.yaml_text import read_yaml
from stir_train.launch.estimate import ModelShape, estimate
from stir_train.models.locate import EMBEDDED_ROOT
from stir_train.runtime.problems import read_problems
from stir_train.tools import init_machine
from tests.support.commands import stir_train

THINKS = "{% for m in messages %}{{ m.content }}{% endfor %}<think>\n"
DATED = "It is {{ strftime_now('%Y') }}. {% for m in messages %}{{ m.content }}{% endfor %}"


def _model(folder: Path, template: str) -> Path:
    """A model directory of the user's own, with a chat template."""
    shutil.copytree(EMBEDDED_ROOT / "addition", folder)
    (folder / "chat_template.jinja").write_text(template)
    return folder


def _init(tmp_path: Path, model: str, task: str, *options: str) -> RunConfig:
    file = tmp_path / "first.yaml"
    done = stir_train("init", model, task, "-o", str(file), *options)
    assert done.returncode == 0, done.stderr
    config = load_config(RunConfig, file)
    for line in file.read_text().splitlines():
        if ": " in line and not line.lstrip().startswith("#"):
            key = line.strip().partition(":")[0]
            assert f"{key}: " in done.stdout, "every decision is also said"
    return config


@pytest.mark.parametrize(
    ("task", "grader"),
    [
        ("addition", "exact"),
        ("gsm8k", "numeric"),
        ("math500", "math"),
        ("arc-challenge", "choice"),
        ("reasoning-gym:chain_sum", "numeric"),
    ],
)
def test_every_kind_of_task_gets_a_configuration(tmp_path: Path, task: str, grader: str) -> None:
    config = _init(tmp_path, "embedded/addition", task)
    assert (config.task.name, config.task.grader) == (task, grader)
    assert config.task.chat_template is False
    assert config.distill.learning_rate == 2e-3


def test_what_is_written_runs_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = stir_train("init", "embedded/addition", "addition")
    assert done.returncode == 0, done.stderr
    shown = stir_train("data", "addition-addition.yaml")
    assert shown.returncode == 0, shown.stderr
    assert "harvest" in shown.stdout


def test_a_model_of_ones_own_gets_its_chat_template_and_settings_of_a_real_one(
    tmp_path: Path,
) -> None:
    thinks = _model(tmp_path / "thinks", THINKS)
    config = _init(tmp_path, str(thinks), "reasoning-gym:chain_sum")
    assert config.task.chat_template is True
    limit = json.loads((thinks / "config.json").read_text())["max_position_embeddings"]
    # A small context is not given away to the prompt, and no block is captured twice.
    assert limit / 2 < config.generation.max_new_tokens < limit, (
        "thinking fills the context, not more"
    )
    last = json.loads((thinks / "config.json").read_text())["num_hidden_layers"] - 1
    blocks = [round(depth * last) for depth in config.harvest.depths]
    assert len(set(blocks)) == len(blocks)
    assert "0 million" not in (tmp_path / "first.yaml").read_text()
    assert config.distill.learning_rate == 2e-4
    assert config.tune.modes == ("vector",)
    assert config.effort == "quick"
    assert "opens <think>" in (tmp_path / "first.yaml").read_text()


def test_a_template_that_writes_the_date_gets_one(tmp_path: Path) -> None:
    config = _init(tmp_path, str(_model(tmp_path / "dated", DATED)), "addition")
    assert config.task.prompt_date is not None


@pytest.mark.parametrize(
    ("answers", "grader"),
    [(["12", "-3.5"], "numeric"), (["yes", "No"], "boolean"), (["12", "Paris"], "exact")],
)
def test_a_file_gets_the_strictest_grader_that_reads_its_answers(
    tmp_path: Path, answers: list[str], grader: str
) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"Problem": f"Question {i}?", "target": answers[i % 2]} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = _init(tmp_path, "embedded/addition", str(file))
    assert config.task.grader == grader
    assert (config.task.question_fields, config.task.answer_fields) == (("Problem",), ("target",))
    splits = config.splits
    assert splits.num_harvest + splits.num_tune + splits.num_test <= 20


@pytest.mark.parametrize(
    ("num_problems", "sizes"), [(300, (150, 50, 96)), (380, (160, 96, 96)), (500, (160, 96, 96))]
)
def test_where_problems_are_few_the_harvest_gets_its_own_first(
    tmp_path: Path, num_problems: int, sizes: tuple[int, int, int]
) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"question": f"Question {i}?", "answer": i} for i in range(num_problems)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    splits = _init(tmp_path, "embedded/addition", str(file), "--effort", "quick").splits
    assert (splits.num_harvest, splits.num_tune, splits.num_test) == sizes


def test_a_question_is_asked_with_the_column_that_it_is_about(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    rows = [
        {"Body": f"Dan has {i} apples.", "Question": "How many has he?", "Answer": i}
        for i in range(20)
    ]
    file.write_text(json.dumps(rows))
    config = _init(tmp_path, "embedded/addition", str(file))
    assert config.task.question_fields == ("Body+Question",)
    problems = read_problems(config)
    assert problems[3].question == "Dan has 3 apples. How many has he?"


def test_a_folder_with_a_test_file_is_tested_on_it_and_a_file_says_what_it_leaves_out(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "sums"
    folder.mkdir()
    for name, count in (("train", 20), ("test", 8)):
        rows = [{"question": f"{name} {i}?", "answer": str(i)} for i in range(count)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    config = _init(tmp_path, "embedded/addition", str(folder))
    assert (config.task.name, config.task.test_split) == ("sums", "test")
    assert config.splits.num_test == 8
    (tmp_path / "first.yaml").unlink()
    config = _init(tmp_path, "embedded/addition", str(folder / "train.jsonl"))
    assert (config.task.name, config.task.test_split) == ("sums-train", None)
    assert "test.jsonl beside it is not read" in (tmp_path / "first.yaml").read_text()


def test_a_generators_parameters_are_taken_over(tmp_path: Path) -> None:
    text = "{min_terms: 2, max_terms: 2, size: 120}"
    config = _init(tmp_path, "embedded/addition", "reasoning-gym:chain_sum", "--parameters", text)
    assert config.task.parameters == {"min_terms": 2, "max_terms": 2, "size": 120}
    splits = config.splits
    sizes = (splits.num_harvest, splits.num_tune, splits.num_test)
    assert 100 < sum(sizes) <= 120, "of the problems that these make, some twice"


def test_nothing_is_overwritten_and_what_is_unknown_is_said(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("kept")
    done = stir_train("init", "embedded/addition", "addition", "-o", str(file))
    assert done.returncode == 1
    assert "there already" in done.stderr
    assert file.read_text() == "kept"
    other = str(tmp_path / "other.yaml")
    for arguments, said in (
        (("embedded/addition", "gsm9k"), "did you mean 'gsm8k'"),
        (("embedded/addition", "reasoning-gym:no_such"), "reasoning-gym makes no 'no_such'"),
        (("embedded/addition", "addition", "--effort", "some"), "none of quick, standard"),
        (("embedded/nothing", "addition"), "embedded models: addition"),
        (("embedded/addition", "addition", "--source", "x.jsonl"), "no public task"),
        (("embedded/addition", "addition", "--parameters", "{a: 1}"), "no reasoning-gym:NAME"),
        (
            ("embedded/addition", "reasoning-gym:chain_sum", "--parameters", "5"),
            "expected a YAML mapping, as {max_terms: 5}; got '5'",
        ),
        (
            ("embedded/addition", "reasoning-gym:chain_sum", "--parameters", "{max_term: 5}"),
            "max_term",
        ),
    ):
        done = stir_train("init", *arguments, "-o", other)
        assert done.returncode == 1
        assert said in done.stderr
        assert not Path(other).exists()


def test_a_commented_file_reads_back_as_its_decisions(tmp_path: Path) -> None:
    decisions = [
        Decision("name", "a: b", "Why # not."),
        Decision("task.template", "{question}\n\nEnd: 'x'.", "long " * 60),
        Decision("tune.modes", ["vector"], "One."),
        Decision("task.chat_template", True, "Yes."),
    ]
    assert not [decision.key for decision in decisions if "\n" in decision.written]
    file = tmp_path / "file.yaml"
    file.write_text(commented_yaml("A title.", decisions))
    found = read_yaml(file)
    assert not found.problems
    assert found.value == {
        "name": "a: b",
        "task": {"template": "{question}\n\nEnd: 'x'.", "chat_template": True},
        "tune": {"modes": ["vector"]},
    }
    assert all(len(line) <= 100 for line in file.read_text().splitlines())


QWEN = ModelShape(630_000_000, 24, 896, 151_936, 128, 22_912, 4)
"""Qwen2.5-Coder-0.5B, about."""


@pytest.mark.parametrize(
    ("cores", "gib", "processes", "threads"),
    [(2, 24, 2, 1), (2, 8, 1, 2), (16, 48, 4, 4), (64, 512, 8, 8)],
)
def test_cores_and_memory_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, cores: int, gib: int, processes: int, threads: int
) -> None:
    monkeypatch.setattr(init_machine, "usable_cores", lambda: cores)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2**30, "SC_PHYS_PAGES": gib}.__getitem__)
    cpu = torch.device("cpu")
    machine = init_machine.share_out(cpu, QWEN, is_embedded=False)
    assert (machine.num_processes, machine.num_threads) == (processes, threads)
    assert init_machine.share_out(cpu, QWEN, is_embedded=True).num_processes == 1
    held = [
        Decision("name", "x", ""),
        Decision("tune.modes", ["vector"], ""),
        Decision("distill.batch_size", 8, ""),
        Decision("generation.max_new_tokens", 512, ""),
    ]
    values: dict[str, Any] = {
        decision.key: decision.value
        for decision in init_machine.fitting_decisions(machine, QWEN, held, on_gpu=False)
    }
    assert values.get("generation.num_shares", 1) == processes
    overrides = [f"{key}={value}" for key, value in values.items()]
    overrides += ["distill.batch_size=8", "generation.max_new_tokens=512", "tune.modes=[vector]"]
    config = parse_config(RunConfig, {"name": "x"}, overrides, origin="test")
    needs = estimate(config, QWEN, num_ranks=processes, on_gpu=False)
    share = init_machine.MEMORY_SHARE * gib / processes
    assert max(needs.gradient_gib, needs.train_gib) < share
    if "directions.max_batch_tokens" in values:
        wider = config.directions.model_copy(
            update={"max_batch_tokens": 2 * config.directions.max_batch_tokens}
        )
        needs = estimate(
            config.model_copy(update={"directions": wider}), QWEN, num_ranks=1, on_gpu=False
        )
        assert needs.gradient_gib > share, "no smaller than it must be"


def test_one_process_has_nothing_to_share_out() -> None:
    machine = init_machine.Machine(1, 2, 64 * 2**30)
    made = init_machine.fitting_decisions(machine, QWEN, [Decision("name", "x", "")], on_gpu=False)
    assert "generation.num_shares" not in {one.key for one in made}
