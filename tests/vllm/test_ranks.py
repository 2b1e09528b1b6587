"""vLLM on several ranks: an engine each, or one for ranks that hold a model together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from stir_train.artifacts.run_dir import RunDir
from stir_train.config.inputs import ModelConfig
from stir_train.distributed import world
from stir_train.distributed.collective_forward import CollectiveForward
from stir_train.errors import ModelError
from stir_train.generation.backend import GenerationResult
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.stores.rollouts import RolloutStore
from tests.support.ranks import outputs, run_ranks
from tests.vllm import decode_ranks
from tests.vllm.models import save_widened

SMOKE = Path(__file__).parents[2] / "configs" / "tiny" / "smoke.yaml"
SMALL = (
    "generation.backend=vllm",
    "generation={max_new_tokens: 96, max_rows: 8, chunk_completions: 8}",
    "splits={num_harvest: 8, num_tune: 4, num_test: 4}",
    "rollout.num_samples=4",
    "validation={num_rounds: 1, trials_per_round: 24, strengths: [3.0]}",
    "basis={size: 8, min_per_point: 1}",
)
SAME_BYTES = ("rollout", "harvest", "basis", "validate")
EVEN = 66
"""Tokens of a vocabulary that two ranks can share."""


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_widened(tmp_path_factory.mktemp("model") / "even", num_tokens=EVEN)


def _files(run: Path, stage: str) -> dict[str, str]:
    manifest = json.loads((run / stage / "manifest.json").read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def _made(run: Path) -> list[tuple[str, str, int]]:
    """Stage, key and rank of everything that was made."""
    return [
        (line["stage"], line["key"], line["rank"])
        for path in (run / "logs").rglob("*.work.jsonl")
        for line in map(json.loads, path.read_text().splitlines())
    ]


def _run(size: int, directory: Path, verb: str, model: Path, *more: str) -> Path:
    argv = ["-m", "stir_train", verb, str(SMOKE), f"output_dir={directory}", *SMALL]
    log = directory / f"log{size}"
    ended = run_ranks(size, [*argv, f"model.name={model}", *more], log)
    assert ended == [0] * size, outputs(size, log)
    return directory / "smoke"


@pytest.fixture(scope="module")
def alone(even: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run by one process."""
    directory = tmp_path_factory.mktemp("alone")
    return _run(1, directory, "run", even, f"--only={','.join(SAME_BYTES)}")


def test_two_ranks_with_an_engine_each_make_the_bytes_of_one(
    even: Path, alone: Path, tmp_path: Path
) -> None:
    run = _run(2, tmp_path, "run", even, f"--only={','.join(SAME_BYTES)}")
    for stage in SAME_BYTES:
        assert _files(run, stage) == _files(alone, stage), stage
    made = _made(run)
    assert len(made) == len({(stage, key) for stage, key, _ in made}), "each chunk once"
    assert {rank for _, _, rank in made} == {0, 1}, "by both"


def _same_text(result: dict[str, Any], other: GenerationResult) -> None:
    """Tokens and decisions are the same; how much was added is to rounding."""
    assert [r["token_ids"] for r in result["rollouts"]] == [
        list(r.token_ids) for r in other.rollouts
    ]
    names = ("prompt_id", "sample", "point", "token_index", "block", "chosen", "place")
    assert [[d[name] for name in names] for d in result["decisions"]] == [
        [getattr(d, name) for name in names] for d in other.decisions
    ]


def test_ranks_that_hold_a_model_together_decode_what_one_does_and_decide_alike(
    even: Path, tmp_path: Path
) -> None:
    log, output = tmp_path / "log", tmp_path / "made"
    argv = [str(Path(decode_ranks.__file__)), str(even), str(output)]
    assert run_ranks(2, argv, log) == [0, 0], outputs(2, log)
    texts = [Path(f"{output}.{rank}.json").read_text() for rank in range(2)]
    states = [load_file(f"{output}.{rank}.safetensors") for rank in range(2)]
    assert texts[0] == texts[1], "tokens, decisions, scores and log-probabilities, to the bit"
    assert all(torch.equal(states[0][case], states[1][case]) for case in states[0])
    whole = load_model(ModelConfig(name=str(even)))
    engine = VLLMEngine(whole, max_rows=decode_ranks.MAX_ROWS)
    expected = decode_ranks.made_by(engine, whole)
    engine.close()
    made = json.loads(texts[0])
    for case, one in expected.items():
        _same_text(made[case], one)
        assert one.states is not None
        torch.testing.assert_close(states[0][case], one.states.states, rtol=1e-3, atol=1e-3)
    chosen = [d.chosen for d in expected["steered"].decisions]
    assert len(set(chosen)) > 3, "what is chosen depends on the states"
    tokens = [[r.token_ids for r in one.rollouts] for one in expected.values()]
    assert tokens[0] != tokens[1] != tokens[2], "steering acts"


def _tokens(run: Path) -> list[tuple[str, int, tuple[int, ...]]]:
    return [
        (graded.rollout.prompt_id, graded.rollout.sample, graded.rollout.token_ids)
        for graded in RolloutStore(RunDir(run).stage("rollout")).read()
    ]


def test_a_group_makes_chunks_together(even: Path, alone: Path, tmp_path: Path) -> None:
    sharded = ("model.sharding=tensor", "model.shards=2", "distill.enabled=false")
    run = _run(2, tmp_path, "rollout", even, *sharded)
    assert len(_tokens(run)) == 32
    assert _tokens(run) == _tokens(alone)
    assert {rank for _, _, rank in _made(run)} == {0}, "the first of the group writes"


def test_zero3_is_refused_by_name(wide: LoadedModel) -> None:
    in_step = CollectiveForward(world.alone(), torch.nn.Identity(), lambda: None)
    sharded = dataclasses.replace(wide, is_sharded=True, collective_forward=in_step)
    with pytest.raises(ModelError, match=r"expected model\.sharding=none or tensor, found zero3"):
        VLLMEngine(sharded, max_rows=2)
