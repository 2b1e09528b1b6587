"""Gather from a finished run what `load_run` opens: what its controller reads, its student, and a card."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import torch

from stir_train.answering.methods import GREEDY, STEERED, STUDENT
from stir_train.artifacts.atomic import write_json, write_text
from stir_train.artifacts.tensors import METADATA_KEY, load_tensors, write_safetensors
from stir_train.config.inputs import ModelConfig
from stir_train.config.pipeline import lineage_of, stage
from stir_train.config.steering import CustomSteering
from stir_train.errors import ArtifactError
from stir_train.export.card import hub_id
from stir_train.export.run_card import RunCard, render_run_card
from stir_train.generation.controller import previewing, reads_uncertainty
from stir_train.models.identity import cached_snapshot, weights_by_content
from stir_train.models.locate import locate_model
from stir_train.models.public_name import public_name
from stir_train.monitoring.console import caution
from stir_train.runtime.context import RunContext
from stir_train.runtime.lineage import require_lineage
from stir_train.runtime.upstream import stages_left_out
from stir_train.steering.artifacts import SteeringArtifacts
from stir_train.stores.adapters import ADAPTER_FILES, adapter_of
from stir_train.stores.published import (
    PUBLISHED_FILE,
    PublishedFile,
    PublishedRun,
    open_published,
    prompt_settings,
)
from stir_train.stores.results import load_results
from stir_train.stores.steering import SteeringStore
from stir_train.stores.steering_files import RunFiles
from stir_train.tools.verify import run_verify

CARD_FILE = "README.md"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LICENCE = re.compile(r"^license:[ \t]*([A-Za-z0-9._-]+)[ \t]*$", re.MULTILINE)


class _FilesRead(RunFiles):
    """Notes which files a controller is made from: those, and no others, are what it needs."""

    def __init__(self, context: RunContext) -> None:
        super().__init__(context.run_dir)
        self.read: dict[str, Path] = {}

    def file(self, name: str) -> Path:
        self.read[name] = super().file(name)
        return self.read[name]


def write_run(context: RunContext, target: Path, *, source: str, licence: str | None) -> None:
    """Write to an empty directory what the chosen controller reads, the student if there is one, and a card.

    Args:
        context: The run.
        target: The directory.
        source: What the card says to load it by.
        licence: As hubs abbreviate it; None takes that of the base, where its own card lies beside it.

    Raises:
        ArtifactError: If the run is not tuned, is damaged or not this configuration's, or its controller is
            the user's own code.
    """
    has_student = context.stage("distill").is_complete
    require_lineage(context, "tune", "evaluate", *(["distill"] if has_student else []))
    context.require_settings_of_rollouts()
    files, identity = _FilesRead(context), context.resources.described.identity
    choice = files.choice()
    if isinstance(choice, CustomSteering):
        raise ArtifactError(
            f"{context.run_dir.path}: the chosen controller, {choice.controller}, is code of your own, which is "
            "not published with a run; --format lora exports the student"
        )
    artifacts = SteeringArtifacts(SteeringStore(files, identity))
    controller = artifacts.controller(choice, device=torch.device("cpu"))
    target.mkdir(parents=True, exist_ok=True)
    model = public_name(context.config.model.name)
    for name, path in files.read.items():
        _copy_tensors(path, target / name, model)
    if has_student:
        run_verify(context)
        _copy_adapter(adapter_of(context.stage("distill")), target, model)
    path_or_id, gguf_file = locate_model(context.config.model)
    content = weights_by_content(path_or_id, context.config.model.revision, gguf_file=gguf_file)
    held = PublishedRun(
        base_model=model,
        identity=replace(identity, name=model),
        weights_sha256=tuple(sorted({identity.weights_sha256, content} - {""})),
        choice=choice,
        control_points=files.control_points(),
        utility=files.utility() if context.stage("validate").is_complete else None,
        prompt=prompt_settings(files.task()),
        files={path.name: PublishedFile.of(path) for path in sorted(target.iterdir())},
    )
    write_json(target / PUBLISHED_FILE, held.model_dump(mode="json"))
    card = _card(
        context,
        source=source,
        licence=_licence(context, licence),
        is_attachable=previewing(controller) is None and not reads_uncertainty(controller),
    )
    write_text(target / CARD_FILE, render_run_card(card))
    open_published(target)


def _copy_tensors(source: Path, target: Path, model: str) -> None:
    """The same tensors; where the model lay on this machine is nobody's business."""
    tensors, metadata = load_tensors(source)
    packed = json.dumps({**metadata, "model": model}, sort_keys=True)
    write_safetensors(tensors, target, {METADATA_KEY: packed})


def _copy_adapter(source: Path, target: Path, model: str) -> None:
    config, weights = ADAPTER_FILES
    (target / weights).write_bytes((source / weights).read_bytes())
    held = json.loads((source / config).read_text(encoding="utf-8"))
    write_json(target / config, {**held, "base_model_name_or_path": model})


def licence_of(folder: Path) -> str:
    """What the card beside a model's files says in its front matter; empty if nothing."""
    card = folder / CARD_FILE
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = text.split("\n---", 1)[0] if text.startswith("---") else ""
    found = _LICENCE.search(front)
    return "" if found is None else found[1]


def _licence(context: RunContext, named: str | None) -> str:
    """What was named, else what the card of the base says."""
    path = locate_model(context.config.model)[0]
    licence = licence_of(Path(path)) if named is None else named
    if not licence:
        context.console.print(
            caution("no licence: no card beside the base's weights names one; --license does"),
            soft_wrap=True,
        )
    return licence


def _commit_of(config: ModelConfig) -> str:
    """The base's commit on the hub; empty if it is on none, or not known."""
    path = locate_model(config)[0]
    folder = Path(path) if Path(path).is_dir() else cached_snapshot(path, config.revision)
    commit = config.revision or "" if folder is None else folder.resolve().name
    return commit if hub_id(config) and _COMMIT.fullmatch(commit) else ""


def _card(context: RunContext, *, source: str, licence: str, is_attachable: bool) -> RunCard:
    config, left_out = context.config, stages_left_out(context.run_dir, context.config)
    has_student = context.stage("distill").is_complete
    made = [
        name
        for name in lineage_of("distill" if has_student else "tune")
        if stage(name).is_on(config) and name not in left_out
    ]
    evaluation = context.stage("evaluate")
    results = load_results(evaluation) if evaluation.is_complete else None
    mode = str(context.steering.choice().mode)
    shown = {GREEDY, *([STEERED] if mode != "none" else []), *([STUDENT] if has_student else [])}
    rows = [] if results is None else [row.metrics for row in results.methods]
    return RunCard(
        name=config.name,
        source=source,
        base_model=public_name(config.model.name),
        hub_id=hub_id(config.model),
        commit=_commit_of(config.model),
        licence=licence,
        task=config.task.name,
        mode=mode,
        is_attachable=is_attachable,
        has_student=has_student,
        plain_student=config.distill.objective.samples == "plain",
        max_new_tokens=config.generation.max_new_tokens,
        lineage={name: context.stage(name).fingerprint() for name in made},
        methods=[row for row in rows if row.name in shown],
        num_items=0 if results is None else results.num_items,
        test_openings=1 if results is None else results.test_openings,
    )
