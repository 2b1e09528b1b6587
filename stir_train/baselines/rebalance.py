"""A vector whose strength and sign follow the confidence of every step (ReBalance, arXiv 2603.12372).

The paper's: a step's confidence ``c`` is the mean of the largest token probabilities in it, its variance
``v = (c - c_previous)^2 / 4``; steps of low ``c`` and high ``v`` overthink, steps of high ``c`` and low ``v``
underthink, and the vector leads from the mean state of the latter to that of the former. At the end of a step it is
added with strength ``F(c) = a + b tanh(k (c - m))``, -1 at the lower threshold of confidence and 0.01 at 1; with -2
where the step overthinks, and 0.1 where it underthinks. Ours: steps end at control points, in a completion that
thinks or not; the thresholds are the quartiles of harvest steps; ``m`` lies halfway and ``k`` makes the curve run from
-2 to 2 between the two values, since their choice is not known to us; block and a scale are tuned. The probabilities
are those recorded in decoding; a completion pauses at every delimiter, and what it has is read again in the pass that
feeds the delimiter.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.baselines.interface import (
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.probing import Progress, extend
from stir_train.baselines.reading import read
from stir_train.generation.backend import Ability, PlannedImpulse
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt, Rollout

AT_LOW, AT_ONE = -1.0, 0.01
"""The curve's values at the lower threshold of confidence, and at confidence 1."""
OVERTHINKING, UNDERTHINKING = -2.0, 0.1
"""Strengths where a step is one or the other."""
TANH_ARGUMENT = 2.0
"""Argument of the tanh at both ends."""
SCALES = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Thresholds:
    """Quartiles of the confidence and the variance of steps."""

    low_confidence: float
    high_confidence: float
    low_variance: float
    high_variance: float

    @staticmethod
    def of(confidences: Sequence[float], variances: Sequence[float]) -> Thresholds:
        """The lower and upper quartiles of what steps measured, one confidence and one variance a step."""
        ends = torch.tensor((0.25, 0.75), dtype=torch.float64)
        found = [
            torch.tensor(x, dtype=torch.float64).quantile(ends) for x in (confidences, variances)
        ]
        return Thresholds(*torch.cat(found).tolist())

    def overthinks(self, confidence: float, variance: float) -> bool:
        """Whether a step wavers and is unsure."""
        return confidence < self.low_confidence and variance > self.high_variance

    def underthinks(self, confidence: float, variance: float) -> bool:
        """Whether a step is as sure as the one before."""
        return confidence > self.high_confidence and variance < self.low_variance


class ReBalance:
    """Away from steps that overthink, a little towards them where all is sure."""

    name = "rebalance"
    needs = frozenset({Ability.REPLAY_IMPULSES})

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The thresholds, and every block's vector: overthinking minus underthinking."""
        rollouts = [item.rollout for item in harvest.graded if item.rollout.control_points]
        steps = steps_of(harvest.loaded, rollouts)
        confidences = [c for found in steps.values() for c in found]
        variances = [v for found in steps.values() for v in map(variance, found[1:], found[:-1])]
        if not variances:
            raise NotApplicable("no completion has two steps")
        at = Thresholds.of(confidences, variances)
        over, under = [], []
        for row, label in enumerate(harvest.captured.labels):
            found = steps[label.prompt_id, label.sample]
            if label.point == 1:
                continue
            now, before = found[label.point - 1], found[label.point - 2]
            if at.overthinks(now, variance(now, before)):
                over.append(row)
            elif at.underthinks(now, variance(now, before)):
                under.append(row)
        if not over or not under:
            raise NotApplicable("no steps overthink, or none underthink")
        parameters = {"thresholds": torch.tensor(dataclasses.astuple(at), dtype=torch.float64)}
        for block in harvest.blocks:
            states = harvest.captured.at_block(block).float()
            parameters[f"block {block}"] = states[over].mean(0) - states[under].mean(0)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Every block and scale."""
        return [{"block": block, "scale": scale} for block in blocks for scale in SCALES]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, in as many rounds as the longest completion has control points."""
        block = int(setting["block"])
        vector = float(setting["scale"]) * parameters[f"block {block}"]
        at = Thresholds(*parameters["thresholds"].tolist())
        items = [Progress(prompt) for prompt in prompts]
        before: list[float | None] = [None] * len(items)
        while going := [i for i, item in enumerate(items) if item.finish is None]:
            watched = [i for i in going if len(items[i].planned) < answering.control.max_points]
            extend(answering, [items[i] for i in going if i not in watched], ())
            extend(answering, [items[i] for i in watched], answering.delimiter_ids)
            for i in watched:
                item = items[i]
                if item.finish is not None:
                    continue
                confidence = _mean([math.exp(logprob) for logprob in item.last_logprobs])
                delta = strength(confidence, before[i], at) * vector
                before[i] = confidence
                place = len(item.token_ids) - 1
                item.planned = (*item.planned, PlannedImpulse(place, block, delta))
        return [item.rollout() for item in items]


def variance(confidence: float, before: float) -> float:
    """Of two confidences in a row, as the paper scales it."""
    return (confidence - before) ** 2 / 4


def strength(confidence: float, before: float | None, at: Thresholds) -> float:
    """What the vector is multiplied by at the end of a step.

    Args:
        confidence: Of the step.
        before: Of the step before; None of the first, which neither over- nor underthinks.
        at: The thresholds.
    """
    if before is not None and at.overthinks(confidence, variance(confidence, before)):
        return OVERTHINKING
    if before is not None and at.underthinks(confidence, variance(confidence, before)):
        return UNDERTHINKING
    middle = (at.low_confidence + 1) / 2
    half = max(1 - at.low_confidence, 1e-6) / 2
    height = (AT_ONE - AT_LOW) / 2 / math.tanh(TANH_ARGUMENT)
    return (AT_ONE + AT_LOW) / 2 + height * math.tanh(TANH_ARGUMENT * (confidence - middle) / half)


def steps_of(
    loaded: LoadedModel, rollouts: Sequence[Rollout]
) -> Mapping[tuple[str, int], list[float]]:
    """The confidence of every step that ends at a control point, by problem and sample."""
    found = {}
    for reading in read(loaded, rollouts, {}):
        likeliest = _largest_probabilities(reading.logits[:, :-1])
        for row, rollout in enumerate(reading.rollouts):
            of_tokens = likeliest[row, reading.response[row, 1:].to(likeliest.device)].tolist()
            ends = [0, *(point + 1 for point in rollout.control_points)]
            found[rollout.prompt_id, rollout.sample] = [
                _mean(of_tokens[start:end]) for start, end in itertools.pairwise(ends)
            ]
    return found


def _largest_probabilities(logits: Float[Tensor, "B T V"]) -> Float[Tensor, "B T"]:
    return (logits.amax(-1).float() - logits.float().logsumexp(-1)).exp()


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
