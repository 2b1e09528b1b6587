"""The controller, decision by decision, against a slow implementation and its own ablations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest
import torch

from stir_train.config.stages import UtilityConfig
from stir_train.config.steering import (
    MODES,
    HybridSteering,
    PreviewSteering,
    RetrievingSteering,
    SimilaritySteering,
    ValueSteering,
)
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import ArtifactError, StageError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    SamplingParams,
)
from stir_train.generation.controller import ControlBatch, Decision
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.steering.controller import BasisController
from stir_train.steering.controls import empty_basis, random_directions, shuffled_keys
from stir_train.steering.scoring import Retriever
from stir_train.types.rollout import Prompt
from stir_train.types.steering import SteeringDecision
from tests.support import bases
from tests.support.slow_steering import SlowSteering

SETTINGS = {
    "similarity": SimilaritySteering(strength=0.75),
    "published": PreviewSteering(strength=1.0, preview_strength=1.0),
    "preview": PreviewSteering(strength=2.0),
    "value": ValueSteering(strength=2.0),
    "random choice": PreviewSteering(strength=2.0, retrieval="random"),
    "no memory": PreviewSteering(strength=2.0, similarity_weight=0.0),
    "hybrid": HybridSteering(strength=2.0, center_keys=True),
}


def _controller(settings: RetrievingSteering) -> BasisController:
    return BasisController(bases.basis(), settings, block=bases.BLOCK, head=bases.value_head())


def _by_place(decisions: Sequence[SteeringDecision]) -> dict[tuple[str, int], SteeringDecision]:
    return {(d.prompt_id, d.point): d for d in decisions}


@pytest.mark.parametrize("name", SETTINGS)
def test_engine_equals_rebuilding_every_prefix_with_the_recorded_impulses(
    name: str, loaded: LoadedModel, prompts: list[Prompt], automaton: ControlPointAutomaton
) -> None:
    sampling = SamplingParams(60, loaded.stop_token_ids)
    controller = _controller(SETTINGS[name])
    result = DecodeEngine(loaded, max_rows=5).generate(
        [GenerationRequest(p) for p in prompts[:6]],
        sampling,
        seed=0,
        control=ControlSpec(automaton, 3),
        controller=controller,
    )
    reference = SlowSteering(loaded, automaton, (controller,), sampling, max_points=3)
    tokens = [
        tuple(reference.run(prompt, rollout.token_ids))
        for prompt, rollout in zip(prompts[:6], result.rollouts, strict=True)
    ]
    found, expected = _by_place(result.decisions), _by_place(reference.decisions)
    assert found.keys() == expected.keys()
    for place, decision in expected.items():
        other = found[place]
        assert (other.chosen, other.candidates) == (decision.chosen, decision.candidates), place
        assert other.strength == pytest.approx(decision.strength, abs=1e-3)
        assert other.scores == pytest.approx(decision.scores, abs=1e-3)
        assert other.null_score == pytest.approx(decision.null_score, abs=1e-3)
    assert [r.token_ids for r in result.rollouts] == tokens
    assert any(d.chosen >= 0 for d in result.decisions), (
        "a test in which nothing fires shows nothing"
    )


def test_value_and_similarity_cost_no_pass_and_previews_cost_what_paper_says(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    def cost(
        settings: RetrievingSteering,
    ) -> tuple[list[int], list[int], Sequence[SteeringDecision], int]:
        controller = _controller(settings)
        result = DecodeEngine(loaded, max_rows=1).generate(
            [GenerationRequest(prompts[0])],
            greedy,
            seed=0,
            control=ControlSpec(automaton, 8),
            controller=controller,
        )
        rollout = result.rollouts[0]
        assert rollout.forward_passes == result.cost.forward_passes
        return (
            [rollout.forward_passes],
            [len(rollout.token_ids)],
            result.decisions,
            rollout.preview_tokens,
        )

    for mode in ("similarity", "value"):
        passes, tokens, _, previews = cost(MODES[mode](strength=2.0))
        assert passes == tokens
        assert previews == 0
    passes, tokens, decisions, previews = cost(SETTINGS["preview"])
    previewed = [d for d in decisions if d.candidates]
    fired = sum(d.chosen >= 0 for d in previewed)
    assert passes[0] == tokens[0] + 4 * len(previewed) + fired
    assert previews == sum(4 * (1 + len(d.candidates)) for d in previewed)


def test_empty_basis_is_plain_greedy_to_the_bit(
    loaded: LoadedModel,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    engine = DecodeEngine(loaded, max_rows=8)
    requests = [GenerationRequest(p) for p in prompts[:10]]  # the last two when rows become free
    plain = engine.generate(requests, greedy, seed=0).rollouts
    for settings in SETTINGS.values():
        controller = BasisController(
            empty_basis(bases.basis()), settings, block=bases.BLOCK, head=bases.value_head()
        )
        steered = engine.generate(
            requests, greedy, seed=0, control=ControlSpec(automaton, 8), controller=controller
        )
        assert [(r.token_ids, r.logprobs) for r in steered.rollouts] == [
            (r.token_ids, r.logprobs) for r in plain
        ]


def test_retrieval_is_the_published_rule_written_out() -> None:
    basis = bases.basis()
    kept = basis.select((basis.blocks == bases.BLOCK).nonzero()[:, 0])
    states = bases.harvest()[1].at_block(bases.BLOCK)[:20]
    points = torch.tensor([label.point for label in bases.harvest()[1].labels[:20]])
    found = Retriever(kept, center_keys=False, num_nearest=8).retrieve(states, points, 4)
    for row in range(20):
        query = states[row] / states[row].norm()
        near = sorted(
            (i for i in range(len(kept)) if int(kept.points[i]) == int(points[row])),
            key=lambda i: -float(query @ kept.keys[i]),
        )[:8]
        affinity = {i: float(query @ kept.keys[i]) * float(kept.quality[i]) for i in near}
        corrections = sorted((i for i in near if not kept.is_anchor[i]), key=lambda i: -affinity[i])
        anchors = [affinity[i] for i in near if kept.is_anchor[i]]
        valid = found.valid[row].tolist()
        entries = [e for e, ok in zip(found.entries[row].tolist(), valid, strict=True) if ok]
        assert [affinity[e] for e in entries] == pytest.approx(
            [affinity[c] for c in corrections[:4]]
        )
        assert float(found.null_affinity[row]) == pytest.approx(max(anchors, default=0.0), abs=1e-5)


def test_value_mode_gates_bounds_and_respects_the_first_point(prompts: list[Prompt]) -> None:
    states, batch = _some_states()
    free = _decided(_controller(ValueSteering(strength=3.0)), states, batch)
    assert bool(free.fires.any())
    gated = _controller(ValueSteering(strength=3.0, gate=0.0))
    assert not bool(_decided(gated, states, batch).fires.any())
    tight = _controller(ValueSteering(strength=3.0, max_relative_norm=0.1))
    bounded = _decided(tight, states, batch)
    width = bounded.deltas.shape[1]
    ratio = bounded.deltas.norm(dim=-1) / states[:, -width:].norm(dim=-1)
    assert float(ratio.max()) <= 0.1 + 1e-5
    first = _controller(ValueSteering(strength=3.0, first_point_only=True))
    fires = _decided(first, states, batch).fires
    assert torch.equal(fires, free.fires & (batch.points == 1))


def _decided(controller: BasisController, states: torch.Tensor, batch: ControlBatch) -> Decision:
    decision = controller.decide(states, batch)
    assert decision is not None
    return decision


def _some_states() -> tuple[torch.Tensor, ControlBatch]:
    _, captured = bases.harvest()
    labels = captured.labels[:64]
    return captured.side_by_side(bases.READS)[:64], ControlBatch(
        tuple(label.prompt_id for label in labels),
        tuple(label.sample for label in labels),
        torch.tensor([label.point for label in labels]),
        tuple(label.token_index for label in labels),
    )


def test_the_head_picks_the_strength_that_it_expects_most_of() -> None:
    states, batch = _some_states()
    options = {"strength": 1.0, "max_relative_norm": 100.0, "margin": 0.0}
    alone = {
        factor: _controller(ValueSteering(**{**options, "strength": factor}))
        for factor in (1.0, 2.0, 3.0)
    }
    best = torch.full((64,), -torch.inf)
    for controller in alone.values():
        best = torch.maximum(best, _decided(controller, states, batch).scores.max(1).values)
    grid = _controller(ValueSteering(**options, strength_factors=(1.0, 2.0, 3.0)))
    impulses = _decided(grid, states, batch)
    found = impulses.scores.max(1).values
    torch.testing.assert_close(found, best)
    used = set(impulses.strengths[impulses.fires].tolist())
    assert used <= {1.0, 2.0, 3.0}
    assert len(used) > 1


def test_the_dearer_tokens_are_the_more_the_controller_saves_them() -> None:
    states, batch = _some_states()
    head = bases.value_head()
    saved = []
    for price in (0.0, 0.5, 5.0):
        controller = BasisController(
            bases.basis(),
            ValueSteering(strength=3.0, margin=0.0),
            block=bases.BLOCK,
            head=bases.value_head(),
            utility=UtilityConfig(token_price=price),
        )
        impulses = _decided(controller, states, batch)
        now = head.tokens_left(states, batch.points)
        steered = states.clone()
        steered[:, -impulses.deltas.shape[1] :] += impulses.deltas
        then = head.tokens_left(steered, batch.points)
        saved.append(float((now - then).mean()))
    assert saved == sorted(saved)
    assert saved[2] > saved[0]
    utility = head.utility(states, batch.points, token_price=0.0)
    right, _ = head.p_correct(states, batch.points)
    torch.testing.assert_close(utility.mean(0), right)


def test_controls_keep_everything_but_the_one_thing() -> None:
    basis = bases.basis()
    noisy = random_directions(basis, seed=0)
    torch.testing.assert_close(noisy.directions.norm(dim=-1), basis.directions.norm(dim=-1))
    assert torch.equal(noisy.keys, basis.keys)
    cosine = torch.nn.functional.cosine_similarity(noisy.directions, basis.directions, dim=-1)
    assert float(cosine[~basis.is_anchor].abs().mean()) < 0.3
    shuffled = shuffled_keys(basis, seed=0)
    assert torch.equal(shuffled.directions, basis.directions)
    assert not torch.equal(shuffled.keys, basis.keys)
    for block in (3, 4):
        mine = (basis.blocks == block) & (basis.points == 1)
        assert torch.equal(shuffled.keys[mine].sort(0).values, basis.keys[mine].sort(0).values), (
            "keys stay within their block and point"
        )


def test_bad_bases_are_refused_before_decoding() -> None:
    basis = bases.basis()
    directions = basis.directions.clone()
    directions[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="not finite"):
        BasisController(
            dataclasses.replace(basis, directions=directions), SETTINGS["similarity"], block=4
        )
    with pytest.raises(ArtifactError, match="judges impulses in block 4, not in 3"):
        BasisController(basis, SETTINGS["value"], block=3, head=bases.value_head())
    with pytest.raises(StageError, match="needs a value head"):
        BasisController(basis, SETTINGS["value"], block=4)
    # In tests jaxtyping sees the mismatch first (a TypeError); without it the record itself does.
    with pytest.raises((ValueError, TypeError)):
        dataclasses.replace(basis, quality=basis.quality[:-1])
