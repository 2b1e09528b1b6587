"""What all prompts begin with is fed once, and nothing that is decoded, decided or added differs by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    GenerationResult,
    PlannedImpulse,
    SamplingParams,
)
from stir_train.generation.controller import ControlBatch, Decision, Steering
from stir_train.generation.fixed import FixedVector
from stir_train.generation.transformers import decoding, shared_prefix
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt
from tests.support.tiny_models import CONFIGS, build

HEAD = tuple(range(3, 43))
NEVER = 1 << 20


def _headed(prompts: Sequence[Prompt]) -> list[Prompt]:
    return [dataclasses.replace(p, token_ids=(*HEAD, *p.token_ids)) for p in prompts]


def _planned(block: int, seed: int) -> PlannedImpulse:
    return PlannedImpulse(-1, block, _vector(seed), "every_token")


def _vector(seed: int) -> torch.Tensor:
    return 8 * torch.randn(64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def control(automaton: ControlPointAutomaton) -> ControlSpec:
    return ControlSpec(automaton, 3, (2, 4))


def _both(
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    requests: Sequence[GenerationRequest],
    sampling: SamplingParams,
    control: ControlSpec | None = None,
    steering: Steering | None = None,
) -> tuple[GenerationResult, GenerationResult]:
    """The same requests with what their prompts share fed once, and fed with each."""

    def generate() -> GenerationResult:
        engine = DecodeEngine(
            loaded, max_rows=4
        )  # fewer rows than requests: there are later prefills
        return engine.generate(requests, sampling, seed=5, control=control, controller=steering)

    shared = generate()
    with monkeypatch.context() as patch:
        patch.setattr(shared_prefix, "MIN_SHARED_TOKENS", NEVER)
        return shared, generate()


def _require_same(one: GenerationResult, other: GenerationResult) -> None:
    assert [r.token_ids for r in one.rollouts] == [r.token_ids for r in other.rollouts]
    assert [r.impulses for r in one.rollouts] == [r.impulses for r in other.rollouts]
    assert one.decisions == other.decisions
    for a, b in zip(one.rollouts, other.rollouts, strict=True):
        torch.testing.assert_close(
            torch.tensor(a.logprobs),
            torch.tensor(b.logprobs),
            rtol=1e-4,
            atol=1e-4,
            equal_nan=True,  # of tokens that were given
        )
    assert (one.states is None) == (other.states is None)
    if one.states is not None and other.states is not None:
        assert one.states.labels == other.states.labels
        torch.testing.assert_close(one.states.states, other.states.states, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("place", ["prompt_end", "everywhere", "segment", "control_point", None])
def test_answers_states_and_decisions_are_the_same_and_it_is_fed_once(
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    prompts: list[Prompt],
    control: ControlSpec,
    place: Place | None,
) -> None:
    requests = [GenerationRequest(p, k) for p in _headed(prompts[:6]) for k in range(2)]
    steering = None if place is None else (FixedVector(place, 3, _vector(1)),)
    sampling = SamplingParams(40, loaded.stop_token_ids, temperature=0.7)
    shared, apart = _both(monkeypatch, loaded, requests, sampling, control, steering)
    _require_same(shared, apart)
    assert shared.cost.prefill_passes == apart.cost.prefill_passes + 1
    saved = apart.cost.token_forwards - shared.cost.token_forwards
    assert saved == 5 * (len(HEAD) + 1), "of six prompts, which all go on with the same token"


def test_a_pass_on_a_cpu_is_as_large_as_what_it_feeds(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    head = HEAD * 10
    some = [
        dataclasses.replace(p, token_ids=(*head, 3 + n, *p.token_ids))
        for n, p in enumerate(prompts[:8])
    ]
    sampling = SamplingParams(4, loaded.stop_token_ids)

    def generate() -> GenerationResult:
        requests = [GenerationRequest(prompt) for prompt in some]
        return DecodeEngine(loaded, max_rows=8).generate(requests, sampling, seed=0)

    assert sum(len(prompt.token_ids) - len(head) for prompt in some) < decoding.CPU_PREFILL_TOKENS
    shared = generate()
    assert shared.cost.prefill_passes == 2, "the head, and what is left of all eight"
    monkeypatch.setattr(shared_prefix, "MIN_SHARED_TOKENS", NEVER)
    apart = generate()
    assert apart.cost.prefill_passes > 2, "contexts that do not fit into one"
    assert [r.token_ids for r in shared.rollouts] == [r.token_ids for r in apart.rollouts]


def test_what_requests_plan_after_a_prefix_is_added_where_it_was(
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    prompts: list[Prompt],
    control: ControlSpec,
) -> None:
    sampling = SamplingParams(30, loaded.stop_token_ids)
    some = _headed(prompts[:5])
    plain = DecodeEngine(loaded, max_rows=8).generate(
        [GenerationRequest(p) for p in some], sampling, seed=0
    )
    requests = [
        GenerationRequest(
            prompt,
            0,
            rollout.token_ids[: 3 + number],
            (PlannedImpulse(number - 1, 2, _vector(number)), PlannedImpulse(-1, 4, _vector(9))),
        )
        for number, (prompt, rollout) in enumerate(zip(some, plain.rollouts, strict=True))
    ]
    shared, apart = _both(monkeypatch, loaded, requests, sampling, control)
    _require_same(shared, apart)
    assert shared.cost.token_forwards < apart.cost.token_forwards


def test_under_vectors_at_every_token_it_is_fed_once_for_each_set_of_them(
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    prompts: list[Prompt],
    control: ControlSpec,
) -> None:
    """Two vectors at every token, one of them alone, one at the prompt's end, none; in two blocks and in one."""
    sampling, some = SamplingParams(20, loaded.stop_token_ids), _headed(prompts[:3])
    low, high = _planned(2, 1), _planned(4, 2)
    plans = [(low, high), (low,), (dataclasses.replace(high, place="prompt_end"),), ()]
    requests = [GenerationRequest(p, planned=plan) for plan in plans for p in some]
    shared, apart = _both(monkeypatch, loaded, requests, sampling, control)
    _require_same(shared, apart)
    assert (
        shared.rollouts[0].token_ids != shared.rollouts[3].token_ids != apart.rollouts[9].token_ids
    )
    saved = apart.cost.token_forwards - shared.cost.token_forwards
    assert saved == (len(requests) - 3) * (len(HEAD) + 1), "once for each of three"


def test_under_fixed_vectors_at_every_token_it_is_fed_once(
    monkeypatch: pytest.MonkeyPatch,
    loaded: LoadedModel,
    prompts: list[Prompt],
    control: ControlSpec,
) -> None:
    sampling, some = SamplingParams(20, loaded.stop_token_ids), _headed(prompts[:3])
    vectors = (
        FixedVector("every_token", 3, _vector(1), strength=0.5),
        FixedVector("every_token", 3, _vector(2)),
        FixedVector("prompt_end", 4, _vector(3)),
    )
    requests = [GenerationRequest(p, k) for p in some for k in range(2)]
    shared, apart = _both(monkeypatch, loaded, requests, sampling, control, vectors)
    _require_same(shared, apart)
    assert apart.cost.token_forwards - shared.cost.token_forwards == 2 * (len(HEAD) + 1)
    plain = DecodeEngine(loaded, max_rows=4).generate(requests, sampling, seed=5)
    assert plain.rollouts[0].token_ids != shared.rollouts[0].token_ids


def test_a_continued_completion_keeps_the_vectors_that_its_plan_names(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    """A controller is asked about prompts that nothing follows yet; beside them two go on, one under another vector."""
    sampling, some = SamplingParams(20, loaded.stop_token_ids), _headed(prompts[:3])
    steering = (FixedVector("every_token", 3, _vector(1)),)
    continued = [
        GenerationRequest(some[0], 0, (5, 6, 7), (_planned(3, 4),)),
        GenerationRequest(some[1], 0, (5, 6), (_planned(3, 1),)),
    ]
    requests = [*continued, *(GenerationRequest(p) for p in some)]
    _require_same(*_both(monkeypatch, loaded, requests, sampling, None, steering))


@dataclasses.dataclass(frozen=True)
class _ByState:
    """A controller that adds more to larger states."""

    place: Place = "every_token"
    block: int = 3
    reads: tuple[int, ...] = (3,)

    def decide(self, states: torch.Tensor, batch: ControlBatch) -> Decision:
        """As much as the state has."""
        strengths = states.norm(dim=-1)
        return Decision.unscored(0.1 * strengths[:, None] * torch.ones_like(states), strengths)


def test_nothing_is_shared_where_a_controller_decides_for_a_whole_prompt_by_its_state(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    sampling, some = SamplingParams(20, loaded.stop_token_ids), _headed(prompts[:3])
    requests = [GenerationRequest(p) for p in some]
    shared, apart = _both(monkeypatch, loaded, requests, sampling, None, (_ByState(),))
    _require_same(shared, apart)
    assert shared.cost == apart.cost


def test_a_prompt_that_is_the_beginning_of_all_others_keeps_its_last_token(
    monkeypatch: pytest.MonkeyPatch, loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    first = dataclasses.replace(prompts[0], token_ids=HEAD)
    requests = [GenerationRequest(p) for p in (first, *_headed(prompts[1:4]))]
    sampling = SamplingParams(20, loaded.stop_token_ids)
    shared, apart = _both(monkeypatch, loaded, requests, sampling)
    _require_same(shared, apart)
    saved = apart.cost.token_forwards - shared.cost.token_forwards
    assert saved == 3 * (len(HEAD) - 1)
    alone, also_alone = _both(monkeypatch, loaded, requests[:1] * 3, sampling)
    assert alone.cost == also_alone.cost, "one prompt is shared as a whole"


@pytest.mark.parametrize("name", CONFIGS)
def test_every_architecture_goes_on_from_what_prompts_share(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Windows of 8 tokens end within what is shared."""
    loaded = build(name, attention="eager" if name == "gemma2-hybrid" else "sdpa")
    generator = torch.Generator().manual_seed(2)
    endings = [torch.randint(3, 90, (n,), generator=generator).tolist() for n in (3, 9, 5, 1, 7)]
    prompts = [Prompt(f"p{i}", "", "", (*HEAD, *ending), "") for i, ending in enumerate(endings)]
    requests = [GenerationRequest(prompt) for prompt in prompts]
    shared, apart = _both(monkeypatch, loaded, requests, SamplingParams(24, (1,)))
    _require_same(shared, apart)
    assert shared.cost.token_forwards < apart.cost.token_forwards
