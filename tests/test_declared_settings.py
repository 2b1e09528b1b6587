"""A stage declares all that it reads: a change of what it does not declare would leave it as it was."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

from stir_train.artifacts.run_dir import StageDir
from stir_train.config.load import load_config
from stir_train.config.pipeline import STAGES, Stage
from stir_train.config.run import RunConfig
from stir_train.runtime.context import Finish, Outcome, RunContext
from tests.support.config_reads import declared_by, recording, undeclared
from tests.support.smoke import SMOKE, run_smoke

Recipe = Callable[[RunContext, StageDir], Finish]

OVER_A_BASIS = (
    "splits.num_test=12",
    "validation={trials_per_round: 100, selection_problems: 8}",
    "value.num_steps=100",
    "tune.num_shortlisted=1",
    "baselines.methods=[nowait]",
    "evaluate={controls: false, num_samples: 2, variants: {shut: {margin: 10}}, "
    "out_of_domain: {sums: {task: {name: addition}, num_problems: 8}}}",
    "distill={num_steps: 4, patience: 2, validate_every_steps: 2, also: {policy: {samples: compared, sequence: 0, policy_gradient: 1}, "
    "taught: {logits: 1, on_policy: 0.5}}}",
)
BY_VECTORS = (
    "splits={num_harvest: 48, num_tune: 12, num_test: 12}",
    "rollout.temperature=1.0",
    "harvest.depths=[0.8]",
    "directions={num_permutations: 19, significance: 0.99, num_steps: 2}",
    "tune={modes: [vector], vectors: {every_token: [0.1]}, max_accuracy_loss: 1}",
    "utility.token_price=5",
    "distill={num_steps: 2, num_samples: 1, also: {}, objective: {logits: 1, states: 1}}",
)
BY_GRADIENTS = (
    "splits={num_harvest: 24, num_tune: 12, num_test: 12}",
    "rollout.temperature=1.0",
    "basis.directions=reward_gradient",
    "directions={num_permutations: 19, significance: 0.99}",
    "validation={trials_per_round: 50, selection_problems: 8}",
    "value.num_steps=100",
    "tune={modes: [value, vector], vectors: {every_token: [0.1]}, doubts: [1.0], strengths: [3.0], "
    "max_accuracy_loss: 1}",
    "utility.token_price=5",
    "evaluate.controls=false",
    "distill.enabled=false",
)
"""Between them they take every way of a stage that reads settings of its own."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [OVER_A_BASIS, BY_VECTORS, BY_GRADIENTS], ids=["basis", "vectors", "gradients"]
)
def test_no_stage_reads_a_setting_or_a_stage_that_it_does_not_declare(
    tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = load_config(RunConfig, SMOKE, [*settings])
    stages = [stage for stage in STAGES if stage.is_on(config)]
    found: list[str] = []

    def recorded(stage: Stage, run: Recipe) -> Recipe:
        def wrapped(context: RunContext, directory: StageDir) -> Finish:
            with recording() as reads:
                done = run(context, directory)

            def finish() -> Outcome:
                with recording() as more:
                    outcome = done()
                names = undeclared(reads.names | more.names, declared_by(stage, context.config))
                others = reads.stages | more.stages
                others -= {stage.name, "rollout", *stage.sources(context.config)}
                found.extend(f"{stage.name} reads {name}" for name in sorted({*names, *others}))
                return outcome

            return finish

        return wrapped

    for stage in stages:  # each in a context of its own, where nothing has been read yet
        module = importlib.import_module(f"stir_train.recipes.{stage.name}")
        with mock.patch.object(module, "run", recorded(stage, module.run)):
            done = run_smoke(tmp_path, *settings, verb=stage.name)
        assert done.returncode == 0, done.stderr
    assert not found
