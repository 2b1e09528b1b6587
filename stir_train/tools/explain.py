"""Say in which phrases a method's answers differ from another's, and show some side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from stir_train.artifacts.run_dir import RunDir
from stir_train.errors import ArtifactError
from stir_train.evals.phrases import PhraseChange, examples_of, phrase_changes
from stir_train.stores.results import load_run_results
from stir_train.stores.rollouts import RolloutStore
from stir_train.types.rollout import GradedRollout

SHOWN_LINES = 12


@dataclass(frozen=True)
class Explanation:
    """What changed between two methods' answers to the test split.

    Attributes:
        before, after: The methods' answers.
        changes: Phrases whose frequency changed most.
    """

    before: Sequence[GradedRollout]
    after: Sequence[GradedRollout]
    changes: Sequence[PhraseChange]


def explain_run(run: Path, *, method: str, than: str, max_phrases: int) -> Explanation:
    """Compare a method's recorded answers with another's; nothing is generated.

    Raises:
        ArtifactError: If the run's evaluation is not finished or damaged, or has no such method.
    """
    for name in (method, than):
        row = load_run_results(run, "evaluate").find(name)
        if row is not None and row.never_acts:
            raise ArtifactError(
                f"{run}: {name} never acts, since tuning chose `none`: its answers are greedy decoding's, "
                "and there is nothing to explain"
            )
    store = RolloutStore(RunDir(run).stage("evaluate")).require_complete()
    methods = [name for name in store.sets() if "/" not in name]
    for name in (method, than):
        if name not in methods:
            raise ArtifactError(f"{run}: no answers of {name!r}; there are {', '.join(methods)}")
    before, after = store.read(than), store.read(method)
    return Explanation(before, after, phrase_changes(before, after, max_phrases=max_phrases))


def print_explanation(
    found: Explanation, console: Console, *, method: str, than: str, num_examples: int
) -> None:
    """Print the table of phrases, and for the first ones examples side by side."""
    if not found.changes:
        console.print(f"No phrase is much rarer or commoner in answers of {method} than of {than}.")
        return
    table = Table(
        box=SIMPLE,
        title=f"answers to {len(found.before)} test problems: {than}, then {method}",
        caption="Right: of the problems whose answers have the phrase where it is commoner.",
    )
    table.add_column("phrase (# is a number)", overflow="fold")
    for column in ("answers\nbefore", "\nafter", "of these, right\nbefore", "\nafter"):
        table.add_column(column, justify="right")
    for change in found.changes:
        total = len(change.items)
        table.add_row(
            f"Begins: {change.phrase}" if change.is_opening else change.phrase,
            str(change.num_before),
            str(change.num_after),
            f"{change.right_before / total:.0%}",
            f"{change.right_after / total:.0%}",
        )
    console.print(table)
    told = found.changes[:num_examples]
    for change, item in zip(told, examples_of(told, found.before, found.after), strict=True):
        console.print(f"\n{change.phrase}", style="bold")
        for name, answer in ((than, found.before[item]), (method, found.after[item])):
            said = "right" if answer.grade.correct else "wrong"
            num_tokens = len(answer.rollout.token_ids)
            console.print(f"{name}, {said}, {num_tokens} tokens", style="dim")
            console.print(_excerpt(answer.text, console.width))


def _excerpt(text: str, width: int) -> str:
    lines = [
        part
        for line in text.strip().splitlines()
        if line.strip()
        for part in textwrap.wrap(line, width - 4)
    ]
    more = [f"... {len(lines) - SHOWN_LINES} more lines"] if len(lines) > SHOWN_LINES else []
    return textwrap.indent("\n".join(lines[:SHOWN_LINES] + more), "  ")
