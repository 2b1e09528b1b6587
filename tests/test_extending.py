"""The examples of docs/extending.md are files that work: each is taken from the page and run."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
import yaml

from stir_train.config.import_path import load_object
from stir_train.config.inputs import ModelConfig, TaskConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.config.run import RunConfig
from stir_train.config.stages import UtilityConfig
from stir_train.config.steering import CustomSteering
from stir_train.data.control_points import ControlPointAutomaton
from stir_train.data.grading import Grader
from stir_train.data.prompts import cut_splits, render_prompts
from stir_train.directions.advantages import checked
from stir_train.distill.objective import DistillLoss
from stir_train.distill.samples import collate
from stir_train.distill.terms import make_terms
from stir_train.errors import ConfigError
from stir_train.generation.backend import ControlSpec, GenerationRequest, SamplingParams
from stir_train.generation.transformers.engine import DecodeEngine
from stir_train.models.load import LoadedModel
from stir_train.models.lora import make_whole_student
from stir_train.runtime.problems import read_problems
from stir_train.steering.interface import ControllerInputs, make_controller
from stir_train.steering.static import mean_direction
from stir_train.types.directions import DirectionSet
from stir_train.types.rollout import Gold, Prompt, Rollout
from tests.support import bases
from tests.support.recorded import graded
from tests.support.smoke import run_smoke

PAGE = Path(__file__).resolve().parent.parent / "docs" / "extending.md"
FILE = re.compile(r"```python\n# (\w+)\.py\n(.*?)```", re.S)
SETTINGS = re.compile(r"```yaml\n(.*?)```", re.S)


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with every file of the page, on Python's path."""
    names = []
    for name, text in FILE.findall(PAGE.read_text()):
        (tmp_path / f"{name}.py").write_text(text)
        names.append(name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [*names, "broken"]:
        sys.modules.pop(name, None)


def _page_settings() -> RunConfig:
    """All that the page shows, in one configuration."""
    shown: dict[str, dict[str, object]] = {}
    for text in SETTINGS.findall(PAGE.read_text()):
        for section, values in yaml.safe_load(text).items():
            shown[section] = {**shown.get(section, {}), **values}
    return RunConfig.model_validate({"name": "shown", **shown})


def _no_directions() -> DirectionSet:
    raise AssertionError("the page's controller asks for none")


def _inputs(settings: CustomSteering) -> ControllerInputs:
    return ControllerInputs(
        settings=settings.model_copy(update={"depth": 0.6}),
        block_at=lambda _depth: bases.BLOCK,
        read_basis=bases.basis,
        head=lambda _block: bases.value_head(),
        directions=_no_directions,
        read_utility=UtilityConfig,
        device=torch.device("cpu"),
    )


def test_the_settings_that_the_page_shows_are_settings_and_name_its_files() -> None:
    named = {path for text in SETTINGS.findall(PAGE.read_text()) for path in _paths(text)}
    assert {path.partition(":")[0] for path in named} == {
        name for name, _ in FILE.findall(PAGE.read_text())
    }
    config = _page_settings()
    assert isinstance(config.steering, CustomSteering)
    assert {settings.mode for settings in config.tried_settings} == {"custom", "value"}


def _paths(text: str) -> list[str]:
    return re.findall(r"\b[a-z_]+:[A-Z]\w*", text) + re.findall(r"\b\w+:[a-z]\w+\b(?=\")", text)


def test_the_controller_steers_the_model(
    modules: Path,
    engine: DecodeEngine,
    prompts: list[Prompt],
    automaton: ControlPointAutomaton,
    greedy: SamplingParams,
) -> None:
    settings = _page_settings().steering
    assert isinstance(settings, CustomSteering)
    controller = make_controller(_inputs(settings.model_copy(update={"strength": 2.0})))
    result = engine.generate(
        [GenerationRequest(prompt) for prompt in prompts[:6]],
        greedy,
        seed=0,
        control=ControlSpec(automaton, bases.MAX_POINTS),
        controller=controller,
    )
    assert result.decisions
    first = next(d for d in result.decisions if d.point == 1)
    second = next(d for d in result.decisions if d.point == 2)
    assert (first.strength, second.strength) == pytest.approx((2.0, 1.4))
    impulses = [impulse for rollout in result.rollouts for impulse in rollout.impulses]
    assert len(impulses) == sum(d.strength > 0 for d in result.decisions)
    assert bool(mean_direction(bases.basis(), bases.BLOCK).any())


def test_the_distillation_term_is_learned_from(modules: Path, plain: list[Rollout]) -> None:
    objective = _page_settings().distill.objective
    student = make_whole_student(
        ModelConfig(name="embedded/addition"), DistillConfig(rank=8), seed=0
    )
    batch = collate(plain[:4], 0, sum(len(sample.token_ids) for sample in plain[:4]))
    values = DistillLoss(student.model, student, objective)(batch)
    assert list(values) == ["sequence", "confidence:Confidence"]
    entropy = values["confidence:Confidence"]
    assert 0 < float(entropy.detach()) < 0.1 * 4.2  # nats; the vocabulary has 65 tokens
    entropy.backward()
    grads = [p.grad for p in student.model.parameters() if p.grad is not None]
    assert any(bool(grad.any()) for grad in grads)


def test_the_grader_grades_what_the_model_answers(
    modules: Path, loaded: LoadedModel, prompts: list[Prompt], plain: list[Rollout]
) -> None:
    texts = [loaded.decode(rollout.token_ids) for rollout in plain[:8]]
    golds = [prompt.gold for prompt in prompts[:8]]
    with closing(Grader(TaskConfig(), num_workers=1)) as exact:
        expected = exact.grade(texts, golds, [False] * 8)
    assert {grade.correct for grade in expected} == {True, False}
    task = _page_settings().task
    assert task.grader == "tolerance:WithinOnePercent"
    with closing(Grader(task, num_workers=1)) as grader:
        grades = grader.grade(texts, golds, [False] * 8)
        others = grader.grade(
            ["Answer: 99.5", "Answer: 98", "Answer: many", "100", "Answer: 100"],
            [Gold("100")] * 5,
            [False, False, False, False, True],
        )
    # Two-digit answers within one percent of each other are equal.
    assert [grade.correct for grade in grades] == [grade.correct for grade in expected]
    assert [grade.reason for grade in others] == ["close", "far", "no number", "close", "truncated"]
    assert [grade.had_marker for grade in others] == [True, True, True, False, True]


def test_the_loaders_problems_are_cut_into_splits_and_answered(
    modules: Path, loaded: LoadedModel, engine: DecodeEngine, greedy: SamplingParams
) -> None:
    config = _page_settings()
    problems = read_problems(config)
    assert len(problems) == 9**4
    splits = cut_splits(problems, config.splits)
    sizes = {name: len(cut) for name, cut in splits.items()}
    assert sizes == {"test": 128, "tune": 32, "harvest": 64}
    assert {p.kind for p in splits["tune"]} == {"odd", "even"}
    assert len({p.problem_id for cut in splits.values() for p in cut}) == 128 + 32 + 64
    prompts = render_prompts(splits["tune"][:12], config.task, loaded.tokenizer)
    made = engine.generate([GenerationRequest(prompt) for prompt in prompts], greedy, seed=0)
    texts = [loaded.decode(rollout.token_ids) for rollout in made.rollouts]
    with closing(Grader(config.task, num_workers=1)) as grader:
        grades = grader.grade(texts, [p.gold for p in prompts], [False] * len(texts))
    assert all(grade.had_marker for grade in grades), "the model knows such problems"
    assert any(grade.correct for grade in grades)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mine = 3", "is of type int; expected a class or function"),
        (
            "class Mine:\n    def __init__(self, inputs): self.block = 1",
            "without place, reads, decide",
        ),
        ("Other = 3", "has no 'Mine'"),
    ],
)
def test_what_is_no_controller_is_refused_with_what_it_lacks(
    modules: Path, text: str, expected: str
) -> None:
    (modules / "broken.py").write_text(text)
    with pytest.raises(ConfigError, match=expected):
        make_controller(_inputs(CustomSteering(controller="broken:Mine")))


def test_a_term_that_needs_a_teacher_is_refused_where_there_is_none(modules: Path) -> None:
    (modules / "broken.py").write_text(
        "class Mine:\n    needs_teacher = True\n    def __call__(self, inputs): return None\n"
        "class Lacking:\n    pass\n"
    )
    for objective, expected in (
        (ObjectiveConfig(samples="plain", terms={"broken:Mine": 1.0}), "no steered teacher"),
        (ObjectiveConfig(terms={"broken:Lacking": 1.0}), "makes a Lacking; expected a class"),
        (
            ObjectiveConfig(on_policy=0.5, terms={"confidence:Confidence": 1.0}),
            "no term has a teacher",
        ),
    ):
        with pytest.raises(ConfigError, match=expected):
            make_terms(objective)
    assert make_terms(ObjectiveConfig(on_policy=0.5, terms={"broken:Mine": 1.0}))


def test_the_reward_is_worth_what_its_docstring_says(modules: Path) -> None:
    reward = checked(
        load_object(_page_settings().directions.reward, kind="directions.reward"), name="marked"
    )  # type: ignore[arg-type]
    right, wrong = graded("a", 0, 1.0), graded("a", 1, 0.0)
    marked = dataclasses.replace(wrong, grade=dataclasses.replace(wrong.grade, had_marker=True))
    assert [reward(item) for item in (right, wrong, marked)] == [1.0, 0.0, 0.5]


def test_a_run_whose_objects_cannot_be_found_is_refused_before_anything_is_made(
    modules: Path,
) -> None:
    steering = "steering={mode: custom, controller: 'nowhere:Mine'}"
    done = run_smoke(modules, steering, "tune.modes=[custom]")
    assert done.returncode != 0
    assert "steering.controller: no module nowhere" in " ".join(done.stderr.split())
    assert not (modules / "smoke").exists()


@pytest.mark.slow
def test_a_whole_run_with_them_notices_when_a_file_is_edited(modules: Path) -> None:
    arguments = (
        "steering={mode: custom, controller: 'fading:Fading'}",
        "tune.modes=[custom]",
        "distill={rank: 8, alpha: 16, num_samples: 2, num_steps: 4, batch_size: 4, also: {}, "
        "objective: {terms: {'confidence:Confidence': 0.1}}}",
    )
    done = run_smoke(modules, *arguments)
    assert done.returncode == 0, done.stderr
    assert "custom-depth" in done.stderr
    again = run_smoke(modules, *arguments)
    assert again.returncode == 0, again.stderr
    with (modules / "fading.py").open("a") as file:
        file.write("# edited\n")
    sys.modules.pop("fading")
    refused = run_smoke(modules, *arguments)
    assert refused.returncode != 0
    assert "import fading:Fading" in refused.stderr
