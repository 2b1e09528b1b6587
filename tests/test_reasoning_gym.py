"""Problems and scorers of the package reasoning-gym."""

from __future__ import annotations

import pytest

from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import Grader
from stir_train.data.own_grader import grade_own
from stir_train.data.problems import read_source
from stir_train.data.reasoning_gym import ReasoningGymScorer
from stir_train.errors import ConfigError, DataError
from stir_train.types.rollout import Gold


def make_task(name: str, **changes: object) -> TaskConfig:
    return TaskConfig.model_validate({"name": f"reasoning-gym:{name}", **changes})


def test_problems_follow_from_parameters_alone() -> None:
    parameters = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1, "size": 50}
    problems = read_source(make_task("chain_sum", parameters=parameters))
    assert problems == read_source(make_task("chain_sum", parameters=parameters))
    assert problems != read_source(make_task("chain_sum", parameters={**parameters, "seed": 1}))
    assert len({problem.problem_id for problem in problems}) == len(problems) > 40
    for problem in problems:
        terms = problem.question.split(":")[1].removesuffix("=")
        assert terms.count("+") + terms.count("-") == 2
        assert int(problem.answer) == eval(terms)


def test_seeds_closer_together_than_the_size_share_problems() -> None:
    """The package's own rule, which `docs/tasks.md` and `init` warn of: problem i is drawn with seed + i."""
    parameters = {"min_terms": 5, "max_terms": 5, "min_digits": 2, "max_digits": 2, "size": 50}

    def made(seed: int) -> set[str]:
        task = make_task("chain_sum", parameters={**parameters, "seed": seed})
        return {problem.problem_id for problem in read_source(task)}

    assert len(made(0) & made(5)) == 45
    assert not made(0) & made(50)


def test_numeric_datasets_are_read_by_our_own_grader() -> None:
    assert make_task("chain_sum").grader == "numeric"
    grader = Grader(make_task("chain_sum"), num_workers=1)
    try:
        grades = grader.grade(
            ["It is 12.\n\nAnswer: 12", "So 1,234 in all."],
            [Gold("12"), Gold("1234")],
            [False, False],
        )
    finally:
        grader.close()
    assert [grade.correct for grade in grades] == [True, True]


def test_a_datasets_own_scorer_takes_what_the_gold_answer_is_not() -> None:
    """In countdown any expression that makes the target is right."""
    task = make_task("countdown", parameters={"size": 30, "seed": 3})
    scorer = ReasoningGymScorer(task)
    problem = read_source(task)[0]
    gold = Gold(problem.answer, question=problem.question)
    other = " ".join(["(", *problem.answer.split(), ")"])
    assert other != problem.answer
    for text, is_right in [(problem.answer, True), (other, True), ("1 + 1", False)]:
        assert scorer(f"Hm.\n\nAnswer: {text}", gold).correct is is_right
        assert grade_own(task.model_dump_json(), f"Answer: {text}", gold).correct is is_right
    assert scorer(problem.answer, gold).correct, "the last line, where nothing is marked"
    assert scorer("", gold).reason == "no answer"


def test_only_marked_answers_count_where_the_task_says_so() -> None:
    task = make_task("countdown", parameters={"size": 5}, answer_reading="marker")
    problem = read_source(task)[0]
    grade = ReasoningGymScorer(task)(
        problem.answer, Gold(problem.answer, question=problem.question)
    )
    assert (grade.correct, grade.reason) == (False, "no answer")


def test_a_problem_of_another_source_is_refused() -> None:
    scorer = ReasoningGymScorer(make_task("countdown", parameters={"size": 5}))
    with pytest.raises(DataError, match="makes no such problem"):
        scorer("Answer: 1", Gold("1", question="1 + 0 = ?"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "reasoning-gym:chain_sums"}, "chain_sums"),
        ({"name": "reasoning-gym:chain_sum", "parameters": {"terms": 3}}, "terms"),
        (
            {"name": "reasoning-gym:chain_sum", "parameters": {"min_terms": 9, "max_terms": 2}},
            "max_terms must be >= min_terms",
        ),
    ],
)
def test_what_the_generator_refuses_is_refused_in_our_words(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        read_source(TaskConfig.model_validate(changes))
    assert "reasoning-gym makes no" in str(error.value)


def test_parameters_are_for_a_generator() -> None:
    with pytest.raises(ValueError, match="reasoning-gym:NAME"):
        TaskConfig.model_validate({"name": "gsm8k", "parameters": {"size": 5}})


def test_the_scorer_grades_one_dataset() -> None:
    task = TaskConfig(name="mine", source="a.jsonl", grader=make_task("countdown").grader)
    with pytest.raises(ConfigError, match="reasoning-gym:NAME source"):
        ReasoningGymScorer(task)
