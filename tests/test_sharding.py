"""Models that ranks hold together: the same completions as from a whole model, stage after stage."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.distributed import HashStore  # type: ignore[attr-defined]  # re-exported silently

from stir_train.artifacts.tables import load_table
from stir_train.config.inputs import ModelConfig
from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.config.steering import MODES
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.distributed.launch import Launch
from stir_train.distributed.model_parallel import ModelParallelGroup
from stir_train.distributed.preemption import StopRequest
from stir_train.distributed.world import World
from stir_train.errors import ConfigError, ModelError, StageError
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.steering.controller import BasisController
from stir_train.types.rollout import GradedRollout, Prompt, Rollout
from tests.support import bases
from tests.support.ranks import outputs, run_ranks, start_ranks

SMOKE = Path(__file__).parents[1] / "configs" / "tiny" / "smoke.yaml"
SMALL = (
    "splits={num_harvest: 12, num_tune: 6, num_test: 8}",
    "generation.chunk_completions=8",
    "validation={num_rounds: 1, trials_per_round: 24, strengths: [3.0]}",
    "value.num_steps=20",
    "evaluate={controls: false, num_bootstrap: 100}",
    "distill={num_steps: 4, also: {}}",
    "train.zero_stage=3",
    # On so few problems tuning may abstain, and then there is no student.
    "tune.enabled=false",
)
TENSOR = ("model.sharding=tensor", "model.shards=2")
ZERO3 = ("model.sharding=zero3",)
ROUNDING = 1e-3
"""Of states of norm 10 and more, whose sums over heads are split and added in another order."""


def _arguments(directory: Path, verb: str, *more: str) -> list[str]:
    argv = ["-m", "stir_train", verb, str(SMOKE), f"output_dir={directory}"]
    return [*argv, *SMALL, *more]


def _run(size: int, directory: Path, verb: str, *more: str) -> None:
    log = directory / f"log{size}"
    ended = run_ranks(size, _arguments(directory, verb, *more), log)
    assert not any(ended), outputs(size, log)


def _tokens(run: Path, folder: str) -> list[tuple[str, int, tuple[int, ...]]]:
    return [
        (g.rollout.prompt_id, g.rollout.sample, tuple(g.rollout.token_ids))
        for path in sorted((run / folder).glob("rollouts-*.parquet"))
        for g in load_table(path, GradedRollout)
    ]


def _made(run: Path) -> list[tuple[str, str]]:
    lines = [
        json.loads(line)
        for path in (run / "logs").rglob("*.work.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [(line["stage"], line["key"]) for line in lines if line["stage"] == "rollout"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process that holds the whole model."""
    directory = tmp_path_factory.mktemp("whole")
    _run(1, directory, "run")
    return directory / "smoke"


def _require_same_rollouts(run: Path, whole: Path) -> None:
    assert _tokens(run, "rollout") == _tokens(whole, "rollout")
    for path in sorted((whole / "rollout").glob("states-*.safetensors")):
        expected, found = load_file(path), load_file(run / "rollout" / path.name)
        for name in ("rollout", "point", "token_index", "token_id"):
            assert expected[name].tolist() == found[name].tolist()
        blocks = [name for name in expected if name.startswith("states.block_")]
        assert blocks
        for name in blocks:
            assert float((expected[name] - found[name]).abs().max()) < ROUNDING
    made = _made(run)
    assert len(made) == len(set(made)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [TENSOR, ZERO3], ids=["tensor", "zero3"])
def test_two_ranks_that_hold_a_model_together_run_the_pipeline(
    whole: Path, tmp_path: Path, sharding: tuple[str, ...]
) -> None:
    _run(2, tmp_path, "run", *sharding)
    run = tmp_path / "smoke"
    _require_same_rollouts(run, whole)
    for method in ("greedy", "lora-student"):
        expected = _tokens(whole, f"evaluate/{method}")
        assert expected
        assert _tokens(run, f"evaluate/{method}") == expected, method
    verified = json.loads((run / "distill" / "manifest.json").read_text())["summary"]
    assert verified["effect"] > 0


@pytest.mark.slow
def test_two_model_parallel_groups_share_the_work(whole: Path, tmp_path: Path) -> None:
    _run(4, tmp_path, "rollout", *TENSOR)
    _require_same_rollouts(tmp_path / "smoke", whole)
    logs = {path.name for path in (tmp_path / "smoke" / "logs").rglob("*.work.jsonl")}
    assert logs == {"rank_0.work.jsonl", "rank_2.work.jsonl"}, "the first of each group writes"


@pytest.mark.slow
@pytest.mark.parametrize("sharding", [TENSOR, ZERO3], ids=["tensor", "zero3"])
def test_ranks_that_hold_a_model_together_leave_together_and_others_go_on(
    whole: Path, tmp_path: Path, sharding: tuple[str, ...]
) -> None:
    run, log = tmp_path / "smoke", tmp_path / "stopped"
    ranks = start_ranks(2, _arguments(tmp_path, "rollout", *sharding), log)
    deadline = time.monotonic() + 120
    while not any(run.glob("rollout/rollouts-*.parquet")):
        assert time.monotonic() < deadline, outputs(2, log)
        time.sleep(0.02)  # watching for a file, not waiting out a race
    ranks[1].send_signal(signal.SIGTERM)
    assert [rank.wait(timeout=120) for rank in ranks] == [75, 75], outputs(2, log)
    assert 1 <= len(_made(run)) < 6
    _run(1, tmp_path, "rollout")
    _require_same_rollouts(run, whole)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["model.sharding=tensor"], "needs shards of 2"),
        (["model.shards=2"], "take no other number"),
        (["model.sharding=zero3"], "set train.zero_stage=3"),
        (["model.device=spread"], "decodes and cannot train"),
        (["model.device=spread", *TENSOR, "train.zero_stage=3"], "two ways to hold a model"),
        (["model.max_memory={cpu: 1GiB}"], "is for device: spread"),
    ],
)
def test_settings_that_cannot_shard_are_refused(settings: list[str], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_config(RunConfig, SMOKE, settings)


def test_a_group_that_decodes_different_tokens_stops() -> None:
    store = HashStore()
    leader, member = (
        ModelParallelGroup(World(Launch(rank=rank, size=2), store, StopRequest()), 2, "set")
        for rank in (0, 1)
    )
    member.require_agreement("chunk 1", "same")
    leader.require_agreement("chunk 1", "same")
    member.require_agreement("chunk 2", "this")
    with pytest.raises(StageError, match=r"chunk 2: ranks 0 and 1 .* different tokens"):
        leader.require_agreement("chunk 2", "that")


def test_a_launch_too_small_for_the_shards_is_refused() -> None:
    config = ModelConfig(name="embedded/addition", sharding="tensor", shards=2)
    with pytest.raises(ModelError, match="multiple of 2"):
        load_model(config)


@pytest.mark.parametrize("mode", ["preview", "value"])
def test_a_model_spread_over_memory_and_disk_decodes_the_same(
    mode: str,
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    # All of it is 1 MB: from the third block on, and the block that is steered, it is read from disk.
    spread = load_model(
        ModelConfig(name="embedded/addition", device="spread", max_memory={"cpu": "600KB"})
    )
    assert set(spread.model.hf_device_map.values()) == {"cpu", "disk"}
    assert spread.model.hf_device_map[f"model.layers.{bases.BLOCK}"] == "disk"

    def tokens(model: LoadedModel) -> list[Rollout]:
        controller = BasisController(
            bases.basis(),
            MODES[mode](strength=2.0),
            block=bases.BLOCK,
            head=bases.value_head(),
        )
        made = DecodeEngine(model, max_rows=3).generate(
            [GenerationRequest(p) for p in prompts[:4]],
            greedy,
            seed=0,
            control=ControlSpec(automaton, 8),
            controller=controller,
        )
        return list(made.rollouts)

    whole = tokens(loaded)
    assert tokens(spread) == whole
    assert any(rollout.impulses for rollout in whole)


def test_only_one_process_of_a_host_may_spread_a_model() -> None:
    world = World(Launch(rank=0, size=2, local_rank=0, local_size=2), HashStore(), StopRequest())
    with pytest.raises(ModelError, match="has 2 there"):
        load_model(ModelConfig(name="embedded/addition", device="spread"), world)
