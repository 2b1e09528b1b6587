"""Public tasks in the schemas found in the wild, read from local files, graded against themselves."""

from __future__ import annotations

import json
import os
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from stir_train.config.inputs import SplitsConfig, TaskConfig
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.config.tasks import KNOWN_TASKS
from stir_train.data.duplicates import near_duplicates
from stir_train.data.grading import Grader, grade_batch
from stir_train.data.problems import SourceProblem, count_left_out, read_source
from stir_train.data.prompts import cut_splits, first_problems, render_prompts, require_unseen
from stir_train.errors import ConfigError, DataError
from stir_train.models.load import LoadedModel
from stir_train.tasks.families import FAMILIES, HELD_OUT_POOL
from stir_train.tasks.problem import held_out_problems
from stir_train.tools.tiny import write_problems
from stir_train.types.rollout import Gold
from tests.support.commands import stir_train

SAMPLES = Path(__file__).parent / "data" / "tasks"
CONFIGS = Path(__file__).parents[1] / "configs" / "tasks"


@pytest.mark.parametrize("file", sorted(SAMPLES.glob("*.jsonl")), ids=lambda f: f.stem)
def test_every_schema_is_read_and_its_gold_answers_grade_themselves_right(
    file: Path, tmp_path: Path
) -> None:
    config = TaskConfig(name=file.name.split(".")[0], source=str(file))
    problems = read_source(config)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(problems) == len(rows)
    golds = [Gold(p.answer, p.choices) for p in problems]
    stated = [f"I think.\n\nAnswer: {p.answer}" for p in problems]
    boxed = [f"So $\\boxed{{{p.answer}}}$." for p in problems]
    with closing(Grader(config, num_workers=1)) as grader:
        for texts in (stated, boxed):
            grades = grader.grade(texts, golds, [False] * len(texts))
            assert all(grade.correct for grade in grades), grades
    if all(isinstance(value, str | int | float) for row in rows for value in row.values()):
        parquet = tmp_path / "test.parquet"
        pq.write_table(pa.Table.from_pylist(rows), parquet)
        for source in (parquet, tmp_path):
            copy = config.model_copy(update={"source": str(source), "hub_split": "test"})
            assert read_source(copy) == problems


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("gsm-plus", {"question": "How old is Ben?", "answer": "None"}),
        ("asdiv", {"body": "Two are red.", "question": "Is that all?", "answer": "Yes"}),
        ("asdiv", {"body": "A film takes an hour.", "question": "When?", "answer": "2:30 (p.m.)"}),
    ],
    ids=str,
)
def test_rows_whose_answer_is_no_number_are_left_out_where_a_task_says_so_and_counted(
    name: str, row: dict[str, str], tmp_path: Path
) -> None:
    samples = (SAMPLES / f"{name}.jsonl").read_text()
    file = tmp_path / "some.jsonl"
    file.write_text(samples + json.dumps(row) + "\n")
    task = TaskConfig(name=name, source=str(file))
    assert read_source(task) == [
        replace(
            problem, place=f"{file}{problem.place.removeprefix(str(SAMPLES / f'{name}.jsonl'))}"
        )
        for problem in read_source(TaskConfig(name=name, source=str(SAMPLES / f"{name}.jsonl")))
    ]
    assert count_left_out(task) == 1
    shown = stir_train(
        "data",
        "configs/demo.yaml",
        f"task.name={name}",
        f"task.source={file}",
        "splits={num_harvest: 1, num_tune: 1, num_test: 1}",
        "task.template={question}",
    )
    assert "left out by task.only_answers: 1 rows" in shown.stdout
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"task\.only_answers: no row's gold answer matches"):
        read_source(task)
    with pytest.raises(DataError, match="rows are unusable"):
        read_source(task.model_copy(update={"only_answers": None}))


def test_an_answer_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(ValidationError, match="no regular expression"):
        TaskConfig(name="mine", source="x.jsonl", only_answers="(")


def test_every_known_task_has_samples_and_a_configuration() -> None:
    assert {file.name.split(".")[0] for file in SAMPLES.glob("*.jsonl")} == set(KNOWN_TASKS)
    for name, settings in KNOWN_TASKS.items():
        config = load_config(RunConfig, CONFIGS / f"{name}.yaml", ["name=x"])
        assert config.task == TaskConfig(name=name)
        assert config.task.source == settings["source"]


@pytest.mark.skipif("STIR_TRAIN_GSM8K" not in os.environ, reason="names a folder with all of GSM8K")
def test_all_of_gsm8k_is_read_and_every_gold_answer_grades_itself_right() -> None:
    folder = Path(os.environ["STIR_TRAIN_GSM8K"])
    config = TaskConfig(name="gsm8k", source=str(folder), hub_split="train+test")
    problems = read_source(config)
    rows = [
        json.loads(line)
        for split in ("train", "test")
        for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    assert len(problems) == len(rows) == 8792
    items = [(row["answer"], Gold(p.answer), False) for row, p in zip(rows, problems, strict=True)]
    assert all(grade.correct for grade in grade_batch(config, items))
    assert len({p.problem_id for p in problems}) == 8792


def test_rows_that_cannot_be_used_are_all_named_with_file_and_line(tmp_path: Path) -> None:
    first, second = tmp_path / "train-a.jsonl", tmp_path / "train-b.jsonl"
    first.write_text(
        '{"question": "q1", "answer": "#### 1"}\n'
        "\n"
        "not json\n"
        '{"question": "q2", "answer": "no hashes\\nat all"}\n'
        '{"question": "q3", "answer": "#### some"}\n'
        '{"problem": "q4", "answer": "#### 4"}\n'
        '["q5"]\n'
    )
    second.write_text(
        '{"question": " Q1 ", "answer": "#### 2"}\n{"question": null, "answer": "#### 6"}\n'
    )
    with pytest.raises(DataError) as caught:
        read_source(TaskConfig(name="gsm8k", source=str(tmp_path)))
    lines = str(caught.value).splitlines()
    assert lines[0] == "7 of 8 rows are unusable"
    for line, (place, complaint) in zip(
        lines[1:],
        [
            (f"{first}:3", "not JSON"),
            (f"{first}:4", "the answer has no ####"),
            (f"{first}:5", "'some' is not one number"),
            (f"{first}:6", "none of the columns question (task.question_fields); columns: problem"),
            (f"{first}:7", "not a JSON object but list"),
            (f"{second}:1", f"answers '2', but {first}:1 has the same question with '1'"),
            (f"{second}:2", "question is empty"),
        ],
        strict=True,
    ):
        assert line.startswith(f"  - {place}: ")
        assert complaint in line


def test_sources_may_be_several_and_a_question_in_two_is_one(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(f'{{"question": "q{i}", "answer": "{i}"}}\n' for i in range(6)))
    second.write_text("".join(f'{{"question": "Q{i} ", "answer": "{i}"}}\n' for i in range(3, 9)))
    config = TaskConfig(name="mine", source=(str(first), str(second)), grader="numeric")
    problems = read_source(config)
    assert len(problems) == 12
    splits = cut_splits(problems, SplitsConfig(num_harvest=3, num_tune=3, num_test=3))
    ids = [p.problem_id for items in splits.values() for p in items]
    assert len(set(ids)) == 9
    with pytest.raises(DataError, match=r"has 9 distinct ones \(12 rows\)"):
        cut_splits(problems, SplitsConfig(num_harvest=4, num_tune=3, num_test=3))


def test_the_first_problems_are_those_of_the_test_split_and_may_be_all() -> None:
    problems = [SourceProblem(f"q{i}", "1", f"q{i}") for i in range(12)]
    cut = cut_splits(problems, SplitsConfig(num_harvest=4, num_tune=3, num_test=5, seed=3))
    assert first_problems(problems[::-1], 5, seed=3) == cut["test"]
    assert len(first_problems(problems * 2, 12, seed=3)) == 12
    with pytest.raises(DataError, match=r"13 problems are asked for, the source has 12 distinct"):
        first_problems(problems, 13, seed=3)


def test_stratified_splits_share_the_kinds_alike_and_stay_stable() -> None:
    problems = [
        SourceProblem(f"q{i}", "1", f"q{i}", kind="rare" if i % 5 == 0 else "common")
        for i in range(200)
    ]
    sizes = SplitsConfig(num_harvest=50, num_tune=20, num_test=40, stratify=True)
    splits = cut_splits(problems, sizes)
    for name, size in (("harvest", 50), ("tune", 20), ("test", 40)):
        kinds = Counter(p.kind for p in splits[name])
        assert kinds == {"rare": size // 5, "common": size - size // 5}
    assert cut_splits(problems[::-1], sizes) == splits
    more = cut_splits(problems, sizes.model_copy(update={"num_harvest": 100}))
    assert more["test"] == splits["test"]
    assert more["tune"] == splits["tune"]
    assert len({p.problem_id for items in splits.values() for p in items}) == 110


def test_near_duplicates_across_splits_are_found() -> None:
    base = "Josie received $50 as a gift and buys two tapes that cost $9 each. What is left?"
    twin = base.replace("Josie", "Amanda")
    splits = {
        "harvest": [base, "Something else entirely, of no use to anyone at all."],
        "test": [twin, "A third thing that nobody else asks about today."],
    }
    (pair,) = near_duplicates(splits)
    assert {pair.first, pair.second} == {base, twin}
    assert 0.7 <= pair.similarity < 1
    assert near_duplicates({"harvest": [base, twin], "test": []}) == []


def test_what_was_made_from_test_items_is_refused_by_name(loaded: LoadedModel) -> None:
    problems = [SourceProblem(f"a{i}", "1", f"a{i}") for i in range(4)]
    prompts = render_prompts(problems, TaskConfig(), loaded.tokenizer)
    ids = [p.prompt_id for p in prompts]
    require_unseen(prompts[:2], {"basis (harvest)": ids[2:]})
    with pytest.raises(DataError, match=r"(?s)1 test items.*'a1' went into basis \(harvest\)"):
        require_unseen(prompts[:2], {"basis (harvest)": ids[1:]})


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"grader": "regex"}, "go together"),
        ({"grader": "regex", "answer_regex": "x"}, "one group"),
        ({"grader": "regex", "answer_regex": "(x"}, "no regular expression"),
        ({"answer_regex": "(x)"}, "go together"),
        ({"template": "no place"}, "must contain"),
        ({"system_prompt": "Be brief.", "chat_template": False}, "needs the chat template"),
        ({"chat_template_kwargs": {"messages": "x"}}, "messages cannot be set here"),
        ({"prompt_date": "soon"}, "prompt_date"),
    ],
)
def test_inconsistent_task_settings_are_refused(
    settings: dict[str, object], complaint: str, tmp_path: Path
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps({"name": "x", "task": settings}))
    with pytest.raises(ConfigError, match=complaint):
        load_config(RunConfig, file)


def test_a_known_task_keeps_what_a_configuration_sets() -> None:
    config = TaskConfig(name="gsm8k", source="copy.jsonl", template="Q: {question}")
    assert (config.source, config.grader, config.template) == (
        "copy.jsonl",
        "numeric",
        "Q: {question}",
    )


def test_problems_written_to_a_file_are_in_no_embedded_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_problems("sorting-waste", 200, 0, tmp_path / "fresh.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "fresh.jsonl").read_text().splitlines()]
    contents = [row["question"].rsplit(",", 1)[0] for row in rows]
    assert len(set(contents)) == 200
    family = FAMILIES["sorting-waste"]
    pool = held_out_problems(family, HELD_OUT_POOL)
    assert not set(contents) & {problem.content for problem in pool}
    assert {problem.content for problem in pool[:200]} != set(contents), "both of seed 0"
    # A fifth of `distinct` problems are in the pool, hardly any of the others: their mix is kept.
    used = {problem.content for problem in pool}
    kinds = Counter(p.kind for p in held_out_problems(family, 2000, seed=3, without=used))
    plain = Counter(p.kind for p in held_out_problems(family, 2000, seed=3))
    assert abs(kinds["distinct"] - plain["distinct"]) < 30  # a standard deviation is 19
    monkeypatch.setattr("stir_train.tasks.problem.DRAWS_IN_VAIN", 1)
    with pytest.raises(ConfigError, match="too few reserved problems"):
        write_problems("sorting-waste", 200, 0, tmp_path / "many.jsonl")
