"""What we reach into of vLLM: an edit there, to any name, is told with the version that we support."""

from __future__ import annotations

import pkgutil
import warnings
from typing import Any

import pytest

from stir_train.distributed import world
from stir_train.errors import StageError
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.generation.vllm.runner_hooks import require_runner
from stir_train.generation.vllm.versions import OF_BATCH, OF_ENGINE, OF_GROUPS, OF_RUNNER
from stir_train.models.load import LoadedModel
from tests.vllm.conftest import BUDGET, Pair

SUPPORTED = r"this backend is written for vLLM 0\.32"
RUNNER = "vllm.v1.worker.gpu_model_runner.GPUModelRunner"
HASHES = "vllm.v1.core.kv_cache_utils"
BEFORE_A_START = (
    f"{RUNNER}._model_forward",
    f"{HASHES}.generate_block_hash_extra_keys",
    "vllm.v1.engine.core.cleanup_dist_env_and_memory",
    *(f"vllm.v1.engine.llm_engine.LLMEngine.{name}" for name in OF_ENGINE),
)


class Without:
    """An object without one of its attributes."""

    def __init__(self, whole: object, name: str) -> None:
        self._whole, self._name = whole, name

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            raise AttributeError(name)
        return getattr(self._whole, name)


@pytest.fixture
def runner(pair: Pair, requests: list[GenerationRequest], briefly: SamplingParams) -> Any:
    """vLLM's, of an engine that has started."""
    pair.theirs.generate(requests[:1], briefly, seed=0)
    assert isinstance(pair.theirs, VLLMEngine)
    assert pair.theirs._session is not None
    return pair.theirs._session._runner


@pytest.fixture(scope="module", autouse=True)
def _imported() -> None:
    """The modules that tests take something from, whose deprecations are not ours to be told of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in BEFORE_A_START:
            pkgutil.resolve_name(path)


@pytest.mark.parametrize("path", BEFORE_A_START)
def test_what_is_gone_is_named_before_anything_starts(
    path: str,
    wide: LoadedModel,
    requests: list[GenerationRequest],
    briefly: SamplingParams,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(path)
    name = path.rpartition(".")[2]
    with pytest.raises(StageError, match=rf"vLLM 0\.32\S* has no \w+\.{name}; {SUPPORTED}"):
        VLLMEngine(wide, max_rows=2).generate(requests[:1], briefly, seed=0)


@pytest.mark.parametrize("name", OF_RUNNER)
def test_what_a_runner_lacks_is_named(name: str, runner: Any) -> None:
    require_runner(runner)
    with pytest.raises(StageError, match=rf"has no GPUModelRunner\.{name}; {SUPPORTED}"):
        require_runner(Without(runner, name))


@pytest.mark.parametrize("name", OF_BATCH)
def test_what_a_batch_lacks_is_named(
    name: str, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "input_batch", Without(runner.input_batch, name))
    with pytest.raises(StageError, match=rf"has no InputBatch\.{name}; {SUPPORTED}"):
        require_runner(runner)


@pytest.mark.parametrize("name", OF_GROUPS)
def test_what_groups_of_ranks_lack_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stir_train.generation.vllm.ranks import form_groups

    monkeypatch.delattr(f"vllm.distributed.parallel_state.{name}")
    with pytest.raises(StageError, match=rf"has no parallel_state\.{name}; {SUPPORTED}"):
        form_groups(world.alone(), 1)


@pytest.mark.parametrize("name", ["_model_forward", "_update_states"])
def test_what_a_server_lacks_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from stir_train.generation.vllm.server import serve

    monkeypatch.delattr(f"{RUNNER}.{name}")
    with pytest.raises(StageError, match=rf"has no GPUModelRunner\.{name}; {SUPPORTED}"):
        serve([], None)


ELSEWHERE = "elsewhere"
"""A name that is there, and that vLLM does not use."""


def _require_told(pair: Pair, requests: list[GenerationRequest], what: str) -> None:
    with pytest.raises(StageError, match=rf"vLLM 0\.32\S* does not call {what}; {SUPPORTED}"):
        pair.theirs.generate(requests[:2], SamplingParams(BUDGET), seed=0)


def test_passes_that_go_another_way_are_named(
    runner: Any, pair: Pair, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would be unsteered, silently."""
    monkeypatch.setattr(runner, ELSEWHERE, lambda: None, raising=False)
    monkeypatch.setattr("stir_train.generation.vllm.runner_hooks.FORWARD", ELSEWHERE)
    _require_told(pair, requests, r"GPUModelRunner\._model_forward")


def test_blocks_that_are_hashed_another_way_are_named(
    pair: Pair, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request would read what another was steered to."""
    monkeypatch.setattr(f"{HASHES}.{ELSEWHERE}", lambda: None, raising=False)
    monkeypatch.setattr("stir_train.generation.vllm.block_keys.HASHING", ELSEWHERE)
    _require_told(pair, requests, r"kv_cache_utils\.generate_block_hash_extra_keys")


def test_tokens_that_are_chosen_another_way_are_named(
    pair: Pair, requests: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would not be those of our noise."""
    noise = "stir_train.generation.vllm.counter_noise.CounterNoise"
    monkeypatch.setattr(f"{noise}.apply", lambda _self, logits: logits)
    _require_told(pair, requests, "its logits processors")
