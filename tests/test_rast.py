"""Two small models' difference, added to a third's logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stir_train.baselines.interface import (
    AnsweringContext,
    Baseline,
    HarvestData,
    NotApplicable,
)
from stir_train.baselines.rast import Rast
from stir_train.config.inputs import ModelConfig
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel, load_model
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

BEFORE, AFTER = "embedded/addition", "embedded/addition-blind"


def _greedy(loaded: LoadedModel, prompts: list[Prompt], sampling: SamplingParams) -> list[Rollout]:
    engine = DecodeEngine(loaded, max_rows=16)
    requests = [GenerationRequest(prompt) for prompt in prompts]
    return list(engine.generate(requests, sampling, seed=0).rollouts)


def test_the_difference_of_two_models_turns_one_of_them_into_the_other(
    loaded: LoadedModel,
    prompts: list[Prompt],
    greedy: SamplingParams,
    answering: AnsweringContext,
) -> None:
    sampling = dataclasses.replace(greedy, max_new_tokens=48)
    few = sorted(prompts, key=lambda p: len(p.token_ids))
    few = [few[-1], *few[:4]]  # of different lengths, and not in their order
    assert len({len(prompt.token_ids) for prompt in few}) > 1
    plain = _greedy(loaded, few, sampling)
    trained = _greedy(load_model(ModelConfig(name=AFTER)), few, sampling)
    assert [r.token_ids for r in plain] != [r.token_ids for r in trained]
    briefly = dataclasses.replace(answering, greedy=sampling)
    method = Rast(tuned=AFTER, base=BEFORE)
    assert isinstance(method, Baseline)
    for strength, expected in ((0.0, plain), (1.0, trained)):
        made = method.answer(briefly, {}, {"strength": strength}, few)
        for rollout, other in zip(made, expected, strict=True):
            assert rollout.prompt_id == other.prompt_id
            assert rollout.token_ids == other.token_ids
            assert rollout.finish_reason == other.finish_reason
            assert rollout.logprobs == pytest.approx(other.logprobs, abs=1e-3)
            assert rollout.forward_passes == 3 * other.forward_passes, "each model's pass counts"


def test_models_of_other_words_do_not_apply(loaded: LoadedModel) -> None:
    nothing = CapturedStates((), (3,), torch.zeros(0, 1, 64))
    harvest = HarvestData(loaded, [], [], nothing, None, (3,))
    with pytest.raises(NotApplicable, match="another vocabulary"):
        Rast(tuned="embedded/sorting", base=BEFORE).prepare(harvest)
    assert Rast(tuned=AFTER, base=BEFORE).prepare(harvest) == {}
