"""Launch detection, DeepSpeed settings, job scripts, preflight and estimates: all without torch."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stir_train.artifacts.run_dir import RunDir, StageInputs
from stir_train.config.deepspeed import deepspeed_config
from stir_train.config.learning import TrainConfig
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.distributed.launch import detect_launch, first_count, first_host
from stir_train.errors import ConfigError, DataError, StageError
from stir_train.launch.estimate import estimate, read_shape, shape_of
from stir_train.launch.jobs import plan_jobs, render_job
from stir_train.launch.preflight import EMBEDDED_ROOT, preflight
from stir_train.launch.site import SiteConfig
from stir_train.launch.slurm import scripts_of
from stir_train.launch.status import run_status
from tests.support.commands import stir_train

LLAMA_70B = {
    "hidden_size": 8192,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "intermediate_size": 28672,
    "vocab_size": 128256,
}
ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "tiny" / "smoke.yaml"
TORCHRUN = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "n1",
    "MASTER_PORT": "1234",
    "TORCHELASTIC_RESTART_COUNT": "2",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}
SRUN = {
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "SLURM_STEP_NODELIST": "gpu[003-004]",
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
}


def test_torchrun_srun_and_nothing_are_told_apart() -> None:
    torchrun = detect_launch(TORCHRUN)
    assert (torchrun.rank, torchrun.size, torchrun.local_rank, torchrun.local_size) == (3, 4, 1, 2)
    assert (torchrun.address, torchrun.port, torchrun.restart) == ("n1", 1234, "2")
    assert torchrun.agent_store
    srun = detect_launch(SRUN)
    assert (srun.rank, srun.size, srun.local_rank, srun.local_size) == (9, 16, 1, 8)
    assert srun.address == "gpu003"
    assert 20_000 <= srun.port < 30_000
    assert detect_launch({**SRUN, "MASTER_ADDR": "head", "MASTER_PORT": "5"}).address == "head"
    alone = detect_launch({"SLURM_JOB_ID": "77", "SLURM_PROCID": "0"})
    assert (alone.rank, alone.size, alone.launcher) == (0, 1, "alone")
    with pytest.raises(StageError, match="LOCAL_RANK"):
        detect_launch({k: v for k, v in TORCHRUN.items() if k != "LOCAL_RANK"})


@pytest.mark.parametrize(
    ("listed", "first"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("n[1-4]", "n1"),
        ("gpu[003-006,9],cpu1", "gpu003"),
        ("a[7]-ib,b2", "a7-ib"),
        ("rack1-node02,rack2-node[1-3]", "rack1-node02"),
    ],
)
def test_the_first_host_of_a_slurm_list(listed: str, first: str) -> None:
    assert first_host(listed) == first
    assert first_count("8(x3),4") == 8


def test_a_users_deepspeed_json_is_merged_and_its_conflicts_named(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    train = TrainConfig(zero_stage=2, deepspeed_config=path, gradient_accumulation=2)
    path.write_text(
        json.dumps(
            {
                "gradient_accumulation_steps": "auto",
                "zero_optimization": {"stage": 2, "overlap_comm": True},
                "wall_clock_breakdown": True,
            }
        )
    )
    merged = deepspeed_config(train)
    assert merged["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert merged["wall_clock_breakdown"] is True
    assert merged["gradient_accumulation_steps"] == 2
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, "optimizer": {"type": "Adam"}}))
    with pytest.raises(ConfigError) as caught:
        deepspeed_config(train)
    assert "zero_optimization.stage: 3 contradicts train.zero_stage; it is 2 here" in str(
        caught.value
    )
    assert "optimizer" in str(caught.value)
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        deepspeed_config(train)


def test_bfloat16_without_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="zero_stage 1, 2 or 3"):
        TrainConfig(dtype="bfloat16")


def _config(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_config(RunConfig, SMOKE, [f"output_dir={tmp_path}", *overrides])


def test_the_chain_skips_what_is_done_and_scripts_say_what_the_site_asks_for(
    tmp_path: Path,
) -> None:
    config = _config(tmp_path)
    site = SiteConfig(
        nodes=4,
        gpus_per_node=8,
        array=6,
        stages={"evaluate": {"nodes": 2, "time": "00:30:00"}},
        options={"partition": "gpu"},
        modules=("cuda/12.8",),
        environment={"NOTE": "two words"},
        max_requeues=5,
    )
    everything = [verb for verb in ("rollout", "harvest", "basis", "tune", "evaluate", "report")]
    jobs = plan_jobs(config, site, everything)
    assert [(job.name, job.nodes, job.array) for job in jobs] == [
        ("rollout-array", 1, 6),
        ("rollout", 1, 0),
        ("harvest", 1, 0),
        ("tune", 4, 0),
        ("evaluate", 2, 0),
    ]
    files = scripts_of(config, site, jobs)
    assert load_config(RunConfig, _written(tmp_path, files[0][1])) == config
    array, tune = files[1][1], files[4][1]
    assert "#SBATCH --array=0-5" in array
    assert re.search(r"rollout \S+config.yaml --worker", array)
    for line in (
        "#SBATCH --nodes=4",
        "#SBATCH --ntasks-per-node=8",
        "#SBATCH --gpus-per-node=8",
        "#SBATCH --partition=gpu",
        "module load cuda/12.8",
        "export NOTE='two words'",
        "srun --kill-on-bad-exit=1",
    ):
        assert line in tune, line
    assert "--only tune" in tune
    assert "< 5))" in tune
    for _, text in files[1:]:
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0
    with pytest.raises(ConfigError, match="no job tunes"):
        plan_jobs(config, SiteConfig(stages={"tunes": {"nodes": 1}}), everything)
    with pytest.raises(ValueError, match="settings of their own"):
        SiteConfig(options={"nodes": 3})


def _written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "frozen.yaml"
    path.write_text(text)
    return path


def test_shipped_sites_are_valid_and_render(tmp_path: Path) -> None:
    for path in sorted((ROOT / "slurm" / "sites").glob("*.yaml")):
        site = load_config(SiteConfig, path)
        (job, *_) = plan_jobs(_config(tmp_path), site, ["rollout"])
        assert render_job(job, site, config_file=tmp_path / "c.yaml", logs=tmp_path)
    for path in sorted((ROOT / "slurm" / "examples").glob("*.sbatch")):
        assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0, path


def test_preflight_lists_everything_that_would_fail_at_once(tmp_path: Path) -> None:
    def unreadable(_config: RunConfig) -> None:
        raise DataError("splits ask for 60 problems, the source has 3")

    config = _config(tmp_path, "train.engine=plain", "model.name=embedded/none")
    found = preflight(config, SiteConfig(nodes=2, tasks_per_node=2), read_data=unreadable)
    text = "\n".join(found.problems)
    for expected in ("train.engine", "the source has 3", "embedded/none"):
        assert expected in text
    with pytest.raises(ConfigError, match="nothing was queued"):
        found.require()
    good = preflight(_config(tmp_path), SiteConfig(), read_data=lambda _: None)
    good.require()
    assert good.estimate is not None
    small = SiteConfig(gpus_per_node=1, gpu_memory_gib=0.5)
    tight = preflight(_config(tmp_path), small, read_data=lambda _: None)
    assert any("generation needs up to" in problem for problem in tight.problems)


@pytest.mark.parametrize("name", ["addition", "sorting"])
def test_the_estimates_count_of_weights_is_the_models(name: str) -> None:
    from safetensors import safe_open

    directory = EMBEDDED_ROOT / name
    with safe_open(directory / "model.safetensors", framework="np") as file:
        sizes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    count = 0
    for shape in sizes:
        product = 1
        for side in shape:
            product *= side
        count += product
    assert read_shape(directory, bytes_per_weight=4).num_params == count


LARGE = {
    "llama": (8192, 80, 64, 8, 28672, 128256),
    "qwen2": (5120, 64, 40, 8, 27648, 152064),
    "mistral": (4096, 32, 32, 8, 14336, 32768),
}


@pytest.mark.parametrize("kind", LARGE)
def test_the_estimate_counts_the_weights_of_large_models(kind: str) -> None:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    width, layers, heads, kv_heads, inner, vocab = LARGE[kind]
    config = AutoConfig.for_model(
        kind,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocab,
        tie_word_embeddings=False,
    )
    with init_empty_weights():
        model = AutoModelForCausalLM.from_config(config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert shape_of(config.to_dict(), bytes_per_weight=2).num_params == count


def test_sharding_must_fit_the_site_and_lowers_the_estimate(tmp_path: Path) -> None:
    config = _config(tmp_path, "model.sharding=tensor", "model.shards=4", "train.zero_stage=3")
    odd = preflight(
        config, SiteConfig(nodes=2, tasks_per_node=6, array=3), read_data=lambda _: None
    )
    assert [p.partition(":")[0] for p in odd.problems] == ["model.shards", "array"]
    shape = shape_of(LLAMA_70B, bytes_per_weight=2)
    whole, split = (
        estimate(c, shape, num_ranks=8, on_gpu=True) for c in (_config(tmp_path), config)
    )
    assert split.generate_gib < whole.generate_gib / 3
    assert (whole.num_replicas, split.num_replicas) == (8, 2)
    assert split.hours == pytest.approx(whole.hours)


def test_a_dry_run_with_a_site_shows_a_line_a_job_and_scripts_only_if_asked(
    tmp_path: Path,
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text("{nodes: 2, gpus_per_node: 4, array: 3, stages: {evaluate: {time: 30}}}")
    plan = ("run", str(SMOKE), f"output_dir={tmp_path / 'runs'}", "--dry-run", "--site", str(site))
    shown = stir_train(*plan)
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert ["rollout-array", "x", "3", "1", "4", "1", "04:00:00", "-"] in lines
    assert ["rollout", "1", "4", "4", "04:00:00", "rollout-array"] in lines
    assert lines[lines.index(["and", "basis"]) - 1][0] == "harvest", "every stage is in a job"
    assert any(line[:1] + line[4:5] == ["evaluate", "30"] for line in lines)
    assert "#SBATCH" not in shown.stdout
    whole = stir_train(*plan, "--show-scripts")
    assert whole.stdout.startswith(shown.stdout)
    assert "#SBATCH --job-name=evaluate" in whole.stdout
    assert not (tmp_path / "runs").exists()
    refused = stir_train(*plan[:4], "--show-scripts")
    assert refused.returncode == 1
    assert "--dry-run with --site" in refused.stderr


def test_nothing_that_submits_imports_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from stir_train.cli import main\n"
        "try: main()\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    site = str(ROOT / "slurm" / "sites" / "local.yaml")
    arguments = ["run", str(SMOKE), f"output_dir={tmp_path}", "--site", site]
    arguments += ["--dry-run", "--show-scripts"]
    shown = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("#SBATCH --job-name=") == 8
    assert "GiB of disk" in shown.stderr
    assert "0.0 h" not in shown.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("splits.num_test=99999999", "splits ask for"),
        ("model.name=/nowhere/model", "no directory"),
        ("rollout.num_sample=3", "did you mean 'num_samples'"),
        ("train.engine=plain", "plain trains in one process"),
    ],
)
def test_a_wrong_config_never_reaches_the_queue(
    tmp_path: Path, override: str, expected: str
) -> None:
    # An sbatch that leaves a mark stands first on the path: it must not be called.
    mark, commands = tmp_path / "called", tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "scontrol", "scancel"):
        (commands / name).write_text(f"#!/bin/sh\ntouch {mark}\n")
        (commands / name).chmod(0o755)
    program = shutil.which("stir-train", path=str(Path(sys.executable).parent))
    assert program is not None
    site = ROOT / "slurm" / "sites" / "local.yaml"
    asked = subprocess.run(
        [
            *(program, "run", str(SMOKE), f"output_dir={tmp_path}", override),
            *("--submit", "--site", str(site)),
        ],
        env={"PATH": f"{commands}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 1
    assert expected in asked.stderr
    assert "Traceback" not in asked.stderr
    assert not mark.exists()


def test_status_says_what_is_done_what_failed_and_what_to_do(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(Exception, match="no run here"):
        run_status(run.path)
    run.path.mkdir()
    config = _config(tmp_path, "distill.enabled=false")
    (run.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    attempt = run.new_attempt()
    failure = {"rank": 3, "host": "n2", "kind": "StageError", "message": "out of luck"}
    failure["traceback"] = "where"
    (attempt / "failure.json").write_text(json.dumps(failure))
    found = run_status(run.path)
    states = {stage.name: stage.state for stage in found.stages}
    assert states["rollout"] == "to do"
    assert states["distill"] == "off"
    assert "rank 3 on n2: StageError: out of luck" in found.failure
    assert "goes on at rollout" in found.advice


def test_status_and_inspect_say_where_a_run_ended_and_why(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    config = _config(tmp_path, "distill.enabled=false", "tune.modes=[vector]")
    (run.path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    for name, ends_run in (("rollout", None), ("directions", "no effect: nothing to steer with")):
        run.stage(name).begin(StageInputs(config={}, sources={}))
        run.stage(name).finish({}, ends_run=ends_run)
    found = run_status(run.path)
    assert found.state == "ended"
    assert found.advice.startswith("ended at directions: no effect: nothing to steer with")
    states = {stage.name: stage.state for stage in found.stages}
    assert (states["directions"], states["harvest"], states["tune"]) == ("done", "off", "not made")
    (run.new_attempt() / "failure.json").write_text("{}")
    assert not run_status(run.path).failure, "a run that ended lacks nothing"
    shown = stir_train("inspect", str(run.path))
    assert "ended at directions: no effect: nothing to steer with" in shown.stdout


def test_no_job_is_queued_for_what_an_abstaining_run_leaves_out(tmp_path: Path) -> None:
    config = _config(tmp_path, "distill.also={}")
    tune = RunDir(config.directory).stage("tune")
    tune.begin(StageInputs(config={}, sources={}))
    tune.finish({"mode": "none"})
    jobs = plan_jobs(config, SiteConfig(), ["steer", "distill", "evaluate"])
    assert [job.name for job in jobs] == ["evaluate"]
    plain = _config(tmp_path)  # with a student that plain samples teach
    jobs = plan_jobs(plain, SiteConfig(), ["steer", "distill", "evaluate"])
    assert [job.name for job in jobs] == ["distill", "evaluate"]
