"""Tasks outside the harvest: does the model still do there what it did before?"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.run import RunConfig
from stir_train.data.prompts import first_problems, render_prompts, require_unseen, split_sha256
from stir_train.evals.metrics import compare_to_baseline
from stir_train.recipes.methods import GREEDY, STEERED_METHOD, Method
from stir_train.recipes.tune import price_per_token
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import GenerationJob, load_answers, sampling_params
from stir_train.runtime.problems import read_problems
from stir_train.types.rollout import Prompt


def is_deployable(method: Method) -> bool:
    """Whether a method is one that a user would deploy, or what it is compared with."""
    return method.name in (GREEDY, STEERED_METHOD) or method.engine is not None


def out_of_domain_prompts(context: RunContext) -> dict[str, list[Prompt]]:
    """The problems of every task outside the harvest.

    Raises:
        DataError: If there are too few, or some went into the run.
    """
    found = {}
    for name, outside in context.config.evaluate.out_of_domain.items():
        config: RunConfig = context.config.model_copy(update={"task": outside.task})
        problems = first_problems(
            read_problems(config), outside.num_problems, seed=config.splits.seed
        )
        found[name] = render_prompts(problems, outside.task, context.resources.described.tokenizer)
        used = {
            split: {p.prompt_id for p in context.splits[split]} for split in ("harvest", "tune")
        }
        require_unseen(
            found[name], {f"the run's {split} split": ids for split, ids in used.items()}
        )
    return found


def out_of_domain_job(
    context: RunContext, name: str, prompts: Sequence[Prompt], method: Method
) -> GenerationJob:
    """A method's answers to a task outside the harvest."""
    return GenerationJob(
        prompts=prompts,
        num_samples=1,
        sampling=sampling_params(context, greedy=True),
        make_controller=method.make_controller,
        prefix=f"out-of-domain/{name}/{method.name}/",
        engine=method.engine,
        task=context.config.evaluate.out_of_domain[name].task,
    )


def out_of_domain_results(
    context: RunContext, stage: StageDir, jobs: Mapping[tuple[str, str], GenerationJob]
) -> list[dict[str, object]]:
    """Per task, every method's row beside greedy decoding's.

    Args:
        context: The run.
        stage: Holds the answers.
        jobs: By task and method.
    """
    results = []
    for name in dict.fromkeys(task for task, _ in jobs):
        asked = {method: job for (task, method), job in jobs.items() if task == name}
        answers = {method: load_answers(context, stage, job) for method, job in asked.items()}
        prompts = asked[GREEDY].prompts
        rows = [
            compare_to_baseline(
                method,
                given,
                answers[GREEDY],
                num_resamples=context.config.evaluate.num_bootstrap,
                price_per_token=price_per_token(context),
            )
            for method, given in answers.items()
        ]
        results.append(
            {
                "task": name,
                "num_items": len(prompts),
                "items_sha256": split_sha256(prompts),
                "methods": [dataclasses.asdict(row) for row in rows],
            }
        )
    return results
