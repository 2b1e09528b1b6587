"""The decoding engine against transformers' own generate, and against itself in other batches."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import DataError, ModelError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    PlannedImpulse,
    SamplingParams,
)
from stir_train.generation.fixed import FixedVector
from stir_train.generation.teacher_forced import teacher_force
from stir_train.generation.transformers.decoding import Decoding
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.generation.transformers.slot_forward import SlotForward
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout
from tests.support import tiny_models

BLOCKS = (1, 4)


@pytest.fixture(scope="module")
def unsteered(engine: DecodeEngine, prompts: list[Prompt], greedy: SamplingParams) -> list[Rollout]:
    """Greedy answers to all prompts, sixteen rows at a time and nothing else asked."""
    requests = [GenerationRequest(p) for p in prompts]
    return list(engine.generate(requests, greedy, seed=0).rollouts)


def _prompt(name: str, ids: list[int]) -> Prompt:
    return Prompt(name, name, name, tuple(ids), "")


def _hf_greedy(loaded: LoadedModel, ids: tuple[int, ...], budget: int) -> tuple[int, ...]:
    output = loaded.model.generate(
        input_ids=torch.tensor([ids]),
        attention_mask=torch.ones(1, len(ids), dtype=torch.long),
        max_new_tokens=budget,
        do_sample=False,
    )
    return tuple(output[0, len(ids) :].tolist())


# transformers offers Gemma 2 in eager attention only.
ARCHITECTURES = [
    (name, attention)
    for name in tiny_models.CONFIGS
    for attention in ("sdpa", "eager")
    if (name, attention) != ("gemma2-hybrid", "sdpa")
]


@pytest.mark.parametrize(("name", "attention"), ARCHITECTURES)
def test_greedy_equals_transformers_generate_padded_and_not(name: str, attention: str) -> None:
    loaded = tiny_models.build(name, attention=attention)
    generator = torch.Generator().manual_seed(3)
    lengths = (3, 17, 9, 5, 12)
    prompts = [
        _prompt(str(n), torch.randint(2, 97, (n,), generator=generator).tolist()) for n in lengths
    ]
    engine = DecodeEngine(loaded, max_rows=3)  # fewer slots than prompts: refills happen
    result = engine.generate(
        [GenerationRequest(p) for p in prompts], SamplingParams(24, (1,)), seed=0
    )
    for prompt, rollout in zip(prompts, result.rollouts, strict=True):
        assert rollout.token_ids == _hf_greedy(loaded, prompt.token_ids, 24), prompt.prompt_id


def test_a_row_gives_the_same_tokens_in_any_batch(
    loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    sampling = SamplingParams(80, loaded.stop_token_ids, temperature=0.8, top_p=0.9, top_k=20)
    requests = [GenerationRequest(p, k) for p in prompts[:4] for k in range(3)]

    def tokens(order: list[GenerationRequest], rows: int) -> dict[tuple[str, int], tuple[int, ...]]:
        result = DecodeEngine(loaded, max_rows=rows).generate(order, sampling, seed=7)
        return {(r.prompt_id, r.sample): r.token_ids for r in result.rollouts}

    reference = tokens(requests, 64)
    assert tokens(requests[::-1], 64) == reference
    assert tokens(requests, 4) == reference
    assert {k: v for r in requests[:2] for k, v in tokens([r], 1).items()} == {
        (r.prompt.prompt_id, r.sample): reference[r.prompt.prompt_id, r.sample]
        for r in requests[:2]
    }
    other = DecodeEngine(loaded, max_rows=64).generate(requests, sampling, seed=8)
    assert [r.token_ids for r in other.rollouts] != list(reference.values())


def test_refilled_slots_never_read_what_the_last_row_left(
    loaded: LoadedModel,
    prompts: list[Prompt],
    greedy: SamplingParams,
    unsteered: list[Rollout],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [GenerationRequest(p) for p in prompts]
    step = Decoding.step

    def poisoned_step(run: Decoding) -> None:
        run.cache.fill_stale(run.slots.position[: len(run.slots)], 1e4)
        step(run)

    monkeypatch.setattr(Decoding, "step", poisoned_step)
    poisoned = DecodeEngine(loaded, max_rows=5).generate(requests, greedy, seed=0)
    assert [r.token_ids for r in poisoned.rollouts] == [r.token_ids for r in unsteered]


def test_captured_states_and_logprobs_equal_one_teacher_forced_pass(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    result = DecodeEngine(loaded, max_rows=7).generate(
        [GenerationRequest(p) for p in prompts],
        greedy,
        seed=0,
        control=ControlSpec(automaton, 4, BLOCKS),
    )
    forced = teacher_force(loaded, result.rollouts, BLOCKS, max_points=4)
    assert result.states is not None
    assert len(result.states.labels) > 3 * len(prompts)
    # Equal labels and states: every row is at its own rollout, point, position and token.
    assert result.states.labels == forced.states.labels
    torch.testing.assert_close(result.states.states, forced.states.states, rtol=1e-4, atol=1e-4)
    for rollout, logprobs in zip(result.rollouts, forced.logprobs, strict=True):
        torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs, rtol=1e-4, atol=1e-4)


def test_idle_controllers_change_nothing_and_impulses_persist(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    requests = [GenerationRequest(p) for p in prompts]
    engine = DecodeEngine(loaded, max_rows=16)
    control = ControlSpec(automaton, 8, (1, 2, 3, 5))
    plain = engine.generate(requests, greedy, seed=0, control=control)
    delta = torch.randn(64, generator=torch.Generator().manual_seed(0))
    for quiet in (
        FixedVector("control_point", 2, delta, 0.0),
        FixedVector("control_point", 2, torch.zeros(64)),
    ):
        steered = engine.generate(requests, greedy, seed=0, control=control, controller=quiet)
        assert [r.token_ids for r in steered.rollouts] == [r.token_ids for r in plain.rollouts]
        assert [r.logprobs for r in steered.rollouts] == [r.logprobs for r in plain.rollouts]
    strong = engine.generate(
        requests,
        greedy,
        seed=0,
        control=control,
        controller=FixedVector("control_point", 2, 5 * delta),
    )
    assert strong.cost.forward_passes > 0
    assert strong.states is not None
    assert plain.states is not None
    first = [i for i, label in enumerate(plain.states.labels) if label.point == 1]
    first_steered = [i for i, label in enumerate(strong.states.labels) if label.point == 1]
    before, after = plain.states.states[first], strong.states.states[first_steered]
    assert torch.equal(before[:, :2], after[:, :2])  # blocks 1 and 2: read before the impulse
    assert not torch.allclose(before[:, 2:], after[:, 2:])  # blocks above feel it
    assert all(r.impulses for r in strong.rollouts)
    assert strong.cost.prefill_passes == plain.cost.prefill_passes


def test_replaying_recorded_impulses_reproduces_the_steered_states_and_tokens(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    delta = 2 * torch.randn(64, generator=torch.Generator().manual_seed(1))
    control = ControlSpec(automaton, 2)
    engine = DecodeEngine(loaded, max_rows=16)
    steered = engine.generate(
        [GenerationRequest(p) for p in prompts[:8]],
        greedy,
        seed=0,
        control=control,
        controller=FixedVector("control_point", 3, delta),
    )
    replays = []
    for prompt, rollout in zip(prompts[:8], steered.rollouts, strict=True):
        cut = rollout.impulses[-1].token_index + 1
        planned = tuple(PlannedImpulse(i.token_index, i.block, delta) for i in rollout.impulses)
        replays.append(GenerationRequest(prompt, 0, rollout.token_ids[:cut], planned))
    again = engine.generate(replays, greedy, seed=0, control=control)
    assert [r.token_ids for r in again.rollouts] == [r.token_ids for r in steered.rollouts]
    assert [r.control_points for r in again.rollouts] == [
        r.control_points for r in steered.rollouts
    ]
    # An impulse and its opposite at the same place cancel.
    request = replays[0]
    both = (
        *request.planned,
        *(PlannedImpulse(p.token_index, p.block, -p.delta) for p in request.planned),
    )
    cancelled = GenerationRequest(request.prompt, 0, request.prefix_token_ids, both)
    untouched = GenerationRequest(request.prompt, 0, request.prefix_token_ids)
    a, b = engine.generate([cancelled, untouched], greedy, seed=0).rollouts
    assert a.token_ids == b.token_ids


def test_rows_of_one_batch_take_impulses_at_different_blocks_and_strengths(
    engine: DecodeEngine,
    prompts: list[Prompt],
    greedy: SamplingParams,
    unsteered: list[Rollout],
) -> None:
    generator = torch.Generator().manual_seed(4)
    short = dataclasses.replace(greedy, max_new_tokens=48)
    plain = [rollout.token_ids[:48] for rollout in unsteered[:6]]
    requests = []
    for i, (prompt, token_ids) in enumerate(zip(prompts[:6], plain, strict=True)):
        delta = 20 * (i + 1) * torch.randn(64, generator=generator)
        impulses = (PlannedImpulse(3, i % 6, delta), PlannedImpulse(5, (i + 2) % 6, -delta))
        requests.append(GenerationRequest(prompt, 0, token_ids[:7], impulses))
    together = engine.generate(requests, short, seed=0).rollouts
    alone = [engine.generate([request], short, seed=0).rollouts[0] for request in requests]
    assert [r.token_ids for r in together] == [r.token_ids for r in alone]
    assert [r.token_ids for r in together] != plain


def test_a_model_that_keeps_another_kind_of_state_is_refused_by_name(loaded: LoadedModel) -> None:
    config = copy.deepcopy(loaded.model.config)
    model = type(loaded.model)(config)
    model.config.layer_types = ["full_attention", "linear_attention"] * 3
    other = dataclasses.replace(loaded, model=model)
    with pytest.raises(ModelError, match="blocks of type linear_attention"):
        DecodeEngine(other, max_rows=1)


def test_samples_share_one_prefill_and_costs_are_counted(
    loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    sampling = SamplingParams(60, loaded.stop_token_ids, temperature=1.0)
    requests = [GenerationRequest(prompts[0], k) for k in range(8)]
    result = DecodeEngine(loaded, max_rows=8).generate(requests, sampling, seed=0)
    longest = max(len(r.token_ids) for r in result.rollouts)
    assert result.cost.prefill_passes == 1
    assert result.cost.forward_passes == longest  # the prefill yields the first token
    assert [r.forward_passes for r in result.rollouts] == [
        len(r.token_ids) for r in result.rollouts
    ]
    fed = sum(len(r.token_ids) - 1 for r in result.rollouts)
    assert result.cost.token_forwards == len(prompts[0].token_ids) + fed


def test_repetition_penalty_forbids_what_it_should(
    loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    params = SamplingParams(30, (), repetition_penalty=1e9)
    rollout = DecodeEngine(loaded, max_rows=1).generate(
        [GenerationRequest(prompts[0])], params, seed=0
    )
    ids = rollout.rollouts[0].token_ids
    assert len(set(ids)) == len(ids)
    assert not set(ids) & set(prompts[0].token_ids)


def test_a_prompt_longer_than_the_context_is_refused(engine: DecodeEngine) -> None:
    long = _prompt("long", [5] * 500)
    with pytest.raises(DataError, match=r"exceed the model's context of 512"):
        engine.generate([GenerationRequest(long)], SamplingParams(100), seed=0)
    with pytest.raises(DataError, match="no tokens"):
        engine.generate([GenerationRequest(_prompt("empty", []))], SamplingParams(4), seed=0)


def test_out_of_memory_halves_the_rows_and_loses_no_prompt(
    loaded: LoadedModel,
    prompts: list[Prompt],
    greedy: SamplingParams,
    unsteered: list[Rollout],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    requests = [GenerationRequest(p) for p in prompts]
    forward, sizes = SlotForward.__call__, []

    def limited(
        self: SlotForward, cache: object, ids: torch.Tensor, *args: object, **kwargs: object
    ):  # type: ignore[no-untyped-def]
        sizes.append(len(ids))
        if len(ids) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, cache, ids, *args, **kwargs)

    monkeypatch.setattr(SlotForward, "__call__", limited)
    found = DecodeEngine(loaded, max_rows=16).generate(requests, greedy, seed=0)
    assert [r.token_ids for r in found.rollouts] == [r.token_ids for r in unsteered]
    assert max(sizes) == 16
    assert sizes[-1] <= 4

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("other")

    monkeypatch.setattr(SlotForward, "__call__", broken)
    with pytest.raises(RuntimeError, match="other"):
        DecodeEngine(loaded, max_rows=16).generate(requests, greedy, seed=0)


def test_a_cache_budget_bounds_the_rows_and_a_listener_hears_every_token(
    loaded: LoadedModel, prompts: list[Prompt], greedy: SamplingParams, unsteered: list[Rollout]
) -> None:
    longest = max(len(p.token_ids) for p in prompts)
    engine = DecodeEngine(loaded, max_rows=64, max_cache_tokens=3 * (longest + 96) + 5)
    requests = [GenerationRequest(p) for p in prompts]
    heard: list[list[int]] = [[] for _ in requests]
    result = engine.generate(
        requests, greedy, seed=0, listener=lambda i, token: heard[i].append(token)
    )
    assert result.cost.prefill_passes >= len(prompts) / 3
    assert [r.token_ids for r in result.rollouts] == [r.token_ids for r in unsteered]
    assert [tuple(tokens) for tokens in heard] == [r.token_ids for r in result.rollouts]
