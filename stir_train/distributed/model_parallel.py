"""Consecutive ranks that hold one copy of a model: the first leases work, all of them do it."""

from __future__ import annotations

import time
from collections.abc import Callable

from stir_train.distributed.leases import Note
from stir_train.distributed.preemption import Preempted
from stir_train.distributed.world import POLL_SECONDS, World
from stir_train.errors import StageError

DONE, STOPPED = "", "\0stopped"
"""What is announced instead of a key."""


class ModelParallelGroup:
    """This rank's group in one set of work."""

    def __init__(self, world: World, size: int, name: str) -> None:
        """Join; every rank does.

        Args:
            world: All ranks; there are a multiple of ``size``.
            size: Ranks of a group.
            name: Of the set of work, unlike any other's.
        """
        assert world.store is not None
        self._world, self._store, self._size = world, world.store, size
        self._leader = world.rank - world.rank % size
        self._prefix = f"group/{name}/{self._leader}"
        self._turn = 0

    @property
    def is_led_by_me(self) -> bool:
        """Whether this rank leases work for the group, and writes what it makes."""
        return self._world.rank == self._leader

    def leading(self, make: Callable[[str], Note]) -> Callable[[str], Note]:
        """``make`` as the leader calls it: the key is broadcast to the others first."""

        def make_together(key: str) -> Note:
            self._announce(key)
            return make(key)

        return make_together

    def dismiss(self, *, stopped: bool) -> None:
        """As the leader: there is nothing more to make, or the group was asked to stop."""
        self._announce(STOPPED if stopped else DONE)

    def follow(self, make: Callable[[str], Note]) -> None:
        """As another rank: make whatever the leader makes, until it says that there is no more.

        A request to stop is the leader's to act on: a rank that left by itself would leave it alone in
        a pass that takes both.

        Raises:
            Preempted: If the leader stopped.
        """
        while True:
            self._turn += 1
            place = f"{self._prefix}/{self._turn}"
            self._world.pass_on_stop()
            while not self._store.check([place]):
                self._world.raise_if_peer_failed()
                self._world.pass_on_stop()
                time.sleep(POLL_SECONDS / 64)
            key = self._store.get(place).decode()
            if key == STOPPED:
                raise Preempted
            if key == DONE:
                return
            make(key)

    def require_agreement(self, what: str, digest: str) -> None:
        """Stop if ranks of the group made different things of the same work.

        Args:
            what: Names the work, unlike any other.
            digest: Of what this rank made.

        Raises:
            StageError: On the leader, which has written nothing yet.
        """
        if not self.is_led_by_me:
            self._store.set(f"{self._prefix}/{what}/{self._world.rank}", digest)
            return
        for rank in range(self._leader + 1, self._leader + self._size):
            place = f"{self._prefix}/{what}/{rank}"
            self._world.wait_for(place)
            if self._store.get(place).decode() != digest:
                raise StageError(
                    f"{what}: ranks {self._leader} and {rank} hold one model together and decoded "
                    "different tokens from it; their hardware or libraries differ"
                )

    def _announce(self, key: str) -> None:
        self._turn += 1
        self._store.set(f"{self._prefix}/{self._turn}", key)
