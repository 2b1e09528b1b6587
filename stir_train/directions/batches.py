"""Which rollouts are differentiated together, and for which batches prompts are kept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from stir_train.directions.places import num_fed
from stir_train.types.rollout import Rollout

PROMPT_BATCHES = 4
"""Of prompts, so many times the tokens of a batch are kept at most: without a graph, a token takes little memory."""


def length_batches(rollouts: Sequence[Rollout], max_batch_tokens: int) -> list[list[int]]:
    """Indices of rollouts whose completions are of like length, within a padded size.

    Args:
        rollouts: Any.
        max_batch_tokens: Fed columns of a batch, padding included; its padded prompts are `PROMPT_BATCHES` times as
            many at most. A rollout that exceeds either is a batch by itself.
    """
    batches: list[list[int]] = []
    longest_prompt = 0
    for index in sorted(range(len(rollouts)), key=lambda i: (num_fed(rollouts[i]), i)):
        width, prompt = num_fed(rollouts[index]), len(rollouts[index].prompt_token_ids)
        num_rows = len(batches[-1]) + 1 if batches else 1
        widest = max(longest_prompt, prompt)
        fits = num_rows * width <= max_batch_tokens
        if batches and fits and num_rows * widest <= PROMPT_BATCHES * max_batch_tokens:
            batches[-1].append(index)
            longest_prompt = widest
        else:
            batches.append([index])
            longest_prompt = prompt
    return batches


def batches_of_prompts(
    batches: Sequence[Sequence[int]], rollouts: Sequence[Rollout], max_batch_tokens: int
) -> Iterator[list[Sequence[int]]]:
    """Consecutive batches of rollouts whose prompts are few enough to be kept.

    Args:
        batches: Indices of rollouts (`length_batches`).
        rollouts: All of them.
        max_batch_tokens: Tokens of a batch.

    Yields:
        One batch or more at a time.
    """
    some: list[Sequence[int]] = []
    prompts: set[tuple[int, ...]] = set()
    most_rows, most = 0, PROMPT_BATCHES * max_batch_tokens
    for batch in batches:
        of_batch = {rollouts[index].prompt_token_ids for index in batch}
        together, num_rows = prompts | of_batch, max(most_rows, len(batch))
        # A batch's rows are as wide as the longest prompt that is kept.
        if some and max(len(together), num_rows) * max(map(len, together)) > most:
            yield some
            some, together, num_rows = [], of_batch, len(batch)
        some.append(batch)
        prompts, most_rows = together, num_rows
    if some:
        yield some
