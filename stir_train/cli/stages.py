"""The stages, alone, in order, or as a chain of SLURM jobs; and what becomes of such a chain."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stir_train.cli.arguments import (
    ConfigPath,
    Overrides,
    RunPath,
    answers,
    console,
    fail,
    load,
    opened,
    run_directory,
)
from stir_train.config.pipeline import STAGE_NAMES, STAGES, stages_from
from stir_train.errors import StageError, StirError

if TYPE_CHECKING:
    from stir_train.config.run import RunConfig
    from stir_train.launch.estimate import Estimate
    from stir_train.launch.plan import PlannedStage

app = typer.Typer()
PLAN_WIDTH = 79
"""Columns of what --dry-run shows."""
WORKERS = [stage.name for stage in STAGES if stage.takes_workers]

DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Show what would happen, check that it can, and measure what it costs; do nothing.",
    ),
]
NoMeasure = Annotated[
    bool,
    typer.Option("--no-measure", help="With --dry-run: load no weights, and leave the costs out."),
]
Redo = Annotated[bool, typer.Option("--redo", help="Remake this stage and those after it.")]

Submit = Annotated[
    bool,
    typer.Option("--submit", help="Queue it as a chain of SLURM jobs instead of running here."),
]
Site = Annotated[
    Path | None,
    typer.Option(
        help="Site file for --submit (slurm/sites/*.yaml); with --dry-run, shows the jobs."
    ),
]
ShowScripts = Annotated[
    bool,
    typer.Option("--show-scripts", help="With --dry-run and --site: print the sbatch scripts too."),
]
ScriptsTo = Annotated[
    Path | None,
    typer.Option(
        help="With --dry-run and --site: write the sbatch scripts, the configuration that they read and "
        "a submit.sh that queues them in order into a new folder."
    ),
]
Worker = Annotated[
    bool,
    typer.Option(
        "--worker",
        help="rollout and steer: make chunks beside other workers (a job array) that share only the disk; "
        "a last call without this finishes the stage.",
    ),
]


def _stage_command(name: str) -> Callable[..., None]:
    def command(
        config: ConfigPath,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        no_measure: NoMeasure = False,
        redo: Redo = False,
        submit: Submit = False,
        site: Site = None,
        show_scripts: ShowScripts = False,
        scripts_to: ScriptsTo = None,
        worker: Worker = False,
    ) -> None:
        if worker and name not in WORKERS:
            fail(
                f"--worker: {name} is not made in chunks by a job array; {' and '.join(WORKERS)} are"
            )
        if worker and redo:
            fail("--worker --redo: one of several workers would discard what the others make")
        shown = _Shown(dry_run, show_scripts, scripts_to)
        shown.require_plan(site)
        if submit or site is not None:
            _refuse_redo(redo=redo)
            _submit([name], config, overrides or [], site, shown)
            return
        if dry_run:
            _show_plan(load(config, overrides or []), [name], redo=redo, measures=not no_measure)
            return
        _run([name], config, overrides or [], redo=redo, worker=worker)

    return command


for _stage in STAGES:
    app.command(_stage.name, help=_stage.summary)(_stage_command(_stage.name))


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    no_measure: NoMeasure = False,
    redo: Redo = False,
    submit: Submit = False,
    site: Site = None,
    show_scripts: ShowScripts = False,
    scripts_to: ScriptsTo = None,
    only: Annotated[
        str | None, typer.Option(help="Only these stages, as in harvest,basis.")
    ] = None,
) -> None:
    """Run every stage in order, skipping what is done; here, or as a chain of SLURM jobs."""
    names = list(STAGE_NAMES) if only is None else only.split(",")
    unknown = sorted(set(names) - set(STAGE_NAMES))
    if unknown:
        fail(f"--only: no stage {', '.join(unknown)}; stages: {', '.join(STAGE_NAMES)}")
    shown = _Shown(dry_run, show_scripts, scripts_to)
    shown.require_plan(site)
    if submit or site is not None:
        _refuse_redo(redo=redo)
        _submit(names, config, overrides or [], site, shown)
        return
    if dry_run:
        _show_plan(load(config, overrides or []), names, redo=redo, measures=not no_measure)
        return
    _run(names, config, overrides or [], redo=redo)


@app.command()
def iterate(config: ConfigPath, overrides: Overrides = None) -> None:
    """Run generations, each from the last one's student, while the tune split improves."""
    settings = load(config, overrides or [])
    from stir_train.evals.tables import results_table
    from stir_train.runtime.iterate import run_iterate

    out = console()
    results = run_iterate(settings, out, sys.argv)
    out.print(results_table(results))
    out.print(f"chosen on the tune split: {results.chosen}")


@app.command()
def status(run: RunPath) -> None:
    """Show a run's stages, jobs and progress, its last failure, and what to do next."""
    from rich.box import SIMPLE
    from rich.table import Table
    from rich.text import Text

    from stir_train.launch.status import run_status
    from stir_train.monitoring.console import caution

    found = run_status(run_directory(run))
    table = Table(box=SIMPLE)
    for column in ("stage", "state", "progress", "job"):
        table.add_column(column)
    for stage in found.stages:
        table.add_row(stage.name, stage.state, stage.progress, stage.job)
    out = answers()
    out.print(found.state)
    for process in found.running:
        out.print(f"  {process}", soft_wrap=True)
    out.print(table)
    if found.warning:
        out.print(caution(found.warning), soft_wrap=True)
    if found.queue:
        out.print(caution(found.queue), soft_wrap=True)
    if found.failure:
        out.print(Text.assemble(("last failure", "red"), f" {found.failure}"), soft_wrap=True)
    out.print(found.advice, soft_wrap=True)


@app.command()
def cancel(run: RunPath) -> None:
    """Cancel what is left of a run's chain of SLURM jobs; what is made stays."""
    from stir_train.artifacts.run_dir import RunDir
    from stir_train.launch import slurm

    cancelled = slurm.cancel(RunDir(run_directory(run)))
    listed = ", ".join(f"{job.job_id} ({job.name})" for job in cancelled)
    console().print(f"cancelled {listed}" if cancelled else "nothing of this run is in the queue")


def _run(
    names: list[str],
    path: Path,
    overrides: list[str],
    *,
    redo: bool,
    worker: bool = False,
) -> None:
    with opened(path, overrides, names, is_worker=worker) as context:
        from stir_train.runtime.driver import run_stages
        from stir_train.tools.outcome import show_outcome

        run_stages(context, names, redo=redo)
        show_outcome(context, names)


def _refuse_redo(*, redo: bool) -> None:
    """A chain of jobs makes what is lacking; which of them should discard what there is?"""
    if redo:
        fail(
            "--redo with --submit or --site: jobs make what a run lacks. Discard first, with the same "
            "command and --redo alone for the first of the stages, or use another run name"
        )


@dataclass(frozen=True)
class _Shown:
    """Whether a chain is only shown; with its scripts; and the folder that they are written into."""

    dry_run: bool
    scripts: bool
    folder: Path | None

    def require_plan(self, site: Path | None) -> None:
        """Stop where scripts are asked for and there is no chain that is only shown."""
        option = "--show-scripts" if self.scripts else "--scripts-to" if self.folder else ""
        if option and not (self.dry_run and site is not None):
            fail(f"{option}: it is for --dry-run with --site SITE, which says what scripts ask for")


def _submit(
    names: list[str], path: Path, overrides: list[str], site_file: Path | None, shown: _Shown
) -> None:
    """Check everything that can be checked here, then queue the chain; or show what would be."""
    from stir_train.artifacts.run_dir import RunDir
    from stir_train.config.load import load_config
    from stir_train.launch import slurm
    from stir_train.launch.jobs import plan_jobs
    from stir_train.launch.preflight import preflight
    from stir_train.launch.site import SiteConfig
    from stir_train.launch.summary import jobs_table
    from stir_train.monitoring.console import caution
    from stir_train.runtime.problems import require_problems

    config = load(path, overrides)
    site = SiteConfig() if site_file is None else load_config(SiteConfig, site_file)
    found = preflight(config, site, read_data=require_problems)
    jobs = plan_jobs(config, site, names)
    scripts = slurm.scripts_of(config, site, jobs, folder=shown.folder)
    out = console()
    if shown.dry_run:
        _show_plan(config, names, redo=False, checks=False)
        answers().print(jobs_table(jobs, site), width=PLAN_WIDTH)
        for script, text in scripts[1:] if shown.scripts else ():
            print(f"# {script}\n{text}")
    for note in found.notes:
        out.print(caution(note), soft_wrap=True)
    if found.estimate is not None:
        out.print(_in_words(found.estimate, config), soft_wrap=True)
    found.require()
    if not jobs:
        out.print("every stage is done: nothing to queue")
        return
    if shown.folder is not None:
        submission = shlex.quote(str(slurm.write_scripts(shown.folder, scripts)))
        out.print(f"wrote {len(jobs)} jobs; queue them with: bash {submission}", soft_wrap=True)
    if shown.dry_run:
        return
    for job in slurm.submit(RunDir(config.directory), jobs, scripts):
        out.print(f"queued {job.job_id:>8}  {job.name}", soft_wrap=True)
    out.print(f"watch it with: stir-train status {config.directory}", soft_wrap=True)


def _in_words(needs: Estimate, config: RunConfig) -> str:
    """What a whole run needs at most, and each of its processes for what the run asks for."""
    memory = [f"{needs.generate_gib:.1f} GiB to generate"]
    if config.distill.enabled:
        memory.append(f"{needs.train_gib:.1f} GiB to train")
    if config.makes_directions:
        memory.append(f"{needs.gradient_gib:.1f} GiB to differentiate")
    replicas = f"{needs.num_replicas} replica{'s' if needs.num_replicas > 1 else ''}"
    time = f"about {needs.hours:.1f} h" if needs.hours >= 0.05 else "minutes"
    return (
        f"at most {needs.num_tokens:,} tokens on {replicas}: {time}, "
        f"{needs.disk_gib:.1f} GiB of disk; per process {', '.join(memory)}"
    )


def _show_plan(
    config: RunConfig,
    names: list[str],
    *,
    redo: bool,
    checks: bool = True,
    measures: bool = False,
) -> None:
    """Show what the named stages would do; then check that they can, and measure what it costs."""
    from rich.box import SIMPLE
    from rich.table import Table

    from stir_train.distributed.launch import detect_launch
    from stir_train.launch.plan import plan_run

    launch = detect_launch(os.environ)
    remade = stages_from(min(names, key=STAGE_NAMES.index)) if redo else ()
    planned = [stage for stage in plan_run(config, remade=remade) if stage.name in names]
    table = Table(box=SIMPLE)
    for column in ("stage", "state", "what it does"):
        table.add_column(column)
    for stage in planned:
        table.add_row(stage.name, stage.state, stage.work)
    out = answers()
    if launch.rank == 0:
        out.print(
            f"{config.model.name} on {config.task.name}, in {config.directory}", soft_wrap=True
        )
        out.print(table, width=PLAN_WIDTH)
    if not checks:
        return
    _require_startable(config, names, planned, redo=redo, tells=launch.rank == 0)
    if measures:
        from stir_train.tools.costs import show_costs

        left = [stage.name for stage in planned if stage.state not in ("done", "off")]
        show_costs(config, left, out, width=PLAN_WIDTH, launch=launch)


def _require_startable(
    config: RunConfig,
    names: list[str],
    planned: Sequence[PlannedStage],
    *,
    redo: bool,
    tells: bool,
) -> None:
    """Ask, and if it ``tells`` say, all that the run itself does before its first stage; nothing is written."""
    from stir_train.runtime.attempt import look_at_run
    from stir_train.runtime.driver import require_startable
    from stir_train.runtime.early_checks import tell_about_model
    from stir_train.runtime.upstream import require_sources

    try:
        for refusal in [stage.refusal for stage in planned if stage.refusal][:1]:
            raise StageError(refusal)
        require_sources(config, names)
        with look_at_run(config, console()) as context:
            require_startable(context, names, redo=redo)
            if tells:
                tell_about_model(context)
    except StirError as error:
        raise StageError(f"the run would stop: {error}") from error
