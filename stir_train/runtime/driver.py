"""Run stages of the table: begin, skip what is done, make, finish; or discard and remake."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from functools import partial

from stir_train.artifacts.atomic import write_text
from stir_train.artifacts.run_dir import CONFIG_FILE, StageDir, StageInputs
from stir_train.artifacts.verification import require_whole
from stir_train.config.base import imported_by
from stir_train.config.import_path import module_sha256
from stir_train.config.inputs import SplitName
from stir_train.config.load import dump_config
from stir_train.config.pipeline import (
    STAGES,
    Settings,
    Stage,
    settings_as_json,
    stages_from,
    stages_off,
)
from stir_train.config.run import RunConfig
from stir_train.data.prompts import prompts_sha256, split_sha256
from stir_train.errors import StageError
from stir_train.generation.open import check_installation, prepare_ranks
from stir_train.monitoring.console import caution, good
from stir_train.runtime.abilities import require_backend
from stir_train.runtime.context import PROBLEMS_FILE, Finish, Outcome, RunContext
from stir_train.runtime.early_checks import require_feasible, tell_about_model
from stir_train.runtime.external import external_sources
from stir_train.runtime.memory import return_freed_memory
from stir_train.runtime.upstream import end_of_run, sources_of, stages_left_out, upstream_of


def run_stages(context: RunContext, names: Sequence[str], *, redo: bool) -> str | None:
    """Run the named stages in pipeline order; with ``redo`` they and all later ones are remade.

    Where a finished stage found that nothing after it can be made but the report, or tuning chose not to
    steer, the console says why, and the stages without work are left out.

    Returns:
        Why the rest was left out, if it was.

    Raises:
        StirError: If one of them needs what the run's backend lacks, would be refused for its settings,
            model or problems, or the stage to be remade is off or left out; then nothing is made or discarded.
    """
    told: set[str] = set()
    wanted = [stage for stage in STAGES if stage.name in names]
    require_startable(context, names, redo=redo)
    if redo:
        _discard(context, wanted[0])
    tell_about_model(context)
    checked = {stage.name for stage in wanted}
    for stage in wanted:
        reason = stages_left_out(context.run_dir, context.config).get(stage.name)
        if reason is not None:
            if reason not in told and stage.is_on(context.config):
                context.console.print(caution(reason), soft_wrap=True)
                told.add(reason)
        elif stage.is_on(context.config):
            upstream = set(upstream_of(context.run_dir, context.config, stage.name)) - checked
            context.world.on_main(
                f"check upstream of {stage.name}",
                partial(require_as_configured, context, upstream),
            )
            checked |= upstream
            run_stage(context, stage)
        elif len(wanted) == 1:
            asked = f"{stage.name}: off, since nothing in this configuration asks for it"
            context.console.print(caution(asked))
    end = end_of_run(context.run_dir, stages_off(context.config))
    return None if end is None else end.reason


def require_startable(context: RunContext, names: Sequence[str], *, redo: bool) -> None:
    """Check what can be found wrong with the named stages before the first of them begins. Collective.

    Raises:
        StirError: Where one of them needs what the run's backend lacks, or would be refused for its
            settings, model or problems.
    """
    wanted = [stage for stage in STAGES if stage.name in names]
    require_backend(context.config, [s.name for s in wanted if s.is_on(context.config)])
    remade = stages_from(wanted[0].name) if redo else ()
    context.world.on_main(
        "check", lambda: require_feasible(context, [s.name for s in wanted], remade=remade)
    )


def run_stage(context: RunContext, stage: Stage) -> None:
    """Make what a stage lacks, unless it is done. Collective."""
    began = time.monotonic()
    directory = begin(
        context,
        stage.name,
        stage.settings(context.config),
        reads=sources_of(stage, context.run_dir, context.config),
        splits=stage.splits,
        decodes=stage.decodes,
    )
    if directory is None:
        return
    module, _, function = stage.run.partition(":")
    done: Finish = getattr(importlib.import_module(module), function)(context, directory)
    if not context.is_worker:
        finish(context, directory, done, began=began)


def begin(
    context: RunContext,
    name: str,
    settings: Settings,
    *,
    reads: Sequence[str] = (),
    splits: Sequence[SplitName] = (),
    decodes: bool = True,
) -> StageDir | None:
    """Open a stage for its settings and sources; None when it is already complete. Collective.

    Task and control points, on which every stage depends, must be those of the rollouts.

    Args:
        context: The run.
        name: The stage's directory.
        settings: What it depends on.
        reads: Stages that it reads.
        splits: Splits that it opens.
        decodes: Whether it runs the model.
    """
    directory = context.stage(name)
    has_work = context.world.on_main(
        f"begin {name}", lambda: _begin(context, directory, settings, reads, splits)
    )
    if not has_work:
        context.console.print(good(f"{name}: done before, nothing to do"))
        return None
    context.metrics.start()
    if context.is_sharded and decodes:
        _ = context.resources.loaded  # takes all ranks, so not when one of them first asks for it
    if "generation" in settings:
        backend = context.config.generation.backend
        prepare_ranks(backend, context.world, num_shards=context.model_parallel_size)
    return directory


def finish(
    context: RunContext, directory: StageDir, done: Finish, *, began: float | None = None
) -> None:
    """Mark a stage complete, log its figures, tell the user. Collective; rank 0 does it.

    Args:
        context: The run.
        directory: The stage.
        done: Writes its last files.
        began: When this attempt began it, by `time.monotonic`, if its time is to be logged.
    """

    def make() -> None:
        outcome = done()
        seconds = {} if began is None else {"wall_seconds": round(time.monotonic() - began, 3)}
        _finish(context, directory, outcome, seconds)

    context.world.on_main(f"finish {directory.name}", make)
    return_freed_memory()


def require_as_configured(context: RunContext, names: Collection[str]) -> None:
    """Check that finished stages are whole, and were made from what this configuration says.

    Raises:
        ArtifactError: Naming what differs, or is damaged.
    """
    for stage in (stage for stage in STAGES if stage.name in names):
        directory = context.stage(stage.name)
        reads = sources_of(stage, context.run_dir, context.config)
        require_whole(directory)
        directory.require_inputs(
            _inputs(context, stage.settings(context.config), reads, stage.splits)
        )


def _inputs(
    context: RunContext, settings: Settings, reads: Sequence[str], splits: Sequence[SplitName]
) -> StageInputs:
    """Everything that a stage is made from."""
    sources = context.resources.described.identity.parts()
    sources |= {f"stage {other}": context.stage(other).fingerprint() for other in reads}
    for split in splits:
        sources[f"split {split}"] = split_sha256(context.splits[split])
        sources[f"prompts of {split}"] = prompts_sha256(context.splits[split])
    if "generation" in settings:
        sources |= _backend(context.config)
    if "external" in settings:
        sources |= external_sources(context.config)
    sources |= _imported(context, settings, steers="tune" in reads)
    return StageInputs(config=settings_as_json(settings), sources=sources)


def _begin(
    context: RunContext,
    directory: StageDir,
    settings: Settings,
    reads: Sequence[str],
    splits: Sequence[SplitName],
) -> bool:
    """Write what the stage is made from, or check it; whether there is work left."""
    if directory.name != STAGES[0].name:
        context.require_settings_of_rollouts()
    inputs = _inputs(context, settings, reads, splits)
    has_work = directory.begin(inputs, alone=not context.is_worker)
    if not has_work:
        require_whole(directory)
        return False
    # What is refused or only read leaves the record of what made the run.
    write_text(context.run_dir.path / CONFIG_FILE, dump_config(context.config))
    used = {split: sorted(p.prompt_id for p in context.splits[split]) for split in splits}
    if used and not directory.has(PROBLEMS_FILE):
        with directory.writing(PROBLEMS_FILE) as path:
            path.write_text(json.dumps(used, indent=1) + "\n", encoding="utf-8")
    return True


def _backend(config: RunConfig) -> dict[str, str]:
    """The version of what generates, if results may depend on it."""
    name = config.generation.backend
    version = check_installation(name, config.generation.options)
    return {f"version of {name}": version} if version else {}


def _imported(context: RunContext, settings: Settings, *, steers: bool) -> dict[str, str]:
    """Source files of the user's own objects that a stage is made with, by import path."""
    sections = {**settings, "task": context.config.task}
    if steers:
        sections["steering"] = context.config.steering
    return {
        f"import {path}": module_sha256(path, kind=setting)
        for setting, path in imported_by(sections).items()
    }


def _finish(
    context: RunContext, directory: StageDir, outcome: Outcome, seconds: Mapping[str, float]
) -> None:
    directory.finish(outcome.summary, ends_run=outcome.ends_run)
    context.run_dir.forget_progress(directory.name)
    scalars = {k: v for k, v in outcome.summary.items() if isinstance(v, int | float | str)}
    made = {**scalars, **seconds, "sha256": directory.fingerprint()}
    context.metrics.summary(directory.name, made)
    context.console.print(good(f"{directory.name}: {outcome.sentence}"))


def _discard(context: RunContext, first: Stage) -> None:
    """Discard a stage and those after it, once all that could be refused afterwards has been read."""
    if not first.is_on(context.config):
        raise StageError(
            f"{first.name}: off, since nothing in this configuration asks for it; --redo would discard "
            "the stages after it and remake nothing in its place"
        )
    reason = stages_left_out(context.run_dir, context.config).get(first.name)
    if reason is not None:
        raise StageError(f"{first.name}: there is nothing to remake. {reason}")

    def resolve() -> None:
        _ = context.resources.described, context.splits
        if first is not STAGES[0]:
            context.require_settings_of_rollouts()
        upstream = upstream_of(context.run_dir, context.config, first.name)
        require_as_configured(context, upstream)

    context.world.on_main("resolve", resolve)
    context.world.on_main("redo", lambda: context.run_dir.discard(stages_from(first.name)))
