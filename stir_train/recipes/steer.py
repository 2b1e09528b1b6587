"""Sample completions of harvest problems under the chosen controller."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.monitoring.console import progress
from stir_train.recipes.student_plan import load_steered, steered_job
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import generate_jobs


def run(context: RunContext, stage: StageDir) -> Finish:
    """Sample completions of harvest problems under the chosen controller."""
    job = steered_job(context)
    total = len(job.prompts) * job.num_samples
    with progress(context.console, "steered rollouts", total, "rollouts") as advance:
        generate_jobs(context, stage, [job], advance)
    return lambda: _finish(context)


def _finish(context: RunContext) -> Outcome:
    graded = load_steered(context)
    correct = sum(g.grade.correct for g in graded) / len(graded)
    return Outcome(
        {"num_rollouts": len(graded), "correct_rate": correct},
        f"{len(graded)} rollouts under {context.steering.choice().mode}, {correct:.1%} correct",
    )
