"""A run's distilled students: where they lie, and how they answer."""

from __future__ import annotations

import shutil
from pathlib import Path

from stir_train.answering.methods import student_label
from stir_train.answering.model import ModelAnswerer
from stir_train.distill.plan import student_prefix
from stir_train.export.adapter import ADAPTER_DIRECTORY, save_merged
from stir_train.models.load import LoadedModel, load_model, unsharded
from stir_train.models.lora import load_adapter
from stir_train.runtime.answerers import other_model_answerer
from stir_train.runtime.context import RunContext


def student_answerer(context: RunContext, name: str = "") -> ModelAnswerer:
    """A distilled student; the exported one has no name."""
    return other_model_answerer(context, student_label(name), lambda: _load(context, name))


def merge_students(context: RunContext) -> None:
    """Fold each adapter into its base, once, in this process's own memory."""
    for name in ("", *context.config.distill.also):
        merge_adapter(context, _adapter_of(context, name), _merged(context, name))


def merge_adapter(context: RunContext, adapter: Path, target: Path) -> None:
    """Fold an adapter into the run's base, and write the whole model to a directory, unless it is there."""
    if target.is_dir():
        return
    unfinished = target.with_name(f"{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_merged(load_model(unsharded(context.config.model)), adapter, unfinished)
    unfinished.rename(target)


def _load(context: RunContext, name: str) -> LoadedModel:
    """The base with the adapter on it; of a sharded model its merged weights, sharded the same way."""
    model = context.config.model
    if model.sharding == "none":
        return load_adapter(load_model(model, context.world), _adapter_of(context, name))
    merged = str(_merged(context, name))
    return load_model(model.model_copy(update={"name": merged, "revision": None}), context.world)


def _adapter_of(context: RunContext, name: str) -> Path:
    return context.stage("distill").path / student_prefix(name) / ADAPTER_DIRECTORY


def _merged(context: RunContext, name: str) -> Path:
    return context.run_dir.scratch("evaluate") / f"merged-{name}"
