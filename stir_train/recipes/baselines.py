"""Other methods: they learn from the harvest split, are tuned on the tune split, and join the test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from stir_train.answering.methods import GREEDY
from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tensors import save_tensors
from stir_train.baselines.interface import (
    Baseline,
    HarvestData,
    NotApplicable,
    Setting,
    label_of,
)
from stir_train.baselines.registry import load_baselines
from stir_train.evals.halving import Candidate, split_by_halving
from stir_train.evals.metrics import fed_prompts
from stir_train.runtime.answerers import baseline_answerer, parameters_file
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.search import answers_of, compare_in_run, search_by_halving
from stir_train.stores.reports import save_report
from stir_train.stores.rollouts import RolloutStore
from stir_train.stores.states import StateStore
from stir_train.stores.steering import model_metadata
from stir_train.types.results import BaselinesReport, BaselineTrial, TunedBaseline
from stir_train.types.trajectory import CapturedStates


@dataclass(frozen=True)
class Tried:
    """A method, what the configuration names it by, and a setting of its grid."""

    method: Baseline
    path: str
    setting: Setting

    @property
    def label(self) -> str:
        """The method's name and the setting in short."""
        return f"{self.method.name}-{label_of(self.setting)}"


def run(context: RunContext, stage: StageDir) -> Finish:
    """Let every method learn, try its grid on the tune split, freeze its best setting."""
    methods = load_baselines(context.config.baselines.names)
    reasons: dict[str, str] = context.world.on_main(
        "methods have learned", lambda: _learn(context, stage, list(methods.values()))
    )
    grid = {
        Candidate(f"{method.name}/{label_of(setting)}", method.name): Tried(method, path, setting)
        for path, method in methods.items()
        if method.name not in reasons
        for setting in method.settings(context.resources.captured_blocks)
    }
    answerers = {c: baseline_answerer(context, t.method, t.setting) for c, t in grid.items()}
    parts = split_by_halving(context.splits["tune"], context.config.baselines.num_halvings)
    found = search_by_halving(context, stage, answerers, parts, within_groups=True)

    def trials() -> dict[Candidate, BaselineTrial]:
        greedy = RolloutStore(context.stage("tune")).read(GREEDY)
        made = {}
        for outcome in found:
            candidate, seen = outcome.candidate, parts[: outcome.num_parts]
            answers = answers_of(context, stage, candidate, answerers[candidate], seen)
            metrics = compare_in_run(
                context, grid[candidate].label, answers, greedy[: len(answers)]
            )
            made[candidate] = BaselineTrial(
                dict(grid[candidate].setting), metrics, len(answers), fed_prompts(answers)
            )
        return made

    return lambda: _finish(context, stage, grid, trials(), reasons)


def _learn(context: RunContext, stage: StageDir, methods: Sequence[Baseline]) -> dict[str, str]:
    """Save what each method learns, unless it is there; why some cannot be applied."""
    chunks = list(StateStore(context.stage("rollout")).chunks())
    harvest = HarvestData(
        loaded=context.resources.loaded,
        prompts=context.splits["harvest"],
        graded=[item for part, _ in chunks for item in part],
        captured=CapturedStates.concatenate([states for _, states in chunks]),
        basis=context.steering.basis() if context.config.needs_basis else None,
        blocks=context.resources.captured_blocks,
    )
    reasons: dict[str, str] = {}
    for method in methods:
        why = f"{method.name}/not_applicable.txt"
        if stage.has(why):
            reasons[method.name] = (stage.path / why).read_text(encoding="utf-8").strip()
            continue
        if stage.has(parameters_file(method.name)):
            continue
        try:
            parameters = method.prepare(harvest)
        except NotApplicable as finding:
            reasons[method.name] = str(finding)
            with stage.writing(why) as path:
                path.write_text(f"{finding}\n", encoding="utf-8")
            continue
        identity = context.resources.described.identity
        save_tensors(stage, parameters_file(method.name), parameters, model_metadata(identity))
    return reasons


def _finish(
    context: RunContext,
    stage: StageDir,
    grid: Mapping[Candidate, Tried],
    trials: Mapping[Candidate, BaselineTrial],
    reasons: dict[str, str],
) -> Outcome:
    """Freeze the best setting of every method, of those that answered everything."""
    by_method: dict[str, list[Candidate]] = {}
    for candidate in grid:
        by_method.setdefault(candidate.group, []).append(candidate)
    methods = []
    for name, candidates in by_method.items():
        ranked = sorted(
            candidates, key=lambda c: (-trials[c].num_problems, -trials[c].metrics.utility)
        )
        best = ranked[0]
        context.metrics.summary("baselines", {f"{name}/utility": trials[best].metrics.utility})
        tried = tuple(trials[c] for c in ranked)
        methods.append(
            TunedBaseline(name, grid[best].path, grid[best].label, dict(grid[best].setting), tried)
        )
    save_report(stage, BaselinesReport(tuple(methods), reasons))
    left_out = "".join(f"; {name} does not apply: {why}" for name, why in reasons.items())
    return Outcome(
        {"num_methods": len(methods), "num_trials": len(grid)},
        f"{len(methods)} other methods tuned over {len(grid)} settings{left_out}",
    )
