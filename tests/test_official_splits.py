"""Official splits: tested on a dataset's own test split, learned from its train split alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stir_train.config.effort import EFFORTS
from stir_train.config.inputs import SplitsConfig, TaskConfig
from stir_train.config.load import load_config, parse_config
from stir_train.config.run import RunConfig
from stir_train.config.tasks import KNOWN_TASKS, NUM_PROBLEMS
from stir_train.data.problems import SourceProblem
from stir_train.data.prompts import cut_splits, describe_test_split, first_problems
from stir_train.errors import ConfigError, DataError
from stir_train.runtime.problems import read_problems
from tests.support.commands import stir_train

ROOT = Path(__file__).resolve().parent.parent
SIZES = SplitsConfig(num_harvest=6, num_tune=4, num_test=5)


def _problems(count: int, word: str, *, is_test: bool) -> list[SourceProblem]:
    return [
        SourceProblem(f"{word} {i}?", str(i), content=f"{word} {i}?", is_test=is_test)
        for i in range(count)
    ]


def _folder(folder: Path, num_train: int = 12, num_test: int = 8) -> Path:
    """A dataset like GSM8K, one of whose training problems is also a test problem."""
    folder.mkdir()
    for name, count in (("train", num_train), ("test", num_test)):
        rows = [{"question": f"{name} {i}?", "answer": f"so\n#### {i}"} for i in range(count)]
        if name == "train":
            rows.append({"question": "TEST  3?", "answer": "so\n#### 3"})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_test_split_is_cut_from_the_official_one_and_nothing_else_is() -> None:
    problems = _problems(20, "train", is_test=False) + _problems(8, "test", is_test=True)
    problems.append(SourceProblem("test 3?", "3", content="Test 3?"))
    splits = cut_splits(problems, SIZES)
    assert {p.question.split()[0] for p in splits["test"]} == {"test"}
    learned_from = splits["harvest"] + splits["tune"]
    assert {p.question.split()[0] for p in learned_from} == {"train"}
    more = cut_splits(problems, SIZES.model_copy(update={"num_test": 8}))
    assert more["test"][:5] == splits["test"], "the first by hash"
    assert more["harvest"] == splits["harvest"]
    assert [p.question for p in first_problems(problems, 5, seed=0)] == [
        p.question for p in splits["test"]
    ]


@pytest.mark.parametrize(
    ("change", "said"), [({"num_test": 9}, "num_test"), ({"num_harvest": 30}, "num_tune")]
)
def test_each_side_must_have_enough(change: dict[str, int], said: str) -> None:
    problems = _problems(20, "train", is_test=False) + _problems(8, "test", is_test=True)
    with pytest.raises(DataError, match=said):
        cut_splits(problems, SIZES.model_copy(update=change))


def test_a_part_of_the_official_split_says_so() -> None:
    problems = _problems(9, "train", is_test=False) + _problems(8, "test", is_test=True)
    assert describe_test_split(problems, 8, "test") == "the official split test, whole"
    part = describe_test_split(problems, 5, "test")
    assert part == "the first 5 by hash of the 8 of the official split test"
    assert describe_test_split(problems[:9], 5, None) == "cut by hash"


def test_a_known_tasks_folder_is_read_by_its_splits(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "gsm8k")
    file = tmp_path / "run.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "name": "x",
                "task": {"name": "gsm8k", "source": str(folder)},
                "splits": {"num_harvest": 6, "num_tune": 4, "num_test": 5},
            }
        )
    )
    config = load_config(RunConfig, file)
    assert config.task.test_split == "test"
    problems = read_problems(config)
    assert sum(problem.is_test for problem in problems) == 8
    learned_from = cut_splits(problems, SIZES.model_copy(update={"num_harvest": 8}))["harvest"]
    assert "TEST  3?" not in {p.question for p in learned_from}
    shown = stir_train("data", str(file))
    assert "the first 5 by hash of the 8 of the official split test" in shown.stdout
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no test\*"):
        read_problems(config)


@pytest.mark.parametrize(
    ("values", "split"),
    [
        ({"name": "gsm8k"}, "test"),
        ({"name": "commonsenseqa"}, "validation"),
        ({"name": "gsm8k", "hub_split": "train+test"}, None),
        ({"name": "gsm8k", "source": "mine.jsonl"}, None),
        ({"name": "gsm8k", "test_split": None}, None),
        ({"name": "math500"}, None),
        ({"name": "mine", "source": "a/b", "test_split": "dev"}, "dev"),
    ],
)
def test_which_tasks_have_an_official_test_split(
    values: dict[str, object], split: str | None
) -> None:
    assert TaskConfig.model_validate(values).test_split == split


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"name": "mine", "source": "a.jsonl", "test_split": "test"}, "hub id or a folder"),
        ({"name": "addition", "test_split": "test"}, "hub id or a folder"),
        ({"name": "x", "source": "a/b", "hub_split": "a+test", "test_split": "test"}, "both take"),
    ],
)
def test_a_test_split_that_cannot_be_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(TaskConfig, values, [], origin="test")


@pytest.mark.parametrize("name", KNOWN_TASKS)
def test_shipped_sizes_fit_what_the_datasets_have(name: str) -> None:
    splits = parse_config(
        RunConfig,
        yaml.safe_load((ROOT / "configs" / "tasks" / f"{name}.yaml").read_text()) | {"name": "x"},
        [],
        origin=name,
    ).splits
    num_problems, num_test = NUM_PROBLEMS[name]
    learned_from = splits.num_harvest + splits.num_tune
    if num_test:
        assert splits.num_test == num_test, "the whole official split"
        assert learned_from <= num_problems
    else:
        assert learned_from + splits.num_test <= num_problems


@pytest.mark.parametrize("effort", ["quick", "standard", "thorough"])
@pytest.mark.parametrize("name", ["svamp", "gsm8k", "math500", "openbookqa"])
def test_init_takes_no_more_problems_than_there_are(tmp_path: Path, name: str, effort: str) -> None:
    file = tmp_path / "x.yaml"
    done = stir_train("init", "embedded/addition", name, "-o", str(file), "--effort", effort)
    assert done.returncode == 0, done.stderr
    splits = load_config(RunConfig, file).splits
    num_problems, num_test = NUM_PROBLEMS[name]
    learned_from = splits.num_harvest + splits.num_tune
    assert learned_from + splits.num_test * (not num_test) <= num_problems
    if num_test:
        quick: int = EFFORTS["quick"]["splits.num_test"]
        assert splits.num_test == (quick if effort == "quick" else num_test)
