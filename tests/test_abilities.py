"""A method that needs what the backend lacks is refused by name, before anything is made."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from stir_train.answering.model import ModelAnswerer
from stir_train.config.backends import BACKENDS
from stir_train.config.load import parse_config
from stir_train.config.pipeline import STAGE_NAMES
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError, StageError
from stir_train.generation.backend import Ability, SamplingParams
from stir_train.generation.open import abilities_of
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.runtime.abilities import require_backend
from stir_train.runtime.generation import GenerationJob, generate_jobs
from tests.support.smoke import run_smoke


class SmallBackend(DecodeEngine):
    """Captures states and steers at control points, and that is all."""

    name = "small"
    abilities = frozenset({Ability.CAPTURE_STATES, Ability.ACT_AT_CONTROL_POINTS})


class EverywhereController:
    """Would hold a vector over the completion."""

    place = "everywhere"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line makes it a backend."""
    monkeypatch.setitem(BACKENDS, "small", f"{__name__}:SmallBackend")


def _config(*overrides: str) -> RunConfig:
    values = {"name": "run", "generation": {"backend": "small"}}
    return parse_config(RunConfig, values, list(overrides), origin="test")


@pytest.mark.parametrize(
    ("stage", "overrides", "lacking"),
    [
        ("validate", [], "validate: paired replay .* replay impulses"),
        ("tune", ["tune.modes=[static, preview]"], "tune: mode preview .* preview"),
        ("tune", ["tune.enabled=false", "steering.mode=hybrid"], "tune: mode hybrid .* preview"),
        (
            "tune",
            [
                f"steering={{mode: custom, controller: '{__name__}:EverywhereController'}}",
                "tune.modes=[custom]",
            ],
            "tune: mode custom .* hold a vector over the completion",
        ),
        ("baselines", ["baselines.methods=[seal, nowait]"], "baselines: nowait .* edited weights"),
        (
            "evaluate",
            ["evaluate.variants={shown: {mode: preview}}"],
            "evaluate: variant shown .* preview",
        ),
        (
            "evaluate",
            ["tune.modes=[value]", "evaluate.variants={gated: {momentum_gate: 0.9}}"],
            "evaluate: variant gated .* how uncertain",
        ),
    ],
)
def test_what_a_stage_asks_of_a_backend_that_cannot_is_named(
    small: None, stage: str, overrides: list[str], lacking: str
) -> None:
    with pytest.raises(StageError, match=f"{lacking}.*generation.backend=small cannot"):
        require_backend(_config(*overrides), [stage])
    require_backend(_config(*overrides, "generation.backend=transformers"), STAGE_NAMES)


def test_what_a_backend_can_do_is_not_refused(small: None) -> None:
    config = _config(
        "validation.enabled=false", "tune.modes=[value, static]", "baselines.methods=[seal]"
    )
    require_backend(config, STAGE_NAMES[: STAGE_NAMES.index("evaluate")])


def test_a_run_that_its_backend_cannot_finish_is_refused_before_its_first_stage(
    small: None, tmp_path: Path
) -> None:
    refused = run_smoke(tmp_path, "generation.backend=small")
    assert refused.returncode == 1
    said = " ".join(refused.stderr.split())
    assert "validate: paired replay needs a backend that can replay impulses" in said
    assert not (tmp_path / "smoke" / "rollout").exists()
    briefly = ("generation.max_new_tokens=8", "generation.backend=small")
    done = run_smoke(tmp_path, *briefly, verb="rollout")
    assert done.returncode == 0, done.stderr


def test_an_answer_is_streamed_only_by_a_backend_that_can(small: None, tmp_path: Path) -> None:
    assert run_smoke(tmp_path, "rollout.num_samples=1", verb="rollout").returncode == 0
    asked = ("--prompt=a2, b2, c9, d1: ones sum, quiz\n", "--method=greedy")
    shown = run_smoke(tmp_path, *asked, verb="generate")
    assert "Answer:" in shown.stdout
    refused = run_smoke(tmp_path, "generation.backend=small", *asked, verb="generate")
    assert "--method greedy needs a backend that can stream tokens" in refused.stderr


def test_what_only_the_runs_own_choice_says_is_refused_before_a_chunk_is_made(small: None) -> None:
    answerer = ModelAnswerer("base", _never, None, 0, needs=frozenset({Ability.HOLD_OVER_SEGMENTS}))
    job = GenerationJob([], answerer, SamplingParams(8), prefix="trial/")
    context = SimpleNamespace(config=_config())
    with pytest.raises(StageError, match="trial needs a backend that can hold a vector over a seg"):
        generate_jobs(context, SimpleNamespace(name="steer"), [job], lambda *_: None)


def _never() -> DecodeEngine:
    raise AssertionError("nothing is loaded")


def test_a_backend_is_one_of_the_table_and_a_class_with_abilities(
    small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert abilities_of("small") == SmallBackend.abilities
    with pytest.raises(
        ConfigError, match=r"generation.backend: expected transformers or vllm or small"
    ):
        _config("generation.backend=other")
    monkeypatch.setitem(BACKENDS, "broken", f"{__name__}:EverywhereController")
    with pytest.raises(ConfigError, match="EverywhereController is no class with abilities"):
        abilities_of("broken")
    monkeypatch.setitem(BACKENDS, "absent", "absent_module:Backend")
    with pytest.raises(ConfigError, match=r"generation.backend: no module absent_module"):
        abilities_of("absent")
