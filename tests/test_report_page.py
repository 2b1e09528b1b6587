"""The page of a run: what it says, and that it stands alone."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

from stir_train.artifacts.attempts import makers_of
from stir_train.config.steering import (
    StaticSteering,
    ValueSteering,
    VectorAction,
    VectorSteering,
)
from stir_train.evals.report import Changes, Evaluation, ReportData, Sample, render_report
from stir_train.stores.metric_log import read_metric_log
from stir_train.types.reports import (
    BasisReport,
    BlockDiagnostics,
    Calibration,
    DirectionEstimate,
    DirectionsReport,
    DirectionStep,
    EntryUplift,
    HeadReport,
    InjectionUplift,
    PointYield,
    ValidationReport,
    ValueReport,
)
from stir_train.types.results import SteeringTrial, TuneReport
from stir_train.types.shortlist import GainEstimate, RankedSetting, Shortlist
from tests.support.results import metrics, results

SETTINGS = StaticSteering(strength=2.0)


def _trial(utility: float, num_problems: int) -> SteeringTrial:
    figures = metrics("stir", delta_utility=utility, delta_utility_ci95=(utility, utility))
    return SteeringTrial(SETTINGS, figures, num_problems)


def _data(**changes: object) -> ReportData:
    tune = TuneReport(SETTINGS, 20, (_trial(0.1, 10), _trial(0.2, 20), _trial(0.3, 20)))
    evaluation = Evaluation(
        results=results("greedy", "stir", "control-random-vectors"),
        tune=tune,
        decisions=[],
        changes=Changes(0, [], {}),
        wins=[],
        losses=[],
        samples=[Sample("1 < 2?", "yes", {"greedy": ("no", False), "stir": ("yes", True)})],
    )
    plain = ReportData(
        title="tiny",
        model="model",
        task="task",
        verdict=["It gains."],
        evaluation=evaluation,
        directions=None,
        basis=None,
        validation=None,
        value=None,
        summaries={"rollout": {"tokens": 3}},
        lineage={"rollout": "ab" * 32},
        logs={},
        makers=[],
        config="name: tiny",
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_every_section_is_in_the_contents_once() -> None:
    page = render_report(_data())
    links = re.findall(r'<a href="#([^"]+)">([^<]+)</a>', page)
    assert links == re.findall(r'<h2 id="([^"]+)">([^<]+)</h2>', page)
    assert len(links) > 4
    assert "http" not in page
    assert "prefers-color-scheme: dark" in page


def test_a_control_wears_no_green_gain() -> None:
    page = render_report(_data())
    assert page.count('<td class="gain">gain</td>') == 1
    assert "<td>gain without vectors</td>" in page


PROSE = re.compile(r"<(table|svg|nav|h2).*?</\1>", re.DOTALL)
EXPLAINED = {
    "Held-out results": (
        "Wins / losses:",
        "McNemar p:",
        "Passes:",
        "Of which previews:",
        "No marker:",
    ),
    "Settings tried": ("Margin:", "doubt:", "change of utility:"),
    "Is there anything": ("Split half:", "Shuffled:", "p:", "over all rows:"),
    "Harvest and basis": ("Keys, raw:", "centred:", "Split-half:", "Quality:", "log-determinant"),
    "Causal validation": ("A trial is", "uplift is", "State:", "Helped and harmed:"),
    "Value head": ("AUROC:", "length-only:", "Brier:", "majority:", "ECE:"),
    "Wins": ("greedy decoding fails and steering solves",),
    "Losses": ("greedy decoding solves and steering fails",),
}


def _whole() -> ReportData:
    """A page with every section that a stage's own report makes."""
    row = DirectionEstimate(1, "prompt_end", 0.2, 0.1, 0.5, 0.0, 0.05, 0.01, 0.01, 1.0)
    step = DirectionStep(1, (), 0.5, 20.0, (row,))
    calibration = Calibration(10, 0.5, 0.9, 0.1, 0.02)
    head = HeadReport(calibration, {}, 0.6, 0.25, (), 1.0)
    return _data(
        directions=DirectionsReport((step,), 0.05, 8, 2, 8, 2, 0.0, 100, 100),
        basis=BasisReport(
            (BlockDiagnostics(1, 1.0, 0.9, 0.1, 0.2, 0.9),),
            (),
            (PointYield(1, 4, 2.0),),
            (0.5, 1.0),
            {1: (1.0, 2.0)},
            {"1": (0.0, -1.0)},
            {"1": (0.0, -1.0)},
        ),
        validation=ValidationReport(
            (EntryUplift(0, 2, 0.1, -0.1, 0.3, 0.1),),
            (InjectionUplift(1, 1.0, True, 2, 0.1, 0.5, 0.0),),
        ),
        value=ValueReport({1: head}),
    )


def test_what_a_stranger_cannot_know_is_explained_in_its_section() -> None:
    sections = re.split(r"<h2 [^>]*>", render_report(_whole()))
    for title, terms in EXPLAINED.items():
        (section,) = (text for text in sections if text.startswith(title))
        prose = PROSE.sub("", section)
        assert not [term for term in terms if term not in prose], title


def test_figures_and_origins_are_written_out() -> None:
    page = render_report(_data(summaries={"rollout": {"num_tokens": 337_123.0, "rate": 0.12345}}))
    assert "num_tokens 337,123, rate 0.1235" in page
    assert "chosen on the tune split" in page
    assert "seed 0" in page


def test_where_a_vector_acted_is_not_drawn_since_it_decides_nothing() -> None:
    data = _data()
    assert data.evaluation is not None
    vector = VectorSteering(actions=(VectorAction(place="every_token", depth=0.5, strength=1.0),))
    tune = dataclasses.replace(data.evaluation.tune, chosen=vector)
    page = render_report(_data(evaluation=dataclasses.replace(data.evaluation, tune=tune)))
    assert "Where the controller acted" in render_report(data)
    assert "Where the controller acted" not in page


def test_settings_are_sorted_by_what_is_shown() -> None:
    page = render_report(_data())
    table = page[page.index("Settings tried") :]
    shown = [table.index(figure) for figure in ("+0.300<br>", "+0.200<br>", "+0.100<br>")]
    assert shown == sorted(shown)


def test_sample_answers_are_escaped_and_marked() -> None:
    page = render_report(_data())
    assert "1 &lt; 2?" in page
    assert "greedy: wrong" in page
    assert "stir: right" in page


def test_figures_are_text_in_the_colours_of_the_page() -> None:
    figures = re.findall(r"<svg.*?</svg>", render_report(_data()), flags=re.DOTALL)
    assert len(figures) == 2
    assert ">accuracy (%)</text>" in figures[0]
    for figure in figures:
        assert "var(--ink)" in figure
        assert "#000000" not in figure
        assert "<image" not in figure
        names = re.findall(r' id="([^"]+)"', figure)
        assert len(names) == len(set(names))
        assert set(re.findall(r'href="#([^"]+)"', figure)) <= set(names)


def test_what_scrolls_sideways_has_a_shadow_at_the_edge_that_hides_something() -> None:
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", render_report(_data()).partition("</style>")[0])
    scrolling = [(names, body) for names, body in rules if "overflow-x: auto" in body]
    assert scrolling
    for names, body in scrolling:
        assert "background-attachment: local, local, scroll, scroll" in body, names
        assert body.count("var(--edge)") == body.count("var(--paper)") == 2, names


def test_a_wide_figure_keeps_the_size_of_its_text_on_a_narrow_screen() -> None:
    page = render_report(_data())
    assert "figure.wide svg { min-width: var(--natural-width) }" in page
    figures = re.findall(r"<svg[^>]*>", page)
    for opening in figures:
        (wide,) = re.findall(r'viewBox="0 0 ([\d.]+) ', opening)
        assert f'style="--natural-width: {wide}pt"' in opening


def test_the_log_of_a_stage_is_of_its_last_making(tmp_path: Path) -> None:
    lines = [
        {"stage": "rollout", "step": 1, "tokens": 5},
        {"stage": "rollout", "step": 2, "tokens": 5},
        {"stage": "rollout", "sha256": "a", "wall_seconds": 9.0},
        {"stage": "rollout", "step": 1, "tokens": 7},
        {"stage": "rollout", "sha256": "b", "wall_seconds": 3.5},
        {"stage": "distill", "step": 1, "loss": 2.0},
        {"stage": "distill", "step": 20, "loss": 1.0},
        {"stage": "distill", "step": 20, "loss": 0.5},  # by the attempt that went on
        {"stage": "distill", "series": "also/rejection", "step": 1, "loss": 3.0},
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"stage": "dis')
    logs = read_metric_log(path)
    assert (logs["rollout"].num_tokens, logs["rollout"].wall_seconds) == (7, 3.5)
    assert logs["distill"].wall_seconds is None
    assert logs["distill"].curves("loss") == {"": {1: 2.0, 20: 0.5}, "also/rejection": {1: 3.0}}


def test_attempts_of_the_same_code_and_hardware_are_named_together(tmp_path: Path) -> None:
    held = {"python": "3.11", "libraries": {"torch": "2"}, "machine": "x", "cores": 2, "argv": []}
    for number, commit in enumerate(("a", "a", "b"), start=1):
        attempt = tmp_path / "logs" / f"attempt_{number}"
        attempt.mkdir(parents=True)
        (attempt / "provenance.json").write_text(json.dumps({**held, "git_sha": commit}))
    made = makers_of(tmp_path)
    assert [(maker.git_sha, attempts) for maker, attempts in made] == [("a", [1, 2]), ("b", [3])]
    page = render_report(_data(makers=made))
    assert "Attempts 1, 2: commit <code>a</code>" in page
    assert "Attempt 3: commit <code>b</code>" in page


def test_the_report_shows_who_was_left_out_and_why() -> None:
    ranked = (
        RankedSetting("value-good", ValueSteering(), GainEstimate(0.25, 0.1, 50.0, 0.5), True),
        RankedSetting("value-poor", ValueSteering(), GainEstimate(-0.125, 0.1, 50.0, 0.5), False),
        RankedSetting("value-unseen", ValueSteering(), None, True),
    )
    data = _data()
    assert data.evaluation is not None
    tune = dataclasses.replace(data.evaluation.tune, shortlist=Shortlist(1600, ranked, 1234.4))
    page = render_report(_data(evaluation=dataclasses.replace(data.evaluation, tune=tune)))
    assert "3 settings ranked by 1,600 replays, 2 decoded: saved about 1,234 tokens" in page
    for shown in ("value-poor", "-0.125 ± 0.100", "unknown"):
        assert shown in page
    assert "ranked by" not in render_report(data)
