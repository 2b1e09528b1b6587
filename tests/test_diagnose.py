"""Reading the model on one problem: what steps are worth, what blocks say, what states tell of the end."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from stir_train.baselines.interface import HarvestData
from stir_train.config.run_directory import config_at
from stir_train.errors import ModelError, StageError
from stir_train.evals.dependence import outcome_dependence
from stir_train.evals.step_importance import Resampled, difference_interval, step_importance
from stir_train.models.lens import read_blocks
from stir_train.models.load import LoadedModel
from stir_train.runtime.answerers import plain_answerer
from stir_train.runtime.attempt import read_run
from stir_train.runtime.context import RunContext
from stir_train.runtime.generation import grade_rollouts, sampling_params
from stir_train.tools.diagnose import answer_tokens, diagnose, resample
from stir_train.tools.diagnosis_tables import as_markdown, print_diagnosis
from stir_train.types.rollout import Grade, GradedRollout
from tests.support.commands import stir_train
from tests.support.read_only import read_only
from tests.support.small_runs import run_small
from tests.support.tiny_models import CONFIGS, build

IDS = (5, 17, 42, 9, 9, 33, 60, 3)


@pytest.fixture(scope="module")
def sampled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which only the harvest was sampled."""
    output = tmp_path_factory.mktemp("sampled")
    made = run_small(output, verb="rollout")
    assert made.returncode == 0, made.stderr
    return output / "smoke"


@pytest.fixture
def context(sampled: Path) -> Iterator[RunContext]:
    with read_run(config_at(sampled, []), Console(file=io.StringIO())) as found:
        yield found


def test_a_step_is_worth_what_the_answers_from_behind_it_are_above_those_from_before() -> None:
    same = Resampled((True, False) * 8, ("4", "5") * 8)
    nothing = step_importance(same, same)
    assert (nothing.gain, nothing.moved) == (0, 0)
    assert nothing.low < 0 < nothing.high
    right, wrong = Resampled((True,) * 16, ("4",) * 16), Resampled((False,) * 16, ("5",) * 16)
    turned = step_importance(wrong, right)
    assert (turned.gain, turned.moved) == (1, 1)
    assert turned.low < 1 <= turned.high, "sixteen that agree leave a doubt"
    assert turned.low > 0.5
    assert 0 < turned.by_chance < 0.5
    back = step_importance(right, wrong)
    assert (back.gain, back.low, back.high) == pytest.approx((-1, -turned.high, -turned.low))
    among_wrong = step_importance(wrong, dataclasses.replace(wrong, answers=("6",) * 16))
    assert (among_wrong.gain, among_wrong.moved) == (0, 1), "wrong before and after, but otherwise"


def test_the_interval_is_newcombes() -> None:
    # His example (1998, method 10): 56 of 70 against 48 of 80.
    found = difference_interval([True] * 48 + [False] * 32, [True] * 56 + [False] * 14)
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_dependence_is_found_where_it_is_and_not_where_only_the_problem_tells() -> None:
    generator = np.random.default_rng(0)
    right = np.tile([True, False, True, False], 12)
    problems = [str(i // 4) for i in range(48)]
    noise = generator.normal(size=(48, 6)).astype(np.float32)
    told = noise.copy()
    told[:, 0] += 4 * right
    found = outcome_dependence(told, right, problems)
    assert found is not None
    assert found.p_value == pytest.approx(0.001)
    assert found.value > 5 * found.by_chance
    assert (found.num_states, found.num_problems) == (48, 12)
    # What states say of their problem alone is taken off.
    moved = told + np.repeat(100 * generator.normal(size=(12, 6)), 4, axis=0).astype(np.float32)
    again = outcome_dependence(moved, right, problems)
    assert again is not None
    assert again.value == pytest.approx(found.value, abs=1e-4)
    p_values = []
    for _ in range(40):
        free = outcome_dependence(
            generator.normal(size=(48, 6)).astype(np.float32), right, problems
        )
        assert free is not None
        p_values.append(free.p_value)
    assert sum(p <= 0.05 for p in p_values) <= 6, "independent states are rarely called dependent"
    assert 0.3 < np.mean(p_values) < 0.7


def test_too_little_says_nothing() -> None:
    states = np.eye(8, dtype=np.float32)
    few = np.array([True, True] + [False] * 6)
    assert outcome_dependence(states, few, ["a"] * 8) is None
    apart = np.array([True] * 4 + [False] * 4)
    assert outcome_dependence(states, apart, ["a"] * 8) is not None
    assert outcome_dependence(states, apart, ["a"] * 4 + ["b"] * 4) is None, "one problem each"
    assert outcome_dependence(np.ones_like(states), apart, ["a"] * 8) is None


@pytest.mark.parametrize("name", CONFIGS)
def test_a_block_says_what_a_model_that_ends_with_it_would(name: str) -> None:
    loaded = build(name, attention="eager" if name == "gemma2-hybrid" else "sdpa")
    positions = [2, 5, 7]
    found = read_blocks(loaded, IDS, positions)
    assert bool(found.agrees[-1].all())
    assert float(found.distance[-1].max()) < 1e-5
    ids = torch.tensor([IDS])
    with torch.no_grad():
        whole = loaded.model(ids, use_cache=False).logits[0, positions]
        upper, loaded.model.config.num_hidden_layers = loaded.blocks[2:], 2
        del loaded.blocks[2:]
        short = loaded.model(ids, use_cache=False).logits[0, positions]
        loaded.blocks.extend(upper)
        loaded.model.config.num_hidden_layers = 4
    torch.testing.assert_close(found.agrees[1], short.argmax(-1) == whole.argmax(-1))
    torch.testing.assert_close(
        found.distance[1], (short.softmax(-1) - whole.softmax(-1)).abs().sum(-1) / 2
    )
    assert float(found.distance[:-1].max()) > 1e-3, "something is left to the upper blocks"


def test_what_is_more_than_a_norm_is_refused() -> None:
    loaded = build("qwen2")

    def double(_module: torch.nn.Module, _given: object, output: object) -> object:
        output.last_hidden_state = 2 * output.last_hidden_state  # type: ignore[attr-defined]
        return output

    handle = loaded.model.base_model.register_forward_hook(double)
    with pytest.raises(ModelError, match="does more between its last block"):
        read_blocks(loaded, IDS, [3])
    handle.remove()


def test_the_answers_tokens_are_those_that_say_it_last(
    loaded: LoadedModel, harvest: HarvestData
) -> None:
    graded = harvest.graded[:12]
    for item in graded:
        said = answer_tokens(loaded.decode, item)
        assert loaded.decode(item.rollout.token_ids[said.start : said.stop]).strip() == (
            item.grade.extracted
        )
        assert item.grade.extracted not in loaded.decode(item.rollout.token_ids[said.stop :])
    none = GradedRollout(graded[0].rollout, graded[0].text, Grade(False, "", "no answer"), 0.0)
    assert not answer_tokens(loaded.decode, none)


def test_a_sample_goes_on_from_every_cut_with_its_own_noise(context: RunContext) -> None:
    prompt = context.splits["tune"][1]
    sampling = sampling_params(context, greedy=False)
    made = plain_answerer(context).answer([prompt], num_samples=4, sampling=sampling).rollouts
    grades = [item.grade for item in grade_rollouts(context, made, [prompt] * 4)]
    ends = made[2].control_points[:2]
    cuts, captured, cost = resample(context, prompt, made[2], ends, range(4))
    assert cuts[0].answers == tuple(grade.extracted for grade in grades)
    assert cuts[0].correct == tuple(grade.correct for grade in grades)
    assert {cut.answers[2] for cut in cuts} == {grades[2].extracted}, "its own completion again"
    assert {label.sample for label in captured.labels} == {0, 1, 2, 3}
    assert cost.continuations == 3 * 4
    least = sum(len(rollout.token_ids) for rollout in made)
    assert cost.tokens > least + 2 * (len(made[2].token_ids) - ends[1] - 1)


def test_a_problem_is_read_the_same_again_and_shown_in_80_columns(context: RunContext) -> None:
    found = diagnose(context, 1, sample=None, num_continuations=6)
    assert len(found.cuts) == 1 + len(found.steps)
    assert found.lens is not None
    said = answer_tokens(context.resources.described.decode, found.completion)
    assert found.lens.agrees.shape == (6, len(found.steps) + len(said))
    assert any(found.of_harvest.values())
    again = diagnose(context, 1, sample=None, num_continuations=6)
    assert again.cuts == found.cuts
    assert again.of_problem == found.of_problem
    shown = io.StringIO()
    print_diagnosis(found, Console(file=shown, width=80, markup=False, highlight=False))
    tables = shown.getvalue().splitlines()[1:-1]
    assert max(len(line.rstrip()) for line in tables) <= 80
    assert f"{found.cost.tokens} tokens" in shown.getvalue()
    page = as_markdown(found)
    assert all(" ".join(step.split())[:10] in page for step in found.steps)
    with pytest.raises(StageError, match="--index"):
        diagnose(context, 99, sample=None, num_continuations=2)


def test_the_verb_writes_its_page_and_nothing_into_the_run(sampled: Path, tmp_path: Path) -> None:
    page = tmp_path / "problem.md"
    options = ("--index", "2", "--sample", "1", "--continuations", "4", "--markdown", str(page))
    with read_only(sampled):
        shown = stir_train("diagnose", str(sampled), *options)
    assert shown.returncode == 0, shown.stderr
    assert "points gained" in shown.stdout
    assert "passes" in shown.stdout
    assert page.read_text().count("| --- |") >= 2
