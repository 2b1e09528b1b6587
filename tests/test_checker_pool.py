"""Text of a model that is meant to hang, crash or exhaust a grader, and the pool that it meets."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from stir_train.config.inputs import TaskConfig
from stir_train.data.grading import Grader, grade_batch
from stir_train.types.rollout import Gold, Grade


@pytest.fixture(scope="module")
def math_grader() -> Iterator[Grader]:
    with closing(Grader(TaskConfig(grader="math"), num_workers=2)) as grader:
        yield grader


def _grade(grader: str, response: str, gold: Gold, *, truncated: bool = False) -> Grade:
    (grade,) = grade_batch(TaskConfig(grader=grader), [(response, gold, truncated)])  # type: ignore[arg-type]
    return grade


def _hostile() -> list[str]:
    size = 1 << 20
    return [
        "",
        "\0" * size,
        "9" * size,
        "Answer: " + "9" * size,
        "Answer: " * (size // 8),
        "\\boxed{" * 10_000,
        "\\boxed{1}" * 10_000,
        "\\frac{" * (size // 6),
        "Answer: 9**9**9**9",
        "Answer: " + "(" * 50_000,
        "Answer: 1" + ",000" * (size // 4),
        "Answer: 1e999999999",
        "Answer: " + "1/" * (size // 2),
        "Answer: " + "-" * size,
        "Answer: " + "A " * (size // 2),
        "the answer to " * (size // 14),
        "\u200b" * size,
        "<think>" * (size // 7),
        "</think>" * (size // 8),
        "####" * (size // 4),
        "\ufdfa" * (size // 3),  # one character that NFKC makes eighteen
        "𝟗" * (size // 4),
        "=" * size,
        "".join(random.Random(0).choices("0123456789.,/+-=^*$%{}\\ \nAB()", k=size)),
    ]


@pytest.mark.parametrize("grader", ["numeric", "choice", "boolean", "exact"])
def test_hostile_text_takes_bounded_time(grader: str) -> None:
    gold = {"numeric": "7", "choice": "B", "boolean": "yes", "exact": "x"}[grader]
    for text in _hostile():
        start = time.process_time()
        assert not _grade(grader, text, Gold(gold)).correct
        # Quadratic work on a megabyte takes minutes; this limit is for slow machines.
        assert time.process_time() - start < 5, f"{grader} on {text[:20]!r}..."


def test_hostile_mathematics_times_out_alone_and_is_counted_apart() -> None:
    texts = [
        *_hostile(),
        "\\boxed{2}",
        "\\boxed{9^{9^{9^{9}}}}",
        "\\boxed{10000000000!}",
        "\\boxed{2}",
    ]
    with closing(Grader(TaskConfig(grader="math"), num_workers=2)) as grader:
        grader._pool.timeout_seconds = 3.0
        grades = grader.grade(texts, [Gold("2")] * len(texts), [False] * len(texts))
    correct = [i for i, grade in enumerate(grades) if grade.correct]
    assert correct == [len(texts) - 4, len(texts) - 1]
    assert {grade.reason for grade in grades} <= {
        "equal",
        "different",
        "no answer",
        "timed out",
        "crashed",
    }
    assert grades[-3].reason in ("timed out", "crashed", "different")


def test_the_pool_replaces_workers_that_hang_or_die() -> None:
    pattern = TaskConfig(grader="regex", answer_regex=r"(?:a+)+(b)")
    with closing(Grader(pattern, num_workers=2)) as grader:
        grader._pool.timeout_seconds = 1.0
        texts = ["aab", "a" * 40, "ab", "a" * 50, "b"]
        grades = grader.grade(texts, [Gold("b")] * 5, [False] * 5)
        assert [g.reason for g in grades] == [
            "equal",
            "timed out",
            "equal",
            "timed out",
            "no answer",
        ]
        crashed = grader._pool.map(_die, [(0,), (1,)])
        assert crashed == ["crashed", 1]


def _die(value: int) -> int:
    if value == 0:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
    return value


def test_many_responses_are_graded_as_few_are() -> None:
    texts = [f"#### {i}" for i in range(2500)]
    golds = [Gold(str(i // 2 * 2)) for i in range(2500)]
    with closing(Grader(TaskConfig(grader="numeric"), num_workers=2)) as grader:
        pooled = grader.grade(texts, golds, [False] * 2500)
        alone = grade_batch(
            TaskConfig(grader="numeric"), zip(texts, golds, [False] * 2500, strict=True)
        )
    assert pooled == alone
    assert sum(grade.correct for grade in pooled) == 1250
