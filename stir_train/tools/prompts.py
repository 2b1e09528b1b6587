"""Write the prompts of the harvest, for something else to sample; reads no model weights."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from stir_train.config.run import RunConfig
from stir_train.data.prompts import cut_splits, render_prompts
from stir_train.generation.backend import SamplingParams
from stir_train.generation.external.file import write_prompts
from stir_train.models.describe import describe_model
from stir_train.runtime.problems import read_problems


def export_prompts(config: RunConfig, path: Path, console: Console) -> None:
    """Write a line a harvest problem: its id, its prompt as the run renders it, and how to sample.

    Raises:
        StirError: If problems or model cannot be read.
    """
    described, rollout = describe_model(config.model), config.rollout
    problems = cut_splits(read_problems(config), config.splits)["harvest"]
    prompts = render_prompts(problems, config.task, described.tokenizer)
    sampling = SamplingParams(
        config.generation.max_new_tokens,
        described.stop_token_ids,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
    )
    write_prompts(path, prompts, sampling, num_samples=rollout.num_samples)
    console.print(
        f"{len(prompts)} prompts in {path}: sample {rollout.num_samples} completions of each, and name "
        "the file of completions with external.file",
        soft_wrap=True,
    )
