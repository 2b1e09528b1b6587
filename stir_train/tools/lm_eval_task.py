"""A run's test split as a task of lm-evaluation-harness, graded by the run's own grader. Needs no lm-eval."""

from __future__ import annotations

import atexit
import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from stir_train.artifacts.atomic import write_text
from stir_train.config.inputs import TaskConfig
from stir_train.config.load import dump_yaml
from stir_train.data.grading import Grader
from stir_train.data.prompts import encode_rendered
from stir_train.errors import DataError
from stir_train.runtime.context import RunContext
from stir_train.types.rollout import Gold

ITEMS_FILE = "items.jsonl"
METRIC = "acc"


def write_lm_eval_task(context: RunContext, target: Path) -> str:
    """Write the test split's prompts and gold answers, and the YAML that makes them a task; its name.

    Args:
        context: An evaluated run, whose settings are frozen: the split is not opened once more.
        target: An empty directory, for ``--include_path``.

    Raises:
        ArtifactError: If the run is not evaluated.
        DataError: If lm-eval would hand over a prompt as other tokens than the run asks.
    """
    context.stage("evaluate").require_complete()
    tokenizer = context.resources.described.tokenizer
    task = context.config.task.model_dump_json()
    lines = []
    for prompt in context.splits["test"]:
        if encode_rendered(prompt.text, tokenizer) != prompt.token_ids:
            raise DataError(
                f"{prompt.question!r}: as text, its prompt would be other tokens than the run's; this chat "
                "template and its tokenizer disagree about special tokens"
            )
        # Gold answers as JSON: a loader of JSON lines takes some texts for dates.
        gold = json.dumps(dataclasses.asdict(prompt.gold))
        item = {"prompt_id": prompt.prompt_id, "prompt": prompt.text, "gold": gold, "task": task}
        lines.append(json.dumps(item) + "\n")
    target.mkdir(parents=True, exist_ok=True)
    write_text(target / ITEMS_FILE, "".join(lines))
    name = f"stir-{context.config.name}"
    values = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str((target / ITEMS_FILE).resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "generation_kwargs": {
            "until": [],
            "max_gen_toks": context.config.generation.max_new_tokens,
            "do_sample": False,
        },
        "metric_list": [{"metric": METRIC, "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }
    grading = f"process_results: !function {process_results.__module__}.process_results\n"
    write_text(target / f"{name}.yaml", dump_yaml(values) + grading)
    return name


def process_results(item: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Grade an item's response; lm-eval calls it, by its name in the task's YAML."""
    gold = json.loads(item["gold"])
    wanted = Gold(gold["answer"], tuple(gold["choices"]), gold["question"])
    (grade,) = _grader_of(item["task"]).grade(list(results), [wanted], [False])
    return {METRIC: float(grade.correct)}


@lru_cache(maxsize=1)
def _grader_of(task: str) -> Grader:
    grader = Grader(TaskConfig.model_validate_json(task), num_workers=1)
    atexit.register(grader.close)
    return grader
