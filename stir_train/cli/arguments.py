"""What every command shares: its arguments, the configuration, the run, the console, failure."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from stir_train.config.run import RunConfig

ConfigPath = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG|RUN",
        help="Run configuration (YAML), or the directory of a run, which knows its own.",
    ),
]
RunPath = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|CONFIG", help="Directory of a run, or the configuration that it is made from."
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[key=value ...]", help="Settings to change, as in rollout.num_samples=4."
    ),
]


def fail(message: str) -> NoReturn:
    """Say what is wrong, and leave."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(1)


def load(path: Path, overrides: list[str]) -> RunConfig:
    """The configuration, checked; a run directory's own, for the place where it is now."""
    from stir_train.config.run_directory import config_at

    return config_at(path, overrides)


def run_directory(path: Path) -> Path:
    """The directory of a run, given itself or by its configuration."""
    if path.is_dir():
        return path
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        directory = load(path, []).directory
        if directory.is_dir():
            return directory
        fail(
            f"{path}: its run would be in {directory}, and there is none; if it was made with overrides "
            "(name=...), give its directory"
        )
    fail(f"{path}: expected the directory of a run, or a configuration (CONFIG.yaml)")


@contextmanager
def opened(
    path: Path, overrides: list[str], stages: list[str], *, is_worker: bool = False
) -> Iterator[Any]:
    """A run's context for making stages; the configuration is checked before torch is imported.

    Args:
        path: Its configuration.
        overrides: Settings to change in it.
        stages: What will be made.
        is_worker: Whether it makes chunks beside other workers.
    """
    config = load(path, overrides)
    from stir_train.runtime.attempt import open_run

    try:
        with open_run(config, console(), sys.argv, stages=stages, is_worker=is_worker) as context:
            yield context
    except KeyboardInterrupt:
        print(
            "interrupted: what is finished is kept, and the same command goes on", file=sys.stderr
        )
        raise


@contextmanager
def reading(path: Path, overrides: list[str]) -> Iterator[Any]:
    """The context of a run that is there already, and to which nothing is written."""
    config = load(path, overrides)
    from stir_train.runtime.attempt import read_run

    with read_run(config, console()) as context:
        yield context


def console() -> Any:
    """Where sentences for people go."""
    from stir_train.monitoring.console import make_console

    return make_console()


def answers() -> Any:
    """Where a verb that only looks puts what it found, so that it can be piped."""
    from stir_train.monitoring.console import make_console

    return make_console(sys.stdout)
