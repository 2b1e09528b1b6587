"""Make a stage's files with however many processes there are: each file is made once, whole."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence

from stir_train.artifacts.run_dir import StageDir
from stir_train.distributed.leases import FileLeases, LeaseTable, Note, StoreLeases
from stir_train.distributed.model_parallel import ModelParallelGroup
from stir_train.distributed.preemption import Preempted
from stir_train.distributed.work_queue import Rules, work_through
from stir_train.generation.backend import GenerationBackend
from stir_train.runtime.context import RunContext

WORK_LOG = "work.jsonl"
_BESIDE_ROLLOUTS = re.compile(
    r"(?P<set>(?:.*/)?)(?:states|decisions|reused)-(?P<number>[0-9]{5})\.\w+"
)


def make_missing(
    context: RunContext,
    stage: StageDir,
    files: Mapping[str, Sequence[str]],
    make: Callable[[str], Note],
    on_finished: Callable[[str, Note], None],
    *,
    together: GenerationBackend | None = None,
) -> None:
    """Make what a stage lacks; return when all of it is there. Collective.

    Alone, keys are made in order. In a launch, ranks lease keys in its store; as a worker, in files
    beside the run, and it returns when no key is left to lease. Where ranks hold a model together,
    the first of each group leases keys and the others make the same keys along with it.

    Args:
        context: The run.
        stage: Holds the files.
        files: Key to the files that are there when the key's work is done, in order.
        make: Makes one key's files and returns its figures.
        on_finished: Called once for every key, whoever made it; with no figures if it was there before.
        together: What ``make`` decodes with, where ranks can only run it together.

    Raises:
        Preempted: At a boundary between keys, if the run was asked to stop.
    """
    world = context.world
    name = f"{stage.name}/{context.next_work_number()}"
    wanted = list(files)
    if not context.is_worker:
        wanted = world.on_main(f"missing {name}", lambda: missing_keys(stage, files))
    for key in sorted(set(files) - set(wanted), key=list(files).index):
        on_finished(key, {})

    if world.store is not None or context.is_worker:
        _work_with_others(context, stage, (name, wanted), files, make, on_finished, together)
        return
    work = _recorded(context, stage, files, make)
    for key in wanted:
        world.stop_if_asked()
        on_finished(key, work(key))


def missing_keys(stage: StageDir, files: Mapping[str, Sequence[str]]) -> list[str]:
    """The keys whose work is not done, or was damaged since.

    A chunk's rollout table is written last and says that the chunk is whole; what was written beside it
    before must be too.
    """
    beside: dict[str, list[str]] = {}
    for name in stage.known_names():
        if found := _BESIDE_ROLLOUTS.fullmatch(name):
            table = f"{found['set']}rollouts-{found['number']}.parquet"
            beside.setdefault(table, []).append(name)
    return [
        key
        for key, own in files.items()
        if not all(stage.has(name) for file in own for name in (file, *beside.get(file, ())))
    ]


def _recorded(
    context: RunContext,
    stage: StageDir,
    files: Mapping[str, Sequence[str]],
    make: Callable[[str], Note],
) -> Callable[[str], Note]:
    """``make``, timed and logged; for a worker, unless another has just made the key."""

    def work(key: str) -> Note:
        if context.is_worker and all(map(stage.has, files[key])):
            return {}
        start = time.monotonic()
        note = dict(make(key)) | {"rank": context.world.rank}
        seconds = round(time.monotonic() - start, 4)
        line = {"stage": stage.name, "key": key, "seconds": seconds, "rank": context.world.rank}
        path = context.attempt / f"rank_{context.world.rank}.{WORK_LOG}"
        with path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
        return note | {"seconds": seconds}

    return work


def _work_with_others(
    context: RunContext,
    stage: StageDir,
    named: tuple[str, list[str]],
    files: Mapping[str, Sequence[str]],
    make: Callable[[str], Note],
    on_finished: Callable[[str, Note], None],
    together: GenerationBackend | None,
) -> None:
    """Claim and work, alone or as part of a group."""
    world, (name, wanted) = context.world, named
    group = None
    if together is not None and context.model_parallel_size > 1:
        group = context.model_parallel_group = ModelParallelGroup(
            world, context.model_parallel_size, name
        )
        if not group.is_led_by_me:
            group.follow(make)
            return
    table: LeaseTable = (
        FileLeases(context.run_dir.leases(stage.name), wanted)
        if world.store is None
        else StoreLeases(world.store, name, wanted)
    )

    def boundary() -> None:
        world.raise_if_peer_failed()
        world.stop_if_asked()

    work = _recorded(context, stage, files, make)
    try:
        work_through(
            table,
            wanted,
            f"{world.launch.host}-{os.getpid()}",
            group.leading(work) if group else work,
            rules=Rules(
                context.config.cluster.lease_seconds,
                wait_for_all=not context.is_worker,
                collective_forward=together.collective_forward if together else None,
            ),
            boundary=boundary,
            on_finished=on_finished,
        )
    except Preempted:
        if group:
            group.dismiss(stopped=True)
        raise
    if group:
        group.dismiss(stopped=False)
