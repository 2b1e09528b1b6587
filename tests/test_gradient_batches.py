"""Which rollouts are differentiated together, and which prompts are kept for them."""

from __future__ import annotations

import dataclasses

import torch

from stir_train.directions.batches import PROMPT_BATCHES, batches_of_prompts, length_batches
from stir_train.directions.gradients import rollout_gradients
from stir_train.launch import estimate
from tests.support.recorded import SETTINGS, rollout, some_rollouts
from tests.support.tiny_models import double


def test_batches_share_prompts_and_keep_to_their_size() -> None:
    loaded, rollouts = double("qwen2"), some_rollouts()
    batches = length_batches(rollouts, 40)
    assert sorted(i for batch in batches for i in batch) == list(range(len(rollouts)))
    lengths = [len(rollouts[i].token_ids) for batch in batches for i in batch]
    assert lengths == sorted(lengths)
    for batch in batches:
        assert len(batch) * max(len(rollouts[i].token_ids) for i in batch) <= 40
    _, cost = rollout_gradients(loaded, rollouts, SETTINGS)
    # Prompts of 5 (twice the same, and two others), 1 and 12, padded, without their last tokens.
    assert cost.prompt_token_forwards == 5 * 11
    assert cost.graph_token_forwards == 6 * 20


def test_long_prompts_bound_a_batch_of_short_answers() -> None:
    rollouts = [rollout(f"{n}", [3 + n] * (200 if n == 9 else 10), [2]) for n in range(64)]
    batches, most = length_batches(rollouts, 64), PROMPT_BATCHES * 64
    assert estimate.KEPT_PROMPTS == 3 * PROMPT_BATCHES, "what init reckons with"
    assert sorted(i for batch in batches for i in batch) == list(range(64))
    fed_together = list(batches_of_prompts(batches, rollouts, 64))
    assert [batch for some in fed_together for batch in some] == batches
    for some in fed_together:
        prompts = {rollouts[i].prompt_token_ids for batch in some for i in batch}
        width = max(map(len, prompts))
        assert len(prompts) * width <= most
        assert all(len(batch) * width <= most for batch in some), "rows as wide as the longest"


def test_a_prompt_is_fed_once_for_all_batches() -> None:
    loaded, rollouts = double("qwen2"), some_rollouts()
    found, cost = rollout_gradients(loaded, rollouts, SETTINGS)
    narrow = dataclasses.replace(SETTINGS, max_batch_tokens=20)
    split, more = rollout_gradients(loaded, rollouts, narrow)
    assert more.batches > cost.batches
    assert more.prompt_token_forwards == cost.prompt_token_forwards
    torch.testing.assert_close(split.sums, found.sums, rtol=1e-4, atol=1e-5)
    # None are kept: each batch feeds its own, and the one that two begin with twice.
    alone, again = rollout_gradients(
        loaded, rollouts, dataclasses.replace(SETTINGS, max_batch_tokens=1)
    )
    assert again.prompt_token_forwards == 4 * 4 + 11
    torch.testing.assert_close(alone.sums, found.sums, rtol=1e-4, atol=1e-5)
