"""What the methods of the held-out comparison are asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from stir_train.answering.interface import Answerer
from stir_train.answering.methods import GREEDY, NULL_CONTROL, Method
from stir_train.artifacts.run_dir import StageDir
from stir_train.baselines.registry import load_baseline
from stir_train.config.inputs import TaskConfig
from stir_train.runtime.answerers import baseline_answerer
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import GenerationJob, sampling_params
from stir_train.runtime.reuse import continued, greedy_answerer
from stir_train.types.rollout import Prompt


@dataclass(frozen=True)
class Jobs:
    """What one method is asked.

    Attributes:
        test: The test split.
        out_of_domain: Other tasks, by name; empty for ablations.
        sampled: Samples of the test split, or None.
    """

    test: GenerationJob
    out_of_domain: Mapping[str, GenerationJob]
    sampled: GenerationJob | None

    @property
    def all(self) -> list[GenerationJob]:
        """The test split first, then other tasks, then samples: a student is loaded once for all."""
        return [
            self.test,
            *self.out_of_domain.values(),
            *([] if self.sampled is None else [self.sampled]),
        ]


def jobs_of(context: RunContext, method: Method, others: Mapping[str, list[Prompt]]) -> Jobs:
    """What a method answers.

    Args:
        context: The run.
        method: The method.
        others: Problems of other tasks, by their names.
    """
    evaluate = context.config.evaluate
    test = GenerationJob(
        context.splits["test"],
        method.answerer,
        sampling_params(context, greedy=True),
        prefix=f"{method.answered_as}/",
    )
    out_of_domain = {
        name: dataclasses.replace(
            test,
            prompts=prompts,
            answerer=_elsewhere(context, method, evaluate.out_of_domain[name].task),
            prefix=f"out-of-domain/{name}/{method.answered_as}/",
            task=evaluate.out_of_domain[name].task,
        )
        for name, prompts in others.items()
    }
    if not method.is_deployable and not method.is_yardstick:
        return Jobs(test, {}, None)
    if evaluate.num_samples is None or not method.is_deployable:
        return Jobs(test, out_of_domain, None)
    sampled = dataclasses.replace(
        test,
        sampling=sampling_params(context, greedy=False),
        num_samples=evaluate.num_samples,
        prefix=f"sampled/{method.answered_as}/",
    )
    return Jobs(test, out_of_domain, sampled)


def _elsewhere(context: RunContext, method: Method, task: TaskConfig) -> Answerer:
    """What answers another task for a method: a baseline reads that task's answers."""
    if method.baseline is None:
        return method.answerer
    tuned = method.baseline
    return baseline_answerer(context, load_baseline(tuned.path), tuned.chosen, task=task)


def going_on_from_greedy(
    context: RunContext, stage: StageDir, asked: Mapping[str, Jobs]
) -> dict[str, Jobs]:
    """The same, with controllers' greedy answers decoded from where they first act.

    The control without entries is decoded whole: it shows that nothing but impulses changes an answer.

    Args:
        context: The run.
        stage: Takes the answers, greedy decoding's first.
        asked: What each method is asked, by its name.
    """
    greedy = asked[GREEDY]

    def changed(name: str, job: GenerationJob, source: GenerationJob) -> GenerationJob:
        if name == NULL_CONTROL:
            return job
        if name == GREEDY:
            return dataclasses.replace(job, answerer=greedy_answerer(context))
        answerer = continued(context, stage, job.answerer, source)
        return dataclasses.replace(job, answerer=answerer)

    return {
        name: Jobs(
            changed(name, jobs.test, greedy.test),
            {
                task: changed(name, job, greedy.out_of_domain[task])
                for task, job in jobs.out_of_domain.items()
            },
            jobs.sampled,
        )
        for name, jobs in asked.items()
    }
