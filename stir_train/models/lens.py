"""What the output layer makes of states below it, through the final norm (the logit lens)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stir_train.errors import ModelError
from stir_train.models.hooks import BlockEdit, block_hooks
from stir_train.models.load import LoadedModel
from stir_train.models.output_head import HEAD_TOLERANCE, OutputHead


class LogitLens:
    """Logits from the states after any block: the model's own after the last, a reading of them below."""

    def __init__(self, loaded: LoadedModel) -> None:
        """Find the final norm and the output layer.

        Raises:
            ModelError: If the model has no output layer, or its final norm is not beside its blocks.
        """
        self.head, self._norm = OutputHead(loaded), _final_norm(loaded)
        self._dtype = loaded.model.dtype

    @torch.no_grad()
    def chunks(self, states: Float[Tensor, "N D"]) -> Iterator[Float[Tensor, "R V"]]:
        """Logits of some states at a time, so that those of all are never held."""
        for some in states.to(self._dtype).split(self.head.rows_at_once):
            yield self.head.logits(self._norm(some))


@dataclass(frozen=True)
class LensReading:
    """How far each block says what the last one does, at some positions.

    Attributes:
        agrees: ``Bool[L P]``, whether the likeliest next token is the same.
        distance: ``Float[L P]``, total variation between both distributions of it.
    """

    agrees: Bool[Tensor, "L P"]
    distance: Float[Tensor, "L P"]


@torch.no_grad()
def read_blocks(
    loaded: LoadedModel, token_ids: Sequence[int], positions: Sequence[int]
) -> LensReading:
    """Read the next token from every block in one pass over a sequence.

    Args:
        loaded: The frozen model.
        token_ids: Prompt and completion.
        positions: Tokens at which it is read, at least one.

    Raises:
        ModelError: If the lens of the last block is not what the model itself says.
    """
    at, kept = torch.tensor(positions), dict[int, Tensor]()

    def keep(block: int) -> BlockEdit:
        def edit(states: Float[Tensor, "B T D"]) -> None:
            kept[block] = states[0, at.to(states.device)]

        return edit

    lens, last = LogitLens(loaded), len(loaded.blocks) - 1
    edits = {block: keep(block) for block in range(last + 1)}
    with block_hooks(loaded.blocks, edits), lens.head.apart(num_through=1) as fed:
        ids = torch.tensor([list(token_ids)], device=loaded.device)
        loaded.model(input_ids=ids, use_cache=False)
    own = fed[0][0, at.to(fed[0].device)]
    agrees, distance = torch.zeros(last + 1, len(at)), torch.zeros(last + 1, len(at))
    for first in range(0, len(at), lens.head.rows_at_once):
        some = slice(first, first + lens.head.rows_at_once)
        wanted = lens.head.logits(own[some])
        for block, states in kept.items():
            (found,) = lens.chunks(states[some].to(own.device))
            if block == last:
                _require_equal(loaded, found, wanted)
            agrees[block, some] = (found.argmax(-1) == wanted.argmax(-1)).float().cpu()
            apart = (found.softmax(-1) - wanted.softmax(-1)).abs().sum(-1) / 2
            distance[block, some] = apart.cpu()
    return LensReading(agrees.bool(), distance)


def _require_equal(
    loaded: LoadedModel, found: Float[Tensor, "R V"], wanted: Float[Tensor, "R V"]
) -> None:
    if float((found - wanted).abs().max()) > HEAD_TOLERANCE * float(wanted.abs().max()):
        raise ModelError(
            f"{loaded.identity.architecture} does more between its last block and its output layer than a "
            "norm; what its blocks say of the next token cannot be read so"
        )


def _final_norm(loaded: LoadedModel) -> nn.Module:
    beside = next(
        module
        for module in loaded.model.modules()
        if any(child is loaded.blocks for child in module.children())
    )
    norms = [child for child in beside.children() if "norm" in type(child).__name__.lower()]
    if len(norms) != 1:
        raise ModelError(
            f"{len(norms)} norms stand beside the decoder blocks; expected the final one"
        )
    return norms[0]
