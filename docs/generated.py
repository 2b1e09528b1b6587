"""Make what is made when the site is built: settings, command line, and the notebooks, which are run.

mkdocs calls `on_files` once, and `on_page_markdown` for every page, which asks for a part by a comment of its name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from typer.main import get_command

from docs.executed import as_ipynb, as_markdown, read_cells, run_cells
from stir_train.cli import app
from stir_train.config.describe import describe_settings

SETTINGS = "<!-- generated: settings -->"
COMMAND_LINE = "<!-- generated: command line -->"


NOTEBOOKS = ("bring-your-own-model", "one-problem")
"""In the order in which they are run: the second looks into the first one's run."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Run the notebooks, in one folder, and add a page and a file to download of each."""
    with TemporaryDirectory() as folder:
        for name in NOTEBOOKS:
            source = Path(config.docs_dir, "notebooks", f"{name}.py").read_text(encoding="utf-8")
            cells = run_cells(read_cells(source), Path(folder))
            made = {".md": as_markdown(cells, f"{name}.ipynb"), ".ipynb": as_ipynb(cells)}
            for suffix, content in made.items():
                path = f"notebooks/{name}{suffix}"
                files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, **_mkdocs: Any) -> str:
    """Replace the comments that name a generated part by it."""
    if SETTINGS in markdown:
        markdown = markdown.replace(SETTINGS, "\n".join(settings_tables()))
    if COMMAND_LINE in markdown:
        markdown = markdown.replace(COMMAND_LINE, "\n".join(command_pages()))
    return markdown


def settings_tables() -> Iterator[str]:
    """One table a section, in the order of the configuration."""
    rows = [_fields(row) for row in describe_settings()]
    # Settings outside a section come first, then the sections in their order.
    rows.sort(key=lambda row: "." in row["key"])
    for section, members in groupby(rows, lambda row: _section(row["key"])):
        held = list(members)
        columns = [name for name in held[0] if any(row[name] for row in held)]
        yield f"\n## {section}\n"
        yield "| " + " | ".join(_HEADINGS.get(name, name) for name in columns) + " |"
        yield "|" + " --- |" * len(columns)
        for row in held:
            yield "| " + " | ".join(_cell(name, row[name]) for name in columns) + " |"


def command_pages() -> Iterator[str]:
    """The help of every command, as a terminal of 88 columns shows it."""
    top = get_command(app)
    yield from _help(top, "stir-train", None, level=2)


_HEADINGS = {"key": "setting", "allowed": "may be", "when": "only with"}


def _fields(row: Any) -> Mapping[str, str]:
    if dataclasses.is_dataclass(row) and not isinstance(row, type):
        return dataclasses.asdict(row)
    return dict(zip(("key", "default", "meaning"), row, strict=True))


def _section(key: str) -> str:
    return f"`{key.partition('.')[0]}`" if "." in key else "The run"


def _cell(name: str, text: str) -> str:
    if not text:
        return ""
    plain = text.replace("\n", "<br>").replace("|", "\\|")
    return f"`{plain}`" if name in ("key", "default") else plain.replace("*", "\\*")


def _help(command: click.Command, name: str, parent: Any, *, level: int) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=88)
    yield f"\n{'#' * level} {context.command_path.replace('stir-train ', '', 1)}\n"
    yield f"```text\n{command.get_help(context)}\n```"
    commands = getattr(command, "commands", {})
    for inner_name, inner in commands.items():
        yield from _help(inner, inner_name, context, level=min(level + 1, 3))
