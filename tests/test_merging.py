"""What a fine-tune did to the weights of one model, done to those of another."""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import pytest
import torch
from torch import Tensor

from stir_train.baselines.editing import replaced
from stir_train.baselines.interface import AnsweringContext, Baseline, HarvestData, NotApplicable
from stir_train.baselines.merging import Merging, merged
from stir_train.config.inputs import ModelConfig
from stir_train.models.load import LoadedModel, load_model
from stir_train.types.rollout import Prompt
from stir_train.types.trajectory import CapturedStates
from tests.support.tiny_models import build

BEFORE, AFTER = "embedded/addition", "embedded/addition-blind"


def _values(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loaded.model.named_parameters()}


def _logits(loaded: LoadedModel, prompt: Prompt) -> Tensor:
    with torch.no_grad():
        return loaded.model(torch.tensor([prompt.token_ids]), use_cache=False).logits


def test_no_step_is_the_model_and_a_whole_one_from_it_is_the_other(
    loaded: LoadedModel, prompts: list[Prompt]
) -> None:
    before, after = load_model(ModelConfig(name=BEFORE)), load_model(ModelConfig(name=AFTER))
    own, wanted = _values(loaded), _values(after)
    plain, trained = (_logits(model, prompts[0]) for model in (loaded, after))
    assert not torch.equal(plain, trained)
    with replaced(merged(loaded, after, before, 0.0)):
        assert torch.equal(_logits(loaded, prompts[0]), plain)
    with replaced(merged(loaded, after, before, 1.0)):
        assert torch.equal(_logits(loaded, prompts[0]), trained)
    with replaced(merged(loaded, after, before, 0.5)):
        for name, value in _values(loaded).items():
            torch.testing.assert_close(value, (own[name] + wanted[name]) / 2)
    with suppress(KeyboardInterrupt), replaced(merged(loaded, after, before, 1.5)):
        assert not torch.equal(_logits(loaded, prompts[0]), plain)
        raise KeyboardInterrupt
    for name, value in _values(loaded).items():
        assert torch.equal(value.view(torch.int32), own[name].view(torch.int32)), name


def test_a_merged_model_answers_as_the_trained_one_and_is_taken_apart(
    answering: AnsweringContext, prompts: list[Prompt]
) -> None:
    few = prompts[:4]
    briefly = dataclasses.replace(
        answering, greedy=dataclasses.replace(answering.greedy, max_new_tokens=32)
    )
    method = Merging(tuned=AFTER, base=BEFORE)
    assert isinstance(method, Baseline)
    plain = briefly.answer(few)
    trained = dataclasses.replace(
        briefly,
        engine=type(briefly.engine)(load_model(ModelConfig(name=AFTER)), max_rows=16),  # type: ignore[call-arg]
    ).answer(few)
    assert plain != trained
    assert method.answer(briefly, {}, {"strength": 1.0}, few) == trained, "and at no more passes"
    assert method.answer(briefly, {}, {"strength": 0.0}, few) == plain


def test_models_of_other_words_or_shapes_and_parts_of_models_do_not_apply(
    loaded: LoadedModel,
) -> None:
    nothing = CapturedStates((), (3,), torch.zeros(0, 1, 64))
    harvest = HarvestData(loaded, [], [], nothing, None, (3,))
    with pytest.raises(NotApplicable, match="embedded/sorting has another vocabulary"):
        Merging(tuned="embedded/sorting", base=BEFORE).prepare(harvest)
    method = Merging(tuned=AFTER, base=BEFORE)
    assert method.prepare(harvest) == {}
    smaller = dataclasses.replace(harvest, loaded=build("llama"))
    with pytest.raises(NotApplicable, match=r"embed_tokens.weight is \(97, 32\) in llama and"):
        method.prepare(smaller)
    part = dataclasses.replace(harvest, loaded=dataclasses.replace(loaded, is_sharded=True))
    with pytest.raises(NotApplicable, match="ranks hold together"):
        method.prepare(part)
