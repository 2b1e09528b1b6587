"""A report states the settings that its run was made with, whatever the configuration says today."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import yaml

from stir_train.artifacts.run_dir import RunDir, StageInputs
from stir_train.recipes.report import _settings
from stir_train.runtime.context import RunContext


def test_the_settings_of_a_report_are_those_of_the_stages(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    stage = run.stage("rollout")
    assert stage.begin(StageInputs({"rollout": {"num_samples": 4}, "seed": 0}, {}))
    stage.finish({})
    identity = SimpleNamespace(name="some/model", revision="main")
    today = SimpleNamespace(name="x", seed=9, rollout=SimpleNamespace(num_samples=8))
    context = SimpleNamespace(
        resources=SimpleNamespace(described=SimpleNamespace(identity=identity)),
        config=today,
        stage=run.stage,
    )
    stated = yaml.safe_load(_settings(cast(RunContext, context), ["rollout"]))
    assert stated["rollout"] == {"rollout": {"num_samples": 4}, "seed": 0}
    assert stated["model"] == {"name": "some/model", "revision": "main"}
