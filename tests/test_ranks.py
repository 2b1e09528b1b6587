"""Real ranks: the same artifacts for any number of them, ZeRO stages, resumption, death."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stir_train.tools.compare import read_results
from tests.support.ranks import outputs, run_ranks, start_ranks

SUPPORT = Path(__file__).parent / "support"
SMALLER = (
    "generation.chunk_completions=16",
    "splits={num_harvest: 24, num_tune: 24, num_test: 12}",
    "distill.also={}",
)
"""Than the smoke run: six chunks of rollouts, three of samples for the student."""
FIT_ROUNDING, LOSS_ROUNDING = 1e-3, 3e-5
"""Of parameters that moved by up to 4e-2 in eight steps of Adam, which magnifies rounding where a gradient
is near zero; and of losses, relative, which show a wrong scale that Adam would hide."""
ROUNDING = 2e-4
"""Of an adapter that a whole run distilled."""


def _fit(
    directory: Path, name: str, size: int, settings: dict[str, object], *more: str
) -> list[int]:
    argv = [str(SUPPORT / "fit_ranks.py"), str(directory / f"{name}.safetensors")]
    return run_ranks(size, [*argv, json.dumps(settings), *more], directory / f"{name}.log")


def _difference(directory: Path, one: str, other: str) -> float:
    a, b = (load_file(directory / f"{name}.safetensors") for name in (one, other))
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a if k != "losses")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what one process learns."""
    directory = tmp_path_factory.mktemp("fit")
    assert _fit(directory, "plain", 1, {}) == [0], outputs(1, directory / "plain.log")
    learned = load_file(directory / "plain.safetensors")
    assert (
        max(float(v.abs().max()) for k, v in learned.items() if "lora_B" in k) > 20 * FIT_ROUNDING
    )
    return directory


@pytest.mark.parametrize(
    "stage",
    [0, 2, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)],
)
def test_two_ranks_under_zero_learn_what_one_process_learns(plain: Path, stage: int) -> None:
    name = f"zero{stage}"
    # Batches of five over two ranks, and a last one of one: shares differ, one is empty.
    settings = {"zero_stage": stage, "gradient_accumulation": 1 + stage % 2}
    assert _fit(plain, name, 2, settings) == [0, 0], outputs(2, plain / f"{name}.log")
    assert _difference(plain, "plain", name) < FIT_ROUNDING
    # Adam hides a wrong scale of the loss in the parameters; the losses do not.
    one, other = (load_file(plain / f"{n}.safetensors")["losses"] for n in ("plain", name))
    torch.testing.assert_close(one, other, rtol=LOSS_ROUNDING, atol=0.0)


@pytest.mark.slow
def test_chunks_of_a_sharded_output_layer_are_learned_from_in_step(plain: Path) -> None:
    """No weight is small enough to be kept: every call of the layer gathers it, on both ranks."""
    overrides = plain / "gather-all.json"
    overrides.write_text('{"zero_optimization": {"stage3_param_persistence_threshold": 0}}')
    settings = {"zero_stage": 3, "deepspeed_config": str(overrides)}
    assert _fit(plain, "gather", 2, settings) == [0, 0], outputs(2, plain / "gather.log")
    assert _difference(plain, "plain", "gather") < FIT_ROUNDING
    one, other = (load_file(plain / f"{n}.safetensors")["losses"] for n in ("plain", "gather"))
    torch.testing.assert_close(one, other, rtol=LOSS_ROUNDING, atol=0.0)


@pytest.mark.slow
def test_bfloat16_under_zero_descends(plain: Path) -> None:
    settings = {"zero_stage": 2, "dtype": "bfloat16"}
    assert _fit(plain, "bf16", 2, settings) == [0, 0], outputs(2, plain / "bf16.log")
    full, half = (load_file(plain / f"{n}.safetensors")["losses"] for n in ("plain", "bf16"))
    torch.testing.assert_close(full, half, rtol=0.05, atol=0.0)


@pytest.mark.parametrize(
    ("before", "after", "like"),
    [
        ((1, {}), (1, {}), "plain"),
        pytest.param((2, {"zero_stage": 2}), (2, {"zero_stage": 2}), "", marks=pytest.mark.slow),
        pytest.param((2, {"zero_stage": 3}), (2, {"zero_stage": 3}), "", marks=pytest.mark.slow),
        pytest.param((2, {"zero_stage": 1}), (1, {}), "plain", marks=pytest.mark.slow),
        pytest.param((1, {}), (2, {"zero_stage": 3}), "plain", marks=pytest.mark.slow),
        pytest.param(
            (3, {"zero_stage": 2}), (2, {"zero_stage": 0}), "plain", marks=pytest.mark.slow
        ),
    ],
)
def test_a_fit_that_is_stopped_goes_on_to_the_same_end(
    plain: Path,
    before: tuple[int, dict[str, object]],
    after: tuple[int, dict[str, object]],
    like: str,
) -> None:
    """Bit for bit under the same engine and ranks; to rounding under others."""
    shutil.rmtree(plain / "checkpoint", ignore_errors=True)
    checkpoint = str(plain / "checkpoint")
    (size, settings), (new_size, new_settings) = before, after
    if not like:
        assert not any(_fit(plain, "whole", size, settings))
    stopped = _fit(plain, "stopped", size, settings, checkpoint, "4")
    assert all(stopped), "every rank leaves when one is asked to"
    assert not (plain / "stopped.safetensors").exists()
    ended = _fit(plain, "resumed", new_size, new_settings, checkpoint)
    assert not any(ended), outputs(new_size, plain / "resumed.log")
    exact = before == after
    assert _difference(plain, like or "whole", "resumed") <= (0.0 if exact else FIT_ROUNDING)
    one, other = (
        load_file(plain / f"{name}.safetensors")["losses"] for name in ("plain", "resumed")
    )
    torch.testing.assert_close(one, other, rtol=LOSS_ROUNDING, atol=0.0)


def test_a_basis_is_the_same_bytes_for_any_number_of_ranks(tmp_path: Path) -> None:
    program = str(SUPPORT / "select_ranks.py")
    digests = set()
    for size in (1, 3):
        output = tmp_path / f"{size}.safetensors"
        ended = run_ranks(size, [program, str(output)], tmp_path / f"log{size}")
        assert not any(ended), outputs(size, tmp_path / f"log{size}")
        digests.add(output.read_bytes())
    assert len(digests) == 1


ROOT = Path(__file__).parents[1]
SMOKE = ROOT / "configs" / "tiny" / "smoke.yaml"
EXACT = ("rollout", "harvest", "basis", "validate")
TRAINED = ("value", "tune", "steer", "distill", "evaluate")


def _run(size: int, directory: Path, *arguments: str, verb: str = "run") -> list[int]:
    argv = ["-m", "stir_train", verb, str(SMOKE)]
    more = [f"output_dir={directory}", *SMALLER, *arguments]
    return run_ranks(size, [*argv, *more], directory / f"log{size}")


def _files(run: Path, stage: str) -> dict[str, str]:
    manifest = json.loads((run / stage / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def _work_log(run: Path) -> list[tuple[str, str]]:
    lines = [
        json.loads(line)
        for path in (run / "logs").rglob("*.work.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [(line["stage"], line["key"]) for line in lines]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smoke run by one process."""
    directory = tmp_path_factory.mktemp("alone")
    assert _run(1, directory) == [0], outputs(1, directory / "log1")
    return directory / "smoke"


@pytest.mark.slow
@pytest.mark.parametrize("size", [3])
def test_any_number_of_ranks_gives_equal_artifacts(alone: Path, tmp_path: Path, size: int) -> None:
    assert _run(size, tmp_path) == [0] * size, outputs(size, tmp_path / f"log{size}")
    run = tmp_path / "smoke"
    for stage in EXACT:
        assert _files(run, stage) == _files(alone, stage), stage
    for stage in TRAINED:
        assert _files(run, stage).keys() == _files(alone, stage).keys(), stage
    one, other = (
        load_file(path / "distill/lora/adapter_model.safetensors") for path in (alone, run)
    )
    assert max(float((one[k] - other[k]).abs().max()) for k in one) < ROUNDING
    results = [
        {row.name: row.metrics.accuracy for row in read_results(path).methods}
        for path in (alone, run)
    ]
    assert results[0] == results[1]
    chunks = [item for item in _work_log(run) if item[0] in ("rollout", "steer")]
    assert len(chunks) == len(set(chunks)) == 6 + 3


@pytest.mark.slow
def test_a_killed_rank_loses_nothing_and_other_numbers_of_ranks_go_on(
    alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "smoke"
    argv = ["-m", "stir_train", "rollout", str(SMOKE)]
    argv += [f"output_dir={tmp_path}", *SMALLER]
    ranks = start_ranks(3, argv, tmp_path / "killed")
    deadline = time.monotonic() + 120
    while not len(list(run.glob("rollout/rollouts-*.parquet"))) >= 2:
        assert time.monotonic() < deadline, outputs(3, tmp_path / "killed")
        time.sleep(0.02)  # watching for files, not waiting out a race
    ranks[1].send_signal(signal.SIGKILL)
    # A launcher would end the others; here they are asked to, as srun does.
    for rank in (ranks[0], ranks[2]):
        rank.send_signal(signal.SIGTERM)
    statuses = [rank.wait(timeout=120) for rank in ranks]
    assert statuses[1] == -signal.SIGKILL
    assert {statuses[0], statuses[2]} <= {75, 0}, outputs(3, tmp_path / "killed")
    made = _work_log(run)
    assert _run(2, tmp_path, verb="rollout") == [0, 0], outputs(2, tmp_path / "log2")
    assert _files(run, "rollout") == _files(alone, "rollout")
    again = _work_log(run)
    assert len(again) == len(set(again)), "nothing is done twice"
    # The killed rank may have written a chunk and not its line of the log.
    assert len(again) >= 5
    assert len(made) >= 1


@pytest.mark.slow
def test_workers_that_share_only_the_disk_make_each_chunk_once(alone: Path, tmp_path: Path) -> None:
    argv = ["-m", "stir_train", "rollout", str(SMOKE), "--worker"]
    argv += [f"output_dir={tmp_path}", *SMALLER]
    workers = [start_ranks(1, argv, tmp_path / f"worker{i}")[0] for i in range(3)]
    for number, worker in enumerate(workers):
        assert worker.wait(timeout=240) == 0, outputs(1, tmp_path / f"worker{number}")
    run = tmp_path / "smoke"
    assert not (run / "rollout" / "complete").exists()
    assert sorted(_work_log(run)) == [("rollout", f"{i:05d}") for i in range(6)]
    assert _run(1, tmp_path, verb="rollout") == [0], outputs(1, tmp_path / "log1")
    assert _files(run, "rollout") == _files(alone, "rollout")
    assert len(_work_log(run)) == 6


@pytest.mark.slow
def test_a_failing_rank_stops_the_others_and_its_error_is_the_one_kept(tmp_path: Path) -> None:
    statuses = _run(2, tmp_path, "model.name=embedded/none", verb="rollout")
    assert all(statuses)
    failure = json.loads((tmp_path / "smoke/logs/attempt_1/failure.json").read_text())
    assert failure["kind"] == "ModelError"
    assert "no embedded model" in failure["message"]


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"],
    "accelerate": [
        *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"),
        *("--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--module"),
    ],
    "deepspeed": [
        *("-m", "deepspeed.launcher.runner", "--num_accelerators=2", "--no_local_rank"),
        *("--launcher=local", "--module"),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAUNCHERS)
def test_every_launcher_starts_ranks_that_share_the_work(
    alone: Path, tmp_path: Path, name: str
) -> None:
    argv = [sys.executable, *LAUNCHERS[name], "stir_train", "rollout", str(SMOKE)]
    argv += [f"output_dir={tmp_path}", *SMALLER]
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "smoke"
    assert _files(run, "rollout") == _files(alone, "rollout")
    logs = {path.name for path in (run / "logs").rglob("*.work.jsonl")}
    assert logs == {"rank_0.work.jsonl", "rank_1.work.jsonl"}
