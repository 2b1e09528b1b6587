"""The command line: ``stir-train VERB CONFIG.yaml [key=value ...]``. Imports torch only to work.

`stages` has what makes runs, `results` what reads them, `tools` the rest. To add a verb, write it in one of them; its
work belongs to ``recipes/`` or ``tools/``, imported inside the command.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from stir_train import __version__
from stir_train.cli import results, stages, tools
from stir_train.cli.arguments import fail
from stir_train.cli.huge_pages import ask_for_huge_pages
from stir_train.cli.tiny import tiny
from stir_train.distributed.preemption import EXIT_PREEMPTED, Preempted
from stir_train.errors import StirError

app = typer.Typer(
    name="stir-train",
    help="Steer the latent trajectories of a frozen language model, and distil the gain into LoRA.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _part in (stages, results, tools):
    app.add_typer(_part.app)
app.add_typer(tiny, name="tiny")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"stir-train {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and leave."
        ),
    ] = False,
) -> None:
    """Hold what is asked of the program and not of a verb."""


def main() -> None:
    """Run the command line; a user's mistake prints without a traceback."""
    ask_for_huge_pages()
    try:
        app()
    except StirError as error:
        fail(str(error))
    except Preempted:
        print(
            "stopped as asked, at a boundary where nothing is lost; the same command goes on",
            file=sys.stderr,
        )
        raise SystemExit(EXIT_PREEMPTED) from None
    except FileNotFoundError as error:
        fail(f"{error.filename or error}: no such file or directory")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        fail(f"{error.strerror or error}{where}; nothing half-written counts as complete")
