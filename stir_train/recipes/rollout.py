"""Sample, grade and capture rollouts of the harvest split."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.evals.lengths import measure_lengths
from stir_train.monitoring.console import caution
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.external import rollout_answerer
from stir_train.runtime.generation import GenerationJob, generate_jobs, sampling_params
from stir_train.stores.rollouts import RolloutStore


def run(context: RunContext, stage: StageDir) -> Finish:
    """Sample, grade and capture states at every harvested block."""
    job = GenerationJob(
        context.splits["harvest"],
        rollout_answerer(context),
        sampling_params(context, greedy=False),
        num_samples=context.config.rollout.num_samples,
    )
    total = len(job.prompts) * job.num_samples
    with context.progress("rollouts", total, "rollouts") as advance:
        generate_jobs(context, stage, [job], advance)
    return lambda: _finish(context, stage)


def _finish(context: RunContext, stage: StageDir) -> Outcome:
    outcomes = RolloutStore(stage).outcomes()
    by_prompt: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_prompt.setdefault(outcome.prompt_id, []).append(outcome.correct)
    count, num_samples = len(outcomes), max(map(len, by_prompt.values()))
    lengths = measure_lengths(
        [outcome.num_tokens for outcome in outcomes],
        [outcome.truncated for outcome in outcomes],
        budget=context.config.generation.max_new_tokens,
    )
    summary: dict[str, float | None] = {
        "num_rollouts": count,
        "correct_rate": sum(outcome.correct for outcome in outcomes) / count,
        "pass_at_n": sum(map(any, by_prompt.values())) / len(by_prompt),
        "tokens_mean": sum(outcome.num_tokens for outcome in outcomes) / count,
        "truncated_rate": lengths.truncated_rate,
        "tokens_median": lengths.median,
    }
    if lengths.advice is not None:
        summary["proposed_budget"] = lengths.proposed_budget
        context.console.print(caution(f"rollout: {lengths.advice}"), soft_wrap=True)
    return Outcome(
        summary,
        f"{count} rollouts, {summary['correct_rate']:.1%} correct, "
        f"pass@{num_samples} {summary['pass_at_n']:.1%}, {lengths}",
    )
