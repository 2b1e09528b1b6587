"""What a run came to, in plain sentences: the head of its report, the last lines of its console."""

from __future__ import annotations

import math

from stir_train.evals.intervals import describe_interval
from stir_train.evals.lengths import MUCH_CUT_OFF
from stir_train.types.results import Interval, MethodMetrics, PassedOver, Results, TuneReport
from stir_train.types.shortlist import Shortlist

GREEDY, STEERED, STUDENT = "greedy", "stir", "lora-student"


def run_verdict(results: Results, tune: TuneReport) -> list[str]:
    """One sentence on steering, then one each on what a reader must know beside it."""
    rows = {row.name: row.metrics for row in results.methods}
    greedy, steered, student = rows[GREEDY], rows[STEERED], rows.get(STUDENT)
    said = []
    if tune.abstains:
        said.append(describe_abstention(tune))
    else:
        said.append(_compared("Steering the base", steered, greedy, results.num_items))
        said += _controls_alike(results, steered)
    if student is not None:
        said.append(_compared("The LoRA student", student, greedy, results.num_items))
    if greedy.truncated_rate >= MUCH_CUT_OFF:
        said.append(
            f"The token budget cut off {greedy.truncated_rate:.1%} of greedy decoding's answers: part of any "
            "difference may be who fits into it (generation.max_new_tokens)."
        )
    return said


def describe_abstention(tune: TuneReport) -> str:
    """That a run steers nothing, and how near tuning came."""
    tried = [trial for trial in tune.whole if trial.settings.mode != "none"]
    after = "Nothing is steered: `stir` is greedy decoding."
    if not tried:
        return f"The run abstains from steering: no setting but `none` was to be tried. {after}"
    nearest = max(tried, key=lambda trial: trial.metrics.utility).metrics
    return (
        f"The run abstains from steering: of {len(tune.trials)} settings none is clearly better than greedy "
        f"decoding on the {tune.num_problems} problems of the tune split. The nearest, {nearest.name}, gains "
        f"{_hundredths(nearest.delta_accuracy, nearest.delta_accuracy_ci95)} points and a utility of "
        f"{nearest.delta_utility:+.3f} {_interval(nearest.delta_utility_ci95, 1, 3)}."
        f"{_enough_problems(nearest, tune.num_problems)} {after}"
    )


def _enough_problems(nearest: MethodMetrics, num_problems: int) -> str:
    """How many problems would tell a gain in utility of that size from none, as its interval narrows with their root."""
    gain, low = nearest.delta_utility, nearest.delta_utility_ci95[0]
    if gain <= 0 or low > 0:
        return ""
    enough = 10 * math.ceil(num_problems * ((gain - low) / gain) ** 2 / 10)
    return f" About {enough:,} tune problems would show a gain of that size (splits.num_tune)."


def describe_passed_over(passed_over: PassedOver) -> str:
    """That a fixed vector is deployed, since a controller is not clearly better."""
    found = passed_over.metrics
    accuracy = _hundredths(found.delta_accuracy, found.delta_accuracy_ci95)
    tokens = _hundredths(found.delta_tokens_fraction, found.delta_tokens_ci95)
    return (
        f"A fixed vector is deployed, since {found.name} is not clearly better than it: {accuracy} points, "
        f"{tokens} % tokens, and a utility of {found.delta_utility:+.3f} "
        f"{_interval(found.delta_utility_ci95, 1, 3)}."
    )


def describe_shortlist(shortlist: Shortlist) -> str:
    """How many settings were ranked and tried, and what that saved."""
    num_ranked = len(shortlist.ranked)
    return (
        f"{num_ranked} settings ranked by {shortlist.num_replays:,} replays, "
        f"{num_ranked - shortlist.num_left_out} decoded: saved about {shortlist.tokens_saved:,.0f} tokens"
    )


def _compared(subject: str, row: MethodMetrics, greedy: MethodMetrics, num_items: int) -> str:
    return describe_pair(subject, row, "greedy decoding", greedy, num_items)


def describe_pair(
    subject: str, row: MethodMetrics, other: str, reference: MethodMetrics, num_items: int
) -> str:
    """A method's accuracy and tokens beside those of another, from which its differences are.

    Args:
        subject: The method, in words.
        row: Its figures, whose differences are from the other's answers.
        other: The other, in words.
        reference: Its figures.
        num_items: Problems that both answered.
    """
    points = _hundredths(row.delta_accuracy, row.delta_accuracy_ci95)
    tokens = _hundredths(row.delta_tokens_fraction, row.delta_tokens_ci95)
    accuracy = {
        "gain": f"a gain of {_amount(row.delta_accuracy, row.delta_accuracy_ci95)} points",
        "loss": f"a loss of {_amount(row.delta_accuracy, row.delta_accuracy_ci95)} points",
        "no effect": f"no clear difference ({points} points)",
    }[describe_interval(*row.delta_accuracy_ci95)]
    length = {
        "gain": f"it takes {_amount(row.delta_tokens_fraction, row.delta_tokens_ci95)} % more tokens",
        "loss": f"it takes {_amount(row.delta_tokens_fraction, row.delta_tokens_ci95)} % fewer tokens",
        "no effect": f"its tokens do not clearly differ ({tokens} %)",
    }[describe_interval(*row.delta_tokens_ci95)]
    return (
        f"{subject} solves {row.accuracy:.1%} of {num_items} held-out problems, {other} "
        f"{reference.accuracy:.1%}: {accuracy}; {length}."
    )


def _controls_alike(results: Results, steered: MethodMetrics) -> list[str]:
    """Controls that gain as much as the controller, whose gain is then not shown to be of what it learned."""
    if describe_interval(*steered.delta_accuracy_ci95) != "gain":
        return []
    alike = [
        row.name
        for row in results.methods
        if row.name.startswith("control-")
        and row.metrics.delta_accuracy >= steered.delta_accuracy > 0
    ]
    if not alike:
        return []
    return [
        f"{', '.join(alike)} gains as much: the gain is not shown to come from what was learned."
    ]


def _hundredths(value: float, interval: Interval) -> str:
    return f"{100 * value:+.1f} {_interval(interval, 100, 1)}"


def _amount(value: float, interval: Interval) -> str:
    """How much, where words say in which direction and the interval lies on one side of zero."""
    low, high = sorted(abs(end) for end in interval)
    return f"{100 * abs(value):.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _interval(interval: Interval, unit: int, digits: int) -> str:
    low, high = interval
    return f"[{unit * low:+.{digits}f}, {unit * high:+.{digits}f}]"
