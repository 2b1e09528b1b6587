"""Who works on what: leases in the c10d store of a launch, or in files on a shared file system."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]  # re-exported silently

Note = Mapping[str, Any]


@runtime_checkable
class LeaseTable(Protocol):
    """Leases on the keys of one set of work. Every method may be called by any process."""

    def acquire_next(self, owner: str) -> str | None:
        """Acquire a key that nobody holds; None when there is none left."""
        ...

    def owner_of(self, key: str) -> str | None:
        """Who holds a key now; None if nobody is known to."""
        ...

    def take_over(self, key: str, old: str | None, new: str) -> bool:
        """Take a key over from an owner that is gone; False if another process was quicker."""
        ...

    def finish(self, key: str, note: Note) -> None:
        """Say that a key's work is done, with its figures."""
        ...

    def finished(self) -> dict[str, Note]:
        """Every finished key with its figures, as far as this process has not been told before."""
        ...

    def heartbeat(self, owner: str, count: int) -> None:
        """Show that an owner is alive."""
        ...

    def last_heartbeat(self, owner: str) -> str:
        """Something that changes with every heartbeat of an owner."""
        ...


class StoreLeases:
    """Leases in a c10d store: one atomic counter hands out the keys in order."""

    def __init__(self, store: Store, name: str, keys: Sequence[str]) -> None:
        self._store = PrefixStore(f"leases/{name}", store)
        self._keys = keys
        self._told = 0
        self._unsaid: set[int] = set()

    def acquire_next(self, owner: str) -> str | None:
        """Lease the next key that nobody has taken; None after the last."""
        ticket = self._store.add("tickets", 1) - 1
        if ticket >= len(self._keys):
            return None
        self._store.set(f"owner/{self._keys[ticket]}", owner)
        return self._keys[ticket]

    def owner_of(self, key: str) -> str | None:
        """Read the owner; one that died between ticket and name is nobody."""
        name = f"owner/{key}"
        return self._store.get(name).decode() if self._store.check([name]) else None

    def take_over(self, key: str, old: str | None, new: str) -> bool:
        """Replace the owner in one step."""
        return self._store.compare_set(f"owner/{key}", old or "", new).decode() == new

    def finish(self, key: str, note: Note) -> None:
        """Append to the log of finished keys."""
        number = self._store.add("num_finished", 1)
        self._store.set(f"finished/{number}", json.dumps([key, dict(note)]))

    def finished(self) -> dict[str, Note]:
        """Read the log from where this process stopped reading.

        An owner that died between number and figures leaves a number without: nobody waits for it.
        """
        count = self._store.add("num_finished", 0)
        self._unsaid |= set(range(self._told + 1, count + 1))
        self._told = count
        news: dict[str, Note] = {}
        for number in sorted(self._unsaid):
            name = f"finished/{number}"
            if self._store.check([name]):
                key, note = json.loads(self._store.get(name))
                news[key] = note
                self._unsaid.remove(number)
        return news

    def heartbeat(self, owner: str, count: int) -> None:
        """Set the owner's entry of the store to ``count``."""
        self._store.set(f"heartbeat/{owner}", str(count))

    def last_heartbeat(self, owner: str) -> str:
        """The owner's count as text; empty before its first heartbeat."""
        name = f"heartbeat/{owner}"
        return self._store.get(name).decode() if self._store.check([name]) else ""


class FileLeases:
    """Leases as files that only one process can create; for launches that share only a disk.

    The ``n``-th lease on a key is the file ``KEY@n``, which holds its owner: the highest ``n`` counts.
    """

    def __init__(self, directory: Path, keys: Sequence[str]) -> None:
        self._directory = directory
        self._keys = keys
        self._told: set[str] = set()
        for part in ("leases", "finished", "heartbeats"):
            (directory / part).mkdir(parents=True, exist_ok=True)

    def acquire_next(self, owner: str) -> str | None:
        """Create the first lease of a key that has none."""
        leased = {_key_of(name) for name in self._names("leases")}
        leased |= {_key_of(name) for name in self._names("finished")}
        for key in self._keys:
            if key not in leased and self._create(key, 0, owner):
                return key
        return None

    def owner_of(self, key: str) -> str | None:
        """Who holds the latest lease of a key; None if it was never leased."""
        number = self._latest(key)
        if number < 0:
            return None
        return self._lease_file(key, number).read_text(encoding="utf-8") or None

    def take_over(self, key: str, old: str | None, new: str) -> bool:
        """Create the lease after the latest, if that is still the old owner's."""
        number = self._latest(key)
        if self.owner_of(key) != old:
            return False
        return self._create(key, number + 1, new)

    def finish(self, key: str, note: Note) -> None:
        """Rename the key's figures into place."""
        path = self._directory / "finished" / _file_name(key)
        partial = path.with_name(f".{path.name}.{os.getpid()}")
        partial.write_text(json.dumps(dict(note)), encoding="utf-8")
        partial.replace(path)

    def finished(self) -> dict[str, Note]:
        """Read the figures that were not there before."""
        news: dict[str, Note] = {}
        for name in self._names("finished"):
            if name not in self._told:
                path = self._directory / "finished" / name
                news[_key_of(name)] = json.loads(path.read_text(encoding="utf-8"))
                self._told.add(name)
        return news

    def heartbeat(self, owner: str, count: int) -> None:
        """Replace the owner's file by one with ``count``."""
        path = self._directory / "heartbeats" / _file_name(owner)
        partial = path.with_name(f".{path.name}")
        partial.write_text(str(count), encoding="utf-8")
        partial.replace(path)

    def last_heartbeat(self, owner: str) -> str:
        """What the owner's file holds; empty before its first heartbeat."""
        path = self._directory / "heartbeats" / _file_name(owner)
        return path.read_text(encoding="utf-8") if path.is_file() else ""

    def _names(self, part: str) -> list[str]:
        return sorted(n for n in os.listdir(self._directory / part) if not n.startswith("."))

    def _latest(self, key: str) -> int:
        stem = f"{_file_name(key)}@"
        numbers = [int(n.removeprefix(stem)) for n in self._names("leases") if n.startswith(stem)]
        return max(numbers, default=-1)

    def _lease_file(self, key: str, number: int) -> Path:
        return self._directory / "leases" / f"{_file_name(key)}@{number}"

    def _create(self, key: str, number: int, owner: str) -> bool:
        """Link a written file into place: it appears whole, and only if nothing is there."""
        path = self._lease_file(key, number)
        partial = path.with_name(f".{path.name}.{_file_name(owner)}")
        partial.write_text(owner, encoding="utf-8")
        try:
            os.link(partial, path)
        except FileExistsError:
            return False
        finally:
            partial.unlink()
        return True


@dataclass
class _Watched:
    """An owner's last heartbeat and when this process first saw it, by this process's own clock."""

    heartbeat: str
    since: float


@dataclass
class Watch:
    """Tells which owners are gone, without comparing clocks between hosts."""

    table: LeaseTable
    lease_seconds: float
    clock: Callable[[], float] = time.monotonic
    _seen: dict[str, _Watched] = field(default_factory=dict)

    def is_gone(self, owner: str | None) -> bool:
        """Whether an owner has shown no heartbeat for a whole lease; nobody counts as an owner."""
        name = owner or ""
        heartbeat = self.table.last_heartbeat(name) if owner else ""
        now = self.clock()
        held = self._seen.get(name)
        if held is None or held.heartbeat != heartbeat:
            self._seen[name] = _Watched(heartbeat, now)
            return False
        return now - held.since > self.lease_seconds


@contextmanager
def sending_heartbeats(table: LeaseTable, owner: str, *, every_seconds: float) -> Iterator[None]:
    """Send an owner's heartbeats from a thread for as long as the block runs.

    Args:
        table: Takes them.
        owner: Whose they are.
        every_seconds: Time between two.
    """
    ended = threading.Event()
    table.heartbeat(owner, 0)

    def run() -> None:
        count = 0
        while not ended.wait(every_seconds):
            count += 1
            try:
                table.heartbeat(owner, count)
            except (dist.DistError, OSError):
                return  # the store or the disk is gone: the working thread meets that itself

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _file_name(key: str) -> str:
    return key.replace("/", "%")


def _key_of(name: str) -> str:
    return name.partition("@")[0].replace("%", "/")
