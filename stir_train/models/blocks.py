"""Find a model's decoder blocks, and resolve depths to block indices.

The state ``h[b]`` is the residual stream after decoder block ``b``, counted from 0, before any
later block; it equals ``hidden_states[b + 1]`` of transformers.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from stir_train.errors import ModelError

BLOCK_CONVENTION = (
    "h[b] is the residual stream after decoder block b (0-based), before any later block"
)


def find_blocks(
    model: nn.Module, *, path: str | None = None, num_blocks: int | None = None
) -> nn.ModuleList:
    """Return the decoder blocks in order.

    They are the one ``ModuleList`` in the model whose length is the configured number of layers
    and whose members each contain an attention module.

    Args:
        model: A causal language model.
        path: Dotted path of the list, for models whose structure is not recognised.
        num_blocks: How many there are, of a model that is none of transformers.

    Raises:
        ModelError: If there is no such list, or more than one.
    """
    if path is not None:
        found = dict(model.named_modules()).get(path)
        if isinstance(found, nn.ModuleList):
            return found
        raise ModelError(
            f"model.blocks_path: {path!r} is not a ModuleList of {type(model).__name__}"
        )
    if num_blocks is None:
        assert isinstance(model, PreTrainedModel), "of another model, their number is given"
        num_blocks = model.config.get_text_config().num_hidden_layers
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList)
        and len(module) == num_blocks
        and all(any("attn" in n or "attention" in n for n, _ in m.named_modules()) for m in module)
    }
    outermost = {
        name: module
        for name, module in lists.items()
        if not any(name.startswith(f"{other}.") for other in lists if other != name)
    }
    if len(outermost) == 1:
        return next(iter(outermost.values()))
    candidates = ", ".join(sorted(outermost)) or "none"
    raise ModelError(
        f"{type(model).__name__}: expected exactly one list of {num_blocks} decoder blocks, "
        f"found: {candidates}. Set model.blocks_path to the dotted path of the list."
    )


def resolve_depth(depth: float, num_blocks: int) -> int:
    """Turn a depth fraction into a block index: ``round(depth * (num_blocks - 1))``.

    Raises:
        ValueError: If the fraction is outside [0, 1].
    """
    if not 0 <= depth <= 1:
        raise ValueError(f"a depth is a fraction between 0 and 1, not {depth}")
    return round(depth * (num_blocks - 1))
