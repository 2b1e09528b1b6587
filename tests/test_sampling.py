"""Noise by counter, and sampling from filtered distributions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stir_train.generation import sampling
from stir_train.generation.backend import SamplingParams
from stir_train.generation.noise import row_keys, uniforms
from stir_train.generation.sampling import next_tokens

COUNT = 200_000


def test_noise_is_uniform_and_a_function_of_its_counter_alone() -> None:
    keys = row_keys(3, [("p", k) for k in range(4)])
    positions = torch.arange(COUNT // 4)
    draws = torch.stack([uniforms(key.expand(len(positions)), positions) for key in keys])
    flat = draws.flatten()
    assert float(flat.min()) >= 0
    assert float(flat.max()) < 1
    # Kolmogorov-Smirnov distance of n uniforms stays below 2 / sqrt(n) with overwhelming odds.
    ordered = flat.sort().values
    distance = (ordered - torch.arange(1, COUNT + 1) / COUNT).abs().max()
    assert float(distance) < 2 / COUNT**0.5
    assert abs(float(torch.corrcoef(draws)[0, 1])) < 0.02  # rows are independent
    lagged = torch.corrcoef(torch.stack([draws[0, 1:], draws[0, :-1]]))[0, 1]
    assert abs(float(lagged)) < 0.02  # and so are positions
    alone = uniforms(keys[2:3], positions[17:18])
    assert torch.equal(alone[0], draws[2, 17])
    assert len(set(row_keys(0, [("a", 1), ("a", 11), ("a1", 1), ("b", 1)]).tolist())) == 4
    assert not torch.equal(row_keys(0, [("a", 0)]), row_keys(1, [("a", 0)]))


def test_sampled_frequencies_are_the_filtered_probabilities() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -8.0]).expand(COUNT, 5)
    draws = uniforms(row_keys(0, [("x", 0)]).expand(COUNT), torch.arange(COUNT))
    params = SamplingParams(1, temperature=0.8, top_p=0.9, top_k=4)
    tokens, logprobs = next_tokens(logits, params, draws)
    probabilities = torch.softmax(logits[0] / 0.8, -1)
    kept = (probabilities.cumsum(0) - probabilities < 0.9) & (torch.arange(5) < 4)
    expected = probabilities * kept / (probabilities * kept).sum()
    observed = torch.bincount(tokens, minlength=5) / COUNT
    torch.testing.assert_close(observed, expected, atol=5e-3, rtol=0)
    assert observed[~kept].sum() == 0
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])


def test_extreme_draws_pick_tokens_of_positive_probability() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(2, 5)
    draws = torch.tensor([0.0, 1 - 2**-53], dtype=torch.double)
    tokens, _ = next_tokens(logits, SamplingParams(1, temperature=1.0), draws)
    assert tokens.tolist() == [1, 3]


def test_greedy_ignores_noise_and_penalty_lowers_seen_tokens() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.5], [-1.0, -1.1, -5.0]])
    tokens, _ = next_tokens(logits, SamplingParams(1), None)
    assert tokens.tolist() == [1, 0]
    seen = torch.tensor([[False, True, False], [True, False, False]])
    tokens, _ = next_tokens(logits, SamplingParams(1, repetition_penalty=2.0), None, seen)
    assert tokens.tolist() == [2, 1]


def by_sorting_everything(logits: Tensor, params: SamplingParams, draws: Tensor) -> Tensor:
    """The filtered distribution by its definition, inverted in one sum."""
    probabilities = torch.softmax(logits / params.temperature, -1)
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    kept = ordered.cumsum(-1) - ordered < params.top_p
    if params.top_k:
        kept[:, params.top_k :] = False
    filtered = probabilities * torch.zeros_like(kept).scatter(-1, order, kept)
    cumulative = filtered.double().cumsum(-1)
    targets = draws[:, None].double() * cumulative[:, -1:]
    return torch.searchsorted(cumulative, targets, right=True)[:, 0]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 0.05, 1.0, 4.0, 12.0]),
    top_p=st.sampled_from([0.5, 0.95, 0.999, 1.0]),
    top_k=st.sampled_from([0, 1, 40, 400]),
    levels=st.sampled_from([0, 3, 40]),
)
def test_a_large_vocabulary_is_sampled_as_if_it_were_sorted(
    seed: int, scale: float, top_p: float, top_k: int, levels: int
) -> None:
    """Flat and peaked rows, wide nuclei, and logits of few levels, where most tokens tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(16, 5000, generator=generator)
    if levels:
        logits = (logits * levels / 8).round()
    draws = torch.rand(16, generator=generator, dtype=torch.double)
    params = SamplingParams(1, temperature=0.7, top_p=top_p, top_k=top_k)
    tokens, _ = next_tokens(logits, params, draws)
    assert torch.equal(tokens, by_sorting_everything(logits, params, draws))


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-53])
def test_extreme_draws_of_a_large_vocabulary_pick_kept_tokens(draw: float) -> None:
    logits = torch.full((1, 4000), -torch.inf)
    logits[0, [700, 3100]] = 0.0
    draws = torch.tensor([draw], dtype=torch.double)
    for top_p in (0.9, 1.0):
        tokens, _ = next_tokens(logits, SamplingParams(1, temperature=1.0, top_p=top_p), draws)
        assert tokens.tolist() == [700 if draw == 0 else 3100]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_rows_chosen_a_few_at_a_time_are_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, temperature: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(23, 5000, generator=generator)
    draws = torch.rand(23, generator=generator, dtype=torch.double)
    seen = torch.rand(23, 5000, generator=generator) < 0.1
    params = SamplingParams(1, temperature=temperature, top_p=0.99, repetition_penalty=1.3)
    together = next_tokens(logits, params, draws, seen)
    monkeypatch.setattr(sampling, "CACHED_LOGITS", 5 * 5000)
    apart = next_tokens(logits, params, draws, seen)
    assert all(torch.equal(one, other) for one, other in zip(together, apart, strict=True))
