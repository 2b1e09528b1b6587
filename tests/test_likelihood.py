"""The log-likelihood of chosen tokens and its gradient by the states that the output head reads."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from stir_train.directions.likelihood import log_likelihood
from stir_train.generation.sampling import kept_tokens
from stir_train.models.output_head import OutputHead
from tests.support.recorded import SAMPLING, TEMPERATURE
from tests.support.tiny_models import double


@pytest.mark.parametrize("filtered", [False, True])
def test_the_head_in_chunks_is_the_head_at_once(filtered: bool) -> None:
    loaded = double("gemma2-hybrid")
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(9, 32, generator=generator, dtype=torch.double)
    targets = torch.randint(0, 97, (9,), generator=generator)
    sampling = dataclasses.replace(SAMPLING, top_p=0.9, top_k=20)
    found = [
        log_likelihood(
            OutputHead(loaded, logits_at_once=size), states, targets, sampling, filtered=filtered
        )
        for size in (1, 2 * 97, 1 << 20)
    ]
    for logprobs, gradients in found[1:]:
        torch.testing.assert_close(logprobs, found[0][0])
        torch.testing.assert_close(gradients, found[0][1])


def test_the_filtered_distribution_is_the_samplers() -> None:
    loaded = double("phi")
    head = OutputHead(loaded)
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(6, 32, generator=generator, dtype=torch.double)
    for top_p, top_k in ((0.8, 0), (1.0, 7), (0.9, 20), (0.05, 0)):
        sampling = dataclasses.replace(SAMPLING, top_p=top_p, top_k=top_k)
        logits = head.logits(states)
        probabilities = torch.softmax(logits / TEMPERATURE, -1)
        wanted = probabilities * kept_tokens(probabilities, sampling)
        targets = wanted.argmax(-1)
        nats, gradient = log_likelihood(head, states, targets, sampling, filtered=True)
        chances = (wanted / wanted.sum(-1, keepdim=True)).gather(-1, targets[:, None])[:, 0]
        torch.testing.assert_close(nats, chances.log())
        vector = torch.randn(32, generator=generator, dtype=torch.double)
        step = 1e-6
        up, down = (
            log_likelihood(head, states + s * step * vector, targets, sampling, filtered=True)[0]
            for s in (1, -1)
        )
        torch.testing.assert_close(gradient @ vector, (up - down) / (2 * step), rtol=0, atol=1e-6)
    # A token that only rounding could have let through still has a probability.
    unlikely = head.logits(states).argmin(-1)
    narrow = dataclasses.replace(SAMPLING, top_k=1)
    assert bool(log_likelihood(head, states, unlikely, narrow, filtered=True)[0].isfinite().all())
