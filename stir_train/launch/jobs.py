"""A run as a chain of SLURM jobs, and their scripts."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.pipeline import STAGES, Stage
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError
from stir_train.launch.site import SiteConfig
from stir_train.runtime.upstream import stages_left_out

TEMPLATE, SUBMISSION = "job.sbatch.j2", "submit.sh.j2"
# In a checkout the templates lie at its top; a wheel carries them beside this module.
INSTALLED, CHECKOUT = Path(__file__).with_name("slurm_files"), Path(__file__).parents[2] / "slurm"


@dataclass(frozen=True)
class Job:
    """One job of the chain.

    Attributes:
        name: Also of its script and log.
        stages: Names of the stages it runs.
        nodes, tasks_per_node, time: Its resources.
        array: Independent workers instead of one job; 0 for none.
    """

    name: str
    stages: tuple[str, ...]
    nodes: int
    tasks_per_node: int
    time: str
    array: int = 0


def plan_jobs(config: RunConfig, site: SiteConfig, stages: Sequence[str]) -> list[Job]:
    """The jobs that make what a run still lacks of some stages, in order.

    Raises:
        ConfigError: If the site gives resources to a job that there is not.
    """
    names = list(dict.fromkeys(stage.job_name for stage in STAGES))
    unknown = sorted(set(site.stages) - set(names))
    if unknown:
        raise ConfigError(f"site: stages: no job {', '.join(unknown)}; jobs: {', '.join(names)}")
    run_dir = RunDir(config.directory)
    skipped = stages_left_out(run_dir, config)
    jobs: list[Job] = []
    for name in names:
        wanted = [
            stage
            for stage in STAGES
            if stage.job_name == name
            and stage.name in stages
            and stage.is_on(config)
            and stage.name not in skipped
            and not run_dir.stage(stage.name).is_complete
        ]
        if wanted:
            jobs += _jobs_of(name, wanted, site)
    return jobs


def _jobs_of(name: str, stages: Sequence[Stage], site: SiteConfig) -> list[Job]:
    """The job that runs some stages, after the array that makes the chunks of its first, if any."""
    made = tuple(stage.name for stage in stages)
    resources = site.stages.get(name)
    is_wide = any(stage.uses_every_node for stage in stages)
    nodes = (resources and resources.nodes) or (site.nodes if is_wide else 1)
    time = (resources and resources.time) or site.time
    jobs = []
    if name == "rollout" and site.array:
        jobs.append(Job("rollout-array", made, 1, 1, time, site.array))
        nodes = 1  # what is left to do is to finish the stage
    return [*jobs, Job(name, made, nodes, site.processes_per_node, time)]


def render_job(job: Job, site: SiteConfig, *, config_file: Path, logs: Path) -> str:
    """A job's sbatch script."""
    program = shlex.split(site.command) if site.command else [_program()]
    verb = [job.stages[0]] if job.array else ["run"]
    words = [*program, *verb, str(config_file.resolve())]
    words += ["--worker"] if job.array else ["--only", ",".join(job.stages)]
    return _template(TEMPLATE).render(
        job=job,
        site=site,
        directives=[shlex.quote(_one_line(word)) for word in _directives(job, site, logs)],
        modules=[shlex.join(module.split()) for module in site.modules],
        directory=_one_line(str(Path.cwd())),
        command=_one_line(shlex.join(words)),
    )


def render_submission(scripts: Sequence[Path]) -> str:
    """A shell script that queues jobs, each to start when the one before it has succeeded."""
    return _template(SUBMISSION).render(scripts=[_one_line(str(script)) for script in scripts])


def _template(name: str) -> Template:
    templates = INSTALLED if INSTALLED.is_dir() else CHECKOUT
    environment = Environment(
        loader=FileSystemLoader(templates),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quoted"] = shlex.quote
    return environment.get_template(name)


def _directives(job: Job, site: SiteConfig, logs: Path) -> list[str]:
    """What sbatch is told; each one word."""
    # sbatch fills in what follows a per cent sign.
    log = str(logs.resolve() / job.name).replace("%", "%%")
    words = [
        f"--job-name={job.name}",
        f"--output={log}-{'%A_%a' if job.array else '%j'}.out",
        "--open-mode=append",
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.tasks_per_node}",
        f"--cpus-per-task={site.cpus_per_task}",
        f"--time={job.time}",
        "--requeue",
        f"--signal=USR1@{site.signal_seconds}",
        "--kill-on-invalid-dep=yes",
        *([f"--array=0-{job.array - 1}"] if job.array else []),
        *site.gpu_words,
    ]
    for name, value in site.options.items():
        option = f"--{name.removeprefix('--')}"
        if value is not False:
            words.append(option if value is True else f"{option}={value}")
    return words


def _one_line(word: str) -> str:
    """A word of the script.

    Raises:
        ConfigError: If it would become lines of the script, or sbatch would read it otherwise.
    """
    if any(sign == "\\" or not sign.isprintable() for sign in word):
        raise ConfigError(
            f"{word!r} cannot stand in a job's script: it holds a line break, a backslash or another "
            "character that sbatch or the shell reads otherwise; rename the directory or the setting"
        )
    return word


def _program() -> str:
    """The `stir-train` beside this interpreter."""
    beside = Path(sys.executable).with_name("stir-train")
    return str(beside) if beside.is_file() else "stir-train"
