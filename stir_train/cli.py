"""The command line: ``stir-train VERB CONFIG.yaml [key=value ...]``. Imports torch only to work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from stir_train.distributed.preemption import EXIT_PREEMPTED, Preempted
from stir_train.errors import StirError

if TYPE_CHECKING:
    from stir_train.config.run import RunConfig

app = typer.Typer(
    name="stir-train",
    help="Steer the latent trajectories of a frozen language model, and distil the gain into LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tiny = typer.Typer(help="Train or check the embedded tiny reasoning model.", no_args_is_help=True)
app.add_typer(tiny, name="tiny")

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="Run configuration.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value ...]", help="Settings to change, as in rollout.num_samples=4."
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen; do nothing.")]
Redo = Annotated[bool, typer.Option("--redo", help="Remake this stage and those after it.")]

Submit = Annotated[
    bool,
    typer.Option("--submit", help="Queue it as a chain of SLURM jobs instead of running here."),
]
Site = Annotated[
    Path | None,
    typer.Option(
        help="Site file for --submit (slurm/sites/*.yaml); with --dry-run, shows scripts."
    ),
]
Worker = Annotated[
    bool,
    typer.Option(
        "--worker",
        help="Make chunks beside other workers (a job array) that share only the disk; "
        "a last call without this finishes the stage.",
    ),
]

STAGE_HELP = {
    "rollout": "Sample, grade and capture rollouts of the harvest split.",
    "harvest": "Contrast right and wrong rollouts at control points.",
    "basis": "Select the control basis and diagnose the contrasts.",
    "validate": "Measure what each entry of the basis causes, by paired replay.",
    "value": "Train and calibrate the value heads.",
    "tune": "Choose the controller on the tune split.",
    "steer": "Sample steered rollouts of the harvest split.",
    "distill": "Distil steered rollouts into a LoRA adapter, export and verify it.",
    "evaluate": "Compare every method on the held-out test split.",
    "report": "Write the run's HTML report.",
}


def main() -> None:
    """Run the command line; a user's mistake prints without a traceback."""
    try:
        app()
    except StirError as error:
        _fail(str(error))
    except Preempted:
        print(
            "stopped as asked, at a boundary where nothing is lost; the same command goes on",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_PREEMPTED) from None
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        _fail(f"{error.strerror or error}{where}; nothing half-written counts as complete")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def _stage_command(verb: str) -> Callable[..., None]:
    def command(
        config: ConfigPath,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        redo: Redo = False,
        submit: Submit = False,
        site: Site = None,
    ) -> None:
        if submit or site is not None:
            _submit([verb], config, overrides or [], site, dry_run=dry_run)
            return
        _run_verbs([verb], config, overrides or [], dry_run=dry_run, redo=redo)

    def chunk_command(
        config: ConfigPath,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        redo: Redo = False,
        submit: Submit = False,
        site: Site = None,
        worker: Worker = False,
    ) -> None:
        if submit or site is not None:
            _submit([verb], config, overrides or [], site, dry_run=dry_run)
            return
        _run_verbs([verb], config, overrides or [], dry_run=dry_run, redo=redo, worker=worker)

    return chunk_command if verb in ("rollout", "steer") else command


for _verb, _help in STAGE_HELP.items():
    app.command(_verb, help=_help)(_stage_command(_verb))


@app.command()
def run(
    config: ConfigPath,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    redo: Redo = False,
    submit: Submit = False,
    site: Site = None,
    only: Annotated[
        str | None, typer.Option(help="Only these stages, as in harvest,basis.")
    ] = None,
) -> None:
    """Run every stage in order, skipping what is done; here, or as a chain of SLURM jobs."""
    verbs = list(STAGE_HELP) if only is None else only.split(",")
    unknown = sorted(set(verbs) - set(STAGE_HELP))
    if unknown:
        _fail(f"--only: no stage {', '.join(unknown)}; stages: {', '.join(STAGE_HELP)}")
    if submit or site is not None:
        _submit(verbs, config, overrides or [], site, dry_run=dry_run)
        return
    _run_verbs(verbs, config, overrides or [], dry_run=dry_run, redo=redo)


@app.command()
def status(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
) -> None:
    """Show a run's stages, jobs and progress, its last failure, and what to do next."""
    from rich.box import SIMPLE
    from rich.table import Table

    from stir_train.launch.status import run_status

    found = run_status(run_directory)
    table = Table(box=SIMPLE)
    for column in ("stage", "state", "progress", "job"):
        table.add_column(column)
    for stage in found.stages:
        table.add_row(stage.verb, stage.state, stage.progress, stage.job)
    console = _console()
    console.print(table)
    if found.failure:
        console.print(f"[red]last failure[/] {found.failure}", soft_wrap=True)
    console.print(found.advice, soft_wrap=True)


@app.command()
def cancel(
    run_directory: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory.")],
) -> None:
    """Cancel what is left of a run's chain of SLURM jobs; what is made stays."""
    from stir_train.artifacts.run_dir import RunDir
    from stir_train.launch import slurm

    cancelled = slurm.cancel(RunDir(run_directory))
    listed = ", ".join(f"{job.job_id} ({job.name})" for job in cancelled)
    _console().print(f"cancelled {listed}" if cancelled else "nothing of this run is in the queue")


@app.command()
def verify(config: ConfigPath, overrides: Overrides = None) -> None:
    """Reload a finished run's adapter in a fresh process and compare its logits."""
    with _opened(config, overrides or []) as context:
        from stir_train.recipes.distill import run_verify

        result = run_verify(context)
        context.console.print(
            f"[green]✓[/] {result.num_tensors} tensors load strictly; the adapter changes logits by "
            f"up to {result.effect:.2f} and is within {result.difference:.1e} of the trainer's"
        )


@app.command()
def export(
    config: ConfigPath,
    overrides: Overrides = None,
    to: Annotated[Path, typer.Option(help="Directory to write.")] = Path("export"),
    form: Annotated[
        Literal["lora", "merged", "gguf", "lm-eval"],
        typer.Option(
            "--format",
            help="The adapter; full merged weights; or the static mean vector for llama.cpp or lm-eval.",
        ),
    ] = "lora",
) -> None:
    """Write a finished run's adapter, merged weights or mean vector where another tool loads it."""
    with _opened(config, overrides or []) as context:
        from stir_train.recipes.export import run_export

        run_export(context, to, form=form)


@app.command()
def generate(
    config: ConfigPath,
    prompt: Annotated[str, typer.Option(help="The problem to answer.")],
    overrides: Overrides = None,
    method: Annotated[
        str, typer.Option(help="greedy, stir, stir-published or lora-student.")
    ] = "stir",
) -> None:
    """Answer one prompt with a finished run's method, as it is written."""
    with _opened(config, overrides or []) as context:
        from stir_train.recipes.show import stream_answer

        question = prompt.replace("\\n", "\n")
        stream_answer(context, question, method, lambda text: print(text, end="", flush=True))
        print()


@app.command()
def preview(
    config: ConfigPath,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Which problem of the tune split.")] = 0,
    method: Annotated[
        str, typer.Option(help="greedy, stir, stir-published or lora-student.")
    ] = "stir",
) -> None:
    """Show a completion with its control points: what was retrieved, and what was injected."""
    with _opened(config, overrides or []) as context:
        from rich.console import Console

        from stir_train.recipes.show import show_decisions

        show_decisions(context, index, method, Console(highlight=False))


@app.command()
def data(config: ConfigPath, overrides: Overrides = None) -> None:
    """Show what a configuration would read: split sizes, token lengths, a rendered prompt."""
    from stir_train.recipes.inspect import describe_data

    describe_data(_load(config, overrides or []), _console())


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Finished run directories.")],
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a Markdown table to standard output.")
    ] = False,
) -> None:
    """Put the held-out results of several runs side by side."""
    from stir_train.recipes.compare import as_markdown, as_table, result_rows

    rows = result_rows(runs)
    if markdown:
        print(as_markdown(rows))
    else:
        _console().print(as_table(rows))


@app.command()
def grade(
    file: Annotated[
        Path, typer.Argument(metavar="FILE.jsonl", help="Lines with `response` and `answer`.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[key=value ...]", help="Task settings, as in grader=numeric."),
    ] = None,
    task: Annotated[
        str, typer.Option(help="A known task (gsm8k, math500, ...); or custom, with settings.")
    ] = "custom",
    workers: Annotated[int | None, typer.Option(help="Processes; default: every core.")] = None,
) -> None:
    """Grade responses: each line again with `extracted`, `correct` and `reason`, to standard output.

    A line may also have `choices` (the options' texts) and `truncated`; other keys are kept.
    """
    from stir_train.config.load import parse_config
    from stir_train.config.stages import TaskConfig

    config = parse_config(TaskConfig, {"name": task}, overrides or [], origin=f"--task {task}")
    from stir_train.recipes.grade import grade_file

    reasons = grade_file(config, file, sys.stdout, num_workers=workers)
    total = sum(reasons.values())
    share = f" ({reasons['equal'] / total:.2%})" if total else ""
    print(f"{total} responses, {reasons['equal']} correct{share}", file=sys.stderr)
    for reason, count in reasons.most_common():
        print(f"  {reason:>12} {count}", file=sys.stderr)


@app.command()
def inspect(path: Annotated[Path, typer.Argument(help="Run, stage, or artifact file.")]) -> None:
    """Say what an artifact is, what made it, and whether it is whole."""
    from stir_train.recipes.inspect import describe_path

    describe_path(path, _console())


@app.command()
def doctor() -> None:
    """Say what works here: versions, devices, deepspeed, Slurm, wandb, disk."""
    from stir_train.recipes.doctor import run_doctor

    raise SystemExit(0 if run_doctor(_console()) else 1)


@app.command()
def settings(
    section: Annotated[str, typer.Argument(help="Only this section, as in rollout.")] = "",
) -> None:
    """List every setting with its default and meaning."""
    from stir_train.config.describe import describe_settings

    lines = describe_settings(section)
    print("\n".join(f"{key} = {default}\n    {text}" for key, default, text in lines))


@tiny.command("train")
def tiny_train(
    output: Annotated[Path, typer.Argument(help="Directory to write the model to.")],
    family: Annotated[str, typer.Option(help="Task family.")] = "addition",
    seed: Annotated[int, typer.Option(help="Seed of weights and corpus.")] = 1,
    steps: Annotated[
        int | None, typer.Option(help="Training steps; default: the recipe's.")
    ] = None,
) -> None:
    """Train a tiny model from scratch (minutes on one thread) and check its competence."""
    from dataclasses import replace

    from stir_train.recipes.tiny import train_tiny
    from stir_train.tasks.tiny_model import TinyRecipe

    recipe = replace(TinyRecipe(), seed=seed)
    recipe = recipe if steps is None else replace(recipe, num_steps=steps)
    train_tiny(family, recipe, output, _console())
    tiny_check(str(output), family)


@tiny.command("check")
def tiny_check(
    model: Annotated[str, typer.Argument(help="Model directory or embedded/NAME.")],
    family: Annotated[str, typer.Option(help="Task family.")] = "addition",
    problems: Annotated[int, typer.Option(help="Held-out problems.")] = 300,
) -> None:
    """Measure a tiny model: pass@8 above 90 %, with headroom in accuracy or in tokens."""
    from stir_train.recipes.tiny import measure_competence

    found = measure_competence(family, model, problems)
    print(
        f"greedy {found.greedy:.1%} in {found.greedy_tokens:.1f} tokens, mean@1 "
        f"{found.mean_at_1:.1%}, pass@8 {found.pass_at_8:.1%} (shortest right sample "
        f"{found.shortest_tokens:.1f} tokens) on {found.num_problems} problems: "
        + ("good but imperfect" if found.passes else "does not pass the competence check")
    )


def _run_verbs(
    verbs: list[str],
    path: Path,
    overrides: list[str],
    *,
    dry_run: bool,
    redo: bool,
    worker: bool = False,
) -> None:
    if dry_run:
        _show_plan(_load(path, overrides), verbs)
        return
    with _opened(path, overrides, is_worker=worker) as context:
        from stir_train.recipes.run import run_stages, show_outcome

        run_stages(context, verbs, redo=redo)
        show_outcome(context, verbs)


def _submit(
    verbs: list[str], path: Path, overrides: list[str], site_file: Path | None, *, dry_run: bool
) -> None:
    """Check everything that can be checked here, then queue the chain; or show what would be."""
    from stir_train.artifacts.run_dir import RunDir
    from stir_train.config.load import load_config
    from stir_train.launch import slurm
    from stir_train.launch.jobs import plan_jobs
    from stir_train.launch.preflight import preflight
    from stir_train.launch.site import SiteConfig
    from stir_train.recipes.problems import require_problems

    config = _load(path, overrides)
    site = SiteConfig() if site_file is None else load_config(SiteConfig, site_file)
    found = preflight(config, site, read_data=require_problems)
    jobs = plan_jobs(config, site, verbs)
    scripts = slurm.scripts_of(config, site, jobs)
    console = _console()
    if dry_run:
        _show_plan(config, verbs)
        for script, text in scripts[1:]:
            print(f"# {script}\n{text}")
    for note in found.notes:
        console.print(f"[yellow]! {note}[/]", soft_wrap=True)
    if found.estimate is not None:
        needs = found.estimate
        console.print(
            f"at most {needs.num_tokens:,} tokens on {needs.num_replicas} replicas: about "
            f"{needs.hours:.1f} h, {needs.disk_gib:.1f} GiB of disk; per process "
            f"{needs.generate_gib:.1f} GiB to generate, {needs.train_gib:.1f} GiB to train",
            soft_wrap=True,
        )
    found.require()
    if dry_run:
        return
    if not jobs:
        console.print("every stage is done: nothing to queue")
        return
    for job in slurm.submit(RunDir(config.directory), jobs, scripts):
        console.print(f"queued {job.job_id:>8}  {job.name}", soft_wrap=True)
    console.print(f"watch it with: stir-train status {config.directory}", soft_wrap=True)


def _show_plan(config: RunConfig, verbs: list[str]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from stir_train.launch.plan import plan_run

    table = Table(box=SIMPLE)
    for column in ("stage", "state", "what it does"):
        table.add_column(column)
    for stage in plan_run(config):
        if stage.verb in verbs:
            table.add_row(stage.verb, stage.state, stage.work)
    console = Console()
    console.print(
        f"{config.model.name} on {config.task.name}, in {config.directory}", soft_wrap=True
    )
    console.print(table)


def _load(path: Path, overrides: list[str]) -> RunConfig:
    from stir_train.config.load import load_config
    from stir_train.config.run import RunConfig

    return load_config(RunConfig, path, overrides)


@contextmanager
def _opened(path: Path, overrides: list[str], *, is_worker: bool = False) -> Iterator[Any]:
    """A run's context; the configuration is checked before torch is imported."""
    config = _load(path, overrides)
    from stir_train.recipes.run import open_run

    with open_run(config, _console(), sys.argv, is_worker=is_worker) as context:
        yield context


def _console() -> Any:
    from stir_train.monitoring.console import make_console

    return make_console()
