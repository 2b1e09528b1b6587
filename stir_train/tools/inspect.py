"""Say what data a configuration reads, and what an artifact is."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from stir_train.artifacts.run_dir import CONFIG_FILE, STAGE_FILE, RunDir, StageDir
from stir_train.artifacts.stage_records import MANIFEST
from stir_train.artifacts.tensors import load_tensors
from stir_train.artifacts.verification import damage_of, foreign_sources, require_whole
from stir_train.config.run import RunConfig
from stir_train.data.chat import chat_lines
from stir_train.data.duplicates import near_duplicates
from stir_train.data.problems import count_left_out
from stir_train.data.prompts import (
    cut_splits,
    describe_test_split,
    render_prompts,
    require_disjoint,
)
from stir_train.errors import ArtifactError
from stir_train.launch.status import run_status
from stir_train.models.describe import load_tokenizer
from stir_train.runtime.problems import read_problems

MAX_LISTED_PAIRS, SHOWN_CHARACTERS, SHOWN_DIGITS = 5, 60, 16


def describe_data(config: RunConfig, console: Console) -> None:
    """Print split sizes, prompt lengths and one rendered prompt; reads no model weights."""
    tokenizer = load_tokenizer(config.model)
    problems = read_problems(config)
    cut = cut_splits(problems, config.splits)
    splits = {name: render_prompts(p, config.task, tokenizer) for name, p in cut.items()}
    require_disjoint(splits)
    sources = ", ".join(config.task.sources) or "embedded"
    table = Table(title=f"{config.task.name}: {sources}")
    for column in ("split", "problems", "prompt tokens: mean", "longest"):
        table.add_column(column, justify="right")
    for name, prompts in splits.items():
        lengths = [len(prompt.token_ids) for prompt in prompts]
        mean = f"{sum(lengths) / len(lengths):.1f}"
        table.add_row(name, str(len(prompts)), mean, str(max(lengths)))
    console.print(table)
    tested = describe_test_split(problems, len(splits["test"]), config.task.test_split)
    console.print(f"test split: {tested}", soft_wrap=True)
    if config.task.only_answers is not None:
        num_left_out = count_left_out(config.task)
        console.print(f"left out by task.only_answers: {num_left_out} rows", soft_wrap=True)
    pairs = near_duplicates({n: [p.question for p in ps] for n, ps in splits.items()})
    console.print(f"near-duplicate pairs across splits: {len(pairs)}")
    for pair in pairs[:MAX_LISTED_PAIRS]:
        console.print(
            f"  {pair.similarity:.0%} alike: {pair.first_split} {_short(pair.first)} / "
            f"{pair.second_split} {_short(pair.second)}",
        )
    for line in chat_lines(config.task, tokenizer):
        console.print(line, markup=False)
    example = splits["harvest"][0]
    console.print(f"gold answer: {example.answer}\nprompt:")
    console.print(example.text)


def describe_path(path: Path, console: Console, *, deep: bool = False) -> None:
    """Print what a run directory, a stage directory or an artifact file is.

    Args:
        path: Which.
        console: Where to.
        deep: Hash every file of a run, not only the small ones; of a stage all are hashed.

    Raises:
        ArtifactError: If it is not there, none of these, or not whole; what is whole is printed first.
    """
    if not path.exists():
        raise ArtifactError(f"{path}: no such file or directory")
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        _describe_run(RunDir(path), console, deep=deep)
    elif path.is_dir() and (path / STAGE_FILE).is_file():
        _describe_stage(StageDir(path), console)
    elif path.suffix == ".safetensors" and path.is_file():
        tensors, metadata = load_tensors(path)
        for name, tensor in tensors.items():
            console.print(f"{name}: {tuple(tensor.shape)} {tensor.dtype}")
        for key, value in metadata.items():
            console.print(f"  {key}: {value[:100]}")
    elif path.suffix == ".parquet" and path.is_file():
        file = pq.ParquetFile(path)
        console.print(f"{file.metadata.num_rows} rows\n{file.schema_arrow}")
    else:
        raise ArtifactError(
            f"{path} is no run directory (config.yaml), stage directory ({STAGE_FILE}), "
            "safetensors or Parquet file"
        )


def _describe_run(run: RunDir, console: Console, *, deep: bool) -> None:
    table, found = Table(title=str(run.path)), run_status(run.path)
    for column in ("stage", "state", "figures"):
        table.add_column(column)
    wrong: list[str] = []
    whole: dict[str, StageDir] = {}
    for known in found.stages:
        stage = run.stage(known.name)
        damaged = damage_of(stage, deep=deep) if stage.is_complete else []
        wrong += damaged
        if damaged:
            table.add_row(known.name, "damaged", f"{len(damaged)} of its files")
            continue
        if stage.is_complete:
            whole[known.name] = stage
        table.add_row(known.name, known.state, known.progress)
    console.print(table)
    console.print(f"{found.state}: {found.advice}", markup=False, soft_wrap=True)
    wrong += foreign_sources(whole)
    if wrong:
        listed = "\n".join(f"  - {line}" for line in wrong)
        raise ArtifactError(f"{run.path} is not whole:\n{listed}")
    looked = "every file hashed" if deep else "small files hashed, the sizes of large ones right"
    console.print(f"{len(whole)} stages whole: {looked}{'' if deep else ' (--deep hashes all)'}")


def _describe_stage(stage: StageDir, console: Console) -> None:
    manifest = stage.require_complete()
    require_whole(stage, deep=True)
    console.print(f"{stage.name}: complete, schema {manifest['schema']}")
    console.print(f"figures: {_figures(manifest['summary'])}")
    console.print("made from:")
    for source, fingerprint in manifest["sources"].items():
        console.print(f"  {source}: {_source(fingerprint)}", soft_wrap=True)
    total = sum(entry["bytes"] for entry in manifest["files"].values())
    console.print(
        f"{len(manifest['files'])} files, {total:,} bytes, every checksum right "
        f"({stage.path / MANIFEST})",
    )


def _source(value: str) -> str:
    """A hash by its beginning; names and sentences whole."""
    if not value:
        return "none"
    return value[:SHOWN_DIGITS] if re.fullmatch(r"[0-9a-f]{32,}", value) else value


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= SHOWN_CHARACTERS else f"{line[:SHOWN_CHARACTERS]}...")


def _figures(summary: dict[str, object]) -> str:
    return ", ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in summary.items()
    )
