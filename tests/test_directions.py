"""Reward-gradient directions: the score of rollouts, its sums by advantage, and tests of the sums."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from stir_train.config.inputs import ModelConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.directions.advantages import leave_one_out
from stir_train.directions.gradients import GradientSettings, rollout_gradients
from stir_train.errors import ArtifactError, ModelError, StageError
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.blocks import find_blocks
from stir_train.models.hooks import BlockEdit, block_hooks
from stir_train.models.load import LoadedModel, load_model
from stir_train.types.directions import PLACES, PlacedVector
from stir_train.types.places import Place
from stir_train.types.rollout import Impulse, Prompt, Rollout
from tests.support import gradient_ranks, tiny_models
from tests.support.ranks import outputs, run_ranks
from tests.support.recorded import (
    BLOCKS,
    MAX_POINTS,
    SETTINGS,
    TEMPERATURE,
    graded,
    rollout,
    some_rollouts,
)
from tests.support.tiny_models import double


def columns(one: Rollout, place: Place, max_points: int) -> list[int]:
    """By hand: positions in prompt and completion where a place acts."""
    end, last = len(one.prompt_token_ids) - 1, len(one.prompt_token_ids) + len(one.token_ids) - 1
    everything = list(range(end, last))
    points = [end + 1 + c for c in one.control_points if end + 1 + c < last]
    if place == "prompt_end":
        return [end]
    if place == "everywhere":
        return everything
    if place == "control_point":
        return points[:max_points]
    stop = points[max_points] if len(points) > max_points else last
    return [c for c in everything if points and points[0] <= c < stop]


def log_probability(
    loaded: LoadedModel, one: Rollout, *, block: int, where: Sequence[int], vector: Tensor
) -> Tensor:
    """Of the completion when a vector is added, without any of the code under test."""

    def add(states: Tensor) -> Tensor:
        states = states.clone()
        states[0, list(where)] += vector
        return states

    ids = torch.tensor([[*one.prompt_token_ids, *one.token_ids]])
    with torch.no_grad(), block_hooks(loaded.blocks, {block: add}):
        logits = loaded.model(input_ids=ids).logits / TEMPERATURE
    num_prompt = len(one.prompt_token_ids)
    chosen = logits.log_softmax(-1)[0, num_prompt - 1 : -1].gather(-1, ids[0, num_prompt:, None])
    return chosen.sum()


# Norms of the others compute in float32 whatever the model's dtype.
@pytest.mark.parametrize(
    ("name", "step", "tolerance"),
    [
        ("phi", 1e-3, 2e-6),
        ("gpt-neox", 1e-3, 2e-6),
        ("qwen2", 1e-2, 1e-3),
        ("mistral-sliding", 1e-2, 1e-3),
        ("gemma2-hybrid", 1e-2, 1e-3),
        ("gemma3-hybrid", 1e-2, 1e-3),
    ],
)
def test_gradients_are_finite_differences(name: str, step: float, tolerance: float) -> None:
    loaded = double(name)
    rollouts = some_rollouts()
    # Its attention takes masks of doubles to float32, where a row that is all padding has no finite score.
    padded = name != "gemma2-hybrid"
    settings = SETTINGS if padded else dataclasses.replace(SETTINGS, max_batch_tokens=1)
    found, _ = rollout_gradients(loaded, rollouts, settings)
    assert found.prompt_ids == tuple(one.prompt_id for one in rollouts)
    generator = torch.Generator().manual_seed(1)
    for row, one in enumerate(rollouts):
        for block, place in itertools.product(BLOCKS, PLACES):
            vector = torch.randn(32, generator=generator, dtype=torch.double)
            vector /= vector.norm()
            where = columns(one, place, MAX_POINTS)
            up, down = (
                log_probability(loaded, one, block=block, where=where, vector=s * step * vector)
                for s in (1, -1)
            )
            wanted = float(up - down) / (2 * step)
            got = float(found.at(block, place)[row].double() @ vector)
            assert got == pytest.approx(wanted, abs=tolerance), (one.prompt_id, block, place)
        plain = log_probability(loaded, one, block=1, where=[0], vector=torch.zeros(32))
        assert float(found.logprobs[row]) == pytest.approx(float(plain), abs=1e-4)


def test_mean_states_are_those_of_a_plain_pass() -> None:
    loaded = double("phi")
    rollouts = some_rollouts()
    found, _ = rollout_gradients(loaded, rollouts, SETTINGS)
    for row, one in enumerate(rollouts):
        ids = torch.tensor([[*one.prompt_token_ids, *one.token_ids]])
        seen: dict[int, Tensor] = {}
        with torch.no_grad(), block_hooks(loaded.blocks, {b: _keeping(seen, b) for b in BLOCKS}):
            loaded.model(input_ids=ids)
        for block, place in itertools.product(BLOCKS, PLACES):
            where = columns(one, place, MAX_POINTS)
            wanted = seen[block][where].mean(0) if where else torch.zeros(32)
            got = found.mean_states_at(block, place)[row]
            torch.testing.assert_close(got, wanted.float(), atol=1e-4, rtol=1e-4)


def _keeping(seen: dict[int, Tensor], block: int) -> BlockEdit:
    def keep(states: Tensor) -> Tensor:
        seen[block] = states[0].detach().clone()
        return states

    return keep


def test_points_and_segments_add_up_to_the_places() -> None:
    found, _ = rollout_gradients(double("phi"), some_rollouts(), SETTINGS)
    points = found.points
    assert points is not None
    for row, (prompt_id, sample) in enumerate(zip(found.prompt_ids, found.samples, strict=True)):
        mine = [
            i for i, p in enumerate(points.labels) if (p.prompt_id, p.sample) == (prompt_id, sample)
        ]
        assert [points.labels[i].point for i in mine] == list(range(len(mine)))
        assert len(mine) <= MAX_POINTS + 1
        assert torch.equal(points.at_point[mine[0]], found.sums[row, PLACES.index("prompt_end")])
        later = points.at_point[mine[1:]].sum(0)
        torch.testing.assert_close(later, found.sums[row, PLACES.index("control_point")])
        held = points.over_segment[mine[1:]].sum(0)
        torch.testing.assert_close(held, found.sums[row, PLACES.index("segment")])


@pytest.fixture(scope="module")
def toy() -> LoadedModel:
    """Four tokens, of which 1 ends a completion and 2 is a control point."""
    config = copy.deepcopy(tiny_models.CONFIGS["phi"])
    config.vocab_size = 4
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(3)
        model = AutoModelForCausalLM.from_config(config)
        for name, value in model.named_parameters():
            if name.endswith("weight") and value.ndim == 2:
                torch.nn.init.normal_(value, std=0.3)
    model.double().eval().requires_grad_(requires_grad=False)
    loaded = tiny_models.build("phi")
    return dataclasses.replace(loaded, model=model, blocks=find_blocks(model))


def every_completion(length: int) -> list[Rollout]:
    found: list[tuple[int, ...]] = []
    for tokens in itertools.product(range(4), repeat=length):
        ended = tokens[: tokens.index(1) + 1] if 1 in tokens else tokens
        if ended not in found:
            found.append(ended)
    return [
        rollout("q", (0, 3, 2), t, tuple(i for i, x in enumerate(t) if x == 2), sample=i)
        for i, t in enumerate(found)
    ]


@pytest.mark.parametrize("place", PLACES)
def test_the_expected_estimate_is_the_gradient_of_expected_reward(
    toy: LoadedModel, place: Place
) -> None:
    """By enumeration: over all completions, and over all pairs of them with leave-one-out advantages."""
    completions = every_completion(3)
    generator = torch.Generator().manual_seed(5)
    rewards = torch.rand(len(completions), generator=generator, dtype=torch.double)
    found, _ = rollout_gradients(toy, completions, SETTINGS)
    chances = found.logprobs.double().exp()
    assert float(chances.sum()) == pytest.approx(1, abs=1e-9)
    scores = found.at(2, place).double()
    assert float((chances @ scores).norm()) < 1e-5, "a score has no mean"
    vector = torch.nn.functional.normalize(torch.randn(32, generator=generator).double(), dim=0)
    step = 1e-3

    def expected_reward(scale: float) -> float:
        logs = [
            log_probability(
                toy, one, block=2, where=columns(one, place, MAX_POINTS), vector=scale * vector
            )
            for one in completions
        ]
        return float(torch.stack(logs).exp() @ rewards)

    wanted = (expected_reward(step) - expected_reward(-step)) / (2 * step)
    exact = (chances * rewards) @ scores
    assert abs(wanted) > 1e-3
    assert float(exact @ vector) == pytest.approx(wanted, abs=1e-6)
    # The score of a pair's mean, weighted by how likely the pair is.
    estimate = torch.zeros(32, dtype=torch.double)
    for one, two in itertools.product(range(len(completions)), repeat=2):
        pair = [graded("q", 0, float(rewards[one])), graded("q", 1, float(rewards[two]))]
        first, second = leave_one_out(pair, lambda item: item.reward).of(("q", "q"), (0, 1))
        estimate += chances[one] * chances[two] * (first * scores[one] + second * scores[two]) / 2
    torch.testing.assert_close(estimate, exact, rtol=0, atol=1e-6)


def test_a_rollout_does_not_depend_on_its_batch() -> None:
    loaded, rollouts = double("qwen2"), some_rollouts()
    together, _ = rollout_gradients(loaded, rollouts, SETTINGS)
    small = dataclasses.replace(SETTINGS, max_batch_tokens=1)
    alone, cost = rollout_gradients(loaded, rollouts, small)
    assert cost.batches == len(rollouts)
    torch.testing.assert_close(together.sums, alone.sums, rtol=1e-4, atol=1e-5)
    again, _ = rollout_gradients(loaded, rollouts, SETTINGS)
    assert torch.equal(together.sums, again.sums)


@pytest.mark.parametrize(
    "name", ["gemma2-hybrid", "gemma3-hybrid", "mistral-sliding", "qwen2", "gpt-neox"]
)
def test_prompts_of_other_lengths_in_a_batch_change_nothing(name: str) -> None:
    attention = "eager" if name == "gemma2-hybrid" else "sdpa"
    loaded, rollouts = tiny_models.build(name, attention=attention), some_rollouts()
    together, cost = rollout_gradients(loaded, rollouts, SETTINGS)
    assert cost.batches == 1
    for row, one in enumerate(rollouts):
        alone, _ = rollout_gradients(loaded, [one], SETTINGS)
        torch.testing.assert_close(together.sums[row], alone.sums[0], rtol=1e-3, atol=1e-4)
        assert float(together.logprobs[row]) == pytest.approx(float(alone.logprobs[0]), abs=1e-3)


def test_nothing_below_the_lowest_wanted_block_has_a_graph() -> None:
    loaded = tiny_models.build("qwen2")
    seen: dict[int, bool] = {}
    handles = [
        block.register_forward_hook(
            lambda _m, _i, output, index=index: seen.__setitem__(
                index, (output[0] if isinstance(output, tuple) else output).requires_grad
            )
        )
        for index, block in enumerate(loaded.blocks)
    ]
    settings = dataclasses.replace(SETTINGS, blocks=(2,))
    found, _ = rollout_gradients(loaded, some_rollouts()[:1], settings)
    for handle in handles:
        handle.remove()
    assert seen == {0: False, 1: False, 2: False, 3: True}
    assert all(p.grad is None for p in loaded.model.parameters())
    assert not found.sums.requires_grad
    assert found.sums.any()


def test_a_half_precision_model_points_the_same_way(
    loaded: LoadedModel,
    engine: DecodeEngine,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
) -> None:
    sampling = SamplingParams(48, loaded.stop_token_ids, temperature=0.8)
    made = engine.generate(
        [GenerationRequest(p) for p in prompts[:6]],
        sampling,
        seed=0,
        control=ControlSpec(automaton, 8),
    ).rollouts
    settings = GradientSettings((2, 4), dataclasses.replace(sampling, temperature=1.0), 8)
    exact, _ = rollout_gradients(loaded, made, settings)
    for one, total in zip(made, exact.logprobs.tolist(), strict=True):
        assert total == pytest.approx(sum(one.logprobs), abs=1e-3)
    half = load_model(ModelConfig(name="embedded/addition", dtype="bfloat16"))
    rounded, _ = rollout_gradients(half, made, settings)
    assert rounded.sums.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(exact.sums, rounded.sums, dim=-1)
    present = exact.sums.norm(dim=-1) > 0
    assert float(cosine[present].min()) > 0.97


def test_acting_vectors_are_part_of_the_differentiated_policy() -> None:
    loaded, rollouts = double("phi"), some_rollouts()
    vector = torch.randn(32, generator=torch.Generator().manual_seed(6)).double()
    acting = (
        PlacedVector(0, "segment", vector),
        PlacedVector(0, "every_token", -vector),
        PlacedVector(1, "prompt_end", vector),
    )
    found, _ = rollout_gradients(loaded, rollouts, dataclasses.replace(SETTINGS, acting=acting))
    for row, one in enumerate(rollouts):

        def add(states: Tensor, where: Sequence[int]) -> Tensor:
            states = states - vector
            states[0, list(where)] += vector
            return states

        first = columns(one, "segment", MAX_POINTS)
        with block_hooks(loaded.blocks, {0: lambda h, w=first: add(h, w)}):
            wanted = log_probability(
                loaded, one, block=1, where=columns(one, "prompt_end", MAX_POINTS), vector=vector
            )
        assert float(found.logprobs[row]) == pytest.approx(float(wanted), abs=1e-9)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"sampling": SamplingParams(9)}, StageError, "greedy"),
        (
            {"sampling": SamplingParams(9, temperature=1.0, repetition_penalty=1.1)},
            StageError,
            "repetition_penalty",
        ),
        ({"blocks": (2, 1)}, StageError, "ascending"),
        ({"blocks": ()}, StageError, "ascending"),
        ({"blocks": (4,)}, StageError, "4 blocks"),
    ],
)
def test_what_has_no_gradient_is_refused(
    change: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        rollout_gradients(
            tiny_models.build("phi"), some_rollouts(), dataclasses.replace(SETTINGS, **change)
        )


def test_steered_rollouts_are_refused() -> None:
    steered = dataclasses.replace(some_rollouts()[0], impulses=(Impulse(2, 1, 0, 1.0),))
    with pytest.raises(ArtifactError, match="steered"):
        rollout_gradients(tiny_models.build("phi"), [steered], SETTINGS)


def test_rollouts_steered_by_what_acts_are_differentiated() -> None:
    loaded, plain = double("phi"), some_rollouts()[:2]
    vector = torch.ones(32).double()
    acting = (PlacedVector(2, "every_token", vector),)
    settings = dataclasses.replace(SETTINGS, acting=acting)
    made = [
        dataclasses.replace(one, impulses=(Impulse(-1, 2, -1, 1.0, "every_token"),))
        for one in plain
    ]
    found, _ = rollout_gradients(loaded, made, settings)
    expected, _ = rollout_gradients(loaded, plain, settings)
    assert torch.equal(found.sums, expected.sums)
    other = dataclasses.replace(plain[0], impulses=(Impulse(-1, 2, -1, 1.0, "prompt_end"),))
    with pytest.raises(ArtifactError, match="steered"):
        rollout_gradients(loaded, [other], settings)


def test_an_unknown_change_of_logits_is_refused() -> None:
    loaded = tiny_models.build("phi")
    forward = loaded.model.forward

    def scaled(*args: object, **kwargs: object) -> object:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output

    loaded.model.forward = scaled
    with pytest.raises(ModelError, match="changes logits"):
        rollout_gradients(loaded, some_rollouts(), SETTINGS)


def test_ranks_that_hold_a_model_together_find_the_same(tmp_path: Path) -> None:
    program = str(Path(gradient_ranks.__file__))
    output, log = tmp_path / "found.safetensors", tmp_path / "log"
    ended = run_ranks(2, [program, str(output)], log)
    assert not any(ended), outputs(2, log)
    whole = load_model(ModelConfig(name=gradient_ranks.MODEL))
    found, _ = rollout_gradients(whole, gradient_ranks.rollouts(), gradient_ranks.SETTINGS)
    torch.testing.assert_close(load_file(output)["sums"], found.sums, rtol=1e-3, atol=1e-3)
