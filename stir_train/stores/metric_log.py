"""What a run's metrics log says of the making of its stages: how long it took, and curves over steps."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Figures = Mapping[str, float | int | str | bool]


@dataclass
class StageLog:
    """The making of a stage, of several the last.

    Attributes:
        steps: By series and step; what an attempt logs again replaces what an earlier one logged.
        summary: The figures of the finished stage.
    """

    steps: dict[tuple[str, int], Figures] = field(default_factory=dict)
    summary: Figures | None = None

    @property
    def wall_seconds(self) -> float | None:
        """From the stage's begin to its end in the attempt that finished it; None if it was not logged."""
        found = {} if self.summary is None else self.summary
        return float(found["wall_seconds"]) if "wall_seconds" in found else None

    @property
    def num_tokens(self) -> int:
        """Tokens that were generated; what a `--worker` made is in its own log."""
        return round(sum(float(figures.get("tokens", 0)) for figures in self.steps.values()))

    def curves(self, name: str) -> dict[str, dict[int, float]]:
        """A figure by step, a curve a series."""
        found: dict[str, dict[int, float]] = defaultdict(dict)
        for (series, step), figures in sorted(self.steps.items()):
            if name in figures:
                found[series][step] = float(figures[name])
        return dict(found)


def read_metric_log(path: Path) -> dict[str, StageLog]:
    """The stages that a run's ``metrics.jsonl`` tells of; a line that a kill cut short is passed over."""
    found: dict[str, StageLog] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        log = found.setdefault(record.pop("stage"), StageLog())
        if "step" in record:
            if log.summary is not None:  # it was finished, and is made again
                log.steps, log.summary = {}, None
            log.steps[record.pop("series", ""), record.pop("step")] = record
        elif "sha256" in record:
            log.summary = record
    return found
