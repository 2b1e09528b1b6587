"""A stage's chunks of rollouts and states, made by hand."""

from __future__ import annotations

from pathlib import Path

import torch

from stir_train.artifacts.run_dir import StageDir, StageInputs
from stir_train.stores.rollouts import save_rollouts
from stir_train.stores.states import save_states
from stir_train.types.rollout import Grade, GradedRollout, Impulse, Rollout
from stir_train.types.trajectory import CapturedStates, StateLabel

BLOCKS, WIDTH, NUM_CHUNKS, CHUNK = (2, 5, 9), 4, 3, 5


def stored_rollout(number: int, impulses: tuple[Impulse, ...] = ()) -> GradedRollout:
    length = 6 + number % 7
    return GradedRollout(
        Rollout(
            prompt_id=f"{number // 2:04x}",
            sample=number % 2,
            prompt_token_ids=(1, 2),
            token_ids=tuple(range(number, number + length)),
            logprobs=(-0.5,) * length,
            control_points=(2, 4),
            finish_reason="length" if number % 3 == 0 else "stop",
            impulses=impulses,
        ),
        text=f"answer {number}",
        grade=Grade(correct=number % 2 == 0, extracted="", reason=""),
        reward=number / 10,
    )


def captured_states(rollouts: list[GradedRollout]) -> CapturedStates:
    labels = tuple(
        StateLabel(g.rollout.prompt_id, g.rollout.sample, point, index, g.rollout.token_ids[index])
        for g in rollouts
        for point, index in enumerate(g.rollout.control_points, start=1)
    )
    generator = torch.Generator().manual_seed(int(rollouts[0].reward * 10))
    return CapturedStates(
        labels, BLOCKS, torch.randn(len(labels), len(BLOCKS), WIDTH, generator=generator)
    )


def write_chunk(stage: StageDir, name: str, number: int, rollouts: list[GradedRollout]) -> None:
    plain = [graded.rollout for graded in rollouts]
    captured = captured_states(rollouts)
    save_states(stage, (name, number), plain, captured, block_convention="output")
    save_rollouts(stage, name, number, rollouts)


def chunks_of_rollouts() -> list[list[GradedRollout]]:
    return [[stored_rollout(c * CHUNK + i) for i in range(CHUNK)] for c in range(NUM_CHUNKS)]


def begin_stage(tmp_path: Path) -> StageDir:
    stage = StageDir(tmp_path / "rollouts")
    assert stage.begin(StageInputs({}, {}))
    return stage
