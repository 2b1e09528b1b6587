"""Job scripts that say what was typed, and chains that survive what Slurm and kills do to them."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.load import load_config
from stir_train.config.pipeline import STAGE_NAMES
from stir_train.config.run import RunConfig
from stir_train.errors import ArtifactError, ConfigError, StageError
from stir_train.launch import slurm, slurm_commands
from stir_train.launch.jobs import Job, plan_jobs
from stir_train.launch.site import SiteConfig
from stir_train.launch.status import run_status
from tests.support.commands import stir_train
from tests.support.submitting import SMOKE, submit

SBATCH = """#!/bin/sh
{before}
for word in "$@"; do case $word in --job-name=*) name=${{word#--job-name=}};; esac; done
id=$((100 + $(wc -l < {state}/queue)))
echo "$id|$name" >> {state}/queue
echo "$*" >> {state}/sbatch
{after}
echo $id
{end}
"""
FAKES = {
    "squeue": "cat {state}/queue",
    "scancel": 'echo "$1" >> {state}/cancelled',
    "scontrol": "grep -qx $4 {state}/cancelled && s=CANCELLED || s=PENDING\n"
    'grep -q "^$4|" {state}/queue || {{ echo "slurm_load_jobs error: Invalid job id" >&2; exit 1; }}\n'
    'echo "JobId=$4 JobState=$s Reason=None"',
}
Fake = Callable[..., Path]


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Slurm's commands as scripts over a few files; some of them replaced, or sbatch added to."""
    state, commands = tmp_path / "state", tmp_path / "bin"
    state.mkdir()
    commands.mkdir()
    for name in ("queue", "cancelled", "sbatch"):
        (state / name).touch()
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")

    def install(before: str = "", after: str = "", end: str = "", **replaced: str) -> Path:
        texts = {name: f"#!/bin/sh\n{text}\n" for name, text in (FAKES | replaced).items()}
        for name, text in {"sbatch": SBATCH, **texts}.items():
            path = commands / name
            path.write_text(text.format(state=state, before=before, after=after, end=end))
            path.chmod(0o755)
        return state

    return install


def _script(directory: Path, site: SiteConfig) -> str:
    config = load_config(RunConfig, SMOKE, [f"output_dir={json.dumps(str(directory))}"])
    job = Job("rollout", ("rollout",), 1, 1, site.time)
    return slurm.scripts_of(config, site, [job])[1][1]


def _directives(script: str) -> list[str]:
    """As sbatch reads them: words of the shell, a line each."""
    lines = [line for line in script.splitlines() if line.startswith("#SBATCH ")]
    words = [shlex.split(line.removeprefix("#SBATCH "), comments=True) for line in lines]
    assert all(len(word) == 1 for word in words), words
    return [word[0] for word in words]


def test_settings_of_a_site_stand_in_the_script_as_they_were_typed(tmp_path: Path) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(
        "time: 16:00:00\noptions:\n  exclusive: true\n  contiguous: false\n  begin: 16:00:00\n"
        '  mem: 0\n  account: 007\n  qos: on\n  comment: "a # it\'s"\n  --reservation: x y\n'
        'environment: {OMP_NUM_THREADS: 1, NOTE: "a\'b $X"}\nmodules: [gcc/12 cuda]\n'
        "cpus_per_task: 3\ncommand: /opt/my env/stir-train\n"
    )
    script = _script(tmp_path / "two words", load_config(SiteConfig, path))
    directives = _directives(script)
    for expected in [
        "--time=16:00:00",
        "--exclusive",
        "--begin=16:00:00",
        "--mem=0",
        "--account=007",
        "--qos=on",
    ]:
        assert expected in directives
    assert "--comment=a # it's" in directives
    assert "--reservation=x y" in directives
    assert f"--output={tmp_path}/two words/smoke/logs/slurm/rollout-%j.out" in directives
    assert not any("contiguous" in word for word in directives)
    assert "module load gcc/12 cuda\n" in script
    assert "srun --kill-on-bad-exit=1 --cpus-per-task=3 " in script
    exported = script[script.index("export OMP") : script.index("cd ")]
    shown = subprocess.run(
        ["bash", "-c", f'{exported}\nprintf %s "$OMP_NUM_THREADS$NOTE"'],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "1a'b $X"


def test_a_per_cent_sign_in_the_directory_is_no_pattern_of_sbatch(tmp_path: Path) -> None:
    (output,) = (
        word
        for word in _directives(_script(tmp_path / "50%j", SiteConfig()))
        if word.startswith("--output")
    )
    assert output == f"--output={tmp_path}/50%%j/smoke/logs/slurm/rollout-%j.out"


@pytest.mark.parametrize("name", ["a\n#SBATCH --x", "a\nrm b", "a\\b", "a\rb", "a\u2028b"])
def test_a_directory_that_would_be_lines_of_the_script_is_refused(
    tmp_path: Path, name: str
) -> None:
    with pytest.raises(ConfigError, match="cannot stand in a job's script"):
        _script(tmp_path / name, SiteConfig())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"time": "1:00\nrm x"}, "time: expected"),
        ({"time": "soon"}, "time: expected"),
        ({"stages": {"tune": {"time": "1\n"}}}, "stages.tune.time: expected"),
        ({"options": {"a b": "x"}}, "options.a b: expected"),
        ({"options": {"qos\nrm": "x"}}, "options.qos"),
        ({"options": {"qos": "x\nrm"}}, "options.qos: expected"),
        ({"options": {"qos": None}}, "options.qos: expected"),
        ({"options": {"prefer": 1.5}}, "in quotes it is text"),
        ({"options": {"output": "x"}}, "settings of their own"),
        ({"environment": {"A=1; rm x #": "1"}}, "environment.A=1; rm x #: expected"),
        ({"environment": {"A\nrm": "1"}}, "environment.A"),
        ({"environment": {"A": True}}, "environment.A: expected"),
        ({"environment": {"A": "1\n#SBATCH --x"}}, "environment.A: expected"),
        ({"modules": ["a\nrm"]}, "modules.0: expected"),
        ({"gpu_option": "--gres={num_gpu}"}, "no placeholder {num_gpu}; did you mean {num_gpus}?"),
        ({"gpu_option": "--gres={num_gpus:999999999}"}, "no placeholder"),
        ({"gpu_option": "--gres={num_gpus.real}"}, "no placeholder"),
        ({"gpu_option": "--gres={}"}, "no placeholder"),
        ({"gpu_option": "--gres={"}, "gpu_option or command"),
        ({"gpu_option": "--gres=a\n#SBATCH --x"}, "gpu_option: expected"),
        ({"command": "'stir-train"}, "gpu_option or command"),
        ({"nodes": True}, "nodes: expected a whole number"),
    ],
)
def test_a_site_that_would_write_lines_of_its_own_is_refused(
    tmp_path: Path, settings: dict[str, object], expected: str
) -> None:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError) as caught:
        load_config(SiteConfig, path)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "noise", [{"after": "echo '* MAINTENANCE 7 *'"}, {"after": "echo 42 jobs"}, {"end": "echo bye"}]
)
def test_a_banner_does_not_hide_the_id(tmp_path: Path, fake: Fake, noise: dict[str, str]) -> None:
    state = fake(**noise)
    _, jobs = submit(tmp_path)
    assert [job.job_id for job in jobs] == [100, 101, 102, 103]
    submitted = (state / "sbatch").read_text().splitlines()
    assert "--dependency=afterok:102" in submitted[3]


def test_an_id_that_is_not_told_is_found_by_the_jobs_name(tmp_path: Path, fake: Fake) -> None:
    fake(after="id=sorry")
    run_dir, jobs = submit(tmp_path)
    assert [job.job_id for job in jobs] == [100, 101, 102, 103]
    assert slurm.submitted_jobs(run_dir) == jobs


def test_a_submission_killed_at_any_job_is_known_and_never_doubled(
    tmp_path: Path, fake: Fake
) -> None:
    for number in (1, 2, 4):
        directory = tmp_path / str(number)
        # sbatch has queued the job and takes the process that waits for its id with it.
        state = fake(after=f"[ $(wc -l < {tmp_path}/state/queue) -lt {number} ] || kill -9 $PPID")
        (state / "queue").write_text("")
        (state / "cancelled").write_text("")
        code = (
            "from pathlib import Path; from tests.support.submitting import submit; "
            f"submit(Path({str(directory)!r}))"
        )
        killed = subprocess.run(["/usr/bin/env", _python(), "-c", code], check=False)
        assert killed.returncode == -9
        run_dir = RunDir(directory / "smoke")
        expected = list(range(100, 100 + number))
        assert [job.job_id for job in slurm.submitted_jobs(run_dir)] == expected
        assert "in the queue" in run_status(run_dir.path).advice
        fake()
        with pytest.raises(StageError, match="in the queue already: 100"):
            submit(directory)
        assert [job.job_id for job in slurm.cancel(run_dir)] == expected
        assert (state / "cancelled").read_text().split() == [str(i) for i in reversed(expected)]
        assert slurm.cancel(run_dir) == []
        assert len(submit(directory)[1]) == 4


def _python() -> str:
    import sys

    return sys.executable


def test_what_was_taken_of_a_refused_chain_is_cancelled(tmp_path: Path, fake: Fake) -> None:
    state = fake(
        before=f"[ $(wc -l < {tmp_path}/state/queue) -lt 2 ] || {{ echo full >&2; exit 1; }}"
    )
    with pytest.raises(StageError, match=r"refused .*full; cancelled again: 100 .*, 101"):
        submit(tmp_path)
    assert (state / "cancelled").read_text().split() == ["101", "100"]
    fake(
        before=f"[ $(wc -l < {tmp_path}/state/queue) -lt 4 ] || {{ echo full >&2; exit 1; }}",
        scancel="exit 1",
    )
    with pytest.raises(StageError, match="could not be cancelled: 103"):
        submit(tmp_path)


def test_a_controller_that_is_down_is_said_and_not_waited_for(
    tmp_path: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake()
    run_dir, _ = submit(tmp_path)
    monkeypatch.setattr(slurm_commands, "QUERY_SECONDS", 0.2)
    monkeypatch.setattr(slurm_commands, "CHANGE_SECONDS", 0.2)
    fake(scontrol="exec sleep 600", before="exec sleep 600", squeue="exec sleep 600")
    found = run_status(run_dir.path)
    assert "scontrol gave no answer within 0.2 s" in found.queue
    assert found.stages[0].job == "100 unknown"
    assert "ask again" in found.advice
    with pytest.raises(StageError, match="no answer"):
        slurm.cancel(run_dir)
    with pytest.raises(StageError, match="no answer"):
        submit(tmp_path)  # whether its jobs are in the queue is not known
    with pytest.raises(StageError, match="nothing else is queued"):
        submit(tmp_path / "other")
    found = run_status(tmp_path / "other" / "smoke")
    assert "no answer" in found.queue
    assert all(not stage.job for stage in found.stages)


def test_a_damaged_record_of_the_chain_is_not_an_empty_one(tmp_path: Path, fake: Fake) -> None:
    fake()
    run_dir, _ = submit(tmp_path)
    record = run_dir.path / "slurm" / "jobs.json"
    for damage in (b"", record.read_bytes()[:-20], b"{}", b'[{"name": 3}]'):
        record.write_bytes(damage)
        for use in (slurm.submitted_jobs, slurm.cancel):
            with pytest.raises(ArtifactError, match="which jobs of this run"):
                use(run_dir)


def test_two_submissions_at_once_queue_one_chain(tmp_path: Path, fake: Fake) -> None:
    fake()
    config = load_config(RunConfig, SMOKE, [f"output_dir={tmp_path}"])
    with (
        RunDir(config.directory / "slurm").locked(),
        pytest.raises(ArtifactError, match="in use by another"),
    ):
        submit(tmp_path)
    run_dir, _ = submit(tmp_path)
    assert not list(run_dir.path.rglob("*.partial"))


def _written(folder: Path, directory: Path, *more: str) -> subprocess.CompletedProcess[str]:
    site = folder.parent / "site.yaml"
    site.write_text("{nodes: 2, array: 3, options: {partition: gpu}}")
    plan = ["run", str(SMOKE), f"output_dir={json.dumps(str(directory))}", "--dry-run", *more]
    return stir_train(*plan, "--site", str(site), "--scripts-to", str(folder))


def test_scripts_in_a_folder_are_those_that_submit_writes_and_queue_the_same_chain(
    tmp_path: Path, fake: Fake
) -> None:
    state = fake(after="echo '* MAINTENANCE 7 *'", end="echo bye")
    folder, directory = tmp_path / "two words", tmp_path / "runs"
    written = _written(folder, directory)
    assert written.returncode == 0, written.stderr
    assert f"bash '{folder}/submit.sh'" in written.stderr
    assert not directory.exists(), "a dry run makes no run directory"
    assert (folder / "logs").is_dir(), "Slurm does not make the folder of a job's log"
    config = load_config(RunConfig, SMOKE, [f"output_dir={json.dumps(str(directory))}"])
    assert load_config(RunConfig, folder / "config.yaml") == config
    site = load_config(SiteConfig, tmp_path / "site.yaml")
    jobs = plan_jobs(config, site, STAGE_NAMES)
    submitted = slurm.scripts_of(config, site, jobs)
    own = f"{config.directory}/slurm/config.yaml"
    for path, text in submitted[1:]:
        expected = text.replace(f"{config.directory}/logs/slurm", f"{folder}/logs")
        expected = expected.replace(own, f"{folder}/config.yaml").replace("'", "")
        assert (folder / path.name).read_text().replace("'", "") == expected

    done = subprocess.run(
        ["bash", str(folder / "submit.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    asked = (state / "sbatch").read_text().splitlines()
    assert [line.rpartition("/")[2] for line in asked] == [path.name for path, _ in submitted[1:]]
    waits = [word for line in asked for word in line.split() if word.startswith("--dependency")]
    assert waits == [f"--dependency=afterok:{100 + i}" for i in range(len(jobs) - 1)]


def test_a_refused_job_ends_a_chain_that_is_queued_by_hand(tmp_path: Path, fake: Fake) -> None:
    assert _written(tmp_path / "jobs", tmp_path / "runs").returncode == 0
    state = fake(
        before=f"[ $(wc -l < {tmp_path}/state/queue) -lt 2 ] || {{ echo full >&2; exit 1; }}"
    )
    done = subprocess.run(
        ["bash", str(tmp_path / "jobs" / "submit.sh")], capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "full" in done.stderr
    assert len((state / "queue").read_text().splitlines()) == 2


def test_scripts_are_written_only_whole_checked_and_into_a_new_folder(tmp_path: Path) -> None:
    folder, directory = tmp_path / "jobs", tmp_path / "runs"
    refused = _written(folder, directory, "splits.num_test=99999999")
    assert refused.returncode == 1
    assert not folder.exists(), "a chain that would fail leaves no scripts"
    assert _written(folder, directory).returncode == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = _written(folder, directory, "seed=7")
    assert again.returncode == 1
    assert "new or empty folder" in again.stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    alone = stir_train("run", str(SMOKE), "--scripts-to", str(tmp_path / "other"))
    assert alone.returncode == 1
    assert "--dry-run with --site" in alone.stderr
