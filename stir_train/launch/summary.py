"""A chain of jobs before it is queued, as a table: a line a job."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from stir_train.launch.jobs import Job
from stir_train.launch.site import SiteConfig


def jobs_table(jobs: Sequence[Job], site: SiteConfig) -> Table:
    """What each job asks for, and after which it starts; an array's figures are of one of its tasks."""
    table = Table(box=SIMPLE)
    for column in ("job", "nodes", "GPUs", "processes", "time", "depends on"):
        is_number = column in ("nodes", "GPUs", "processes", "time")
        table.add_column(column, justify="right" if is_number else "left")
    before = ""
    for job in jobs:
        times = f" x {job.array}" if job.array else ""
        others = [stage for stage in job.stages if stage != job.name and not job.array]
        table.add_row(
            f"{job.name}{times}" + "".join(f"\n  and {stage}" for stage in others),
            str(job.nodes),
            str(job.nodes * site.gpus_per_node),
            str(job.nodes * job.tasks_per_node),
            job.time,
            before or "-",
        )
        before = job.name
    return table
