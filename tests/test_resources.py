"""What a run loads, it can let go of."""

from __future__ import annotations

import weakref

from stir_train.config.run import RunConfig
from stir_train.distributed.world import alone
from stir_train.runtime.resources import Resources


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


def test_nothing_is_loaded_to_be_released() -> None:
    resources = Resources(RunConfig(name="run"), alone())
    resources.release_model()
    assert "loaded" not in vars(resources)
    resources.close()
