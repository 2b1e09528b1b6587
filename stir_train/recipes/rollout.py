"""Sample, grade and capture rollouts of the harvest split."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.monitoring.console import progress
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_rollouts,
    num_chunks,
    sampling_params,
)


def rollout_job(context: RunContext) -> GenerationJob:
    """Sampled rollouts of the harvest split, states captured at every harvested block."""
    return GenerationJob(
        prompts=context.splits["harvest"],
        num_samples=context.config.rollout.num_samples,
        sampling=sampling_params(context, greedy=False),
        capture_blocks=context.resources.captured_blocks,
    )


def run(context: RunContext, stage: StageDir) -> Finish:
    """Sample, grade and capture."""
    job = rollout_job(context)
    total = len(job.prompts) * job.num_samples
    with progress(context.console, "rollouts", total, "rollouts") as advance:
        generate_jobs(context, stage, [job], advance)
    return lambda: _finish(context, stage, job)


def _finish(context: RunContext, stage: StageDir, job: GenerationJob) -> Outcome:
    graded = [
        g for chunk in range(num_chunks(context, job)) for g in load_rollouts(stage, "", chunk)
    ]
    by_prompt: dict[str, list[bool]] = {}
    for item in graded:
        by_prompt.setdefault(item.rollout.prompt_id, []).append(item.grade.correct)
    summary = {
        "num_rollouts": len(graded),
        "correct_rate": sum(g.grade.correct for g in graded) / len(graded),
        "pass_at_n": sum(map(any, by_prompt.values())) / len(by_prompt),
        "tokens_mean": sum(len(g.rollout.token_ids) for g in graded) / len(graded),
        "truncated_rate": sum(g.rollout.truncated for g in graded) / len(graded),
    }
    return Outcome(
        summary,
        f"{len(graded)} rollouts, {summary['correct_rate']:.1%} correct, "
        f"pass@{job.num_samples} {summary['pass_at_n']:.1%}, {summary['tokens_mean']:.1f} tokens",
    )
