"""What goes wrong inside vLLM without a remedy, each with the remedy taken away to see it go wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from stir_train.config.inputs import ModelConfig
from stir_train.config.stages import ControlPointConfig
from stir_train.data.control_points import build_automaton
from stir_train.errors import ConfigError, ModelError, StageError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    GenerationResult,
    PlannedImpulse,
    SamplingParams,
)
from stir_train.generation.controller import ControlBatch, Decision, Steering
from stir_train.generation.fixed import FixedVector
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.generation.vllm.extent import BLOCK_TOKENS
from stir_train.models.load import LoadedModel, load_model
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt
from tests.vllm.conftest import BUDGET, READS, Pair, require_same
from tests.vllm.test_same_tokens import steering_named

VECTOR = 20 * torch.nn.functional.normalize(
    torch.randn(64, generator=torch.Generator().manual_seed(9)), dim=0
)


class Asked(FixedVector):
    """A fixed vector that counts how often it is asked about each token."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, 3, VECTOR)
        object.__setattr__(self, "asked", {})

    def decide(self, states: torch.Tensor, batch: ControlBatch) -> Decision:
        asked: dict[tuple[str, int], int] = vars(self)["asked"]
        for key in zip(batch.prompt_ids, batch.token_indices, strict=True):
            asked[key] = asked.get(key, 0) + 1
        return super().decide(states, batch)


@pytest.fixture(scope="module")
def often(wide: LoadedModel) -> ControlSpec:
    """A control point every few tokens."""
    every_few = ControlPointConfig(every_tokens=4)
    return ControlSpec(build_automaton(wide.tokenizer, every_few, vocab_size=65), 100, READS)


# -- the prefix cache ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_by_one(wide: LoadedModel) -> Iterator[VLLMEngine]:
    """A row at a time, so that each request finds in the cache what the last one left."""
    engine = VLLMEngine(wide, max_rows=1)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def continued(wide: LoadedModel, prompts: list[Prompt]) -> list[GenerationRequest]:
    """One long prefix, with impulses planned all along it, with others, and with none."""
    made = DecodeEngine(wide, max_rows=1).generate(
        [GenerationRequest(prompts[0])], SamplingParams(3 * BLOCK_TOKENS), seed=0
    )
    prefix = made.rollouts[0].token_ids[: 2 * BLOCK_TOKENS]
    plans = [
        tuple(PlannedImpulse(at, 3, vector) for at in range(0, len(prefix), 4))
        for vector in (VECTOR, -VECTOR)
    ]
    plans.append(())
    return [GenerationRequest(prompts[0], 0, prefix, planned) for planned in plans]


def _long(result: GenerationResult) -> list[tuple[float, ...]]:
    return [rollout.logprobs[2 * BLOCK_TOKENS :] for rollout in result.rollouts]


@contextmanager
def _unkeyed(_steered: object) -> Iterator[object]:
    from stir_train.generation.vllm.block_keys import Hashing

    yield Hashing(is_called=True)


def test_steered_blocks_are_nobody_elses(
    one_by_one: VLLMEngine,
    wide: LoadedModel,
    continued: list[GenerationRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sampling = SamplingParams(2 * BLOCK_TOKENS + 8)
    ours = DecodeEngine(wide, max_rows=1).generate(continued, sampling, seed=0)
    require_same(ours, one_by_one.generate(continued, sampling, seed=0))
    assert len(set(_long(ours))) == 3
    monkeypatch.setattr("stir_train.generation.vllm.session.keyed_blocks", _unkeyed)
    shared = one_by_one.generate(continued, sampling, seed=0)
    with pytest.raises(AssertionError):
        require_same(ours, shared)


def test_prompts_that_nobody_steers_are_shared(
    one_by_one: VLLMEngine, prompts: list[Prompt], often: ControlSpec
) -> None:
    ids = (prompts[0].token_ids * 5)[: 3 * BLOCK_TOKENS]
    long = dataclasses.replace(prompts[0], token_ids=ids)
    requests = [GenerationRequest(long, sample) for sample in range(3)]
    steered = one_by_one.generate(
        requests,
        SamplingParams(12),
        seed=0,
        control=often,
        controller=FixedVector("control_point", 3, VECTOR),
    )
    # The prompt once, of the others its last block, and eleven tokens of each.
    assert steered.cost.token_forwards == len(ids) + 2 * BLOCK_TOKENS + 3 * 11
    everywhere = one_by_one.generate(
        requests, SamplingParams(12), seed=0, controller=FixedVector("every_token", 3, VECTOR)
    )
    assert everywhere.cost.token_forwards == 3 * len(ids) + 3 * 11


def test_nothing_is_left_for_the_next_call(
    one_by_one: VLLMEngine, continued: list[GenerationRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    sampling = SamplingParams(2 * BLOCK_TOKENS + 8)
    first, second = [continued[0]], [continued[1]]
    alone = _long(one_by_one.generate(second, sampling, seed=0))
    one_by_one.generate(first, sampling, seed=0)
    assert _long(one_by_one.generate(second, sampling, seed=0)) == alone
    one_by_one.generate(first, sampling, seed=0)
    monkeypatch.setattr("vllm.v1.engine.llm_engine.LLMEngine.reset_prefix_cache", lambda *_: True)
    assert _long(one_by_one.generate(second, sampling, seed=0)) != alone


def test_a_call_has_the_same_bytes_whatever_was_called_before(
    pair: Pair, requests: list[GenerationRequest], briefly: SamplingParams
) -> None:
    steering = steering_named("value")
    calls = [
        pair.theirs.generate(requests[:n], briefly, seed=3, control=pair.control, controller=who)
        for n, who in ((6, steering), (8, None), (6, steering))
    ]
    assert calls[0].rollouts == calls[2].rollouts
    assert calls[0].decisions == calls[2].decisions
    assert calls[0].states is not None
    assert calls[2].states is not None
    assert torch.equal(calls[0].states.states, calls[2].states.states)


# -- preemption ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cramped(wide: LoadedModel) -> Iterator[VLLMEngine]:
    """A cache too small for its rows, so that some lose theirs and are fed again."""
    engine = VLLMEngine(wide, max_rows=8, max_cache_tokens=9 * BLOCK_TOKENS)
    yield engine
    engine.close()


@pytest.mark.parametrize("name", ["value", "control_point", "segment", "every_token"])
def test_a_preempted_completion_goes_on_as_it_was(
    name: str,
    cramped: VLLMEngine,
    pair: Pair,
    requests: list[GenerationRequest],
    often: ControlSpec,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    steering: Steering
    if name == "value":
        steering = steering_named(name)
    else:
        steering, pair = FixedVector(name, 3, VECTOR), dataclasses.replace(pair, control=often)
    sampling = SamplingParams(BUDGET)
    made = pair.require_same(requests, sampling, steering, theirs=cramped)
    once = sum(len(r.prompt_token_ids) + len(r.token_ids) - 1 for r in made.rollouts)
    assert made.cost.token_forwards > once, "some tokens were fed twice"
    if name != "control_point":
        return
    # Without the record of what was added, the tokens that are fed again are left as they are.
    monkeypatch.setattr("stir_train.generation.vllm.track.Track.keep", lambda *_: None)
    with pytest.raises(AssertionError):
        pair.require_same(requests, sampling, steering, theirs=cramped)


@pytest.mark.parametrize("place", ["control_point", "prompt_end"])
def test_a_controller_is_asked_about_a_token_once(
    place: Place, cramped: VLLMEngine, requests: list[GenerationRequest], often: ControlSpec
) -> None:
    asked = Asked(place)
    made = cramped.generate(
        requests, SamplingParams(BUDGET), seed=3, control=often, controller=asked
    )
    once = sum(len(r.prompt_token_ids) + len(r.token_ids) - 1 for r in made.rollouts)
    assert made.cost.token_forwards > once
    counted = vars(asked)["asked"]
    assert set(counted.values()) == {1}
    expected = (
        len(requests)
        if place == "prompt_end"
        else sum(len(r.control_points) for r in made.rollouts)
    )
    assert len(counted) == len(made.decisions) == expected


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("enforce_eager", False),
        ("async_scheduling", True),
        ("speculative_config", {"method": "ngram", "num_speculative_tokens": 2}),
        ("pipeline_parallel_size", 2),
        ("tensor_parallel_size", 2),
        ("distributed_executor_backend", "mp"),
    ],
)
def test_what_hooks_do_not_reach_is_refused_by_name(
    option: str, value: object, wide: LoadedModel
) -> None:
    with pytest.raises(ConfigError, match=f"generation.options.{option}: not with .*vllm"):
        VLLMEngine(wide, max_rows=2, options={option: value})


def test_what_vllm_would_turn_on_itself_is_refused_too(
    wide: LoadedModel, briefly: SamplingParams, requests: list[GenerationRequest]
) -> None:
    engine = VLLMEngine(wide, max_rows=2)
    engine._options = {"enforce_eager": False}  # as if vLLM no longer did as it is told
    with pytest.raises(
        StageError, match="vLLM would use compiled graphs, where hooks do not reach"
    ):
        engine.generate(requests[:1], briefly, seed=0)


def test_heads_that_its_attention_does_not_compute_are_refused_by_name() -> None:
    narrow = load_model(ModelConfig(name="embedded/addition"))
    with pytest.raises(
        ModelError, match=r"takes heads of 32 and more, and those of .* are 16 wide"
    ):
        VLLMEngine(narrow, max_rows=1)


def test_options_that_vllm_does_not_know_are_named(
    wide: LoadedModel, briefly: SamplingParams, requests: list[GenerationRequest]
) -> None:
    with pytest.raises(ModelError, match="no_such_option"):
        VLLMEngine(wide, max_rows=2, options={"no_such_option": 1}).generate(
            requests[:1], briefly, seed=0
        )


def test_a_model_whose_blocks_return_something_else_is_refused(
    wide: LoadedModel,
    briefly: SamplingParams,
    requests: list[GenerationRequest],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a block's output is not the residual stream, without which states would be nonsense."""
    monkeypatch.setattr(
        "stir_train.generation.vllm.runner_hooks._parts", lambda output, _: (output[0], None)
    )
    with pytest.raises(ModelError, match="states of vLLM and transformers differ"):
        VLLMEngine(wide, max_rows=2).generate(requests[:1], briefly, seed=0)
