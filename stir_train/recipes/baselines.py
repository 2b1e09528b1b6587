"""Other methods: they learn from the harvest split, are tuned on the tune split, and join the test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import load_tensors, save_tensors
from stir_train.baselines.interface import (
    Bench,
    Evidence,
    NotApplicable,
    Setting,
    label_of,
)
from stir_train.baselines.registry import BASELINES
from stir_train.config.pipeline import STAGE_DIRECTORIES
from stir_train.evals.metrics import MethodMetrics, compare_to_baseline
from stir_train.generation.backend import ControlSpec
from stir_train.monitoring.console import progress
from stir_train.recipes.context import RunContext
from stir_train.recipes.harvest import (
    ROLLOUTS,
    load_report,
    model_metadata,
    rollout_chunks,
    save_report,
)
from stir_train.recipes.rollouts import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)
from stir_train.recipes.tune import TUNE, price_per_token, tune_job
from stir_train.recipes.validate import VALIDATE
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

BASELINES_STAGE = STAGE_DIRECTORIES["baselines"]
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


def run_baselines(context: RunContext) -> None:
    """Let every method learn, try its grid on the tune split, freeze its best setting."""
    config = context.config
    if not config.baselines.names:
        context.console.print("  baselines: none asked for")
        return
    settings = {
        "baselines": config.baselines,
        "rollout": config.rollout,
        "generation": config.generation,
        "token_price": config.steering.token_price,
        "num_bootstrap": config.evaluate.num_bootstrap,
        "seed": config.seed,
        "num_threads": config.num_threads,
    }
    stage = context.begin(
        BASELINES_STAGE, settings, upstream=(ROLLOUTS, VALIDATE, TUNE), splits=("tune",)
    )
    if stage is None:
        return
    reasons = context.world.on_main("methods have learnt", lambda: _learn(context, stage))
    able: list[str] = [name for name in config.baselines.names if name not in reasons]
    grid = {name: BASELINES[name].settings(context.captured_blocks) for name in able}
    jobs = {
        (name, label_of(setting)): baseline_job(context, name, setting, context.splits["tune"])
        for name, trials in grid.items()
        for setting in trials
    }
    total = len(context.splits["tune"]) * len(jobs)
    with progress(context.console, "baselines", total, "problems") as advance:
        generate_jobs(context, stage, list(jobs.values()), advance)
    context.world.on_main("baselines tuned", lambda: _finish(context, stage, grid, jobs, reasons))


def tuned_baselines(context: RunContext) -> list[TunedBaseline]:
    """The methods that could be applied, with their settings."""
    if not context.config.baselines.names:
        return []
    methods = load_report(context.stage(BASELINES_STAGE))["methods"]
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


def answering(
    context: RunContext, name: str, setting: Setting
) -> Callable[[Sequence[Prompt]], list[Rollout]]:
    """What answers prompts by a method; what it has learnt is read when it is first asked."""

    def answer(prompts: Sequence[Prompt]) -> list[Rollout]:
        path = context.stage(BASELINES_STAGE).path / learnt_file(name)
        learnt, _ = load_tensors(path)
        return BASELINES[name].answer(_bench(context), learnt, setting, prompts)

    return answer


def learnt_file(name: str) -> str:
    """What a method took from the harvest split."""
    return f"{name}/learnt.safetensors"


def _learn(context: RunContext, stage: StageDir) -> dict[str, str]:
    """Save what each method learns, unless it is there; why some cannot be applied."""
    chunks = rollout_chunks(context)
    evidence = Evidence(
        loaded=context.loaded,
        graded=[item for part, _ in chunks for item in part],
        captured=CapturedStates.concatenate([states for _, states in chunks]),
        basis=context.steering.basis(),
        blocks=context.captured_blocks,
    )
    reasons: dict[str, str] = {}
    for name in context.config.baselines.names:
        why = f"{name}/not_applicable.txt"
        if stage.has(why):
            reasons[name] = (stage.path / why).read_text(encoding="utf-8").strip()
            continue
        if stage.has(learnt_file(name)):
            continue
        try:
            learnt = BASELINES[name].prepare(evidence)
        except NotApplicable as finding:
            reasons[name] = str(finding)
            with stage.writing(why) as path:
                path.write_text(f"{finding}\n", encoding="utf-8")
            continue
        save_tensors(stage, learnt_file(name), learnt, model_metadata(context))
    return reasons


def _finish(
    context: RunContext,
    stage: StageDir,
    grid: dict[str, list[Setting]],
    jobs: dict[tuple[str, str], GenerationJob],
    reasons: dict[str, str],
) -> None:
    greedy = load_answers(
        context, context.stage(TUNE), tune_job(context, None, context.steering.basis())
    )

    def measure(name: str, setting: Setting) -> MethodMetrics:
        return compare_to_baseline(
            f"{name}-{label_of(setting)}",
            load_answers(context, stage, jobs[name, label_of(setting)]),
            greedy,
            num_resamples=context.config.evaluate.num_bootstrap,
            price_per_token=price_per_token(context),
        )

    methods = []
    for name, settings in grid.items():
        trials = [(setting, measure(name, setting)) for setting in settings]
        chosen, best = max(trials, key=lambda trial: trial[1].utility)
        context.metrics.log(BASELINES_STAGE, {f"{name}/utility": best.utility})
        methods.append(
            {
                "name": name,
                "chosen": dict(chosen),
                "trials": [
                    {"setting": dict(setting), "metrics": dataclasses.asdict(metrics)}
                    for setting, metrics in trials
                ],
            }
        )
    report: dict[str, Any] = {"methods": methods, "not_applicable": reasons}
    save_report(stage, json.loads(json.dumps(report)))
    left_out = "".join(f"; {name} does not apply: {why}" for name, why in reasons.items())
    context.report_done(
        stage,
        {"num_methods": len(methods), "num_trials": len(jobs)},
        f"{len(methods)} other methods tuned over {len(jobs)} settings{left_out}",
    )


def _bench(context: RunContext) -> Bench:
    tokenizer = context.described.tokenizer
    marker = context.config.task.answer_marker or ANSWER_PROMPT
    delimiters = context.config.control_points.delimiters

    def answers_of(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[str]:
        grades = context.grader.grade(texts, [p.gold for p in prompts], [False] * len(texts))
        return [grade.extracted for grade in grades]

    return Bench(
        loaded=context.loaded,
        engine=context.engine,
        greedy=sampling_params(context, greedy=True),
        sampled=sampling_params(context, greedy=False),
        control=ControlSpec(context.automaton, context.config.control_points.max_points),
        seed=context.config.seed,
        answers_of=answers_of,
        answer_prompt=tuple(tokenizer(marker, add_special_tokens=False)["input_ids"]),
        delimiter_ids=tuple(
            token_id
            for token, token_id in tokenizer.get_vocab().items()
            if any(d in tokenizer.convert_tokens_to_string([token]) for d in delimiters)
        ),
    )
