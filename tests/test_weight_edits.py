"""Methods that edit weights, and the reading of activations they learn from."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import nn

from stir_train.baselines.editing import edited
from stir_train.baselines.interface import AnsweringContext, HarvestData
from stir_train.baselines.reading import attention_output, feed_forward_output, read
from stir_train.baselines.steer2edit import edit_heads, edit_neurons, shrunk
from stir_train.baselines.thinkedit import ThinkEdit, contributions, without_direction
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout


def _tokens(rollouts: list[Rollout]) -> list[tuple[int, ...]]:
    return [rollout.token_ids for rollout in rollouts]


def test_thinkedit_silences_heads_along_the_direction_and_puts_weights_back(
    answering: AnsweringContext,
    prompts: list[Prompt],
    harvest: HarvestData,
    plain: list[Rollout],
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, heads = torch.randn(8, 12, generator=generator), torch.randn(3, 4, generator=generator)
    direction = nn.functional.normalize(torch.randn(8, generator=generator), dim=-1)
    changed = without_direction(weight, direction, 1, 3)
    along = contributions(changed, heads) @ direction
    assert float(along[1]) == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(along[[0, 2]], (contributions(weight, heads) @ direction)[[0, 2]])
    torch.testing.assert_close(
        contributions(weight, heads).sum(0), weight @ heads.flatten(), atol=1e-5, rtol=1e-5
    )
    parameters = ThinkEdit().prepare(harvest)
    assert parameters["scores short"].shape == parameters["scores long"].shape == (6, 4)
    layer = attention_output(harvest.loaded.blocks[0])
    before = layer.weight.clone()
    with suppress(KeyboardInterrupt), edited({layer: 0 * before}):
        assert not layer.weight.any()
        raise KeyboardInterrupt
    assert torch.equal(layer.weight, before)
    answered = ThinkEdit().answer(answering, parameters, {"against": "long", "heads": 1.0}, prompts)
    assert _tokens(answered) != _tokens(plain)
    assert _tokens(answering.answer(prompts)) == _tokens(plain), "the weights are back"


def test_steer2edit_moves_heads_and_neurons_by_their_shrunk_gain() -> None:
    gains = torch.tensor([-0.5, -0.05, 0.0, 0.05, 0.5])
    torch.testing.assert_close(
        shrunk(gains, rho=0.6, alpha=0.1),
        torch.tensor([-1.0, 0, 0, 0, 1.0]) * (0.5 - 0.06) / (0.6 * 0.9),
    )
    generator = torch.Generator().manual_seed(0)
    weight, given = torch.randn(8, 12, generator=generator), torch.randn(12, generator=generator)
    direction = nn.functional.normalize(torch.randn(8, generator=generator), dim=-1)
    moved = edit_heads(weight, given, direction, 3, rho=0.3) - weight
    # Only along the direction, head by head, and none for a head whose gain is shrunk away.
    torch.testing.assert_close(moved, torch.outer(direction, direction @ moved))
    assert not edit_heads(weight, given, direction, 3, rho=1e6).sub(weight).any()
    neurons = edit_neurons(weight, given, direction, rho=0.3) - weight
    torch.testing.assert_close(neurons, torch.outer(direction, direction @ neurons))
    # A neuron that adds along the direction adds more of it, one that adds against it less.
    along = direction @ weight
    gain = given.sign() * along / weight.norm(dim=0)
    strong = gain.abs() > 0.3 * 0.1
    pushed = given * (direction @ neurons)
    assert bool(
        (
            pushed[strong].sign()
            == along[strong].sign().mul(gain[strong].sign()).mul(given[strong].sign())
        ).all()
    )


def test_reading_is_what_the_model_does_and_finds_its_output_maps(
    loaded: LoadedModel, harvest: HarvestData
) -> None:
    rollouts = [g.rollout for g in harvest.graded[:3]]
    block = loaded.blocks[2]
    modules = {"block": block, "attention": attention_output(block)}
    (reading,) = read(loaded, rollouts, modules, {"neurons": feed_forward_output(block)})
    for row, rollout in enumerate(rollouts):
        ids = torch.tensor([[*rollout.prompt_token_ids, *rollout.token_ids]])
        with torch.no_grad():
            states = loaded.model(ids, output_hidden_states=True).hidden_states[3][0]
        own = states[len(rollout.prompt_token_ids) :]
        torch.testing.assert_close(reading.means("block")[row], own.mean(0), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(reading.lasts("block")[row], own[-1], atol=1e-4, rtol=1e-4)
    assert reading.found["neurons"].shape[-1] == feed_forward_output(block).in_features
    with pytest.raises(LookupError, match="no linear layer"):
        attention_output(nn.Linear(2, 2))
