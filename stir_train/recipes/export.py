"""Copy a finished run's adapter or merged weights to a directory of the user's choice."""

from __future__ import annotations

import shutil
from pathlib import Path

from stir_train.errors import ArtifactError
from stir_train.export.adapter import ADAPTER_DIRECTORY, ADAPTER_FILES, save_merged
from stir_train.models.load import load_model, unsharded
from stir_train.recipes.context import RunContext
from stir_train.recipes.distill import ADAPTER, run_verify


def run_export(context: RunContext, target: Path, *, merged: bool) -> None:
    """Verify the adapter, then write it or its merged weights to ``target``.

    Raises:
        ArtifactError: If the target holds files already.
    """
    if target.exists() and any(target.iterdir()):
        raise ArtifactError(f"{target} is not empty; choose another directory with --to")
    run_verify(context)
    source = context.stage(ADAPTER).path / ADAPTER_DIRECTORY
    target.mkdir(parents=True, exist_ok=True)
    if merged:
        save_merged(load_model(unsharded(context.config.model)), source, target)
    else:
        for name in ADAPTER_FILES:
            shutil.copyfile(source / name, target / name)
    rank = context.config.distill.rank
    how = (
        f"AutoModelForCausalLM.from_pretrained({str(target)!r})"
        if merged
        else f"PeftModel.from_pretrained(base, {str(target)!r}), or vllm serve BASE --enable-lora "
        f"--max-lora-rank {rank} --lora-modules stir={target}"
    )
    context.console.print(f"[green]✓[/] wrote {target}; load it with {how}")
