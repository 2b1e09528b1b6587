"""Sample completions of harvest problems under the chosen controller."""

from __future__ import annotations

from stir_train.artifacts.run_dir import StageDir
from stir_train.runtime.answerers import steered_answerer
from stir_train.runtime.context import Finish, Outcome, RunContext
from stir_train.runtime.generation import (
    GenerationJob,
    generate_jobs,
    load_answers,
    sampling_params,
)


def run(context: RunContext, stage: StageDir) -> Finish:
    """Sample completions of harvest problems under the chosen controller."""
    choice = context.steering.choice()
    job = GenerationJob(
        context.splits["harvest"],
        steered_answerer(context, choice),
        sampling_params(context, greedy=False),
        num_samples=context.config.distill.num_samples,
    )
    total = len(job.prompts) * job.num_samples
    with context.progress("steered rollouts", total, "rollouts") as advance:
        generate_jobs(context, stage, [job], advance)

    def finish() -> Outcome:
        graded = load_answers(context, stage, job)
        correct = sum(g.grade.correct for g in graded) / len(graded)
        return Outcome(
            {"num_rollouts": len(graded), "correct_rate": correct},
            f"{len(graded)} rollouts under {choice.mode}, {correct:.1%} correct",
        )

    return finish
