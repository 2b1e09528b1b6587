"""Graded rollouts of a stage, in one or several named sets of numbered chunks.

The rollout stage has one set, named ``""``; ``validate`` has ``null``, ``round-00`` and so on. A set is
a directory, a chunk of it a table ``rollouts-00000.parquet``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stir_train.artifacts.run_dir import StageDir
from stir_train.artifacts.tables import load_table, save_table
from stir_train.errors import ArtifactError
from stir_train.types.rollout import GradedRollout, RolloutOutcome
from stir_train.types.steering import SteeringDecision

_CHUNK = re.compile(r"(?:(?P<set>.+)/)?rollouts-(?P<number>\d{5})\.parquet")


def chunk_file(kind: str, name: str, number: int, suffix: str) -> str:
    """Name of one chunk's file of a kind, in a set, within its stage."""
    return f"{name}/{kind}-{number:05d}{suffix}" if name else f"{kind}-{number:05d}{suffix}"


def rollouts_file(name: str, number: int) -> str:
    """Name of a chunk's rollout table; where it is whole, the chunk is."""
    return chunk_file("rollouts", name, number, ".parquet")


def decisions_file(name: str, number: int) -> str:
    """Name of a chunk's controller decisions."""
    return chunk_file("decisions", name, number, ".parquet")


def reused_file(name: str, number: int) -> str:
    """Name of what a chunk took over from greedy answers."""
    return chunk_file("reused", name, number, ".parquet")


@dataclass(frozen=True)
class Reused:
    """How many of a rollout's first tokens were not decoded, but taken over from a greedy answer."""

    prompt_id: str
    num_tokens: int


class RolloutStore:
    """The rollouts of one stage directory, finished or still being made."""

    def __init__(self, stage: StageDir) -> None:
        self.stage = stage

    def sets(self) -> list[str]:
        """Names of the sets that have a chunk."""
        return sorted({found["set"] or "" for found in self._listed()})

    def chunks(self, name: str = "") -> list[str]:
        """Files of a set's chunks, by number.

        Raises:
            ArtifactError: If a number is left out, or a file there is not the stage's own.
        """
        numbers = sorted(
            int(found["number"]) for found in self._listed() if (found["set"] or "") == name
        )
        for expected, number in enumerate(numbers):
            if number != expected:
                raise ArtifactError(
                    f"{self.stage.path}: chunk {expected} of {_called(name)} is missing, "
                    f"{number} is there; run the {self.stage.name} stage again, which makes what "
                    "it lacks"
                )
        files = [rollouts_file(name, number) for number in numbers]
        self._refuse_foreign(name, files)
        return files

    def require_complete(self) -> RolloutStore:
        """The store itself, if its stage is finished.

        Raises:
            ArtifactError: If it is not.
        """
        self.stage.require_complete()
        return self

    def num_chunks(self, name: str = "") -> int:
        """How many chunks a set has.

        Raises:
            ArtifactError: If it has none.
        """
        count = len(self.chunks(name))
        if not count:
            held = ", ".join(map(_called, self.sets())) or "none"
            raise ArtifactError(
                f"{self.stage.path}: no rollouts in {_called(name)}; sets there: {held}"
            )
        return count

    def read_chunk(self, name: str, number: int) -> list[GradedRollout]:
        """The rollouts of one chunk."""
        return load_table(self.stage.verified(rollouts_file(name, number)), GradedRollout)

    def read(self, name: str = "") -> list[GradedRollout]:
        """All rollouts of a set, in order.

        Raises:
            ArtifactError: If there are none, a chunk is left out, or one is damaged.
        """
        return [graded for chunk in self.iterate(name) for graded in chunk]

    def iterate(self, name: str = "") -> Iterator[list[GradedRollout]]:
        """The rollouts of a set chunk by chunk."""
        for number in range(self.num_chunks(name)):
            yield self.read_chunk(name, number)

    def outcomes(self, name: str = "") -> list[RolloutOutcome]:
        """How the rollouts of a set ended, in order; their tokens stay on disk."""
        return [
            outcome
            for number in range(self.num_chunks(name))
            for outcome in _outcomes(self.stage.verified(rollouts_file(name, number)))
        ]

    def decisions(self, name: str = "") -> list[SteeringDecision]:
        """What a controller decided while a set was made, in order."""
        return [
            decision
            for number in range(self.num_chunks(name))
            for decision in load_table(
                self.stage.verified(decisions_file(name, number)), SteeringDecision
            )
        ]

    def num_reused(self, name: str = "") -> list[int]:
        """How many tokens of each rollout of a set were taken over from a greedy answer, in order."""
        found: list[int] = []
        recorded = set(self.stage.names())
        for number in range(self.num_chunks(name)):
            file = reused_file(name, number)
            if file in recorded:
                found += [row.num_tokens for row in load_table(self.stage.verified(file), Reused)]
            else:
                table = pq.read_metadata(self.stage.verified(rollouts_file(name, number)))
                found += [0] * table.num_rows
        return found

    def _listed(self) -> list[re.Match[str]]:
        return [found for name in self.stage.names() if (found := _CHUNK.fullmatch(name))]

    def _refuse_foreign(self, name: str, files: Sequence[str]) -> None:
        """Refuse tables beside a set's own that the stage knows nothing of."""
        there = {path.name for path in (self.stage.path / name).glob("rollouts-*.parquet")}
        if foreign := sorted(there - {Path(file).name for file in files}):
            raise ArtifactError(
                f"{self.stage.path / name / foreign[0]} was not written by the {self.stage.name} "
                "stage; move it away"
            )


def save_rollouts(
    stage: StageDir, name: str, number: int, rollouts: Sequence[GradedRollout]
) -> None:
    """Write a chunk's rollout table; do it last, since it says that the chunk is whole."""
    save_table(stage, rollouts_file(name, number), GradedRollout, rollouts)


def save_decisions(
    stage: StageDir, name: str, number: int, decisions: Sequence[SteeringDecision]
) -> None:
    """Write what a controller decided in a chunk."""
    save_table(stage, decisions_file(name, number), SteeringDecision, decisions)


def save_reused(stage: StageDir, name: str, number: int, rows: Sequence[Reused]) -> None:
    """Write what a chunk took over from greedy answers."""
    save_table(stage, reused_file(name, number), Reused, rows)


def _outcomes(path: Path) -> list[RolloutOutcome]:
    rollout = [f"rollout.{name}" for name in ("prompt_id", "sample", "token_ids", "finish_reason")]
    try:
        table = pq.read_table(path, columns=[*rollout, "grade.correct", "reward"])
    except (pa.ArrowInvalid, OSError) as error:
        raise ArtifactError(f"{path} cannot be read as a table of rollouts: {error}") from error
    columns = (
        table["prompt_id"],
        table["sample"],
        pc.list_value_length(table["token_ids"]),
        table["correct"],
        pc.equal(table["finish_reason"], "length"),
        table["reward"],
    )
    rows = zip(*(column.to_pylist() for column in columns), strict=True)
    return [RolloutOutcome(*row) for row in rows]


def _called(name: str) -> str:
    return f"set {name!r}" if name else "the unnamed set"
