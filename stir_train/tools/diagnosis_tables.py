"""A diagnosis as tables that fit 80 columns, and as a Markdown page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from stir_train.evals.dependence import Dependence
from stir_train.evals.step_importance import StepImportance, step_importance
from stir_train.tools.diagnose import Diagnosis

NOTHING = "-"


@dataclass(frozen=True)
class Sheet:
    """A table before it is drawn.

    Attributes:
        title: What it shows.
        columns: Headers.
        rows: Cells.
        legend: How to read it.
        text_column: Which column is text, cut short where the terminal is narrow.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    legend: str
    text_column: int | None = None


def print_diagnosis(found: Diagnosis, console: Console) -> None:
    """Print what was read, and what it cost."""
    console.print(_headline(found), soft_wrap=True)
    for sheet in sheets(found):
        table = Table(box=SIMPLE, pad_edge=False)
        for number, column in enumerate(sheet.columns):
            if number == sheet.text_column:
                table.add_column(column, no_wrap=True, overflow="ellipsis", ratio=1)
            else:
                table.add_column(column, justify="right", no_wrap=True)
        for row in sheet.rows:
            table.add_row(*row)
        console.print(Text(f"\n{sheet.title}", style="bold"))
        console.print(table)
        console.print(Text(sheet.legend, style="dim"))
    console.print()
    console.print(_spent(found), soft_wrap=True)


def as_markdown(found: Diagnosis) -> str:
    """The same as a page."""
    parts = [f"# {_headline(found)}"]
    for sheet in sheets(found):
        lines = [_line(sheet.columns), _line(["---"] * len(sheet.columns))]
        parts += [f"## {sheet.title}", "\n".join([*lines, *map(_line, sheet.rows)]), sheet.legend]
    return "\n\n".join([*parts, _spent(found)]) + "\n"


def sheets(found: Diagnosis) -> list[Sheet]:
    """The tables that have anything in them."""
    made = [_steps(found), _blocks(found), _dependences(found)]
    return [sheet for sheet in made if sheet is not None and sheet.rows]


def _headline(found: Diagnosis) -> str:
    rollout, grade = found.completion.rollout, found.completion.grade
    said = f"answer {grade.extracted}" if grade.extracted else "no answer"
    return (
        f"{'right' if grade.correct else 'wrong'}: {said}, gold {found.prompt.answer}, "
        f"{len(rollout.token_ids)} tokens, {len(rollout.control_points)} control points"
    )


def _spent(found: Diagnosis) -> str:
    cost = found.cost
    return (
        f"cost: the completion and {cost.continuations} continuations, {cost.tokens} tokens in "
        f"{cost.forward_passes} passes; the blocks were read in one more"
    )


def _steps(found: Diagnosis) -> Sheet:
    count = len(found.cuts[0].correct)
    rows = [("", "(the problem)", f"{found.cuts[0].accuracy:.0%}", "", "", "")]
    for number, text in enumerate(found.steps):
        after = found.cuts[number + 1]
        importance = step_importance(found.cuts[number], after)
        rows.append(
            (
                str(number + 1),
                " ".join(text.split()),
                f"{after.accuracy:.0%}",
                _gain(importance),
                f"{importance.moved:.2f} ({importance.by_chance:.2f})",
                _agreement(found, number),
            )
        )
    legend = (
        f"right: of {count} continuations from behind the step. points gained: over those from before it, 95 % "
        "interval. moved: how far the answers moved, total variation (by chance). blocks: those below the "
        "last that would go on with the same token."
    )
    columns = ("", "step", "right", "points gained", "moved", "blocks")
    return Sheet("what each step is worth", columns, tuple(rows), legend, 1)


def _gain(found: StepImportance) -> str:
    return f"{100 * found.gain:+.0f} [{100 * found.low:+.0f}, {100 * found.high:+.0f}]"


def _agreement(found: Diagnosis, position: int) -> str:
    if found.lens is None:
        return NOTHING
    below = found.lens.agrees[:-1, position]
    return f"{int(below.sum())} of {len(below)}"


def _blocks(found: Diagnosis) -> Sheet | None:
    if found.lens is None:
        return None
    num_steps = len(found.steps)
    parts = [slice(0, num_steps), slice(num_steps, found.lens.agrees.shape[1])]
    rows = []
    for block in range(len(found.lens.agrees)):
        cells = [str(block)]
        for part in parts:
            agrees, distance = found.lens.agrees[block, part], found.lens.distance[block, part]
            if len(agrees):
                cells += [f"{float(agrees.float().mean()):.0%}", f"{float(distance.mean()):.2f}"]
            else:
                cells += [NOTHING, NOTHING]
        rows.append(tuple(cells))
    num_said = found.lens.agrees.shape[1] - num_steps
    legend = (
        "What a block's states say of the next token, through the final norm and the output layer: how often it "
        "is the last block's, and the mean distance of the distributions (total variation). steps: at the ends "
        f"of {num_steps}. answer: before each of its tokens ({num_said})."
    )
    columns = ("block", "steps", "distance", "answer", "distance")
    return Sheet(
        "from which block on the model says what it will say", columns, tuple(rows), legend
    )


def _dependences(found: Diagnosis) -> Sheet:
    rows = tuple(
        (str(point), str(block), *_cells(own), *_cells(found.of_harvest[point, block]))
        for (point, block), own in found.of_problem.items()
    )
    legend = (
        "Dependence (HSIC, 0 to 1; by chance) of the states at a control point and whether the completion ends "
        "right: over n continuations from this problem, and over n completions of the harvest, beyond what their problems "
        f"say of both. p: by exchanges of outcomes within problems. {NOTHING}: too few right or wrong ones. The smallest "
        "p of many is no finding."
    )
    columns = ("point", "block", "problem", "p", "n", "harvest", "p", "n")
    return Sheet("where states tell the end", columns, rows, legend)


def _cells(found: Dependence | None) -> tuple[str, str, str]:
    if found is None:
        return (NOTHING, NOTHING, NOTHING)
    return (
        f"{found.value:.2f} ({found.by_chance:.2f})",
        f"{found.p_value:.3f}",
        str(found.num_states),
    )


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(re.sub(r"([|`*_<])", r"\\\1", cell) for cell in cells) + " |"
