"""What students keep of their teacher's gains, and how they compare with one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from stir_train.evals.intervals import bootstrap_interval, ratio_change_interval
from stir_train.types.results import StudentComparison
from stir_train.types.rollout import GradedRollout


def compare_students(
    answers: Mapping[str, Sequence[GradedRollout]],
    students: Sequence[str],
    *,
    base: str,
    teacher: str,
    other: str,
    num_resamples: int,
) -> list[StudentComparison]:
    """Compare every student with the base, the teacher and one student.

    Args:
        answers: Of every method, the same items in the same order.
        students: Names among them.
        base: Greedy decoding's name.
        teacher: The steered base's.
        other: The student's, that each is compared with.
        num_resamples: Bootstrap resamples.
    """
    right = {name: [float(g.grade.correct) for g in items] for name, items in answers.items()}
    tokens = {
        name: [float(g.rollout.total_tokens) for g in items] for name, items in answers.items()
    }
    gain = _differences(right[teacher], right[base])
    saving = _differences(tokens[base], tokens[teacher])
    return [
        StudentComparison(
            name,
            other,
            _retained(_differences(right[name], right[base]), gain, num_resamples),
            _retained(_differences(tokens[base], tokens[name]), saving, num_resamples),
            _mean(_differences(right[name], right[other])),
            bootstrap_interval(
                _differences(right[name], right[other]), num_resamples=num_resamples
            ),
            _mean(tokens[name]) / _mean(tokens[other]) - 1,
            ratio_change_interval(tokens[other], tokens[name], num_resamples=num_resamples),
        )
        for name in students
    ]


def _retained(
    student: Sequence[float], teacher: Sequence[float], num_resamples: int
) -> float | None:
    low, _ = bootstrap_interval(teacher, num_resamples=num_resamples)
    return _mean(student) / _mean(teacher) if low > 0 else None


def _differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
