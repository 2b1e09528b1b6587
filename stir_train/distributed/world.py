"""The processes of one launch: what rank 0 says, what all agree on; alone, everything is a no-op.

Messages are JSON in the c10d store; tensors go through the process group. Whoever waits also looks
for a rank that failed and for a request to stop, so that no rank waits for one that is gone.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import HashStore, PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # re-exported silently
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from stir_train.distributed.launch import Launch, detect_launch, usable_cores
from stir_train.distributed.leases import StoreLeases, Watch, sending_heartbeats
from stir_train.distributed.preemption import Preempted, StopRequest, watching_signals
from stir_train.errors import StageError

FAILED, STOP, LEFT, GONE = "failed", "stop", "left", "gone"
POLL_SECONDS, LEAVE_SECONDS = 0.1, 30.0
LEASE_SECONDS = 15.0
"""A rank that has shown no sign of life for so long is not waited for."""
MEETING_TIMEOUT = timedelta(minutes=10)
COLLECTIVE_TIMEOUT = timedelta(minutes=30)


class PeerError(StageError):
    """Another rank failed; its own message says why."""


class World:
    """This process among the others of its launch.

    Every method but the properties is collective: all ranks call it, in the same order.
    """

    def __init__(self, launch: Launch, store: Store | None, stop: StopRequest) -> None:
        self.launch = launch
        self.store = store
        self._stop = stop
        self._turn = 0

    @property
    def rank(self) -> int:
        """This process's rank."""
        return self.launch.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self.launch.size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes what is written once."""
        return self.launch.rank == 0

    def on_main(self, what: str, work: Callable[[], Any]) -> Any:
        """Run ``work`` on rank 0 and give every rank its JSON-ready result.

        Args:
            what: Names the moment; ranks that meet at different moments are a bug, and stop.
            work: Called on rank 0 only.

        Raises:
            PeerError: On the other ranks, if it fails there.
        """
        if self.store is None:
            return work()
        key = self._next_key()
        if self.is_main:
            result = work()
            self.store.set(key, json.dumps({"what": what, "result": result}))
            return result
        self.wait_for(key)
        message = json.loads(self.store.get(key))
        assert message["what"] == what, f"rank {self.rank} is at {what!r}, rank 0 at {message}"
        return message["result"]

    def barrier(self, what: str) -> None:
        """Wait until every rank is here."""
        if self.store is None:
            return
        key = self._next_key()
        self.store.add(f"{key}/here", 1)
        if self.is_main:
            self.wait_until(lambda: self.count(f"{key}/here") == self.size)
            self.store.set(key, what)
        self.wait_for(key)

    def require_group(self) -> None:
        """Make sure that there is a process group, for a library that wants one even alone."""
        if not dist.is_initialized():
            _tell_libraries(self.launch)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)

    def mesh(self, device_type: str, axes: Mapping[str, int]) -> DeviceMesh:
        """All ranks in a grid, consecutive along the last of the named axes."""
        return init_device_mesh(device_type, tuple(axes.values()), mesh_dim_names=tuple(axes))

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        if self.store is None:
            return flag
        return bool(self.sum(torch.tensor([float(flag)]))[0] > 0)

    def sum(self, tensor: Tensor) -> Tensor:
        """The element-wise sum over ranks, the same bits on every rank."""
        if self.store is None:
            return tensor
        device = _collective_device()
        total = tensor.detach().clone().to(device)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's tensor, in rank order; all of one shape."""
        if self.store is None:
            return [tensor]
        device = _collective_device()
        parts = [torch.empty_like(tensor, device=device) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous().to(device))
        return [part.to(tensor.device) for part in parts]

    def broadcast(self, tensor: Tensor, *, source: int) -> Tensor:
        """One rank's tensor on every rank; the others pass one of the same shape."""
        if self.store is None:
            return tensor
        sent = tensor.detach().clone().to(_collective_device())
        dist.broadcast(sent, src=source)
        return sent.to(tensor.device)

    @property
    def asked_to_stop(self) -> bool:
        """Whether a scheduler asked this rank, or one that has said so, to stop. Not collective."""
        if self.store is None:
            return self._stop.received is not None
        self.pass_on_stop()
        return bool(self.store.check([STOP]))

    def pass_on_stop(self) -> None:
        """Let every rank know if this one was asked to stop. Not collective."""
        if self.store is not None and self._stop.received is not None:
            self.store.set(STOP, self._stop.received.name)

    def stop_if_asked(self) -> None:
        """At a boundary where nothing is lost, leave if asked to. Not collective.

        Raises:
            Preempted: If this or any rank was asked to stop.
        """
        if self.asked_to_stop:
            raise Preempted

    def wait_for(self, key: str) -> None:
        """Wait for a key of the store. Not collective.

        Raises:
            PeerError: If a rank has failed meanwhile.
            Preempted: If a rank was asked to stop meanwhile.
        """
        store = self.store
        assert store is not None
        self.wait_until(lambda: store.check([key]))

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition, looking for failed ranks and requests to stop. Not collective."""
        pause = POLL_SECONDS / 64
        while not condition():
            self.raise_if_peer_failed()
            self.stop_if_asked()
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS)

    def raise_if_peer_failed(self) -> None:
        """Raise if another rank has said that it failed."""
        if self.store is not None and self.store.check([FAILED]):
            failure = json.loads(self.store.get(FAILED))
            if failure["rank"] != self.rank:
                raise PeerError(
                    f"rank {failure['rank']} on {failure['host']} failed: {failure['error']}"
                )

    def count(self, key: str) -> int:
        """The value of one of the store's counters."""
        assert self.store is not None
        return int(self.store.add(key, 0))

    def report_failure(self, error: BaseException) -> None:
        """Tell the other ranks that this one is failing; the first to say so is the cause."""
        if self.store is None or isinstance(error, PeerError):
            return
        message = {"rank": self.rank, "host": self.launch.host, "error": str(error)}
        self.store.compare_set(FAILED, "", json.dumps(message))

    def leave(self, *, finish_together: bool) -> None:
        """Part from the others: rank 0, which may hold the store, goes last.

        Args:
            finish_together: Wait for ranks that are still at work. A launcher ends all ranks when
                the first leaves early, and what they had nearly made would be lost.
        """
        if self.store is None:
            return
        self.store.set(f"{LEFT}/{self.rank}", "")
        killed = self._wait_for_the_living() if finish_together else set()
        self.store.set(f"{GONE}/{self.rank}", "")
        parting = [f"{GONE}/{rank}" for rank in range(self.size) if rank not in killed]
        deadline = time.monotonic() + LEAVE_SECONDS
        while self.is_main and not self.store.check(parting) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)

    def _wait_for_the_living(self) -> set[int]:
        """Wait until every rank has left, was killed or has failed; tell which were killed."""
        assert self.store is not None
        watch = Watch(_signs_of_life(self.store), LEASE_SECONDS)
        staying, killed = set(range(self.size)), set()
        while staying and not self.store.check([FAILED]):
            for rank in list(staying):
                if self.store.check([f"{LEFT}/{rank}"]):
                    staying.remove(rank)
                elif watch.is_gone(str(rank)):
                    staying.remove(rank)
                    killed.add(rank)
            time.sleep(POLL_SECONDS)
        return killed

    def share(self, items: Sequence[Any]) -> list[Any]:
        """This rank's part of a sequence that every rank holds: every ``size``-th, from its own."""
        return list(items[self.rank :: self.size])

    def _next_key(self) -> str:
        self._turn += 1
        return f"turn/{self._turn}"


def num_processes() -> int:
    """Processes of the group that this one is in, if it is in one."""
    return dist.get_world_size() if dist.is_initialized() else 1


def alone() -> World:
    """The world of a process without others."""
    return World(Launch(), None, StopRequest())


@contextmanager
def open_world() -> Iterator[World]:
    """Join the other processes of this launch, if any; leave them in order."""
    launch = detect_launch(os.environ)
    with watching_signals() as stop:
        if launch.size == 1:
            yield World(launch, None, stop)
            return
        _tell_libraries(launch)
        # Each rank its share of the cores, as torchrun does; more threads than cores spin.
        torch.set_num_threads(max(1, usable_cores() // launch.local_size))
        store = _meet(launch)
        world = World(launch, store, stop)
        clean = preempted = False
        heartbeats = sending_heartbeats(
            _signs_of_life(store), str(launch.rank), every_seconds=LEASE_SECONDS / 5
        )
        try:
            with heartbeats:
                yield world
            world.barrier("end")
            clean = True
        except Preempted:
            preempted = True
            raise
        except BaseException as error:
            world.report_failure(error)
            raise
        finally:
            world.leave(finish_together=preempted)
            if clean:
                # gloo may abort a process that ends without both of these.
                dist.barrier()
            dist.destroy_process_group()


def _signs_of_life(store: Store) -> StoreLeases:
    """Where ranks show that they are alive, whatever they do."""
    return StoreLeases(store, "world", ())


def _tell_libraries(launch: Launch) -> None:
    """Under srun, set what torchrun would have: DeepSpeed and transformers read it."""
    for name, value in {
        "RANK": launch.rank,
        "WORLD_SIZE": launch.size,
        "LOCAL_RANK": launch.local_rank,
        "LOCAL_WORLD_SIZE": launch.local_size,
        "LOCAL_SIZE": launch.local_size,
        "MASTER_ADDR": launch.address,
        "MASTER_PORT": launch.port,
    }.items():
        os.environ.setdefault(name, str(value))


def _meet(launch: Launch) -> Store:
    """Make the store and the process group; rank 0 holds the store unless its launcher does."""
    holds = launch.rank == 0 and not launch.agent_store
    try:
        store = TCPStore(
            launch.address,
            launch.port,
            is_master=holds,
            timeout=MEETING_TIMEOUT,
            wait_for_workers=False,
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise StageError(
            f"rank {launch.rank} on {launch.host} cannot meet rank 0 at "
            f"{launch.address}:{launch.port}: {error}; check that the address is that of rank 0's "
            "host and the port is free (MASTER_ADDR, MASTER_PORT)"
        ) from error
    # torchrun keeps its store when it restarts the group: a restart must not see old keys.
    own = PrefixStore(f"stir-train/{launch.restart}", store)
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(launch.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=PrefixStore("group", own),
        rank=launch.rank,
        world_size=launch.size,
        timeout=COLLECTIVE_TIMEOUT,
    )
    return own


def _collective_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
