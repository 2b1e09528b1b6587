"""Metric sinks: ``metrics.jsonl`` always, wandb when asked for (its one import)."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

from stir_train.artifacts.atomic import write_text

WANDB_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
STEP_BLOCK = 1000
MAX_TAG, MAX_GROUP = 64, 128
"""Characters that wandb takes."""
NOT_CHARTED = frozenset({"rank", "bytes"})
"""Figures of the record that are no measurement."""
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

    def start(self) -> None:
        """Nothing: the file is there."""

    def log(
        self,
        stage: str,
        values: Mapping[str, Scalar],
        *,
        step: int | None = None,
        series: str = "",
    ) -> None:
        """Append one line and flush it."""
        line: dict[str, Any] = {"time_seconds": round(time.time(), 3), "stage": stage}
        if series:
            line["series"] = series
        if step is not None:
            line["step"] = step
        self._stream.write(json.dumps({**line, **values}) + "\n")

    def summary(self, stage: str, values: Mapping[str, Scalar]) -> None:
        """Append one line and flush it."""
        self.log(stage, values)

    def table(self, stage: str, name: str, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """Nothing: tables are artifacts already, and this file is for what happens over time."""

    def page(self, stage: str, name: str, html: str) -> None:
        """Nothing, for the same reason."""

    def directory(self, stage: str, name: str, path: Path) -> None:
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


@dataclass(frozen=True)
class WandbLabels:
    """By what a run is found on wandb.

    Attributes:
        project, name, group, job_type, tags: As wandb has them.
    """

    project: str
    name: str
    group: str = ""
    job_type: str = "run"
    tags: Sequence[str] = ()


class WandbSink:
    """One wandb run per pipeline; its id is kept in the run directory and reused.

    It is opened when there is something to do: a command that finds everything done opens none.
    """

    def __init__(
        self,
        directory: Path,
        *,
        labels: WandbLabels,
        mode: str,
        config: Mapping[str, Any],
        warn: Callable[[str], None],
    ) -> None:
        self._directory, self._labels, self._mode = directory, labels, mode
        self._config, self._warn = config, warn
        self._axes: set[str] = set()

    def start(self) -> None:
        """Open the run, so that what is wrong with it is known before there are figures."""
        _ = self._run

    @cached_property
    def _wandb(self) -> ModuleType:
        # Half a second that most runs need not wait.
        import wandb  # noqa: PLC0415

        return wandb

    @cached_property
    def _steps(self) -> _Steps:
        return _Steps(self._directory / "wandb_step")

    @cached_property
    def _run(self) -> Any:
        from wandb.sdk.lib.runid import generate_id  # noqa: PLC0415

        labels = self._labels
        return self._wandb.init(
            project=labels.project,
            name=labels.name,
            group=labels.group[:MAX_GROUP] or None,
            job_type=labels.job_type,
            tags=[tag[:MAX_TAG] for tag in labels.tags if tag],
            id=_wandb_id(self._directory / "wandb_id", generate_id, self._warn),
            resume="allow",  # offline too: attempts that are synced later are one run
            mode="online" if self._mode == "online" else "offline",
            dir=str(self._directory),
            config=dict(self._config),
            settings=self._wandb.Settings(silent=True, console="off"),
        )

    def log(
        self,
        stage: str,
        values: Mapping[str, Scalar],
        *,
        step: int | None = None,
        series: str = "",
    ) -> None:
        """Send numbers under ``stage/series/name``, a section a stage; words go to the run's summary."""
        # A dot in a name is a step down into it, for wandb, and its axis would not be found.
        prefix = f"{stage}/{series.replace('.', '_')}" if series else stage
        axis = f"{prefix}/step"
        sent: dict[str, Scalar] = {}
        for key, value in values.items():
            if isinstance(value, str):
                self._run.summary[f"{prefix}/{key}"] = value
            elif key not in NOT_CHARTED:
                sent[f"{prefix}/{key}"] = value
        if step is not None:
            for name in sent.keys() - self._axes:
                self._axes.add(name)
                # Each series counts its own steps.
                self._run.define_metric(name, step_metric=axis)
            sent[axis] = step
        self._send(sent)

    def summary(self, stage: str, values: Mapping[str, Scalar]) -> None:
        """Set the run's summary, by which runs are compared; no chart is made of it."""
        for key, value in values.items():
            if key not in NOT_CHARTED:
                self._run.summary[f"{stage}/{key}"] = value

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

    def directory(self, stage: str, name: str, path: Path) -> None:
        """Keep a directory's files with the run, as an artifact."""
        called = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{self._labels.name}-{name}")
        artifact = self._wandb.Artifact(called[:MAX_GROUP], type="model", metadata={"stage": stage})
        # What a finished run holds does not change, so nothing is copied.
        artifact.add_dir(str(path), policy="immutable")
        self._run.log_artifact(artifact)

    def close(self) -> None:
        """Finish the wandb run, if it was opened."""
        if "_run" not in vars(self):
            return
        self._run.finish()
        self._steps.close()


class Metrics:
    """Fans out to every sink."""

    def __init__(self, sinks: list[MetricsFile | WandbSink]) -> None:
        self._sinks = sinks

    def start(self) -> None:
        """Say that there is work: sinks that were not opened for nothing are opened now."""
        for sink in self._sinks:
            sink.start()

    def log(
        self,
        stage: str,
        values: Mapping[str, Scalar],
        *,
        step: int | None = None,
        series: str = "",
    ) -> None:
        """Record values over steps in every sink.

        Args:
            stage: Whose they are.
            values: By name.
            step: Goes up within a series.
            series: Which of the stage's curves, where it has several that count steps of their own.
        """
        for sink in self._sinks:
            sink.log(stage, values, step=step, series=series)

    def summary(self, stage: str, values: Mapping[str, Scalar]) -> None:
        """Record what a stage, or the run, came to in every sink."""
        for sink in self._sinks:
            sink.summary(stage, values)

    def table(self, stage: str, name: str, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """Show a table in the sinks that can."""
        for sink in self._sinks:
            sink.table(stage, name, rows)

    def page(self, stage: str, name: str, html: str) -> None:
        """Show a page in the sinks that can."""
        for sink in self._sinks:
            sink.page(stage, name, html)

    def directory(self, stage: str, name: str, path: Path) -> None:
        """Keep a directory's files in the sinks that can."""
        for sink in self._sinks:
            sink.directory(stage, name, path)

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
    labels: WandbLabels,
    config: Mapping[str, Any],
    warn: Callable[[str], None],
) -> Iterator[Metrics]:
    """Open the sinks of a run.

    Args:
        directory: The run's.
        wandb_mode: ``disabled``, ``offline`` or ``online``.
        labels: Of the wandb run.
        config: What wandb shows as the run's settings.
        warn: Told what a person should know.
    """
    sinks: list[MetricsFile | WandbSink] = [MetricsFile(directory / "metrics.jsonl")]
    if wandb_mode != "disabled":
        sinks.append(WandbSink(directory, labels=labels, mode=wandb_mode, config=config, warn=warn))
    with Metrics(sinks) as metrics:
        yield metrics
