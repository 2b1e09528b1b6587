"""What a run loads, it can let go of."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace

from stir_train.config.run import RunConfig
from stir_train.distributed.world import alone
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.models.load import LoadedModel, load_model
from stir_train.runtime.answerers import other_model_answerer
from stir_train.runtime.resources import Resources
from stir_train.types.rollout import Prompt


def test_a_model_that_is_released_is_gone_and_the_next_use_loads_it_again() -> None:
    resources = Resources(RunConfig(name="run"), alone())
    engine, identity = resources.engine, resources.loaded.identity
    weights = weakref.ref(next(resources.loaded.model.parameters()))
    resources.students["student"] = resources.make_engine(resources.loaded)
    del engine
    resources.release_model()
    assert weights() is None, "something still holds the model"
    assert not resources.students
    assert resources.loaded.identity == identity
    assert resources.engine is not None
    resources.close()


def test_another_model_decodes_without_the_cache_of_the_base(
    prompts: list[Prompt], greedy: SamplingParams
) -> None:
    resources = Resources(RunConfig(name="run"), alone())
    context = SimpleNamespace(resources=resources, config=RunConfig(name="run"))
    requests = [GenerationRequest(prompt) for prompt in prompts[:2]]
    before = resources.engine.generate(requests, greedy, seed=0)
    caches = [weakref.ref(resources.engine._cache)]
    for name in ("first", "second"):
        answerer = other_model_answerer(context, name, lambda: resources.loaded)
        assert answerer.open() is answerer.open()
        assert list(resources.students) == [name]
        answerer.answer(prompts[:2], num_samples=1, sampling=greedy)
        assert all(cache() is None for cache in caches)
        caches.append(weakref.ref(resources.students[name]._cache))
    assert resources.engine.generate(requests, greedy, seed=0).rollouts == before.rollouts
    resources.close()


def test_a_model_that_refers_to_itself_is_gone_before_the_next_is_loaded() -> None:
    resources = Resources(RunConfig(name="run"), alone())
    context = SimpleNamespace(resources=resources, config=RunConfig(name="run"))
    before: list[weakref.ref[LoadedModel]] = []

    def load() -> LoadedModel:
        assert all(model() is None for model in before), "two at once"
        model = load_model(context.config.model)
        model.model.itself = [model]
        before.append(weakref.ref(model))
        return model

    gc.disable()
    try:
        for name in ("first", "second"):
            other_model_answerer(context, name, load).open()
    finally:
        gc.enable()
    assert len(before) == 2
    resources.close()


def test_nothing_is_loaded_to_be_released() -> None:
    resources = Resources(RunConfig(name="run"), alone())
    resources.release_model()
    assert "loaded" not in vars(resources)
    resources.close()
