"""What of the vLLM backend needs no vLLM: its record of a completion, and what it says where there is none."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stir_train.config.load import parse_config
from stir_train.config.run import RunConfig
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.errors import ConfigError, StageError
from stir_train.generation.backend import (
    ControlSpec,
    GenerationRequest,
    PlannedImpulse,
    SamplingParams,
)
from stir_train.generation.control_hook import ControlHook
from stir_train.generation.fixed import FixedVector
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.generation.vllm.engine import VLLMEngine
from stir_train.generation.vllm.extent import BLOCK_TOKENS, Extent
from stir_train.generation.vllm.passes import Fed, plan_pass, record_pass
from stir_train.generation.vllm.track import Track
from stir_train.generation.vllm.versions import (
    installed_version,
    load_part,
    require_called,
    require_internals,
)
from stir_train.models.load import LoadedModel
from stir_train.runtime.abilities import require_backend
from stir_train.types.places import Place
from stir_train.types.rollout import Prompt
from tests.support.measures import measured_briefly
from tests.support.smoke import run_smoke

POINT, OTHER, WIDTH = 5, 6, 4
VECTOR = torch.ones(WIDTH)
PROMPT = Prompt("p", "", "", (1, 2, 3), "")


def _automaton() -> ControlPointAutomaton:
    completes = torch.zeros(1, 10, dtype=torch.bool)
    completes[0, POINT] = True
    return ControlPointAutomaton(torch.zeros(1, 10, dtype=torch.long), completes)


def _fed_all(track: Track, tokens: list[int], *, first: int, place: Place) -> torch.Tensor:
    """What a pass over tokens adds, a row a token."""
    control = ControlSpec(_automaton(), 8)
    controllers = () if track.request.planned else (FixedVector(place, 2, VECTOR),)
    planned = plan_pass([Fed(track, 0, first, tokens)], control, controllers, torch.device("cpu"))
    hook = ControlHook(controllers)
    states = torch.zeros(1, len(tokens), WIDTH)
    with hook.carrying_out(planned.plan) as record:
        edits = hook.edits_at(2, states)
    record_pass(planned, record, (), tokens)
    for edit in edits:
        states[0].index_add_(0, edit.columns, edit.deltas)
    return states[0, :, 0]


@pytest.mark.parametrize(
    ("place", "added"),
    [
        ("prompt_end", [0, 0, 1, 0, 0, 0, 0, 0]),
        ("control_point", [0, 0, 0, 0, 1, 0, 1, 0]),
        ("segment", [0, 0, 0, 0, 1, 1, 1, 1]),
        ("everywhere", [0, 0, 1, 1, 1, 1, 1, 1]),
        ("every_token", [1, 1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_what_is_fed_again_gets_the_same_again(place: Place, added: list[float]) -> None:
    track = Track(0, GenerationRequest(PROMPT), _automaton())
    tokens = [1, 2, 3, OTHER, POINT, OTHER, POINT, OTHER]
    once = [_fed_all(track, tokens[:3], first=0, place=place)]
    once += [_fed_all(track, [t], first=3 + i, place=place) for i, t in enumerate(tokens[3:6])]
    # Preempted: all that there is comes again in one pass, with the token that was sampled last.
    again = _fed_all(track, tokens[:7], first=0, place=place)
    assert again.tolist() == added[:7]
    assert torch.cat(once).tolist() == added[:6]
    assert _fed_all(track, tokens[7:], first=7, place=place).tolist() == added[7:]
    assert _fed_all(track, tokens[4:], first=4, place=place).tolist() == added[4:]
    num_asked = 2 if place in ("control_point", "segment") else 1
    assert len(track.decisions) == len(track.impulses) == num_asked
    assert track.control_points == [1, 3]


@pytest.mark.parametrize(
    ("place", "added"),
    [
        ("prompt_end", [0, 0, 1, 0, 0, 0]),
        ("control_point", [0, 0, 0, 0, 1, 0]),
        ("segment", [0, 0, 0, 0, 1, 0]),
        ("everywhere", [0, 0, 1, 1, 1, 1]),
        ("every_token", [1, 1, 1, 1, 1, 1]),
    ],
)
def test_what_is_planned_is_added_in_the_prefix_and_held_beyond_it(
    place: Place, added: list[float]
) -> None:
    at = -1 if place in ("prompt_end", "everywhere", "every_token") else 1
    planned = (PlannedImpulse(at, 2, VECTOR, place),)
    track = Track(0, GenerationRequest(PROMPT, 0, (OTHER, POINT), planned), _automaton())
    context = _fed_all(track, [1, 2, 3, OTHER, POINT], first=0, place=place)
    following = _fed_all(track, [POINT], first=5, place=place)
    assert [*context.tolist(), *following.tolist()] == added


@pytest.mark.parametrize(
    ("places", "prefix", "planned", "first"),
    [
        ((), (), (), None),
        (("control_point",), (), (), 3),
        (("segment",), (OTHER, OTHER), (), 5),
        (("prompt_end",), (), (), 2),
        (("everywhere", "control_point"), (), (), 2),
        (("every_token",), (), (), 0),
        ((), (OTHER, OTHER), (PlannedImpulse(1, 2, VECTOR),), 4),
    ],
)
def test_where_a_cache_is_first_another(
    places: tuple[Place, ...],
    prefix: tuple[int, ...],
    planned: tuple[PlannedImpulse, ...],
    first: int | None,
) -> None:
    track = Track(0, GenerationRequest(PROMPT, 0, prefix, planned), _automaton())
    assert track.first_steered(places) == first


def test_how_large_a_cache_is() -> None:
    assert Extent(4, 256).num_blocks == 4 * 256 // BLOCK_TOKENS + 1
    assert Extent(4, 256, 512).num_blocks == 512 // BLOCK_TOKENS + 1
    assert Extent(4, 256, 32).num_blocks == 256 // BLOCK_TOKENS + 1, "one row fits in any case"


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str | None], None]:
    """Pretend that a version of vLLM is installed, or none."""

    def pretend(version: str | None) -> None:
        def found(name: str) -> str:
            if version is None or name != "vllm":
                raise importlib.metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr("stir_train.generation.vllm.versions.importlib.metadata.version", found)

    return pretend


def test_another_version_than_the_supported_one_is_named(
    installed: Callable[[str | None], None],
) -> None:
    installed("0.32.1")
    assert installed_version() == "0.32.1"
    for version in ("0.33.0", "0.3.2", "0.320.1"):
        installed(version)
        with pytest.raises(StageError, match=rf"expected vLLM 0\.32, found {version}"):
            installed_version()
    installed(None)
    with pytest.raises(StageError, match=r"expected vLLM 0\.32, found none; docs/vllm.md"):
        installed_version()


def test_missing_internals_are_named(installed: Callable[[str | None], None]) -> None:
    installed("0.32.0")
    require_internals({"Path": (Path, ("exists",))})
    with pytest.raises(StageError, match=r"vLLM 0.32.0 has no Path.gone; .* for vLLM 0\.32"):
        require_internals({"Path": (Path, ("exists", "gone"))})


def test_what_cannot_be_imported_names_the_supported_version(
    installed: Callable[[str | None], None],
) -> None:
    installed("0.32.0")
    with pytest.raises(StageError, match=r"generation\.backend: .*; .* for vLLM 0\.32"):
        load_part("stir_train.generation.vllm.gone:Session", kind="generation.backend")


def test_what_is_not_called_is_named(installed: Callable[[str | None], None]) -> None:
    installed("0.32.0")
    require_called({"one": True})
    with pytest.raises(StageError, match=r"vLLM 0.32.0 does not call two; .* for vLLM 0\.32"):
        require_called({"one": True, "two": False})


def test_a_run_without_vllm_is_refused_before_its_first_stage(
    installed: Callable[[str | None], None],
) -> None:
    installed(None)
    values = {"name": "run", "generation": {"backend": "vllm"}}
    config = parse_config(RunConfig, values, [], origin="test")
    with pytest.raises(StageError, match="found none"):
        require_backend(config, ["rollout"])
    require_backend(config, ["report"])
    assert "vllm" not in sys.modules


def test_a_dry_run_says_that_it_would_stop(
    installed: Callable[[str | None], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_briefly(monkeypatch)
    installed(None)
    asked = ("--dry-run", "generation.backend=vllm")
    done = run_smoke(tmp_path, *asked)
    assert done.returncode == 1
    assert "the run would stop: generation.backend=vllm: expected vLLM 0.32" in done.stderr


def test_previews_are_refused_by_name(installed: Callable[[str | None], None]) -> None:
    installed("0.32.0")
    values = {"name": "run", "generation": {"backend": "vllm"}}
    config = parse_config(RunConfig, values, ["tune.modes=[preview]"], origin="test")
    with pytest.raises(StageError, match=r"mode preview .* preview, and generation.backend=vllm"):
        require_backend(config, ["tune"])


def test_options_are_the_backends_own(
    loaded: LoadedModel, installed: Callable[[str | None], None], greedy: SamplingParams
) -> None:
    with pytest.raises(ConfigError, match=r"generation.options: seed: not with .*transformers"):
        DecodeEngine(loaded, max_rows=1, options={"seed": 1})
    installed("0.32.0")
    with pytest.raises(ConfigError, match=r"generation.options.enforce_eager: not with .*vllm"):
        VLLMEngine(loaded, max_rows=1, options={"enforce_eager": False})
