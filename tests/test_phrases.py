"""What steering changed in the wording of answers."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stir_train.errors import ArtifactError
from stir_train.evals.phrases import examples_of, phrase_changes
from stir_train.monitoring.console import make_console
from stir_train.tools.explain import Explanation, explain_run, print_explanation
from stir_train.types.rollout import Grade, GradedRollout, Rollout


def answer(text: str, right: bool) -> GradedRollout:
    rollout = Rollout("p", 0, (1,), (2,), (0.0,), (), "stop")
    return GradedRollout(rollout, text, Grade(right, "", ""), float(right))


RULE = "By the order of operations, 12 + 3 is 15."
PLAIN = "We add: 12 + 3 is 15."


def test_a_habit_that_vanishes_is_one_row_told_in_full() -> None:
    before = [answer(RULE, right=i == 0) for i in range(6)] + [answer(PLAIN, True)] * 14
    after = [answer(PLAIN, right=i < 5) for i in range(6)] + [answer(PLAIN, True)] * 14
    changes = phrase_changes(before, after)
    first = changes[0]
    assert first.phrase.startswith("By the order of operations, # +")
    assert first.is_opening
    assert (first.num_before, first.num_after) == (6, 0)
    assert first.items == tuple(range(6))
    assert (first.right_before, first.right_after) == (1, 5)
    assert examples_of(changes[:2], before, after) == [1, 2], "went from wrong to right"
    assert sum("order of operations" in change.phrase for change in changes) == 1
    assert {change.phrase.split()[0] for change in changes} == {"By", "We"}


def test_numbers_are_alike() -> None:
    before = [answer(f"It makes {n},000.5 in all", True) for n in range(20)]
    after = [answer("No idea", False)] * 20
    assert [c.phrase for c in phrase_changes(before, after)] == [
        "It makes # in all",
        "No idea",
    ]


def test_equal_answers_have_no_changes() -> None:
    same = [answer(RULE, True), answer(PLAIN, False)] * 10
    assert phrase_changes(same, same) == []


words = st.lists(st.sampled_from(["a", "b", "c 1"]), max_size=5).map(" ".join)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=12))
def test_counts_are_those_of_the_texts(pairs: list[tuple[str, str]]) -> None:
    before = [answer(text, True) for text, _ in pairs]
    after = [answer(text, False) for _, text in pairs]
    for change in phrase_changes(before, after, max_phrases=99):
        counts = []
        for side in (before, after):
            texts = [" " + " ".join(item.text.replace("1", "#").split()) + " " for item in side]
            wanted = f" {change.phrase} "
            have = [t.startswith(wanted) if change.is_opening else wanted in t for t in texts]
            counts.append(sum(have))
        assert counts == [change.num_before, change.num_after]
        assert abs(change.num_after - change.num_before) >= 2
        assert len(change.items) == max(counts)


def test_a_run_without_an_evaluation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no run directory"):
        explain_run(tmp_path / "none", method="stir", than="greedy", max_phrases=5)
    with pytest.raises(ArtifactError):
        explain_run(tmp_path, method="stir", than="greedy", max_phrases=5)


def test_what_is_printed_is_the_models_text_without_marks_of_ours() -> None:
    habit = "First we write\n\\[12 + 3 = 15\\] and [b]bold[/b]"
    before = [answer(habit, right=False) for _ in range(6)] + [answer(PLAIN, True)] * 14
    after = [answer(PLAIN, right=True) for _ in range(20)]
    changes = phrase_changes(before, after)
    printed = StringIO()
    found = Explanation(before, after, changes)
    print_explanation(found, make_console(printed), method="stir", than="greedy", num_examples=1)
    lines = [line.strip() for line in printed.getvalue().splitlines()]
    assert "greedy, wrong, 1 tokens" in lines
    assert "\\[12 + 3 = 15\\] and [b]bold[/b]" in lines
    assert changes[0].phrase in lines
