"""Other methods: they learn from the harvest split, are tuned on the tune split, and join the test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.baselines.interface import (
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Setting,
    label_of,
)
from stir_train.baselines.registry import BASELINES
from stir_train.evals.metrics import MethodMetrics, compare_to_baseline
from stir_train.generation.backend import ControlSpec
from stir_train.monitoring.console import progress
from stir_train.recipes.tune import price_per_token, split_by_halving, tune_job
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.stores.report_file import load_report, save_report
from stir_train.stores.states import StateStore
from stir_train.stores.steering import model_metadata
from stir_train.types.rollout import GradedRollout, Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

ANSWER_PROMPT = "**Final Answer**\n\n\\boxed"
"""Asks for an answer at once where the task has no marker of its own."""


@dataclasses.dataclass(frozen=True)
class TunedBaseline:
    """A method and the setting that was best on the tune split."""

    name: str
    setting: Setting

    @property
    def label(self) -> str:
        """Both."""
        return f"{self.name}-{label_of(self.setting)}"


@dataclasses.dataclass(frozen=True)
class BaselineTrial:
    """A method's setting on the first ``num_problems`` of the tune split."""

    setting: Setting
    metrics: MethodMetrics
    num_problems: int


Grid = Mapping[str, Sequence[Setting]]
"""Settings to try, by method."""


def run(context: RunContext, stage: StageDir) -> Finish:
    """Let every method learn, try its grid on the tune split, freeze its best setting."""
    config = context.config
    reasons = context.world.on_main("methods have learnt", lambda: _learn(context, stage))
    grid: Grid = {
        name: BASELINES[name].settings(context.resources.captured_blocks)
        for name in config.baselines.names
        if name not in reasons
    }
    parts = split_by_halving(context.splits["tune"], config.baselines.num_halvings)
    left = grid
    for number, part in enumerate(parts):
        jobs = [
            _part_job(context, name, setting, part, number)
            for name, settings in left.items()
            for setting in settings
        ]
        title = f"baselines {number + 1}/{len(parts)}"
        with progress(context.console, title, len(part) * len(jobs), "problems") as advance:
            generate_jobs(context, stage, jobs, advance)
        if number + 1 < len(parts):
            left = _survivors(context, stage, left, parts[: number + 1])
    return lambda: _finish(context, stage, grid, parts, reasons)


def tuned_baselines(context: RunContext) -> list[TunedBaseline]:
    """The methods that could be applied, with their settings."""
    if not context.config.baselines.names:
        return []
    methods = load_report(context.stage("baselines"))["methods"]
    return [TunedBaseline(method["name"], method["chosen"]) for method in methods]


def baseline_job(
    context: RunContext, name: str, setting: Setting, prompts: Sequence[Prompt], prefix: str = ""
) -> GenerationJob:
    """A method's answers under one setting."""
    return GenerationJob(
        prompts=prompts,
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        prefix=prefix or f"{name}/{label_of(setting)}/",
        answer=answering(context, name, setting),
    )


def _part_job(
    context: RunContext, name: str, setting: Setting, part: Sequence[Prompt], number: int
) -> GenerationJob:
    return baseline_job(context, name, setting, part, f"{name}/{label_of(setting)}/part-{number}/")


def answering(
    context: RunContext, name: str, setting: Setting
) -> Callable[[Sequence[Prompt]], list[Rollout]]:
    """What answers prompts by a method; what it has learnt is read when it is first asked."""

    def answer(prompts: Sequence[Prompt]) -> list[Rollout]:
        path = context.stage("baselines").path / parameters_file(name)
        parameters, _ = load_tensors(path)
        return BASELINES[name].answer(_bench(context), parameters, setting, prompts)

    return answer


def parameters_file(name: str) -> str:
    """What a method took from the harvest split."""
    return f"{name}/parameters.safetensors"


def _learn(context: RunContext, stage: StageDir) -> dict[str, str]:
    """Save what each method learns, unless it is there; why some cannot be applied."""
    chunks = list(StateStore(context.stage("rollout")).chunks())
    harvest = HarvestData(
        loaded=context.resources.loaded,
        graded=[item for part, _ in chunks for item in part],
        captured=CapturedStates.concatenate([states for _, states in chunks]),
        basis=context.steering.basis(),
        blocks=context.resources.captured_blocks,
    )
    reasons: dict[str, str] = {}
    for name in context.config.baselines.names:
        why = f"{name}/not_applicable.txt"
        if stage.has(why):
            reasons[name] = (stage.path / why).read_text(encoding="utf-8").strip()
            continue
        if stage.has(parameters_file(name)):
            continue
        try:
            parameters = BASELINES[name].prepare(harvest)
        except NotApplicable as finding:
            reasons[name] = str(finding)
            with stage.writing(why) as path:
                path.write_text(f"{finding}\n", encoding="utf-8")
            continue
        identity = context.resources.described.identity
        save_tensors(stage, parameters_file(name), parameters, model_metadata(identity))
    return reasons


def _trials(
    context: RunContext,
    stage: StageDir,
    grid: Grid,
    seen: Sequence[Sequence[Prompt]],
) -> dict[str, list[BaselineTrial]]:
    """Figures of every method's settings on the parts they have all seen, the best first."""
    greedy = load_answers(
        context, context.stage("tune"), tune_job(context, None, context.steering.basis())
    )

    def measure(name: str, setting: Setting) -> BaselineTrial:
        answers: list[GradedRollout] = []
        for number, part in enumerate(seen):
            answers += load_answers(context, stage, _part_job(context, name, setting, part, number))
        metrics = compare_to_baseline(
            f"{name}-{label_of(setting)}",
            answers,
            greedy[: len(answers)],
            num_resamples=context.config.evaluate.num_bootstrap,
            price_per_token=price_per_token(context),
        )
        return BaselineTrial(setting, metrics, len(answers))

    return {
        name: sorted(
            (measure(name, setting) for setting in settings), key=lambda t: -t.metrics.utility
        )
        for name, settings in grid.items()
    }


def _survivors(
    context: RunContext, stage: StageDir, grid: Grid, seen: Sequence[Sequence[Prompt]]
) -> Grid:
    """The better half of every method's settings, the same on every rank."""

    def better_halves() -> dict[str, list[str]]:
        trials = _trials(context, stage, grid, seen)
        return {
            name: [label_of(t.setting) for t in ranked[: (len(ranked) + 1) // 2]]
            for name, ranked in trials.items()
        }

    kept = context.world.on_main(f"baselines half {len(seen)}", better_halves)
    return {
        name: [setting for setting in settings if label_of(setting) in kept[name]]
        for name, settings in grid.items()
    }


def _finish(
    context: RunContext,
    stage: StageDir,
    grid: Grid,
    parts: Sequence[Sequence[Prompt]],
    reasons: dict[str, str],
) -> Outcome:
    """Retrace which settings were given up when, and freeze the best of those that saw everything."""
    left = grid
    found: dict[str, list[BaselineTrial]] = {name: [] for name in grid}
    for number in range(1, len(parts) + 1):
        trials = _trials(context, stage, left, parts[:number])
        for name, ranked in trials.items():
            num_kept = (len(ranked) + 1) // 2 if number < len(parts) else 0
            found[name] = [*ranked[num_kept:], *found[name]]
            trials[name] = ranked[:num_kept]
        left = {name: [trial.setting for trial in kept] for name, kept in trials.items()}
    methods = []
    for name, ranked in found.items():
        best = ranked[0]
        context.metrics.log("baselines", {f"{name}/utility": best.metrics.utility})
        methods.append(
            {
                "name": name,
                "chosen": dict(best.setting),
                "trials": [
                    {
                        "setting": dict(trial.setting),
                        "num_problems": trial.num_problems,
                        "metrics": dataclasses.asdict(trial.metrics),
                    }
                    for trial in ranked
                ],
            }
        )
    num_trials = sum(len(settings) for settings in grid.values())
    report: dict[str, Any] = {"methods": methods, "not_applicable": reasons}
    save_report(stage, json.loads(json.dumps(report)))
    left_out = "".join(f"; {name} does not apply: {why}" for name, why in reasons.items())
    return Outcome(
        {"num_methods": len(methods), "num_trials": num_trials},
        f"{len(methods)} other methods tuned over {num_trials} settings{left_out}",
    )


def _bench(context: RunContext) -> AnsweringContext:
    tokenizer = context.resources.described.tokenizer
    marker = context.config.task.answer_marker or ANSWER_PROMPT
    delimiters = context.config.control_points.delimiters

    def answers_of(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[str]:
        grades = context.resources.grader.grade(
            texts, [p.gold for p in prompts], [False] * len(texts)
        )
        return [grade.extracted for grade in grades]

    return AnsweringContext(
        loaded=context.resources.loaded,
        engine=context.resources.engine,
        greedy=sampling_params(context, greedy=True),
        sampled=sampling_params(context, greedy=False),
        control=ControlSpec(context.resources.automaton, context.config.control_points.max_points),
        seed=context.config.seed,
        answers_of=answers_of,
        answer_prompt=tuple(tokenizer(marker, add_special_tokens=False)["input_ids"]),
        delimiter_ids=tuple(
            token_id
            for token, token_id in tokenizer.get_vocab().items()
            if any(d in tokenizer.convert_tokens_to_string([token]) for d in delimiters)
        ),
    )
