"""Look at data, grades, artifacts, settings and this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from stir_train.cli.arguments import ConfigPath, Overrides, answers, fail, load, run_directory

app = typer.Typer()


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="Directory, hub id, .gguf file or embedded/NAME."),
    ],
    task: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="A known task (gsm8k, ...), reasoning-gym:NAME, an embedded family, or a file.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Default: MODEL-TASK.yaml, here."),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="A copy of a public task: a folder or file.")
    ] = None,
    effort: Annotated[
        str | None,
        typer.Option(help="quick, standard or thorough; default: what the machine allows."),
    ] = None,
    parameters: Annotated[
        str | None,
        typer.Option(
            metavar="YAML",
            help="Of a reasoning-gym task: '{max_terms: 5}'; default: the generator's own.",
        ),
    ] = None,
) -> None:
    """Write a commented configuration for a model and a task; say what was decided and why."""
    from stir_train.config.effort import require_effort
    from stir_train.tools.init import Wish, write_first_config

    asked = None if effort is None else require_effort(effort, origin="--effort")
    wish = Wish(model, task, source, parameters, output, asked)
    write_first_config(wish, answers())


@app.command()
def data(
    config: ConfigPath,
    overrides: Overrides = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help="Instead, write the harvest's prompts and sampling settings, to be sampled elsewhere.",
        ),
    ] = None,
) -> None:
    """Show what a configuration would read: split sizes, token lengths, a rendered prompt."""
    if prompts is not None:
        from stir_train.tools.prompts import export_prompts

        export_prompts(load(config, overrides or []), prompts, answers())
        return
    from stir_train.tools.inspect import describe_data

    describe_data(load(config, overrides or []), answers())


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
    from stir_train.config.inputs import TaskConfig
    from stir_train.config.load import parse_config
    from stir_train.config.tasks import require_known_task

    if task != "custom":
        require_known_task(task, origin="--task")
    config = parse_config(TaskConfig, {"name": task}, overrides or [], origin=f"--task {task}")
    from stir_train.tools.grade import grade_file

    reasons = grade_file(config, file, sys.stdout, num_workers=workers)
    total = sum(reasons.values())
    share = f" ({reasons['equal'] / total:.2%})" if total else ""
    responses = "response" if total == 1 else "responses"
    print(f"{total} {responses}, {reasons['equal']} correct{share}", file=sys.stderr)
    for reason, count in reasons.most_common():
        print(f"  {reason:>12} {count}", file=sys.stderr)


@app.command()
def inspect(
    path: Annotated[
        Path, typer.Argument(help="Run, its configuration, a stage, or an artifact file.")
    ],
    deep: Annotated[
        bool, typer.Option("--deep", help="Hash every file of a run, not only the small ones.")
    ] = False,
) -> None:
    """Say what an artifact is, what made it, and whether it is whole."""
    from stir_train.tools.inspect import describe_path

    is_config = path.is_file() and path.suffix in (".yaml", ".yml")
    describe_path(run_directory(path) if is_config else path, answers(), deep=deep)


@app.command()
def doctor() -> None:
    """Say what works here: versions, devices, deepspeed, Slurm, wandb, disk."""
    from stir_train.tools.doctor import run_doctor

    raise SystemExit(0 if run_doctor(answers()) else 1)


@app.command()
def settings(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SECTION] [key=value ...]",
            help="Only this section or setting, as in rollout or steering.depth; with --of, overrides.",
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            "--of", metavar="CONFIG.yaml", help="What they are in a configuration, and why."
        ),
    ] = None,
) -> None:
    """List every setting with its default and meaning; with --of, its value there and what set it."""
    from stir_train.config.describe import describe_settings, describe_values
    from stir_train.config.load import origins_of

    overrides = [word for word in words or [] if "=" in word]
    sections = [word for word in words or [] if "=" not in word]
    if len(sections) > 1:
        fail(f"one section at a time, not {', '.join(sections)}")
    section = "".join(sections)
    if config is None:
        if overrides:
            fail(f"{overrides[0]}: overrides are of a configuration; name it with --of CONFIG.yaml")
        print("\n".join(map(str, describe_settings(section))))
        return
    loaded = load(config, overrides)
    print("\n".join(map(str, describe_values(loaded, origins_of(config, overrides), section))))
