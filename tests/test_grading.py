"""Graders against tables of right and wrong answers, against themselves, and against hostile text."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stir_train.config.inputs import TaskConfig
from stir_train.data.choices import picked_option
from stir_train.data.grading import Grader, grade_batch, require_gold
from stir_train.data.number_phrases import answer_number
from stir_train.data.numbers import Number
from stir_train.data.plain_text import clean
from stir_train.errors import DataError
from stir_train.tools.grade import grade_file
from stir_train.types.rollout import Gold, Grade
from tests.support.commands import stir_train

TABLES = Path(__file__).parent / "data" / "grades"
SEPARATOR = " ¦ "


def _cases(name: str) -> list[tuple[bool, Gold, str, str]]:
    """Verdict, gold answer, response and reason of every line of a table."""
    cases = []
    for line in (TABLES / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        verdict, gold, *options, response, why = (cell.strip(" ") for cell in line.split("¦"))
        choices = tuple(options[0].split("/")) if options and options[0] else ()
        response = re.sub(r"\\u([0-9a-f]{4})", lambda m: chr(int(m[1], 16)), response)
        cases.append((verdict == "+", Gold(gold, choices), response.replace("\\n", "\n"), why))
    return cases


@pytest.fixture(scope="module")
def math_grader() -> Iterator[Grader]:
    with closing(Grader(TaskConfig(grader="math"), num_workers=2)) as grader:
        yield grader


def _grade(grader: str, response: str, gold: Gold, *, truncated: bool = False) -> Grade:
    (grade,) = grade_batch(TaskConfig(grader=grader), [(response, gold, truncated)])  # type: ignore[arg-type]
    return grade


@pytest.mark.parametrize("name", ["numeric", "choice", "boolean"])
def test_every_case_of_the_table_is_graded_as_it_should(name: str) -> None:
    wrong = [
        f"{gold.answer!r} {gold.choices} <- {response!r}: {grade} ({why})"
        for correct, gold, response, why in _cases(name)
        if (grade := _grade(name, response, gold)).correct is not correct
    ]
    assert not wrong, "\n".join(wrong)


def test_every_mathematical_case_is_graded_as_it_should(math_grader: Grader) -> None:
    cases = _cases("math")
    grades = math_grader.grade([c[2] for c in cases], [c[1] for c in cases], [False] * len(cases))
    wrong = [
        f"{gold.answer!r} <- {response!r}: {grade} ({why})"
        for (correct, gold, response, why), grade in zip(cases, grades, strict=True)
        if grade.correct is not correct
    ]
    assert not wrong, "\n".join(wrong)


def test_the_tables_are_large_and_cut_both_ways() -> None:
    for name, least in (("numeric", 150), ("choice", 150), ("math", 150), ("boolean", 50)):
        cases = _cases(name)
        assert len(cases) >= least
        assert min(sum(c[0] for c in cases), sum(not c[0] for c in cases)) >= least // 3
        assert all(why for *_, why in cases)


FORMATS = (
    "Answer: {}",
    "**Answer:** {}",
    "The answer is {}.",
    "#### {}",
    "\\boxed{{{}}}",
    "$\\boxed{{{}}}$",
    "Answer:\n\n{}",
    "<think>12 or 13?</think>\nAnswer: {}",
    "<answer>{}</answer>",
    "Answer: ({})",
    "Answer: {}, hooray",
    "Answer: **{}**",
)
NUMBER_FORMATS = (*FORMATS, "Answer: ${}", "Answer: {} apples", "Answer: x = {}", "so it is {}")


@given(
    st.integers(-(10**9), 10**9),
    st.integers(-(10**9), 10**9),
    st.sampled_from([str, "{:,}".format, "{:.2f}".format, "{:,.1f}".format, "{:+}".format]),
    st.sampled_from(NUMBER_FORMATS),
)
def test_formatting_never_flips_a_numeric_grade(gold, given, write, frame) -> None:  # type: ignore[no-untyped-def]
    grade = _grade("numeric", frame.format(write(given)), Gold(str(gold)))
    assert grade.correct is (gold == given)
    assert _grade("numeric", frame.format(write(gold)), Gold(str(gold))).correct


@given(st.integers(-500, 500), st.integers(1, 60), st.integers(-500, 500), st.integers(1, 60))
def test_fractions_compare_by_value(a: int, b: int, c: int, d: int) -> None:
    gold, same = Gold(f"{a}/{b}"), Fraction(a, b) == Fraction(c, d)
    for text in (f"Answer: {c}/{d}", f"\\boxed{{{c}/{d}}}", f"\\boxed{{\\frac{{{c}}}{{{d}}}}}"):
        assert _grade("numeric", text, gold).correct is same


@given(
    st.integers(2, 10).flatmap(lambda n: st.tuples(st.just(n), *[st.integers(0, n - 1)] * 2)),
    st.sampled_from(FORMATS),
    st.sampled_from(["{}", "({})", "option {}"]),
)
def test_a_wrong_letter_never_passes(sizes: tuple[int, int, int], frame: str, write: str) -> None:
    count, gold, given = sizes
    options = tuple(f"thing {'xyzuvwrstq'[i]}" for i in range(count))
    letters = "ABCDEFGHIJ"
    for named in (write.format(letters[given]), options[given]):
        grade = _grade("choice", frame.format(named), Gold(letters[gold], options))
        assert grade.correct is (gold == given), (frame.format(named), grade)


@given(st.text(max_size=200))
def test_any_text_gets_a_grade(text: str) -> None:
    for grader, gold in (("numeric", "7"), ("choice", "B"), ("boolean", "no"), ("exact", "x")):
        assert _grade(grader, text, Gold(gold)).reason in (
            "equal",
            "different",
            "no answer",
            "ambiguous",
        )


WRITTEN = (
    lambda n: str(n),
    lambda n: f"{n:,}",
    lambda n: f"{n:,}".replace(",", " "),
    lambda n: f"{n:,}".replace(",", "{,}"),
    lambda n: f"{n:_}",
    lambda n: f"minus {-n}" if n < 0 else f"{n}",
    lambda n: f"{n}/1",
    lambda n: f"\\frac{{{2 * n}}}{{2}}",
    lambda n: f"\\sqrt{{{n * n}}}" if n >= 0 else f"-\\sqrt{{{n * n}}}",
    lambda n: f"{n}.00",
    lambda n: f"{n}e0",
    lambda n: f"{n} \\times 10^{{0}}",
    lambda n: f"x = {n}",
    lambda n: f"{n} \\text{{ apples}}",
    lambda n: f"\\({n}\\)",
)
JUNK_AFTER = (
    "x", "\\sqrt2", "\\pi", " + 3", " - 3", " * 2", " or 7", " and 7", " to 7", ", 7", "; 7", " < x",
    " \\pm 1", "^2", " mod 7", " \\pmod{7}", "x + 3", " squared", "i", " \\text{ and } 7", ":7",
    " or more", " is wrong", " = y + 7 + x",
)  # fmt: skip
JUNK_BEFORE = (
    "x + ", "not ", "\\pm ", "x \\ge ", "x < ", "at least ", "more than ", "half of ", "7, ", "7 or ",
    "7 and ", "isn't ", "2 \\cdot ", "\\log ", "7 - ", "y \\in ", "square root of ",
)  # fmt: skip


@given(
    st.integers(-(10**12), 10**12), st.sampled_from(WRITTEN), st.sampled_from(NUMBER_FORMATS[:6])
)
def test_a_number_in_any_form_reads_back_exactly(number, write, frame) -> None:  # type: ignore[no-untyped-def]
    grade = _grade("numeric", frame.format(write(number)), Gold(str(number)))
    assert grade.correct, grade


@given(
    st.integers(0, 10**6),
    st.one_of(
        st.sampled_from(JUNK_AFTER).map(lambda junk: ("", junk)),
        st.sampled_from(JUNK_BEFORE).map(lambda junk: (junk, "")),
    ),
    st.sampled_from(["Answer: {}", "\\boxed{{{}}}", "#### {}", "the answer is ${}$"]),
)
def test_a_number_with_anything_else_is_refused(number, around, frame) -> None:  # type: ignore[no-untyped-def]
    before, after = around
    grade = _grade("numeric", frame.format(f"{before}{number}{after}"), Gold(str(number)))
    assert (grade.correct, grade.reason) == (False, "ambiguous"), grade
    with pytest.raises(DataError, match="not one number"):
        require_gold(Gold(f"{before}{number}{after}"), TaskConfig(grader="numeric"))


def test_a_grade_says_whether_the_answer_was_marked_and_may_ask_for_it() -> None:
    lenient, strict = (
        TaskConfig(grader="numeric"),
        TaskConfig(grader="numeric", answer_reading="marker"),
    )
    for text, has_marker in (
        ("Answer: 5", True),
        ("**Answer:** 5", True),
        ("Answer:\n$$5$$", True),
        ("\\boxed{5}", False),
        ("#### 5", False),
        ("the answer is 5", False),
        ("so it is 5", False),
        ("Answer: \nso it is 5", True),
        ("<think>Answer: 5</think>", True),
    ):
        (grade,) = grade_batch(lenient, [(text, Gold("5"), False)])
        assert (grade.correct, grade.had_marker) == (True, has_marker), text
        (grade,) = grade_batch(strict, [(text, Gold("5"), False)])
        assert (grade.correct, grade.had_marker) == (has_marker, has_marker), text
    boxes = TaskConfig(name="aime2024", answer_reading="marker")
    for text, has_marker in (("\\boxed{5}", True), ("Answer: 5", False)):
        (grade,) = grade_batch(boxes, [(text, Gold("5"), False)])
        assert (grade.correct, grade.had_marker) == (has_marker, has_marker), text


def test_truncated_answers_are_wrong_and_marked() -> None:
    for grader, gold, text in (
        ("numeric", "18", "Answer: 18"),
        ("choice", "B", "Answer: B"),
        ("boolean", "yes", "Answer: yes"),
        ("exact", "18", "Answer: 18"),
    ):
        grade = _grade(grader, text, Gold(gold), truncated=True)
        assert (grade.correct, grade.reason) == (False, "truncated")


@pytest.mark.parametrize(
    ("grader", "gold", "complaint"),
    [
        ("numeric", "10 or 11", "not one number"),
        ("numeric", "ten", "not one number"),
        ("choice", "Z", "names none of the options"),
        ("boolean", "perhaps", "neither yes nor no"),
        ("exact", " ", "is empty"),
    ],
)
def test_a_gold_answer_that_cannot_be_compared_is_refused(
    grader: str, gold: str, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        require_gold(Gold(gold, ("x", "y")), TaskConfig(grader=grader))  # type: ignore[arg-type]


def test_regex_answers_are_compared_without_case_or_space() -> None:
    config = TaskConfig(grader="regex", answer_regex=r"result\s*=\s*(.+)")
    with closing(Grader(config, num_workers=1)) as grader:
        texts = ["result = x\nresult = Deep  Blue", "result: Deep Blue", "result = deep red"]
        grades = grader.grade(texts, [Gold("deep blue")] * 3, [False] * 3)
    assert [(g.correct, g.reason) for g in grades] == [
        (True, "equal"),
        (False, "no answer"),
        (False, "different"),
    ]


def test_the_command_grades_a_file_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "responses.jsonl"
    rows = [
        {"response": "#### 18", "answer": "18", "id": 7},
        {"response": "Answer: 17", "answer": "18", "id": 8, "nested": {"kept": [1]}},
        {"response": "hm", "answer": "18"},
        {"response": "#### 18", "answer": 18, "truncated": True},
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = stir_train("grade", "--task", "gsm8k", str(file))
    assert done.returncode == 0, done.stderr
    graded = [json.loads(line) for line in done.stdout.splitlines()]
    assert [g["reason"] for g in graded] == ["equal", "different", "no answer", "truncated"]
    assert [g["correct"] for g in graded] == [True, False, False, False]
    assert graded[1]["id"] == 8
    assert graded[1]["nested"] == {"kept": [1]}
    assert graded[1]["extracted"] == "17"
    assert "4 responses, 1 correct (25.00%)" in done.stderr
    file.write_text('{"response": "x"}\nnot json\n{"response": 1, "answer": "2"}\n[]\n')
    done = stir_train("grade", "--task", "gsm8k", str(file))
    assert done.returncode == 1
    assert done.stdout == ""
    for number, complaint in enumerate(
        ["no answer", "not JSON", "the response is not text", "not a JSON"], 1
    ):
        assert f"responses.jsonl:{number}: {complaint}" in done.stderr
    custom = stir_train("grade", str(file), "grader=regex")
    assert "answer_regex and grader: regex go together" in custom.stderr


def test_numbers_are_written_so_that_they_can_be_read_again() -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = Fraction(rng.randrange(-(10**6), 10**6), rng.choice([1, 2, 4, 10, 3, 7, 1000]))
        written = str(Number(value))
        assert answer_number(written) == Number(value), written
    assert str(Number(Fraction(1, 2), percent=True)) == "0.5%"


def test_every_option_is_picked_by_its_own_text() -> None:
    options = ("iron", "iron ore", "a cat", "4", "x > 2", "none of these")
    for i, option in enumerate(options):
        assert picked_option(option, options) == "ABCDEF"[i]
        assert picked_option(f"({'ABCDEF'[i]}) {option}", options) == "ABCDEF"[i]
    assert clean("a\u200bb") == "ab"


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"answer": [5]}, "the gold answer is a list, not text"),
        ({"answer": {"value": 5}}, "the gold answer is a dict, not text"),
        ({"answer": True}, "the gold answer is true, not text"),
        ({"answer": float("nan")}, "the gold answer is a float, not text"),
        ({"truncated": "false"}, "truncated is neither true nor false"),
        ({"response": None}, "the response is not text"),
        ({"choices": [1]}, "the option is not text"),
        ({"source": "\ud800"}, "the source holds half a character"),
    ],
)
def test_a_line_of_responses_that_would_have_to_be_guessed_at_is_refused(
    tmp_path: Path, changed: dict[str, object], why: str
) -> None:
    path = tmp_path / "responses.jsonl"
    path.write_text(json.dumps({"response": "Answer: 5", "answer": "5", **changed}))
    with pytest.raises(DataError, match=why):
        grade_file(TaskConfig(grader="numeric"), path, StringIO(), num_workers=1)


def test_a_line_of_responses_is_graded_by_its_gold_answer_as_it_is_written(tmp_path: Path) -> None:
    path, output = tmp_path / "responses.jsonl", StringIO()
    path.write_text('{"response": "7.50", "answer": 7.50, "id": 1.50}\n')
    task = TaskConfig(grader="exact", answer_marker="")
    assert grade_file(task, path, output, num_workers=1) == {"equal": 1}
    assert json.loads(output.getvalue())["id"] == 1.5
    path.write_text('{"response": "5", "answer": "5", "answer": "6"}\n')
    with pytest.raises(DataError, match="'answer' stands twice"):
        grade_file(task, path, StringIO(), num_workers=1)
