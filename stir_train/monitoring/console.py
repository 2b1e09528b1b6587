"""What a person sees: progress with speed and time left, on a terminal as a bar, elsewhere as plain lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Column
from rich.text import Text

FIRST_LINE_SECONDS, LINE_SECONDS, MOST_SECONDS = 2.0, 5.0, 60.0
"""Until the first line, between lines at first, and between them once a stage has run for long."""
BAR_SECONDS = 0.5
TOKENS_BETWEEN_LOOKS = 64
"""Tokens counted before the clock is looked at again."""
LOG_WIDTH = 120
WIDE = 110
"""Columns from which the bar and all figures share a line."""

Interval = Callable[[float], float]
"""Seconds to the next word, by the seconds so far."""


class Meter:
    """How far a stage is, how fast, and how long it will take; tells its display now and then.

    What is sampled counts before its row or chunk is done, so that a stage of few long chunks is seen to move.
    """

    def __init__(
        self,
        total: int,
        show: Callable[[Meter], None],
        *,
        first_seconds: float,
        interval: Interval,
        num_workers: int = 1,
    ) -> None:
        """Count up to ``total``; call ``show`` after ``first_seconds``, then at intervals, and at the end.

        Of ``num_workers`` at work, the others are heard of when they finish something.
        """
        self.done, self.total, self.note = 0, total, ""
        self._num_workers, self._own_tokens = num_workers, 0
        self._show, self._interval, self._is_over = show, interval, False
        self._finished_steps, self._finished_tokens, self._sampled_tokens = 0, 0, 0
        self._began = time.monotonic()
        self._due = self._began + first_seconds

    def __call__(self, steps: int = 1, note: str = "", num_tokens: int = 0) -> None:
        """Advance by ``steps``, which took ``num_tokens``; ``note`` is the figure worth seeing now."""
        self.done += steps
        self.note = note
        if num_tokens:
            self._finished_steps += steps
            self._finished_tokens += num_tokens
            self._sampled_tokens = 0
        self._look()

    def sampled(self) -> None:
        """Count a token of what is not done yet."""
        self._sampled_tokens += 1
        self._own_tokens += 1
        if self._sampled_tokens % TOKENS_BETWEEN_LOOKS == 0:
            self._look()

    @property
    def num_tokens(self) -> int:
        """Tokens so far, in this process."""
        return self._finished_tokens + self._sampled_tokens

    @property
    def seconds_left(self) -> float | None:
        """By tokens where rows are done whose length is known, else by steps; None before any is done."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        if not self.done or self.done >= self.total:
            return None
        if self._finished_steps:
            mean = self._finished_tokens / self._finished_steps
            left = (self.total - self.done) * mean - self._num_workers * self._sampled_tokens
            # Answers are longer than those before, or a worker has nothing left to do.
            if left <= 0:
                return None
            # The others are taken to be as fast as this one, until more is heard of them.
            return left * seconds / max(self.num_tokens, self._num_workers * self._own_tokens)
        return (self.total - self.done) * seconds / self.done

    @property
    def speed(self) -> str:
        """Speed and time left in words."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        parts = [f"{self.done / seconds:.1f}/s"] if self.done else []
        if self.num_tokens:
            parts.append(f"{self.num_tokens:,} tokens ({self.num_tokens / seconds:,.0f}/s)")
        if self.seconds_left is not None:
            parts.append(f"{duration(self.seconds_left)} left")
        return ", ".join(parts)

    def _look(self) -> None:
        now = time.monotonic()
        ends = self.done >= self.total and not self._is_over
        if ends or now >= self._due:
            self._is_over = self.done >= self.total
            self._due = now + self._interval(now - self._began)
            self._show(self)


def duration(seconds: float) -> str:
    """Seconds as people say them: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


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
def progress(
    console: Console,
    title: str,
    total: int,
    unit: str,
    *,
    watch: Callable[[Meter], None] | None = None,
    num_workers: int = 1,
) -> Iterator[Meter]:
    """Show a bar on a terminal; in a log, a line within seconds, more and more seldom, and one at the end.

    Args:
        console: Where.
        title: What is under way.
        total: When it is done.
        unit: Of what is counted.
        watch: Called with every word that is said, for those who look from elsewhere.
        num_workers: That are at work.
    """
    if not console.is_terminal:

        def line(meter: Meter) -> None:
            console.print(f"{title}: {meter.done}/{total} {unit}, {_words(meter)}")
            sys.stderr.flush()
            if watch is not None:
                watch(meter)

        of = partial(Meter, first_seconds=FIRST_LINE_SECONDS, interval=_between_lines)
        yield of(total, line, num_workers=num_workers)
        return
    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20 if console.width >= WIDE else 10, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        # Where a line is too short for all, this goes on in the next one, and nothing is cut.
        TextColumn("{task.fields[words]}", markup=False, table_column=Column()),
        console=console,
    ) as bar:
        task = bar.add_task(title, total=total, words="")

        def update(meter: Meter) -> None:
            bar.update(task, completed=meter.done, words=_words(meter))
            if watch is not None:
                watch(meter)

        of = partial(Meter, first_seconds=0.0, interval=lambda _seconds: BAR_SECONDS)
        meter = of(total, update, num_workers=num_workers)
        yield meter
        update(meter)


def _words(meter: Meter) -> str:
    return ", ".join(part for part in (meter.speed, meter.note) if part)


def _between_lines(seconds: float) -> float:
    """A twentieth of the time so far, within bounds: a stage of hours does not fill its log."""
    return min(MOST_SECONDS, max(LINE_SECONDS, seconds / 20))
