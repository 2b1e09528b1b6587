"""Metric sinks: ``metrics.jsonl`` always, wandb when asked for (its one import)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stir_train.artifacts.atomic import write_text

WANDB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
STEP_BLOCK = 1000
Scalar = float | int | str | bool


class Pace:
    """The time left of a job, judged by what was done since this was made."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._done = 0

    def eta_seconds(self, left: int) -> float:
        """Call once a piece is done, never for those found done; with how many are left."""
        self._done += 1
        return (time.monotonic() - self._start) / self._done * left


def _ends_within_a_line(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size == 0:
        return False
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) != b"\n"


class MetricsFile:
    """Appends one JSON object a line; the record that survives a kill."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        cut = _ends_within_a_line(path)
        self._stream = path.open("a", encoding="utf-8", buffering=1)
        if cut:  # by a kill or a full disk: what comes next is a line of its own
            self._stream.write("\n")

    def log(self, stage: str, values: Mapping[str, Scalar], *, step: int | None = None) -> None:
        """Append one line and flush it."""
        line: dict[str, Any] = {"time_seconds": round(time.time(), 3), "stage": stage}
        if step is not None:
            line["step"] = step
        self._stream.write(json.dumps({**line, **values}) + "\n")

    def table(self, stage: str, name: str, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """Nothing: tables are artifacts already, and this file is for what happens over time."""

    def page(self, stage: str, name: str, html: str) -> None:
        """Nothing, for the same reason."""

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class _Steps:
    """Numbers the rows of a wandb run over all its attempts; wandb drops rows that do not go up.

    Numbers are set aside a block at a time, on disk before they are used: an attempt that is killed
    leaves a gap, and never a number that the next one uses again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        text = path.read_text(encoding="utf-8").strip() if path.is_file() else ""
        self._next = self._end = int(text) if text.isdecimal() else 0

    def take(self) -> int:
        """The next row number; setting aside a block writes to disk once in `STEP_BLOCK` calls."""
        if self._next == self._end:
            self._set_aside(self._end + STEP_BLOCK)
        self._next += 1
        return self._next - 1

    def close(self) -> None:
        """Give the rest of the block back, so that the next attempt goes on without a gap."""
        self._set_aside(self._next)

    def _set_aside(self, end: int) -> None:
        self._end = end
        write_text(self._path, f"{end}\n")


def _wandb_id(path: Path, make: Callable[[], str], warn: Callable[[str], None]) -> str:
    """The id in a file; one that is empty or damaged is made anew, since no run can have it."""
    held = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else None
    if held is not None and WANDB_ID.fullmatch(held):
        return held
    made = make()
    if held is not None:
        warn(f"{path} held no id: the metrics from here on go to a new wandb run, {made}")
    write_text(path, made)
    return made


class WandbSink:
    """One wandb run per pipeline; its id is kept in the run directory and reused."""

    def __init__(
        self,
        directory: Path,
        *,
        project: str,
        name: str,
        mode: str,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        # Half a second that most runs need not wait.
        import wandb  # noqa: PLC0415
        from wandb.sdk.lib.runid import generate_id  # noqa: PLC0415

        self._wandb = wandb
        self._steps = _Steps(directory / "wandb_step")
        self._stages: set[str] = set()
        self._run = wandb.init(
            project=project,
            name=name,
            id=_wandb_id(directory / "wandb_id", generate_id, warn),
            resume="allow",  # offline too: attempts that are synced later are one run
            mode="online" if mode == "online" else "offline",
            dir=str(directory),
            config=dict(config),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, stage: str, values: Mapping[str, Scalar], *, step: int | None = None) -> None:
        """Send numbers under ``stage/name``, a section a stage; words go to the run's summary."""
        if stage not in self._stages:
            self._stages.add(stage)
            # Each stage counts its own steps.
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        sent: dict[str, Scalar] = {}
        for key, value in values.items():
            if isinstance(value, str):
                self._run.summary[f"{stage}/{key}"] = value
            else:
                sent[f"{stage}/{key}"] = value
        if step is not None:
            sent[f"{stage}/step"] = step
        self._send(sent)

    def _send(self, row: dict[str, Any]) -> None:
        self._run.log(row, step=self._steps.take(), commit=True)

    def table(self, stage: str, name: str, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """Send a table; its columns are the first row's keys."""
        columns: list[str | int] = list(rows[0])
        data: list[list[Any]] = [list(row.values()) for row in rows]
        self._send({f"{stage}/{name}": self._wandb.Table(columns, data)})

    def page(self, stage: str, name: str, html: str) -> None:
        """Send a self-contained page with its plots."""
        self._send({f"{stage}/{name}": self._wandb.Html(html, inject=False)})

    def close(self) -> None:
        """Finish the wandb run."""
        self._run.finish()
        self._steps.close()


class Metrics:
    """Fans out to every sink."""

    def __init__(self, sinks: list[MetricsFile | WandbSink]) -> None:
        self._sinks = sinks

    def log(self, stage: str, values: Mapping[str, Scalar], *, step: int | None = None) -> None:
        """Record values in every sink."""
        for sink in self._sinks:
            sink.log(stage, values, step=step)

    def table(self, stage: str, name: str, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """Show a table in the sinks that can."""
        for sink in self._sinks:
            sink.table(stage, name, rows)

    def page(self, stage: str, name: str, html: str) -> None:
        """Show a page in the sinks that can."""
        for sink in self._sinks:
            sink.page(stage, name, html)

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close every sink."""
        for sink in self._sinks:
            sink.close()


@contextmanager
def open_metrics(
    directory: Path,
    *,
    wandb_mode: str,
    project: str,
    name: str,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Iterator[Metrics]:
    """Open the sinks of a run.

    Args:
        directory: The run's.
        wandb_mode: ``disabled``, ``offline`` or ``online``.
        project: Of the wandb run.
        name: Of the wandb run.
        config: What wandb shows as the run's settings.
        warn: Told what a person should know.
    """
    sinks: list[MetricsFile | WandbSink] = [MetricsFile(directory / "metrics.jsonl")]
    if wandb_mode != "disabled":
        sinks.append(
            WandbSink(
                directory, project=project, name=name, mode=wandb_mode, config=config, warn=warn
            )
        )
    with Metrics(sinks) as metrics:
        yield metrics
