"""What a run costs: the arithmetic from measured rates, what is measured, and what --dry-run shows."""

from __future__ import annotations

import dataclasses
import io
import itertools
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from stir_train.config.load import load_config
from stir_train.config.run import RunConfig
from stir_train.directions.gradients import GradientSettings, rollout_gradients
from stir_train.distributed.launch import Launch
from stir_train.launch.costs import (
    Rates,
    StageCost,
    _Job,
    _seconds,
    _steps,
    likely_lengths,
    stage_costs,
)
from stir_train.launch.estimate import GIB, KEPT_PROMPTS, estimate, shape_of
from stir_train.launch.lengths import expected_lengths, long_answer
from stir_train.models.load import LoadedModel
from stir_train.runtime.resources import Resources
from stir_train.tools import costs
from stir_train.tools import measure as module
from stir_train.tools.costs import _warnings, in_words
from stir_train.tools.measure import _Clock, _fit, _TimeIsUp, _whole_lengths, measure
from stir_train.types.rollout import Prompt, Rollout
from tests.support.commands import stir_train
from tests.support.measures import measured_briefly
from tests.support.rates import QWEN, QWEN_RATES, config_of
from tests.support.smoke import ONE_VECTOR, SMOKE


def _costs(config: RunConfig, rates: Rates = QWEN_RATES) -> dict[str, float]:
    found = stage_costs(config, shape_of(QWEN, bytes_per_weight=4), rates)
    return {cost.name: cost.hours for cost in found}


def test_quick_takes_less_than_an_hour_on_two_cores_with_a_model_of_half_a_billion() -> None:
    config = config_of("tune.modes=[vector]", effort="quick")
    hours = _costs(config)
    assert set(hours) == {"rollout", "directions", "tune", "steer", "distill", "evaluate"}
    assert 0.3 < sum(hours.values()) < 1
    assert sum(_costs(config_of("tune.modes=[vector]")).values()) > 3


def test_a_chunk_takes_the_steps_that_refilled_rows_take() -> None:
    lengths = (3, 1, 2)
    for num_completions, rows in itertools.product(range(1, 9), range(1, 5)):
        left = [lengths[number % 3] for number in range(num_completions)]
        steps = row_steps = 0
        active: list[int] = []
        while left or active:
            while left and len(active) < rows:
                active.append(left.pop(0))
            steps, row_steps = steps + 1, row_steps + len(active)
            active = [length - 1 for length in active if length > 1]
        assert _steps(num_completions, rows, lengths) == (steps, row_steps)


def test_processes_that_have_no_chunk_left_wait() -> None:
    """200 test problems, greedily and under vectors, then by a student: one chunk each, or two of 100, by two processes."""

    def hours(chunk: int, num_processes: int) -> float:
        config = config_of(
            "tune.modes=[vector]",
            "evaluate.controls=false",
            f"generation.chunk_completions={chunk}",
        )
        config = config.model_copy(
            update={"splits": config.splits.model_copy(update={"num_test": 200})}
        )
        shape = shape_of(QWEN, bytes_per_weight=4)
        found = stage_costs(config, shape, QWEN_RATES, num_processes=num_processes)
        [cost] = [cost for cost in found if cost.name == "evaluate"]
        return cost.hours - QWEN_RATES.load_seconds / 3600

    whole, halves = hours(256, 2), hours(100, 2)
    assert whole == pytest.approx(hours(256, 1) * 2 / 3), (
        "nobody helps with the student's one chunk"
    )
    assert halves == pytest.approx(hours(100, 1) / 2)


@pytest.mark.parametrize(("chunk", "num_steps"), [(256, 100), (100, 200)])
def test_small_sets_under_fixed_vectors_share_the_steps_of_a_batch(
    chunk: int, num_steps: int
) -> None:
    config = config_of(
        f"generation.chunk_completions={chunk}",
        "generation.max_rows=256",
        "generation.max_new_tokens=100",
    )
    rates = dataclasses.replace(
        QWEN_RATES, prefill_tokens=1e9, step_seconds=1, row_seconds=0, answer_tokens=(100,)
    )
    shared = _seconds([_Job(32, times=5, is_shared=True)], config, rates)
    by_itself = _seconds([_Job(32, times=5)], config, rates)
    assert shared == pytest.approx(num_steps, abs=0.1)
    assert by_itself == pytest.approx(500, abs=0.1)


def test_what_all_prompts_begin_with_is_fed_once_a_chunk() -> None:
    config = config_of("generation.chunk_completions=10")
    rates = dataclasses.replace(
        QWEN_RATES, prefill_tokens=1, row_seconds=0, prompt_tokens=50, shared_tokens=40
    )
    assert _seconds([_Job(20)], config, rates) == pytest.approx(2 * (40 + 10 * 10))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_shares_keep_all_processes_busy(num_processes: int) -> None:
    """Of 128 answers, the student's whole round: as long as an even share of them takes."""
    alone = config_of()
    shared = config_of(f"generation.num_shares={num_processes}")
    rates = dataclasses.replace(QWEN_RATES, prefill_tokens=1e9, answer_tokens=(100,))
    job = [_Job(6 * 32)]
    whole = _seconds(job, alone, rates, num_processes)
    assert whole == pytest.approx(_seconds(job, alone, rates)), "one chunk, one process"
    assert _seconds(job, shared, rates, num_processes) == pytest.approx(
        whole / num_processes, rel=0.02
    )


def test_stages_that_cost_nothing_to_speak_of_are_warned_of_nothing() -> None:
    assert not _warnings(config_of(), [])


def test_costs_follow_what_a_stage_does() -> None:
    base = config_of("tune.modes=[vector]", "distill.enabled=false", effort="quick")
    hours = _costs(base)
    twice = _costs(config_of("splits.num_test=400", *["tune.modes=[vector]"], effort="quick"))
    assert twice["evaluate"] > 1.9 * hours["evaluate"]
    assert "steer" not in hours
    assert "distill" not in hours
    with_basis = _costs(config_of("tune.modes=[value]", effort="quick"))
    assert {"validate", "value"} <= set(with_basis)
    assert "directions" not in with_basis
    steps = _costs(config_of("tune.modes=[vector]", "directions.num_steps=3", effort="quick"))
    sampled = hours["rollout"] - QWEN_RATES.load_seconds / 3600  # the model is there
    assert steps["directions"] == pytest.approx(3 * hours["directions"] + 2 * sampled)
    assert steps["rollout"] == hours["rollout"]


def test_a_clock_counts_steps_and_stops_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
    clock = _Clock(deadline=6.5)

    def generate() -> None:
        for step in range(20):
            for index in (0, 1) if step < 3 else (0,):
                clock(index, 5)

    with pytest.raises(_TimeIsUp):
        generate()
    assert clock.rows == [2, 2, 2, 1, 1, 1, 1]
    assert clock.steps == [(2, 1.0), (2, 1.0), (1, 1.0), (1, 1.0), (1, 1.0)]
    lengths, longest, num_ended = _whole_lengths(config_of("generation.max_new_tokens=12"), clock)
    assert (longest, num_ended) == (12, 1), "too few have ended to say that none takes the budget"
    assert lengths[1] == 3
    assert 7 < lengths[0] < 12, "the other goes on, at most to the budget"


def test_a_clock_waits_for_most_of_the_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def num_steps(ends: int) -> int:
        now = iter(range(100))
        monkeypatch.setattr(time, "perf_counter", lambda: float(next(now)))
        clock = _Clock(deadline=6.5, patience=10, num_left=1)
        with suppress(_TimeIsUp):
            for step in range(50):
                for index in (0, 1, 2) if step < ends else (0,):
                    clock(index, 5)
        return len(clock.rows)

    assert num_steps(3) == 7, "most have ended when the time is up"
    assert num_steps(12) == 13, "it waits until they have"
    assert num_steps(40) == 17, "but not for ever"


@pytest.mark.parametrize("shape", [1.0, 1.5, 2.5, 3.5])
def test_answers_that_were_stopped_are_taken_for_as_long_as_they_would_have_been(
    shape: float,
) -> None:
    """Of 16 answers, stopped when a share of them has ended, a hundred times."""
    generator = np.random.default_rng(3)
    for share in (0.3, 0.6, 0.9):
        told, true = [], []
        for _ in range(100):
            lengths = np.ceil(160 * generator.weibull(shape, 16)).clip(1, 512)
            stop = np.quantile(lengths, share).round()
            seen = [int(length) for length in lengths.clip(max=stop)]
            found = expected_lengths(seen, list(lengths <= stop), budget=512)
            assert all(a >= b for a, b in zip(found, seen, strict=True))
            told.append(np.mean(found))
            true.append(np.mean(lengths))
        assert np.mean(told) == pytest.approx(np.mean(true), rel=0.3 if share < 0.5 else 0.15)


@pytest.mark.parametrize("shape", [1.0, 1.5, 2.5, 3.5])
def test_one_answer_in_a_thousand_is_longer_than_what_is_said(shape: float) -> None:
    """Of 32 answers, some stopped, a hundred times; the median of what is said."""
    generator = np.random.default_rng(5)
    true = 160 * np.log(1000) ** (1 / shape)
    told = []
    for _ in range(100):
        lengths = np.ceil(160 * generator.weibull(shape, 32))
        stop = np.quantile(lengths, 0.75)
        seen = [int(length) for length in lengths.clip(max=stop)]
        told.append(long_answer(seen, list(lengths <= stop), budget=4096, share=1e-3))
    assert np.median(told) == pytest.approx(true, rel=0.15)
    assert long_answer([9, 9], [False, False], budget=40, share=1e-3) == 40
    assert long_answer([9, 30], [True, True], budget=40, share=1e-3) == 40


def test_an_answer_that_never_ends_is_reckoned_with() -> None:
    """Two in three chunks of 48 have one, where none of 33 answers did: each then takes the budget's steps."""
    config = config_of("generation.max_new_tokens=1000")
    lengths = likely_lengths(config, QWEN_RATES)
    assert sorted(lengths)[-2:] == [170, 1000]
    assert lengths.count(1000) / len(lengths) == 1 / 67
    assert _steps(160, 160, lengths)[0] == 1000
    assert _steps(30, 30, lengths)[0] == 170


def test_answers_that_none_ended_of_take_the_budget() -> None:
    assert expected_lengths([5, 7], [False, False], budget=40) == (40, 40)
    assert expected_lengths([40, 7], [True, False], budget=40) == (40, 40), "the budget is no end"
    assert expected_lengths([40, 7], [True, True], budget=40) == (40, 7)


def test_a_line_is_fitted_through_the_steps_of_all_widths() -> None:
    steps = [(rows, 0.5 + 0.1 * rows) for rows in (4, 4, 8, 64, 64)]
    assert _fit([*steps, (4, 90.0)][:5]) == pytest.approx((0.5, 0.1))
    hiccup = [(4, 0.9)] * 5 + [(4, 50.0)] + [(64, 6.9)] * 5
    assert _fit(hiccup) == pytest.approx((0.5, 0.1))
    assert _fit([(4, 2.0), (8, 1.0)])[1] == 0.0, "never less for more rows"


def test_an_embedded_model_is_measured_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_briefly(monkeypatch, 0.5)
    config = load_config(RunConfig, SMOKE, [f"output_dir={tmp_path}"])
    rates, shape = measure(config)
    assert shape.num_layers == 6
    assert all(0 < length <= config.generation.max_new_tokens for length in rates.answer_tokens)
    assert rates.prefill_tokens > 0
    assert rates.gradient_tokens == rates.prefill_tokens, "nothing is differentiated"
    assert rates.training_tokens > 0
    assert rates.decode_tokens(48) > 0
    shown = stir_train("run", str(SMOKE), f"output_dir={tmp_path}", "warn_hours=1e-9", "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert "in all" in shown.stdout
    assert "more than warn_hours" in shown.stdout
    assert all(len(line) < 80 for line in shown.stdout.splitlines()[1:])
    assert not any(tmp_path.iterdir())


def test_prefill_is_timed_on_prompts_that_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_briefly(monkeypatch)
    asked: list[Sequence[Prompt]] = []
    timed = module._prefill_rate

    def watched(config: RunConfig, resources: Resources, prompts: Sequence[Prompt]) -> float:
        asked.append(prompts)
        return timed(config, resources, prompts)

    monkeypatch.setattr(module, "_prefill_rate", watched)
    measure(load_config(RunConfig, SMOKE, [f"output_dir={tmp_path}", "splits.num_harvest=8"]))
    (prompts,) = asked
    assert len(prompts) == len({prompt.token_ids for prompt in prompts}) == 8


def test_what_is_differentiated_is_measured_as_the_run_does_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_briefly(monkeypatch)
    asked: list[tuple[int, GradientSettings]] = []

    def watched(loaded: LoadedModel, rollouts: list[Rollout], settings: GradientSettings) -> object:
        asked.append((len(rollouts), settings))
        return rollout_gradients(loaded, rollouts, settings)

    monkeypatch.setattr(module, "rollout_gradients", watched)
    config = load_config(RunConfig, SMOKE, [f"output_dir={tmp_path}", *ONE_VECTOR])
    rates, _ = measure(config)
    assert rates.gradient_tokens != rates.prefill_tokens
    num_rollouts, settings = asked[0]
    assert num_rollouts >= 1
    assert len(settings.blocks) == 1, "of the depth that is steered, and no other"
    assert settings.sampling.temperature == 1.0


def test_processes_measure_at_once_and_one_of_them_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = dataclasses.replace(QWEN_RATES, row_seconds=0.5)
    monkeypatch.setattr(costs, "measure", lambda _: (rates, shape_of(QWEN, bytes_per_weight=4)))

    def shown(launch: Launch) -> str:
        written = io.StringIO()
        config = config_of(f"output_dir={tmp_path}", "model.device=cpu", "num_threads=1")
        costs.show_costs(config, ["rollout"], Console(file=written), width=79, launch=launch)
        return written.getvalue()

    alone, first = shown(Launch()), shown(Launch(size=2, local_size=2))  # 2048 rollouts, 8 chunks
    hours = [
        float(re.search(r"in all.* ([\d.]+) h", text)[1])  # type: ignore[index]
        for text in (alone, first)
    ]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.01)
    assert "on one process" in alone
    assert "on each of 2 processes" in first
    assert not shown(Launch(rank=1, size=2, local_rank=1, local_size=2))


def test_a_process_that_leaves_cores_idle_is_told_how_to_start_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(costs, "usable_cores", lambda: 4)
    cost = StageCost("rollout", 1.0, 1.0, 0.1, 0.0)
    [warning] = _warnings(config_of("model.device=cpu", "num_threads=2", "warn_hours=9"), [cost])
    assert "--nproc-per-node 2" in warning
    assert not _warnings(config_of("model.device=cpu", "num_threads=4", "warn_hours=9"), [cost])
    beside = config_of("model.device=cpu", "num_threads=2", "warn_hours=9")
    assert not _warnings(beside, [cost], num_beside=2)


def test_costs_can_be_left_out(tmp_path: Path) -> None:
    shown = stir_train("run", str(SMOKE), f"output_dir={tmp_path}", "--dry-run", "--no-measure")
    assert shown.returncode == 0
    assert "measur" not in shown.stdout


def test_durations_are_told_in_a_unit_that_suits() -> None:
    assert [in_words(h) for h in (0.01, 0.5, 1.9, 30.0)] == ["36 s", "30 min", "114 min", "30.0 h"]


def test_memory_of_directions_covers_what_a_backward_pass_keeps() -> None:
    """Counted by autograd itself, on a model with Qwen's proportions."""
    config = {**QWEN, "hidden_size": 128, "intermediate_size": 695, "num_hidden_layers": 8}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 64}
    model = Qwen2ForCausalLM(Qwen2Config(**config)).requires_grad_(False)
    num_tokens, kept = 96, {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    weights = {one.untyped_storage().data_ptr() for one in model.parameters()}
    inputs = torch.randn(1, num_tokens, 128, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.model(inputs_embeds=inputs).last_hidden_state
    num_bytes = sum(size for at, size in kept.items() if at not in weights)
    assert states.requires_grad

    shape = shape_of(config, bytes_per_weight=4)
    run, twice = (
        config_of("tune.modes=[vector]", f"directions.max_batch_tokens={size * num_tokens}")
        for size in (1, 2)
    )
    needs = [estimate(one, shape, num_ranks=1, on_gpu=False).gradient_gib for one in (run, twice)]
    prompts = KEPT_PROMPTS * num_tokens * shape.kv_token_bytes
    estimated = ((needs[1] - needs[0]) * GIB - prompts) / (1 - min(run.direction_depths))
    assert num_bytes < estimated < 3 * num_bytes
