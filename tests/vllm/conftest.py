"""The two engines over one model, and what is asked of both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch

from stir_train.data.control_points import ControlPointAutomaton
from stir_train.generation.backend import (
    ControlSpec,
    GenerationBackend,
    GenerationRequest,
    GenerationResult,
    SamplingParams,
)
from stir_train.generation.controller import Steering
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt
from tests.vllm.models import widened

MAX_ROWS, MAX_POINTS, BUDGET, READS = 5, 4, 48, (2, 4)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """All of this directory needs vLLM, and says so where there is none."""
    for item in items:
        if "tests/vllm/" in item.path.as_posix():
            item.add_marker(pytest.mark.vllm)
            if find_spec("vllm") is None:
                reason = "vLLM is not installed here; `make test-vllm` makes an environment for it"
                item.add_marker(pytest.mark.skip(reason=reason))


@dataclass(frozen=True)
class Pair:
    """Our engine and vLLM's over the same weights."""

    ours: GenerationBackend
    theirs: GenerationBackend
    control: ControlSpec

    def require_same(
        self,
        requests: Sequence[GenerationRequest],
        sampling: SamplingParams,
        steering: Steering | None = None,
        *,
        theirs: GenerationBackend | None = None,
    ) -> GenerationResult:
        """Both complete the requests to the same tokens, decisions and states; return vLLM's result."""
        a = self.ours.generate(
            requests, sampling, seed=3, control=self.control, controller=steering
        )
        b = (theirs or self.theirs).generate(
            requests, sampling, seed=3, control=self.control, controller=steering
        )
        require_same(a, b)
        return b


def require_same(a: GenerationResult, b: GenerationResult) -> None:
    """The same tokens, decisions and impulses; states and log-probabilities to rounding."""
    assert [r.token_ids for r in a.rollouts] == [r.token_ids for r in b.rollouts]
    for x, y in zip(a.rollouts, b.rollouts, strict=True):
        assert (x.prompt_id, x.sample, x.finish_reason) == (y.prompt_id, y.sample, y.finish_reason)
        assert x.control_points == y.control_points
        assert [(i.token_index, i.block, i.entry, i.place) for i in x.impulses] == [
            (i.token_index, i.block, i.entry, i.place) for i in y.impulses
        ]
        torch.testing.assert_close(
            torch.tensor([i.strength for i in x.impulses]),
            torch.tensor([i.strength for i in y.impulses]),
            rtol=1e-3,
            atol=1e-4,
        )
        torch.testing.assert_close(
            torch.tensor(x.logprobs),
            torch.tensor(y.logprobs),
            rtol=1e-3,
            atol=1e-4,
            equal_nan=True,
        )
    names = ("prompt_id", "sample", "point", "token_index", "block", "chosen", "place")
    assert [[getattr(d, name) for name in names] for d in a.decisions] == [
        [getattr(d, name) for name in names] for d in b.decisions
    ]
    assert (a.states is None) == (b.states is None)
    if a.states is not None and b.states is not None:
        assert (a.states.labels, a.states.blocks) == (b.states.labels, b.states.blocks)
        torch.testing.assert_close(a.states.states, b.states.states, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="session")
def wide() -> LoadedModel:
    return widened()


@pytest.fixture(scope="session")
def control(automaton: ControlPointAutomaton) -> ControlSpec:
    return ControlSpec(automaton, MAX_POINTS, READS)


@pytest.fixture(scope="session")
def pair(wide: LoadedModel, control: ControlSpec) -> Iterator[Pair]:
    theirs = VLLMEngine(wide, max_rows=MAX_ROWS)
    yield Pair(DecodeEngine(wide, max_rows=MAX_ROWS), theirs, control)
    theirs.close()


@pytest.fixture(scope="session")
def briefly(wide: LoadedModel) -> SamplingParams:
    return SamplingParams(BUDGET, wide.stop_token_ids)


@pytest.fixture(scope="session")
def requests(prompts: list[Prompt]) -> list[GenerationRequest]:
    """More than there are rows, so that prefills fall into passes that decode."""
    return [GenerationRequest(prompt) for prompt in prompts[:8]]
