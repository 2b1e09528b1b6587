"""Stop and answer once a probe of the hidden state is sure.

The paper's (arXiv 2504.05419): a probe of the hidden state at the end of a reasoning step says whether the answer so
far is right, and the model stops where it says so with enough confidence. Ours: steps end at delimiters; the probe
is a ridge-penalised logistic regression on the states that the harvest captured, fitted to whether the completion
they belong to ended right; block and confidence are tuned; the state is read in a pass of its own, which is
counted, as are the tokens of a trial that did not end.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    Parameters,
    Setting,
)
from stir_train.baselines.pairs import right_states
from stir_train.baselines.probing import Progress, accept, extend, may_try, try_answers
from stir_train.baselines.reading import block_outputs, read
from stir_train.types.rollout import Prompt, Rollout

CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
RIDGE = 1e-2
MAX_TRIALS = 40
"""After so many delimiters a completion goes on unread."""


class ValueExit:
    """Answer at the first delimiter whose state the probe is sure of."""

    name = "value-exit"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """The probe of every block, ``Float[D]`` and its bias."""
        labels, parameters = right_states(harvest), {}
        for block in harvest.blocks:
            weight, bias = fit_probe(harvest.captured.at_block(block), labels)
            parameters[f"weight {block}"], parameters[f"bias {block}"] = weight, bias
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Every block and confidence."""
        return [{"block": block, "confidence": c} for block in blocks for c in CONFIDENCES]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, in as many rounds as the longest completion has delimiters."""
        block, least = int(setting["block"]), float(setting["confidence"])
        weight, bias = parameters[f"weight {block}"], parameters[f"bias {block}"]
        items, num_read = [Progress(prompt) for prompt in prompts], [0] * len(prompts)
        while going := [i for i, item in enumerate(items) if item.finish is None]:
            watched = [
                i
                for i in going
                if num_read[i] < MAX_TRIALS and may_try(answering, items[i], MAX_TRIALS)
            ]
            extend(answering, [items[i] for i in going if i not in watched], ())
            extend(answering, [items[i] for i in watched], answering.delimiter_ids)
            paused = [i for i in watched if items[i].finish is None]
            states = last_states(answering, [items[i] for i in paused], block)
            sure = (states @ weight + bias).sigmoid() >= least
            for i in paused:
                items[i].forward_passes += 1  # the states are read in a pass of their own
                num_read[i] += 1
            leaving = [
                items[i] for i, is_sure in zip(paused, sure.tolist(), strict=True) if is_sure
            ]
            trials = try_answers(answering, [(item, item.token_ids) for item in leaving])
            for item, trial in zip(leaving, trials, strict=True):
                if not trial.truncated:
                    accept(answering, item, item.token_ids, trial)
        return [item.rollout() for item in items]


def fit_probe(
    states: Float[Tensor, "N D"], labels: Bool[Tensor, "N"]
) -> tuple[Float[Tensor, "D"], Float[Tensor, ""]]:
    """Weight and bias of a logistic regression, to be applied to states as they are."""
    mean, scale = states.float().mean(0), states.float().std(0).clamp_min(1e-6)
    inputs, targets = (states.float() - mean) / scale, labels.float()
    weight, bias = torch.zeros(states.shape[1]), torch.zeros(())
    weight.requires_grad_(), bias.requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = nn.functional.binary_cross_entropy_with_logits(inputs @ weight + bias, targets)
        loss = fit + RIDGE * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    unscaled = weight.detach() / scale
    return unscaled, bias.detach() - unscaled @ mean


def last_states(
    answering: AnsweringContext, items: Sequence[Progress], block: int
) -> Float[Tensor, "N D"]:
    """After a block, at the last token of each unfinished completion."""
    modules = block_outputs(answering.loaded, [block])
    rollouts = [item.rollout() for item in items]
    found = [r.lasts(f"block {block}") for r in read(answering.loaded, rollouts, modules)]
    return torch.cat(found) if found else torch.zeros(0, answering.loaded.identity.width)
