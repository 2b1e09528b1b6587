"""Make a stage's files with however many processes there are: each file is made once, whole."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping

from stir_train.artifacts.run_dir import StageDir
from stir_train.distributed.claims import ClaimTable, FileClaims, Note, StoreClaims
from stir_train.distributed.work_queue import work_through
from stir_train.recipes.context import RunContext

WORK_LOG = "work.jsonl"


def make_missing(
    context: RunContext,
    stage: StageDir,
    files: Mapping[str, str],
    make: Callable[[str], Note],
    hear: Callable[[str, Note], None],
) -> None:
    """Make what a stage lacks; return when all of it is there. Collective.

    Alone, keys are made in order. In a launch, ranks claim keys in its store; as a worker, in files
    beside the run, and it returns when nothing is left to claim.

    Args:
        context: The run.
        stage: Holds the files.
        files: Key to the file that is there when the key's work is done, in order.
        make: Makes one key's files and returns its figures.
        hear: Called once for every key, whoever made it; with no figures if it was there before.

    Raises:
        Preempted: At a boundary between keys, if the run was asked to stop.
    """
    world = context.world
    name = f"{stage.name}/{context.next_work_number()}"
    wanted = list(files)
    if not context.is_worker:
        wanted = world.on_main(
            f"missing {name}", lambda: [key for key in files if not stage.has(files[key])]
        )
    lacking = set(wanted)
    for key in files:
        if key not in lacking:
            hear(key, {})

    def work(key: str) -> Note:
        if context.is_worker and stage.has(files[key]):
            return {}
        start = time.monotonic()
        note = dict(make(key)) | {"rank": world.rank}
        seconds = round(time.monotonic() - start, 4)
        _log_work(
            context, {"stage": stage.name, "key": key, "seconds": seconds, "rank": world.rank}
        )
        return note | {"seconds": seconds}

    if world.store is None and not context.is_worker:
        for key in wanted:
            world.stop_if_asked()
            hear(key, work(key))
        return
    table: ClaimTable = (
        FileClaims(context.run_dir.claims(stage.name), wanted)
        if world.store is None
        else StoreClaims(world.store, name, wanted)
    )

    def boundary() -> None:
        world.raise_if_peer_failed()
        world.stop_if_asked()

    work_through(
        table,
        wanted,
        f"{world.launch.host}-{os.getpid()}",
        work,
        lease_seconds=context.config.cluster.lease_seconds,
        boundary=boundary,
        hear=hear,
        wait_for_all=not context.is_worker,
    )


def _log_work(context: RunContext, line: dict[str, object]) -> None:
    """Append to this rank's own record of what it made."""
    path = context.attempt / f"rank_{context.world.rank}.{WORK_LOG}"
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")
