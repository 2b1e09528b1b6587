"""What ``results.json`` and the stages' reports hold, as records that check themselves.

Fractions are between 0 and 1, intervals are 95 %, and token counts are per problem.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from stir_train.config.steering import NoSteering, SteeringConfig
from stir_train.types.shortlist import Shortlist

Steering = Annotated[SteeringConfig, Field(discriminator="mode")]
"""A controller's settings, by mode."""
Interval = tuple[float, float]
"""Lower and upper end."""
Setting = dict[str, float | int | str]
"""One point of a baseline's grid."""

STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=STRICT)
class MethodMetrics:
    """One method's figures against a baseline (greedy decoding), on the same problems.

    Attributes:
        name: The method.
        tokens_mean: Every generated token, discarded ones (previews, other votes) included.
        committed_tokens_mean: Tokens of the completion itself.
        extra_tokens_mean: Generated tokens that were discarded.
        forward_passes_mean: Model calls that each completion took part in.
        truncated_rate: Completions that the token budget cut off.
        no_marker_rate: Completions without an answer where the task asks for it (`task.answer_marker`).
        no_answer_rate: Completions from which the grader extracted no answer.
        checker_failure_rate: Answers whose checker timed out or crashed; counted as wrong.
        intervention_rate: Impulses per control point.
        utility: Mean `stir_train.types.utility.Utility`.
        delta_accuracy, delta_utility: Paired differences from the baseline.
        delta_tokens_fraction: Mean tokens relative to the baseline's, less one.
        mcnemar_p: Two-sided exact McNemar test of ``wins`` against ``losses``.
        wins, losses: Problems that only the method, or only the baseline, solves.
    """

    name: str
    accuracy: float
    accuracy_ci95: Interval
    tokens_mean: float
    committed_tokens_mean: float
    extra_tokens_mean: float
    forward_passes_mean: float
    truncated_rate: float
    no_marker_rate: float
    no_answer_rate: float
    checker_failure_rate: float
    intervention_rate: float
    utility: float
    delta_accuracy: float
    delta_accuracy_ci95: Interval
    delta_tokens_fraction: float
    delta_tokens_ci95: Interval
    delta_utility: float
    delta_utility_ci95: Interval
    mcnemar_p: float
    wins: int
    losses: int


@dataclass(frozen=True, config=STRICT)
class FedPrompts:
    """What completions were given, which methods that change the prompt change.

    Attributes:
        sha256: Hash of problems' ids and prompt tokens.
        tokens_mean: Prompt tokens of a problem; no figure of generated tokens has them.
    """

    sha256: str
    tokens_mean: float


@dataclass(frozen=True, config=STRICT)
class MethodRow:
    """A method's row of the held-out comparison.

    Attributes:
        metrics: Its figures.
        label: Its name and settings in short.
        chosen_on: Where its settings come from: a split, ``published defaults`` or ``nothing``.
        steering: The controller's settings; None for what no controller answers.
        setting: A baseline's point of its grid; None for every other method.
        prompts: What it was given; None in results that do not record it.
        reused_tokens_mean: Of an answer's tokens, those that this run did not decode but took over from greedy
            decoding's answer; every figure of tokens counts them all the same.
    """

    metrics: MethodMetrics
    label: str
    chosen_on: str
    steering: Steering | None = None
    setting: Setting | None = None
    prompts: FedPrompts | None = None
    reused_tokens_mean: float = 0.0

    @property
    def name(self) -> str:
        """The method's name, which finds its row (`Results.find`) and names its answers' directory."""
        return self.metrics.name

    @property
    def never_acts(self) -> bool:
        """Whether its controller is `none`: its answers are greedy decoding's, and recorded there."""
        return isinstance(self.steering, NoSteering)


@dataclass(frozen=True, config=STRICT)
class StudentComparison:
    """A student beside its teacher and beside another student, on the same problems.

    Attributes:
        name, other: The two students.
        retention_accuracy: ``(student - base) / (teacher - base)``; None where the teacher's gain is
            not clear of zero, and there is nothing to retain.
        retention_tokens: The same of the tokens saved.
        delta_accuracy: This student's accuracy less the other's.
        delta_tokens_fraction: Its mean tokens relative to the other's, less one.
    """

    name: str
    other: str
    retention_accuracy: float | None
    retention_tokens: float | None
    delta_accuracy: float
    delta_accuracy_ci95: Interval
    delta_tokens_fraction: float
    delta_tokens_ci95: Interval


@dataclass(frozen=True, config=STRICT)
class SampledMetrics:
    """A method's samples of the test problems, paired with those of greedy decoding's model.

    Attributes:
        name: The method.
        num_samples: ``n``, of every problem.
        average: avg@n, the mean accuracy over samples.
        pass_at: pass@k by ``k``: 1, 2, 4, ... up to n.
        majority: Share of problems whose most frequent answer is right, ties to the first.
        tokens_mean: Of one sample.
    """

    name: str
    num_samples: int
    average: float
    average_ci95: Interval
    delta_average: float
    delta_average_ci95: Interval
    pass_at: dict[int, float]
    majority: float
    majority_ci95: Interval
    tokens_mean: float


@dataclass(frozen=True, config=STRICT)
class OutOfDomainResults:
    """The deployable methods on a task that nothing of the run was made from.

    Attributes:
        task: Its name in the configuration.
        num_items: Problems answered.
        items_sha256: Hash of their ids.
        methods: A row per method, greedy decoding first.
    """

    task: str
    num_items: int
    items_sha256: str
    methods: tuple[MethodMetrics, ...]


@dataclass(frozen=True, config=STRICT)
class Results:
    """The held-out comparison of a run.

    Attributes:
        schema: Version of this record.
        model: Name or path of the base model.
        model_sha256: Fingerprint of its weights, tokenizer and width.
        task: Name of the task.
        split: The split that was answered.
        num_items: Problems in it.
        items_sha256: Hash of their ids.
        seeds: Of the run.
        test_openings: Choices that the test split was opened for so far, this one included; intervals
            are honest for the first alone.
        methods: In the order of the table, greedy decoding first.
        students: Empty if nothing was distilled.
        sampled: Empty if nothing was sampled.
        out_of_domain: Per task outside the harvest.
        chosen: Of an iterated run, the method that the tune split chose.
    """

    schema: int
    model: str
    model_sha256: str
    task: str
    split: str
    num_items: int
    items_sha256: str
    seeds: tuple[int, ...]
    test_openings: int
    methods: tuple[MethodRow, ...]
    students: tuple[StudentComparison, ...] = ()
    sampled: tuple[SampledMetrics, ...] = ()
    out_of_domain: tuple[OutOfDomainResults, ...] = ()
    chosen: str | None = None

    @property
    def share_reused(self) -> float:
        """Of the tokens of steered answers, those that were taken over from greedy ones; 0 if nothing steers."""
        steered = [row for row in self.methods if row.steering and not row.never_acts]
        tokens = sum(row.metrics.tokens_mean for row in steered)
        return sum(row.reused_tokens_mean for row in steered) / tokens if tokens else 0.0

    def find(self, name: str) -> MethodRow | None:
        """A method's row, or None."""
        return next((row for row in self.methods if row.name == name), None)


@dataclass(frozen=True, config=STRICT)
class SteeringTrial:
    """A controller's settings, tried on the first problems of the tune split or on all of them.

    Attributes:
        settings: What was tried.
        metrics: Its figures, paired with greedy decoding on the same problems.
        num_problems: How many these are; fewer than all for settings that were given up early.
        reused_tokens_mean: As in `MethodRow`.
    """

    settings: Steering
    metrics: MethodMetrics
    num_problems: int
    reused_tokens_mean: float = 0.0

    def is_gain(self, max_accuracy_loss: float) -> bool:
        """Whether its utility exceeds greedy's by the interval, and its accuracy may not be much lower."""
        return (
            self.metrics.delta_utility_ci95[0] > 0
            and self.metrics.delta_accuracy_ci95[0] >= -max_accuracy_loss
        )


@dataclass(frozen=True, config=STRICT)
class PassedOver:
    """A controller of more utility than the best fixed vector, but not by the interval of the difference.

    Attributes:
        settings: What was passed over.
        metrics: Its figures, paired with the fixed vector's on the same problems.
    """

    settings: Steering
    metrics: MethodMetrics


@dataclass(frozen=True, config=STRICT)
class TuneReport:
    """What tuning tried and chose.

    Attributes:
        chosen: The settings that are deployed; of mode ``none`` if nothing gained.
        num_problems: Problems of the tune split.
        trials: Everything that was tried, in the order in which it was given up, survivors last.
        passed_over: What a fixed vector was chosen instead of, since it is not clearly better.
        shortlist: What was left out untried; None where everything was tried.
    """

    chosen: Steering
    num_problems: int
    trials: tuple[SteeringTrial, ...]
    passed_over: PassedOver | None = None
    shortlist: Shortlist | None = None

    @property
    def share_reused(self) -> float:
        """Of the tokens of all trials, those that were taken over from greedy answers."""
        tokens = sum(trial.num_problems * trial.metrics.tokens_mean for trial in self.trials)
        reused = sum(trial.num_problems * trial.reused_tokens_mean for trial in self.trials)
        return reused / tokens if tokens else 0.0

    @property
    def abstains(self) -> bool:
        """Whether tuning chose mode `none`: the run decodes as without a controller."""
        return isinstance(self.chosen, NoSteering)

    @property
    def whole(self) -> tuple[SteeringTrial, ...]:
        """The trials that answered every problem."""
        return tuple(t for t in self.trials if t.num_problems == self.num_problems)

    def best_of_each_mode(self) -> list[SteeringConfig]:
        """The settings of most utility of every mode, in the modes' alphabetical order.

        Those that gained nothing are included; of equals the first, as in the choice.
        """
        best: dict[str, SteeringConfig] = {}
        for trial in sorted(self.whole, key=lambda t: -t.metrics.utility):
            best.setdefault(trial.settings.mode, trial.settings)
        return [best[mode] for mode in sorted(best)]


@dataclass(frozen=True, config=STRICT)
class BaselineTrial:
    """A baseline's setting on the first ``num_problems`` of the tune split, as ``prompts`` put them."""

    setting: Setting
    metrics: MethodMetrics
    num_problems: int
    prompts: FedPrompts


@dataclass(frozen=True, config=STRICT)
class TunedBaseline:
    """A baseline and the setting that was best on the tune split.

    Attributes:
        name: The method's own name.
        path: What the configuration names it by: a shipped name, or ``package.module:Name``.
        label: Its name and setting in short.
        chosen: The best of those that answered every problem.
        trials: Everything that was tried, the best first.
    """

    name: str
    path: str
    label: str
    chosen: Setting
    trials: tuple[BaselineTrial, ...]


@dataclass(frozen=True, config=STRICT)
class BaselinesReport:
    """The other methods, tuned.

    Attributes:
        methods: Those that apply.
        not_applicable: Why the others do not, by name.
    """

    methods: tuple[TunedBaseline, ...]
    not_applicable: dict[str, str]
