"""Sample, grade and capture rollouts of the harvest split."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.monitoring.console import progress
from stir_train.runtime.answerers import plain_answerer
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import GenerationJob, generate_jobs, sampling_params
from stir_train.stores.rollouts import RolloutStore


def run(context: RunContext, stage: StageDir) -> Finish:
    """Sample, grade and capture states at every harvested block."""
    job = GenerationJob(
        context.splits["harvest"],
        plain_answerer(context, capture_blocks=context.resources.captured_blocks),
        sampling_params(context, greedy=False),
        num_samples=context.config.rollout.num_samples,
    )
    total = len(job.prompts) * job.num_samples
    with progress(context.console, "rollouts", total, "rollouts") as advance:
        generate_jobs(context, stage, [job], advance)
    return lambda: _finish(stage)


def _finish(stage: StageDir) -> Outcome:
    outcomes = RolloutStore(stage).outcomes()
    by_prompt: dict[str, list[bool]] = {}
    for outcome in outcomes:
        by_prompt.setdefault(outcome.prompt_id, []).append(outcome.correct)
    count, num_samples = len(outcomes), max(map(len, by_prompt.values()))
    summary = {
        "num_rollouts": count,
        "correct_rate": sum(outcome.correct for outcome in outcomes) / count,
        "pass_at_n": sum(map(any, by_prompt.values())) / len(by_prompt),
        "tokens_mean": sum(outcome.num_tokens for outcome in outcomes) / count,
        "truncated_rate": sum(outcome.truncated for outcome in outcomes) / count,
    }
    num_truncated = sum(outcome.truncated for outcome in outcomes)
    cut_off = f"{num_truncated} of {count} cut off at the budget; " if num_truncated else ""
    return Outcome(
        summary,
        f"{cut_off}{count} rollouts, {summary['correct_rate']:.1%} correct, "
        f"pass@{num_samples} {summary['pass_at_n']:.1%}, {summary['tokens_mean']:.1f} tokens",
    )
