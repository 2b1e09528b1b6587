"""One self-contained HTML page for a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from stir_train.artifacts.attempts import Maker
from stir_train.evals import plots
from stir_train.evals.frontier import frontier
from stir_train.evals.intervals import describe_method
from stir_train.evals.phrases import PhraseChange, examples_of, phrase_changes
from stir_train.evals.strength import strength_curves
from stir_train.evals.tables import verdict
from stir_train.evals.verdict import describe_passed_over, describe_shortlist
from stir_train.monitoring.console import duration
from stir_train.stores.metric_log import StageLog
from stir_train.types.reports import (
    BasisReport,
    DirectionsReport,
    ValidationReport,
    ValueReport,
)
from stir_train.types.results import Results, TuneReport
from stir_train.types.rollout import GradedRollout
from stir_train.types.steering import SteeringDecision

NUM_EXAMPLES = 4
NUM_EXPLAINED = 3
NUM_SAMPLES = 3
PAGE = "report.html"


@dataclass(frozen=True)
class Example:
    """A problem answered twice, the steered text cut where impulses went in."""

    question: str
    answer: str
    baseline: str
    steered: tuple[str, ...]


@dataclass(frozen=True)
class Sample:
    """A problem and what several methods answer.

    Attributes:
        question, answer: The problem and its gold answer.
        answers: By method, the text and whether it is right.
    """

    question: str
    answer: str
    answers: Mapping[str, tuple[str, bool]]


@dataclass(frozen=True)
class Changes:
    """What the chosen controller changed in the wording of answers.

    Attributes:
        num_items: Problems answered.
        phrases: The phrases whose frequency changed most.
        examples: Of the first of them, a problem answered twice.
    """

    num_items: int
    phrases: Sequence[PhraseChange]
    examples: Mapping[str, Example]


@dataclass(frozen=True)
class Evaluation:
    """What the page shows of a finished evaluation.

    Attributes:
        results: The held-out comparison.
        tune: The report of tuning.
        decisions: The steered method's decisions on the test items.
        changes: What the steered method says otherwise.
        wins, losses: Items that steering mended, and that it broke.
        samples: The first items, whatever became of them.
    """

    results: Results
    tune: TuneReport
    decisions: Sequence[SteeringDecision]
    changes: Changes
    wins: Sequence[Example]
    losses: Sequence[Example]
    samples: Sequence[Sample]


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows.

    Attributes:
        title: Run name.
        model, task: Their names.
        verdict: What the run came to, in sentences.
        evaluation: None for a run that ended before it.
        directions, basis, validation, value: The stages' own reports; None for one that is left out.
        summaries: Stage name to summary figures.
        lineage: Stage name to fingerprint.
        logs: Stage name to what was logged while it was made, for those of which there is any.
        makers: Code and hardware that worked on it, with the numbers of their attempts.
        config: The settings that the stages were made with, as YAML.
    """

    title: str
    model: str
    task: str
    verdict: Sequence[str]
    evaluation: Evaluation | None
    directions: DirectionsReport | None
    basis: BasisReport | None
    validation: ValidationReport | None
    value: ValueReport | None
    summaries: Mapping[str, Mapping[str, float | str]]
    lineage: Mapping[str, str]
    logs: Mapping[str, StageLog]
    makers: Sequence[tuple[Maker, Sequence[int]]]
    config: str


def render_report(data: ReportData) -> str:
    """Render the page; it needs no other file and no network."""
    figures: dict[str, Markup] = {}
    if data.evaluation is not None:
        figures["frontier"] = frontier([row.metrics for row in data.evaluation.results.methods])
        figures["interventions"] = plots.interventions(_by_point(data.evaluation.decisions))
    if data.basis is not None:
        figures |= _basis_figures(data.basis)
    if data.validation is not None:
        uplifts = {"entries": [entry.mean for entry in data.validation.entries]}
        title = "mean uplift of an entry"
        figures["uplift"] = plots.histogram(uplifts, title, ylabel="entries")
    if data.evaluation is not None and data.directions is not None:
        tried = strength_curves(data.evaluation.tune.trials, data.directions)
        if tried:
            figures["strengths"] = plots.strengths(tried)
    losses = data.logs["distill"].curves("loss") if "distill" in data.logs else {}
    if losses:
        named = {series.rpartition("/")[2] or "student": curve for series, curve in losses.items()}
        figures["loss"] = plots.curves(named, "step", "loss")
    if data.value is not None:
        blocks = data.value.blocks
        figures["reliability"] = plots.reliability({b: r.reliability for b, r in blocks.items()})
    template = page_environment().get_template("report.html.j2")
    return template.render(data=data, figures=figures, verdict=verdict)


def _basis_figures(basis: BasisReport) -> dict[str, Markup]:
    """What the contrasts look like, and how the basis grows."""
    return {
        "yield": plots.points_yield(basis.points),
        "quality": plots.histogram({"quality": basis.quality}, "quality of a contrast"),
        "norms": plots.histogram(
            {f"block {b}": v for b, v in basis.norms.items()}, "norm of a direction"
        ),
        "cosines": plots.cosines(basis.blocks),
        "logdet": plots.curves(
            {f"block {b}": dict(enumerate(v, start=1)) for b, v in basis.logdet.items()},
            "entries picked",
            "log-determinant",
        ),
    }


def page_environment() -> Environment:
    """Templates of pages: everything escaped, nothing missing, figures as people write them."""
    environment = Environment(
        loader=PackageLoader("stir_train.evals", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters["with_code"] = _with_code
    environment.filters["origin"] = _origin
    environment.filters["figure"] = _figure
    environment.filters["passed_over"] = describe_passed_over
    environment.filters["shortlist"] = describe_shortlist
    environment.filters["percent"] = lambda value: f"{100 * value:.1f} %"
    environment.filters["interval"] = lambda ends: f"[{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
    environment.filters["duration"] = duration
    environment.filters["change_interval"] = lambda ends: (
        f"[{100 * ends[0]:+.1f}, {100 * ends[1]:+.1f}]"
    )
    environment.filters["accuracy_class"] = lambda row: describe_method(
        row.name, row.delta_accuracy_ci95, (0.0, 0.0)
    ).replace(" ", "-")
    environment.filters["signed_percent"] = lambda value: f"{100 * value:+.1f} %"
    environment.filters["signed_points"] = lambda value: f"{100 * value:+.1f} points"
    return environment


def _with_code(sentence: str) -> Markup:
    """A sentence whose names in backquotes are set as code; all else is escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def _origin(chosen_on: str) -> str:
    """Where a method's settings come from, in words."""
    words = {"tune": "chosen on the tune split", "nothing": ""}
    return words.get(chosen_on, f"with the {chosen_on}")


def _figure(value: float | str) -> str:
    """A figure of a stage's summary: counts whole, measurements to four digits."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


def build_examples(
    baseline: Sequence[GradedRollout],
    steered: Sequence[GradedRollout],
    questions: Mapping[str, tuple[str, str]],
    decode: Callable[[Sequence[int]], str],
) -> tuple[list[Example], list[Example]]:
    """The first few wins and losses, side by side.

    Args:
        baseline: Greedy answers.
        steered: Steered answers to the same items.
        questions: Prompt id to (question, gold answer).
        decode: Token ids to text.
    """
    wins: list[Example] = []
    losses: list[Example] = []
    for plain, changed in zip(baseline, steered, strict=True):
        if plain.grade.correct == changed.grade.correct:
            continue
        kept = wins if changed.grade.correct else losses
        if len(kept) < NUM_EXAMPLES:
            question, answer = questions[plain.rollout.prompt_id]
            kept.append(Example(question, answer, plain.text, _pieces(changed, decode)))
    return wins, losses


def build_samples(
    answers: Mapping[str, Sequence[GradedRollout]], questions: Mapping[str, tuple[str, str]]
) -> list[Sample]:
    """The first items as every method answers them.

    Args:
        answers: By method, to the same items; not empty.
        questions: As in `build_examples`.
    """
    samples = []
    for row in list(zip(*answers.values(), strict=True))[:NUM_SAMPLES]:
        question, answer = questions[row[0].rollout.prompt_id]
        said = {
            name: (graded.text, graded.grade.correct)
            for name, graded in zip(answers, row, strict=True)
        }
        samples.append(Sample(question, answer, said))
    return samples


def build_changes(
    baseline: Sequence[GradedRollout],
    steered: Sequence[GradedRollout],
    questions: Mapping[str, tuple[str, str]],
) -> Changes:
    """The phrases that changed most, with an example of the first few; arguments as `build_examples`."""
    phrases = phrase_changes(baseline, steered)
    examples = {}
    told = phrases[:NUM_EXPLAINED]
    for change, item in zip(told, examples_of(told, baseline, steered), strict=True):
        question, answer = questions[baseline[item].rollout.prompt_id]
        examples[change.phrase] = Example(
            question, answer, baseline[item].text, (steered[item].text,)
        )
    return Changes(len(baseline), phrases, examples)


def _pieces(graded: GradedRollout, decode: Callable[[Sequence[int]], str]) -> tuple[str, ...]:
    """The completion's text cut after every token that carried an impulse."""
    cuts = [impulse.token_index + 1 for impulse in graded.rollout.impulses]
    edges = [0, *cuts, len(graded.rollout.token_ids)]
    ids = graded.rollout.token_ids
    return tuple(decode(ids[start:end]) for start, end in pairwise(edges))


def _by_point(decisions: Sequence[SteeringDecision]) -> dict[int, tuple[int, int]]:
    counts: dict[int, tuple[int, int]] = {}
    for decision in decisions:
        seen, fired = counts.get(decision.point, (0, 0))
        counts[decision.point] = seen + 1, fired + (decision.strength > 0)
    return counts
