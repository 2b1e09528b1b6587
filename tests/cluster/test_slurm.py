"""The pipeline as jobs on a real Slurm cluster: submitted, interrupted, killed, and complete."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from stir_train.artifacts.run_dir import RunDir
from stir_train.launch.slurm import job_state, submitted_jobs
from tests.cluster.conftest import cluster
from tests.test_ranks import EXACT, ROUNDING, SMOKE, _files, _work_log

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("slurm")]
ROOT = Path(__file__).parents[2]
PROGRAM = Path(sys.executable).with_name("stir-train")
DEADLINE_SECONDS = 900
SETTINGS = ("generation.chunk_completions=8", "train.checkpoint_every_steps=4")


def _stir_train(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    completed = subprocess.run(
        [str(PROGRAM), *arguments], cwd=directory, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed


def _site(directory: Path, **settings: object) -> Path:
    path = directory / "site.yaml"
    path.write_text(json.dumps({"nodes": 2, "time": "00:20:00", **settings}))
    return path


def _submit(directory: Path, site: Path, *arguments: str) -> Path:
    where = f"output_dir={directory}"
    _stir_train(
        directory,
        *arguments[:1],
        str(SMOKE),
        where,
        *SETTINGS,
        *arguments[1:],
        "--submit",
        "--site",
        str(site),
    )
    return directory / "smoke"


def _until(condition: Callable[[], bool], run: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, _logs(run)
        time.sleep(0.1)  # asking Slurm again


def _until_over(run: Path) -> None:
    """Every job of the chain has ended well."""
    last = submitted_jobs(RunDir(run))[-1]

    def is_over() -> bool:
        state = job_state(last.job_id)
        assert state not in ("FAILED", "CANCELLED", "TIMEOUT", "GONE"), _logs(run)
        return state == "COMPLETED"

    _until(is_over, run)


def _logs(run: Path) -> str:
    return "\n".join(
        f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
        for path in sorted((run / "logs" / "slurm").glob("*.out"))
    )


def _chunks(run: Path, stage: str) -> int:
    return len(list((run / stage).glob("rollouts-*.parquet")))


def _pids(run: Path, node: str) -> list[int]:
    """Processes of this run's command on a node, by the environment that Slurm gave them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        ours = str(run).encode() in command and b"python" in command.split(b"\0")[0]
        if ours and f"SLURMD_NODENAME={node}\0".encode() in environment:
            found.append(int(process.name))
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run by one process."""
    directory = tmp_path_factory.mktemp("alone")
    _stir_train(directory, "run", str(SMOKE), f"output_dir={directory}", *SETTINGS)
    return directory / "smoke"


def _require_equal(run: Path, alone: Path) -> None:
    for stage in EXACT:
        assert _files(run, stage) == _files(alone, stage), stage
    one, other = (
        load_file(path / "distill/lora/adapter_model.safetensors") for path in (alone, run)
    )
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < ROUNDING


def _require_nothing_twice(run: Path, *stages: str) -> None:
    made = [item for item in _work_log(run) if item[0] in stages]
    assert len(made) == len(set(made))
    assert {stage for stage, _ in made} == set(stages)


def test_one_command_queues_the_pipeline_and_it_ends_complete(alone: Path, tmp_path: Path) -> None:
    run = _submit(tmp_path, _site(tmp_path), "run")
    again = subprocess.run(
        [str(PROGRAM), "run", str(SMOKE), f"output_dir={tmp_path}", *SETTINGS, "--submit"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert again.returncode == 1
    assert "in the queue already" in again.stderr
    _until_over(run)
    _require_equal(run, alone)
    _require_nothing_twice(run, "rollout", "steer")
    shown = _stir_train(tmp_path, "status", str(run)).stdout
    assert "complete" in shown
    assert shown.count("done") == 10


def test_a_directory_of_any_name_is_written_to_and_no_other(tmp_path: Path) -> None:
    directory = tmp_path / "it's 50%j #x"
    directory.mkdir()
    run = _submit(directory, _site(directory, options={"comment": 'a # "b"'}), "rollout")
    _until_over(run)
    assert (run / "rollout" / "complete").is_file()
    (log,) = (run / "logs" / "slurm").glob("*.out")
    assert log.name == f"rollout-{submitted_jobs(RunDir(run))[0].job_id}.out"


def test_asked_to_stop_in_harvest_and_in_distillation_it_requeues_and_ends_the_same(
    alone: Path, tmp_path: Path
) -> None:
    run = _submit(tmp_path, _site(tmp_path), "run")
    jobs = {job.name: job.job_id for job in submitted_jobs(RunDir(run))}
    _until(lambda: _chunks(run, "rollout") >= 2, run)
    subprocess.run(["scancel", "--signal=USR1", str(jobs["rollout"])], check=True)
    _until(
        lambda: (run / ".progress/distill/checkpoints/student/checkpoint.safetensors").is_file(),
        run,
    )
    subprocess.run(["scancel", "--signal=USR1", str(jobs["distill"])], check=True)
    _until_over(run)
    _require_equal(run, alone)
    _require_nothing_twice(run, "rollout", "steer")
    assert "requeued, restart 1" in _logs(run)


def test_a_killed_rank_and_a_nodes_killed_processes_lose_nothing(
    alone: Path, tmp_path: Path
) -> None:
    run = _submit(tmp_path, _site(tmp_path), "rollout")
    for least in (1, 4):
        _until(lambda least=least: _chunks(run, "rollout") >= least and bool(_pids(run, "n2")), run)
        for pid in _pids(run, "n2"):
            os.kill(pid, signal.SIGKILL)
    _until_over(run)
    assert _files(run, "rollout") == _files(alone, "rollout")
    _require_nothing_twice(run, "rollout")
    assert "exit status 137: requeued" in _logs(run)


def test_a_lost_node_has_the_job_requeued_and_nothing_is_made_twice(
    alone: Path, tmp_path: Path
) -> None:
    run = _submit(tmp_path, _site(tmp_path), "rollout")
    job_id = submitted_jobs(RunDir(run))[0].job_id
    _until(lambda: _chunks(run, "rollout") >= 1 and bool(_pids(run, "n2")), run)
    cluster("lose", "n2")  # its slurmd as well: nobody is left there to say what happened
    _until(lambda: job_state(job_id) == "PENDING", run)
    assert _chunks(run, "rollout") < 12, "found out too late to show anything"
    cluster("up", "2")
    _until_over(run)
    assert _files(run, "rollout") == _files(alone, "rollout")
    _require_nothing_twice(run, "rollout")


def test_an_array_of_workers_then_another_number_of_nodes(alone: Path, tmp_path: Path) -> None:
    run = _submit(tmp_path, _site(tmp_path, array=3), "rollout")
    assert [job.name for job in submitted_jobs(RunDir(run))] == ["rollout-array", "rollout"]
    _until(lambda: _chunks(run, "rollout") >= 1, run)
    cancelled = _stir_train(tmp_path, "cancel", str(run)).stderr
    assert "rollout-array" in cancelled
    jobs = submitted_jobs(RunDir(run))
    _until(lambda: all(job_state(job.job_id) == "CANCELLED" for job in jobs), run)
    made = _chunks(run, "rollout")
    assert made < 12, "cancelled too late to show anything"
    assert "goes on at rollout" in _stir_train(tmp_path, "status", str(run)).stdout
    _submit(tmp_path, _site(tmp_path, nodes=1, tasks_per_node=2), "rollout")
    _until_over(run)
    assert _files(run, "rollout") == _files(alone, "rollout")
    _require_nothing_twice(run, "rollout")


def test_a_failing_job_stops_the_chain_and_status_shows_whose_error(tmp_path: Path) -> None:
    where = f"output_dir={tmp_path}"
    _stir_train(tmp_path, "run", str(SMOKE), where, *SETTINGS, "--only", "rollout")
    damaged = min((tmp_path / "smoke" / "rollout").glob("rollouts-*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    run = _submit(tmp_path, _site(tmp_path), "run")
    jobs = {job.name: job.job_id for job in submitted_jobs(RunDir(run))}
    _until(lambda: job_state(jobs["harvest"]) == "FAILED", run)
    _until(lambda: job_state(jobs["evaluate"]) == "CANCELLED", run)
    shown = " ".join(_stir_train(tmp_path, "status", str(run)).stdout.split())
    assert "rank 0 on n1: ArtifactError" in shown
    assert damaged.name in shown
    assert "mend what failed" in shown


def test_the_plain_scripts_work(alone: Path, tmp_path: Path) -> None:
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    script = ROOT / "slurm/examples/torchrun.sbatch"
    arguments = [str(SMOKE), f"output_dir={tmp_path}", *SETTINGS, "--only", "rollout"]
    completed = subprocess.run(
        ["sbatch", "--parsable", f"--output={tmp_path}/job.out", str(script), *arguments],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    job_id = int(completed.stdout)
    run = tmp_path / "smoke"
    _until(lambda: job_state(job_id) in ("COMPLETED", "FAILED"), run)
    assert job_state(job_id) == "COMPLETED", (tmp_path / "job.out").read_text()[-3000:]
    assert _files(run, "rollout") == _files(alone, "rollout")
