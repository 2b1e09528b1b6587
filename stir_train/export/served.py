"""Prove that an engine that serves adapters makes the trainer's greedy tokens with ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from stir_train.artifacts.tensors import load_tensors
from stir_train.errors import VerificationError
from stir_train.generation.backend import GenerationBackend, GenerationRequest, SamplingParams
from stir_train.models.load import LoadedModel
from stir_train.types.rollout import Prompt


@dataclass(frozen=True)
class ServedTokens:
    """What was compared.

    Attributes:
        num_tokens: Greedy tokens of all probes.
        num_equal: Of them, those up to where a probe's first differs: all, if none does.
        num_ties: Probes that differ first at a token as likely as the trainer's, within the tolerance.
    """

    num_tokens: int
    num_equal: int
    num_ties: int


def verify_served(
    loaded: LoadedModel, engine: GenerationBackend, probes: Path, *, tolerance: float
) -> ServedTokens:
    """Complete the recorded probes greedily, and compare token by token.

    Args:
        loaded: The base with the adapter on it, as PEFT runs it.
        engine: Over the same.
        probes: What the trainer recorded.
        tolerance: Largest difference of a logit.

    Raises:
        VerificationError: If a token differs that was not as likely.
    """
    recorded, _ = load_tensors(probes)
    prompts, greedy = recorded["token_ids"], recorded["greedy_token_ids"]
    requests = [
        GenerationRequest(Prompt(str(i), "", "", tuple(ids), ""))
        for i, ids in enumerate(prompts.tolist())
    ]
    made = engine.generate(requests, SamplingParams(greedy.shape[1]), seed=0)
    served = torch.tensor([rollout.token_ids for rollout in made.rollouts])
    num_equal = num_ties = 0
    for i, (theirs, ours) in enumerate(zip(served, greedy, strict=True)):
        differing = (theirs != ours).nonzero()[:, 0].tolist()
        num_equal += differing[0] if differing else len(ours)
        if not differing:
            continue
        at = differing[0]
        gap = _gap(loaded, torch.cat([prompts[i], ours[:at]]), int(ours[at]), int(theirs[at]))
        # Two logits may each be off by the tolerance.
        if gap > 2 * tolerance:
            raise VerificationError(
                f"{loaded.adapter} through {engine.name}: token {at} of probe {i} is {int(theirs[at])}, the "
                f"trainer's is {int(ours[at])}, and their logits are {gap:.2e} apart (tolerance "
                f"{tolerance:.0e}); is the adapter served?"
            )
        num_ties += 1
    return ServedTokens(greedy.numel(), num_equal, num_ties)


@torch.no_grad()
def _gap(loaded: LoadedModel, context: Int[Tensor, "T"], one: int, other: int) -> float:
    """How far apart the logits of two tokens are after a context."""
    ids = context[None].to(loaded.device)
    logits = loaded.model(input_ids=ids, use_cache=False).logits[0, -1].float()
    return float((logits[one] - logits[other]).abs())
