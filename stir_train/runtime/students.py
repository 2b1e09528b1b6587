"""A run's distilled students: where they lie, and how they answer."""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from stir_train.answering.methods import student_label
from stir_train.answering.model import ModelAnswerer
from stir_train.artifacts.atomic import file_sha256, write_json
from stir_train.distill.plan import student_prefix
from stir_train.errors import ArtifactError
from stir_train.export.adapter import save_merged
from stir_train.models.load import LoadedModel, load_model, unsharded
from stir_train.models.lora import load_adapter
from stir_train.runtime.answerers import other_model_answerer
from stir_train.runtime.context import RunContext
from stir_train.runtime.upstream import students_taught
from stir_train.stores.adapters import ADAPTER_FILES, adapter_of
from stir_train.stores.reports import load_record

MERGED_FILE = "merged-from.json"
"""In a directory of merged weights: what they were merged from, and the hash of each file."""


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class MergedFrom:
    """What merged weights were made from.

    Attributes:
        base: Fingerprint of the base model.
        adapter: Hash of each of the adapter's files.
        files: Hash of each file of the merged model, by name.
    """

    base: str
    adapter: dict[str, str]
    files: dict[str, str]


def student_answerer(context: RunContext, name: str = "") -> ModelAnswerer:
    """A distilled student; the exported one has no name."""
    return other_model_answerer(context, student_label(name), lambda: _load(context, name))


def merge_students(context: RunContext) -> None:
    """Fold each adapter into its base, once, in this process's own memory."""
    for name in students_taught(context.run_dir, context.config):
        merge_adapter(context, _merged(context, name), prefix=student_prefix(name))


def merge_adapter(context: RunContext, target: Path, *, prefix: str = "") -> None:
    """Fold an adapter of the run into its base, and write the whole model, unless that is there.

    Args:
        context: The run; its distillation is finished.
        target: The directory of the whole model.
        prefix: Of the student in the distillation stage.

    Raises:
        ArtifactError: If the adapter is damaged, or ``target`` holds a model that was merged from something
            else, or is damaged.
    """
    adapter, base = adapter_of(context.stage("distill"), prefix=prefix), context.resources.described
    hashes = {name: file_sha256(adapter / name) for name in ADAPTER_FILES}
    if target.is_dir():
        _require_merged(target, base.identity.fingerprint(), hashes)
        return
    unfinished = target.with_name(f"{target.name}.partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    save_merged(load_model(unsharded(context.config.model)), adapter, unfinished)
    made = MergedFrom(base.identity.fingerprint(), hashes, _hashes(unfinished))
    write_json(unfinished / MERGED_FILE, vars(made))
    unfinished.rename(target)


def _require_merged(target: Path, base: str, adapter: dict[str, str]) -> None:
    """Check that merged weights are whole, and of this base and adapter."""
    remove = f"remove {target}, and the same command merges again"
    path = target / MERGED_FILE
    if not path.is_file():
        raise ArtifactError(f"{target} does not say what it was merged from: {remove}")
    held = load_record(path, MergedFrom)
    if (held.base, held.adapter) != (base, adapter):
        raise ArtifactError(f"{target} was merged from another base or adapter: {remove}")
    if (found := _hashes(target)) != held.files:
        names = sorted(n for n in {*found, *held.files} if found.get(n) != held.files.get(n))
        raise ArtifactError(f"{target}: {', '.join(names)} damaged or missing: {remove}")


def _hashes(directory: Path) -> dict[str, str]:
    """Hash of every file of a model, by name."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    names = {str(file.relative_to(directory)): file for file in files}
    return {name: file_sha256(file) for name, file in names.items() if name != MERGED_FILE}


def _load(context: RunContext, name: str) -> LoadedModel:
    """The base with the adapter on it; of a sharded model its merged weights, sharded the same way."""
    model, prefix = context.config.model, student_prefix(name)
    if model.sharding == "none":
        adapter = adapter_of(context.stage("distill"), prefix=prefix)
        return load_adapter(load_model(model, context.world), adapter)
    merged = str(_merged(context, name))
    return load_model(model.model_copy(update={"name": merged, "revision": None}), context.world)


def _merged(context: RunContext, name: str) -> Path:
    return context.run_dir.scratch("evaluate") / f"merged-{name}"
