"""The sample whose latent trajectory moves as those of right answers do (arXiv 2510.10494).

The paper's: of the states h_1 ... h_N along a completion, the net change ``|h_N - h_1| / (N - 1)``, the cumulative
change (the sum of ``|h_n - h_(n-1)|``) and the aligned change (the mean cosine of each step with the net one) tell
right completions from wrong ones, and pick among samples. Ours: the states are those at control points, which are
captured as the samples are made, not means over 500 tokens, so no pass is added; which sign means right is learned on
the harvest split; signal and block are tuned; a sample that the budget cut off is not picked while another ended.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stir_train.baselines.interface import (
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.self_consistency import voting_sampling
from stir_train.generation.backend import Ability, GenerationRequest
from stir_train.types.rollout import Prompt, Rollout
from stir_train.types.trajectory import CapturedStates

SIGNALS = ("net", "cumulative", "aligned")
NUM_SAMPLES = 4
UNREAD = -math.inf
"""Score of a sample of fewer than two control points, which is picked only where no other that ended can be scored."""
Key = tuple[str, int]
"""Problem and sample."""


class TrajectorySelection:
    """Best of a few samples by a change of their states."""

    name = "trajectory-selection"
    needs = frozenset({Ability.CAPTURE_STATES})

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The sign of every signal in every block, 1 where right completions have more of it."""
        right = {(g.rollout.prompt_id, g.rollout.sample): g.grade.correct for g in harvest.graded}
        parameters = {}
        for block in harvest.blocks:
            found = signals_of(harvest.captured, block)
            labels = torch.tensor([right[key] for key in found], dtype=torch.bool)
            if not found or bool(labels.all()) or not bool(labels.any()):
                raise NotApplicable("captured states are not of both right and wrong completions")
            values = torch.stack(list(found.values()))
            difference = values[labels].mean(0) - values[~labels].mean(0)
            parameters[f"signs {block}"] = torch.where(difference < 0, -1.0, 1.0)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """The grid: every captured block with every signal."""
        return [{"block": block, "signal": signal} for block in blocks for signal in SIGNALS]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """The sample with most of the signal, the others' tokens beside it."""
        block, signal = int(setting["block"]), SIGNALS.index(str(setting["signal"]))
        sign = parameters[f"signs {block}"][signal]
        made = answering.engine.generate(
            [GenerationRequest(p, k) for p in prompts for k in range(NUM_SAMPLES)],
            voting_sampling(answering),
            seed=answering.seed,
            control=dataclasses.replace(answering.control, capture_blocks=(block,)),
        )
        assert made.states is not None, "they were asked for"
        found = signals_of(made.states, block)
        answered = []
        for first in range(0, len(made.rollouts), NUM_SAMPLES):
            some = made.rollouts[first : first + NUM_SAMPLES]
            changes_of = [found.get((r.prompt_id, r.sample)) for r in some]
            answered.append(pick(some, [score(c, signal, float(sign)) for c in changes_of]))
        return answered


def score(changes: Float[Tensor, "3"] | None, signal: int, sign: float) -> float:
    """The signal where more of it goes with right answers, else less of it; `UNREAD` of a sample without."""
    return UNREAD if changes is None else sign * float(changes[signal])


def signals_of(captured: CapturedStates, block: int) -> Mapping[Key, Float[Tensor, "3"]]:
    """Net, cumulative and aligned change of every completion that has two control points or more."""
    rows: dict[Key, list[int]] = {}
    for row, label in enumerate(captured.labels):
        rows.setdefault((label.prompt_id, label.sample), []).append(row)
    states = captured.at_block(block).float()
    return {key: changes(states[found]) for key, found in rows.items() if len(found) > 1}


def changes(states: Float[Tensor, "N D"]) -> Float[Tensor, "3"]:
    """Net, cumulative and aligned change of a trajectory of at least two states."""
    steps, whole = states[1:] - states[:-1], states[-1] - states[0]
    aligned = nn.functional.cosine_similarity(steps, whole[None], dim=-1).mean()
    return torch.stack([whole.norm() / len(steps), steps.norm(dim=-1).sum(), aligned])


def pick(samples: Sequence[Rollout], scores: Sequence[float]) -> Rollout:
    """The sample of the highest score, of those that ended; the first of equals."""
    ended = [i for i, sample in enumerate(samples) if not sample.truncated] or range(len(samples))
    best = samples[max(ended, key=lambda i: scores[i])]
    return dataclasses.replace(
        best,
        preview_tokens=sum(len(s.token_ids) for s in samples) - len(best.token_ids),
        forward_passes=sum(s.forward_passes for s in samples),
    )
