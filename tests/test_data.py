"""Problems, splits, prompts and graders."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stir_train.config.inputs import ModelConfig, SplitsConfig, TaskConfig
from stir_train.config.stages import RolloutConfig
from stir_train.data.grading import grade_batch, reward
from stir_train.data.problems import SourceProblem, normalise, read_source
from stir_train.data.prompts import cut_splits, render_prompts, require_disjoint, split_sha256
from stir_train.errors import DataError
from stir_train.models.describe import load_tokenizer
from stir_train.models.load import LoadedModel
from stir_train.tasks.families import FAMILIES, HELD_OUT_POOL
from stir_train.tasks.problem import corpus, held_out_problems
from stir_train.types.rollout import Gold, Grade, Rollout

SIZES = SplitsConfig(num_harvest=20, num_tune=10, num_test=15)
GSM8K = TaskConfig(name="gsm8k", source="x", grader="numeric")


def _problems(count: int) -> list[SourceProblem]:
    return [SourceProblem(f"What is {i}+1?", str(i + 1), f"What is {i}+1?") for i in range(count)]


def test_splits_are_disjoint_stable_under_order_and_cut_by_content(loaded: LoadedModel) -> None:
    problems = _problems(60)
    splits = cut_splits(problems, SIZES)
    assert {name: len(items) for name, items in splits.items()} == {
        "harvest": 20,
        "tune": 10,
        "test": 15,
    }
    ids = [p.problem_id for items in splits.values() for p in items]
    assert len(set(ids)) == 45
    shuffled = problems[:]
    random.Random(0).shuffle(shuffled)
    assert cut_splits(shuffled, SIZES) == splits
    twice = [
        *problems,
        *(SourceProblem(p.question.upper(), p.answer, p.content.upper()) for p in problems),
    ]
    assert [p.problem_id for p in cut_splits(twice, SIZES)["test"]] == [
        p.problem_id for p in splits["test"]
    ]
    bigger = cut_splits(problems, SIZES.model_copy(update={"num_harvest": 30}))
    assert bigger["test"] == splits["test"]
    assert cut_splits(problems, SIZES.model_copy(update={"seed": 1})) != splits
    prompts = {n: render_prompts(p, TaskConfig(), loaded.tokenizer) for n, p in splits.items()}
    require_disjoint(prompts)
    assert split_sha256(prompts["test"]) == split_sha256(prompts["test"][::-1])
    with pytest.raises(DataError, match=r"What is .* is in tune and harvest|harvest and tune"):
        require_disjoint({**prompts, "harvest": [*prompts["harvest"], prompts["tune"][0]]})
    with pytest.raises(DataError, match=r"45 problems .* has 30 distinct"):
        cut_splits(problems[:30], SIZES)


@given(st.text(max_size=30))
def test_normalisation_is_idempotent_and_ignores_case_and_space(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f"  {text}\n\t") == once


def test_sources_are_read_and_bad_rows_are_listed_at_once(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    rows = [{"question": f"q{i}", "answer": f"because\n#### {i}"} for i in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = GSM8K.model_copy(update={"source": str(path)})
    problems = read_source(config)
    assert [(p.question, p.answer) for p in problems] == [(f"q{i}", str(i)) for i in range(5)]
    rows[1]["question"], rows[3]["answer"] = " ", ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"(?s)2 of 5 rows.*jsonl:2: .*jsonl:4: "):
        read_source(config)
    with pytest.raises(
        DataError, match=r"none of the columns problem .* columns: question, answer"
    ):
        read_source(config.model_copy(update={"question_fields": ("problem",)}))
    with pytest.raises(DataError, match="no file or folder"):
        read_source(config.model_copy(update={"source": str(tmp_path / "none.jsonl")}))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="has no train"):
        read_source(config.model_copy(update={"source": str(tmp_path / "folder")}))


def test_multiple_choice_options_are_lettered_whatever_their_labels(tmp_path: Path) -> None:
    path = tmp_path / "arc.jsonl"
    choices = {"text": ["iron", "wood"], "label": ["1", "2"]}
    path.write_text(json.dumps({"question": "Metal?", "answerKey": "1", "choices": choices}) + "\n")
    config = TaskConfig(
        name="arc",
        source=str(path),
        answer_fields=("answerKey",),
        choices_fields=("choices",),
        grader="choice",
    )
    (problem,) = read_source(config)
    assert problem.question == "Metal?\nA. iron\nB. wood"
    assert problem.answer == "A"


def test_reward_takes_the_length_penalty() -> None:
    rollout = Rollout("p", 0, (1,), tuple(range(50)), (0.0,) * 50, (), "stop")
    right = Grade(correct=True, extracted="1", reason="equal")
    assert reward(right, rollout, RolloutConfig(), max_new_tokens=100) == pytest.approx(0.995)


def test_embedded_problems_have_checkable_answers_and_never_leak_into_the_corpus() -> None:
    family = FAMILIES["addition"]
    held_out = held_out_problems(family, HELD_OUT_POOL)
    contents = {p.content for p in held_out}
    assert len(contents) == HELD_OUT_POOL
    stream = corpus(family, random.Random(0))
    correct, kinds = 0, {"pairs": 0, "ones": 0}
    tokenizer = load_tokenizer(ModelConfig(name="embedded/addition"))
    for _ in range(1500):
        problem, solution = next(stream)
        assert problem.content not in contents
        operands = [int(x[1:]) for x in problem.content.partition(":")[0].split(", ")]
        modulus = 100 if problem.kind == "pairs" else 10
        assert int(problem.answer) == sum(operands) % modulus
        text = problem.question + solution
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.unk_token_id not in ids
        (grade,) = grade_batch(TaskConfig(), [(solution, Gold(problem.answer), False)])
        correct += grade.correct
        kinds[problem.kind] += 1
    assert 0.65 < correct / 1500 < 0.8
    assert min(kinds.values()) > 600
