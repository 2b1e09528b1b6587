"""`effort`: one word that sizes a run; what is set by hand wins, and the origin of a value is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from stir_train.config.describe import describe_settings, describe_values
from stir_train.config.effort import EFFORTS
from stir_train.config.learning import DistillConfig
from stir_train.config.load import dump_config, load_config, origins_of, parse_config
from stir_train.config.pipeline import STAGES, settings_as_json
from stir_train.config.run import RunConfig
from stir_train.errors import ConfigError
from tests.support.commands import stir_train


def _config(*overrides: str, **values: object) -> RunConfig:
    return parse_config(RunConfig, {"name": "x", **values}, overrides, origin="test")


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_is_a_valid_run_and_only_of_settings_that_are_there(effort: str) -> None:
    config = _config(effort=effort)
    held = {row.key: row for row in describe_values(config, {})}
    for key in EFFORTS[config.effort]:
        assert held[key].origin == f"effort: {effort}"


def test_more_effort_spends_more_and_standard_is_the_defaults() -> None:
    quick, standard, thorough = (_config(effort=effort) for effort in EFFORTS)
    assert standard == _config()
    for less, more in ((quick, standard), (standard, thorough)):
        assert less.splits.num_test < more.splits.num_test
        assert less.rollout.num_samples < more.rollout.num_samples
        assert less.validation.num_completions(3) < more.validation.num_completions(3)
        assert less.num_tried_settings <= more.num_tried_settings
        assert less.distill.num_steps < more.distill.num_steps


@pytest.mark.parametrize("effort", EFFORTS)
def test_every_effort_tries_norms_of_the_size_that_the_defaults_have(effort: str) -> None:
    """They are shares of the states' norm: one above 1 would replace the state."""
    usual = _config().tune.vectors
    for place, norms in _config(effort=effort).tune.vectors.items():
        assert min(usual[place]) / 2 <= min(norms) <= max(norms) <= 2 * max(usual[place])


def test_what_is_set_wins_over_the_effort_wherever_it_is_set() -> None:
    config = _config("rollout.num_samples=7", effort="quick", splits={"num_test": 11})
    assert (config.rollout.num_samples, config.splits.num_test) == (7, 11)
    assert config.splits.num_harvest == 160, "beside what is set in the same section"
    with pytest.raises(ConfigError, match="effort"):
        _config(effort="huge")
    with pytest.raises(ConfigError, match=r"splits"):
        _config(effort="quick", splits=3)


def test_a_stage_is_of_its_values_whatever_word_gave_them() -> None:
    quick = _config(effort="quick")
    spelt = {
        section: {}
        for section in ("splits", "rollout", "validation", "tune", "distill", "evaluate")
    }
    for key, value in EFFORTS["quick"].items():
        section, _, setting = key.partition(".")
        spelt[section][setting] = value
    by_hand = _config(**spelt)
    for stage in STAGES:
        assert settings_as_json(stage.settings(quick)) == settings_as_json(stage.settings(by_hand))


def test_a_resolved_configuration_read_again_is_the_same(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(dump_config(_config(effort="thorough")))
    assert load_config(RunConfig, file) == _config(effort="thorough")


def test_every_value_says_where_it_comes_from(tmp_path: Path) -> None:
    base, file = tmp_path / "base.yaml", tmp_path / "mine.yaml"
    base.write_text("rollout: {num_samples: 3, temperature: 0.5}\ntask: {name: gsm8k}\n")
    file.write_text(
        "extends: [base.yaml]\nname: x\neffort: quick\nrollout: {temperature: 0.9}\n"
        "distill: {objective: {logits: 0.5}}\ntune: {vectors: {prompt_end: [1.0]}}\n"
    )
    overrides = ["splits.num_test=9", "distill.objective={states: 0.1}"]
    config = load_config(RunConfig, file, overrides)
    origins = origins_of(file, overrides)
    rows = {row.key: (row.value, row.origin) for row in describe_values(config, origins)}
    assert rows["rollout.num_samples"] == ("3", str(base))
    assert rows["rollout.temperature"] == ("0.9", str(file))
    assert rows["splits.num_test"] == ("9", "override splits.num_test=9")
    assert rows["splits.num_tune"] == ("96", "effort: quick")
    assert rows["tune.vectors"] == ('{"prompt_end": [1.0]}', str(file))
    assert rows["task.grader"] == ('"numeric"', "task: gsm8k")
    assert rows["rollout.top_p"] == ("0.95", "default")
    assert rows["distill.objective.logits"][0] == "0.0", "the override replaces what the file set"


def test_settings_shows_a_configurations_values() -> None:
    shown = stir_train("settings", "--of", "configs/demo.yaml", "splits", "effort=quick")
    assert "splits.num_test = 500   [configs/demo.yaml]" in shown.stdout
    assert "splits.seed = 0   [default]" in shown.stdout
    assert "effort quick: 4" in stir_train("settings", "rollout.num_samples").stdout
    for arguments, said in (
        (("effort=quick",), "--of"),
        (("--of", "configs/demo.yaml", "rolout"), "did you mean rollout"),
        (("rollout", "tune"), "one section"),
    ):
        refused = stir_train("settings", *arguments)
        assert refused.returncode == 1
        assert said in refused.stderr


def test_a_model_that_is_not_embedded_is_not_trained_like_a_toy() -> None:
    def distil(name: str, **set_here: object) -> DistillConfig:
        values = {"name": "x", "model": {"name": name}, "distill": set_here}
        return RunConfig.model_validate(values).distill

    toy, own = distil("embedded/addition"), distil("owner/model")
    assert (toy.learning_rate, toy.logit_tolerance) == (2e-3, 1e-4)
    assert (own.learning_rate, own.logit_tolerance) == (2e-4, 0.05)
    assert distil("owner/model", learning_rate=0.1).learning_rate == 0.1
    row = next(row for row in describe_settings() if row.key == "distill.learning_rate")
    assert "a model that is not embedded: 0.0002" in str(row)
    values = describe_values(RunConfig.model_validate({"name": "x", "model": {"name": "own"}}), {})
    origins = {value.key: value.origin for value in values}
    assert origins["distill.learning_rate"] == "a model that is not embedded"
    assert origins["distill.rank"] == "default"
