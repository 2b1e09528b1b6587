"""Where a run lives, what made each of its stages, and whether it is whole. Torch-free.

A stage directory holds ``stage.json`` (what it was made from, written first), its files, the
checksum of each under ``.checksums``, and last ``manifest.json`` and the ``complete`` marker. Every file is
renamed into place after it is flushed, so a process killed at any moment leaves a directory that
the same command finishes to the same bytes.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from stir_train.artifacts.atomic import (
    atomic_path,
    file_sha256,
    json_sha256,
    remove_leftovers,
    write_json,
    write_text,
)
from stir_train.artifacts.differences import differences
from stir_train.artifacts.stage_records import MANIFEST, MARKER, read_record, why_absent
from stir_train.errors import ArtifactError

SCHEMA_VERSION = 7
CHECKSUMS = ".checksums"
PROGRESS = ".progress"
DISCARDED = ".discarded"
METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
"""The resolved configuration, of a run and of each attempt."""
STAGE_FILE = "stage.json"
_Version = tuple[int, int, int]
"""What tells a file from another that took its name: inode, size and time of writing (ns)."""


@dataclass(frozen=True)
class StageInputs:
    """Everything a stage's content depends on.

    Attributes:
        config: The settings it reads, as JSON-ready values.
        sources: Name to fingerprint of whatever else it reads: earlier stages, model, splits.
    """

    config: Mapping[str, Any]
    sources: Mapping[str, str]


class StageDir:
    """One stage's directory. A file is hashed once as long as it stays the same file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._hashed: dict[str, tuple[_Version | None, str]] = {}
        self._manifest: tuple[tuple[_Version | None, _Version | None], dict[str, Any]] | None = None

    @property
    def name(self) -> str:
        """The stage's name."""
        return self.path.name

    @property
    def is_complete(self) -> bool:
        """Whether the stage finished."""
        return (self.path / MARKER).is_file()

    def begin(self, inputs: StageInputs, *, alone: bool = True) -> bool:
        """Open the stage for these inputs; return whether there is work left to do.

        Args:
            inputs: What the stage is made from.
            alone: No other process is writing, so half-written files are leftovers and removed.

        Raises:
            ArtifactError: If the directory was made from other inputs; the message names them.
        """
        if alone:
            # Before anything else: the process may have been killed while it opened the stage.
            remove_leftovers(self.path)
        file = self.path / STAGE_FILE
        if not file.is_file():
            write_json(file, self._record(inputs))
            return True
        self.require_inputs(inputs)
        if self.is_complete:
            self.require_complete()
            return False
        return True

    def require_inputs(self, inputs: StageInputs) -> None:
        """Check that the stage, once begun, was begun with these inputs.

        Raises:
            ArtifactError: If it was not; the message names what differs.
        """
        self._refuse(differences(read_record(self.path / STAGE_FILE), self._record(inputs)))

    def _record(self, inputs: StageInputs) -> dict[str, Any]:
        """What the stage keeps of its inputs."""
        return {
            "schema": SCHEMA_VERSION,
            "stage": self.name,
            "config": json.loads(json.dumps(inputs.config)),
            "sources": dict(inputs.sources),
        }

    def settings(self) -> dict[str, Any]:
        """The settings that the stage was begun with, by name.

        Raises:
            ArtifactError: If it was never begun, or its record of them is damaged.
        """
        held = read_record(self.path / STAGE_FILE).get("config")
        if not isinstance(held, dict):
            raise ArtifactError(
                f"{self.path / STAGE_FILE} is damaged: it does not say what settings the stage was begun "
                "with; remake the stage with --redo"
            )
        return dict(held)

    def require_settings(self, wanted: Mapping[str, Any]) -> None:
        """Check some of the settings that the stage, if begun, was begun with.

        Raises:
            ArtifactError: If they were others; the message names them.
        """
        if (self.path / STAGE_FILE).is_file():
            held = self.settings()
            self._refuse(differences({name: held.get(name) for name in wanted}, dict(wanted)))

    def _refuse(self, differences: list[str]) -> None:
        if differences:
            listed = "\n".join(f"  - {line}" for line in differences)
            raise ArtifactError(
                f"{self.path} was made with other settings:\n{listed}\n"
                "Use another run name, or --redo to remake this stage and those after it."
            )

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Write one of the stage's files: yields a temporary path, then records its checksum."""
        with atomic_path(self.path / name) as temporary:
            yield temporary
            write_text(self._checksum_file(name), f"{file_sha256(temporary)}\n")

    def has(self, name: str) -> bool:
        """Whether a file is there whole; one that is damaged counts as missing."""
        checksum = self._checksum_file(name)
        if not ((self.path / name).is_file() and checksum.is_file()):
            return False
        return self._sha256(name) == _one_line(checksum)

    def names(self) -> list[str]:
        """Names of the stage's files: of its manifest, or if it is unfinished of what is there so far.

        Raises:
            ArtifactError: If the stage was never begun.
        """
        if self.is_complete:
            return sorted(self.require_complete()["files"])
        if not (self.path / STAGE_FILE).is_file():
            self.require_complete()
        return [name for name in self._file_names() if (self.path / name).is_file()]

    def known_names(self) -> list[str]:
        """Names of files that were written whole, whatever became of them since, and of those found there."""
        found = {str(f.relative_to(self.path)) for f in self.path.rglob("*") if f.is_file()}
        return sorted({*self._file_names(), *(n for n in found if not n.startswith(CHECKSUMS))})

    def verified(self, name: str) -> Path:
        """Path of a file of a stage, finished or still being made, its checksum verified.

        Raises:
            ArtifactError: If it is missing or altered.
        """
        if self.is_complete:
            return self.file(name)
        if not self.has(name):
            state = "damaged" if (self.path / name).is_file() else "missing"
            raise ArtifactError(
                f"{self.path / name} is {state}; run the {self.name} stage again, which makes "
                "what it lacks"
            )
        return self.path / name

    def finish(self, summary: Mapping[str, Any], *, ends_run: str | None = None) -> None:
        """Write the manifest, then the marker.

        Args:
            summary: The stage's figures, JSON-ready.
            ends_run: Why no later stage can be made, if so.
        """
        files = {
            name: {
                "sha256": _one_line(self._checksum_file(name)),
                "bytes": (self.path / name).stat().st_size,
            }
            for name in self._file_names()
        }
        stage = read_record(self.path / STAGE_FILE)
        manifest = {**stage, "files": files, "summary": dict(summary), "ends_run": ends_run}
        write_json(self.path / MANIFEST, manifest)
        write_text(self.path / MARKER, f"{json_sha256(manifest)}\n")

    def require_complete(self) -> dict[str, Any]:
        """The manifest of a finished, unaltered stage.

        Raises:
            ArtifactError: If it is missing, unfinished, of another schema, or altered.
        """
        if not self.is_complete:
            raise ArtifactError(why_absent(self.path))
        version = _version(self.path / MARKER), _version(self.path / MANIFEST)
        if self._manifest is not None and self._manifest[0] == version:
            return self._manifest[1]
        manifest = read_record(self.path / MANIFEST)
        if manifest.get("schema") != SCHEMA_VERSION:
            raise ArtifactError(
                f"{self.path}: schema version {manifest.get('schema')!r}, this stir-train reads "
                f"{SCHEMA_VERSION}; remake the stage, or use the version that made it"
            )
        marked = _one_line(self.path / MARKER)
        if json_sha256(manifest) != marked:
            raise ArtifactError(f"{self.path / MANIFEST} was altered after the stage finished")
        self._manifest = version, manifest
        return manifest

    def inputs_sha256(self) -> str:
        """Hash of what the stage, once begun, is made from."""
        return json_sha256(read_record(self.path / STAGE_FILE))

    def fingerprint(self) -> str:
        """Hash of the finished stage: what later stages record as their source."""
        return json_sha256(self.require_complete())

    def summary(self) -> dict[str, Any]:
        """The finished stage's summary figures."""
        return dict(self.require_complete()["summary"])

    def ends_run(self) -> str | None:
        """Why no later stage can be made, if the finished stage found so."""
        reason = self.require_complete()["ends_run"]
        return None if reason is None else str(reason)

    def file(self, name: str) -> Path:
        """Path of a finished stage's file, its checksum verified.

        Raises:
            ArtifactError: If it is missing or altered.
        """
        listed = self.require_complete()["files"]
        if name not in listed:
            raise ArtifactError(f"{self.path}: no file {name!r}; it holds {', '.join(listed)}")
        path = self.path / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; remake the stage with --redo")
        found = self._sha256(name)
        if found != listed[name]["sha256"]:
            raise ArtifactError(
                f"{path} is damaged: expected sha256 {listed[name]['sha256'][:12]}..., "
                f"found {found[:12]}...; remake the stage with --redo"
            )
        return path

    def files(self, prefix: str) -> list[Path]:
        """Verified paths of a finished stage's files whose name starts with ``prefix``."""
        listed = self.require_complete()["files"]
        return [self.file(name) for name in sorted(listed) if name.startswith(prefix)]

    def _sha256(self, name: str) -> str:
        """Hash of a file's content, which is read again only if the file was written since."""
        version = _version(self.path / name)
        if name not in self._hashed or self._hashed[name][0] != version:
            self._hashed[name] = version, file_sha256(self.path / name)
        return self._hashed[name][1]

    def _checksum_file(self, name: str) -> Path:
        return self.path / CHECKSUMS / name

    def _file_names(self) -> list[str]:
        checksums = self.path / CHECKSUMS
        return sorted(str(f.relative_to(checksums)) for f in checksums.rglob("*") if f.is_file())


class RunDir:
    """One run's directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stages: dict[str, StageDir] = {}

    def stage(self, name: str) -> StageDir:
        """The directory of a stage, made or not; always the same object, which knows what it hashed."""
        return self._stages.setdefault(name, StageDir(self.path / name))

    @property
    def metrics_file(self) -> Path:
        """The metrics log: one JSON object a line, appended by every attempt."""
        return self.path / METRICS_FILE

    def discard(self, stages: Sequence[str]) -> None:
        """Delete stages, so that they are made again.

        Each is renamed away before anything is deleted, so that a process killed meanwhile leaves no
        half of a stage behind; what it leaves is swept by the next call.
        """
        discarded = self.path / DISCARDED
        discarded.mkdir(parents=True, exist_ok=True)
        for name in reversed(stages):  # a later stage never stands without what it was made from
            self.forget_progress(name)
            if os.path.lexists(self.path / name):
                (self.path / name).rename(discarded / f"{name}.{uuid4().hex}")
        for entry in discarded.iterdir():
            if entry.is_symlink():
                entry.unlink()
            else:
                shutil.rmtree(entry)
        discarded.rmdir()

    def new_attempt(self) -> Path:
        """Make and return the next ``logs/attempt_N`` directory."""
        logs = self.path / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        number = 1 + sum(1 for entry in logs.glob("attempt_*"))
        while True:
            attempt = logs / f"attempt_{number}"
            try:
                attempt.mkdir()
            except FileExistsError:  # another process was quicker
                number += 1
            else:
                return attempt

    def leases(self, stage: str) -> Path:
        """Where processes that share only the disk lease a stage's work."""
        return self.path / PROGRESS / stage / "work_queue"

    def checkpoints(self, stage: str) -> Path:
        """Where a stage's fits are saved until it is done."""
        return self.path / PROGRESS / stage / "checkpoints"

    def scratch(self, stage: str) -> Path:
        """Where an unfinished stage keeps what it can make again."""
        return self.path / PROGRESS / stage

    def forget_progress(self, stage: str) -> None:
        """Drop what only an unfinished stage needs."""
        shutil.rmtree(self.path / PROGRESS / stage, ignore_errors=True)

    @contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the run against a second launch; ``shared`` lets others in that share it too.

        Raises:
            ArtifactError: If another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        with (self.path / ".lock").open("w") as stream:
            try:
                fcntl.flock(stream, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ArtifactError(
                    f"{self.path} is in use by another stir-train process; wait for it to end, "
                    "or use another run name"
                ) from error
            yield


def _version(path: Path) -> _Version | None:
    if not path.is_file():
        return None
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _one_line(path: Path) -> str:
    """A hash that a file holds; of a damaged file something that is no hash."""
    return path.read_text(encoding="utf-8", errors="replace").strip()
