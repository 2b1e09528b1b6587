"""A work queue: any number of processes lease keys, take over from the dead, and all see the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.distributed.leases import LeaseTable, Note, Watch, sending_heartbeats
from stir_train.distributed.preemption import Preempted

HEARTBEATS_PER_LEASE = 6
WATCH_SECONDS = 0.05


@dataclass(frozen=True)
class Rules:
    """How processes that share work depend on each other.

    Attributes:
        lease_seconds: A key whose owner has shown no sign of life for so long is taken over.
        wait_for_all: Otherwise a process leaves as soon as there is no key left to lease.
        collective_forward: For processes that cannot work without each other: all take part in every forward pass until all
            is made, and nobody takes over from the dead.
    """

    lease_seconds: float
    wait_for_all: bool = True
    collective_forward: CollectiveForward | None = None


def work_through(
    table: LeaseTable,
    keys: Sequence[str],
    owner: str,
    make: Callable[[str], Note],
    *,
    rules: Rules,
    boundary: Callable[[], None],
    on_finished: Callable[[str, Note], None],
) -> None:
    """Make every key that no other process makes; return when all are made.

    Args:
        table: Holds the leases.
        keys: All of them, the same on every process.
        owner: This process's name, unlike any other's.
        make: Does one key's work and returns its figures.
        rules: How they depend on each other.
        boundary: Called between keys and while waiting; raises to leave early.
        on_finished: Called once for every finished key, whoever made it.
    """
    worker = _Worker(table, keys, owner, make, on_finished, boundary)
    with sending_heartbeats(table, owner, every_seconds=rules.lease_seconds / HEARTBEATS_PER_LEASE):
        if rules.collective_forward is not None:
            worker.acquire_collectively(rules.collective_forward)
            return
        worker.acquire_all()
        if rules.wait_for_all:
            worker.see_to_the_rest(Watch(table, rules.lease_seconds))


@dataclass
class _Worker:
    """One process at one set of work."""

    table: LeaseTable
    keys: Sequence[str]
    owner: str
    make: Callable[[str], Note]
    on_finished: Callable[[str, Note], None]
    boundary: Callable[[], None]

    def __post_init__(self) -> None:
        """Nothing is finished yet, as far as this process knows."""
        self.left = dict.fromkeys(self.keys)

    def acquire_all(self) -> None:
        """Lease keys and make them until none is free."""
        self._listen()
        while True:
            self.boundary()
            key = self.table.acquire_next(self.owner)
            if key is None:
                return
            self._finish(key)

    def acquire_collectively(self, collective_forward: CollectiveForward) -> None:
        """Lease keys until none is free; take part in the others' passes until all are made."""
        stopped = False
        try:
            self.acquire_all()
        except Preempted:
            stopped = True

        def is_over() -> bool:
            nonlocal stopped
            self._listen()
            if self.left and not stopped:
                try:
                    self.boundary()
                except Preempted:
                    stopped = True
            return stopped or not self.left

        collective_forward.idle_until(is_over)
        if self.left:
            raise Preempted

    def see_to_the_rest(self, watch: Watch) -> None:
        """Wait for the keys that others hold; take over from those that are gone."""
        while True:
            self._listen()
            if not self.left:
                return
            self.boundary()
            key = self._take_over(watch)
            if key is None:
                time.sleep(WATCH_SECONDS)
            else:
                self._finish(key)

    def _take_over(self, watch: Watch) -> str | None:
        for key in self.left:
            holder = self.table.owner_of(key)
            if watch.is_gone(holder) and self.table.take_over(key, holder, self.owner):
                return key
        return None

    def _finish(self, key: str) -> None:
        self.table.finish(key, self.make(key))
        self._listen()

    def _listen(self) -> None:
        for key, note in self.table.finished().items():
            if key in self.left:
                del self.left[key]
                self.on_finished(key, note)
