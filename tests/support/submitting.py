"""A chain of jobs put into a queue, by what imports no torch: a process that does nothing else starts soon."""

from __future__ import annotations

from pathlib import Path

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.launch import slurm
from stir_train.launch.jobs import plan_jobs
from stir_train.launch.site import SiteConfig

SMOKE = Path(__file__).parents[2] / "configs" / "tiny" / "smoke.yaml"


def submit(directory: Path) -> tuple[RunDir, list[slurm.SubmittedJob]]:
    """Submit four stages of the smoke run as jobs."""
    config = load_config(RunConfig, SMOKE, [f"output_dir={directory}"])
    jobs = plan_jobs(config, SiteConfig(), ["rollout", "harvest", "tune", "evaluate"])
    run_dir = RunDir(config.directory)
    return run_dir, slurm.submit(run_dir, jobs, slurm.scripts_of(config, SiteConfig(), jobs))
