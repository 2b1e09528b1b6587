"""A vector at tokens of high entropy alone: control points where the model wavers.

The papers' (MTI, arXiv 2510.13940; sparse policy selection, arXiv 2605.06241): what decides an answer are the few tokens
at which the next one is uncertain, and an intervention there does most of what one everywhere does. Ours: such points
stand in for paragraph ends; what is added is the mean state at them of right completions minus that of wrong ones of the
same problems; block, the quantile of entropy from which a token counts, and strength are tuned. The entropy is that of
the distribution that the output layer makes of the steered block's own states (the model's own in the last block, the
logit lens below it), so it is known inside the pass that acts on it, and no pass is added.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stir_train.baselines.interface import (
    EDITS,
    AnsweringContext,
    HarvestData,
    NotApplicable,
    Parameters,
    Setting,
)
from stir_train.baselines.pairs import right_and_wrong
from stir_train.baselines.reading import Reading, block_outputs, read
from stir_train.errors import ModelError
from stir_train.models.hooks import block_hooks
from stir_train.models.lens import LogitLens
from stir_train.models.load import LoadedModel
from stir_train.models.output_head import HEAD_TOLERANCE
from stir_train.types.rollout import Prompt, Rollout

QUANTILES = (0.8, 0.95)
STRENGTHS = (1.0, 2.0, 4.0)
NUM_PAIRS = 128
"""Problems with right and wrong completions that are read, one of each."""
Entropies = Callable[[Float[Tensor, "N D"]], Float[Tensor, "N"]]
"""Nats, from states after a block."""


class EntropyPoints:
    """Towards right, where the next token is uncertain."""

    name = "entropy-points"
    needs = EDITS

    def prepare(self, harvest: HarvestData) -> dict[str, Tensor]:
        """Every block's entropy at each quantile, and the vector of the tokens above it."""
        pairs = right_and_wrong(harvest)[:NUM_PAIRS]
        sides = [[pair[side][0] for pair in pairs] for side in (0, 1)]
        entropies = checked_lens(harvest.loaded, sides[0][0])
        parameters = {}
        for block in harvest.blocks:
            # Of one block at a time: states of every token are kept.
            right, wrong = (_states(harvest.loaded, side, block) for side in sides)
            of_right, of_wrong = entropies(right), entropies(wrong)
            for quantile in QUANTILES:
                least = torch.cat([of_right, of_wrong]).quantile(quantile)
                high = right[of_right >= least], wrong[of_wrong >= least]
                if not len(high[0]) or not len(high[1]):
                    raise NotApplicable(
                        "only right or only wrong completions have uncertain tokens"
                    )
                parameters[f"entropy {block} {quantile:g}"] = least
                parameters[f"vector {block} {quantile:g}"] = high[0].mean(0) - high[1].mean(0)
        return parameters

    def settings(self, blocks: Sequence[int]) -> list[Setting]:
        """Every block, quantile and strength."""
        return [
            {"block": block, "quantile": quantile, "strength": strength}
            for block in blocks
            for quantile in QUANTILES
            for strength in STRENGTHS
        ]

    def answer(
        self,
        answering: AnsweringContext,
        parameters: Parameters,
        setting: Setting,
        prompts: Sequence[Prompt],
    ) -> list[Rollout]:
        """Greedy, the vector added at decoded tokens of high entropy."""
        block, quantile = int(setting["block"]), float(setting["quantile"])
        vector = float(setting["strength"]) * parameters[f"vector {block} {quantile:g}"]
        least = float(parameters[f"entropy {block} {quantile:g}"])
        entropies = lens(answering.loaded)

        def edit(states: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"] | None:
            if states.shape[1] > 1:
                return None  # the pass that reads the prompt
            acts = entropies(states[:, 0]) >= least
            return torch.where(acts[:, None, None], states + vector.to(states), states)

        return answering.answer(prompts, edit=block_hooks(answering.loaded.blocks, {block: edit}))


def lens(loaded: LoadedModel) -> Entropies:
    """Entropy of what the final norm and the output layer make of states.

    Raises:
        NotApplicable: If the final norm or the output layer is not found.
    """
    try:
        reader = LogitLens(loaded)
    except ModelError as error:
        raise NotApplicable(str(error)) from error

    @torch.no_grad()
    def entropies(states: Float[Tensor, "N D"]) -> Float[Tensor, "N"]:
        found = []
        for logits in reader.chunks(states):
            logprobs = logits.log_softmax(-1)
            found.append(-(logprobs.exp() * logprobs).sum(-1))
        return torch.cat(found) if found else states.new_zeros(0)

    return entropies


def checked_lens(loaded: LoadedModel, rollout: Rollout) -> Entropies:
    """`lens`, once it is known to give the model's own entropies of a completion in the last block.

    Raises:
        NotApplicable: If it does not.
    """
    entropies, last = lens(loaded), len(loaded.blocks) - 1
    (reading,) = read(loaded, [rollout], block_outputs(loaded, [last]))
    found = entropies(reading.found[f"block {last}"][0])
    logprobs = reading.logits[0].float().log_softmax(-1)
    wanted = -(logprobs.exp() * logprobs).sum(-1).to(found)
    if float((found - wanted).abs().max()) > HEAD_TOLERANCE * max(1.0, float(wanted.max())):
        raise NotApplicable(
            "the architecture does more between its last block and its logits than a norm"
        )
    return entropies


@torch.no_grad()
def _states(loaded: LoadedModel, rollouts: Sequence[Rollout], block: int) -> Float[Tensor, "N D"]:
    """After a block, at every token of completions."""
    return torch.cat(
        [
            _at_tokens(reading, block)
            for reading in read(loaded, rollouts, block_outputs(loaded, [block]))
        ]
    )


def _at_tokens(reading: Reading, block: int) -> Float[Tensor, "N D"]:
    states = reading.found[f"block {block}"]
    return states[reading.response.to(states.device)].float()
