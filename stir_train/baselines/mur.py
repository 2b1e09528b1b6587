"""More compute for steps more uncertain than the ones before (MUR, arXiv 2507.14958).

The paper's: a step that stands out of the momentum average of those before it (`stir_train.generation.uncertainty`,
gamma 0.9 by default) is scaled, and how is up to a method of scaling. Ours: scaling samples the step again and takes the least uncertain
of all, the greedy one among them; steps end at delimiters; gamma and the number of samples are tuned. The
uncertainties are recorded in decoding, so no pass reads them, and the tokens of steps not taken are counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from stir_train.baselines.interface import AnsweringContext, Setting
from stir_train.baselines.probing import Progress
from stir_train.baselines.untaught import Untaught
from stir_train.generation.backend import GenerationRequest, SamplingParams
from stir_train.generation.uncertainty import next_momentum, stands_out
from stir_train.types.rollout import Prompt, Rollout

GRID = [{"gamma": gamma, "samples": n} for gamma in (0.7, 0.9, 1.0) for n in (2, 4)]


def choose_steps(
    answering: AnsweringContext, setting: Setting, prompts: Sequence[Prompt]
) -> list[Rollout]:
    """Step by step, in as many rounds as the longest completion has delimiters."""
    gamma, num_samples = float(setting["gamma"]), int(setting["samples"])
    items = [Progress(prompt) for prompt in prompts]
    momenta: list[float | None] = [None] * len(items)
    while going := [i for i, item in enumerate(items) if item.finish is None]:
        greedy = _steps(answering, [(items[i], 0) for i in going], answering.greedy)
        candidates = {i: [step] for i, step in zip(going, greedy, strict=True)}
        scaled = [
            i
            for i in going
            if stands_out(uncertainty(candidates[i][0], items[i]), momenta[i], gamma)
        ]
        asked = [(i, k) for i in scaled for k in range(num_samples)]
        sampled = _steps(answering, [(items[i], k) for i, k in asked], answering.sampled)
        for (i, _), step in zip(asked, sampled, strict=True):
            candidates[i].append(step)
        for i in going:
            chosen = min(candidates[i], key=lambda step: uncertainty(step, items[i]))
            momenta[i] = next_momentum(momenta[i], uncertainty(chosen, items[i]))
            take(answering, items[i], chosen, candidates[i])
    return [item.rollout() for item in items]


MUR = Untaught("mur", GRID, choose_steps)
"""Sample uncertain steps again, and keep the surest."""


def uncertainty(step: Rollout, item: Progress) -> float:
    """Mean negative log-probability (nats) of the tokens that a step adds."""
    added = step.logprobs[len(item.token_ids) :]
    return -math.fsum(added) / len(added)


def take(
    answering: AnsweringContext, item: Progress, chosen: Rollout, candidates: Sequence[Rollout]
) -> None:
    """Go on from a step, the tokens of the others counted; in place."""
    start = len(item.token_ids)
    made = sum(len(step.token_ids) - start for step in candidates)
    item.extra_tokens += made - (len(chosen.token_ids) - start)
    item.forward_passes += sum(step.forward_passes for step in candidates)
    item.token_ids = chosen.token_ids
    if chosen.token_ids[-1] in answering.greedy.stop_token_ids:
        item.finish = "stop"
    elif len(chosen.token_ids) >= answering.greedy.max_new_tokens:
        item.finish = "length"


def _steps(
    answering: AnsweringContext, asked: Sequence[tuple[Progress, int]], sampling: SamplingParams
) -> list[Rollout]:
    """The next step of completions, under the noise of a sample's number."""
    until = dataclasses.replace(
        sampling, stop_token_ids=(*sampling.stop_token_ids, *answering.delimiter_ids)
    )
    requests = [GenerationRequest(item.prompt, k, item.token_ids) for item, k in asked]
    if not requests:
        return []
    return list(answering.engine.generate(requests, until, seed=answering.seed).rollouts)
