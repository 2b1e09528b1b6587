"""What a person sees: progress with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

LINE_INTERVAL_SECONDS = 5.0
LOG_WIDTH = 120


class Advance(Protocol):
    """Reports progress."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Advance by ``steps``; ``note`` is the figure worth seeing now."""
        ...


class _Rate(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """Show the mean speed so far."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="cyan")


def make_console(stream: TextIO | None = None) -> Console:
    """The one way to a console: text is shown as it is, so that `[/b]` in a task's name is no markup.

    Args:
        stream: Where it writes; standard error if None, so that standard output stays for results.
    """
    file = sys.stderr if stream is None else stream
    return Console(
        file=stream,
        stderr=stream is None,
        markup=False,
        emoji=False,
        highlight=False,
        width=None if file.isatty() else LOG_WIDTH,
    )


def good(sentence: str) -> Text:
    """A sentence that reports what was finished, with a green mark before it."""
    return Text.assemble(("✓", "green"), f" {sentence}")


def caution(sentence: str) -> Text:
    """A sentence that warns and stops nothing, in yellow."""
    return Text(f"! {sentence}", style="yellow")


@contextmanager
def progress(console: Console, title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show a bar on a terminal; in a log file, a line every few seconds and one at the end."""
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn(unit, markup=False),
            _Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=console,
        ) as bar:
            task = bar.add_task(title, total=total, note="")

            def advance(steps: int = 1, note: str = "") -> None:
                bar.update(task, advance=steps, note=note)

            yield advance
        return
    start = last = time.monotonic()
    done = 0

    def advance_lines(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if done < total and now - last < LINE_INTERVAL_SECONDS:
            return
        last = now
        rate = done / max(now - start, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if done < total and rate > 0 else ""
        console.print(f"{title}: {done}/{total} {unit}, {rate:.1f}/s{left} {note}".rstrip())
        sys.stderr.flush()

    yield advance_lines
