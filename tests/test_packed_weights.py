"""Packed weights: the same products, gradients untouched, nothing kept, nothing stale."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stir_train.errors import ConfigError
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models import packed_weights as module
from stir_train.models.load import LoadedModel
from stir_train.models.packed_weights import can_pack, packed_weights
from stir_train.types.rollout import Prompt

pytestmark = pytest.mark.skipif(not can_pack(), reason="torch without MKL")
ROUNDING = 1e-5
"""Relative to the states' norm, of sums of 512 products in another order."""


def _layer(*, bias: bool = True, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(512, 1024, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (100, 1), (2, 7), (5,), (600,), (0,)], ids=str)
def test_products_are_those_of_the_layer(shape: tuple[int, ...], *, bias: bool) -> None:
    layer = _layer(bias=bias)
    states = torch.randn(*shape, 512)
    with torch.no_grad():
        expected = layer(states)
        with packed_weights(layer) as num_packed:
            found = layer(states)
            strided = layer(torch.stack([states, states], -1)[..., 0])
    assert num_packed == 1
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=ROUNDING)
    assert torch.equal(strided, found)
    assert "forward" not in vars(layer)


def test_products_in_bfloat16_are_as_exact_as_the_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "has_matrix_units", lambda: False)
    layer = _layer().bfloat16()
    states = torch.randn(100, 512).bfloat16()
    exact = states.double() @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad():
        plain = layer(states)
        with packed_weights(layer) as num_packed:
            found = layer(states)
    assert num_packed == 1
    assert found.dtype == torch.bfloat16
    errors = [(one.double() - exact).abs().mean() for one in (found, plain)]
    assert errors[0] <= 1.001 * errors[1]
    assert (found == exact.bfloat16()).float().mean() > 0.995, "rounded once"


def test_matrix_units_multiply_bfloat16_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = nn.ModuleList([_layer().bfloat16(), _layer()])
    for has_units, num_packed in ((True, 1), (False, 2)):
        monkeypatch.setattr(module, "has_matrix_units", lambda has=has_units: has)
        with packed_weights(layers) as found:
            assert found == num_packed


def test_copies_that_would_take_the_machines_memory_are_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layer = _layer()
    copy = module.COPY_BYTES * layer.weight.numel()
    for total, num_packed in ((4 * copy, 1), (4 * copy - 1, 0)):
        monkeypatch.setattr(module, "total_memory", lambda total=total: total)
        with packed_weights(layer) as found:
            assert found == num_packed


def test_a_graph_goes_through_the_weights_themselves() -> None:
    layer, states = _layer(), torch.randn(4, 512)
    with packed_weights(layer):
        layer(states).sum().backward()
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, states.sum(0).expand(1024, 512))


def test_other_layers_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    hooked = _layer()
    replaced = hooked.forward
    hooked.forward = replaced  # type: ignore[method-assign]  # as accelerate does
    others = [Own(512, 1024), nn.Linear(8, 8), _layer().half(), hooked]
    with packed_weights(nn.ModuleList(others)) as num_packed:
        assert num_packed == 0
    assert hooked.forward is replaced


def test_an_error_leaves_no_layer_packed() -> None:
    layer = _layer()
    with pytest.raises(KeyError), packed_weights(layer):
        raise KeyError
    assert "forward" not in vars(layer)


@pytest.fixture
def packs_all(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small layers too; how many rows each packed product had."""
    monkeypatch.setattr(module, "MIN_WEIGHTS", 1)
    rows: list[int] = []
    make = module._product

    def counting(layer: nn.Linear) -> object:
        product = make(layer)

        def counted(states: torch.Tensor) -> torch.Tensor:
            rows.append(states.shape[:-1].numel())
            return product(states)

        return counted

    monkeypatch.setattr(module, "_product", counting)
    return rows


def _texts(
    loaded: LoadedModel, prompts: list[Prompt], greedy: SamplingParams, **options: bool
) -> list[tuple[int, ...]]:
    engine = DecodeEngine(loaded, max_rows=16, options=options)
    requests = [GenerationRequest(prompt, 0) for prompt in prompts]
    return [r.token_ids for r in engine.generate(requests, greedy, seed=0).rollouts]


def test_answers_are_the_same_and_a_setting_turns_it_off(
    packs_all: list[int], loaded: LoadedModel, prompts: list[Prompt], greedy: SamplingParams
) -> None:
    plain = _texts(loaded, prompts, greedy, packed_weights=False)
    assert not packs_all
    assert _texts(loaded, prompts, greedy) == plain
    assert max(packs_all) > 100, "prompts, and"
    assert packs_all.count(16) > 10, "full steps"


def test_a_few_requests_do_not_wait_for_it(
    packs_all: list[int], loaded: LoadedModel, prompts: list[Prompt], greedy: SamplingParams
) -> None:
    _texts(loaded, prompts[:7], greedy)
    assert not packs_all


def test_weights_that_are_changed_between_calls_count(
    packs_all: list[int], loaded: LoadedModel, prompts: list[Prompt], greedy: SamplingParams
) -> None:
    engine = DecodeEngine(loaded, max_rows=16)
    requests = [GenerationRequest(prompt, 0) for prompt in prompts]
    before = engine.generate(requests, greedy, seed=0).rollouts
    head = loaded.model.get_output_embeddings()
    kept = head.weight.data.clone()
    try:
        head.weight.data.neg_()  # as PEFT merges: without a trace in the version
        changed = engine.generate(requests, greedy, seed=0).rollouts
        assert [r.token_ids for r in changed] == _texts(
            loaded, prompts, greedy, packed_weights=False
        )
    finally:
        head.weight.data.copy_(kept)
    assert [r.token_ids for r in changed] != [r.token_ids for r in before]
    assert packs_all


@pytest.mark.parametrize("options", [{"packed": True}, {"packed_weights": 1}], ids=str)
def test_other_options_are_refused(options: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="packed"):
        DecodeEngine.check_installation(options)
