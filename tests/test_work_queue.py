"""Leases and the work queue: each key once, the dead replaced, the living left alone."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed import HashStore, PrefixStore

from stir_train.distributed.leases import FileLeases, LeaseTable, Note, StoreLeases, Watch
from stir_train.distributed.preemption import Preempted
from stir_train.distributed.work_queue import Rules, work_through

KEYS = [f"set{i % 3}/{i:05d}" for i in range(40)]
MakeTable = Callable[[], LeaseTable]


@pytest.fixture(params=["store", "files"])
def make_table(request: pytest.FixtureRequest, tmp_path: Path) -> MakeTable:
    """Another process's view of the same leases at every call."""
    if request.param == "files":
        return lambda: FileLeases(tmp_path, KEYS)
    store = HashStore()
    return lambda: StoreLeases(store, "work", KEYS)


def _work(
    table: LeaseTable,
    owner: str,
    made: Counter[str],
    *,
    lease_seconds: float = 30.0,
    boundary: Callable[[], None] = lambda: None,
    heard: list[str] | None = None,
) -> None:
    def make(key: str) -> Note:
        made[key] += 1
        return {"by": owner}

    def on_finished(key: str, note: Note) -> None:
        assert note["by"]
        if heard is not None:
            heard.append(key)

    work_through(
        table,
        KEYS,
        owner,
        make,
        rules=Rules(lease_seconds),
        boundary=boundary,
        on_finished=on_finished,
    )


def test_many_workers_make_each_key_once_and_all_hear_of_all(make_table: MakeTable) -> None:
    made: Counter[str] = Counter()
    heard: list[list[str]] = [[] for _ in range(5)]
    threads = [
        threading.Thread(target=_work, args=(make_table(), f"w{i}", made), kwargs={"heard": ears})
        for i, ears in enumerate(heard)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert made == Counter(KEYS)
    assert all(sorted(ears) == sorted(KEYS) for ears in heard)


def test_what_a_dead_worker_held_is_taken_over(make_table: MakeTable) -> None:
    dead = make_table()
    taken = [dead.acquire_next("dead") for _ in range(3)]
    assert taken == KEYS[:3]
    dead.heartbeat("dead", 0)
    made: Counter[str] = Counter()
    _work(make_table(), "alive", made, lease_seconds=0.2)
    assert made == Counter(KEYS)


def test_nobody_waits_for_a_worker_that_died_while_it_finished() -> None:
    store = HashStore()
    store.set_timeout(timedelta(seconds=1))  # a read that waits would raise
    dead = StoreLeases(store, "work", KEYS)
    dead.acquire_next("dead")
    dead.heartbeat("dead", 0)
    PrefixStore("leases/work", store).add("num_finished", 1)  # and then it was killed
    made: Counter[str] = Counter()
    heard: list[str] = []
    _work(StoreLeases(store, "work", KEYS), "alive", made, lease_seconds=0.2, heard=heard)
    assert made == Counter(KEYS)
    assert sorted(heard) == sorted(KEYS)


def test_a_living_worker_keeps_its_lease(make_table: MakeTable) -> None:
    slow, holding, may_end = make_table(), threading.Event(), threading.Event()
    made: Counter[str] = Counter()

    def make_slowly(key: str) -> Note:
        made[key] += 1
        if not holding.is_set():
            holding.set()
            assert may_end.wait(30)
        return {"by": "slow"}

    worker = threading.Thread(
        target=work_through,
        args=(slow, KEYS, "slow", make_slowly),
        kwargs={
            "rules": Rules(0.3),
            "boundary": lambda: None,
            "on_finished": lambda key, note: None,
        },
    )
    worker.start()
    assert holding.wait(30)
    started = time.monotonic()

    def release_after_three_leases() -> None:
        if time.monotonic() - started > 0.9:
            may_end.set()

    _work(make_table(), "quick", made, lease_seconds=0.3, boundary=release_after_three_leases)
    worker.join(timeout=30)
    assert made == Counter(KEYS)


def test_a_takeover_has_one_winner(make_table: MakeTable) -> None:
    first = make_table()
    key = first.acquire_next("dead")
    assert key is not None
    assert make_table().take_over(key, "dead", "one")
    assert not make_table().take_over(key, "dead", "two")
    assert make_table().owner_of(key) == "one"


def test_a_stopped_worker_leaves_at_a_boundary_and_another_ends_the_work(
    make_table: MakeTable,
) -> None:
    made: Counter[str] = Counter()

    def stop_after_seven() -> None:
        if sum(made.values()) == 7:
            raise Preempted

    with pytest.raises(Preempted):
        _work(make_table(), "stopped", made, boundary=stop_after_seven)
    assert sum(made.values()) == 7
    _work(make_table(), "next", made)
    assert made == Counter(KEYS)


@given(heartbeats=st.lists(st.tuples(st.floats(0.01, 3.0), st.booleans()), max_size=40))
@settings(max_examples=60, deadline=None)
def test_an_owner_is_gone_after_a_lease_without_a_beat_and_not_before(
    heartbeats: list[tuple[float, bool]],
) -> None:
    table = StoreLeases(HashStore(), "work", KEYS)
    now, count, last_seen = 0.0, 0, 0.0
    watch = Watch(table, lease_seconds=2.0, clock=lambda: now)
    table.heartbeat("other", count)
    assert not watch.is_gone("other")
    for pause, heartbeat in heartbeats:
        now += pause
        if heartbeat:
            count += 1
            table.heartbeat("other", count)
            last_seen = now
        assert watch.is_gone("other") == (now - last_seen > 2.0)
