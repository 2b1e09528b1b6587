"""Which steered samples a student learns, and what it keeps of the teacher's gain."""

from __future__ import annotations

import dataclasses

import pytest
from peft.tuners.lora import LoraLayer
from pydantic import ValidationError

from stir_train.config.inputs import ModelConfig
from stir_train.config.learning import DistillConfig, ObjectiveConfig
from stir_train.distill.plan import StudentSpec, adapter_config, one_module
from stir_train.distill.samples import choose_samples, unverified_samples
from stir_train.errors import ModelError
from stir_train.evals.retention import compare_students
from stir_train.models.lora import make_whole_student
from stir_train.models.lora_targets import require_servable_targets
from stir_train.types.rollout import Grade, GradedRollout, Impulse, Rollout


def _answers(correct: list[bool], num_tokens: list[int]) -> list[GradedRollout]:
    return [
        GradedRollout(
            Rollout(str(i), 0, (1,), (2,) * tokens, (0.0,) * tokens, (), "stop"),
            "",
            Grade(right, "1", ""),
            float(right),
        )
        for i, (right, tokens) in enumerate(zip(correct, num_tokens, strict=True))
    ]


def test_hard_problems_keep_one_sample_of_middle_length_beside_the_shortest() -> None:
    def sample(prompt: str, number: int, length: int, *, right: bool) -> GradedRollout:
        rollout = Rollout(prompt, number, (1,), (number + 2,) * length, (0.0,) * length, (), "stop")
        return GradedRollout(rollout, "", Grade(right, "", ""), 0.0)

    lengths = (9, 3, 5, 7, 4)
    graded = [
        *(sample("easy", i, length, right=True) for i, length in enumerate(lengths)),
        *(sample("hard", i, length, right=True) for i, length in enumerate(lengths)),
        *(sample("hard", i, 4, right=False) for i in range(5, 20)),
    ]

    def kept(hard_below: float, keep: int = 1) -> list[tuple[str, int]]:
        chosen = choose_samples(graded, keep_per_prompt=keep, hard_below=hard_below)
        return [(r.prompt_id, len(r.token_ids)) for r in chosen]

    assert kept(0.0) == [("easy", 3), ("hard", 3)]
    assert kept(0.3) == [("easy", 3), ("hard", 3), ("hard", 5)]
    assert kept(0.2) == [("easy", 3), ("hard", 3)], "a quarter is solved"
    everything = sorted(lengths)
    assert kept(0.3, keep=5) == [(p, n) for p in ("easy", "hard") for n in everything]


def test_unverified_samples_are_the_first_distinct_ones_that_ended_whatever_their_grades() -> None:
    answers = [
        dataclasses.replace(a, rollout=dataclasses.replace(a.rollout, prompt_id="p", sample=i))
        for i, a in enumerate(_answers([False, True, True, False], [9, 9, 3, 5]))
    ]
    cut_off = dataclasses.replace(answers[3].rollout, finish_reason="length")
    answers[3] = dataclasses.replace(answers[3], rollout=cut_off)
    assert unverified_samples(answers, keep_per_prompt=1) == [answers[0].rollout]
    # The second repeats the first, the fourth was cut off.
    kept = unverified_samples(answers, keep_per_prompt=4)
    assert kept == [answers[0].rollout, answers[2].rollout]
    assert choose_samples(answers, keep_per_prompt=1) == [answers[2].rollout]


def test_retention_is_the_share_of_the_teachers_gain_where_it_has_one() -> None:
    size = 40
    answers = {
        "greedy": _answers([False] * 20 + [True] * 20, [10] * size),
        "stir": _answers([True] * size, [10] * size),
        "half": _answers([True] * 10 + [False] * 10 + [True] * 20, [5] * size),
    }
    names = {"base": "greedy", "teacher": "stir", "other": "stir"}
    (half,) = compare_students(answers, ["half"], **names, num_resamples=200)
    assert half.retention_accuracy == pytest.approx(0.5)
    assert half.retention_tokens is None, "the teacher saves nothing"
    assert half.delta_accuracy == pytest.approx(-0.25)
    assert half.delta_accuracy_ci95[1] < 0
    assert half.delta_tokens_fraction == pytest.approx(-0.5)


def test_a_student_of_one_module_has_an_adapter_in_the_steered_block_alone() -> None:
    (answer,) = _answers([True], [9])
    steered = dataclasses.replace(answer.rollout, impulses=(Impulse(2, 4, 0, 1.0),))
    of_one = ObjectiveConfig(sequence=0.0, states=1.0, module="mlp.down_proj")
    config = DistillConfig(rank=8)
    of_all = StudentSpec("all", ObjectiveConfig(), [steered], 1)
    assert adapter_config(config, of_all) == config
    adapter = adapter_config(config, StudentSpec("casal", of_one, [steered], 1))
    student = make_whole_student(ModelConfig(name="embedded/addition"), adapter, seed=0)
    learned = [name for name, p in student.model.named_parameters() if p.requires_grad]
    assert len(learned) == 2
    assert all(".4.mlp.down_proj.lora_" in name for name in learned)
    with pytest.raises(ValidationError, match="steered block"):
        ObjectiveConfig(samples="plain", module="mlp.down_proj")
    missing = one_module(config, of_one.model_copy(update={"module": "mlp.gate"}), block=0)
    with pytest.raises(ModelError, match=r"0\.mlp\.gate"):
        require_servable_targets(ModelConfig(name="embedded/addition"), missing)


def test_rank_stabilised_lora_scales_by_the_root_of_the_rank() -> None:
    def scale(config: DistillConfig) -> float:
        student = make_whole_student(ModelConfig(name="embedded/addition"), config, seed=0)
        layer = next(m for m in student.model.modules() if isinstance(m, LoraLayer))
        return float(layer.scaling["default"])

    assert scale(DistillConfig(rank=16, alpha=32)) == 2
    assert scale(DistillConfig(rank=16, alpha=32, use_rslora=True)) == 8
