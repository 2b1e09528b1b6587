"""Results and reports: what is written is read back, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stir_train.artifacts.run_dir import RunDir, StageDir, StageInputs
from stir_train.config.steering import MODES, ValueSteering
from stir_train.errors import ArtifactError
from stir_train.stores.reports import load_report, save_report
from stir_train.stores.results import (
    RESULTS_FILE,
    RESULTS_SCHEMA,
    load_results,
    load_run_results,
    save_results,
)
from stir_train.types.reports import (
    Calibration,
    EntryUplift,
    HeadReport,
    ReliabilityBin,
    ValidationReport,
    ValueReport,
)
from stir_train.types.results import (
    MethodRow,
    OutOfDomainResults,
    Results,
    SampledMetrics,
    SteeringTrial,
    StudentComparison,
    TuneReport,
)
from tests.support.results import metrics, results


@pytest.fixture
def stage(tmp_path: Path) -> StageDir:
    """An open stage of a run."""
    stage = RunDir(tmp_path / "run").stage("evaluate")
    stage.begin(StageInputs(config={}, sources={}))
    return stage


def _full() -> Results:
    row = MethodRow(
        metrics("stir"), "value-depth0.6", "tune", steering=ValueSteering(depth=0.6), setting=None
    )
    voted = MethodRow(metrics("seal"), "seal", "tune", setting={"block": 3, "c": 2.0, "v": "mean"})
    return results(
        "greedy",
        rows=(row, voted),
        students=(StudentComparison("lora", "greedy", None, 0.5, 0.1, (0, 0.2), -0.1, (-0.2, 0)),),
        sampled=(
            SampledMetrics(
                "greedy",
                2,
                0.5,
                (0.4, 0.6),
                0.0,
                (0.0, 0.0),
                {1: 0.5, 2: 0.7},
                0.5,
                (0.4, 0.6),
                9.0,
            ),
        ),
        out_of_domain=(OutOfDomainResults("lists", 3, "bb", (metrics("greedy"),)),),
    )


def test_results_are_read_back_as_they_were_written(stage: StageDir) -> None:
    written = _full()
    save_results(stage, written)
    with pytest.raises(ArtifactError, match="run it first"):
        load_results(stage)
    stage.finish({})
    assert load_results(stage) == written
    assert load_run_results(stage.path.parent, stage.name) == written
    setting = load_results(stage).methods[-1].setting
    assert setting is not None
    assert [type(value) for value in setting.values()] == [int, float, str]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("task"), "task is missing"),
        (
            lambda found: found["methods"][0]["metrics"].pop("wins"),
            "methods.0.metrics.wins is miss",
        ),
        (lambda found: found["methods"][0].update(extra=1), "methods.0.extra is unknown"),
        (lambda found: found.update(num_items="many"), "num_items: .*integer"),
        (lambda found: found.update(schema=4), f"schema {RESULTS_SCHEMA} were expected, found 4"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    stage: StageDir, change: object, message: str
) -> None:
    save_results(stage, _full())
    path = stage.path / RESULTS_FILE
    found = json.loads(path.read_text(encoding="utf-8"))
    assert callable(change)
    change(found)
    with stage.writing(RESULTS_FILE) as rewritten:
        rewritten.write_text(json.dumps(found), encoding="utf-8")
    stage.finish({})
    with pytest.raises(ArtifactError, match=message):
        load_results(stage)


def test_an_altered_file_and_a_missing_run_are_refused(stage: StageDir, tmp_path: Path) -> None:
    save_results(stage, _full())
    stage.finish({})
    path = stage.path / RESULTS_FILE
    path.write_text(path.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(ArtifactError, match="damaged"):
        load_results(stage)
    with pytest.raises(ArtifactError, match="no run directory"):
        load_run_results(tmp_path / "none", "evaluate")


def test_reports_keep_what_json_has_no_words_for(stage: StageDir) -> None:
    once = EntryUplift(3, 1, 0.2, float("-inf"), float("inf"), 0.1)
    save_report(stage, ValidationReport(entries=(once,)))
    stage.finish({})
    assert load_report(stage, ValidationReport).entries == (once,)
    with pytest.raises(
        ArtifactError, match=r"does not hold a ValueReport: blocks is missing.*redo"
    ):
        load_report(stage, ValueReport)


def test_reports_go_by_block_and_point_numbers(stage: StageDir) -> None:
    one = Calibration(2, 0.5, 0.7, 0.2, 0.1)
    report = ValueReport(
        {3: HeadReport(one, {1: one}, 0.6, 0.25, (ReliabilityBin(0.1, 0.2, 2),), 1.5)}
    )
    save_report(stage, report)
    stage.finish({})
    assert load_report(stage, ValueReport) == report


def test_the_best_of_each_mode_has_answered_everything_and_is_the_first_of_equals() -> None:
    def trial(mode: str, strength: float, utility: float, num_problems: int = 9) -> SteeringTrial:
        settings = MODES[mode].model_validate({"strength": strength, "depth": 0.6})
        return SteeringTrial(settings, metrics("t", utility=utility), num_problems)

    trials = (
        trial("value", 9.0, 0.9, num_problems=4),
        trial("value", 1.0, 0.5),
        trial("value", 2.0, 0.7),
        trial("value", 3.0, 0.7),
        trial("static", 1.0, -0.1),
    )
    report = TuneReport(trials[1].settings, 9, trials)
    assert report.best_of_each_mode() == [trials[4].settings, trials[2].settings]
