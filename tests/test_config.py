"""Configuration: every problem at once, with the nearest name."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stir_train.artifacts.run_dir import RunDir, StageInputs
from stir_train.config.base import imported_by
from stir_train.config.describe import describe_settings
from stir_train.config.load import dump_config, load_config
from stir_train.config.pipeline import STAGE_NAMES, settings_as_json, stage
from stir_train.config.run import RunConfig
from stir_train.config.steering import CustomSteering, StaticSteering, ValueSteering
from stir_train.errors import ConfigError
from stir_train.launch.plan import plan_run
from tests.support.rates import config_of

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = [
    path
    for path in sorted(ROOT.glob("configs/**/*.yaml"))
    if path.parent.name not in ("models", "tasks")
    and not path.name.endswith("common.yaml")  # parts
]


def _write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_shipped_configs_validate_plan_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(RunConfig, path)
    assert [stage.name for stage in plan_run(config)] == list(STAGE_NAMES)
    again = load_config(RunConfig, _write(tmp_path, dump_config(config)))
    assert again == config


def test_a_plan_says_where_other_settings_would_be_refused(tmp_path: Path) -> None:
    text = f"name: x\noutput_dir: {tmp_path}\n"
    config = load_config(RunConfig, _write(tmp_path, text))
    changed = load_config(RunConfig, _write(tmp_path, f"{text}harvest: {{depths: [0.3]}}\n"))
    for name in ("rollout", "harvest"):
        settings = settings_as_json(stage(name).settings(config))
        RunDir(config.directory).stage(name).begin(StageInputs(config=settings, sources={}))
    kept = {planned.name: planned for planned in plan_run(config)}
    refused = {planned.name: planned for planned in plan_run(changed)}
    remade = {planned.name: planned for planned in plan_run(changed, remade=STAGE_NAMES)}
    assert kept["rollout"].state == "unfinished"
    assert not any(planned.refusal for planned in kept.values())
    assert refused["rollout"].state == "refused"
    assert "[0.3] now" in refused["rollout"].refusal
    assert remade["rollout"].state == "to remake"
    assert remade["basis"].state == "to do"


def test_every_problem_is_listed_at_once_with_the_nearest_name(tmp_path: Path) -> None:
    path = _write(
        tmp_path,
        "nmae: x\nrollout: {num_sample: 8, top_p: 1.5}\nbasis: {diversity: -1}\nmodel: 3\n",
    )
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, path)
    message = str(caught.value)
    assert "6 problems" in message
    assert "nmae: unknown key; did you mean 'name'?" in message
    assert "rollout.num_sample: unknown key; did you mean 'num_samples'?" in message
    assert "rollout.top_p" in message
    assert "basis.diversity" in message
    assert "name: required" in message
    assert "(got 3)" in message


def test_overrides_reach_nested_keys_and_numbers_are_numbers(tmp_path: Path) -> None:
    path = _write(tmp_path, "name: x\nbasis: {jitter: 1e-5}\n")
    config = load_config(
        RunConfig,
        path,
        ["rollout.num_samples=4", "distill.learning_rate=1e-3", "harvest.depths=[1]"],
    )
    assert config.basis.jitter == 1e-5
    assert config.rollout.num_samples == 4
    assert config.distill.learning_rate == 1e-3
    assert config.harvest.depths == (1.0,)


@pytest.mark.parametrize(
    ("text", "overrides", "expected"),
    [
        ("name: x", ["rollout"], "expected key=value"),
        ("name: x", ["name.sub=1"], "is a value, not a section"),
        ("- a", [], "expected a mapping"),
        ("name: [", [], "cannot be read as YAML"),
        ("name: ../x", [], "letters, digits"),
        ("name: x\nsteering: {depth: 0.5}", [], "not harvested"),
        ("name: x\ntask: {template: hi}", [], "must contain {question}"),
        ("name: x\nrollout: {temperature: .nan}", [], "finite"),
    ],
)
def test_bad_input_says_what_was_expected(
    tmp_path: Path, text: str, overrides: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError, match="(?s).*" + expected.replace("{", "\\{")):
        load_config(RunConfig, _write(tmp_path, text), overrides)
    with pytest.raises(ConfigError, match="no such configuration file"):
        load_config(RunConfig, tmp_path / "missing.yaml")


def test_extended_files_are_merged_and_loops_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("name: a\nrollout: {num_samples: 2, top_p: 0.5}\n")
    (tmp_path / "b.yaml").write_text("rollout: {num_samples: 3}\n")
    path = _write(tmp_path, "extends: [a.yaml, b.yaml]\nname: c\n")
    config = load_config(RunConfig, path)
    assert (config.name, config.rollout.num_samples, config.rollout.top_p) == ("c", 3, 0.5)
    loop = tmp_path / "loop.yaml"
    loop.write_text("extends: [loop.yaml]\nname: x\n")
    with pytest.raises(ConfigError, match="extends itself"):
        load_config(RunConfig, loop.resolve())
    with pytest.raises(ConfigError, match="list of file names"):
        load_config(RunConfig, _write(tmp_path, "extends: a.yaml\n"))


def test_every_setting_has_help_and_sections_can_be_chosen() -> None:
    rows = describe_settings()
    assert len(rows) > 60
    assert not [row.key for row in rows if not row.meaning]
    assert all(row.key.startswith("rollout.") for row in describe_settings("rollout"))
    assert [row.key for row in describe_settings("rollout.top_p")] == ["rollout.top_p"]
    with pytest.raises(ConfigError, match="sections: model"):
        describe_settings("nothing")
    with pytest.raises(ConfigError, match=r"did you mean .*steering"):
        describe_settings("stering")
    with pytest.raises(ConfigError, match=r"did you mean .*rollout.num_samples"):
        describe_settings("num_samples")


def test_every_default_that_is_shown_is_the_one_that_holds() -> None:
    bare = RunConfig(name="x").model_dump(mode="json")
    for row in describe_settings():
        if row.key == "name" or ".NAME." in row.key or "value" not in (row.when or "value"):
            continue
        value = bare
        for part in row.key.split("."):
            value = value[part]
        assert yaml.safe_load(row.default) == value, row.key
    rows = {row.key: row for row in describe_settings()}
    assert [key for key, row in rows.items() if row.default == "(required)"] == [
        "name",
        "steering.actions",
        "steering.controller",
    ]


def test_settings_show_what_they_may_be_and_for_which_mode() -> None:
    rows = {row.key: row for row in describe_settings()}
    assert rows["model.dtype"].allowed == "auto | float32 | bfloat16 | float16"
    assert rows["rollout.top_p"].allowed == "> 0; <= 1"
    assert rows["harvest.depths"].allowed == "each >= 0; each <= 1; not empty"
    assert rows["steering.mode"].default == "value"
    assert rows["steering.doubt"].when == "mode: value, hybrid"
    assert "vector" not in rows["steering.depth"].when
    assert rows["steering.actions"].when == "mode: vector"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            ["steering.mode=static", "steering.doubt=3"],
            "steering.doubt: mode static has no such setting; it is of value, hybrid",
        ),
        (["steering.dout=3"], "steering.dout: unknown key; did you mean 'doubt'?"),
        (["steering.mode=valu"], "steering.mode: 'valu' is none of none, static"),
        (["steering.mode=valu"], "did you mean 'value'?"),
        (
            ["steering.mode=static", "steering.strength=-1"],
            "steering.strength: expected more than 0 (mode static) (got -1)",
        ),
        (["steering.token_price=1"], "steering.token_price: unknown key"),
        (["steering=3"], "steering: "),
        (["steering.mode=custom"], "steering.controller: required, but missing (mode custom)"),
        (["steering={mode: custom, controller: mine}"], "expected an import path"),
        (["steering={mode: custom, controller: 'a:B'}"], "custom would never be tried"),
        (["tune.modes=[custom]"], "set steering.mode=custom and steering.controller"),
        (["evaluate.variants={a: {mode: valu}}"], "evaluate.variants.a: 'valu' is no mode"),
        (
            ["evaluate.variants={a: {mode: static, doubt: 1}}"],
            "evaluate.variants.a: no mode among static has all of: doubt",
        ),
        (
            ["tune.modes=[static]", "evaluate.variants={a: {doubt: 1}}"],
            "evaluate.variants.a: no mode among static has all of: doubt",
        ),
        (["evaluate.variants={a: {doubt: -1}}"], "evaluate.variants.a.doubt: "),
    ],
)
def test_a_setting_is_refused_by_name_where_its_mode_has_none(
    tmp_path: Path, overrides: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(RunConfig, _write(tmp_path, "name: x"), overrides)
    assert expected in str(caught.value)


def test_overrides_choose_a_mode_and_its_settings(tmp_path: Path) -> None:
    path = _write(tmp_path, "name: x")
    config = load_config(RunConfig, path, ["steering.mode=static", "steering.strength=2"])
    assert config.steering == StaticSteering(strength=2.0)
    assert load_config(RunConfig, path, ["steering.doubt=2"]).steering == ValueSteering(doubt=2.0)
    custom = "steering={mode: custom, controller: 'mine.steer:Mine', options: {a: [1, 2]}}"
    config = load_config(RunConfig, path, [custom, "tune.modes=[custom]"])
    assert config.steering == CustomSteering(controller="mine.steer:Mine", options={"a": [1, 2]})
    assert imported_by(config) == {"steering.controller": "mine.steer:Mine"}
    again = load_config(RunConfig, _write(tmp_path, dump_config(config)))
    assert again == config


def test_configuration_and_planning_import_no_torch() -> None:
    code = (
        "import sys; import stir_train.cli, stir_train.launch.plan, stir_train.config.run, "
        "stir_train.artifacts.run_dir; "
        "print([m for m in ('torch','transformers','datasets','wandb','deepspeed') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_tuning_the_plan_counts_one_controller_whatever_the_modes() -> None:
    modes = ("tune.modes=[value, preview, static]", "evaluate.controls=false")
    without = config_of(*modes, "tune.enabled=false")
    assert config_of(*modes).num_steered_methods - without.num_steered_methods == 2


def test_dumped_config_is_plain_yaml() -> None:
    values = yaml.safe_load(dump_config(load_config(RunConfig, ROOT / "configs" / "demo.yaml")))
    assert values["control_points"]["delimiters"] == ["\n\n"]
