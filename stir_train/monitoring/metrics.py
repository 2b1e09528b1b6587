"""Metric sinks: ``metrics.jsonl`` always, wandb when asked for (its one import)."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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


class MetricsFile:
    """Appends one JSON object a line; the record that survives a kill."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = path.open("a", encoding="utf-8", buffering=1)

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


class WandbSink:
    """One wandb run per pipeline; its id is kept in the run directory and reused."""

    def __init__(
        self, directory: Path, *, project: str, name: str, mode: str, config: Mapping[str, Any]
    ) -> None:
        # Half a second that most runs need not wait.
        import wandb  # noqa: PLC0415
        from wandb.sdk.lib.runid import generate_id  # noqa: PLC0415

        id_file = directory / "wandb_id"
        if not id_file.is_file():
            id_file.write_text(generate_id(), encoding="utf-8")
        self._wandb = wandb
        self._stages: set[str] = set()
        self._run = wandb.init(
            project=project,
            name=name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow" if mode == "online" else None,
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
        self._run.log(sent)

    def table(self, stage: str, name: str, rows: Sequence[Mapping[str, Scalar]]) -> None:
        """Send a table; its columns are the first row's keys."""
        columns: list[str | int] = list(rows[0])
        data: list[list[Any]] = [list(row.values()) for row in rows]
        self._run.log({f"{stage}/{name}": self._wandb.Table(columns, data)})

    def page(self, stage: str, name: str, html: str) -> None:
        """Send a self-contained page with its plots."""
        self._run.log({f"{stage}/{name}": self._wandb.Html(html, inject=False)})

    def close(self) -> None:
        """Finish the wandb run."""
        self._run.finish()


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
    directory: Path, *, wandb_mode: str, project: str, name: str, config: Mapping[str, Any]
) -> Iterator[Metrics]:
    """Open the sinks of a run; ``wandb_mode`` is ``disabled``, ``offline`` or ``online``."""
    sinks: list[MetricsFile | WandbSink] = [MetricsFile(directory / "metrics.jsonl")]
    if wandb_mode != "disabled":
        sinks.append(
            WandbSink(directory, project=project, name=name, mode=wandb_mode, config=config)
        )
    with Metrics(sinks) as metrics:
        yield metrics
